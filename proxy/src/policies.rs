//! The snapshot in force, for all threads of the worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use policy::Snapshot;
use tokio::sync::watch;

/// The snapshot in force. Reading takes no lock; none yet means that nothing is allowed.
#[derive(Debug)]
pub struct Policies {
    current: ArcSwapOption<Snapshot>,
    /// Counts installations: snapshot numbers may start again when the agent's state is lost.
    epoch: AtomicU64,
    changes: watch::Sender<u64>,
}

impl Default for Policies {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), epoch: AtomicU64::new(0), changes: watch::Sender::new(0) }
    }
}

impl Policies {
    /// Puts a snapshot in force. Once this returns, no thread judges a new request by the one before.
    pub fn install(&self, snapshot: Arc<Snapshot>) {
        self.current.store(Some(snapshot));
        let epoch = self.epoch.fetch_add(1, Ordering::Release) + 1;
        self.changes.send_replace(epoch);
    }

    /// Changes with every installation; compare it with the one remembered before judging.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The snapshot in force.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// Number of the snapshot in force; 0: none.
    pub fn number(&self) -> u64 {
        self.current.load().as_ref().map_or(0, |snapshot| snapshot.number)
    }

    /// Wakes at every installation.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
