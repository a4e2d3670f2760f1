//! From manifests as people write them to records that the compiler can resolve against pods.
//!
//! What is wrong, unknown or not supported yet becomes a [`Problem`] and denies, in the smallest part that can be
//! refused alone: one rule of `rules.http`, one element of `ingress`, one spec. An allow that is refused allows
//! nothing, a deny that is refused denies everything, a spec that is refused isolates what it may have selected.

mod cilium;
mod element;
mod fix;
mod http_rule;
mod network_policy;
mod ports;
mod reader;
mod selector;

use crate::{Action, HttpRule, IdentityId, Origin, PolicyKind, PolicyObject, Problem, Protocol};
use reader::Reader;
pub(crate) use selector::{
    CLUSTER, CLUSTER_KEY, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, SERVICE_ACCOUNT_KEY, Selector, is_own_label,
};

/// A policy object, read.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) origin: Origin,
    pub(crate) specs: Vec<Spec>,
}

/// One `spec`: whom it selects and what it says about them.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) subject: Selector,
    pub(crate) ingress: DirectionSpec,
    pub(crate) egress: DirectionSpec,
}

/// One direction of a spec.
#[derive(Debug, Default)]
pub(crate) struct DirectionSpec {
    /// Whoever is selected is denied by default.
    pub(crate) isolates: bool,
    pub(crate) rules: Vec<RuleSpec>,
}

/// One element of `ingress`, `ingressDeny`, `egress` or `egressDeny`.
#[derive(Clone, Debug)]
pub(crate) struct RuleSpec {
    /// Index in its list, over all specs.
    pub(crate) index: u32,
    pub(crate) action: Action,
    pub(crate) peers: PeersSpec,
    pub(crate) ports: Vec<PortsSpec>,
}

impl RuleSpec {
    /// Stands for a deny that could not be read.
    fn deny_everything(index: u32) -> Self {
        Self { index, action: Action::Deny, peers: PeersSpec::Any, ports: vec![PortsSpec::any()] }
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug)]
pub(crate) enum PeersSpec {
    Any,
    Selected { selectors: Vec<Selector>, reserved: Vec<IdentityId>, every_pod: bool },
}

/// One element of `toPorts`.
#[derive(Clone, Debug)]
pub(crate) struct PortsSpec {
    pub(crate) ports: PortList,
    pub(crate) http: Option<Vec<HttpRule>>,
}

impl PortsSpec {
    fn any() -> Self {
        Self { ports: PortList::Any, http: None }
    }
}

/// Ports, names not resolved yet.
#[derive(Clone, Debug)]
pub(crate) enum PortList {
    Any,
    Listed(Vec<PortSpec>),
}

/// A port as it is written.
#[derive(Clone, Debug)]
pub(crate) struct PortSpec {
    /// None: TCP, UDP and SCTP.
    pub(crate) protocol: Option<Protocol>,
    pub(crate) port: PortName,
}

/// A number or a name.
#[derive(Clone, Debug)]
pub(crate) enum PortName {
    Numbers {
        first: u16,
        last: u16,
    },
    /// In lower case; resolved for each destination pod.
    Named(String),
}

/// Reads a policy object. Never fails: what cannot be read denies.
pub(crate) fn read(object: &PolicyObject, problems: &mut Vec<Problem>) -> Policy {
    let mut reader = Reader::new(object, problems);
    let read = match object.kind {
        PolicyKind::NetworkPolicy => network_policy::read(object, &mut reader),
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy => {
            cilium::read(object, &mut reader)
        }
    };
    let specs = read.unwrap_or_else(|| vec![isolate(Selector::all_of_namespace(&object.namespace))]);
    Policy { origin: Origin::policy(object.kind, &object.namespace, &object.name), specs }
}

/// A spec that selects and allows nothing, in both directions.
fn isolate(subject: Selector) -> Spec {
    let closed = || DirectionSpec { isolates: true, rules: Vec::new() };
    Spec { subject, ingress: closed(), egress: closed() }
}
