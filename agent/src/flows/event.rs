//! Events of the datapath as flow records: verdicts on new connections, and packets that were refused.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use api::flow::layer4::Protocol as L4;
use api::flow::{
    CiliumEventType, DropReason, Flow, FlowType, IcmPv4, Layer4, Policy, Sctp, Tcp, TcpFlags,
    TrafficDirection, Udp, Verdict,
};
use datapath::lower::Origins;
use layout::{Event, Reason, direction, event_kind};
use policy::{Direction, Peers, Ports, Protocol, Snapshot};

use super::convert;

/// Hubble's number of a drop notification.
const EVENT_DROP: i32 = 1;
/// Hubble's number of a policy verdict.
const EVENT_POLICY_VERDICT: i32 = 5;

/// Cilium's numbers for what a rule looks at.
const MATCH_NONE: u32 = 0;
const MATCH_L3_ONLY: u32 = 1;
const MATCH_L3_L4: u32 = 2;
const MATCH_L4_ONLY: u32 = 3;
const MATCH_ALL: u32 = 4;

/// What the monotonic clock of events says in wall time.
pub(super) struct Clock {
    monotonic_ns: u64,
    wall_ns: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let monotonic = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let monotonic_ns = monotonic.map_or(0, |time| {
            let part = |value: i64| u64::try_from(value).unwrap_or(0);
            part(time.tv_sec()).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec()))
        });
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic_ns, wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX) }
    }

    fn wall_ns(&self, event_ns: u64) -> u64 {
        self.wall_ns.saturating_sub(self.monotonic_ns.saturating_sub(event_ns))
    }
}

pub(super) fn flow(
    snapshot: &Snapshot,
    origins: &Origins,
    node_name: &str,
    clock: &Clock,
    event: &Event,
) -> Flow {
    let (source, destination) = (IpAddr::from(event.source), IpAddr::from(event.destination));
    let refused = matches!(event.kind, event_kind::DROPPED | event_kind::RESET);
    let reason = Reason::from_number(event.reason).filter(|_| refused);
    let by_policy = !refused || reason.is_some_and(is_policy);
    let verdict = match event.kind {
        event_kind::ALLOWED => Verdict::Forwarded,
        event_kind::REDIRECTED => Verdict::Redirected,
        event_kind::DROPPED | event_kind::RESET => Verdict::Dropped,
        _ => Verdict::Unknown,
    };
    let denied_in = |side| refused && by_policy && event.direction == side;
    let sides =
        |origin: u32, side, name| by_origin(origins, origin, name, denied_in(side), refused && !by_policy);
    let (egress_allowed_by, egress_denied_by) =
        sides(event.egress_origin, direction::EGRESS, Direction::Egress);
    let (ingress_allowed_by, ingress_denied_by) =
        sides(event.ingress_origin, direction::INGRESS, Direction::Ingress);
    Flow {
        time: Some(convert::timestamp(clock.wall_ns(event.time_ns))),
        verdict: verdict.into(),
        ip: Some(convert::ip(source, destination)),
        l4: layer4(event),
        source: Some(convert::endpoint(snapshot, source, event.source_identity)),
        destination: Some(convert::endpoint(snapshot, destination, event.destination_identity)),
        r#type: FlowType::L3L4.into(),
        node_name: node_name.to_owned(),
        event_type: Some(CiliumEventType {
            r#type: if by_policy { EVENT_POLICY_VERDICT } else { EVENT_DROP },
            sub_type: reason.map_or(0, |reason| reason as i32),
        }),
        traffic_direction: traffic_direction(event).into(),
        policy_match_type: if by_policy { match_type(snapshot, origins, event) } else { MATCH_NONE },
        drop_reason_desc: reason.map_or(DropReason::Unknown, drop_reason).into(),
        is_reply: by_policy.then_some(false),
        summary: summary(event, reason),
        egress_allowed_by,
        ingress_allowed_by,
        egress_denied_by,
        ingress_denied_by,
        ..Flow::default()
    }
}

