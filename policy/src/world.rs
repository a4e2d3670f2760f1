//! What the engine is told: the cluster as the agent sees it now.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Protocol;

/// Labels of a Kubernetes object.
pub type Labels = BTreeMap<String, String>;

/// Everything that a snapshot is compiled from.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Name of the node that the snapshot is for.
    pub this_node: String,
    /// Address ranges that pods of the whole cluster live in.
    pub pod_networks: Vec<IpNet>,
    /// Namespaces and their labels. `kubernetes.io/metadata.name` is added if it is missing.
    pub namespaces: BTreeMap<String, Labels>,
    /// Running pods of the whole cluster. Finished ones must be left out: their addresses are others' by now.
    pub pods: Vec<Pod>,
    /// Nodes of the cluster, this one too.
    pub nodes: Vec<Node>,
    /// Policy objects of every supported kind, as they were written.
    pub policies: Vec<PolicyObject>,
}

/// A pod, as far as policy is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`; empty if the source has none.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.serviceAccountName`; empty is read as `default`.
    pub service_account: String,
    /// Its addresses, as announced; none yet is fine.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: String,
    /// Ports of its containers that have a name.
    pub named_ports: Vec<NamedPort>,
    /// `spec.hostNetwork`: it speaks as its node and no policy selects it.
    pub host_network: bool,
}

/// A container port that policy may refer to by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name, compared without case.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The ranges its pods get their addresses from.
    pub pod_ranges: Vec<IpNet>,
}

/// A policy object as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    /// What it is.
    pub kind: PolicyKind,
    /// Its namespace; empty for a cluster-wide one.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The whole object, `apiVersion` to `spec`.
    pub manifest: serde_json::Value,
}

/// Kinds of policy objects. They sort as their names do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `cilium.io/v2`, for all namespaces.
    CiliumClusterwideNetworkPolicy,
    /// `cilium.io/v2`, of one namespace.
    CiliumNetworkPolicy,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
}

impl PolicyKind {
    /// Every kind.
    pub const ALL: [Self; 3] =
        [Self::CiliumClusterwideNetworkPolicy, Self::CiliumNetworkPolicy, Self::NetworkPolicy];

    /// `kind` of the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// `apiVersion` of the object.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::CiliumClusterwideNetworkPolicy | Self::CiliumNetworkPolicy => "cilium.io/v2",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
