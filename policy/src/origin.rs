use std::fmt;
use std::sync::Arc;

use crate::{Direction, PolicyKind};

/// Where a verdict comes from. Cheap to clone: requests carry it.
///
/// `Origin::default()` is the implicit default: denied because no rule allows, or allowed because no policy selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// [`PolicyKind::name`] of the policy; empty for the implicit default.
    pub kind: &'static str,
    /// Namespace of the policy; empty for a cluster-wide one.
    pub namespace: Arc<str>,
    /// Name of the policy.
    pub name: Arc<str>,
    /// Index of the rule within the direction's list of the manifest, counted from 0 over all `specs`.
    /// None: the policy as a whole.
    pub rule: Option<u32>,
    /// Index within that rule's `rules.http`, counted from 0 over its `toPorts`.
    pub http_rule: Option<u32>,
    /// The rule stands in `ingressDeny` or `egressDeny`.
    pub deny: bool,
}

impl Origin {
    /// The policy as a whole.
    pub fn policy(kind: PolicyKind, namespace: &str, name: &str) -> Self {
        Self { kind: kind.name(), namespace: namespace.into(), name: name.into(), ..Self::default() }
    }

    /// Whether no policy object stands behind it.
    pub fn is_default(&self) -> bool {
        self.kind.is_empty()
    }

    /// The same, down to a rule of `rules.http`.
    pub fn with_http_rule(&self, index: u32) -> Self {
        Self { http_rule: Some(index), ..self.clone() }
    }

    /// In full: `CiliumNetworkPolicy production/api-l7-policy ingress[0].http[1]`.
    pub fn describe(&self, direction: Direction) -> String {
        let mut text = self.to_string();
        if let Some(rule) = self.rule {
            let list = if self.deny { "Deny" } else { "" };
            text.push_str(&format!(" {direction}{list}[{rule}]"));
            if let Some(http_rule) = self.http_rule {
                text.push_str(&format!(".http[{http_rule}]"));
            }
        }
        text
    }
}

/// The policy without the rule: which list a rule index counts in depends on the direction, see [`Origin::describe`].
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_default() {
            return f.write_str("implicit default");
        }
        f.write_str(self.kind)?;
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}
