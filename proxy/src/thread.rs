//! What the connections of one worker thread share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::buffers::{Account, Most};
use crate::counters::Counters;
use crate::limits::{self, Timeouts};
use crate::live::{Clock, Interrupt, Live};
use crate::policies::Policies;
use crate::record::RecordSink;
use crate::seldom::Seldom;

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
    /// How many bytes of HTTP/2 one thread has in memory: see [`crate::limits::buffered_bytes`].
    pub buffered_bytes: usize,
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
    /// Clients that have any.
    clients: RefCell<HashMap<IpAddr, Client>>,
    /// Bytes in memory of all of them.
    buffers: Rc<Account>,
    pub(crate) warned: Warned,
}

/// What a thread warns of now and then.
#[derive(Debug, Default)]
pub(crate) struct Warned {
    pub(crate) cannot_accept: Seldom,
    pub(crate) no_node_address: Seldom,
    still_there: Seldom,
}

/// What one client has of a thread.
#[derive(Debug)]
struct Client {
    connections: usize,
    buffers: Rc<Account>,
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
            own.get_mut().connections -= 1;
            if own.get().connections == 0 {
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

impl<C> Thread<C> {
    /// A thread without connections.
    pub fn new(connector: C, common: Common) -> Rc<Self> {
        let clock = Rc::new(Clock { now: Cell::new(Instant::now()), timeouts: common.timeouts });
        let buffers = Account::new(most_buffered(common.buffered_bytes), None);
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
            buffers,
            warned: Warned::default(),
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
        let mut clients = self.clients.borrow_mut();
        let own = clients.get(&client).map_or(0, |own| own.connections);
        if self.connections() >= most || own >= limits::client_share(most) {
            return None;
        }
        let new = || {
            let most = most_buffered(limits::buffered_share(self.common.buffered_bytes));
            Client { connections: 0, buffers: Account::new(most, Some(self.buffers.clone())) }
        };
        clients.entry(client).or_insert_with(new).connections += 1;
        self.count.set(self.count.get() + 1);
        Some(Place { thread: self.clone(), client })
    }

    /// For the bytes of a new connection of `client`, which was admitted.
    pub(crate) fn buffers(&self, client: IpAddr) -> Rc<Account> {
        let clients = self.clients.borrow();
        let whole = clients.get(&client).map_or(&self.buffers, |own| &own.buffers);
        let most = Most { for_new: limits::H2_HEADS_BYTES, in_all: limits::H2_CONNECTION_BYTES };
        Account::new(most, Some(whole.clone()))
    }

    /// Enters a connection; also gives the one that it replaces.
    pub(crate) fn enter(&self, tuple: Tuple) -> (Rc<Live>, Option<Rc<Live>>) {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        let live = Rc::new(Live::new(id, tuple, self.clock.clone()));
        let replaced = self.live.borrow_mut().insert(tuple, live.clone());
        if let Some(old) = &replaced {
            self.common.counters.replaced.add();
            old.interrupt(Interrupt::Replaced);
        }
        (live, replaced)
    }

    /// Waits until the sockets of a replaced connection are closed.
    pub(crate) async fn wait_gone(&self, replaced: &Live) {
        let gone = tokio::time::timeout(self.common.timeouts.replace, replaced.gone.notified()).await;
        if gone.is_err() && self.warned.still_there.may_say() {
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
            for live in self.live.borrow().values().filter(|live| live.is_overdue(now)) {
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

/// For a thread or a client.
fn most_buffered(bytes: usize) -> Most {
    Most { for_new: limits::buffered_for_new(bytes), in_all: bytes }
}

/// How often a draining thread looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(50);
