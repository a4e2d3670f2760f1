//! The trie's contents, looked up as the kernel looks them up, against the engine; and the planner's swaps.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use layout::{Endpoint, RuleKey, direction, endpoint_flag, identity, verdict};
use policy::identity::{HOST, REMOTE_NODE, UNKNOWN, WORLD};
use policy::{
    Action, Direction, DirectionRules, EndpointPolicy, HttpRule, Origin, Peers, PolicyKind, PortRange, Ports,
    Protocol, Ruleset, Snapshot, SnapshotParts, Verdict,
};
use proptest::prelude::*;

use super::random::any_ruleset;
use super::*;
use crate::Rule;

const NUMBER: u32 = 7;

/// The trie, as the kernel looks it up: longest prefix first.
struct Trie(HashMap<(u32, RuleKey), (u8, u32)>);

impl Trie {
    fn of(rules: &[Rule]) -> Self {
        Self(rules.iter().map(|rule| ((rule.prefix_len, rule.key), (rule.verdict, rule.origin))).collect())
    }

    fn longest(&self, key: &RuleKey) -> Option<(u8, u32)> {
        (RuleKey::BITS_ANY_PROTOCOL..=RuleKey::BITS_EXACT).rev().find_map(|bits| {
            let port = bits.saturating_sub(RuleKey::BITS_ANY_PORT);
            let mask = u16::MAX.checked_shl(16 - port).unwrap_or(0);
            let masked = (u16::from_be_bytes(key.port) & mask).to_be_bytes();
            let protocol = if bits < RuleKey::BITS_ANY_PORT { 0 } else { key.protocol };
            self.0.get(&(bits, RuleKey { protocol, port: masked, ..*key })).copied()
        })
    }
}

/// What the kernel answers: verdict and origin number.
fn judge(
    rules: &Trie,
    ruleset: &Ruleset,
    side: Direction,
    peer: u32,
    protocol: Protocol,
    port: u16,
) -> (u8, u32) {
    if !ruleset.direction(side).enforced || (side == Direction::Ingress && peer == identity::HOST) {
        return (verdict::ALLOW, 0);
    }
    let direction = if side == Direction::Ingress { direction::INGRESS } else { direction::EGRESS };
    let found = [peer, identity::ANY].into_iter().find_map(|peer| {
        let (ruleset, identity) = (NUMBER.to_be_bytes(), peer.to_be_bytes());
        let protocol = protocol.number();
        rules.longest(&RuleKey { ruleset, identity, direction, protocol, port: port.to_be_bytes() })
    });
    found.unwrap_or((verdict::DENY, 0))
}

