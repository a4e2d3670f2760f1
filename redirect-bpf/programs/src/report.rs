//! Counters and events.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use layout::{Addr, Event, Reason, event_kind};

use crate::maps::{COUNTERS, EVENTS};
use crate::packet::{ICMP, Packet, skb};

#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the value of this processor, which no other writes.
        unsafe { *counter += 1 }
    }
}

/// Counts and reports a refused packet; gives what the program returns for it.
#[inline(always)]
pub(crate) fn refused(ctx: &TcContext, packet: &Packet, reason: Reason, on_error: i32) -> i32 {
    count(reason);
    // Such a packet has no addresses that an event could name, and idle IPv6 hosts send them all the time.
    if !matches!(reason, Reason::UnsupportedProtocol | Reason::TaggedFrame) {
        emit(packet, skb(ctx).ifindex, event_kind::DROPPED, reason as u8);
    }
    on_error
}

/// Reports a new flow, or the end of a live one.
#[inline(always)]
pub(crate) fn tell(ctx: &TcContext, packet: &Packet, kind: u8) {
    emit(packet, skb(ctx).ifindex, kind, 0);
}

/// Sends an event to the agent; one that finds no room is counted, nothing waits for it.
#[inline(never)]
pub(crate) fn emit(packet: &Packet, ifindex: u32, kind: u8, reason: u8) {
    let Some(mut slot) = EVENTS.reserve::<Event>(0) else {
        count(Reason::EventLost);
        return;
    };
    // Types and codes stand in the fields of ports, and are stored like them.
    let (source_port, destination_port) = if packet.protocol == ICMP {
        (u16::from(packet.icmp_type).to_be(), u16::from(packet.icmp_code).to_be())
    } else {
        (packet.source_port, packet.destination_port)
    };
    slot.write(Event {
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        source: Addr::from_v4_wire(packet.source),
        destination: Addr::from_v4_wire(packet.destination),
        source_port,
        destination_port,
        source_identity: packet.trail.source_identity,
        destination_identity: packet.trail.destination_identity,
        egress_origin: packet.trail.egress_origin,
        ingress_origin: packet.trail.ingress_origin,
        ifindex,
        kind,
        reason,
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        direction: packet.trail.refused_by,
        reserved: [0; 3],
    });
    slot.submit(0);
}
