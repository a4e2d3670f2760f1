//! The one task that owns the agent's state and writes to the kernel. Everything else sends it requests and looks at the
//! [`View`] that it publishes.
//!
//! A change of policy takes this way: compile snapshot N ([`compile`]) -> withdraw addresses that are somebody else's now
//! -> send N to the proxy -> its acknowledgement, at most [`ACK_LIMIT`] -> the maps ([`flip`]).

mod announce;
mod check;
mod cni;
mod compile;
mod flip;
mod gone;
mod health;
mod judges;
mod news;
mod node;
mod peers;
mod problems;
mod ready;
mod setup;
mod silence;
mod view;
mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::PeerSet;
use datapath::Datapath;
use datapath::lower::{Installed, Origins};
use policy::{Problem, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::Config;
use crate::identities::StoredIdentities;
use crate::ipam::Pool;
use crate::journal::Journal;
use crate::known_nodes::KnownNodes;
use crate::node::{Follow, NodeError, NodeNetwork};
use crate::numbers::Numbers;
use crate::publisher::Publisher;
use crate::source::{NodeStatus, Records, Source};

use self::cni::Waiter;
use self::gone::Gone;
use self::health::Health;
use self::judges::Judge;
use self::news::Proxy;
use self::node::Keeping;
use self::problems::{ProblemLog, Problems};
use self::silence::Voice;

pub use self::check::CheckRequest;
pub use self::cni::{AllocateRequest, Allocated, AttachRequest, CniError, Reply};
pub use self::news::{ConnectionId, ProxyNews, Request, TunnelNews};
pub use self::ready::Readiness;
pub use self::view::{AttachedPod, ProxyState, View};

/// Requests that wait for the task. Each has a caller that waits for its answer; more callers than pods of a node is a
/// mistake that shall slow down the callers, not the agent.
const REQUESTS: usize = 256;
/// How long the kernel waits for the proxy to take over a snapshot. Then L4 changes anyway and the L7 rules that are new
/// deny: a proxy that hangs must not keep a refusal out of force.
const ACK_LIMIT: Duration = Duration::from_secs(1);
/// What is repaired without being asked: notes, announcements, and everything that the agent made of the node.
const TICK: Duration = Duration::from_secs(10);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why the agent gives up.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The node cannot be a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The datapath cannot be loaded or read.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// There is no bpf file system.
    #[error(transparent)]
    Mount(#[from] host::mount::MountError),
    /// The source has ended.
    #[error("the source of manifests has ended")]
    SourceEnded,
}

/// What everything else holds of the task.
#[derive(Clone)]
pub struct Handle {
    /// To ask for something.
    pub requests: mpsc::Sender<Request>,
    /// The state.
    pub view: watch::Receiver<Arc<View>>,
    /// What the proxy shall take over: the newest snapshot.
    pub snapshots: watch::Receiver<Option<Arc<api::policy::Snapshot>>>,
    /// What the tunnel shall take over.
    pub peers: watch::Receiver<Option<Arc<PeerSet>>>,
    /// Names of the rules in events.
    pub origins: Arc<Mutex<Origins>>,
}

/// A snapshot that the proxy has been sent and the kernel has not.
struct Pending {
    snapshot: Arc<Snapshot>,
    deadline: Instant,
}

/// The state.
pub struct Reconciler<S: Source> {
    config: Config,
    source: Arc<S>,
    publisher: Publisher,
    requests: mpsc::Receiver<Request>,
    view: watch::Sender<Arc<View>>,
    snapshots: watch::Sender<Option<Arc<api::policy::Snapshot>>>,
    peer_sets: watch::Sender<Option<Arc<PeerSet>>>,

    records: Option<Arc<Records>>,
    journal: Journal,
    pool: Option<Pool>,
    identities: StoredIdentities,
    numbers: Numbers,
    unused_number: Option<u64>,

    network: Option<NodeNetwork>,
    keeping: Keeping,
    gone: Gone,
    datapath: Datapath,
    installed: Installed,
    origins: Arc<Mutex<Origins>>,

    /// In force in the kernel.
    current: Arc<Snapshot>,
    pending: Option<Pending>,
    /// The source or the journal changed since the last compilation.
    dirty: bool,
    /// Pods or judges changed since the last flip.
    stale: bool,
    retry_at: Option<Instant>,
    waiters: Vec<Waiter>,

    proxies: BTreeMap<ConnectionId, Proxy>,
    /// What a proxy judges by while none is connected.
    last_judge: Judge,
    /// Snapshots that a proxy may acknowledge.
    sent: Vec<Arc<Snapshot>>,
    slots: u32,
    tunnel: Option<(ConnectionId, api::agent::TunnelReport)>,
    tunnel_voice: Voice,
    announced: Option<NodeStatus>,
    known_nodes: KnownNodes,
    problems: Problems,
    problem_log: ProblemLog,
    health: Health,
}

impl<S: Source> Reconciler<S> {
    /// Runs until the last [`Handle`] is dropped.
    ///
    /// # Errors
    /// What makes it impossible to go on; traffic goes on as it is.
    pub async fn run(mut self) -> Result<(), ReconcileError> {
        let mut records = self.source.watch();
        records.mark_changed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listen = tokio::time::interval(api::REPEAT);
        listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let follow = Follow::start(&self.config);
        loop {
            let wake = self.next_wake();
            let may_look = self.keeping.may_look_at.unwrap_or_else(Instant::now);
            follow.set_uplink(self.network.as_ref().map_or(0, |network| network.uplink.index));
            tokio::select! {
                changed = records.changed() => {
                    changed.map_err(|_| ReconcileError::SourceEnded)?;
                    let newest = records.borrow_and_update().clone();
                    self.take_records(newest);
                    self.keep_node(false).await;
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.handle(request).await,
                    None => return Ok(()),
                },
                _ = tick.tick() => self.tick().await,
                _ = listen.tick() => self.count_silence(),
                () = async {
                    tokio::time::sleep_until(may_look).await;
                    follow.changed().await;
                } => self.keep_node(true).await,
                () = tokio::time::sleep_until(wake) => {}
            }
            // What is there already is one change, not many.
            while let Ok(request) = self.requests.try_recv() {
                self.handle(request).await;
            }
            self.step().await?;
        }
    }

    /// Brings what is in force closer to what shall be.
    async fn step(&mut self) -> Result<(), ReconcileError> {
        if self.network.is_none() && !self.set_up_node().await? {
            self.publish_view();
            return Ok(());
        }
        let now = Instant::now();
        if self.keeping.retry_at.is_some_and(|at| at <= now)
            || self.gone.next_due().is_some_and(|at| at <= now)
        {
            self.keep_node(true).await;
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.write_config();
            self.stale = true;
        }
        loop {
            let may_compile = self.pending.is_none() && self.retry_at.is_none();
            let compiles = self.dirty && may_compile;
            if compiles {
                self.compile();
            }
            self.take_acknowledged(now);
            while self.stale && self.retry_at.is_none() {
                self.flip();
            }
            // What changed while a snapshot was on its way to the proxy is the next one.
            if compiles || !(self.dirty && self.pending.is_none() && self.retry_at.is_none()) {
                break;
            }
        }
        self.answer_waiters();
        self.publish_view();
        Ok(())
    }

    /// The snapshot on its way is current once every proxy has it, or has been silent for too long.
    fn take_acknowledged(&mut self, now: Instant) {
        let proxies = &self.proxies;
        let arrived = self.pending.take_if(|pending| {
            let acknowledged = proxies.values().all(|proxy| proxy.number >= pending.snapshot.number);
            acknowledged || now >= pending.deadline
        });
        if let Some(pending) = arrived {
            self.current = pending.snapshot;
            self.stale = true;
        }
    }

    fn next_wake(&self) -> Instant {
        let pending = self.pending.as_ref().map(|pending| pending.deadline);
        let now = Instant::now();
        // One that has passed waits for something else.
        let waiter =
            self.waiters.iter().map(|waiter| waiter.deadline).filter(|deadline| *deadline > now).min();
        let told = [self.health.next_wake(now), self.problem_log.next_end()];
        [pending, waiter, self.retry_at, self.keeping.retry_at, self.gone.next_due()]
            .into_iter()
            .chain(told)
            .flatten()
            .min()
            .unwrap_or(now + TICK)
    }

    fn take_records(&mut self, records: Option<Arc<Records>>) {
        let Some(records) = records else { return };
        self.known_nodes.learn(&records);
        self.records = Some(records);
        // What is new may be what was missing. Once there is a network, only a change of this node's own object is, and that is
        // followed at once: other nodes announce something all the time.
        if self.network.is_none() {
            self.keeping.retry_at = None;
        }
        self.dirty = true;
    }

    /// Something failed that may succeed later.
    fn retry_later(&mut self, location: &str, error: &dyn std::fmt::Display) {
        let message = format!("{error}; it is tried again each second");
        self.problems.retry = vec![Problem { location: location.to_owned(), message }];
        self.retry_at = Some(Instant::now() + RETRY);
    }

    async fn tick(&mut self) {
        self.health.look_at_disk(&self.config.state_dir);
        if self.network.is_none() {
            return;
        }
        self.honour_release_notes().await;
        self.compare_announcements();
        self.keep_node(true).await;
    }
}
