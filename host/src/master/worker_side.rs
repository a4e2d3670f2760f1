//! The worker's end of the pair.

use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use tokio::net::UnixStream;

use super::Descriptors;
use super::worker::read_byte;
use crate::descriptors::{self, DescriptorsError};

/// Names the descriptor of the control socket.
pub const WORKER_FD_VARIABLE: &str = "SELVAGE_WORKER_FD";

/// Worker to master: ready.
pub(super) const READY: u8 = b'r';
/// Master to worker: drain.
pub(super) const DRAIN: u8 = b'd';
/// Master to worker: do you still work?
pub(super) const ASK: u8 = b'?';
/// Worker to master: all its loops do.
pub(super) const ALIVE: u8 = b'l';

/// How long the master may take to send the descriptors: it does so right after the fork.
const DESCRIPTORS_LIMIT: Duration = Duration::from_secs(10);

/// The kernel's limit of a process name, without the final zero.
const MAX_PROCESS_NAME: usize = 15;

/// The control socket is taken once; a second owner would close it under the first.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Not started by a master.
    #[error("{WORKER_FD_VARIABLE} is not set: a worker is started by its master, not by hand")]
    NotAWorker,
    /// The variable does not name a unix socket.
    #[error("{WORKER_FD_VARIABLE}={0:?} is not the number of an open unix socket")]
    BadVariable(String),
    /// The control socket was already taken in this process.
    #[error("the control socket was already taken")]
    Taken,
    /// The descriptors did not come.
    #[error("no descriptors from the master: {0}")]
    Descriptors(#[from] DescriptorsError),
    /// The socket could not be prepared.
    #[error("control socket: {0}")]
    Socket(#[from] io::Error),
}

/// What the master wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Accept nothing new, finish what is running, then exit.
    Drain,
    /// Call [`WorkerSide::alive`] once every event loop of this worker has shown that it turns.
    ShowLife,
    /// The master is dead: exit at once (the kernel is about to kill this process anyway).
    MasterGone,
}

/// The worker's end of the pair.
#[derive(Debug)]
pub struct WorkerSide {
    /// Until the first [`WorkerSide::next`], which knows the runtime.
    early: Option<StdStream>,
    socket: Option<UnixStream>,
}

impl WorkerSide {
    /// Whether this process was started as a worker.
    pub fn is_worker() -> bool {
        std::env::var_os(WORKER_FD_VARIABLE).is_some()
    }

    /// Receives the descriptors from the master. Once in a process; needs no runtime. Also gives the process the name in `argv[0]`,
    /// since the kernel shows that of the path it was started by.
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub fn from_env() -> Result<(Descriptors, Self), WorkerError> {
        let text = std::env::var(WORKER_FD_VARIABLE).map_err(|_| WorkerError::NotAWorker)?;
        let raw: RawFd = text.parse().map_err(|_| WorkerError::BadVariable(text.clone()))?;
        let is_socket = raw > libc::STDERR_FILENO
            && getsockname::<SockaddrStorage>(raw)
                .is_ok_and(|name| name.family() == Some(AddressFamily::Unix));
        if !is_socket {
            return Err(WorkerError::BadVariable(text));
        }
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(WorkerError::Taken);
        }
        #[expect(unsafe_code, reason = "a descriptor inherited by number")]
        // SAFETY: it is an open socket (just asked), inherited for this purpose, and taken only once (`TAKEN`).
        let socket = StdStream::from(unsafe { OwnedFd::from_raw_fd(raw) });
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(io::Error::from)?;
        set_process_name();
        socket.set_read_timeout(Some(DESCRIPTORS_LIMIT))?;
        let descriptors = descriptors::receive(&socket)?;
        socket.set_nonblocking(true)?;
        Ok((descriptors, Self { early: Some(socket), socket: None }))
    }

    /// Tells the master that this worker does its work. Should the master be gone, [`WorkerSide::next`] says so.
    pub fn ready(&mut self) {
        self.tell(READY);
    }

    /// Answers [`Command::ShowLife`]. A worker that leaves [`super::MISSED_LIMIT`] of them
    /// unanswered is killed and replaced, so this is called from the loops that do the work, never
    /// from a thread that could outlive them.
    pub fn alive(&mut self) {
        self.tell(ALIVE);
    }

    /// A byte that does not fit means that the master has read nothing for a long time: it has what
    /// it needs to know.
    fn tell(&self, byte: u8) {
        let _ = match (&self.early, &self.socket) {
            (Some(early), _) => (&mut &*early).write(&[byte]),
            (None, Some(socket)) => socket.try_write(&[byte]),
            (None, None) => Ok(0),
        };
    }

    /// Waits for the master's next wish. May be dropped and called again.
    pub async fn next(&mut self) -> Command {
        if let Some(early) = self.early.take() {
            // Fails only without a runtime's reactor or descriptors left: then nothing could be waited for.
            self.socket = UnixStream::from_std(early).ok();
        }
        let Some(socket) = &self.socket else { return Command::MasterGone };
        loop {
            match read_byte(socket).await {
                Some(DRAIN) => return Command::Drain,
                Some(ASK) => return Command::ShowLife,
                Some(_) => {}
                None => return Command::MasterGone,
            }
        }
    }
}

/// Of the first thread, which is the one that `ps` shows.
fn set_process_name() {
    let first = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&first).file_name().unwrap_or_default().as_encoded_bytes();
    // Only a convenience for whoever reads `ps`.
    let _ = std::fs::write("/proc/self/comm", name.get(..MAX_PROCESS_NAME).unwrap_or(name));
}
