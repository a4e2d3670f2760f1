//! Policy in the real maps: lowered, swapped in, read back, and asked by packets through the programs themselves, with
//! the engine as the oracle.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(test)]
mod common;
#[cfg(test)]
#[path = "../src/lower/random.rs"]
mod random;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use common::packets::{SYN, icmp, other, sctp, tcp, udp};
use common::*;
use datapath::Rule;
use datapath::lower::{Attached, Installed, Origins, Plan};
use policy::{
    DirectionDecision, EndpointPolicy, Flow, Ports, Protocol, Ruleset, Scope, Snapshot, SnapshotParts,
    Verdict, identity,
};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

/// Rulesets that follow one another in the same maps.
const ROUNDS: usize = 30;

const NODE_NAME: &str = "node-1";

/// Pods A and B here, under these rulesets; a pod elsewhere; both nodes.
fn snapshot(of_a: Ruleset, of_b: Ruleset) -> Snapshot {
    let pod = |name: &str, node: &str, address: Ipv4Addr, identity, ruleset| EndpointPolicy {
        namespace: "ns".into(),
        name: name.into(),
        node: node.into(),
        addresses: vec![address.into()],
        identity,
        labels: Default::default(),
        ruleset,
    };
    let endpoints = vec![
        pod("a", NODE_NAME, POD_A, IDENTITY_A, 0),
        pod("b", NODE_NAME, POD_B, IDENTITY_B, 1),
        pod("r", "node-2", POD_R, 258, 0),
    ];
    let mut addresses: HashMap<IpAddr, u32> =
        endpoints.iter().map(|endpoint| (endpoint.addresses[0], endpoint.identity)).collect();
    addresses.insert(NODE.into(), identity::HOST);
    addresses.insert(REMOTE_NODE.into(), identity::REMOTE_NODE);
    Snapshot::from_parts(SnapshotParts {
        number: 1,
        node: NODE_NAME.into(),
        pod_networks: vec!["10.0.0.0/16".parse().unwrap()],
        node_addresses: vec![NODE.into()],
        addresses,
        endpoints,
        rulesets: vec![Arc::new(of_a), Arc::new(of_b)],
        ..SnapshotParts::default()
    })
    .unwrap()
}

/// Policy in the maps of a bench, and packets to ask it with.
struct Enforced {
    bench: Bench,
    installed: Installed,
    origins: Origins,
    source_port: u16,
}

impl Enforced {
    fn new(name: &str) -> Option<Self> {
        let mut bench = bench(name)?;
        // With encryption a remote source counts only by the tunnel; here policy alone decides.
        bench.set_config(|config| config.flags = 0);
        let (installed, origins) = Installed::read(&bench.datapath.maps).unwrap();
        Some(Self { bench, installed, origins, source_port: 1024 })
    }

    fn plan(&mut self, snapshot: &Snapshot) -> (Plan, Installed) {
        let pod = |address: Ipv4Addr, ifindex, mac| Attached {
            address: address.into(),
            ifindex,
            mac,
            shaped: false,
            netns: None,
        };
        let attached = [pod(POD_A, self.bench.device_a, [2; 6]), pod(POD_B, self.bench.device_b, MAC_B)];
        self.installed.plan(snapshot, &attached, &mut self.origins)
    }

    fn apply(&mut self, (plan, next): (Plan, Installed)) {
        plan.apply(&mut self.bench.datapath.maps).unwrap();
        self.installed = next;
    }

