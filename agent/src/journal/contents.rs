//! What the lines of the journal say, and what they come to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// What an allocation is known by: a container may have several interfaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// The runtime's name for the pod's sandbox.
    pub container_id: String,
    /// Name of the interface in the pod.
    pub interface: String,
}

impl std::fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "container {} interface {}", self.container_id, self.interface)
    }
}

/// An address that is somebody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// Whose.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// The address.
    pub address: IpAddr,
    /// Name of the host side of the veth.
    pub host_interface: String,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Namespace of the pod; empty if the runtime did not say.
    pub pod_namespace: String,
    /// Name of the pod; empty if the runtime did not say.
    pub pod_name: String,
    /// Uid of the pod; empty if the runtime did not say.
    pub pod_uid: String,
    /// Name of the network in the plugin's configuration; empty: journals of before do not say it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// The later it was made, the higher. Given by the journal; journals of before have 0.
    #[serde(default)]
    pub number: u64,
    /// Since the plugin built the veth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veth: Option<Veth>,
}

/// The veth of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Veth {
    /// Number of the host side.
    pub host_ifindex: u32,
    /// Ethernet address of the pod's side.
    pub pod_mac: [u8; 6],
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Line {
    /// New or changed.
    Allocated(Allocation),
    /// Given back.
    Released {
        /// What was.
        address: IpAddr,
        /// When. Missing in journals of before, which have the time of a clock that may have been set since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Moment>,
        /// Of journals of before, not used.
        #[serde(default, rename = "at_ms", skip_serializing)]
        _at_ms: Option<u64>,
    },
}

/// What the journal says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Addresses in use.
    pub allocations: BTreeMap<AttachmentKey, Allocation>,
    /// When addresses that are free were last given back.
    pub released: BTreeMap<IpAddr, Moment>,
}

impl Line {
    pub(super) fn released(address: IpAddr, at: Moment) -> Self {
        Self::Released { address, at: Some(at), _at_ms: None }
    }
}

impl Contents {
    /// Applies a line. Later lines win, so an address is never two allocations'. A release of which is not known when it
    /// was counts as one of `now`.
    pub(super) fn apply(&mut self, line: Line, now: &Moment) {
        match line {
            Line::Allocated(allocation) => {
                let address = allocation.address;
                self.released.remove(&address);
                self.allocations.retain(|key, other| *key == allocation.key || other.address != address);
                self.allocations.insert(allocation.key.clone(), allocation);
            }
            Line::Released { address, at, .. } => {
                self.allocations.retain(|_, allocation| allocation.address != address);
                self.released.insert(address, at.unwrap_or_else(|| now.clone()));
            }
        }
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Line> {
        let released = self.released.iter().map(|(&address, at)| Line::released(address, at.clone()));
        released.chain(self.allocations.values().cloned().map(Line::Allocated))
    }

    /// The number of the allocation `key`: the one that it has, or the next.
    pub(super) fn number(&self, key: &AttachmentKey) -> u64 {
        let next =
            || self.allocations.values().map(|allocation| allocation.number).max().map_or(1, |max| max + 1);
        self.allocations.get(key).map_or_else(next, |known| known.number)
    }

    /// From the bytes of a file; also what could not be read.
    pub(super) fn parse(bytes: &[u8], now: &Moment) -> (Self, Vec<String>) {
        let mut contents = Self::default();
        let mut problems = Vec::new();
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            match (serde_json::from_slice(line), line.ends_with(b"\n")) {
                (Ok(line), true) => contents.apply(line, now),
                // Its writer was killed before anybody was told.
                (_, false) => problems.push(format!("line {}: cut off, dropped", index + 1)),
                (Err(error), true) => problems.push(format!("line {}: {error}; skipped", index + 1)),
            }
        }
        (contents, problems)
    }
}
