//! What the kernel half and the user half of the datapath agree on: map keys and values, packet marks, path and
//! verdict numbers, and the reasons that counters and events name.
//!
//! One definition for both sides, `no_std`, without padding (a padding byte is a compile error) and without `bool`,
//! `enum` or `usize` fields, so that every bit pattern the kernel may hold is a valid value here.
//! Change a map's key or value and its name in [`maps`] must change too: pins of another layout are never reused.

#![no_std]

mod address;
mod connection;
mod endpoint;
mod event;
mod fragment;
mod range;
mod reason;
mod rule;

pub use address::Addr;
pub use connection::{ConnectionEntry, ConnectionKey, path};
pub use endpoint::{Config, Endpoint, config_flag, endpoint_flag};
pub use event::{Event, event_kind};
pub use fragment::{FragmentKey, FragmentNote};
pub use range::{range_bits, range_kind};
pub use reason::Reason;
pub use rule::{RuleKey, RuleValue, direction, verdict};

/// Identities below this number are reserved; the agent hands out numbers from here on.
pub const FIRST_LOCAL_IDENTITY: u32 = 256;

/// Reserved identities; numbers as Cilium's, so that flow tools print the names people know.
pub mod identity {
    /// "Any peer" in a rule; never the identity of a packet.
    pub const ANY: u32 = 0;
    /// A process of this node.
    pub const HOST: u32 = 1;
    /// Everything outside the cluster.
    pub const WORLD: u32 = 2;
    /// An address of the pod network that no pod claims yet. Matches only rules that allow every peer.
    pub const UNKNOWN: u32 = 3;
    /// A process of another node.
    pub const REMOTE_NODE: u32 = 6;
}

/// Packet marks, under [`mark::MASK`].
pub mod mark {
    /// The bits that are ours.
    pub const MASK: u32 = 0xf00;
    /// On its way to the proxy.
    pub const TO_PROXY: u32 = 0x200;
    /// Judged, continuing through the stack.
    pub const JUDGED: u32 = 0x300;
    /// Sent by the proxy, on either leg.
    pub const FROM_PROXY: u32 = 0xa00;
    /// Sent by a pod to another node: leaves through the tunnel only. Judged like an unmarked
    /// packet in all else.
    pub const ONLY_ENCRYPTED: u32 = 0x400;
}

/// Names of the pinned maps. The number is the layout version of that one map.
pub mod maps {
    /// `Array<Config>`, one element.
    pub const CONFIG: &str = "CONFIG_2";
    /// `HashMap<Addr, Endpoint>`: the pods of this node.
    pub const ENDPOINTS: &str = "ENDPOINTS_3";
    /// `HashMap<Addr, u32>`: identity of every known pod and node address, local or remote.
    pub const IDENTITIES: &str = "IDENTITIES_1";
    /// `LpmTrie<Addr, u32>`: where pods and nodes are, values of [`crate::range_kind`].
    pub const RANGES: &str = "RANGES_1";
    /// `LpmTrie<RuleKey, RuleValue>`: lowered policy, see [`crate::RuleKey`].
    pub const RULES: &str = "RULES_1";
    /// `LruHashMap<ConnectionKey, ConnectionEntry>`.
    pub const CONNECTIONS: &str = "CONNECTIONS_1";
    /// `LruHashMap<FragmentKey, FragmentNote>`: ports of datagrams that come in pieces.
    pub const FRAGMENTS: &str = "FRAGMENTS_1";
    /// `LruHashMap<u32, InsertQuota>`: new entries of an endpoint in the current window, keyed by host ifindex.
    pub const QUOTAS: &str = "QUOTAS_1";
    /// `SockMap`: the proxy's listeners, one slot for each of its threads.
    pub const LISTENERS: &str = "LISTENERS_1";
    /// `RingBuf` of [`crate::Event`].
    pub const EVENTS: &str = "EVENTS_1";
    /// `PerCpuArray<u64>`, indexed by [`crate::Reason`].
    pub const COUNTERS: &str = "COUNTERS_1";
}

/// Named limits of the maps, each with its reason.
pub mod limits {
    /// Pods of one node: Kubernetes supports 110, large installations go to 250; room for churn.
    pub const ENDPOINTS: u32 = 4096;
    /// Addresses of one cluster: 5,000 nodes and 150,000 pods are Kubernetes' own limits.
    pub const IDENTITIES: u32 = 262_144;
    /// Ranges of pods and addresses of nodes: 5,000 nodes, Kubernetes' own limit, with two ranges
    /// and a few addresses each.
    pub const RANGES: u32 = 32_768;
    /// Lowered rules of one node: 256 endpoints of 1,000 prefixes each.
    pub const RULES: u32 = 262_144;
    /// Live flows of one node, about 160 bytes each: 40 MiB.
    pub const CONNECTIONS: u32 = 262_144;
    /// New entries that one endpoint may make within [`QUOTA_WINDOW_NS`]: an eighth of the table, so that a scan by
    /// one pod cannot push out the entries of the others faster than they are used again.
    pub const QUOTA_ENTRIES: u32 = CONNECTIONS / 8;
    /// Length of a quota window in nanoseconds: 10 s.
    pub const QUOTA_WINDOW_NS: u64 = 10_000_000_000;
    /// Datagrams that come in pieces, about 100 bytes each: 1.6 MiB. Linux holds at most 4 MiB of
    /// pieces until they are whole (`ipfrag_high_thresh`), some 3,000 datagrams; this is five times
    /// that. At the limit the one used least recently goes, and its later pieces are counted as
    /// `fragment_without_first`.
    pub const FRAGMENTS: u32 = 16_384;
    /// How long later pieces are known by their first: as long as Linux waits for them
    /// (`ipfrag_time`), 30 s.
    pub const FRAGMENT_LIFE_NS: u64 = 30_000_000_000;
    /// Listener slots: threads of one proxy (64) for two masters at once.
    pub const LISTENERS: u32 = 128;
    /// Bytes of the event ring: 8,192 events, a second of a flood that is then counted as lost.
    pub const EVENT_BYTES: u32 = 1 << 20;
    /// An entry of a UDP or ICMP flow that saw no packet for this long is void: 180 s (conntrack's stream time-out).
    pub const DATAGRAM_IDLE_NS: u64 = 180_000_000_000;
}

/// Value of [`maps::QUOTAS`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
)]
pub struct InsertQuota {
    /// Start of the window, `CLOCK_MONOTONIC` nanoseconds.
    pub window_start_ns: u64,
    /// New entries within the window.
    pub entries: u64,
}

#[cfg(feature = "user")]
mod user;
