//! `to_pod`: what the node's stack delivers to a pod: sent by the proxy, judged before, sent by a process of the node,
//! or forwarded from somewhere (a reply of the world, a packet that somebody else translated).

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use layout::{Config, Reason, event_kind, identity, mark, path};

use crate::actions::{self, DROP, NEXT};
use crate::connections::{self, Draft, Place};
use crate::decide::{Fate, Post, decide};
use crate::ends::{Ends, config, prove_origin};
use crate::fragments;
use crate::icmp;
use crate::packet::{ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, Frame, Packet, Piece, skb};
use crate::report::{count, refused, tell};

/// Drops: what cannot be judged must not enter the pod.
const ON_ERROR: i32 = DROP;

/// The egress of a pod of this node was judged in `from_pod`, on the address that it dialled.
const POST: Post = Post { judges_egress: false, behind_stack: true };

/// tcx egress on the host side of a pod's veth.
#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    let mut packet = Packet::new();
    try_to_pod(&ctx, &mut packet).unwrap_or_else(|reason| refused(&ctx, &packet, reason, ON_ERROR))
}

#[inline(always)]
fn try_to_pod(ctx: &TcContext, packet: &mut Packet) -> Result<i32, Reason> {
    let frame = Frame::load(ctx)?;
    // Priorities are of no use behind a veth, and a tagged frame would be judged as what it is not.
    if frame.is_tagged(ctx) {
        return Err(Reason::TaggedFrame);
    }
    match frame.ethertype {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => return Ok(NEXT),
        _ => return Err(Reason::UnsupportedProtocol),
    }
    let mark = skb(ctx).mark & mark::MASK;
    if mark == mark::FROM_PROXY {
        count(Reason::ToPodJudged);
        return Ok(NEXT);
    }
    packet.read(ctx, ETHERNET, &frame.ip)?;
    let config = config()?;
    let mut ends = Ends::of(packet, config);
    if ends.destination.endpoint.is_none_or(|pod| pod.ifindex != skb(ctx).ifindex) {
        return Err(Reason::NoEndpoint);
    }
    let ingress_ifindex = skb(ctx).ingress_ifindex;
    if ingress_ifindex == 0 {
        return from_host(ctx, packet, &ends);
    }
    // Only its own device brings what a pod of this node sent.
    if ends.source.endpoint.is_some_and(|source| source.ifindex != ingress_ifindex) {
        return Err(Reason::SpoofedSource);
    }
    prove_origin(&ends.source, packet.source, ingress_ifindex, config)?;
    if mark == mark::JUDGED && was_judged(ctx, packet, &ends, config) {
        count(Reason::ToPodJudged);
        return Ok(NEXT);
    }
    let masqueraded = ends.source.identity == identity::HOST;
    if masqueraded {
        // Somebody put the node's address in the place of another (a NodePort), and whose is not known.
        ends.source.identity = identity::UNKNOWN;
        packet.trail.source_identity = identity::UNKNOWN;
    }
    match decide(ctx, packet, &ends, config, POST)? {
        // The proxy would answer the node's address, and nobody would translate that back.
        Fate::Proxy if masqueraded => Err(Reason::CannotSteer),
        Fate::Proxy => {
            count(Reason::ToPodProxied);
            actions::to_proxy_through_loopback(ctx, config)
        }
        Fate::Direct | Fate::Stack => {
            count(Reason::ToPodForwarded);
            Ok(NEXT)
        }
    }
}

/// Whether the other program judged just this packet. The mark alone does not say so: what was
/// judged on its way to one address may have been given another one by the node, and the entry is
/// of the addresses that were judged.
#[inline(always)]
fn was_judged(ctx: &TcContext, packet: &Packet, ends: &Ends, config: &Config) -> bool {
    if packet.is_icmp_error() {
        return matches!(icmp::decide_error(ctx, packet, ends, config), Ok(Fate::Direct));
    }
    connections::passes(&Place::of(packet), ends, packet.is_pure_syn())
}

/// A process of this node is always let in (kubelet's probes). What it opens gets an entry, so that the pod's replies
/// pass its egress policy; what it answers has one.
#[inline(always)]
fn from_host(ctx: &TcContext, packet: &mut Packet, ends: &Ends) -> Result<i32, Reason> {
    count(Reason::IngressVerdict);
    count(Reason::ToPodHost);
    if packet.piece == Piece::First && !fragments::note(packet) {
        return Err(Reason::TableFull);
    }
    packet.trail.ingress_origin = 0;
    if packet.is_icmp_error() || packet.is_reset() {
        return Ok(NEXT);
    }
    let place = Place::of(packet);
    if packet.is_pure_syn() || connections::find(&place, ends).is_none() {
        // Through the stack: what a process dialled may have been a service, and is translated back there.
        let draft = Draft { path: path::DIRECT, slot: 0, opened_by_sender: true, through_stack: true };
        connections::store(&place, ends, &draft)?;
        count(Reason::NewDirect);
        tell(ctx, packet, event_kind::ALLOWED);
    }
    Ok(NEXT)
}
