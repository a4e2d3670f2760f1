//! Why a command failed, and the exit code that says so.

use std::io;

use lab::LabError;

/// Done, and allowed.
pub const DONE: u8 = 0;
/// Refused, failed, or different from what was expected.
pub const REFUSED: u8 = 1;
/// Bad usage.
pub const USAGE: u8 = 2;
/// Not reachable.
pub const UNREACHABLE: u8 = 3;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Nobody is there to answer.
    #[error("{0}")]
    Unreachable(String),
    /// The agent knows no such object.
    #[error("{0}")]
    NotFound(String),
    /// The agent refused to answer.
    #[error("{0}")]
    Refused(String),
    /// A lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The answer could not be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl CtlError {
    /// The exit code for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::NotFound(_) => USAGE,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Lab(error) => match error {
                LabError::Option { .. } | LabError::Manifest { .. } => USAGE,
                LabError::NoLab(_) | LabError::NoNode { .. } | LabError::NoPod { .. } => UNREACHABLE,
                _ => REFUSED,
            },
            // Whoever read the answer has read enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => DONE,
            Self::Refused(_) | Self::Output(_) => REFUSED,
        }
    }

    /// For what only root may do, with the command as it was typed.
    pub fn needs_root() -> Self {
        let typed: Vec<_> = std::env::args().skip(1).collect();
        Self::Unreachable(format!("needs root: sudo mesh-ctl {}", typed.join(" ")))
    }

    /// What an agent's status means; `who` names the agent.
    pub fn from_status(who: &str, status: &tonic::Status) -> Self {
        use tonic::Code;
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Self::Unreachable(format!("{who} does not answer: {}", status.message()))
            }
            Code::NotFound => Self::NotFound(status.message().to_owned()),
            Code::InvalidArgument => Self::Usage(status.message().to_owned()),
            _ => Self::Refused(format!("{who}: {}", status.message())),
        }
    }
}
