//! One live connection, as its thread knows it: what it is doing, until when it may, and whether it is to end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use crate::limits::Timeouts;
use crate::thread::Tuple;

/// Time as of the last tick: precise enough for time-outs, and free.
#[derive(Debug)]
pub(crate) struct Clock {
    pub(crate) now: Cell<Instant>,
    pub(crate) timeouts: Timeouts,
}

/// Why a connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Its client opened another with the same tuple.
    Replaced,
    /// A deadline passed.
    TimedOut,
    /// The drain has taken too long.
    DrainLimit,
    /// A new snapshot forbids it.
    Forbidden,
}

impl Interrupt {
    /// Stable name for the records of requests that it ends.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::TimedOut => "timed_out",
            Self::DrainLimit => "drain_limit",
            Self::Forbidden => "policy_changed",
        }
    }
}

/// What a connection is doing, for its deadline and for how it may be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between requests: may be closed cleanly.
    Idle,
    /// A head has begun.
    Head,
    /// A request is under way.
    Exchange,
}

/// What may take only so long beside whatever else the connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// HTTP/2: a header block is coming in, also while streams are open.
    Head,
    /// HTTP/2: the client's socket takes nothing.
    ClientTakes,
    /// HTTP/2: the server's socket takes nothing.
    ServerTakes,
}

/// A live connection, as its thread knows it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: u64,
    pub(crate) tuple: Tuple,
    clock: Rc<Clock>,
    phase: Cell<Phase>,
    deadline: Cell<Instant>,
    /// Deadlines of each [`Wait`] under way.
    waits: [Cell<Option<Instant>>; 3],
    /// Who is woken when one of them is over.
    after_wait: RefCell<Option<Waker>>,
    interrupt: Cell<Option<Interrupt>>,
    interrupted: Notify,
    pub(crate) gone: Notify,
}

impl Live {
    pub(crate) fn new(id: u64, tuple: Tuple, clock: Rc<Clock>) -> Self {
        let deadline = Cell::new(clock.now.get() + clock.timeouts.idle);
        Self {
            id,
            tuple,
            clock,
            phase: Cell::new(Phase::Idle),
            deadline,
            waits: Default::default(),
            after_wait: RefCell::default(),
            interrupt: Cell::new(None),
            interrupted: Notify::new(),
            gone: Notify::new(),
        }
    }

    /// Ends it, soon.
    pub(crate) fn interrupt(&self, why: Interrupt) {
        if self.interrupt.get().is_none() {
            self.interrupt.set(Some(why));
        }
        self.interrupted.notify_one();
    }

    /// Until it is to end.
    pub(crate) async fn interrupted(&self) -> Interrupt {
        loop {
            if let Some(why) = self.interrupt.get() {
                return why;
            }
            self.interrupted.notified().await;
        }
    }

    /// Whether it is where nothing is missing if it ends now.
    pub(crate) fn is_between_requests(&self) -> bool {
        self.phase.get() == Phase::Idle && !self.is_waiting(Wait::Head)
    }

    /// It goes on to something that may take as long as its kind says. A head that has begun gets no more time by
    /// another byte.
    pub(crate) fn enter(&self, phase: Phase) {
        if (self.phase.get(), phase) != (Phase::Head, Phase::Head) {
            self.phase.set(phase);
            self.restart();
        }
    }

    /// Something moved. That gives no more time to a head.
    pub(crate) fn touch(&self) {
        if matches!(self.phase.get(), Phase::Idle | Phase::Exchange) {
            self.restart();
        }
    }

    fn restart(&self) {
        let timeouts = &self.clock.timeouts;
        let allowed = match self.phase.get() {
            Phase::Idle => timeouts.idle,
            Phase::Head => timeouts.head,
            Phase::Exchange => timeouts.quiet,
        };
        self.deadline.set(self.clock.now.get() + allowed);
    }

    /// This goes on from now on, if it does not already.
    pub(crate) fn wait(&self, what: Wait) {
        let deadline = &self.waits[what as usize];
        if deadline.get().is_none() {
            let timeouts = &self.clock.timeouts;
            let allowed = if what == Wait::Head { timeouts.head } else { timeouts.stall };
            deadline.set(Some(self.clock.now.get() + allowed));
        }
    }

    /// This is over.
    pub(crate) fn waited(&self, what: Wait) {
        let waited = self.waits[what as usize].take().is_some();
        if waited && let Some(waker) = self.after_wait.take() {
            waker.wake();
        }
    }

    /// Until this does not go on.
    pub(crate) fn poll_waited(&self, what: Wait, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_waiting(what) {
            return Poll::Ready(());
        }
        self.after_wait.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Whether this goes on.
    pub(crate) fn is_waiting(&self, what: Wait) -> bool {
        self.waits[what as usize].get().is_some()
    }

    /// Whether a deadline has passed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let waits = self.waits.iter().filter_map(Cell::get);
        waits.chain([self.deadline.get()]).any(|deadline| deadline <= now)
    }
}
