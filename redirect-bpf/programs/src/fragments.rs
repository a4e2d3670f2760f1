//! Fragments. Only the first one of a datagram carries the ports by which it is judged; if it is
//! allowed they are noted, and the later ones are judged by the note.

use aya_ebpf::bindings::BPF_ANY;
use layout::{Addr, FragmentKey, FragmentNote, Reason, limits};

use crate::connections::now;
use crate::decide::Fate;
use crate::maps::FRAGMENTS;
use crate::packet::{Packet, Piece};
use crate::report::count;

#[inline(always)]
fn key(packet: &Packet) -> FragmentKey {
    FragmentKey {
        source: Addr::from_v4_wire(packet.source),
        destination: Addr::from_v4_wire(packet.destination),
        identification: u32::from(packet.identification),
        protocol: packet.protocol,
        reserved: [0; 3],
    }
}

/// Gives a later fragment what its first one said. Whether there was one that was allowed.
#[inline(never)]
pub(crate) fn recall(packet: &mut Packet) -> bool {
    let Some(note) = FRAGMENTS.get_ptr(key(packet)) else { return false };
    // SAFETY: not null; the kernel keeps the memory. A value that is recycled meanwhile is the note
    // of another datagram that was allowed, and this one is judged by the ports of that one.
    let note = unsafe { *note };
    packet.source_port = note.source_port;
    packet.destination_port = note.destination_port;
    packet.icmp_type = note.icmp_type;
    packet.header_length = note.header_length;
    now().saturating_sub(note.seen_ns) <= limits::FRAGMENT_LIFE_NS
}

/// Notes what a first fragment said, which was allowed. Whether there was room.
#[inline(never)]
pub(crate) fn note(packet: &Packet) -> bool {
    let note = FragmentNote {
        seen_ns: now(),
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        icmp_type: packet.icmp_type,
        header_length: packet.header_length,
        reserved: [0; 2],
    };
    count(Reason::FragmentNoted);
    FRAGMENTS.insert(key(packet), note, u64::from(BPF_ANY)).is_ok()
}

/// The identification is used again for a datagram that was refused: no later fragment passes by
/// the note of the one before.
#[inline(never)]
fn forget(packet: &Packet) {
    let _gone_already = FRAGMENTS.remove(key(packet));
}

/// What a verdict means for the other fragments of the datagram. None goes to the proxy: its stack
/// would put them together past the look at each segment.
#[inline(always)]
pub(crate) fn settle(packet: &Packet, fate: Result<Fate, Reason>) -> Result<Fate, Reason> {
    if packet.piece == Piece::Whole {
        return fate;
    }
    let fate = match fate {
        Ok(Fate::Proxy) => Err(Reason::Fragment),
        other => other,
    };
    if packet.piece == Piece::First {
        if fate.is_err() {
            forget(packet);
        } else if !note(packet) {
            return Err(Reason::TableFull);
        }
    }
    fate
}
