//! One record for each request, sent when it ends, however it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use policy::{DirectionDecision, IdentityId};
use tokio::sync::mpsc;

use crate::counters::Counters;
use crate::gate::Judgement;
use crate::limits;

/// What is known of a request that has ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// When its head was complete.
    pub time: SystemTime,
    /// From then to its end.
    pub latency: Duration,
    /// Who sent it.
    pub client: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Identity of the client's address.
    pub source_identity: IdentityId,
    /// Identity of the destination's address.
    pub destination_identity: IdentityId,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Its method; at most [`limits::RECORD_TEXT_BYTES`], like the next two.
    pub method: Bytes,
    /// Path and query as they came.
    pub path: Bytes,
    /// Its authority.
    pub host: Bytes,
    /// Status the client got; 0: none.
    pub status: u16,
    /// `grpc-status` the client got; -1: none.
    pub grpc_status: i32,
    /// Policy allowed it.
    pub allowed: bool,
    /// Some of it was sent to the server.
    pub sent: bool,
    /// Stable name of what ended it; "forwarded" if it went to its end.
    pub reason: &'static str,
    /// What exactly, where the reason stands for many things.
    pub detail: &'static str,
    /// The client's policy, if it is judged here.
    pub egress: Option<DirectionDecision>,
    /// The server's policy, if it is judged here.
    pub ingress: Option<DirectionDecision>,
    /// Number of the snapshot it was judged by.
    pub snapshot: u64,
}

/// How a request ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went to the server, and to its end there or until its client left.
    Forwarded,
    /// The proxy did not let it through, or not to its end.
    Refused,
    /// It was to go through, and the server or the way to it failed.
    Failed,
}

impl Record {
    /// How it ended: not what policy decided, but what happened.
    pub fn outcome(&self) -> Outcome {
        match self.reason {
            "forwarded" => Outcome::Forwarded,
            "client_gone" | "cancelled" if self.sent => Outcome::Forwarded,
            _ if !self.allowed => Outcome::Refused,
            "bad_request" | "head_too_large" | "expectation_failed" | "connect_refused" | "buffers_full" => {
                Outcome::Refused
            }
            _ => Outcome::Failed,
        }
    }

    /// Takes over what a judgement says.
    pub fn judged(&mut self, judgement: Judgement) {
        self.allowed = judgement.refusal.is_none();
        self.egress = judgement.egress;
        self.ingress = judgement.ingress;
        self.snapshot = judgement.snapshot;
        self.source_identity = judgement.source_identity;
        self.destination_identity = judgement.destination_identity;
    }
}

/// Where records go. Never waits: what does not fit is counted.
#[derive(Clone, Debug)]
pub struct RecordSink {
    queue: mpsc::Sender<Record>,
    counters: Arc<Counters>,
}

impl RecordSink {
    /// A queue of [`limits::RECORDS`], and its other end.
    pub fn new(counters: Arc<Counters>) -> (Self, mpsc::Receiver<Record>) {
        let (queue, records) = mpsc::channel(limits::RECORDS);
        (Self { queue, counters }, records)
    }

    fn send(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.counters.records_lost.add();
        }
    }
}

/// A request under way. Dropping it sends its record, so that one that is cancelled is recorded too.
#[derive(Debug)]
pub struct Running<'a> {
    record: Option<Record>,
    started: Instant,
    sink: &'a RecordSink,
}

impl<'a> Running<'a> {
    /// Starts the clock.
    pub fn new(sink: &'a RecordSink, record: Record) -> Self {
        Self { record: Some(record), started: Instant::now(), sink }
    }

    /// How long it has been under way.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// To fill in what became known.
    pub fn note(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.latency = self.started.elapsed();
            self.sink.send(record);
        }
    }
}

/// What a record keeps of texts: copies, because a piece of a head keeps the whole head in memory, and records may
/// wait for the agent.
pub fn clip(texts: [&[u8]; 3]) -> [Bytes; 3] {
    let texts = texts.map(|text| text.get(..limits::RECORD_TEXT_BYTES).unwrap_or(text));
    let all = Bytes::from(texts.concat());
    let mut end = 0;
    texts.map(|text| {
        end += text.len();
        all.slice(end - text.len()..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_no_more_than_its_limit_in_memory() {
        let head = Bytes::from(vec![b'x'; limits::HEAD_BYTES]);
        let [method, path, host] = clip([b"GET", &head, b"a"]);
        assert_eq!((&method[..], path.len(), &host[..]), (&b"GET"[..], limits::RECORD_TEXT_BYTES, &b"a"[..]));
        assert!(head.try_into_mut().is_ok(), "the head is still held");
    }
}
