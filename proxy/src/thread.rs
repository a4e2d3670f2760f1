//! What the connections of one worker thread share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::counters::Counters;
use crate::limits::{self, Timeouts};
use crate::policies::Policies;
use crate::record::RecordSink;

/// A connection as both of its legs see it: client and original destination.
pub type Tuple = (SocketAddr, SocketAddr);

/// What the threads of a worker share.
#[derive(Clone, Debug)]
pub struct Common {
    /// The snapshot in force.
    pub policies: Arc<Policies>,
    /// Where request records go.
    pub records: RecordSink,
    /// What happened.
    pub counters: Arc<Counters>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How many connections one thread serves at a time; at most [`crate::limits::CONNECTIONS_PER_THREAD`].
    pub connections: usize,
}

/// One worker thread: its connections, and one clock and one timer for all of them.
#[derive(Debug)]
pub struct Thread<C> {
    pub(crate) connector: C,
    pub(crate) common: Common,
    /// Wakes connections when a snapshot was installed. A copy for this thread, so that threads do not meet.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) draining: watch::Sender<Drain>,
    clock: Rc<Clock>,
    next_id: Cell<u64>,
    live: RefCell<HashMap<Tuple, Rc<Live>>>,
    count: Cell<usize>,
    /// How many of them each client has; those with none are not in it.
    clients: RefCell<HashMap<IpAddr, usize>>,
}

/// The place of one connection among those of its thread.
#[derive(Debug)]
pub(crate) struct Place<C> {
    thread: Rc<Thread<C>>,
    client: IpAddr,
}

impl<C> Drop for Place<C> {
    fn drop(&mut self) {
        self.thread.count.set(self.thread.count.get() - 1);
        if let Entry::Occupied(mut own) = self.thread.clients.borrow_mut().entry(self.client) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// Whether connections are to end because another process serves the listener now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// No.
    No,
    /// When that can go unnoticed.
    Unnoticed,
    /// As soon as the protocol allows it.
    Soon,
}

/// Time as of the last tick: precise enough for time-outs, and free.
#[derive(Debug)]
struct Clock {
    now: Cell<Instant>,
    timeouts: Timeouts,
}

/// Why a connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
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
pub enum Phase {
    /// Between requests: may be closed cleanly.
    Idle,
    /// A head has begun.
    Head,
    /// A request is under way.
    Exchange,
}

/// A live connection, as its thread knows it.
#[derive(Debug)]
pub struct Live {
    id: u64,
    tuple: Tuple,
    clock: Rc<Clock>,
    phase: Cell<Phase>,
    deadline: Cell<Instant>,
    interrupt: Cell<Option<Interrupt>>,
    interrupted: Notify,
    gone: Notify,
}

impl Live {
    /// Ends it, soon.
    pub fn interrupt(&self, why: Interrupt) {
        if self.interrupt.get().is_none() {
            self.interrupt.set(Some(why));
        }
        self.interrupted.notify_one();
    }

    /// Until it is to end.
    pub async fn interrupted(&self) -> Interrupt {
        loop {
            if let Some(why) = self.interrupt.get() {
                return why;
            }
            self.interrupted.notified().await;
        }
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// It goes on to something that may take as long as its kind says. A head that has begun gets no more time by
    /// another byte.
    pub(crate) fn enter(&self, phase: Phase) {
        if (self.phase.get(), phase) != (Phase::Head, Phase::Head) {
            self.phase.set(phase);
            self.touch();
        }
    }

    /// Something moved.
    pub(crate) fn touch(&self) {
        let timeouts = &self.clock.timeouts;
        let allowed = match self.phase.get() {
            Phase::Idle => timeouts.idle,
            Phase::Head => timeouts.head,
            Phase::Exchange => timeouts.quiet,
        };
        self.deadline.set(self.clock.now.get() + allowed);
    }
}

impl<C> Thread<C> {
    /// A thread without connections.
    pub fn new(connector: C, common: Common) -> Rc<Self> {
        let clock = Rc::new(Clock { now: Cell::new(Instant::now()), timeouts: common.timeouts });
        Rc::new(Self {
            connector,
            common,
            changes: watch::Sender::new(0),
            draining: watch::Sender::new(Drain::No),
            clock,
            next_id: Cell::new(0),
            live: RefCell::default(),
            count: Cell::new(0),
            clients: RefCell::default(),
        })
    }

