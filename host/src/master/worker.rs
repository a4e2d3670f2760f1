//! The worker process, seen from the master.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::privileges::ChildSetup;
use super::worker_side::{ALIVE, ASK, DRAIN, READY, WORKER_FD_VARIABLE};
use super::{Descriptors, MasterConfig, MasterError};
use crate::descriptors::{self, DescriptorsError};

/// How long a worker may take from its start until it says that it is ready. It reads a snapshot from disk and sets up its threads:
/// a second or less; a worker that takes longer hangs.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How often a worker that is ready is asked whether it still works.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Questions without an answer after which a worker is taken for hung. Questions are counted, not
/// time: a master that was stopped itself, or a machine that was suspended, asks nothing meanwhile,
/// and what was answered before is read before the next question.
pub const MISSED_LIMIT: u32 = 3;

/// The master's own executable: the same file even if its path has since been replaced by an upgrade.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// What a worker does next.
#[derive(Debug)]
pub(super) enum WorkerEvent {
    /// It can do its work. At most once.
    Ready,
    /// It ended, described in words.
    Exited(String),
}

/// A running worker. Killed when dropped.
pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    pid: u32,
    started: Instant,
    ready: bool,
    hung_up: bool,
    asking: Interval,
    /// Questions since its last answer.
    unanswered: u32,
}

impl Worker {
    /// Starts one and sends it the descriptors.
    pub(super) fn start(config: &MasterConfig, descriptors: &Descriptors) -> Result<Self, MasterError> {
        let (ours, theirs) = StdStream::pair().map_err(MasterError::Start)?;
        let setup = ChildSetup::new(config, theirs.as_raw_fd());
        let mut command = std::process::Command::new(OWN_EXECUTABLE);
        command
            .arg0(config.name)
            .args(&config.worker_args)
            .env(WORKER_FD_VARIABLE, theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .process_group(0);
        #[expect(unsafe_code, reason = "code between fork and exec")]
        // SAFETY: `ChildSetup::apply` makes system calls only; it neither allocates nor locks.
        unsafe {
            command.pre_exec(move || setup.apply());
        }
        let child = Command::from(command).kill_on_drop(true).spawn().map_err(MasterError::Start)?;
        drop(theirs);
        let pid = child.id().unwrap_or_default();

        let borrowed: Vec<(&str, BorrowedFd<'_>)> =
            descriptors.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd())).collect();
        match descriptors::send(&ours, &borrowed) {
            // A worker that is already dead is seen by its exit.
            Ok(()) | Err(DescriptorsError::Io(_)) => {}
            Err(error) => return Err(MasterError::Start(std::io::Error::other(error))),
        }
        ours.set_nonblocking(true).map_err(MasterError::Start)?;
        let socket = UnixStream::from_std(ours).map_err(MasterError::Start)?;
        let started = Instant::now();
        let mut asking = tokio::time::interval_at(started + ASK_EVERY, ASK_EVERY);
        asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { child, socket, pid, started, ready: false, hung_up: false, asking, unanswered: 0 })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// How long it has been running.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the next event. A worker that is not ready in time, or that leaves questions
    /// unanswered afterwards, is killed. May be dropped and called again.
    pub(super) async fn next(&mut self) -> WorkerEvent {
        loop {
            tokio::select! {
                biased;
                status = self.child.wait() => return WorkerEvent::Exited(described(status)),
                byte = read_byte(&self.socket), if !self.hung_up => match byte {
                    Some(READY) if !self.ready => {
                        self.ready = true;
                        return WorkerEvent::Ready;
                    }
                    Some(ALIVE) => self.unanswered = 0,
                    Some(_) => {}
                    None => self.hung_up = true,
                },
                _ = self.asking.tick(), if self.ready => {
                    if self.unanswered >= MISSED_LIMIT {
                        tracing::error!(worker = self.pid, "the worker left {MISSED_LIMIT} questions unanswered, one a second: killed");
                        return WorkerEvent::Exited(format!("hung, {}", described(self.kill().await)));
                    }
                    self.unanswered += 1;
                    // A socket that takes no byte counts as a question without an answer.
                    let _ = self.socket.try_write(&[ASK]);
                }
                () = tokio::time::sleep_until(self.started + READY_LIMIT), if !self.ready => {
                    tracing::error!(worker = self.pid, "the worker is not ready after {READY_LIMIT:?}: killed");
                    return WorkerEvent::Exited(described(self.kill().await));
                }
            }
        }
    }

    /// Asks it to finish what it has, waits up to `limit`, then kills it.
    pub(super) async fn drain(&mut self, limit: Duration) {
        // If it is gone already, the wait below returns at once.
        let _ = self.socket.write_all(&[DRAIN]).await;
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => tracing::info!(worker = self.pid, status = described(status), "drained"),
            Err(_) => {
                let _ = self.kill().await;
                tracing::warn!(worker = self.pid, "not drained after {limit:?}: killed");
            }
        }
    }

    async fn kill(&mut self) -> std::io::Result<ExitStatus> {
        // Fails only if it has ended already.
        let _ = self.child.start_kill();
        self.child.wait().await
    }
}

fn described(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// The next byte; `None` at the end. Takes nothing if dropped.
pub(super) async fn read_byte(socket: &UnixStream) -> Option<u8> {
    let mut byte = [0];
    loop {
        socket.readable().await.ok()?;
        match socket.try_read(&mut byte) {
            Ok(0) => return None,
            Ok(_) => return byte.first().copied(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}