/// (allowed by, denied by) of one direction.
fn by_origin(
    origins: &Origins,
    origin: u32,
    direction: Direction,
    denied: bool,
    undecided: bool,
) -> (Vec<Policy>, Vec<Policy>) {
    if origin == Event::NOT_JUDGED || undecided {
        return (Vec::new(), Vec::new());
    }
    // An origin of an earlier agent, or one that is gone, has no name any more.
    let Some(origin) = origins.get(origin) else { return (Vec::new(), Vec::new()) };
    let policies = convert::policies(&origin, direction, !denied);
    if denied { (Vec::new(), policies) } else { (policies, Vec::new()) }
}

/// Seen from the end that refused; of an allowed flow the receiver's end, if it was judged here.
fn traffic_direction(event: &Event) -> TrafficDirection {
    match (event.direction, event.ingress_origin) {
        (direction::INGRESS, _) => TrafficDirection::Ingress,
        (direction::EGRESS, _) => TrafficDirection::Egress,
        (_, Event::NOT_JUDGED) if event.egress_origin == Event::NOT_JUDGED => TrafficDirection::Unknown,
        (_, Event::NOT_JUDGED) => TrafficDirection::Egress,
        _ => TrafficDirection::Ingress,
    }
}

/// What the rule that decided looks at, in Cilium's numbers.
fn match_type(snapshot: &Snapshot, origins: &Origins, event: &Event) -> u32 {
    let (direction, own, peer, origin) = match traffic_direction(event) {
        TrafficDirection::Ingress => {
            (Direction::Ingress, event.destination, event.source_identity, event.ingress_origin)
        }
        TrafficDirection::Egress => {
            (Direction::Egress, event.source, event.destination_identity, event.egress_origin)
        }
        TrafficDirection::Unknown => return MATCH_NONE,
    };
    let Some(origin) = origins.get(origin).filter(|origin| !origin.is_default()) else { return MATCH_NONE };
    let endpoint = snapshot.endpoint_at(own.into());
    let Some(ruleset) = endpoint.and_then(|endpoint| snapshot.ruleset_of(endpoint)) else {
        return MATCH_NONE;
    };
    let (protocol, port) = (Protocol::from_number(event.protocol), u16::from_be(event.destination_port));
    let mut rules = ruleset.direction(direction).rules.iter();
    let Some(rule) = rules.find(|rule| rule.origin == origin && rule.matches(peer, protocol, port)) else {
        return MATCH_NONE;
    };
    match (&rule.peers, &rule.ports) {
        (Peers::Identities(_), Ports::Any) => MATCH_L3_ONLY,
        (Peers::Identities(_), Ports::Ranges(_)) => MATCH_L3_L4,
        (Peers::Any, Ports::Ranges(_)) => MATCH_L4_ONLY,
        (Peers::Any, Ports::Any) => MATCH_ALL,
    }
}

/// Whether a policy refused, and not the state of the packet or of the node.
fn is_policy(reason: Reason) -> bool {
    matches!(reason, Reason::DeniedIngress | Reason::DeniedEgress | Reason::DeniedLive)
}

fn drop_reason(reason: Reason) -> DropReason {
    match reason {
        Reason::DeniedIngress | Reason::DeniedEgress | Reason::DeniedLive => DropReason::PolicyDenied,
        Reason::SpoofedSource => DropReason::InvalidSourceIp,
        Reason::Fragment | Reason::FragmentWithoutFirst | Reason::FragmentHidesHeader => {
            DropReason::FragmentNotFound
        }
        Reason::Malformed | Reason::IcmpUnrelated | Reason::NoEntry | Reason::ReverseSyn => {
            DropReason::InvalidPacketDropped
        }
        Reason::UnsupportedProtocol | Reason::TaggedFrame => DropReason::UnsupportedL3Protocol,
        Reason::Unencrypted => DropReason::UnencryptedTraffic,
        Reason::NoListener | Reason::CannotSteer => DropReason::SocketLookupFailed,
        Reason::QuotaExceeded => DropReason::RateLimited,
        Reason::TableFull => DropReason::CtMapInsertionFailed,
        Reason::NoEndpoint => DropReason::StaleOrUnroutableIp,
        _ => DropReason::Unknown,
    }
}

