use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Addr;

/// Which way the packets of a connection go, fixed until it closes.
pub mod path {
    /// Straight to the peer.
    pub const DIRECT: u8 = 1;
    /// Both legs to the proxy.
    pub const PROXIED: u8 = 2;
    /// A direct connection that policy forbids now: the proxy's listener answers each side with a reset.
    pub const RESET: u8 = 3;
}

/// A flow, named so that both of its directions and both legs of a proxied connection give the same key:
/// `a` is the smaller of the two ends (address first, then port).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
pub struct ConnectionKey {
    /// Smaller end.
    pub a: Addr,
    /// Larger end.
    pub b: Addr,
    /// Port of `a`, network order; the identifier for ICMP echo.
    pub a_port: u16,
    /// Port of `b`, network order; the identifier for ICMP echo.
    pub b_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

impl ConnectionKey {
    /// The key of a packet, and 1 if its sender is `a`, else 0.
    #[inline(always)]
    pub fn of(protocol: u8, from: Addr, from_port: u16, to: Addr, to_port: u16) -> (Self, u8) {
        if (from.0, from_port) < (to.0, to_port) {
            (Self { a: from, b: to, a_port: from_port, b_port: to_port, protocol, reserved: [0; 3] }, 1)
        } else {
            (Self { a: to, b: from, a_port: to_port, b_port: from_port, protocol, reserved: [0; 3] }, 0)
        }
    }
}

/// What was decided for a flow, from its first packet on. A cache, never the truth: it may be evicted at any time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ConnectionEntry {
    /// Last packet seen, coarse `CLOCK_MONOTONIC` nanoseconds; kept for datagram flows.
    pub last_seen_ns: u64,
    /// [`crate::Endpoint::generation`] of `a` when judged; 0 if `a` is no pod of this node.
    pub a_generation: u32,
    /// The same for `b`.
    pub b_generation: u32,
    /// Identity of `a` when judged.
    pub a_identity: u32,
    /// Identity of `b` when judged.
    pub b_identity: u32,
    /// The backend chosen for a service, else zero. Unused until services are.
    pub backend: Addr,
    /// Port of the backend, network order.
    pub backend_port: u16,
    /// One of [`path`].
    pub path: u8,
    /// Listener slot of the proxy, if proxied.
    pub slot: u8,
    /// 1 if `a` opened the flow, 0 if `b` did.
    pub opened_by_a: u8,
    /// 1 if the opener's packets reached the pod through the node's stack, which may have translated them: replies
    /// must go back through it, and the opener's egress was judged on the address that it dialled, not on this one.
    pub through_stack: u8,
    /// Always zero.
    pub reserved: [u8; 10],
}
