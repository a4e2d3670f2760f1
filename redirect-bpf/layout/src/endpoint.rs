use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Addr;

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// Ingress is default-deny: only what a rule allows comes in.
    pub const ENFORCE_INGRESS: u32 = 1;
    /// Egress is default-deny.
    pub const ENFORCE_EGRESS: u32 = 2;
    /// Has bandwidth limits: never `bpf_redirect_peer`, which skips the queues of the veth.
    pub const SHAPED: u32 = 4;
}

/// A pod of this node, by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Endpoint {
    /// Index of the host side of its veth, in the node's namespace.
    pub ifindex: u32,
    /// Its identity.
    pub identity: u32,
    /// Changes whenever its rules, its identity or its attachment do; never reused by another endpoint, never 0.
    pub generation: u32,
    /// The first generation of this pod: what was judged for an earlier one is of another pod that had the address.
    pub birth: u32,
    /// The rules in force, [`crate::RuleKey::ruleset`]; swapped whole by writing another number here.
    pub ruleset: u32,
    /// Bits of [`endpoint_flag`].
    pub flags: u32,
    /// 1 above the id that the node's network namespace has for the pod's; 0 if it is not known.
    pub netns: u32,
    /// Ethernet address of the pod's side, network order, low 6 bytes; `from_tunnel` writes it into the header it pushes.
    pub mac: [u8; 6],
    /// Always zero.
    pub reserved: [u8; 2],
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// What claims the address of a remote pod or of another node enters a pod only by way of the
    /// tunnel.
    pub const ENCRYPTED: u32 = 1;
    /// A snapshot is being written: identities and rules may be of two. What is denied meanwhile is dropped, and ends
    /// no live flow.
    pub const SWAPPING: u32 = 2;
}

/// What the programs of this node must know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Config {
    /// First address of the pod network of the whole cluster.
    pub pod_network: Addr,
    /// Its netmask, in the form of an address.
    pub pod_netmask: Addr,
    /// This node's own address on the uplink.
    pub node_address: Addr,
    /// Number of listener slots in use by the proxy, at least 1; the slot of a new connection is a hash modulo this.
    pub slots: u32,
    /// Index of the loopback device.
    pub loopback_ifindex: u32,
    /// Bits of [`config_flag`].
    pub flags: u32,
    /// Index of the tunnel's device, the only one that proves who sent what another node or a pod
    /// of it claims; 0 while there is none.
    pub tunnel_ifindex: u32,
}
