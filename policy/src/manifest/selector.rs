//! Label selectors of both policy languages, as one list of requirements on what an identity stands for.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::reader::Reader;
use crate::identity::{self, IdentityFacts, IdentityId};

/// The cluster's name, until there is more than one.
pub(crate) const CLUSTER: &str = "default";

/// Label of a pod's namespace in Cilium's selectors.
pub(crate) const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// Before the labels of a pod's namespace.
pub(crate) const NAMESPACE_LABELS_PREFIX: &str = "io.cilium.k8s.namespace.labels.";
/// Label of a pod's service account.
pub(crate) const SERVICE_ACCOUNT_KEY: &str = "io.cilium.k8s.policy.serviceaccount";
/// Label of a pod's cluster.
pub(crate) const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";
/// Keys that say what the cluster knows about a pod. A pod's own labels of that name are not believed.
const DERIVED_PREFIX: &str = "io.cilium.k8s.";

/// All requirements must hold; none: everything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: Key,
    operator: Operator,
}

/// What a requirement looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    PodLabel(String),
    Namespace,
    NamespaceLabel(String),
    ServiceAccount,
    Cluster,
    /// A label of source `reserved`: Cilium gives these to peers other than pods, and to kinds of
    /// pods that do not exist here.
    Reserved(String),
    /// A label that no pod has, of this source.
    Foreign(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    /// Written in `matchLabels`.
    Is(String),
    In(Vec<String>),
    /// Holds without the key, too.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// Sources of labels that Cilium gives to addresses, names and nodes: such selectors are not only
/// about pods.
const SOURCES_OF_ADDRESSES: [&str; 4] = ["cidr", "cidrgroup", "fqdn", "node"];

/// Which dialect keys are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Keys have an optional source and may name what the cluster knows.
    Cilium,
    /// Keys are labels of a pod.
    Pod,
    /// Keys are labels of a namespace.
    Namespace,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSelector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<RawExpression>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpression {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

impl Selector {
    /// Every pod of a namespace; with an empty name, of the cluster.
    pub(super) fn all_of_namespace(namespace: &str) -> Self {
        let mut selector = Self::default();
        if !namespace.is_empty() {
            selector.require_namespace(namespace);
        }
        selector
    }

    /// Reads a selector; None and a problem if it cannot be one.
    pub(super) fn read(
        value: &Value,
        dialect: Dialect,
        place: &str,
        reader: &mut Reader<'_>,
    ) -> Option<Self> {
        let raw: RawSelector = reader.read(value, place)?;
        let mut requirements = Vec::new();
        for (key, value) in raw.match_labels.into_iter().flatten() {
            let place = format!("{place}.matchLabels[{key}]");
            let requirement = parse_key(&key, dialect).and_then(|key| {
                check_value(&value)?;
                Ok(Requirement { key, operator: Operator::Is(value) })
            });
            requirements.push(noted(requirement, &place, reader)?);
        }
        for (index, expression) in raw.match_expressions.into_iter().flatten().enumerate() {
            let place = format!("{place}.matchExpressions[{index}]");
            requirements.push(noted(parse_expression(expression, dialect), &place, reader)?);
        }
        Some(Self { requirements })
    }

    /// Whether the identity is selected.
    pub(crate) fn matches(&self, facts: &IdentityFacts) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(facts))
    }

    /// The only namespaces it can select from, if it says so: saves looking at all others.
    pub(crate) fn namespaces(&self) -> Option<&[String]> {
        self.requirements.iter().find_map(|requirement| match requirement {
            Requirement { key: Key::Namespace, operator: Operator::Is(name) } => {
                Some(std::slice::from_ref(name))
            }
            Requirement { key: Key::Namespace, operator: Operator::In(names) } => Some(names.as_slice()),
            _ => None,
        })
    }

    /// Selects from this namespace only.
    pub(super) fn require_namespace(&mut self, namespace: &str) {
        let operator = Operator::Is(namespace.to_owned());
        self.requirements.insert(0, Requirement { key: Key::Namespace, operator });
    }

    /// The reserved identities it selects, if it asks for a reserved label; an empty list if no
    /// identity here has that label. Err: it may select peers that have no identity of their own
    /// here.
    pub(super) fn reserved(&self) -> Result<Option<Vec<IdentityId>>, String> {
        if let Some(source) = self.requirements.iter().find_map(|requirement| match &requirement.key {
            Key::Foreign(source) if SOURCES_OF_ADDRESSES.contains(&source.as_str()) => Some(source),
            _ => None,
        }) {
            return Err(format!("label source `{source}` selects no pods, and is not supported yet"));
        }
        let about_reserved = |requirement: &&Requirement| matches!(requirement.key, Key::Reserved(_));
        let Some(first) = self.requirements.iter().find(about_reserved) else { return Ok(None) };
        let asks = |requirement: &Requirement| !requirement.operator.holds(None);
        if !self.requirements.iter().filter(about_reserved).any(asks) {
            return Err(format!("only pods can be selected by {} that they do not have", first.key));
        }
        let selected = |name: &str| {
            self.requirements.iter().all(|requirement| {
                let has = matches!(&requirement.key, Key::Reserved(label) if label == name);
                requirement.operator.holds(has.then_some(""))
            })
        };
        if selected("kube-apiserver") {
            return Err("the API server is not told apart from other addresses yet".to_owned());
        }
        let known = [identity::HOST, identity::REMOTE_NODE, identity::WORLD];
        let is_selected = |id: &IdentityId| identity::reserved_name(*id).is_some_and(selected);
        Ok(Some(known.into_iter().filter(is_selected).collect()))
    }

    /// Whether it says anything about namespaces itself.
    pub(super) fn names_namespaces(&self) -> bool {
        let about = |key: &Key| matches!(key, Key::Namespace | Key::NamespaceLabel(_));
        self.requirements.iter().any(|requirement| about(&requirement.key))
    }

    /// Takes `matchLabels` on another namespace out, as Cilium does where only the own one can be meant.
    pub(super) fn drop_other_namespaces(&mut self, own: &str) -> bool {
        let before = self.requirements.len();
        self.requirements.retain(|requirement| match requirement {
            Requirement { key: Key::Namespace, operator: Operator::Is(name) } => name == own,
            _ => true,
        });
        self.requirements.len() != before
    }

    /// Both must hold.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.requirements.extend(other.requirements);
        self
    }
}