    /// Connections of this thread.
    pub fn connections(&self) -> usize {
        self.count.get()
    }

    /// Counts a connection of `client`, from before its task first runs until after it has ended, however it ends.
    /// None: the thread is full, or the client has its share of it.
    pub(crate) fn admit(self: &Rc<Self>, client: IpAddr) -> Option<Place<C>> {
        let most = self.common.connections;
        let own = self.clients.borrow().get(&client).copied().unwrap_or_default();
        if self.connections() >= most || own >= limits::client_share(most) {
            return None;
        }
        self.count.set(self.count.get() + 1);
        self.clients.borrow_mut().insert(client, own + 1);
        Some(Place { thread: self.clone(), client })
    }

    /// Enters a connection; also gives the one that it replaces.
    pub(crate) fn enter(&self, tuple: Tuple) -> (Rc<Live>, Option<Rc<Live>>) {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        let live = Rc::new(Live {
            id,
            tuple,
            phase: Cell::new(Phase::Idle),
            clock: self.clock.clone(),
            deadline: Cell::new(self.clock.now.get() + self.common.timeouts.idle),
            interrupt: Cell::new(None),
            interrupted: Notify::new(),
            gone: Notify::new(),
        });
        let replaced = self.live.borrow_mut().insert(tuple, live.clone());
        if let Some(old) = &replaced {
            self.common.counters.replaced.add();
            old.interrupt(Interrupt::Replaced);
        }
        (live, replaced)
    }

    /// Waits until the sockets of a replaced connection are closed.
    pub(crate) async fn wait_gone(&self, replaced: &Live) {
        if tokio::time::timeout(self.common.timeouts.replace, replaced.gone.notified()).await.is_err() {
            tracing::warn!(tuple = ?replaced.tuple, "the connection that had this tuple before is still there");
        }
    }

    /// Takes a connection out. Its sockets must be closed by now.
    pub(crate) fn leave(&self, live: &Live) {
        let mut table = self.live.borrow_mut();
        if table.get(&live.tuple).is_some_and(|entered| entered.id == live.id) {
            table.remove(&live.tuple);
        }
        live.gone.notify_one();
    }

    /// Looks at all deadlines, again and again.
    pub(crate) async fn watch_deadlines(&self) {
        let mut ticks = tokio::time::interval(self.common.timeouts.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Instant::now();
            self.clock.now.set(now);
            for live in self.live.borrow().values().filter(|live| live.deadline.get() <= now) {
                live.interrupt(Interrupt::TimedOut);
            }
        }
    }

    /// Passes on that a snapshot was installed.
    pub(crate) async fn watch_snapshots(&self) {
        let mut changes = self.common.policies.changes();
        while changes.changed().await.is_ok() {
            let epoch = *changes.borrow_and_update();
            self.changes.send_replace(epoch);
        }
    }

    /// Tells every connection to end when it can, and waits for them; those left at the limit are ended.
    pub(crate) async fn drain(&self) {
        let timeouts = &self.common.timeouts;
        let last = timeouts.drain_last.min(timeouts.drain / 2);
        self.draining.send_replace(Drain::Unnoticed);
        self.wait_for_connections(timeouts.drain - last).await;
        self.draining.send_replace(Drain::Soon);
        self.wait_for_connections(last).await;
        for live in self.live.borrow().values() {
            live.interrupt(Interrupt::DrainLimit);
        }
        self.wait_for_connections(timeouts.linger + DRAIN_POLL).await;
    }

    /// Until there is none left, but no longer than this.
    async fn wait_for_connections(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.connections() > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }
}

/// How often a draining thread looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(50);
