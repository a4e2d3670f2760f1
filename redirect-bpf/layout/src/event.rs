use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Addr;

/// Kinds of [`Event`].
pub mod event_kind {
    /// A new flow was judged and allowed, straight through.
    pub const ALLOWED: u8 = 1;
    /// A new flow was judged and goes to the proxy.
    pub const REDIRECTED: u8 = 2;
    /// A packet was refused; `reason` says why.
    pub const DROPPED: u8 = 3;
    /// A live direct flow is forbidden now and is being reset.
    pub const RESET: u8 = 4;
}

/// One judgement, for the agent's flow records. The deciding rule of each direction: number of the origin, 0 the
/// implicit default. A direction that was not judged here (the peer is not a pod of this node) has
/// `NOT_JUDGED` instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Event {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// Sender of the packet.
    pub source: Addr,
    /// Receiver of the packet.
    pub destination: Addr,
    /// Network order; type of an ICMP message.
    pub source_port: u16,
    /// Network order; code of an ICMP message.
    pub destination_port: u16,
    /// Identity of the sender.
    pub source_identity: u32,
    /// Identity of the receiver.
    pub destination_identity: u32,
    /// Origin of the egress verdict, or [`Event::NOT_JUDGED`].
    pub egress_origin: u32,
    /// Origin of the ingress verdict, or [`Event::NOT_JUDGED`].
    pub ingress_origin: u32,
    /// Device the packet came in on.
    pub ifindex: u32,
    /// One of [`event_kind`].
    pub kind: u8,
    /// A [`crate::Reason`], for a refusal.
    pub reason: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags byte.
    pub tcp_flags: u8,
    /// [`crate::direction`] that refused, for a refusal; else 0.
    pub direction: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

impl Event {
    /// This node does not judge that direction of the flow.
    pub const NOT_JUDGED: u32 = u32::MAX;
}
