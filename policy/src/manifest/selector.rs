//! Label selectors of both policy languages, as one list of requirements on what an identity stands for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::reader::Reader;
use crate::identity::IdentityFacts;

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
        let value = self.key.value(facts);
        match &self.operator {
            Operator::Is(expected) => value == Some(expected),
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
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
        Some((source, _)) => {
            return Err(format!("label source `{source}` is not supported yet: only `k8s:` and `any:` are"));
        }
    };
    if let Some(label) = name.strip_prefix(NAMESPACE_LABELS_PREFIX) {
        check_key(label)?;
        return Ok(Key::NamespaceLabel(label.to_owned()));
    }
    match name {
        NAMESPACE_KEY => Ok(Key::Namespace),
        SERVICE_ACCOUNT_KEY => Ok(Key::ServiceAccount),
        CLUSTER_KEY => Ok(Key::Cluster),
        name if !is_own_label(name) => Err(format!("`{name}` is not a label that the cluster gives to pods")),
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
