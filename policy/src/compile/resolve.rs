//! Selectors of all policies, resolved against all identities once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::identity::IdentityFacts;
use crate::manifest::{DirectionSpec, PeersSpec, Policy, RuleSpec, Selector};
use crate::{Action, Direction, IdentityId, Origin, Peers, identity};

/// Identities and what they stand for.
pub(super) type AllFacts = BTreeMap<IdentityId, IdentityFacts>;

/// One direction of one spec, with its selectors resolved.
pub(super) struct ResolvedDirection<'a> {
    pub(super) isolates: bool,
    /// In the order of their numbers, as the manifest has them.
    pub(super) rules: Vec<ResolvedRule<'a>>,
}

pub(super) struct ResolvedRule<'a> {
    pub(super) origin: Origin,
    pub(super) peers: Peers,
    pub(super) spec: &'a RuleSpec,
}

/// What selects an identity, in the order in which policies are named.
pub(super) struct Resolved<'a> {
    directions: Vec<[ResolvedDirection<'a>; 2]>,
    selected_by: HashMap<IdentityId, Vec<usize>>,
}

impl<'a> Resolved<'a> {
    /// Everything that speaks about one direction of an identity.
    pub(super) fn about(
        &self,
        identity: IdentityId,
        direction: Direction,
    ) -> impl Iterator<Item = &ResolvedDirection<'a>> + Clone {
        let index = usize::from(direction == Direction::Egress);
        let specs = self.selected_by.get(&identity).map(Vec::as_slice).unwrap_or_default();
        specs.iter().filter_map(move |&spec| self.directions.get(spec).map(|pair| &pair[index]))
    }
}

/// Identities by namespace: most selectors speak of one.
struct Index<'a> {
    facts: &'a AllFacts,
    by_namespace: HashMap<&'a str, Vec<IdentityId>>,
}

impl Index<'_> {
    fn selected(&self, selector: &Selector) -> BTreeSet<IdentityId> {
        let fits = |id: &IdentityId| self.facts.get(id).is_some_and(|facts| selector.matches(facts));
        match selector.namespaces() {
            Some(names) => {
                let candidates = names.iter().filter_map(|name| self.by_namespace.get(name.as_str()));
                candidates.flatten().copied().filter(fits).collect()
            }
            None => self.facts.keys().copied().filter(fits).collect(),
        }
    }

    fn peers(&self, spec: &PeersSpec, action: Action) -> Peers {
        let PeersSpec::Selected { selectors, reserved, every_pod } = spec else { return Peers::Any };
        let mut identities: BTreeSet<IdentityId> = reserved.iter().copied().collect();
        // A pod that nobody has announced yet may be one of those that are denied.
        if action == Action::Deny && !selectors.is_empty() {
            identities.insert(identity::UNKNOWN);
        }
        if *every_pod {
            identities.extend(self.facts.keys());
        }
        for selector in selectors {
            identities.append(&mut self.selected(selector));
        }
        Peers::Identities(identities)
    }

    fn direction<'a>(&self, policy: &Origin, spec: &'a DirectionSpec) -> ResolvedDirection<'a> {
        let rules = spec.rules.iter().map(|rule| ResolvedRule {
            origin: Origin { rule: Some(rule.index), deny: rule.action == Action::Deny, ..policy.clone() },
            peers: self.peers(&rule.peers, rule.action),
            spec: rule,
        });
        let mut rules: Vec<_> = rules.collect();
        rules.sort_by_key(|rule| (rule.spec.index, !rule.origin.deny));
        ResolvedDirection { isolates: spec.isolates, rules }
    }
}

/// Resolves all policies, which must be in the order in which they are to be named.
pub(super) fn resolve<'a>(policies: &'a [Policy], facts: &AllFacts) -> Resolved<'a> {
    let mut index = Index { facts, by_namespace: HashMap::new() };
    for (&id, own) in facts {
        index.by_namespace.entry(&own.namespace).or_default().push(id);
    }
    let mut resolved = Resolved { directions: Vec::new(), selected_by: HashMap::new() };
    for (policy, spec) in
        policies.iter().flat_map(|policy| policy.specs.iter().map(move |spec| (policy, spec)))
    {
        let subjects = index.selected(&spec.subject);
        if subjects.is_empty() {
            continue;
        }
        for subject in subjects {
            resolved.selected_by.entry(subject).or_default().push(resolved.directions.len());
        }
        let direction = |direction| index.direction(&policy.origin, direction);
        resolved.directions.push([direction(&spec.ingress), direction(&spec.egress)]);
    }
    resolved
}
