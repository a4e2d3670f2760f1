//! Sockets of the node, which are the proxy's if their local end is not the node's own address; and
//! sockets of pods.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use layout::Endpoint;

use crate::maps::LOOKING;
use crate::packet::Packet;

/// Addresses and ports of a segment, in network order.
pub(crate) struct Tuple {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

impl Tuple {
    /// That of the packet, as its receiver sees it.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
        }
    }

    /// That of the packets that answer this one, as its sender sees them.
    #[inline(always)]
    pub(crate) fn of_answer(packet: &Packet) -> Self {
        Self {
            source: packet.destination,
            destination: packet.source,
            source_port: packet.destination_port,
            destination_port: packet.source_port,
        }
    }
}

/// What the node has for a TCP tuple.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// Nothing, or only a listener (a wildcard listener of the node would match any tuple).
    None,
    /// The remains of a connection.
    TimeWait,
    /// A connection, perhaps half open or half closed.
    Live,
}

const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
/// Length of the IPv4 member of `bpf_sock_tuple`, by which the kernel tells the family.
const IPV4_TUPLE: u32 = 12;

/// The socket that a segment with this tuple would be delivered to.
#[inline(always)]
pub(crate) fn find(ctx: &TcContext, tuple: &Tuple) -> Socket {
    match state(ctx, tuple, BPF_F_CURRENT_NETNS as i64 as u64) {
        0 | TCP_LISTEN => Socket::None,
        TCP_TIME_WAIT => Socket::TimeWait,
        _ => Socket::Live,
    }
}

/// Whether the pod's own stack has the connection that a segment with this tuple would be delivered
/// to; its remains too.
#[inline(always)]
pub(crate) fn pod_has(ctx: &TcContext, pod: &Endpoint, tuple: &Tuple) -> bool {
    // Which namespace is the pod's is not known: none has it.
    if pod.netns == 0 {
        return false;
    }
    !matches!(state(ctx, tuple, u64::from(pod.netns - 1)), 0 | TCP_LISTEN)
}

/// State of the socket in a network namespace, 0 if there is none.
#[inline(never)]
fn state(ctx: &TcContext, of: &Tuple, netns: u64) -> u32 {
    // SAFETY: a C struct of integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv4.saddr = of.source;
    tuple.__bindgen_anon_1.ipv4.daddr = of.destination;
    tuple.__bindgen_anon_1.ipv4.sport = of.source_port;
    tuple.__bindgen_anon_1.ipv4.dport = of.destination_port;
    set_looking(1);
    // SAFETY: the tuple lives on our stack, its length is given; the context is the kernel's own.
    let socket = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, IPV4_TUPLE, netns, 0) };
    set_looking(0);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, and referenced until it is released in the next line, exactly once.
    unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    }
}

/// The kernel runs `pick_listener` within a look-up that finds no connection. Nothing is delivered there and then, so
/// that program must neither count nor report it. Neither program leaves its processor on the way.
#[inline(always)]
fn set_looking(value: u32) {
    if let Some(looking) = LOOKING.get_ptr_mut(0) {
        // SAFETY: the value of this processor, which no other writes.
        unsafe { *looking = value }
    }
}

/// Whether `pick_listener` was called by one of our own look-ups.
#[inline(always)]
pub(crate) fn is_looking() -> bool {
    // SAFETY: as above, an integer.
    LOOKING.get_ptr(0).is_some_and(|looking| unsafe { *looking } != 0)
}
