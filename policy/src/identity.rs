//! Identities: numbers local to a node for sets of labels. Policy speaks of labels, packets of addresses; the number
//! stands between them. Numbers are never reused, so a rule written for one can never speak of another.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{Labels, NamedPort};

/// Number of an identity.
pub type IdentityId = u32;

/// A process of the node itself.
pub const HOST: IdentityId = 1;
/// Everything outside of the cluster.
pub const WORLD: IdentityId = 2;
/// An address of the pod network that no pod claims yet. Only rules for all peers or for the cluster speak of it.
pub const UNKNOWN: IdentityId = 3;
/// A process of another node.
pub const REMOTE_NODE: IdentityId = 6;
/// Numbers below are reserved.
pub const FIRST_LOCAL: IdentityId = 256;

/// Identities without a pod that are kept in case their labels come back: the pods of a few
/// roll-outs. Every new identity writes the whole file again, so what is kept costs each change.
/// Labels that return later get a new number.
const MAX_UNUSED: usize = 1024;

/// Name of a reserved identity, as Cilium prints it without `reserved:`.
pub const fn reserved_name(identity: IdentityId) -> Option<&'static str> {
    match identity {
        HOST => Some("host"),
        WORLD => Some("world"),
        UNKNOWN => Some("unknown"),
        REMOTE_NODE => Some("remote-node"),
        _ => None,
    }
}

/// What an identity stands for, for display.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityLabels {
    /// Namespace of its pods.
    pub namespace: String,
    /// Their labels, and those that Cilium derives (`io.kubernetes.pod.namespace`,
    /// `io.cilium.k8s.namespace.labels.*`, `io.cilium.k8s.policy.*`). All of source `k8s`.
    pub labels: Labels,
}

/// Everything policy can tell pods apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdentityFacts {
    pub(crate) namespace: String,
    pub(crate) pod_labels: Labels,
    pub(crate) namespace_labels: Labels,
    pub(crate) service_account: String,
    /// Sorted. Named ports resolve per destination pod, so pods that differ in them are different peers.
    pub(crate) named_ports: Vec<NamedPort>,
}

impl IdentityFacts {
    /// One text for one set of facts: every part is written with its length, so no two sets give the same.
    fn key(&self) -> String {
        let mut key = String::new();
        let mut put = |text: &str| {
            key.push_str(&text.len().to_string());
            key.push(':');
            key.push_str(text);
        };
        put(&self.namespace);
        put(&self.service_account);
        for labels in [&self.pod_labels, &self.namespace_labels] {
            put(&labels.len().to_string());
            for (name, value) in labels {
                put(name);
                put(value);
            }
        }
        for port in &self.named_ports {
            put(&port.name);
            put(&port.protocol.number().to_string());
            put(&port.port.to_string());
        }
        key
    }
}

/// An identity as the agent stores it, so that numbers stay the same after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityEntry {
    /// Its number.
    pub number: IdentityId,
    /// What it stands for: opaque, compared byte for byte.
    pub key: String,
}

/// Hands out the numbers.
#[derive(Clone, Debug)]
pub struct Identities {
    next: IdentityId,
    numbers: HashMap<String, IdentityId>,
}

impl Default for Identities {
    fn default() -> Self {
        Self { next: FIRST_LOCAL, numbers: HashMap::new() }
    }
}

impl Identities {
    /// What to store: the number that comes next and all entries, by number. Store both or neither.
    pub fn entries(&self) -> (IdentityId, Vec<IdentityEntry>) {
        let mut entries: Vec<_> =
            self.numbers.iter().map(|(key, &number)| IdentityEntry { number, key: key.clone() }).collect();
        entries.sort_unstable_by_key(|entry| entry.number);
        (self.next, entries)
    }

    /// From what was stored. Entries that cannot be (reserved or repeated numbers) are left out: their labels get
    /// new numbers, and the next number is above every one that was ever stored.
    pub fn from_entries(next: IdentityId, entries: impl IntoIterator<Item = IdentityEntry>) -> Self {
        let mut identities = Self { next: next.max(FIRST_LOCAL), numbers: HashMap::new() };
        let mut used = HashSet::new();
        for IdentityEntry { number, key } in entries {
            identities.next = identities.next.max(number.saturating_add(1));
            if number >= FIRST_LOCAL && used.insert(number) {
                identities.numbers.insert(key, number);
            }
        }
        identities
    }

    /// The number of a set of facts, a new one if it has none yet. [`UNKNOWN`] once all numbers are used up.
    pub(crate) fn number(&mut self, facts: &IdentityFacts) -> IdentityId {
        let key = facts.key();
        if let Some(&number) = self.numbers.get(&key) {
            return number;
        }
        let Some(next) = self.next.checked_add(1) else { return UNKNOWN };
        let number = std::mem::replace(&mut self.next, next);
        self.numbers.insert(key, number);
        number
    }

    /// Forgets identities that no pod has, the lowest numbers first, once there are more than
    /// [`MAX_UNUSED`]. Half of these stay, so that the next new identity does not sort them again.
    pub(crate) fn forget_unused<T>(&mut self, in_use: &BTreeMap<IdentityId, T>) {
        if self.numbers.len() <= in_use.len() + MAX_UNUSED {
            return;
        }
        let mut unused: Vec<_> =
            self.numbers.values().copied().filter(|number| !in_use.contains_key(number)).collect();
        unused.sort_unstable();
        let kept_from = unused.len().saturating_sub(MAX_UNUSED / 2);
        if let Some(&first_kept) = unused.get(kept_from) {
            self.numbers.retain(|_, number| *number >= first_kept || in_use.contains_key(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(app: usize) -> IdentityFacts {
        IdentityFacts {
            namespace: "shop".to_owned(),
            pod_labels: [("app".to_owned(), app.to_string())].into(),
            namespace_labels: Labels::new(),
            service_account: String::new(),
            named_ports: Vec::new(),
        }
    }

    #[test]
    fn unused_identities_are_forgotten_and_no_number_is_given_twice() {
        let mut identities = Identities::default();
        let stays = identities.number(&facts(0));
        let in_use = BTreeMap::from([(stays, ())]);
        let mut given = HashSet::from([stays]);
        let mut most = 0;
        for app in 1..10 * MAX_UNUSED {
            assert!(given.insert(identities.number(&facts(app))), "identity of app {app}");
            identities.forget_unused(&in_use);
            most = most.max(identities.numbers.len());
        }
        assert!(most <= MAX_UNUSED + 2, "{most} entries");
        assert_eq!(identities.number(&facts(0)), stays);
        let newest = 10 * MAX_UNUSED - 1;
        let known = identities.number(&facts(newest));
        assert!(given.contains(&known), "the newest unused identity is kept");
        assert!(given.insert(identities.number(&facts(1))), "a forgotten identity gets a new number");
    }
}
