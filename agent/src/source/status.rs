//! Status files: what in Kubernetes are annotations, in the folder source small JSON files that agents write and read.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What a node says of itself: `status/nodes/<node>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// WireGuard public key, base64, as `wg pubkey` prints it.
    pub public_key: String,
    /// Where its tunnel listens.
    pub endpoint: SocketAddr,
    /// Its own address.
    pub address: IpAddr,
    /// Where its pods get their addresses from.
    pub pod_ranges: Vec<IpNet>,
}

/// What a node says of one of its pods: `status/pods/<namespace>_<name>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on.
    pub node: String,
    /// Its uid; empty if the runtime gave none.
    #[serde(default)]
    pub uid: String,
}

/// Folder of node status below the source folder.
pub(super) const NODES: &str = "status/nodes";
/// Folder of pod status below the source folder.
pub(super) const PODS: &str = "status/pods";
