//! The table of connections: keys, entries, what voids and what changes them.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use layout::{Addr, ConnectionEntry, ConnectionKey, InsertQuota, Reason, limits, path};

use crate::ends::{End, Ends};
use crate::maps::{CONNECTIONS, QUOTAS};
use crate::packet::{Packet, TCP};

/// A packet's place in the table.
pub(crate) struct Place {
    pub(crate) key: ConnectionKey,
    /// 1 if the packet's sender is end `a` of the key, else 0.
    pub(crate) sender_is_a: u8,
}

impl Place {
    #[inline(always)]
    pub(crate) fn of(packet: &Packet) -> Self {
        let (key, sender_is_a) = ConnectionKey::of(
            packet.protocol,
            Addr::from_v4_wire(packet.source),
            packet.source_port,
            Addr::from_v4_wire(packet.destination),
            packet.destination_port,
        );
        Self { key, sender_is_a }
    }

    /// Ends of the packet in the order of the key.
    #[inline(always)]
    fn in_order<'a>(&self, ends: &'a Ends) -> (&'a End, &'a End) {
        if self.sender_is_a == 1 {
            (&ends.source, &ends.destination)
        } else {
            (&ends.destination, &ends.source)
        }
    }
}

/// How an entry that was found applies to the packet's ends.
pub(crate) enum Standing {
    /// As it was judged.
    Holds,
    /// An end has other rules or another identity now.
    Changed,
    /// An end is another pod, with the address of the one that it was.
    Another,
}

/// Whether the entry was made for a pod that had the address of one of these ends before.
#[inline(always)]
fn is_of_another(entry: &ConnectionEntry, a: &End, b: &End) -> bool {
    (entry.a_generation != 0 && entry.a_generation < a.birth())
        || (entry.b_generation != 0 && entry.b_generation < b.birth())
}

/// Nanoseconds of the coarse monotonic clock: a tick is enough for time-outs of minutes, and costs a tenth.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A copy of the entry, unless there is none or it is void: a pod that it was judged for is gone, or a flow of datagrams
/// was silent for too long or another pod's. Marks the flow as used.
#[inline(always)]
pub(crate) fn find(place: &Place, ends: &Ends) -> Option<ConnectionEntry> {
    let found = CONNECTIONS.get_ptr_mut(place.key)?;
    // SAFETY: not null; the kernel keeps the memory, and a value that is recycled under us is some other valid entry,
    // which at worst is judged again.
    let entry = unsafe { *found };
    let (a, b) = place.in_order(ends);
    let a_gone = entry.a_generation != 0 && !a.is_local();
    let b_gone = entry.b_generation != 0 && !b.is_local();
    if a_gone || b_gone {
        return None;
    }
    if place.key.protocol != TCP {
        if is_of_another(&entry, a, b) {
            return None;
        }
        let now = now();
        // A later packet of another processor may have stored a later tick.
        if now.saturating_sub(entry.last_seen_ns) > limits::DATAGRAM_IDLE_NS {
            return None;
        }
        // SAFETY: as above; a time stamp is all that is written.
        unsafe { (*found).last_seen_ns = now };
    }
    Some(entry)
}

/// The path of the packet's entry, void or not; for packets whose pod is gone.
#[inline(always)]
pub(crate) fn path_of(place: &Place) -> Option<u8> {
    let found = CONNECTIONS.get_ptr(place.key)?;
    // SAFETY: not null, and one byte.
    Some(unsafe { (*found).path })
}

#[inline(always)]
pub(crate) fn standing(entry: &ConnectionEntry, place: &Place, ends: &Ends) -> Standing {
    let (a, b) = place.in_order(ends);
    let generations = entry.a_generation == a.generation() && entry.b_generation == b.generation();
    let identities = entry.a_identity == a.identity && entry.b_identity == b.identity;
    if generations && identities {
        Standing::Holds
    } else if is_of_another(entry, a, b) {
        Standing::Another
    } else {
        Standing::Changed
    }
}

/// Whether the packet is one of a direct flow that was judged for these very ends; a SYN only of
/// the one that opened it.
#[inline(always)]
pub(crate) fn passes(place: &Place, ends: &Ends, is_syn: bool) -> bool {
    let Some(entry) = find(place, ends) else { return false };
    entry.path == path::DIRECT
        && (!is_syn || entry.opened_by_a == place.sender_is_a)
        && matches!(standing(&entry, place, ends), Standing::Holds)
}

/// What an entry is made of beside the ends.
pub(crate) struct Draft {
    pub(crate) path: u8,
    pub(crate) slot: u8,
    /// Whether the packet's sender opened the flow (or its receiver did, and the packet is a reply).
    pub(crate) opened_by_sender: bool,
    pub(crate) through_stack: bool,
}

/// Writes the entry, over one that may be there.
#[inline(always)]
pub(crate) fn store(place: &Place, ends: &Ends, draft: &Draft) -> Result<(), Reason> {
    let (a, b) = place.in_order(ends);
    let opened_by_a = if draft.opened_by_sender { place.sender_is_a } else { 1 - place.sender_is_a };
    let entry = ConnectionEntry {
        last_seen_ns: now(),
        a_generation: a.generation(),
        b_generation: b.generation(),
        a_identity: a.identity,
        b_identity: b.identity,
        backend: Addr([0; 4]),
        backend_port: 0,
        path: draft.path,
        slot: draft.slot,
        opened_by_a,
        through_stack: u8::from(draft.through_stack),
        reserved: [0; 10],
    };
    CONNECTIONS.insert(place.key, entry, u64::from(BPF_ANY)).map_err(|_| Reason::TableFull)
}

/// Forgets the flow. That it is gone already is as good.
#[inline(always)]
pub(crate) fn remove(place: &Place) {
    let _gone_already = CONNECTIONS.remove(place.key);
}

/// The listener slot of a flow: always the same for the same tuple, so that a tuple which is used again meets what is
/// left of its predecessor in the same thread of the proxy.
#[inline(always)]
pub(crate) fn slot_of(place: &Place, slots: u32) -> u8 {
    let ports = u32::from(place.key.a_port) << 16 | u32::from(place.key.b_port);
    let mut hash = place.key.a.v4_wire() ^ place.key.b.v4_wire().rotate_left(7) ^ ports;
    // The finalizer of MurmurHash3: every bit of the tuple reaches every bit of the hash. One multiplication does not,
    // and clients that differ in a few bits of their port would all meet in one slot.
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    // `clamp` holds a panic that the verifier would have to be shown unreachable.
    let slots = if slots == 0 { 1 } else { slots.min(limits::LISTENERS) };
    (hash % slots) as u8
}

/// Takes one new entry from the quota of the pod behind this device.
#[inline(always)]
pub(crate) fn take_quota(ifindex: u32) -> Result<(), Reason> {
    let now = now();
    if let Some(found) = QUOTAS.get_ptr_mut(ifindex) {
        // SAFETY: not null; the memory stays the map's.
        let quota = unsafe { *found };
        if now.saturating_sub(quota.window_start_ns) < limits::QUOTA_WINDOW_NS {
            if quota.entries >= u64::from(limits::QUOTA_ENTRIES) {
                return Err(Reason::QuotaExceeded);
            }
            // Not atomic: two processors may count one entry together, and the quota is no exact number.
            // SAFETY: as above, an integer.
            unsafe { (*found).entries = quota.entries + 1 };
            return Ok(());
        }
    }
    let first = InsertQuota { window_start_ns: now, entries: 1 };
    QUOTAS.insert(ifindex, first, u64::from(BPF_ANY)).map_err(|_| Reason::TableFull)
}
