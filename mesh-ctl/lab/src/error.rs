//! What can go wrong with a lab.

use std::io;
use std::path::PathBuf;

use host::file::FileError;
use host::netlink::NetlinkError;
use host::netns::NetNsError;
use host::sysctl::SysctlError;

/// Why something could not be done with a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// An option that no lab can have.
    #[error("{option} {value:?}: {message}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        message: String,
    },
    /// This machine or user cannot run a lab.
    #[error("a lab cannot run here: {0}")]
    Machine(String),
    /// A lab of this name is there.
    #[error(
        "lab {0:?} is already there: `mesh-ctl lab down --name {0}` removes it, `--name OTHER` starts one beside it"
    )]
    Exists(String),
    /// No lab of this name.
    #[error("there is no lab {0:?}: `mesh-ctl lab ls` lists them, `mesh-ctl lab up --name {0}` starts it")]
    NoLab(String),
    /// No such pod, or it has no namespace yet.
    #[error("lab {lab:?} has no running pod {pod}: {reason}")]
    NoPod {
        /// The lab.
        lab: String,
        /// `namespace/name`.
        pod: String,
        /// Why not.
        reason: String,
    },
    /// No such node.
    #[error("lab {lab:?} has no node {node:?}; it has {known}")]
    NoNode {
        /// The lab.
        lab: String,
        /// The name asked for.
        node: String,
        /// The names it has.
        known: String,
    },
    /// A manifest that cannot be applied. Nothing of its input was.
    #[error("{location}: {message}")]
    Manifest {
        /// File, document and object, as far as known.
        location: String,
        /// What is wrong and how to repair it.
        message: String,
    },
    /// A file or folder.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that must survive a crash.
    #[error(transparent)]
    File(#[from] FileError),
    /// A network namespace.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// The network between the namespaces.
    #[error(transparent)]
    Network(#[from] NetlinkError),
    /// A kernel setting.
    #[error(transparent)]
    Setting(#[from] SysctlError),
    /// The CNI plugin refused.
    #[error("mesh-cni {verb}: {message}")]
    Plugin {
        /// `ADD` or `DEL`.
        verb: &'static str,
        /// Its own words.
        message: String,
    },
    /// It did not become ready in time, or a part of it never will.
    #[error("lab {lab:?} did not become ready: {missing}")]
    NotReady {
        /// The lab.
        lab: String,
        /// What is missing, with the last words of what failed.
        missing: String,
    },
    /// Something could not be removed.
    #[error("lab {lab:?} could not be removed: {what}")]
    Remains {
        /// The lab.
        lab: String,
        /// What is left.
        what: String,
    },
}

impl LabError {
    /// For `map_err` on an operation on `path`.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn option(option: &'static str, value: &str, message: impl Into<String>) -> Self {
        Self::Option { option, value: value.to_owned(), message: message.into() }
    }
}
