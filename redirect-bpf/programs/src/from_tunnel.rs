//! `from_tunnel`: what comes from another node, decrypted. The tunnel has proven the source by its AllowedIPs; the
//! ingress verdict of the pod is taken here.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use layout::{Reason, path};

use crate::actions::{self, DROP};
use crate::connections::{self, Place};
use crate::decide::{Fate, Post, decide};
use crate::ends::{Ends, config};
use crate::packet::{IPV4, Packet, is_fragment};
use crate::report::{count, refused};

/// Drops: what cannot be judged must not enter a pod.
const ON_ERROR: i32 = DROP;

/// The sender's egress was judged on its own node.
const POST: Post = Post { judges_egress: false, behind_stack: false };

/// tcx ingress on the TUN of the tunnel, a device without link layer.
#[classifier]
pub(crate) fn from_tunnel(ctx: TcContext) -> i32 {
    let mut packet = Packet::new();
    try_from_tunnel(&ctx, &mut packet).unwrap_or_else(|reason| refused(&ctx, &packet, reason, ON_ERROR))
}

#[inline(always)]
fn try_from_tunnel(ctx: &TcContext, packet: &mut Packet) -> Result<i32, Reason> {
    let version: u8 = ctx.load(0).map_err(|_| Reason::Malformed)?;
    if version >> 4 != 4 {
        return Err(Reason::UnsupportedProtocol);
    }
    let ip: [u8; IPV4] = ctx.load(0).map_err(|_| Reason::Malformed)?;
    packet.read_addresses(&ip);
    let config = config()?;
    let ends = Ends::of(packet, config);
    // A pod of this node does not live behind the tunnel.
    if ends.source.is_local() {
        return Err(Reason::SpoofedSource);
    }
    let for_node = packet.destination == config.node_address.v4_wire() && !ends.destination.is_local();
    // The node's stack puts its own fragments together.
    if for_node && is_fragment(&ip) {
        return Ok(actions::unmarked(ctx));
    }
    packet.read(ctx, 0, &ip)?;
    let Some(pod) = ends.destination.endpoint else {
        if for_node {
            return Ok(actions::unmarked(ctx));
        }
        // The pod is gone, its connection through the proxy is not: the proxy is told by the peer's packets.
        return match connections::path_of(&Place::of(packet)) {
            Some(path) if path != path::DIRECT => Ok(proxied(ctx)),
            _ => Err(Reason::NoEndpoint),
        };
    };
    match decide(ctx, packet, &ends, config, POST)? {
        Fate::Proxy => Ok(proxied(ctx)),
        Fate::Stack => {
            count(Reason::FromTunnelDirect);
            Ok(actions::unmarked(ctx))
        }
        Fate::Direct => {
            count(Reason::FromTunnelDirect);
            if ends.destination.is_shaped() {
                return Ok(actions::judged(ctx));
            }
            actions::push_ethernet(ctx, pod)?;
            Ok(actions::into_pod(pod))
        }
    }
}

#[inline(always)]
fn proxied(ctx: &TcContext) -> i32 {
    count(Reason::FromTunnelProxied);
    actions::to_proxy(ctx)
}
