//! The two kinds of process: a master that owns the listeners, and the worker that serves them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use host::master::{Capability, Command, Descriptors, MasterConfig, MasterError, WorkerSide, run_master};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::agent::AgentClient;
use crate::config::Config;
use crate::counters::Counters;
use crate::limits::{self, Timeouts};
use crate::policies::Policies;
use crate::pulse::{Pulses, pulses};
use crate::record::RecordSink;
use crate::store::SnapshotStore;
use crate::thread::Common;
use crate::upstream::Transparent;
use crate::{listener, slot};

/// Runs the master until a successor has taken over or SIGTERM comes.
///
/// # Errors
/// It could not start.
pub fn run_as_master(config: &Config, worker_args: Vec<OsString>) -> anyhow::Result<()> {
    raise_descriptor_limit(config.threads)?;
    let store = config.store_dir();
    fs::create_dir_all(&store).with_context(|| format!("cannot make {}", store.display()))?;
    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make {}", config.run_dir.display()))?;
    chown(&store, Some(config.worker_uid), Some(config.worker_uid))
        .and_then(|()| fs::set_permissions(&store, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("cannot give {} to uid {}", store.display(), config.worker_uid))?;
    let master = MasterConfig {
        name: "mesh-proxy",
        handover_socket: config.handover_socket(),
        worker_args,
        worker_user: Some(config.worker_uid),
        worker_capabilities: vec![Capability::NetRaw, Capability::NetBindService],
        drain_limit: config.drain() + DRAIN_GRACE,
    };
    let mut signals = StopSignals::new()?;
    loop {
        let open = |held: &mut Descriptors| listener::complete(&config.pin_dir, config.threads, held);
        match run_master(master.clone(), open) {
            // A node on which the agent has not run yet. A successor needs no pins: what it gets is in its slots already.
            Err(MasterError::Open(_)) if !listener::is_pinned(&config.pin_dir) => {}
            ended => return Ok(ended?),
        }
        if !signals.wait_for_pins(&config.pin_dir)? {
            return Ok(());
        }
    }
}

/// SIGTERM and SIGINT while there is nothing to be master of.
struct StopSignals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (terminate, interrupt) = {
            let _within = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        Ok(Self { runtime, terminate, interrupt })
    }

    /// Waits for the agent. False: a signal came.
    fn wait_for_pins(&mut self, pin_dir: &Path) -> anyhow::Result<bool> {
        let (pause, limit) = limits::PINS_WAIT;
        tracing::info!(pin_dir = %pin_dir.display(), "waiting until the agent has pinned the listener map");
        let pinned = async {
            while !listener::is_pinned(pin_dir) {
                tokio::time::sleep(pause).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => Ok(false),
                _ = self.interrupt.recv() => Ok(false),
                pinned = tokio::time::timeout(limit, pinned) => {
                    pinned.map(|()| true).with_context(|| {
                        format!("no listener map in {} after {} s: does the agent run?", pin_dir.display(), limit.as_secs())
                    })
                }
            }
        })
    }
}

