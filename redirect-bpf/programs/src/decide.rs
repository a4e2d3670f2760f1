//! The rules that decide a packet, in their order:
//!
//! 0. A pure SYN follows no entry: a live socket for it takes it, else it is judged anew.
//! 1. A proxied entry that still holds: to the proxy.
//! 2. A direct entry that still holds: pass.
//! 3. An entry whose ends changed: reset if one is another pod now, else judged again, in the direction it was opened in. A direct flow that is not allowed
//!    directly any more is reset. A proxied one that is denied is the proxy's to end, but no data reaches it any more.
//! 4. TCP without an entry: a socket that is no listener takes it.
//! 5. No entry: judged; what is allowed gets one.

use aya_ebpf::programs::TcContext;
use layout::{Config, ConnectionEntry, Reason, config_flag, direction, event_kind, identity, path, verdict};

use crate::connections::{self, Draft, Place, Standing};
use crate::ends::Ends;
use crate::fragments;
use crate::icmp;
use crate::judge::{Opening, judge};
use crate::packet::{Packet, skb};
use crate::report::{count, tell};
use crate::sockets::{self, Socket, Tuple};

/// What a packet that is not refused may do.
pub(crate) enum Fate {
    /// Straight to the peer.
    Direct,
    /// On through the node's stack, unmarked: somebody there translates this flow.
    Stack,
    /// To the proxy.
    Proxy,
}

/// What the program that asks is responsible for.
#[derive(Clone, Copy)]
pub(crate) struct Post {
    /// The sender is a pod of this node, and its egress is judged here.
    pub(crate) judges_egress: bool,
    /// Packets come here through the stack, translated or not.
    pub(crate) behind_stack: bool,
}

/// Decides a packet whose destination or source is a pod of this node.
#[inline(always)]
pub(crate) fn decide(
    ctx: &TcContext,
    packet: &mut Packet,
    ends: &Ends,
    config: &Config,
    post: Post,
) -> Result<Fate, Reason> {
    let fate = decide_alone(ctx, packet, ends, config, post);
    fragments::settle(packet, fate)
}

/// By the packet itself, and what is noted of the fragment that came first.
#[inline(always)]
fn decide_alone(
    ctx: &TcContext,
    packet: &mut Packet,
    ends: &Ends,
    config: &Config,
    post: Post,
) -> Result<Fate, Reason> {
    if post.judges_egress {
        count(Reason::EgressVerdict);
    }
    if ends.destination.is_local() {
        count(Reason::IngressVerdict);
    }
    if packet.is_icmp_error() {
        return icmp::decide_error(ctx, packet, ends, config);
    }
    let place = Place::of(packet);
    if packet.is_pure_syn() {
        if socket_of(ctx, packet, config) == Socket::Live {
            return Ok(Fate::Proxy);
        }
        return open(ctx, packet, ends, config, post, &place);
    }
    if let Some(entry) = connections::find(&place, ends)
        && !is_translation(&entry, post, &place)
    {
        return follow(ctx, packet, ends, config, &place, entry);
    }
    if packet.is_tcp() {
        if socket_of(ctx, packet, config) != Socket::None {
            return Ok(Fate::Proxy);
        }
        return restore(ctx, packet, ends, config, post, &place);
    }
    open(ctx, packet, ends, config, post, &place)
}

/// Whether the entry is that of a flow of which this pod dialled another address, that of a service: then what it sends
/// to the backend's own is no part of it, and was never judged.
#[inline(always)]
fn is_translation(entry: &ConnectionEntry, post: Post, place: &Place) -> bool {
    post.judges_egress && entry.through_stack != 0 && entry.opened_by_a == place.sender_is_a
}

/// Whether a packet that this node only steers, and does not judge here, belongs to the proxy.
#[inline(always)]
pub(crate) fn belongs_to_proxy(ctx: &TcContext, packet: &Packet, ends: &Ends, config: &Config) -> bool {
    if packet.is_icmp_error() {
        return matches!(icmp::decide_error(ctx, packet, ends, config), Ok(Fate::Proxy));
    }
    let has_pod = ends.destination.is_local();
    if packet.is_pure_syn() {
        return has_pod && socket_of(ctx, packet, config) == Socket::Live;
    }
    let place = Place::of(packet);
    match connections::find(&place, ends) {
        Some(entry) if entry.path == path::DIRECT => false,
        Some(entry) if entry.path == path::RESET => true,
        // One that must be judged again is judged by `to_pod`.
        Some(entry) => matches!(connections::standing(&entry, &place, ends), Standing::Holds),
        None => packet.is_tcp() && has_pod && socket_of(ctx, packet, config) != Socket::None,
    }
}

