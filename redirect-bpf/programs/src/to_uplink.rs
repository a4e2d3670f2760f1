//! `to_uplink`: what leaves the node by the uplink. With encryption nothing between pods, or
//! between a pod and a node, may be among it: that leaves as WireGuard's datagrams, which are
//! between nodes. Routes and firewall say the same, but both are many programs' and can be flushed
//! by any of them.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use layout::{Addr, Config, Reason, mark, range_kind};

use crate::actions::{DROP, NEXT};
use crate::ends::{config, in_pod_network, is_encrypted, kind_of};
use crate::maps::ENDPOINTS;
use crate::packet::{ETHERNET, ETHERTYPE_IPV4, IPV4, Packet, skb};
use crate::report::refused;

/// Drops: what cannot be read may be a pod's.
const ON_ERROR: i32 = DROP;

/// Tags of VLANs within the frame: a customer's in a provider's at most.
const TAGS: usize = 2;
const TAG: usize = 4;
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_PROVIDER: [u8; 2] = [0x88, 0xa8];

/// tcx egress on the uplink.
#[classifier]
pub(crate) fn to_uplink(ctx: TcContext) -> i32 {
    let mut packet = Packet::new();
    try_to_uplink(&ctx, &mut packet).unwrap_or_else(|reason| refused(&ctx, &packet, reason, ON_ERROR))
}

#[inline(always)]
fn try_to_uplink(ctx: &TcContext, packet: &mut Packet) -> Result<i32, Reason> {
    let config = config()?;
    if !is_encrypted(config) {
        return Ok(NEXT);
    }
    let Some(l3) = ipv4_offset(ctx)? else { return Ok(NEXT) };
    // Addresses alone: a later fragment and a packet with options are as secret as any other.
    let ip: [u8; IPV4] = ctx.load(l3).map_err(|_| Reason::Malformed)?;
    packet.read_addresses(&ip);
    let only_encrypted = skb(ctx).mark & mark::MASK == mark::ONLY_ENCRYPTED;
    if only_encrypted || must_be_encrypted(packet, config) {
        return Err(Reason::LeavesInClear);
    }
    Ok(NEXT)
}

/// Where the IPv4 header begins; none for another protocol.
#[inline(always)]
fn ipv4_offset(ctx: &TcContext) -> Result<Option<usize>, Reason> {
    let mut at = ETHERNET;
    for _ in 0..=TAGS {
        let ethertype: [u8; 2] = ctx.load(at - 2).map_err(|_| Reason::Malformed)?;
        match ethertype {
            ETHERTYPE_IPV4 => return Ok(Some(at)),
            ETHERTYPE_VLAN | ETHERTYPE_PROVIDER => at += TAG,
            _ => return Ok(None),
        }
    }
    Err(Reason::UnsupportedProtocol)
}

#[inline(always)]
fn must_be_encrypted(packet: &Packet, config: &Config) -> bool {
    match kind_of(packet.destination) {
        range_kind::OWN_PODS | range_kind::PEER_PODS => true,
        range_kind::PEER_NODE => is_pod(packet.source),
        range_kind::OWN_NODE => false,
        // A pod of a node that is not known yet, for all that is known.
        _ => in_pod_network(packet.destination, config) && is_pod(packet.source),
    }
}

#[inline(always)]
fn is_pod(address: u32) -> bool {
    // SAFETY: not preallocated, see `ends`; no field is read.
    unsafe { ENDPOINTS.get(Addr::from_v4_wire(address)) }.is_some()
        || matches!(kind_of(address), range_kind::OWN_PODS | range_kind::PEER_PODS)
}
