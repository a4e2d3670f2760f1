//! `from_uplink`: what comes from the network. It keeps out what should have come through the tunnel, and steers what
//! belongs to the proxy; everything else is the node's business, and `to_pod`'s if it is forwarded.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use layout::{Reason, identity};

use crate::actions::{self, DROP, NEXT};
use crate::decide::belongs_to_proxy;
use crate::ends::{Ends, claims_pod, config, is_encrypted};
use crate::packet::{ETHERNET, ETHERTYPE_IPV4, Frame, Packet, is_fragment, is_of_vlan};
use crate::report::{count, refused};

/// Drops: what cannot be read may claim to be a pod.
const ON_ERROR: i32 = DROP;

/// tcx ingress on the uplink.
#[classifier]
pub(crate) fn from_uplink(ctx: TcContext) -> i32 {
    let mut packet = Packet::new();
    try_from_uplink(&ctx, &mut packet).unwrap_or_else(|reason| refused(&ctx, &packet, reason, ON_ERROR))
}

#[inline(always)]
fn try_from_uplink(ctx: &TcContext, packet: &mut Packet) -> Result<i32, Reason> {
    let frame = Frame::load(ctx)?;
    if is_of_vlan(ctx) {
        return Ok(NEXT);
    }
    // Behind a tag without a number the node takes off one tag after the other, and what it finds
    // for its own.
    if frame.holds_tag() {
        return Err(Reason::TaggedFrame);
    }
    if frame.ethertype != ETHERTYPE_IPV4 {
        return Ok(NEXT);
    }
    // Addresses first: options and fragments must not hide who the packet claims to be from.
    packet.read_addresses(&frame.ip);
    let config = config()?;
    let ends = Ends::of(packet, config);
    let node_to_pod = ends.source.identity == identity::REMOTE_NODE && ends.destination.is_local();
    if is_encrypted(config) && (claims_pod(&ends.source, packet.source, config) || node_to_pod) {
        return Err(Reason::Unencrypted);
    }
    if ends.source.is_local() {
        return Err(Reason::SpoofedSource);
    }
    // Nothing of the node's own is the proxy's by entry; most of it is the tunnel's datagrams.
    if packet.destination == config.node_address.v4_wire() {
        return Ok(NEXT);
    }
    // `to_pod` judges them, perhaps put together by then; none of them is for the proxy.
    if is_fragment(&frame.ip) {
        return Ok(NEXT);
    }
    match packet.read(ctx, ETHERNET, &frame.ip) {
        Err(reason) if ends.destination.is_local() => return Err(reason),
        // The node's own, for its stack to judge.
        Err(_) => return Ok(NEXT),
        Ok(()) => {}
    }
    if !belongs_to_proxy(ctx, packet, &ends, config) {
        return Ok(NEXT);
    }
    if ends.destination.is_local() {
        count(Reason::IngressVerdict);
    }
    count(Reason::FromUplinkProxied);
    Ok(actions::to_proxy(ctx))
}
