//! The compiled policy of the cluster as one node sees it, under one number.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{IdentityId, IdentityLabels, Labels, Ruleset, identity};

/// A numbered, immutable answer book. `Snapshot::default()` knows nobody and so allows no pod anything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    parts: SnapshotParts,
    by_address: HashMap<IpAddr, usize>,
}

/// What a snapshot consists of: all that travels, and all that can be read from a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotParts {
    /// Later ones have larger numbers; 0 is "none yet".
    pub number: u64,
    /// The node it is for.
    pub node: String,
    /// Address ranges that pods of the whole cluster live in.
    pub pod_networks: Vec<IpNet>,
    /// This node's own addresses.
    pub node_addresses: Vec<IpAddr>,
    /// What the identities of pods stand for; reserved ones are not listed.
    pub identities: BTreeMap<IdentityId, IdentityLabels>,
    /// Pods everywhere, and nodes: [`identity::HOST`] for this one, [`identity::REMOTE_NODE`] for others.
    pub addresses: HashMap<IpAddr, IdentityId>,
    /// All pods of the cluster that policy applies to, sorted by namespace and name.
    pub endpoints: Vec<EndpointPolicy>,
    /// What [`EndpointPolicy::ruleset`] counts in.
    pub rulesets: Vec<Arc<Ruleset>>,
}

/// A pod and the rules it is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Node it runs on.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its identity.
    pub identity: IdentityId,
    /// Its own labels.
    pub labels: Labels,
    /// Index into [`SnapshotParts::rulesets`].
    pub ruleset: usize,
}

/// Why parts do not make a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// An endpoint points past the end of the rulesets.
    #[error("endpoints[{endpoint}].ruleset is {ruleset}, but there are only {rulesets} rulesets")]
    NoSuchRuleset {
        /// Index of the endpoint.
        endpoint: usize,
        /// What it says.
        ruleset: usize,
        /// How many there are.
        rulesets: usize,
    },
    /// Two endpoints have the same address.
    #[error("endpoints[{endpoint}].addresses: {address} is another endpoint's already")]
    AddressTwice {
        /// Index of the second one.
        endpoint: usize,
        /// The address.
        address: IpAddr,
    },
    /// Endpoints are not in order, or two have the same name.
    #[error("endpoints[{endpoint}] does not come after the one before it by namespace and name")]
    Unordered {
        /// Index of the second one.
        endpoint: usize,
    },
}

impl Snapshot {
    /// Checks the parts and indexes them.
    pub fn from_parts(parts: SnapshotParts) -> Result<Self, SnapshotError> {
        let mut by_address = HashMap::with_capacity(parts.endpoints.len());
        for (index, endpoint) in parts.endpoints.iter().enumerate() {
            if endpoint.ruleset >= parts.rulesets.len() {
                let (ruleset, rulesets) = (endpoint.ruleset, parts.rulesets.len());
                return Err(SnapshotError::NoSuchRuleset { endpoint: index, ruleset, rulesets });
            }
            let in_order = index == 0 || parts.endpoints[index - 1].key() < endpoint.key();
            if !in_order {
                return Err(SnapshotError::Unordered { endpoint: index });
            }
            for &address in &endpoint.addresses {
                if by_address.insert(address, index).is_some() {
                    return Err(SnapshotError::AddressTwice { endpoint: index, address });
                }
            }
        }
        Ok(Self { parts, by_address })
    }

    /// The identity that packets of this address have, as this node sees it.
    pub fn identity_of(&self, address: IpAddr) -> IdentityId {
        let address = address.to_canonical();
        if let Some(&identity) = self.addresses.get(&address) {
            identity
        } else if self.node_addresses.contains(&address) {
            identity::HOST
        } else if self.pod_networks.iter().any(|network| network.contains(&address)) {
            identity::UNKNOWN
        } else {
            identity::WORLD
        }
    }

    /// The pod with this address, on any node.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&EndpointPolicy> {
        self.by_address.get(&address.to_canonical()).and_then(|&index| self.endpoints.get(index))
    }

    /// The pod with this name.
    pub fn endpoint_named(&self, namespace: &str, name: &str) -> Option<&EndpointPolicy> {
        let found = self.endpoints.binary_search_by(|endpoint| endpoint.key().cmp(&(namespace, name)));
        found.ok().and_then(|index| self.endpoints.get(index))
    }

    /// The rules of a pod of this snapshot. None for one of another snapshot whose index does not exist here.
    pub fn ruleset_of(&self, endpoint: &EndpointPolicy) -> Option<&Arc<Ruleset>> {
        self.rulesets.get(endpoint.ruleset)
    }

    /// The pods of the node that the snapshot is for.
    pub fn local_endpoints(&self) -> impl Iterator<Item = &EndpointPolicy> {
        self.endpoints.iter().filter(|endpoint| endpoint.node == self.node)
    }
}

impl EndpointPolicy {
    /// What endpoints are sorted by.
    pub(crate) fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }
}

impl Deref for Snapshot {
    type Target = SnapshotParts;

    fn deref(&self) -> &SnapshotParts {
        &self.parts
    }
}
