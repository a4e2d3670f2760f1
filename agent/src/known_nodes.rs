//! What was last known of the other nodes. Silence is no deletion, also over a restart: a node that is still in the source
//! keeps the key it last announced, and the addresses that its object last had.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::source::{NodeStatus, Records};

/// Status of nodes by name, on disk.
#[derive(Debug)]
pub struct KnownNodes {
    path: PathBuf,
    known: Known,
}

/// By name of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    status: BTreeMap<String, NodeStatus>,
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl KnownNodes {
    /// What was known. An unreadable file is nothing: the nodes say it again.
    pub fn open(path: &Path) -> Self {
        let stored = std::fs::read(path).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Self { path: path.to_owned(), known: stored.unwrap_or_default() }
    }

    /// The newest status of each node.
    pub fn status(&self) -> &BTreeMap<String, NodeStatus> {
        &self.known.status
    }

    /// The newest addresses of each node's object. One that lost them is broken: without the ways to them, what pods send
    /// there would leave in clear.
    pub fn addresses(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.known.addresses
    }

    /// Takes over what nodes say now, and forgets those that are in the source no more.
    pub fn learn(&mut self, records: &Records) {
        let mut newest = self.known.clone();
        newest.status.extend(records.node_status.iter().map(|(name, status)| (name.clone(), status.clone())));
        newest.status.retain(|name, _| records.nodes.contains_key(name));
        let with_addresses = records.nodes.iter().filter(|(_, node)| !node.addresses.is_empty());
        newest.addresses.extend(with_addresses.map(|(name, node)| (name.clone(), node.addresses.clone())));
        newest.addresses.retain(|name, _| records.nodes.contains_key(name));
        if newest == self.known {
            return;
        }
        self.known = newest;
        let json = serde_json::to_vec(&self.known).unwrap_or_default();
        if let Err(error) = host::file::write(&self.path, &json, 0o600) {
            tracing::warn!(%error, "keys of the other nodes are not stored: a restart waits for the nodes to say them");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use policy::Node;

    use super::*;

    #[test]
    fn a_key_is_kept_until_its_node_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        let mut records = Records::default();
        for name in ["a", "b"] {
            let addresses = vec![IpAddr::from([172, 31, 1, 2])];
            records
                .nodes
                .insert(name.into(), Arc::new(Node { name: name.into(), addresses, ..Node::default() }));
            let status = NodeStatus {
                public_key: format!("key of {name}"),
                endpoint: "172.31.1.2:51820".parse().unwrap(),
                address: "172.31.1.2".parse().unwrap(),
                pod_ranges: Vec::new(),
            };
            records.node_status.insert(name.into(), status);
        }
        KnownNodes::open(&path).learn(&records);
        records.node_status.clear();
        records.nodes.insert("b".into(), Arc::new(Node { name: "b".into(), ..Node::default() }));
        let mut known = KnownNodes::open(&path);
        known.learn(&records);
        assert_eq!(known.status()["b"].public_key, "key of b");
        assert_eq!(known.addresses()["b"], [IpAddr::from([172, 31, 1, 2])]);
        records.nodes.remove("b");
        known.learn(&records);
        let names = |known: &KnownNodes| known.status().keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            (names(&known), names(&KnownNodes::open(&path))),
            (vec!["a".to_owned()], vec!["a".to_owned()])
        );
    }
}
