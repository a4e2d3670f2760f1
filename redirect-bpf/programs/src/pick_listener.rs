//! `pick_listener`: which listener of the proxy a steered segment meets. It knows no mark, only the tuple: the entry
//! says whether the segment is the proxy's.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use layout::{Addr, ConnectionKey, Reason, event_kind, path};

use crate::maps::{CONNECTIONS, LISTENERS};
use crate::packet::{Packet, TCP};
use crate::report::{count, emit};
use crate::sockets::is_looking;

/// Drops: `SK_PASS` would let a wildcard listener of the node answer in the proxy's place.
const ON_ERROR: u32 = SK_DROP;

const AF_INET: u32 = 2;

/// sk_lookup on the node's network namespace.
#[sk_lookup]
pub(crate) fn pick_listener(ctx: SkLookupContext) -> u32 {
    let mut packet = Packet::new();
    try_pick_listener(&ctx, &mut packet).unwrap_or_else(|reason| {
        count(reason);
        emit(&packet, lookup(&ctx).ingress_ifindex, event_kind::DROPPED, reason as u8);
        ON_ERROR
    })
}

#[inline(always)]
fn try_pick_listener(ctx: &SkLookupContext, packet: &mut Packet) -> Result<u32, Reason> {
    // Our own programs ask for connections only, and take a listener for nothing.
    if is_looking() {
        return Ok(SK_DROP);
    }
    let lookup = lookup(ctx);
    if lookup.protocol != u32::from(TCP) || lookup.family != AF_INET {
        return Ok(SK_PASS);
    }
    packet.protocol = TCP;
    packet.source = lookup.remote_ip4;
    packet.destination = lookup.local_ip4;
    packet.source_port = lookup.remote_port;
    // The kernel gives the local port, alone, in host order.
    packet.destination_port = (lookup.local_port as u16).to_be();
    let (key, remote_is_a) = ConnectionKey::of(
        TCP,
        Addr::from_v4_wire(packet.source),
        packet.source_port,
        Addr::from_v4_wire(packet.destination),
        packet.destination_port,
    );
    let Some(entry) = CONNECTIONS.get_ptr(key) else {
        return Ok(SK_PASS);
    };
    // SAFETY: not null; the kernel keeps the memory, and a value recycled under us is some other valid entry.
    let entry = unsafe { *entry };
    if entry.path == path::DIRECT {
        return Ok(SK_PASS);
    }
    // Only the opener connects to the proxy. A reset is for both ends.
    if entry.path == path::PROXIED && entry.opened_by_a != remote_is_a {
        return Err(Reason::ReverseSyn);
    }
    LISTENERS.redirect_sk_lookup(ctx, u32::from(entry.slot), 0).map_err(|_| Reason::NoListener)?;
    count(Reason::ListenerPicked);
    Ok(SK_PASS)
}

#[inline(always)]
fn lookup(ctx: &SkLookupContext) -> &bpf_sk_lookup {
    // SAFETY: the kernel passes a valid context that lives as long as the program runs.
    unsafe { &*ctx.lookup }
}
