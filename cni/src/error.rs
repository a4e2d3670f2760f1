//! Why a request failed, with the code that the runtime gets.

use std::path::PathBuf;

use host::file::FileError;
use host::netlink::NetlinkError;
use host::netns::NetNsError;
use rscni_types::error::Error as ProtocolError;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// Variables of the environment that are missing or wrong.
    #[error("{0}")]
    Environment(String),
    /// A key of the configuration that this plugin does not have.
    #[error("unsupported key {key:?} with value {value}: {fix}")]
    UnsupportedKey {
        /// The key.
        key: String,
        /// Its value as JSON.
        value: String,
        /// What to do.
        fix: &'static str,
    },
    /// A value of the configuration that is wrong.
    #[error("{0}")]
    Config(String),
    /// The configuration could not be read from stdin.
    #[error("cannot read the configuration from stdin: {0}")]
    Stdin(#[source] std::io::Error),
    /// The configuration is not JSON, or not of the form that the specification gives it.
    #[error("the configuration on stdin is not valid: {0}")]
    Decode(#[source] serde_json::Error),
    /// What the protocol's own rules refuse.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// CNI_NETNS is not a pod's network namespace.
    #[error("CNI_NETNS: {0}")]
    NetNs(String),
    /// The agent cannot be reached, or does not answer in time.
    #[error("mesh-agent does not answer at {}: {reason}", socket.display())]
    AgentUnreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The agent refused.
    #[error("mesh-agent refused to {action}: {reason}")]
    AgentRefused {
        /// What was asked.
        action: &'static str,
        /// Its words.
        reason: String,
    },
    /// The agent cannot do it now.
    #[error("mesh-agent cannot {action} now: {reason}")]
    TryAgain {
        /// What was asked.
        action: &'static str,
        /// Its words.
        reason: String,
    },
    /// The agent's answer makes no sense.
    #[error("mesh-agent answered with an invalid {field}: {value:?}")]
    AgentAnswer {
        /// Name in the protocol.
        field: &'static str,
        /// What it said.
        value: String,
    },
    /// The name is taken in the pod.
    #[error("{ifname} exists already in {}: DEL the attachment first", netns.display())]
    InterfaceExists {
        /// CNI_IFNAME.
        ifname: String,
        /// CNI_NETNS.
        netns: PathBuf,
    },
    /// The name is taken on the node, by something that is not a left-over.
    #[error("{0} exists on the node and is not a veth device: remove it")]
    HostInterfaceExists(String),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The system refused something else.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A note could not be written or removed.
    #[error(transparent)]
    Note(#[from] FileError),
    /// The agent has been away for very long.
    #[error("{} has {limit} notes already: start mesh-agent", folder.display())]
    TooManyNotes {
        /// Where the notes stand.
        folder: PathBuf,
        /// How many it takes.
        limit: usize,
    },
    /// CHECK found something missing or changed.
    #[error("CHECK: {0}")]
    Check(String),
    /// STATUS: ADD cannot be served.
    #[error("{0}")]
    NotReady(String),
    /// STATUS: ADD cannot be served, and pods that are attached may be cut off.
    #[error("the node's datapath is not complete: {0}")]
    DatapathLost(String),
    /// GC could not release all that it should.
    #[error("GC: {} of {wanted} attachments could not be released: {}", failed.len(), failed.join("; "))]
    Gc {
        /// How many were to be released.
        wanted: usize,
        /// Each that was not, and why.
        failed: Vec<String>,
    },
}

impl CniError {
    /// The code of the specification (below 100) or one of ours.
    pub fn code(&self) -> u32 {
        match self {
            Self::Protocol(error) => error.into(),
            Self::UnsupportedKey { .. } => 2,
            Self::Environment(_) => 4,
            Self::Stdin(_) | Self::Note(_) => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::NetNs(_) => 8,
            Self::AgentUnreachable { .. } | Self::TryAgain { .. } | Self::TooManyNotes { .. } => 11,
            Self::NotReady(_) => 50,
            Self::DatapathLost(_) => 51,
            Self::InterfaceExists { .. } | Self::HostInterfaceExists(_) => 100,
            Self::AgentRefused { .. } | Self::AgentAnswer { .. } => 101,
            Self::Kernel(_) | Self::System { .. } => 102,
            Self::Check(_) => 103,
            Self::Gc { .. } => 104,
        }
    }
}

impl From<NetNsError> for CniError {
    fn from(error: NetNsError) -> Self {
        Self::NetNs(error.to_string())
    }
}