/// What a worker needs after its own drain limit to say goodbye.
const DRAIN_GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs the worker until its master wants it drained and it is, or is gone.
///
/// # Errors
/// It could not start.
pub fn run_as_worker(config: &Config) -> anyhow::Result<()> {
    let (descriptors, side) = WorkerSide::from_env()?;
    let listeners = listener::from_descriptors(descriptors)?;
    let slots = u32::try_from(listeners.len()).context("more listeners than slots")?;
    let counters = Arc::new(Counters::default());
    let (records, queue) = RecordSink::new(counters.clone());
    let timeouts = Timeouts { drain: config.drain(), ..Timeouts::default() };
    let policies = Arc::new(Policies::default());
    let store = SnapshotStore::new(&config.store_dir());
    load_last_snapshot(&store, &policies);
    let connections = connections_per_thread(slots)?;
    let common = Common {
        policies: policies.clone(),
        records,
        counters: counters.clone(),
        timeouts,
        connections,
        buffered_bytes: limits::buffered_bytes(listeners.len()),
    };
    let (retire, retired) = watch::channel(false);
    let (pulse, pulses) = pulses(listeners.len());
    let mut threads = Vec::new();
    for (slot, listener) in listeners.into_iter().enumerate() {
        listener.set_nonblocking(true).with_context(|| format!("the listener of slot {slot}"))?;
        let (common, retired, pulse) = (common.clone(), retired.clone(), pulse.clone());
        let connector = Transparent::new(counters.clone());
        let thread = std::thread::Builder::new().name(format!("slot-{slot}")).spawn(move || {
            if let Err(error) = slot::run(listener, connector, common, retired, pulse, None) {
                tracing::error!(slot, %error, "a slot cannot be served");
                // The master starts another worker; a slot that nobody serves would hang its clients.
                std::process::exit(1);
            }
        });
        threads.push(thread.with_context(|| format!("the thread of slot {slot}"))?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Arc::new(AgentClient::new(&config.agent_socket(), policies, Some(store), slots));
        let snapshots = client.clone();
        tokio::spawn(async move { snapshots.follow_snapshots().await });
        tokio::spawn(async move { client.send_records(queue).await });
        obey(side, pulses, &retire, threads).await;
    });
    tracing::info!(counters = ?counters.all(), "worker ends");
    Ok(())
}

fn load_last_snapshot(store: &SnapshotStore, policies: &Policies) {
    match store.load() {
        Ok(Some(snapshot)) => {
            tracing::info!(
                number = snapshot.number,
                "the last snapshot is in force until the agent sends one"
            );
            policies.install(Arc::new(snapshot));
        }
        Ok(None) => tracing::info!("no snapshot yet: every request is refused until the agent sends one"),
        Err(error) => tracing::error!(%error, "every request is refused until the agent sends a snapshot"),
    }
}

/// Does what the master says. Returns when all threads have drained.
async fn obey(
    mut side: WorkerSide,
    mut pulses: Pulses,
    retire: &watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
) {
    side.ready();
    loop {
        tokio::select! {
            command = side.next() => match command {
                // Nobody accounts for this worker any more. Every socket resets its peer.
                Command::MasterGone => std::process::exit(1),
                // A single thread that hangs leaves its share of the node's connections without an
                // answer.
                Command::ShowLife => pulses.ask(),
                Command::Drain => break,
            },
            () = pulses.all_answered() => side.alive(),
        }
    }
    tracing::info!("draining");
    retire.send_replace(true);
    let drained = tokio::task::spawn_blocking(move || {
        for thread in threads {
            // A thread that panicked has logged it, and its connections are gone.
            let _ = thread.join();
        }
    });
    tokio::select! {
        biased;
        () = master_gone(&mut side) => std::process::exit(1),
        _ = drained => tokio::time::sleep(LAST_RECORDS).await,
    }
}

async fn master_gone(side: &mut WorkerSide) {
    while side.next().await != Command::MasterGone {}
}

/// Time for the last records to reach the agent.
const LAST_RECORDS: std::time::Duration = std::time::Duration::from_millis(200);

/// Two for each connection, and some.
fn descriptors_for(connections: usize) -> u64 {
    2 * connections as u64 + limits::OTHER_DESCRIPTORS
}

/// The worker inherits the limit. Above the hard one only with CAP_SYS_RESOURCE; without it, as far as it goes.
fn raise_descriptor_limit(threads: u32) -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = descriptors_for(threads as usize * limits::CONNECTIONS_PER_THREAD);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted.max(hard)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
    }
    Ok(())
}

/// As many as the descriptors suffice for: a connection that is accepted must get its upstream.
fn connections_per_thread(threads: u32) -> anyhow::Result<usize> {
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = threads as usize * limits::CONNECTIONS_PER_THREAD;
    if descriptors >= descriptors_for(most) {
        return Ok(limits::CONNECTIONS_PER_THREAD);
    }
    let pairs = descriptors.saturating_sub(limits::OTHER_DESCRIPTORS) / 2 / u64::from(threads.max(1));
    let connections = usize::try_from(pairs)?.max(1);
    tracing::warn!(descriptors, connections, "the limit of open files bounds the connections of a thread");
    Ok(connections)
}
