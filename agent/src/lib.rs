//! The control program of a node: watches the source of truth, compiles policy, fills the datapath, hands out addresses,
//! serves the API. It is never in the way of a packet: its death changes no traffic.

pub mod api;
pub mod check;
pub mod clock;
pub mod config;
pub mod flows;
pub mod identities;
pub mod ipam;
mod isolation;
pub mod journal;
pub mod known_nodes;
pub mod names;
pub mod node;
pub mod numbers;
pub mod publisher;
pub mod reconcile;
pub mod source;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::config::Config;
use crate::flows::Flows;
use crate::reconcile::{ReconcileError, Reconciler, Request};
use crate::source::FolderSource;

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state folder cannot be used.
    #[error("state folder: {}: {source}", path.display())]
    State {
        /// What could not be made or opened.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another agent works on the same state.
    #[error("{} is locked: another mesh-agent runs with this state folder", .0.display())]
    AlreadyRunning(PathBuf),
    /// The task that owns the state.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The API.
    #[error(transparent)]
    Serve(#[from] api::ServeError),
    /// Events or counters of the datapath.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// SIGHUP cannot be received.
    #[error("signals: {0}")]
    Signal(#[source] io::Error),
    /// A part of it panicked.
    #[error("a part of the agent ended: {0}")]
    Part(#[from] JoinError),
}

/// Proof that this process is the only agent of its state folder; ends with it, however it ends.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<std::fs::File>,
}

/// Makes the state folder if needed and locks it.
///
/// # Errors
/// [`AgentError::State`] or [`AgentError::AlreadyRunning`].
pub fn lock_state(config: &Config) -> Result<StateLock, AgentError> {
    let path = names::lock(config);
    let failed = |source| AgentError::State { path: path.clone(), source };
    std::fs::create_dir_all(&config.state_dir).map_err(failed)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(StateLock { _file: file }),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(AgentError::AlreadyRunning(path.clone())),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// SIGHUP: the node is looked at now. Options are read at the start only.
async fn answer_hangups(requests: mpsc::Sender<Request>) -> Result<(), AgentError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(AgentError::Signal)?;
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: looking at the node; options are read at the start only");
        // The reconciler is gone only when the agent ends.
        let _ = requests.send(Request::Look).await;
    }
    Ok(())
}

/// Runs the agent with the folder source until something breaks. What is in force stays in force when it ends.
///
/// # Errors
/// See [`AgentError`].
pub async fn run(config: &Config, _lock: &StateLock) -> Result<(), AgentError> {
    let source = Arc::new(FolderSource::start(&config.source_dir, &names::taken_manifests(config)));
    let (reconciler, handle) = Reconciler::open(config, source)?;
    let flows = Arc::new(Flows::new(&config.node_name));
    let events = datapath::Events::open(&config.pin_dir)?;
    let maps = datapath::Maps::open(&config.pin_dir)?;
    let api = api::serve(config, handle.clone(), Arc::clone(&flows), maps);
    // Tasks of their own: the reconciler blocks its thread while it writes to the kernel, and answers go on meanwhile.
    let mut parts = JoinSet::new();
    parts.spawn(answer_hangups(handle.requests.clone()));
    parts.spawn(async move { Ok(reconciler.run().await?) });
    parts.spawn(async move { Ok(flows.add_events(events, &handle).await?) });
    tokio::select! {
        ended = api => Ok(ended?),
        Some(ended) = parts.join_next() => ended?,
    }
}