/// The socket of the proxy for a TCP segment. The node's own address is left to the stack: its sockets are the node's.
#[inline(always)]
fn socket_of(ctx: &TcContext, packet: &Packet, config: &Config) -> Socket {
    if packet.destination == config.node_address.v4_wire() {
        return Socket::None;
    }
    sockets::find(ctx, &Tuple::of(packet))
}

/// Rules 1 to 3.
#[inline(always)]
fn follow(
    ctx: &TcContext,
    packet: &mut Packet,
    ends: &Ends,
    config: &Config,
    place: &Place,
    entry: ConnectionEntry,
) -> Result<Fate, Reason> {
    if entry.path == path::RESET {
        return Ok(Fate::Proxy);
    }
    let proxied = entry.path == path::PROXIED;
    let opened_by_sender = entry.opened_by_a == place.sender_is_a;
    let standing = connections::standing(&entry, place, ends);
    if matches!(standing, Standing::Another) && !proxied {
        // Whatever policy says: the new pod knows nothing of it.
        return end(ctx, packet, ends, config, place, opened_by_sender);
    }
    if !matches!(standing, Standing::Holds) {
        let through_stack = entry.through_stack != 0;
        let verdict = {
            let opening = if opened_by_sender {
                Opening::by_sender(packet, &ends.source, &ends.destination, !through_stack)
            } else {
                Opening::by_receiver(packet, &ends.source, &ends.destination, !through_stack)
            };
            judge(&opening, &mut packet.trail)
        };
        if proxied && verdict == verdict::DENY {
            return hold_back(packet);
        }
        if !proxied && verdict != verdict::ALLOW {
            return end(ctx, packet, ends, config, place, opened_by_sender);
        }
        let draft = Draft { path: entry.path, slot: entry.slot, opened_by_sender, through_stack };
        connections::store(place, ends, &draft)?;
        count(Reason::JudgedAgain);
    }
    if proxied {
        return Ok(Fate::Proxy);
    }
    // The opener's own packets are past the translation already, or before it with another tuple.
    Ok(if entry.through_stack != 0 && !opened_by_sender { Fate::Stack } else { Fate::Direct })
}

/// A proxied flow that is denied now. The proxy ends it as soon as it judges by the rules that deny it; one that hangs or
/// could not take them over must not get another request. What carries no data still passes, so that both ends can
/// close; and since nothing is written down, the flow goes on where it stopped if it is allowed again.
#[inline(always)]
fn hold_back(packet: &Packet) -> Result<Fate, Reason> {
    if packet.has_payload { Err(denied(packet)) } else { Ok(Fate::Proxy) }
}

/// Ends a live direct flow that may not go on: TCP by a reset that the proxy's listener sends at each side's next
/// packet, anything else by dropping it.
#[inline(always)]
fn end(
    ctx: &TcContext,
    packet: &Packet,
    ends: &Ends,
    config: &Config,
    place: &Place,
    opened_by_sender: bool,
) -> Result<Fate, Reason> {
    // What both policies allow must not end because a packet met half of each. It is sent again.
    if config.flags & config_flag::SWAPPING != 0 {
        return Err(Reason::Swapping);
    }
    if !packet.is_tcp() {
        connections::remove(place);
        return Err(denied(packet));
    }
    let slot = connections::slot_of(place, config.slots);
    let draft = Draft { path: path::RESET, slot, opened_by_sender, through_stack: false };
    connections::store(place, ends, &draft)?;
    count(Reason::DeniedLive);
    tell(ctx, packet, event_kind::RESET);
    Ok(Fate::Proxy)
}

