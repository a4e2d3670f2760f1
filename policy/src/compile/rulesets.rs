//! The ruleset of one identity: every rule that speaks about it, with port names resolved.

use std::collections::{BTreeMap, BTreeSet};

use super::resolve::{AllFacts, Resolved, ResolvedRule};
use crate::identity::IdentityFacts;
use crate::manifest::{PortList, PortName, PortSpec};
use crate::{
    Action, Direction, DirectionRules, IdentityId, NamedPort, Origin, Peers, PortRange, Ports, Protocol,
    Rule, Ruleset,
};

/// Denies everything in both directions.
pub(super) fn closed() -> Ruleset {
    let closed = || DirectionRules { enforced: true, rules: Vec::new() };
    Ruleset { ingress: closed(), egress: closed() }
}

/// All rules about an identity.
pub(super) fn build(id: IdentityId, own: &IdentityFacts, resolved: &Resolved<'_>, all: &AllFacts) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for direction in Direction::ALL {
        let destinations = match direction {
            Direction::Ingress => Destinations::Own(&own.named_ports),
            Direction::Egress => Destinations::Peers(all),
        };
        let isolated = resolved.about(id, direction).any(|part| part.isolates);
        let mut rules = Vec::new();
        for rule in resolved.about(id, direction).flat_map(|part| &part.rules) {
            destinations.lower(rule, &mut rules);
        }
        *ruleset.direction_mut(direction) = default_deny(isolated, rules);
    }
    ruleset
}

/// Where no policy asks for default deny, only denies have a say: everything else passes, whatever the allows are.
fn default_deny(isolated: bool, mut rules: Vec<Rule>) -> DirectionRules {
    if isolated {
        return DirectionRules { enforced: true, rules };
    }
    rules.retain(|rule| rule.action == Action::Deny);
    if rules.is_empty() {
        return DirectionRules::default();
    }
    rules.push(Rule {
        origin: Origin::default(),
        action: Action::Allow,
        peers: Peers::Any,
        ports: Ports::Any,
        http: None,
    });
    DirectionRules { enforced: true, rules }
}

/// Whose port names count: always those of the pod that packets go to.
enum Destinations<'a> {
    Own(&'a [NamedPort]),
    Peers(&'a AllFacts),
}

impl Destinations<'_> {
    fn lower(&self, rule: &ResolvedRule<'_>, rules: &mut Vec<Rule>) {
        if matches!(&rule.peers, Peers::Identities(identities) if identities.is_empty()) {
            return;
        }
        for element in &rule.spec.ports {
            let mut push = |peers: Peers, ports: Ports| {
                rules.push(Rule {
                    origin: rule.origin.clone(),
                    action: rule.spec.action,
                    peers,
                    ports,
                    http: element.http.clone(),
                });
            };
            let PortList::Listed(list) = &element.ports else {
                push(rule.peers.clone(), Ports::Any);
                continue;
            };
            let numbers: Vec<_> = list.iter().filter_map(numbered).collect();
            let names: Vec<_> = list.iter().filter_map(named).collect();
            match self {
                Self::Own(own) => {
                    let mut ranges = numbers;
                    ranges.extend(names.iter().flat_map(|name| name.resolve(own)));
                    push_ranges(&mut push, rule.peers.clone(), ranges);
                }
                Self::Peers(all) => {
                    push_ranges(&mut push, rule.peers.clone(), numbers);
                    for (ranges, peers) in by_resolution(&names, &rule.peers, all) {
                        push_ranges(&mut push, Peers::Identities(peers), ranges);
                    }
                }
            }
        }
    }
}

fn push_ranges(push: &mut impl FnMut(Peers, Ports), peers: Peers, mut ranges: Vec<PortRange>) {
    ranges.sort_unstable();
    ranges.dedup();
    if !ranges.is_empty() {
        push(peers, Ports::Ranges(ranges));
    }
}

/// The peers that have such ports, grouped by what the names mean for them.
fn by_resolution(
    names: &[Name<'_>],
    peers: &Peers,
    all: &AllFacts,
) -> BTreeMap<Vec<PortRange>, BTreeSet<IdentityId>> {
    let mut groups: BTreeMap<Vec<PortRange>, BTreeSet<IdentityId>> = BTreeMap::new();
    if names.is_empty() {
        return groups;
    }
    let mut add = |id: IdentityId, facts: &IdentityFacts| {
        let ranges: Vec<_> = names.iter().flat_map(|name| name.resolve(&facts.named_ports)).collect();
        if !ranges.is_empty() {
            groups.entry(ranges).or_default().insert(id);
        }
    };
    match peers {
        Peers::Any => all.iter().for_each(|(&id, facts)| add(id, facts)),
        Peers::Identities(ids) => {
            ids.iter().filter_map(|id| all.get_key_value(id)).for_each(|(&id, facts)| add(id, facts));
        }
    }
    groups
}

fn numbered(port: &PortSpec) -> Option<PortRange> {
    match port.port {
        PortName::Numbers { first, last } => Some(PortRange { protocol: port.protocol, first, last }),
        PortName::Named(_) => None,
    }
}

fn named(port: &PortSpec) -> Option<Name<'_>> {
    match &port.port {
        PortName::Named(name) => Some(Name { protocol: port.protocol, name }),
        PortName::Numbers { .. } => None,
    }
}

/// A port by name.
struct Name<'a> {
    protocol: Option<Protocol>,
    name: &'a str,
}

impl Name<'_> {
    /// The ports of this name and protocol.
    fn resolve(&self, ports: &[NamedPort]) -> impl Iterator<Item = PortRange> {
        ports
            .iter()
            .filter(|port| port.name == self.name)
            .filter(|port| self.protocol.is_none_or(|protocol| protocol == port.protocol))
            .map(|port| PortRange { protocol: Some(port.protocol), first: port.port, last: port.port })
    }
}
