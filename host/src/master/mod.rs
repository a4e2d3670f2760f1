//! A master that owns descriptors, its unprivileged worker that uses them, and the hand-over to a successor.
//!
//! The master parses nothing that a pod sent, so it lives; the worker may die at any time and is started again at once with the
//! same descriptors: listeners keep their queue, devices their routes. Before that the master looks whether they still work (a
//! device can be deleted), and replaces only those that do not: a worker is not asked, since it is the one that may be taken over.
//!
//! **Liveness.** Each second the master asks its worker for a sign of life, which the worker's own event loops give. One that leaves
//! [`MISSED_LIMIT`] questions unanswered hangs: it is killed and another one started.
//!
//! **Hand-over.** A successor connects to the predecessor's socket, gets the descriptors (`SCM_RIGHTS`), starts its own worker, and
//! says `r` when that worker is ready. The predecessor answers `d`, has its worker drain, and leaves; the successor then puts its
//! own socket in the place of the old one. Whatever fails before the `r`, the predecessor goes on as if nothing had been. A lock
//! beside the socket makes masters start one after the other.

mod handover;
mod privileges;
mod supervise;
mod worker;
mod worker_side;

use std::cell::RefCell;
use std::error::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::handover::{Predecessor, PreparedSocket};
pub use self::privileges::Capability;
use self::supervise::Supervisor;
pub use self::worker::MISSED_LIMIT;
use self::worker::{Worker, WorkerEvent};
pub use self::worker_side::{Command, WORKER_FD_VARIABLE, WorkerError, WorkerSide};
use crate::descriptors::DescriptorsError;

/// Descriptors that the master owns, by name.
pub type Descriptors = Vec<(String, OwnedFd)>;

/// Makes descriptors complete: the caller's part of [`run_master`].
type Open<'a> = dyn FnMut(&mut Descriptors) -> Result<(), MasterError> + 'a;

/// Longest wait for another master that is starting: it may itself wait for its worker to become ready.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How a master runs.
#[derive(Debug, Clone)]
pub struct MasterConfig {
    /// Name of the program, for logs and as `argv[0]` of the worker.
    pub name: &'static str,
    /// Where a successor asks for the descriptors. Beside it stand `<socket>.worker` (pid of the worker) and `<socket>.lock`.
    pub handover_socket: PathBuf,
    /// Arguments of the worker, which is this same executable.
    pub worker_args: Vec<OsString>,
    /// User and group of the worker; `None` leaves it what the master is (tests).
    pub worker_user: Option<u32>,
    /// What the worker keeps when its user changes.
    pub worker_capabilities: Vec<Capability>,
    /// How long a worker may take to drain before it is killed.
    pub drain_limit: Duration,
}

/// Why a master could not start, or gave up.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The caller's own descriptors could not be opened.
    #[error("cannot open what the worker needs: {0}")]
    Open(#[source] Box<dyn Error + Send + Sync>),
    /// The predecessor is there but does not hand over.
    #[error("the running master does not hand over its descriptors: {0}")]
    Predecessor(#[source] DescriptorsError),
    /// The predecessor did not confirm that it leaves.
    #[error("the running master does not give way: {0}")]
    NotGivingWay(#[source] io::Error),
    /// The predecessor's socket can be neither reached nor ruled out.
    #[error("cannot reach {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another master is starting for too long.
    #[error("another master holds {} for more than {} s", .0.display(), START_LIMIT.as_secs())]
    Locked(PathBuf),
    /// The hand-over socket could not be made.
    #[error("cannot {action} {}: {source}", path.display())]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The worker could not be started.
    #[error("cannot start the worker: {0}")]
    Start(#[source] io::Error),
    /// The worker got descriptors of a predecessor and never became ready: the predecessor goes on.
    #[error("the worker did not become ready ({0}): the running master goes on")]
    WorkerNotReady(String),
    /// The runtime or the signal handlers could not be made.
    #[error("cannot set up the master: {0}")]
    Setup(#[source] io::Error),
}

/// Runs a master on the calling thread, which must live as long as the process (the kernel ends the worker with it).
///
/// `open` makes descriptors complete: it opens what is missing, or is there and does not work any more, and leaves the others alone.
/// It is called with those of the predecessor, or with none if there is none, and again before each restart of a worker; it may
/// block for a second or two. Returns when a successor has taken over and the worker is drained, or when SIGTERM or SIGINT came and
/// the worker is drained; the program then exits 0.
///
/// # Errors
/// See [`MasterError`]. What fails later is no error: a worker that dies is started again, and `open` is tried again each second.
pub fn run_master<E>(
    config: MasterConfig,
    mut open: impl FnMut(&mut Descriptors) -> Result<(), E>,
) -> Result<(), MasterError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MasterError::Setup)?;
    runtime.block_on(async {
        let mut signals = StopSignals::new().map_err(MasterError::Setup)?;
        let hangup = signal(SignalKind::hangup()).map_err(MasterError::Setup)?;
        tokio::spawn(answer_hangups(hangup));
        let lock = lock_start(&config.handover_socket).await?;
        let prepared = PreparedSocket::new(&config.handover_socket)?;
        let mut open = |held: &mut Descriptors| open(held).map_err(|error| MasterError::Open(error.into()));
        let started = tokio::select! {
            started = start(&config, &mut open) => started.map(Some),
            () = signals.recv() => Ok(None),
        };
        let Ok(Some((descriptors, worker))) = started else {
            prepared.discard();
            return started.map(drop);
        };
        let socket = prepared.publish()?;
        drop(lock);
        let descriptors = RefCell::new(descriptors);
        Supervisor::new(config, &descriptors, &mut open, worker).run(&socket, &mut signals).await;
        Ok(())
    })
}

/// Keeps SIGHUP, which asks other programs to read their files again, from ending this one.
async fn answer_hangups(mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        tracing::info!(
            "SIGHUP changes nothing: options are read at the start; start a successor to change them"
        );
    }
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Takes over, or starts afresh.
async fn start(config: &MasterConfig, open: &mut Open<'_>) -> Result<(Descriptors, Worker), MasterError> {
    let Some(predecessor) = Predecessor::connect(&config.handover_socket)? else {
        let mut descriptors = Descriptors::new();
        open(&mut descriptors)?;
        let worker = Worker::start(config, &descriptors)?;
        tracing::info!(name = config.name, worker = worker.pid(), "started");
        return Ok((descriptors, worker));
    };
    let mut descriptors = predecessor.take().map_err(MasterError::Predecessor)?;
    open(&mut descriptors)?;
    let mut worker = Worker::start(config, &descriptors)?;
    tracing::info!(
        name = config.name,
        worker = worker.pid(),
        "took over the descriptors of the running master"
    );
    match worker.next().await {
        WorkerEvent::Ready => {}
        WorkerEvent::Exited(status) => return Err(MasterError::WorkerNotReady(status)),
    }
    predecessor.replace(&config.handover_socket)?;
    tracing::info!(name = config.name, worker = worker.pid(), "the predecessor gives way");
    Ok((descriptors, worker))
}

/// Two masters that start at once would both find no predecessor, so one waits for the other.
async fn lock_start(socket: &Path) -> Result<Flock<File>, MasterError> {
    const RETRY: Duration = Duration::from_millis(20);
    let path = beside(socket, "lock");
    let failed = |source| MasterError::Socket { action: "lock", path: path.clone(), source };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        if tokio::time::Instant::now() > deadline {
            return Err(MasterError::Locked(path));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// `<path>.<extension>`, also if the path has an extension.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}
