//! What policy says about a new flow: look-ups in the lowered rules.

use aya_ebpf::maps::lpm_trie::Key;
use layout::{Endpoint, RuleKey, direction, endpoint_flag, identity, verdict};

use crate::ends::End;
use crate::maps::RULES;
use crate::packet::{Packet, SCTP, TCP, Trail, UDP};

/// The flow that is judged: who opens it, to whom. Not always the packet at hand, which may be a reply.
pub(crate) struct Opening<'a> {
    pub(crate) opener: &'a End,
    pub(crate) responder: &'a End,
    /// Port of the responder as rules know it, network order: 0 for a protocol without ports.
    pub(crate) port: u16,
    pub(crate) protocol: u8,
    /// Whether the opener's egress is judged here, should it be a pod of this node.
    pub(crate) judges_egress: bool,
}

impl<'a> Opening<'a> {
    /// The flow that the sender of the packet opens.
    #[inline(always)]
    pub(crate) fn by_sender(
        packet: &Packet,
        sender: &'a End,
        receiver: &'a End,
        judges_egress: bool,
    ) -> Self {
        let port = rule_port(packet.protocol, packet.destination_port);
        Self { opener: sender, responder: receiver, port, protocol: packet.protocol, judges_egress }
    }

    /// The flow that the receiver of the packet opened, to which the packet is a reply.
    #[inline(always)]
    pub(crate) fn by_receiver(
        packet: &Packet,
        sender: &'a End,
        receiver: &'a End,
        judges_egress: bool,
    ) -> Self {
        let port = rule_port(packet.protocol, packet.source_port);
        Self { opener: receiver, responder: sender, port, protocol: packet.protocol, judges_egress }
    }
}

/// The verdict on a flow: both directions together, as far as they are judged on this node. Either can deny; if
/// neither does, either can ask for the proxy.
#[inline(never)]
pub(crate) fn judge(opening: &Opening<'_>, trail: &mut Trail) -> u8 {
    let mut both = verdict::ALLOW;
    if let Some(endpoint) = opening.opener.endpoint
        && opening.judges_egress
    {
        let egress = judge_direction(direction::EGRESS, endpoint, opening.responder.identity, opening);
        trail.egress_origin = egress.origin;
        if egress.verdict == verdict::DENY {
            trail.refused_by = direction::EGRESS;
            return verdict::DENY;
        }
        both = egress.verdict;
    }
    if let Some(endpoint) = opening.responder.endpoint {
        let ingress = judge_direction(direction::INGRESS, endpoint, opening.opener.identity, opening);
        trail.ingress_origin = ingress.origin;
        if ingress.verdict == verdict::DENY {
            trail.refused_by = direction::INGRESS;
            return verdict::DENY;
        }
        if ingress.verdict == verdict::REDIRECT {
            both = verdict::REDIRECT;
        }
    }
    both
}

/// Verdict and origin of one direction.
struct Judgement {
    verdict: u8,
    origin: u32,
}

#[inline(always)]
fn judge_direction(direction: u8, endpoint: &Endpoint, peer: u32, opening: &Opening<'_>) -> Judgement {
    let enforced = if direction == direction::INGRESS {
        endpoint_flag::ENFORCE_INGRESS
    } else {
        endpoint_flag::ENFORCE_EGRESS
    };
    // The host is always let in: kubelet's probes must not depend on policy (as Cilium's allow-localhost).
    let host_enters = direction == direction::INGRESS && peer == identity::HOST;
    if endpoint.flags & enforced == 0 || host_enters {
        return Judgement { verdict: verdict::ALLOW, origin: 0 };
    }
    let selector = u32::from_be_bytes([direction, opening.protocol, 0, 0]);
    let found = look_up(endpoint.ruleset, peer, selector | u32::from(u16::from_be(opening.port)));
    Judgement { verdict: (found >> 32) as u8, origin: found as u32 }
}

/// The rule for this peer, or, only if there is none, for any peer; nothing at all denies. `selector` holds direction,
/// protocol and port, from high to low. Gives the verdict in the high word and the origin in the low one.
#[inline(never)]
fn look_up(ruleset: u32, peer: u32, selector: u32) -> u64 {
    let [direction, protocol, port_high, port_low] = selector.to_be_bytes();
    let mut key = Key::new(
        RuleKey::BITS_EXACT,
        RuleKey {
            ruleset: ruleset.to_be_bytes(),
            identity: peer.to_be_bytes(),
            direction,
            protocol,
            port: [port_high, port_low],
        },
    );
    let found = match RULES.get(&key) {
        Some(rule) => Some(rule),
        None => {
            key.data.identity = identity::ANY.to_be_bytes();
            RULES.get(&key)
        }
    };
    match found {
        Some(rule) => u64::from(rule.verdict) << 32 | u64::from(rule.origin),
        None => u64::from(verdict::DENY) << 32,
    }
}

#[inline(always)]
fn rule_port(protocol: u8, port: u16) -> u16 {
    if matches!(protocol, TCP | UDP | SCTP) { port } else { 0 }
}
