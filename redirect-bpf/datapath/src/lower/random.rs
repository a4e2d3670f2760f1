//! Random rulesets, for the tests of this folder and for those on the kernel's maps.

use policy::identity::{HOST, REMOTE_NODE, UNKNOWN, WORLD};
use policy::{
    Action, DirectionRules, HttpRule, Origin, Peers, PolicyKind, PortRange, Ports, Protocol, Rule, Ruleset,
};
use proptest::prelude::*;

fn any_peers() -> impl Strategy<Value = Peers> {
    let one = prop::sample::select(vec![HOST, WORLD, UNKNOWN, REMOTE_NODE, 256, 257, 258, 259]);
    prop_oneof![
        1 => Just(Peers::Any),
        3 => prop::collection::btree_set(one, 0..4).prop_map(Peers::Identities),
    ]
}

fn any_range() -> impl Strategy<Value = PortRange> {
    let protocol = prop::sample::select(vec![None, Some(6), Some(17), Some(132)]);
    let port = prop_oneof![
        4 => prop::sample::select(vec![0, 1, 79, 80, 81, 443, 8080, 32767, 32768, 65535]),
        1 => any::<u16>(),
    ];
    (protocol, port.clone(), port).prop_map(|(protocol, a, b)| PortRange {
        protocol: protocol.map(Protocol::from_number),
        first: a.min(b),
        last: a.max(b),
    })
}

fn any_ports() -> impl Strategy<Value = Ports> {
    prop_oneof![1 => Just(Ports::Any), 4 => prop::collection::vec(any_range(), 0..4).prop_map(Ports::Ranges)]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (any_peers(), any_ports(), 0..6u8).prop_map(|(peers, ports, kind)| Rule {
        origin: Origin::default(),
        action: if kind == 0 { Action::Deny } else { Action::Allow },
        peers,
        ports,
        http: (kind > 3).then(|| vec![HttpRule::default()]),
    })
}

fn any_direction() -> impl Strategy<Value = DirectionRules> {
    (prop::bool::weighted(0.9), prop::collection::vec(any_rule(), 0..7)).prop_map(|(enforced, mut rules)| {
        for (index, rule) in (0u32..).zip(&mut rules) {
            rule.origin = Origin::policy(PolicyKind::NetworkPolicy, "ns", "p");
            rule.origin.rule = Some(index);
        }
        DirectionRules { enforced, rules }
    })
}

pub(crate) fn any_ruleset() -> impl Strategy<Value = Ruleset> {
    (any_direction(), any_direction()).prop_map(|(ingress, egress)| Ruleset { ingress, egress })
}
