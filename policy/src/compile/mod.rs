//! From the [`World`] to a [`Snapshot`].

mod addresses;
mod resolve;
mod rulesets;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::identity::IdentityFacts;
use crate::manifest::{self, Policy};
use crate::{
    Action, EndpointPolicy, Identities, IdentityId, IdentityLabels, Labels, NamedPort, Pod, PolicyObject,
    Ruleset, Snapshot, SnapshotParts, World, identity,
};

/// Something that is wrong with what the engine was told, and what was made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object and the field: `CiliumNetworkPolicy production/api: spec.ingress[0].fromCIDR`.
    pub location: String,
    /// What is wrong and how to repair it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// Label that every namespace has in Kubernetes.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Compiles the world into the snapshot of this number, and lists what is wrong with it.
///
/// Never fails: what cannot be understood denies. Numbers of new identities come from `identities`; store them before
/// the snapshot is put in force.
pub fn compile(world: &World, identities: &mut Identities, number: u64) -> (Snapshot, Vec<Problem>) {
    let mut problems = Vec::new();
    let pods = policed_pods(world, &mut problems);
    let mut facts: BTreeMap<IdentityId, IdentityFacts> = BTreeMap::new();
    let mut pod_identities = Vec::with_capacity(pods.len());
    for pod in &pods {
        let own = facts_of(pod, world);
        let number = identities.number(&own);
        facts.entry(number).or_insert(own);
        pod_identities.push(number);
    }
    identities.forget_unused(&facts);
    if facts.remove(&identity::UNKNOWN).is_some() {
        let location = "identities".to_owned();
        problems.push(Problem {
            location,
            message: "all numbers are used up: start with a new state folder".into(),
        });
    }

    let policies = read_policies(&world.policies, &mut problems);
    let rules = resolve::resolve(&policies, &facts);
    let mut shared = SharedRulesets::default();
    let closed = shared.index(rulesets::closed());
    let by_identity: HashMap<IdentityId, usize> =
        facts.iter().map(|(&id, own)| (id, shared.index(rulesets::build(id, own, &rules, &facts)))).collect();

    let endpoints = pods.iter().zip(pod_identities).map(|(pod, identity)| EndpointPolicy {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        node: pod.node.clone(),
        addresses: Vec::new(),
        identity,
        labels: pod.labels.clone(),
        ruleset: by_identity.get(&identity).copied().unwrap_or(closed),
    });
    let mut endpoints: Vec<_> = endpoints.collect();
    let addresses = addresses::assign(world, &pods, &mut endpoints, closed, &mut problems);
    let this_node = world.nodes.iter().filter(|node| node.name == world.this_node);
    let parts = SnapshotParts {
        number,
        node: world.this_node.clone(),
        pod_networks: world.pod_networks.clone(),
        node_addresses: this_node.flat_map(|node| &node.addresses).map(|a| a.to_canonical()).collect(),
        identities: facts.iter().map(|(&id, own)| (id, labels_of(own))).collect(),
        addresses,
        endpoints,
        rulesets: shared.list,
    };
    let snapshot = Snapshot::from_parts(parts).unwrap_or_else(|error| {
        problems
            .push(Problem { location: "snapshot".into(), message: format!("{error}; everything is denied") });
        Snapshot::default()
    });
    (snapshot, problems)
}

/// The pods that policy applies to, in the order of endpoints.
fn policed_pods<'a>(world: &'a World, problems: &mut Vec<Problem>) -> Vec<&'a Pod> {
    let mut pods: Vec<&Pod> = world.pods.iter().filter(|pod| !pod.host_network).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    pods.dedup_by(|later, first| {
        let same = (&later.namespace, &later.name) == (&first.namespace, &first.name);
        if same {
            let location = format!("Pod {}/{}", later.namespace, later.name);
            let message = "given twice; only one of them gets any traffic: rename the other";
            problems.push(Problem { location, message: message.into() });
        }
        same
    });
    pods
}

fn facts_of(pod: &Pod, world: &World) -> IdentityFacts {
    let mut namespace_labels = world.namespaces.get(&pod.namespace).cloned().unwrap_or_default();
    namespace_labels.insert(NAMESPACE_NAME_LABEL.to_owned(), pod.namespace.clone());
    let account = if pod.service_account.is_empty() { "default" } else { &pod.service_account };
    let lower = |port: &NamedPort| NamedPort { name: port.name.to_ascii_lowercase(), ..port.clone() };
    let mut named_ports: Vec<_> = pod.named_ports.iter().map(lower).collect();
    named_ports.sort_unstable();
    named_ports.dedup();
    IdentityFacts {
        namespace: pod.namespace.clone(),
        pod_labels: pod.labels.clone(),
        namespace_labels,
        service_account: account.to_owned(),
        named_ports,
    }
}

/// What is shown of an identity: a pod's labels, and under reserved names only what the cluster itself knows.
fn labels_of(facts: &IdentityFacts) -> IdentityLabels {
    let own = facts.pod_labels.iter().filter(|(key, _)| manifest::is_own_label(key));
    let mut labels: Labels = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    for (key, value) in &facts.namespace_labels {
        labels.insert(format!("{}{key}", manifest::NAMESPACE_LABELS_PREFIX), value.clone());
    }
    labels.insert(manifest::NAMESPACE_KEY.to_owned(), facts.namespace.clone());
    labels.insert(manifest::SERVICE_ACCOUNT_KEY.to_owned(), facts.service_account.clone());
    labels.insert(manifest::CLUSTER_KEY.to_owned(), manifest::CLUSTER.to_owned());
    IdentityLabels { namespace: facts.namespace.clone(), labels }
}

/// Reads all policies, in the order in which they are named.
fn read_policies(objects: &[PolicyObject], problems: &mut Vec<Problem>) -> Vec<Policy> {
    let mut ordered: Vec<&PolicyObject> = objects.iter().collect();
    ordered.sort_by_key(|object| (object.kind, &object.namespace, &object.name));
    let mut seen = HashSet::new();
    let mut policies = Vec::with_capacity(ordered.len());
    for object in ordered {
        let mut policy = manifest::read(object, problems);
        if !seen.insert((object.kind, &object.namespace, &object.name)) {
            let location = policy.origin.to_string();
            let message =
                "given twice; the second one isolates whom it selects and allows nothing: rename it";
            problems.push(Problem { location, message: message.into() });
            for spec in &mut policy.specs {
                spec.ingress.rules.retain(|rule| rule.action == Action::Deny);
                spec.egress.rules.retain(|rule| rule.action == Action::Deny);
            }
        }
        policies.push(policy);
    }
    policies
}

/// Rulesets, equal ones once.
#[derive(Default)]
struct SharedRulesets {
    list: Vec<Arc<Ruleset>>,
    known: HashMap<Arc<Ruleset>, usize>,
}

impl SharedRulesets {
    fn index(&mut self, ruleset: Ruleset) -> usize {
        let ruleset = Arc::new(ruleset);
        *self.known.entry(ruleset).or_insert_with_key(|ruleset| {
            self.list.push(Arc::clone(ruleset));
            self.list.len() - 1
        })
    }
}
