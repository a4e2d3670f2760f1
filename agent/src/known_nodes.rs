//! What other nodes said last of themselves. Silence is no deletion, also over a restart: a node that is still in the
//! source keeps the key it was last known by.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::source::{NodeStatus, Records};

/// Status of nodes by name, on disk.
#[derive(Debug)]
pub struct KnownNodes {
    path: PathBuf,
    status: BTreeMap<String, NodeStatus>,
}

impl KnownNodes {
    /// What was known. An unreadable file is nothing: the nodes say it again.
    pub fn open(path: &Path) -> Self {
        let stored = std::fs::read(path).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Self { path: path.to_owned(), status: stored.unwrap_or_default() }
    }

    /// The newest status of each node.
    pub fn status(&self) -> &BTreeMap<String, NodeStatus> {
        &self.status
    }

    /// Takes over what nodes say now, and forgets those that are in the source no more.
    pub fn learn(&mut self, records: &Records) {
        let mut newest = self.status.clone();
        newest.extend(records.node_status.iter().map(|(name, status)| (name.clone(), status.clone())));
        newest.retain(|name, _| records.nodes.contains_key(name));
        if newest == self.status {
            return;
        }
        self.status = newest;
        let json = serde_json::to_vec(&self.status).unwrap_or_default();
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
            records.nodes.insert(name.into(), Arc::new(Node { name: name.into(), ..Node::default() }));
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
        let mut known = KnownNodes::open(&path);
        known.learn(&records);
        assert_eq!(known.status()["b"].public_key, "key of b");
        records.nodes.remove("b");
        known.learn(&records);
        let names = |known: &KnownNodes| known.status().keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            (names(&known), names(&KnownNodes::open(&path))),
            (vec!["a".to_owned()], vec!["a".to_owned()])
        );
    }
}
