//! What went wrong, with which object.

use std::io;

use crate::netns::NetNsError;

/// A request to the kernel's routing tables that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// The kernel refused.
    #[error("cannot {action} {object}: {source}")]
    Refused {
        /// What was tried: "add", "delete", "list", ...
        action: &'static str,
        /// On what: "route 10.2.0.0/16 dev 7 table 254", ...
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl NetlinkError {
    pub(super) fn refused(action: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Refused { action, object: object.to_string(), source }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object, or the device it belongs to, is not there (any more).
    pub fn is_missing(&self) -> bool {
        self.errno().is_some_and(is_missing)
    }
}

/// `ENOENT`, `ESRCH` (routes), `ENODEV` (links), `EADDRNOTAVAIL` (addresses): each table says it differently.
pub(super) fn is_missing(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
}

/// Whether something was deleted; that it was not there is no error.
pub(super) fn deleted(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error().is_some_and(is_missing) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether something was added; that it was there is no error.
pub(super) fn added(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}