/// The first packet on which the two disagree.
fn disagreement(ruleset: &Ruleset, rules: &[Rule], origins: &mut Origins) -> Option<String> {
    let mut peers: BTreeSet<u32> =
        BTreeSet::from([HOST, WORLD, UNKNOWN, REMOTE_NODE, 256, 257, 258, 259, 9999]);
    let mut ports = BTreeSet::from([0, 1, 79, 80, 81, 443, 8080, 32767, 32768, 65534, 65535]);
    for rule in ruleset.ingress.rules.iter().chain(&ruleset.egress.rules) {
        if let Peers::Identities(ids) = &rule.peers {
            peers.extend(ids);
        }
        let Ports::Ranges(ranges) = &rule.ports else { continue };
        for end in ranges.iter().flat_map(|range| [range.first, range.last]) {
            ports.extend([end.saturating_sub(1), end, end.saturating_add(1)]);
        }
    }
    let rules = Trie::of(rules);
    for side in Direction::ALL {
        for &peer in &peers {
            for number in [6, 17, 132, 1, 47] {
                let protocol = Protocol::from_number(number);
                for port in ports.iter().copied().filter(|&port| protocol.has_ports() || port == 0) {
                    let decision = ruleset.direction(side).decide(side, peer, protocol, port);
                    let expected = match decision.verdict {
                        Verdict::Allowed => verdict::ALLOW,
                        Verdict::Denied => verdict::DENY,
                        Verdict::Redirected => verdict::REDIRECT,
                    };
                    let expected = (expected, origins.number(&decision.origin));
                    let got = judge(&rules, ruleset, side, peer, protocol, port);
                    if got != expected {
                        return Some(format!("{side} {peer} {protocol} {port}: {got:?}, not {expected:?}"));
                    }
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lowered_rules_say_what_the_engine_says(ruleset in any_ruleset()) {
        let mut origins = Origins::default();
        let rules = lower(NUMBER, &ruleset, &mut origins);
        prop_assert_eq!(disagreement(&ruleset, &rules, &mut origins), None);
        let keys: HashSet<_> = rules.iter().map(|rule| (rule.prefix_len, rule.key)).collect();
        prop_assert_eq!(keys.len(), rules.len(), "the same prefix twice");
    }
}

fn rule(action: Action, peers: Peers, ports: Ports, http: bool, index: u32) -> policy::Rule {
    let mut origin = Origin::policy(PolicyKind::CiliumNetworkPolicy, "ns", "p");
    origin.rule = Some(index);
    policy::Rule { origin, action, peers, ports, http: http.then(|| vec![HttpRule::default()]) }
}

fn tcp(first: u16, last: u16) -> Ports {
    Ports::Ranges(vec![PortRange { protocol: Some(Protocol::Tcp), first, last }])
}

fn only(id: u32) -> Peers {
    Peers::Identities([id].into())
}

/// One of everything: any peer and named ones, ranges, denies, an L7 rule inside of a range.
fn example() -> Ruleset {
    let rules = vec![
        rule(Action::Allow, Peers::Any, tcp(443, 443), false, 0),
        rule(Action::Allow, only(256), tcp(8000, 8999), false, 1),
        rule(Action::Allow, only(257), tcp(8080, 8080), true, 2),
        rule(Action::Deny, only(258), Ports::Any, false, 3),
        rule(Action::Allow, only(259), Ports::Any, false, 4),
    ];
    let ingress = DirectionRules { enforced: true, rules };
    Ruleset { ingress, egress: DirectionRules::default() }
}

#[test]
fn planted_bugs_are_found() {
    type Bug = fn(&mut Vec<Rule>);
    let bugs: &[(&str, Bug)] = &[
        ("an answer is missing for a named peer", |rules| {
            rules.retain(|rule| {
                rule.key.identity != 259u32.to_be_bytes() || rule.key.port != 443u16.to_be_bytes()
            });
        }),
        ("a deny is missing", |rules| {
            rules.retain(|rule| rule.key.identity != 258u32.to_be_bytes());
        }),
        ("port in the wrong order of bytes", |rules| {
            rules.iter_mut().for_each(|rule| rule.key.port.reverse())
        }),
        ("identity in the wrong order of bytes", |rules| {
            rules.iter_mut().for_each(|rule| rule.key.identity.reverse());
        }),
        ("one bit too few", |rules| {
            let exact = rules.iter_mut().filter(|rule| rule.prefix_len == RuleKey::BITS_EXACT);
            exact.for_each(|rule| rule.prefix_len -= 1);
        }),
        ("a range ends early", |rules| {
            let of_range = rules.iter().rposition(|rule| rule.key.identity == 256u32.to_be_bytes()).unwrap();
            rules.remove(of_range);
        }),
        ("requests are not judged", |rules| {
            let redirects = rules.iter_mut().filter(|rule| rule.verdict == verdict::REDIRECT);
            redirects.for_each(|rule| rule.verdict = verdict::ALLOW);
        }),
        ("directions swapped", |rules| rules.iter_mut().for_each(|rule| rule.key.direction ^= 3)),
        ("another rule is named", |rules| rules.iter_mut().for_each(|rule| rule.origin += 1)),
    ];
    let ruleset = example();
    let mut origins = Origins::default();
    let whole = lower(NUMBER, &ruleset, &mut origins);
    assert_eq!(disagreement(&ruleset, &whole, &mut origins), None);
    for (name, bug) in bugs {
        let mut rules = whole.clone();
        bug(&mut rules);
        assert!(disagreement(&ruleset, &rules, &mut origins).is_some(), "not found: {name}");
    }
}

const NODE: &str = "node-1";

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A snapshot with pods 10.0.0.1, .2, ... of this node, each under the ruleset of that index.
fn snapshot(rulesets: &[Ruleset], pods: &[usize]) -> Snapshot {
    let endpoints = (1u8..).zip(pods).map(|(last, &ruleset)| EndpointPolicy {
        namespace: "ns".into(),
        name: format!("p{last:03}"),
        node: NODE.into(),
        addresses: vec![address(last)],
        identity: 255 + u32::from(last),
        labels: Default::default(),
        ruleset,
    });
    let endpoints: Vec<_> = endpoints.collect();
    Snapshot::from_parts(SnapshotParts {
        node: NODE.into(),
        addresses: endpoints.iter().map(|endpoint| (endpoint.addresses[0], endpoint.identity)).collect(),
        rulesets: rulesets.iter().cloned().map(Arc::new).collect(),
        endpoints,
        ..SnapshotParts::default()
    })
    .unwrap()
}

fn attached(count: u8) -> Vec<Attached> {
    let pod = |last| Attached {
        address: address(last),
        ifindex: 100 + u32::from(last),
        mac: [2; 6],
        netns: Some(0),
        shaped: false,
    };
    (1..=count).map(pod).collect()
}

#[test]
fn equal_rulesets_are_installed_once_and_only_changes_flip() {
    let mut origins = Origins::default();
    let rulesets = [example(), Ruleset::default()];
    let first = snapshot(&rulesets, &[0, 0, 1]);
    let (plan, installed) = Installed::default().plan(&first, &attached(3), &mut origins);
    assert_eq!(plan.add, lower(1, &example(), &mut origins), "once, under the first number");
    assert_eq!(plan.announce.len(), 3);
    let numbers: Vec<_> = plan.endpoints.iter().map(|(_, endpoint)| endpoint.ruleset).collect();
    let flags: Vec<_> = plan.endpoints.iter().map(|(_, endpoint)| endpoint.flags).collect();
    let generations: HashSet<_> = plan.endpoints.iter().map(|(_, endpoint)| endpoint.generation).collect();
    assert_eq!(numbers, [1, 1, 2]);
    assert_eq!(flags, [endpoint_flag::ENFORCE_INGRESS, endpoint_flag::ENFORCE_INGRESS, 0]);
    assert_eq!(generations, HashSet::from([1, 2, 3]));

    let (plan, installed) = installed.plan(&first, &attached(3), &mut origins);
    assert!(plan.is_empty(), "{plan:?}");

    // The second pod gets other rules: it alone flips, to a new number; the shared ruleset stays.
    let mut other = example();
    other.ingress.rules.pop();
    let second = snapshot(&[example(), Ruleset::default(), other.clone()], &[0, 2, 1]);
    let (plan, installed) = installed.plan(&second, &attached(3), &mut origins);
    assert_eq!(plan.add, lower(3, &other, &mut origins));
    let flipped: Vec<_> =
        plan.endpoints.iter().map(|(address, e)| (*address, e.ruleset, e.generation)).collect();
    assert_eq!(flipped, [(address(2), 3, 4)]);
    assert!(plan.remove.is_empty() && plan.announce.is_empty() && plan.withdraw.is_empty());

    // Back again: the number is not used again while its rules may still be on their way out.
    let (plan, installed) = installed.plan(&first, &attached(3), &mut origins);
    let mut removed: Vec<_> =
        lower(3, &other, &mut origins).iter().map(|rule| (rule.prefix_len, rule.key)).collect();
    removed.sort_unstable_by_key(|(length, key)| (key.identity, *length));
    assert_eq!(plan.remove, removed);
    assert_eq!(plan.endpoints.iter().map(|(_, e)| (e.ruleset, e.generation)).collect::<Vec<_>>(), [(1, 5)]);

    // The first pod goes: its address is nobody's.
    let fewer = snapshot(&rulesets, &[0, 0]);
    let (plan, _) = installed.plan(&fewer, &attached(2), &mut origins);
    assert_eq!((plan.remove_endpoints, plan.withdraw), (vec![address(3)], vec![address(3)]));
}

#[test]
fn a_changed_identity_or_device_is_a_new_generation() {
    let mut origins = Origins::default();
    let before = snapshot(&[example()], &[0]);
    let (_, installed) = Installed::default().plan(&before, &attached(1), &mut origins);
    let mut changed = attached(1);
    changed[0].ifindex += 1;
    let (plan, _) = installed.plan(&before, &changed, &mut origins);
    assert_eq!(plan.endpoints.iter().map(|(_, e)| e.generation).collect::<Vec<_>>(), [2]);

    let mut parts = (*before).clone();
    parts.endpoints[0].identity = 999;
    parts.addresses.insert(address(1), 999);
    let after = Snapshot::from_parts(parts).unwrap();
    let (plan, _) = installed.plan(&after, &attached(1), &mut origins);
    assert_eq!(
        plan.endpoints.iter().map(|(_, e)| (e.identity, e.generation)).collect::<Vec<_>>(),
        [(999, 2)]
    );
    assert_eq!(plan.announce, [(address(1), 999)]);
    assert!(plan.add.is_empty());
}

#[test]
fn a_pod_that_the_snapshot_does_not_know_is_closed() {
    let mut origins = Origins::default();
    let (plan, _) = Installed::default().plan(&Snapshot::default(), &attached(1), &mut origins);
    let closed = endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS;
    let [(_, endpoint)] = plan.endpoints.as_slice() else { panic!("{plan:?}") };
    assert_eq!(
        (endpoint.ruleset, endpoint.flags, endpoint.identity),
        (CLOSED_RULESET, closed, identity::UNKNOWN)
    );
}

#[test]
fn what_an_earlier_process_left_is_replaced_and_no_number_repeats() {
    let mut origins = Origins::default();
    let left = lower(41, &example(), &mut origins);
    let old = Endpoint { ifindex: 101, identity: 256, generation: 8, ruleset: 41, ..Endpoint::default() };
    let entry = layout::ConnectionEntry { b_generation: 12, ..Default::default() };
    let installed = Installed::adopt(&left, [(address(1), old)], [(address(9), 300)], [entry]);
    let mut origins = Origins::after(5);
    let (plan, _) = installed.plan(&snapshot(&[example()], &[0]), &attached(1), &mut origins);
    assert!(plan.add.iter().all(|rule| rule.key.ruleset == 42u32.to_be_bytes()));
    assert!(plan.add.iter().all(|rule| rule.origin == 0 || rule.origin > 5));
    let [(_, endpoint)] = plan.endpoints.as_slice() else { panic!("{plan:?}") };
    assert_eq!((endpoint.ruleset, endpoint.generation), (42, 13));
    assert_eq!(plan.remove.len(), left.len());
    assert_eq!(plan.withdraw, [address(9)]);
}

#[test]
fn without_room_an_endpoint_is_closed_and_said_so() {
    let mut origins = Origins::default();
    // Every other port: one prefix each.
    let odd =
        (0..200u16).map(|i| PortRange { protocol: Some(Protocol::Udp), first: i * 2 + 1, last: i * 2 + 1 });
    let odd = Ports::Ranges(odd.collect());
    let large = |index| {
        let rules = vec![rule(Action::Allow, Peers::Any, odd.clone(), false, index)];
        Ruleset { ingress: DirectionRules { enforced: true, rules }, egress: DirectionRules::default() }
    };
    let rules = lower(1, &large(0), &mut origins);
    assert_eq!(rules.len(), 200);
    let full = vec![rules[0]; layout::limits::RULES as usize - 100];
    let installed = Installed::adopt(&full, [], [], []);
    let small = example();
    let wanted = snapshot(&[large(0), small], &[0, 1]);
    let (plan, next) = installed.plan(&wanted, &attached(2), &mut origins);
    assert_eq!(plan.no_room, [(address(1), FullMap::Rules)]);
    let rulesets: Vec<_> =
        plan.endpoints.iter().map(|(_, endpoint)| (endpoint.ruleset, endpoint.flags)).collect();
    assert_eq!(rulesets, [(CLOSED_RULESET, 3), (2, endpoint_flag::ENFORCE_INGRESS)]);
    // What an earlier process left is gone now.
    assert!(plan.made_room());
    let (again, _) = next.plan(&wanted, &attached(2), &mut origins);
    assert_eq!((again.no_room.len(), again.endpoints.len(), again.made_room()), (0, 1, false));
}

#[test]
fn more_pods_than_the_node_may_have_are_left_out_and_said_so() {
    let mut origins = Origins::default();
    let pod = |index: u32| Attached { address: nth(index), ifindex: 100 + index, ..attached(1)[0] };
    let (limit, known) = (layout::limits::ENDPOINTS, snapshot(&[example()], &[0]));
    let many: Vec<Attached> = (1..=limit + 2).map(pod).collect();
    let (plan, next) = Installed::default().plan(&known, &many, &mut origins);
    assert_eq!(plan.endpoints.len(), limit as usize);
    let left_out = [limit + 1, limit + 2].map(|index| (nth(index), FullMap::Endpoints));
    assert_eq!(plan.no_room, left_out);
    // Policy goes on for those that are in, and room is used once it is there.
    let (plan, _) = next.plan(&known, &many[1..], &mut origins);
    assert_eq!(plan.remove_endpoints, [nth(1)]);
    assert_eq!(plan.endpoints.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [nth(limit + 1)]);
}

#[test]
fn more_addresses_than_the_map_holds_leave_the_new_ones_unknown() {
    let mut origins = Origins::default();
    let limit = layout::limits::IDENTITIES;
    let cluster = |addresses: std::ops::RangeInclusive<u32>| {
        let mut parts = (*snapshot(&[example()], &[0])).clone();
        let own = parts.addresses.clone();
        parts.addresses = addresses.map(|index| (nth(index), 300)).chain(own).collect();
        Snapshot::from_parts(parts).unwrap()
    };
    // 10.0.0.1 is the pod of the example.
    let (plan, full) = Installed::default().plan(&cluster(2..=limit), &attached(1), &mut origins);
    assert_eq!((plan.announce.len(), plan.unknown), (limit as usize, 0));
    let (plan, _) = full.plan(&cluster(3..=limit + 3), &attached(1), &mut origins);
    assert_eq!(plan.withdraw, [nth(2)]);
    assert_eq!((plan.announce, plan.unknown), (vec![(nth(limit + 1), 300)], 2));
}

/// 10.0.0.0 and that many.
fn nth(index: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0a00_0000 + index).into()
}