impl Requirement {
    fn holds(&self, facts: &IdentityFacts) -> bool {
        self.operator.holds(self.key.value(facts))
    }
}

impl Operator {
    /// Of the value of a label; None: it is not there.
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Is(expected) => value == Some(expected),
            Self::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodLabel(name) => write!(f, "`{name}`"),
            Self::Namespace => write!(f, "`{NAMESPACE_KEY}`"),
            Self::NamespaceLabel(name) => write!(f, "`{NAMESPACE_LABELS_PREFIX}{name}`"),
            Self::ServiceAccount => write!(f, "`{SERVICE_ACCOUNT_KEY}`"),
            Self::Cluster => write!(f, "`{CLUSTER_KEY}`"),
            Self::Reserved(name) => write!(f, "`reserved:{name}`"),
            Self::Foreign(source) => write!(f, "labels of source `{source}`"),
        }
    }
}

impl Key {
    fn value<'a>(&self, facts: &'a IdentityFacts) -> Option<&'a str> {
        match self {
            Self::PodLabel(name) => facts.pod_labels.get(name).map(String::as_str),
            Self::Namespace => Some(&facts.namespace),
            Self::NamespaceLabel(name) => facts.namespace_labels.get(name).map(String::as_str),
            Self::ServiceAccount => Some(&facts.service_account),
            Self::Cluster => Some(CLUSTER),
            Self::Reserved(_) | Self::Foreign(_) => None,
        }
    }
}

/// Whether a pod's own label of this name counts for Cilium's policies.
pub(crate) fn is_own_label(key: &str) -> bool {
    key != NAMESPACE_KEY && !key.starts_with(DERIVED_PREFIX)
}

fn noted<T>(result: Result<T, String>, place: &str, reader: &mut Reader<'_>) -> Option<T> {
    result.map_err(|message| reader.problem(place, message)).ok()
}

fn parse_expression(raw: RawExpression, dialect: Dialect) -> Result<Requirement, String> {
    let key = parse_key(&raw.key, dialect)?;
    let values = raw.values.unwrap_or_default();
    values.iter().try_for_each(|value| check_value(value))?;
    let operator = match (raw.operator.as_str(), values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => {
            return Err(format!("operator `{}` needs at least one value", raw.operator));
        }
        ("Exists" | "DoesNotExist", false) => {
            return Err(format!("operator `{}` takes no values", raw.operator));
        }
        (other, _) => {
            return Err(format!("`{other}` is no operator: write In, NotIn, Exists or DoesNotExist"));
        }
    };
    Ok(Requirement { key, operator })
}

fn parse_key(key: &str, dialect: Dialect) -> Result<Key, String> {
    if dialect != Dialect::Cilium {
        check_key(key)?;
        let name = key.to_owned();
        return Ok(if dialect == Dialect::Pod { Key::PodLabel(name) } else { Key::NamespaceLabel(name) });
    }
    let name = match key.split_once(':') {
        None => key,
        Some(("k8s" | "any", name)) => name,
        Some(("reserved", name)) => return Ok(Key::Reserved(name.to_owned())),
        Some((source, _)) => return Ok(Key::Foreign(source.to_owned())),
    };
    if let Some(label) = name.strip_prefix(NAMESPACE_LABELS_PREFIX) {
        check_key(label)?;
        return Ok(Key::NamespaceLabel(label.to_owned()));
    }
    match name {
        NAMESPACE_KEY => Ok(Key::Namespace),
        SERVICE_ACCOUNT_KEY => Ok(Key::ServiceAccount),
        CLUSTER_KEY => Ok(Key::Cluster),
        // What Cilium may give to pods, and is not given to any here.
        name if !is_own_label(name) => Ok(Key::Foreign("k8s".to_owned())),
        name => {
            check_key(name)?;
            Ok(Key::PodLabel(name.to_owned()))
        }
    }
}

/// Kubernetes' rule for label keys: `[dns.subdomain/]name`.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_fits = prefix.is_none_or(|prefix| {
        prefix.len() <= 253
            && prefix
                .split('.')
                .all(|part| is_name(part, |c| c.is_ascii_lowercase() || c.is_ascii_digit(), "-"))
    });
    if prefix_fits && name.len() <= 63 && is_name(name, |c| c.is_ascii_alphanumeric(), "-_.") {
        return Ok(());
    }
    Err(format!("`{key}` cannot be the key of a label"))
}

/// Kubernetes' rule for label values: a name or empty.
fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || (value.len() <= 63 && is_name(value, |c| c.is_ascii_alphanumeric(), "-_.")) {
        return Ok(());
    }
    Err(format!("`{value}` cannot be the value of a label"))
}

/// Not empty, and `inner` characters only between `outer` ones.
fn is_name(text: &str, outer: fn(char) -> bool, inner: &str) -> bool {
    text.starts_with(outer) && text.ends_with(outer) && text.chars().all(|c| outer(c) || inner.contains(c))
}
