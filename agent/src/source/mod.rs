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

/// Adds the objects of a manifest to what a source says.
///
/// # Errors
/// Why it would not be taken, or what in it has no effect.
pub(crate) fn add_manifest(text: &str, records: &mut Records) -> Result<(), Problem> {
    let refused = |location: String, message: String| Err(Problem { location, message });
    let parsed = match manifest::parse(text) {
        Ok(parsed) => parsed,
        Err(why) => return refused("manifest".to_owned(), why),
    };
    for object in &parsed.objects {
        if let Some(twice) = object.add_to(records) {
            return refused(twice, "it stands twice: delete one of them".to_owned());
        }
    }
    match parsed.unknown.into_iter().next() {
        Some((location, why)) => refused(location, why),
        None => Ok(()),
    }
}

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
    /// The files that this was read from; none if the source has none.
    pub files: BTreeMap<String, FileVersion>,
}

/// Tells one version of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    /// A file that is replaced gets another.
    pub inode: u64,
    /// Seconds and nanoseconds of its last change.
    pub modified: (i64, i64),
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

impl std::fmt::Display for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name, _) => write!(f, "Node {name}"),
            Self::Pod(name, _) => write!(f, "Pod {name}"),
            Self::PodGone(name, _) => write!(f, "the end of Pod {name}"),
        }
    }
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
