//! `from_pod`: what a pod sends. Its source is the pod's own; the egress verdict is taken, and for a pod of this node
//! also the ingress verdict, in one pass.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use layout::{Addr, Config, Reason, range_kind};

use crate::actions::{self, DROP, NEXT};
use crate::decide::{Fate, Post, decide};
use crate::ends::{Ends, config, in_pod_network, is_behind_tunnel, is_encrypted, kind_of};
use crate::maps::ENDPOINTS;
use crate::packet::{ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, Frame, Packet, skb};
use crate::report::{count, refused};

/// Drops: what cannot be judged must not leave the pod.
const ON_ERROR: i32 = DROP;

/// Egress of a pod of this node is judged here and nowhere else.
const POST: Post = Post { judges_egress: true, behind_stack: false };

/// tcx ingress on the host side of a pod's veth.
#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let mut packet = Packet::new();
    try_from_pod(&ctx, &mut packet).unwrap_or_else(|reason| refused(&ctx, &packet, reason, ON_ERROR))
}

#[inline(always)]
fn try_from_pod(ctx: &TcContext, packet: &mut Packet) -> Result<i32, Reason> {
    let frame = Frame::load(ctx)?;
    // A tagged frame would be judged as what it is not.
    if frame.is_tagged(ctx) {
        return Err(Reason::TaggedFrame);
    }
    match frame.ethertype {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => return arp(ctx),
        _ => return Err(Reason::UnsupportedProtocol),
    }
    packet.read(ctx, ETHERNET, &frame.ip)?;
    let config = config()?;
    let ends = Ends::of(packet, config);
    if ends.source.endpoint.is_none_or(|source| source.ifindex != skb(ctx).ifindex) {
        return Err(Reason::SpoofedSource);
    }
    match decide(ctx, packet, &ends, config, POST)? {
        Fate::Proxy => {
            count(Reason::FromPodProxied);
            Ok(actions::to_proxy(ctx))
        }
        Fate::Stack => {
            count(Reason::FromPodDirect);
            Ok(actions::unmarked(ctx))
        }
        Fate::Direct => {
            count(Reason::FromPodDirect);
            Ok(match ends.destination.endpoint {
                // `bpf_redirect_peer` skips the queues in which bandwidth limits of either pod work.
                Some(_) if ends.destination.is_shaped() || ends.source.is_shaped() => actions::judged(ctx),
                Some(pod) => actions::into_pod(pod),
                None => out_of_node(ctx, packet, &ends, config),
            })
        }
    }
}

/// What goes to no pod of this node.
#[inline(always)]
fn out_of_node(ctx: &TcContext, packet: &Packet, ends: &Ends, config: &Config) -> i32 {
    let kind = if is_encrypted(config) { kind_of(packet.destination) } else { 0 };
    // Bandwidth limits of the sender work in a queue that a redirection skips.
    if is_behind_tunnel(kind)
        && !ends.source.is_shaped()
        && let Some(redirected) = actions::into_tunnel(ctx, config)
    {
        count(Reason::FromPodTunnel);
        return redirected;
    }
    if kind == range_kind::PEER_NODE {
        return actions::only_encrypted(ctx);
    }
    if in_pod_network(packet.destination, config) {
        return actions::judged(ctx);
    }
    // The node or the world. It may be translated to a pod of this node, whose ingress is not
    // judged yet.
    actions::unmarked(ctx)
}

/// ARP is needed by pods whose neighbour entry for the gateway was lost; it may name no address but the pod's own.
#[inline(always)]
fn arp(ctx: &TcContext) -> Result<i32, Reason> {
    /// Offset of the sender's protocol address in an ARP packet for IPv4 over Ethernet.
    const SENDER_ADDRESS: usize = ETHERNET + 14;
    let sender: u32 = ctx.load(SENDER_ADDRESS).map_err(|_| Reason::Malformed)?;
    // SAFETY: not preallocated, see `ends`.
    let source = unsafe { ENDPOINTS.get(Addr::from_v4_wire(sender)) };
    if source.is_some_and(|source| source.ifindex == skb(ctx).ifindex) {
        Ok(NEXT)
    } else {
        Err(Reason::SpoofedSource)
    }
}