    /// The first packet that is not treated as the engine says.
    fn disagreement(&mut self, snapshot: &Snapshot) -> Option<String> {
        let ports = ports_of(snapshot);
        let flows =
            ports.iter().flat_map(|&port| [(6, port), (17, port), (132, port)]).chain([(1, 0), (47, 0)]);
        for (protocol, port) in flows {
            for to in [POD_B, POD_R, NODE, REMOTE_NODE, WORLD, POD_UNKNOWN] {
                let found = self.ask(snapshot, POD_A, to, protocol, port);
                if found.is_some() {
                    return found;
                }
            }
            for from in [POD_R, REMOTE_NODE, WORLD, POD_UNKNOWN] {
                let found = self.ask(snapshot, from, POD_B, protocol, port);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// Sends the first packet of a new flow: from A as A sends it, else as the stack forwards it to B.
    fn ask(
        &mut self,
        snapshot: &Snapshot,
        from: Ipv4Addr,
        to: Ipv4Addr,
        protocol: u8,
        port: u16,
    ) -> Option<String> {
        self.source_port = self.source_port.checked_add(1).unwrap_or(1024);
        let source = self.source_port;
        let packet = match protocol {
            TCP => tcp((from, source), (to, port), SYN),
            UDP => udp((from, source), (to, port)),
            SCTP => sctp((from, source), (to, port)),
            ICMP => icmp(8, source, from, to),
            protocol => other(protocol, from, to),
        };
        let outcome =
            if from == POD_A { self.bench.a_sends(&packet) } else { self.bench.forwarded_to_b(&packet) };
        let got = match (outcome.action, outcome.mark) {
            (DROP, _) => Verdict::Denied,
            (_, TO_PROXY) => Verdict::Redirected,
            _ => Verdict::Allowed,
        };
        let protocol = Protocol::from_number(protocol);
        let flow = Flow { source: from.into(), destination: to.into(), protocol, port };
        let expected = snapshot.request_policy(&flow, Scope::ThisNode).connection().clone();
        let what = format!("{from} to {to} {protocol} {port}");
        if got != expected.verdict {
            return Some(format!("{what}: {got}, not {expected:?}"));
        }
        let Some(event) = self.bench.events().pop() else {
            // Protocols without flows are only reported when refused.
            return (protocol == Protocol::Tcp).then(|| format!("{what}: not reported"));
        };
        let mut number = |decision: Option<DirectionDecision>| {
            decision.map_or(NEVER, |decision| self.origins.number(&decision.origin))
        };
        let egress_denies = expected.egress.as_ref().is_some_and(|egress| egress.verdict == Verdict::Denied);
        let (egress, ingress) = (number(expected.egress), number(expected.ingress));
        // A refusal by the sender's side leaves the receiver's side unasked.
        let ingress = if egress_denies { NEVER } else { ingress };
        let reported = (event.egress_origin, event.ingress_origin);
        (reported != (egress, ingress))
            .then(|| format!("{what}: origins {reported:?}, not {:?}", (egress, ingress)))
    }
}

/// A sample of ports that hits every place where a rule begins or ends.
fn ports_of(snapshot: &Snapshot) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from([1, 80, 8080, 40_000]);
    let rules = snapshot.rulesets.iter().flat_map(|set| set.ingress.rules.iter().chain(&set.egress.rules));
    for rule in rules {
        let Ports::Ranges(ranges) = &rule.ports else { continue };
        for end in ranges.iter().flat_map(|range| [range.first, range.last]) {
            ports.extend([end.saturating_sub(1).max(1), end.max(1), end.saturating_add(1)]);
        }
    }
    ports
}

fn sorted(rules: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
    let mut rules: Vec<_> = rules.into_iter().collect();
    let key = |rule: &Rule| {
        let key = rule.key;
        (key.ruleset, key.identity, key.direction, key.protocol, key.port, rule.prefix_len)
    };
    rules.sort_by_key(key);
    rules
}

#[test]
fn packets_are_treated_as_the_engine_says() {
    let Some(mut enforced) = Enforced::new("lower-random") else { return };
    let mut runner = TestRunner::deterministic();
    let strategy = (random::any_ruleset(), random::any_ruleset());
    let mut expected: Vec<Rule> = Vec::new();
    for round in 0..ROUNDS {
        let (of_a, of_b) = strategy.new_tree(&mut runner).unwrap().current();
        let snapshot = snapshot(of_a, of_b);
        let (plan, next) = enforced.plan(&snapshot);
        expected.retain(|rule| !plan.remove.contains(&(rule.prefix_len, rule.key)));
        expected.extend(&plan.add);
        enforced.apply((plan, next));
        let in_kernel = enforced.bench.datapath.maps.rules().unwrap();
        assert_eq!(sorted(in_kernel), sorted(expected.clone()), "round {round}: read back");
        let found = enforced.disagreement(&snapshot);
        assert_eq!(found, None, "round {round}: {:#?}", snapshot.rulesets);
    }
}

/// The comparison must be able to fail: any rule that is left out or wrong is found by some packet.
#[test]
fn planted_bugs_are_found() {
    type Bug = fn(&mut Vec<Rule>, usize);
    let bugs: &[(&str, Bug)] = &[
        ("left out", |rules, index| {
            rules.remove(index);
        }),
        ("other verdict", |rules, index| rules[index].verdict = (rules[index].verdict + 1) % 2),
        ("other origin", |rules, index| rules[index].origin += 1),
    ];
    let Some(mut enforced) = Enforced::new("lower-bugs") else { return };
    for (name, bug) in bugs {
        for index in 0..lowered_example().len() {
            // A ruleset of another number each time: the rules of the last one, with its bug, go.
            enforced.apply_closed();
            let snapshot = snapshot(Ruleset::default(), example());
            let (mut plan, next) = enforced.plan(&snapshot);
            assert_eq!(plan.add.len(), lowered_example().len());
            bug(&mut plan.add, index);
            enforced.apply((plan, next));
            assert!(enforced.disagreement(&snapshot).is_some(), "{name}: {:?}", lowered_example()[index]);
        }
    }
}

impl Enforced {
    /// Takes all policy out again.
    fn apply_closed(&mut self) {
        let planned = self.plan(&snapshot(Ruleset::default(), Ruleset::default()));
        self.apply(planned);
        // What a planted bug left behind, no plan knows of.
        assert_eq!(self.bench.datapath.maps.rules().unwrap(), []);
    }
}

/// Rules of which none is covered by another.
fn example() -> Ruleset {
    use policy::{Action, DirectionRules, HttpRule, Origin, Peers, PolicyKind, PortRange};
    let tcp = |first, last| Ports::Ranges(vec![PortRange { protocol: Some(Protocol::Tcp), first, last }]);
    let rule = |index, action, peers, ports, http: bool| {
        let mut origin = Origin::policy(PolicyKind::CiliumNetworkPolicy, "ns", "p");
        origin.rule = Some(index);
        policy::Rule { origin, action, peers, ports, http: http.then(|| vec![HttpRule::default()]) }
    };
    let only = |identity| Peers::Identities([identity].into());
    let rules = vec![
        rule(0, Action::Allow, Peers::Any, tcp(22, 22), false),
        rule(1, Action::Allow, only(IDENTITY_A), tcp(8000, 8003), false),
        rule(2, Action::Allow, only(IDENTITY_A), tcp(8080, 8080), true),
        rule(3, Action::Allow, only(258), Ports::Any, false),
        rule(4, Action::Allow, only(identity::WORLD), tcp(443, 443), false),
        rule(5, Action::Deny, only(identity::REMOTE_NODE), Ports::Any, false),
    ];
    Ruleset { ingress: DirectionRules { enforced: true, rules }, egress: DirectionRules::default() }
}

fn lowered_example() -> Vec<Rule> {
    datapath::lower::lower(1, &example(), &mut Origins::default())
}