/// Rule 5: a flow that the sender opens.
#[inline(always)]
fn open(
    ctx: &TcContext,
    packet: &mut Packet,
    ends: &Ends,
    config: &Config,
    post: Post,
    place: &Place,
) -> Result<Fate, Reason> {
    if packet.is_icmp_reply() {
        return Err(Reason::NoEntry);
    }
    let opening = Opening::by_sender(packet, &ends.source, &ends.destination, post.judges_egress);
    let verdict = judge(&opening, &mut packet.trail);
    if verdict == verdict::DENY {
        return Err(denied(packet));
    }
    let proxied = verdict == verdict::REDIRECT;
    if proxied && !packet.is_tcp() {
        return Err(Reason::CannotSteer);
    }
    take_quota(ctx, post, place)?;
    let (path, slot) =
        if proxied { (path::PROXIED, connections::slot_of(place, config.slots)) } else { (path::DIRECT, 0) };
    let draft = Draft { path, slot, opened_by_sender: true, through_stack: post.behind_stack };
    connections::store(place, ends, &draft)?;
    if proxied {
        count(Reason::NewProxied);
        tell(ctx, packet, event_kind::REDIRECTED);
        return Ok(Fate::Proxy);
    }
    count(Reason::NewDirect);
    tell(ctx, packet, event_kind::ALLOWED);
    Ok(Fate::Direct)
}

/// Rule 5 for a segment from the midst of a connection that the table lost, if its pods have that
/// connection: otherwise a denied peer could send segments of one that was never opened. It is a
/// reply if policy allows its reverse, or goes on if policy allows it itself. Where the proxy would
/// have to judge, the connection cannot go on: its requests were never seen, or the proxy that saw
/// them is gone.
#[inline(always)]
fn restore(
    ctx: &TcContext,
    packet: &mut Packet,
    ends: &Ends,
    config: &Config,
    post: Post,
    place: &Place,
) -> Result<Fate, Reason> {
    if !packet.is_midstream() || !pods_have(ctx, packet, ends, post) {
        return Err(Reason::NoEntry);
    }
    let opening = Opening::by_receiver(packet, &ends.source, &ends.destination, true);
    let reply = judge(&opening, &mut packet.trail);
    let opening = Opening::by_sender(packet, &ends.source, &ends.destination, post.judges_egress);
    let forward = judge(&opening, &mut packet.trail);
    let sender_has_larger_port = u16::from_be(packet.source_port) > u16::from_be(packet.destination_port);
    let opened_by_sender = match (forward, reply) {
        (verdict::DENY, verdict::DENY) => return Err(Reason::NoEntry),
        // The world knows this pod as its node and can hardly have opened this. If it did, its next segment says so; till
        // then a pod that may send nothing must not claim that it answers.
        (verdict::DENY, verdict::ALLOW)
            if post.judges_egress && ends.destination.identity == identity::WORLD =>
        {
            return Err(denied(packet));
        }
        (verdict::REDIRECT, _) | (_, verdict::REDIRECT) => {
            take_quota(ctx, post, place)?;
            return end(ctx, packet, ends, config, place, forward == verdict::REDIRECT);
        }
        (verdict::ALLOW, verdict::DENY) => true,
        (verdict::DENY, _) => false,
        // Either may have opened it; clients take their ports from above those of servers.
        _ => sender_has_larger_port,
    };
    take_quota(ctx, post, place)?;
    let through_stack = post.behind_stack && opened_by_sender;
    let draft = Draft { path: path::DIRECT, slot: 0, opened_by_sender, through_stack };
    connections::store(place, ends, &draft)?;
    count(Reason::EntryRestored);
    Ok(Fate::Direct)
}

/// Whether each end that is a pod of this node has the connection in its own stack. What comes
/// through the node's stack may have been translated, and its sender then knows it by another
/// tuple.
#[inline(always)]
fn pods_have(ctx: &TcContext, packet: &Packet, ends: &Ends, post: Post) -> bool {
    let receiver = ends.destination.endpoint.is_none_or(|pod| sockets::pod_has(ctx, pod, &Tuple::of(packet)));
    receiver
        && (post.behind_stack
            || ends.source.endpoint.is_none_or(|pod| sockets::pod_has(ctx, pod, &Tuple::of_answer(packet))))
}

/// A pod's new entries are limited; one over an entry that is there takes nobody else's room.
#[inline(always)]
fn take_quota(ctx: &TcContext, post: Post, place: &Place) -> Result<(), Reason> {
    if post.judges_egress && connections::path_of(place).is_none() {
        return connections::take_quota(skb(ctx).ifindex);
    }
    Ok(())
}

#[inline(always)]
fn denied(packet: &Packet) -> Reason {
    match packet.trail.refused_by {
        direction::EGRESS => Reason::DeniedEgress,
        direction::INGRESS => Reason::DeniedIngress,
        // Allowed, but only by way of the proxy, which takes TCP alone.
        _ => Reason::CannotSteer,
    }
}
