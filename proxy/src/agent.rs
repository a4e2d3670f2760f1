//! The worker as a client of the agent: snapshots come in, request records go out. The agent is not needed for traffic.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use api::agent::proxy_client::ProxyClient;
use api::agent::{RequestOutcome, RequestRecord, SnapshotAck};
use policy::{DirectionDecision, Snapshot, Verdict};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::limits;
use crate::policies::Policies;
use crate::record::{Outcome, Record};
use crate::store::SnapshotStore;

/// Acknowledgements under way: one for each snapshot, and the agent sends the next one only after it has read this.
const ACKS: usize = 4;

/// Records waiting inside one call, beside those in the queue of the threads.
const RECORDS_IN_CALL: usize = 256;

/// The worker's end of `proxy.sock`.
#[derive(Debug)]
pub struct AgentClient {
    channel: Channel,
    policies: Arc<Policies>,
    store: Option<SnapshotStore>,
    /// Listener slots, for the agent's configuration of the datapath.
    slots: u32,
}

impl AgentClient {
    /// Talks to the agent on `socket`; within a runtime. Snapshots are kept in `store`, if there is one.
    pub fn new(socket: &Path, policies: Arc<Policies>, store: Option<SnapshotStore>, slots: u32) -> Self {
        Self { channel: api::connect::channel(socket), policies, store, slots }
    }

    /// Receives snapshots for ever; dials again when the agent goes away.
    pub async fn follow_snapshots(&self) {
        let mut pause = Pause::default();
        loop {
            match self.snapshots(&mut pause).await {
                Ok(()) => tracing::info!("the agent has closed its stream of snapshots"),
                Err(status) => tracing::debug!(%status, "no snapshots from the agent"),
            }
            pause.wait().await;
        }
    }

    async fn snapshots(&self, pause: &mut Pause) -> Result<(), tonic::Status> {
        let (acks, receiver) = mpsc::channel(ACKS);
        let gone = |_| tonic::Status::cancelled("the agent does not read acknowledgements");
        acks.send(self.ack(self.policies.number(), String::new())).await.map_err(gone)?;
        let mut client =
            ProxyClient::new(self.channel.clone()).max_decoding_message_size(limits::SNAPSHOT_BYTES);
        let mut snapshots = client.snapshots(ReceiverStream::new(receiver)).await?.into_inner();
        tracing::info!("connected to the agent");
        let mut last = self.ack(self.policies.number(), String::new());
        let mut repeat = tokio::time::interval_at(Instant::now() + api::REPEAT, api::REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = snapshots.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    pause.reset();
                    last = self.take(message).await;
                    acks.send(last.clone()).await.map_err(gone)?;
                }
                // One that does not fit waits behind others, which say that this process works as
                // well.
                _ = repeat.tick() => drop(acks.try_send(last.clone())),
            }
        }
    }

    /// Puts a snapshot in force, then on disk, then acknowledges it: when the kernel follows, no restart of the worker
    /// can fall behind it. One that is refused leaves the last good one in force.
    async fn take(&self, message: api::policy::Snapshot) -> SnapshotAck {
        let number = message.number;
        let given = message.clone();
        // Thousands of patterns take long to compile, and this thread shows the master meanwhile
        // that the worker works.
        let read =
            tokio::task::spawn_blocking(move || Snapshot::try_from(given).map_err(|error| error.to_string()));
        let snapshot = match read.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!(number, %error, "refused a snapshot");
                return self.ack(self.policies.number(), format!("snapshot {number}: {error}"));
            }
        };
        self.policies.install(Arc::new(snapshot));
        tracing::info!(number, "snapshot in force");
        let Some(store) = self.store.clone() else { return self.ack(number, String::new()) };
        let saved = tokio::task::spawn_blocking(move || store.save(&message)).await;
        let problem = match saved {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => format!("cannot store the snapshot: {error}"),
        };
        if !problem.is_empty() {
            tracing::error!(number, problem);
        }
        self.ack(number, problem)
    }

    fn ack(&self, number: u64, error: String) -> SnapshotAck {
        let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
        SnapshotAck { number, pid, version, error, slots: self.slots, repeats: true }
    }

    /// Sends records for ever; dials again when the agent goes away. Those that do not fit meanwhile are lost.
    pub async fn send_records(&self, records: mpsc::Receiver<Record>) {
        let records = Arc::new(Mutex::new(records));
        let mut pause = Pause::default();
        loop {
            let (sender, receiver) = mpsc::channel(RECORDS_IN_CALL);
            let feeding = tokio::spawn(feed(records.clone(), sender));
            let mut client = ProxyClient::new(self.channel.clone());
            match client.requests(ReceiverStream::new(receiver)).await {
                Ok(_) => pause.reset(),
                Err(status) => tracing::debug!(%status, "request records do not reach the agent"),
            }
            feeding.abort();
            pause.wait().await;
        }
    }
}

async fn feed(records: Arc<Mutex<mpsc::Receiver<Record>>>, calls: mpsc::Sender<RequestRecord>) {
    let mut records = records.lock().await;
    loop {
        // A place is taken first: a record in hand while the call breaks would be lost.
        let Ok(place) = calls.reserve().await else { return };
        let Some(record) = records.recv().await else { return };
        place.send(record.into());
    }
}

/// Waits longer each time.
#[derive(Default)]
struct Pause(Duration);

impl Pause {
    fn reset(&mut self) {
        self.0 = Duration::ZERO;
    }

    async fn wait(&mut self) {
        let (first, longest) = limits::AGENT_RETRY;
        self.0 = (self.0 * 2).clamp(first, longest);
        tokio::time::sleep(self.0).await;
    }
}

impl From<Outcome> for RequestOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Forwarded => Self::Forwarded,
            Outcome::Refused => Self::Refused,
            Outcome::Failed => Self::Failed,
        }
    }
}

impl From<Record> for RequestRecord {
    fn from(record: Record) -> Self {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let allowed = |side: &Option<DirectionDecision>| {
            side.as_ref().is_some_and(|decision| decision.verdict == Verdict::Allowed)
        };
        let origin =
            |side: &Option<DirectionDecision>| side.as_ref().map(|decision| (&decision.origin).into());
        Self {
            time_ns: nanoseconds(record.time.duration_since(UNIX_EPOCH).unwrap_or_default()),
            latency_ns: nanoseconds(record.latency),
            source: octets(record.client.ip()),
            source_port: record.client.port().into(),
            destination: octets(record.destination.ip()),
            destination_port: record.destination.port().into(),
            source_identity: record.source_identity,
            destination_identity: record.destination_identity,
            protocol: record.protocol.to_owned(),
            method: text(&record.method),
            path: text(&record.path),
            host: text(&record.host),
            status: record.status.into(),
            grpc_status: record.grpc_status,
            allowed: record.allowed,
            sent: record.sent,
            outcome: RequestOutcome::from(record.outcome()).into(),
            reason: record.reason.to_owned(),
            detail: record.detail.to_owned(),
            egress_allowed: allowed(&record.egress),
            ingress_allowed: allowed(&record.ingress),
            egress_origin: origin(&record.egress),
            ingress_origin: origin(&record.ingress),
            snapshot: record.snapshot,
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
