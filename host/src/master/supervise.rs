//! Keeps one worker running until a successor takes over or the master is told to stop.

use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use tokio::time::Instant;

use super::handover::HandoverSocket;
use super::worker::{Worker, WorkerEvent};
use super::{Descriptors, MasterConfig, MasterError, Open, StopSignals, beside};

/// A worker that lived shorter than this failed at its start: the next one waits.
const YOUNG: Duration = Duration::from_secs(1);
/// A worker that lived this long is sound: its death is no sign of a failing start.
const SETTLED: Duration = Duration::from_secs(10);
/// First wait, after the second young death in a row.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// Longest wait: what a repaired cause may cost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long to wait before the next start.
#[derive(Debug, Default)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The wait after a worker that lived for `lived`: none, unless workers keep dying young.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= SETTLED {
            self.next = Duration::ZERO;
        }
        if lived >= YOUNG {
            return Duration::ZERO;
        }
        let wait = self.next;
        self.next = (self.next * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        wait
    }
}

enum State {
    Running(Box<Worker>),
    Waiting(Instant),
}

/// The master once it has started.
pub(super) struct Supervisor<'m> {
    config: MasterConfig,
    descriptors: &'m RefCell<Descriptors>,
    slot: Slot<'m>,
}

struct Slot<'m> {
    state: State,
    backoff: Backoff,
    open: &'m mut Open<'m>,
}

impl<'m> Supervisor<'m> {
    pub(super) fn new(
        config: MasterConfig,
        descriptors: &'m RefCell<Descriptors>,
        open: &'m mut Open<'m>,
        worker: Worker,
    ) -> Self {
        publish_pid(&config, Some(worker.pid()));
        let slot = Slot { state: State::Running(Box::new(worker)), backoff: Backoff::default(), open };
        Self { config, descriptors, slot }
    }

    /// Returns when the last worker of this master has ended and no other is to be started.
    pub(super) async fn run(mut self, socket: &HandoverSocket, signals: &mut StopSignals) {
        let limit = self.config.drain_limit;
        let successor = socket.serve(self.descriptors);
        tokio::pin!(successor);
        loop {
            tokio::select! {
                () = self.slot.advance(&self.config, self.descriptors) => {}
                () = &mut successor => {
                    self.slot.drain(limit).await;
                    return;
                }
                () = signals.recv() => break,
            }
        }
        tracing::info!(name = self.config.name, "stopping");
        // A successor may come while this one drains: it finds the descriptors still open, and no gap.
        let drain = self.slot.drain(limit);
        tokio::pin!(drain);
        tokio::select! {
            () = &mut drain => {
                socket.remove();
                publish_pid(&self.config, None);
            }
            () = &mut successor => drain.await,
        }
    }
}

impl Slot<'_> {
    /// Waits for the worker's next change and does what it asks for. May be dropped and called again.
    async fn advance(&mut self, config: &MasterConfig, descriptors: &RefCell<Descriptors>) {
        match &mut self.state {
            State::Running(worker) => match worker.next().await {
                WorkerEvent::Ready => {
                    tracing::info!(name = config.name, worker = worker.pid(), "worker ready");
                }
                WorkerEvent::Exited(status) => {
                    let wait = self.backoff.after(worker.age());
                    tracing::error!(name = config.name, worker = worker.pid(), status, ?wait, "worker died");
                    self.state = State::Waiting(Instant::now() + wait);
                }
            },
            State::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                self.state = match self.start(config, &mut descriptors.borrow_mut()) {
                    Ok(worker) => {
                        tracing::info!(name = config.name, worker = worker.pid(), "worker started again");
                        publish_pid(config, Some(worker.pid()));
                        State::Running(Box::new(worker))
                    }
                    Err(error) => {
                        tracing::error!(name = config.name, %error, "worker");
                        State::Waiting(Instant::now() + LONGEST_WAIT)
                    }
                };
            }
        }
    }

    fn start(&mut self, config: &MasterConfig, descriptors: &mut Descriptors) -> Result<Worker, MasterError> {
        (self.open)(descriptors)?;
        Worker::start(config, descriptors)
    }

    async fn drain(&mut self, limit: Duration) {
        if let State::Running(worker) = &mut self.state {
            worker.drain(limit).await;
        }
    }
}

/// Writes the worker's pid beside the hand-over socket, for whoever looks; nothing depends on it.
fn publish_pid(config: &MasterConfig, pid: Option<u32>) {
    let path = beside(&config.handover_socket, "worker");
    let Some(pid) = pid else {
        let _ = fs::remove_file(path);
        return;
    };
    let temporary = beside(&path, &format!("{}.new", std::process::id()));
    let written = fs::write(&temporary, format!("{pid}\n")).and_then(|()| fs::rename(&temporary, &path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot write the worker's pid");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_young_deaths_double_the_wait() {
        let mut backoff = Backoff::default();
        let young = Duration::from_millis(1);
        let waits: Vec<u128> = (0..10).map(|_| backoff.after(young).as_millis()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(backoff.after(Duration::from_secs(2)), Duration::ZERO);
        assert_eq!(backoff.after(young), LONGEST_WAIT, "two seconds prove nothing");
        assert_eq!(backoff.after(Duration::from_secs(10)), Duration::ZERO);
        assert_eq!(backoff.after(young), Duration::ZERO, "a sound one starts the count anew");
    }
}