fn layer4(event: &Event) -> Option<Layer4> {
    let source_port = u32::from(u16::from_be(event.source_port));
    let destination_port = u32::from(u16::from_be(event.destination_port));
    let protocol = match Protocol::from_number(event.protocol) {
        Protocol::Tcp => {
            L4::Tcp(Tcp { source_port, destination_port, flags: Some(tcp_flags(event.tcp_flags)) })
        }
        Protocol::Udp => L4::Udp(Udp { source_port, destination_port }),
        Protocol::Sctp => L4::Sctp(Sctp { source_port, destination_port }),
        Protocol::Icmp => L4::IcmPv4(IcmPv4 { r#type: source_port, code: destination_port }),
        Protocol::Other(_) => return None,
    };
    Some(Layer4 { protocol: Some(protocol) })
}

/// From the flags byte of the header (RFC 9293 section 3.1).
fn tcp_flags(byte: u8) -> TcpFlags {
    let bit = |number: u8| byte & (1 << number) != 0;
    TcpFlags {
        fin: bit(0),
        syn: bit(1),
        rst: bit(2),
        psh: bit(3),
        ack: bit(4),
        urg: bit(5),
        ece: bit(6),
        cwr: bit(7),
        ns: false,
    }
}

/// As Hubble words it, with our own reason where Hubble's list has none as exact.
fn summary(event: &Event, reason: Option<Reason>) -> String {
    let mut text = match Protocol::from_number(event.protocol) {
        Protocol::Tcp => {
            let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
            let set = names.iter().enumerate().filter(|(bit, _)| event.tcp_flags & (1 << bit) != 0);
            format!("TCP Flags: {}", set.map(|(_, name)| *name).collect::<Vec<_>>().join(", "))
        }
        Protocol::Icmp => format!("ICMPv4 type {}", u16::from_be(event.source_port)),
        other => other.to_string(),
    };
    if let Some(reason) = reason.filter(|reason| !is_policy(*reason)) {
        text.push_str(&format!(" ({})", reason.name()));
    }
    text
}

#[cfg(test)]
mod tests {
    use layout::Addr;
    use policy::{Origin, PolicyKind, PortRange};

    use super::*;

    fn event(kind: u8, reason: Option<Reason>, side: u8) -> Event {
        Event {
            time_ns: 40,
            source: Addr::from(IpAddr::from([10, 1, 0, 2])),
            destination: Addr::from(IpAddr::from([10, 1, 0, 3])),
            source_port: 40_000u16.to_be(),
            destination_port: 8080u16.to_be(),
            source_identity: 256,
            destination_identity: 257,
            egress_origin: 0,
            ingress_origin: 1,
            kind,
            reason: reason.map_or(0, |reason| reason as u8),
            protocol: 6,
            tcp_flags: 0x02,
            direction: side,
            ..Event::default()
        }
    }

    /// One rule, under number 1.
    fn origins() -> Origins {
        let mut origins = Origins::default();
        let mut origin = Origin::policy(PolicyKind::CiliumNetworkPolicy, "production", "api");
        origin.rule = Some(2);
        assert_eq!(origins.number(&origin), 1);
        origins
    }

    fn converted(event: &Event) -> Flow {
        let clock = Clock { monotonic_ns: 100, wall_ns: 1_000_000_060 };
        flow(&Snapshot::default(), &origins(), "node-1", &clock, event)
    }

    fn names(policies: &[Policy]) -> Vec<String> {
        policies.iter().map(|policy| format!("{} {} {:?}", policy.kind, policy.name, policy.labels)).collect()
    }

    #[test]
    fn a_redirected_connection_names_the_rule_that_allowed_it() {
        let flow = converted(&event(event_kind::REDIRECTED, None, 0));
        assert_eq!(flow.verdict(), Verdict::Redirected);
        assert_eq!(
            names(&flow.ingress_allowed_by),
            ["CiliumNetworkPolicy api [\"selvage.dev/rule=ingress[2]\"]"]
        );
        assert!(flow.egress_allowed_by.is_empty() && flow.ingress_denied_by.is_empty());
        assert_eq!(flow.traffic_direction(), TrafficDirection::Ingress);
        assert_eq!(flow.event_type.unwrap().r#type, EVENT_POLICY_VERDICT);
        assert_eq!(flow.time.unwrap().nanos, 0, "60 ns before the clocks were read");
        assert_eq!(flow.summary, "TCP Flags: SYN");
        let Some(L4::Tcp(tcp)) = flow.l4.unwrap().protocol else { panic!() };
        assert_eq!((tcp.source_port, tcp.destination_port), (40_000, 8080));
        assert!(tcp.flags.is_some_and(|flags| flags.syn && !flags.ack));
    }

    #[test]
    fn a_refusal_names_who_refused_in_its_direction() {
        let denied = Event {
            ingress_origin: 0,
            ..event(event_kind::DROPPED, Some(Reason::DeniedIngress), direction::INGRESS)
        };
        let flow = converted(&denied);
        assert_eq!((flow.verdict(), flow.drop_reason_desc()), (Verdict::Dropped, DropReason::PolicyDenied));
        assert_eq!(names(&flow.ingress_denied_by), [" default deny []"]);
        assert!(flow.egress_denied_by.is_empty());

        let denied = Event {
            egress_origin: 1,
            ingress_origin: Event::NOT_JUDGED,
            ..event(event_kind::DROPPED, Some(Reason::DeniedEgress), direction::EGRESS)
        };
        let flow = converted(&denied);
        assert_eq!(
            names(&flow.egress_denied_by),
            ["CiliumNetworkPolicy api [\"selvage.dev/rule=egress[2]\"]"]
        );
        assert!(flow.ingress_denied_by.is_empty() && flow.ingress_allowed_by.is_empty());
        assert_eq!(flow.traffic_direction(), TrafficDirection::Egress);
    }

    #[test]
    fn what_no_policy_refused_blames_none() {
        let flow = converted(&event(event_kind::DROPPED, Some(Reason::SpoofedSource), direction::EGRESS));
        assert_eq!(
            (flow.drop_reason_desc(), flow.event_type.unwrap().r#type),
            (DropReason::InvalidSourceIp, EVENT_DROP)
        );
        let all = [
            &flow.egress_allowed_by,
            &flow.egress_denied_by,
            &flow.ingress_allowed_by,
            &flow.ingress_denied_by,
        ];
        assert!(all.iter().all(|policies| policies.is_empty()));
        assert_eq!(flow.summary, "TCP Flags: SYN (spoofed_source)");
    }

    #[test]
    fn what_the_rule_looks_at_is_told() {
        let mut origin = Origin::policy(PolicyKind::CiliumNetworkPolicy, "production", "api");
        origin.rule = Some(2);
        let tcp = PortRange { protocol: Some(Protocol::Tcp), first: 8080, last: 8080 };
        let ends = [Peers::Any, Peers::Identities([256].into())];
        let mut told = Vec::new();
        for peers in ends {
            for ports in [Ports::Any, Ports::Ranges(vec![tcp])] {
                let (peers, origin) = (peers.clone(), origin.clone());
                let rule = policy::Rule { origin, action: policy::Action::Allow, peers, ports, http: None };
                let ingress = policy::DirectionRules { enforced: true, rules: vec![rule] };
                let ruleset = policy::Ruleset { ingress, ..policy::Ruleset::default() };
                let endpoint = policy::EndpointPolicy {
                    namespace: "production".into(),
                    name: "api".into(),
                    node: "n".into(),
                    addresses: vec![IpAddr::from([10, 1, 0, 3])],
                    identity: 257,
                    labels: policy::Labels::new(),
                    ruleset: 0,
                };
                let parts = policy::SnapshotParts {
                    endpoints: vec![endpoint],
                    rulesets: vec![ruleset.into()],
                    ..policy::SnapshotParts::default()
                };
                let snapshot = Snapshot::from_parts(parts).unwrap();
                let allowed = event(event_kind::ALLOWED, None, 0);
                let clock = Clock { monotonic_ns: 0, wall_ns: 0 };
                told.push(flow(&snapshot, &origins(), "n", &clock, &allowed).policy_match_type);
            }
        }
        assert_eq!(told, [MATCH_ALL, MATCH_L4_ONLY, MATCH_L3_ONLY, MATCH_L3_L4]);
    }

    #[test]
    fn an_origin_of_an_earlier_agent_is_not_mistaken_for_another_rule() {
        let flow = converted(&Event { ingress_origin: 77, ..event(event_kind::ALLOWED, None, 0) });
        assert_eq!((flow.verdict(), flow.ingress_allowed_by.len()), (Verdict::Forwarded, 0));
    }
}
