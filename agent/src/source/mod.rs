//! The source of truth: what the cluster consists of, watched; and what this node tells the others, published.
//!
//! A source hands out whole, consistent readings ([`Records`]), never single changes, so a reader cannot miss one, and
//! a broken watch cannot look like a deletion: it just hands out nothing new.

mod files;
mod folder;
mod manifest;
mod reader;
mod status;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use policy::{Labels, Node, Pod, PolicyKind, PolicyObject, Problem};
use tokio::sync::watch;

pub use folder::FolderSource;
pub use status::{NodeStatus, PodStatus};

/// Namespace and name of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl PodName {
    /// From its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a policy object is known by.
pub type PolicyName = (PolicyKind, String, String);

/// One consistent reading of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Namespaces that are declared, with their labels; others exist implicitly.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods that have not finished, without addresses.
    pub pods: BTreeMap<PodName, Arc<Pod>>,
    /// Policies.
    pub policies: BTreeMap<PolicyName, Arc<PolicyObject>>,
    /// What nodes say of themselves.
    pub node_status: BTreeMap<String, NodeStatus>,
    /// What nodes say of their pods.
    pub pod_status: BTreeMap<PodName, PodStatus>,
    /// What could not be read, and what was kept instead.
    pub problems: Vec<Problem>,
}

/// Something that this node tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// Its name; its key, endpoint and addresses.
    Node(String, NodeStatus),
    /// The addresses of a pod of this node.
    Pod(PodName, PodStatus),
    /// A pod of this node has no address any more. Only withdrawn if what is announced has one of these addresses:
    /// the pod may have a new one already, here or on another node.
    PodGone(PodName, Vec<IpAddr>),
}

/// Why something could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The file could not be written.
    #[error(transparent)]
    File(#[from] host::file::FileError),
    /// The folder could not be made.
    #[error("cannot make {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It could not be put into words.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// No file can have the name that it would need.
    #[error("{name:?} is too long for the name of a file in a folder of manifests: at most {limit} bytes")]
    TooLong {
        /// The file's name.
        name: String,
        /// The most that is possible.
        limit: usize,
    },
}

impl PublishError {
    /// Whether it will not succeed later either.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::Json(_))
    }
}

/// Where manifests come from and status goes to. The folder is one; Kubernetes' API server is the next.
pub trait Source: Send + Sync + 'static {
    /// The newest reading; `None` until the first one succeeded. A slow reader skips readings, never the last one.
    fn watch(&self) -> watch::Receiver<Option<Arc<Records>>>;

    /// Tells the others. Returns when it is durable.
    ///
    /// # Errors
    /// It is not known whether others see it; publish again.
    fn publish(&self, announcement: &Announcement) -> impl Future<Output = Result<(), PublishError>> + Send;
}
