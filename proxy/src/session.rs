//! One accepted connection, from its first byte on.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::gate::{Gate, Judgement};
use crate::limits;
use crate::live::{Interrupt, Live, Phase};
use crate::record::{Record, Running, clip};
use crate::refusal::Refusal;
use crate::thread::{Drain, Thread};
use crate::upstream::{Connect, ConnectError, Route, end_cleanly, prepare_stream};
use crate::{http1, http2, io as own_io};

/// What the handlers of one connection need to know of it.
#[derive(Debug)]
pub(crate) struct Session<C> {
    pub(crate) thread: Rc<Thread<C>>,
    pub(crate) live: Rc<Live>,
    pub(crate) gate: Gate,
    pub(crate) client: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// How the sockets of a connection are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both ended at a place where nothing is missing.
    Clean,
    /// The client has been given a last answer and may still be sending.
    Answered,
    /// Something is missing, and both ends are to see it.
    Reset,
}

/// Serves a connection that was accepted: `client` is the peer's end, `destination` whom it dialled.
pub async fn serve<C: Connect>(
    thread: Rc<Thread<C>>,
    stream: TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
) {
    let (live, replaced) = thread.enter((client, destination));
    if let Some(replaced) = replaced {
        thread.wait_gone(&replaced).await;
    }
    let gate = Gate::new(thread.common.policies.clone(), client, destination);
    let session = Session { thread, live, gate, client, destination };
    session.run(stream).await;
    session.thread.leave(&session.live);
}

impl<C: Connect> Session<C> {
    async fn run(&self, mut stream: TcpStream) {
        if let Err(error) = prepare_stream(&stream) {
            tracing::debug!(%error, client = %self.client, "cannot prepare an accepted socket");
            return;
        }
        if self.gate.is_loop() {
            self.counters().loops.add();
            return;
        }
        if self.gate.connection_denied() {
            self.counters().denied.add();
            return;
        }
        let mut inbox = BytesMut::new();
        let first = tokio::select! {
            biased;
            interrupt = self.interrupted() => {
                self.count(interrupt);
                if self.may_end_cleanly(interrupt) {
                    end_cleanly(&stream);
                }
                return;
            }
            first = self.first_bytes(&mut stream, &mut inbox) => first,
        };
        match first {
            Ok(First::Http1) => Box::pin(http1::serve(self, stream, inbox)).await,
            Ok(First::Http2) => Box::pin(http2::serve(self, stream, inbox)).await,
            Ok(First::Nothing) => end_cleanly(&stream),
            Err(error) => {
                tracing::debug!(%error, client = %self.client, "the client went before its first request")
            }
        }
    }

    /// Reads until it is clear whether the client opens with the HTTP/2 preface (RFC 9113 section 3.4).
    async fn first_bytes(&self, stream: &mut TcpStream, inbox: &mut BytesMut) -> io::Result<First> {
        stream.readable().await?;
        loop {
            if own_io::read_more(stream, inbox, limits::HEAD_READ_BYTES).await? == 0 {
                return Ok(if inbox.is_empty() { First::Nothing } else { First::Http1 });
            }
            self.phase(Phase::Head);
            if inbox.starts_with(http2::PREFACE) {
                return Ok(First::Http2);
            }
            if !http2::PREFACE.starts_with(inbox) {
                return Ok(First::Http1);
            }
        }
    }

    /// Connects to the server as the client.
    pub(crate) async fn connect(&self) -> Option<TcpStream> {
        let connected = async {
            let Some(source) = self.gate.upstream_source() else {
                if self.thread.warned.no_node_address.may_say() {
                    tracing::warn!(destination = %self.destination, "no address of this node to connect with");
                }
                return None;
            };
            let route = Route { client: self.client, destination: self.destination, source };
            let stream = self.thread.connector.connect(&route, self.timeouts().connect).await;
            stream.and_then(|stream| self.prepared(stream)).inspect_err(|error| tracing::debug!(%error)).ok()
        }
        .await;
        if connected.is_none() {
            self.counters().upstream_failed.add();
        }
        connected
    }

    fn prepared(&self, stream: TcpStream) -> Result<TcpStream, ConnectError> {
        match prepare_stream(&stream) {
            Ok(()) => Ok(stream),
            Err(error) => Err(ConnectError::Prepare { destination: self.destination, error }),
        }
    }
}

impl<C> Session<C> {
    pub(crate) fn counters(&self) -> &crate::counters::Counters {
        &self.thread.common.counters
    }

    pub(crate) fn timeouts(&self) -> &limits::Timeouts {
        &self.thread.common.timeouts
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.live.enter(phase);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.thread.draining.borrow() != Drain::No
    }

    /// Until the connection is to end for a reason that has nothing to do with what it carries.
    pub(crate) async fn interrupted(&self) -> Interrupt {
        let mut changes = self.thread.changes.subscribe();
        loop {
            if self.gate.connection_denied() {
                return Interrupt::Forbidden;
            }
            tokio::select! {
                biased;
                interrupt = self.live.interrupted() => return interrupt,
                changed = changes.changed() => if changed.is_err() {
                    return self.live.interrupted().await;
                },
            }
        }
    }

    /// Whether a connection that is ended from outside is at a place where nothing is missing.
    pub(crate) fn may_end_cleanly(&self, interrupt: Interrupt) -> bool {
        let in_time = matches!(interrupt, Interrupt::TimedOut | Interrupt::DrainLimit);
        in_time && self.live.is_between_requests()
    }

    pub(crate) fn count(&self, interrupt: Interrupt) {
        match interrupt {
            Interrupt::Replaced => {}
            Interrupt::TimedOut => self.counters().timed_out.add(),
            Interrupt::DrainLimit => self.counters().drain_limit.add(),
            Interrupt::Forbidden => self.counters().ended_by_policy.add(),
        }
    }

    /// Ends both connections where nothing is missing. Until the server has ended too, the tuple stays in the thread's
    /// table, so that a client that uses its port again aborts the old connection instead of losing the port.
    pub(crate) async fn end_both(&self, client: TcpStream, upstream: Option<TcpStream>) {
        end_cleanly(&client);
        drop(client);
        let Some(mut upstream) = upstream else { return };
        let replaced = tokio::select! {
            biased;
            why = self.live.interrupted() => why == Interrupt::Replaced,
            () = own_io::until_server_ends(&mut upstream, self.timeouts().linger) => false,
        };
        if !replaced {
            end_cleanly(&upstream);
        }
    }

    /// The record of a request that begins now: its method, path and host as they came.
    pub(crate) fn record(&self, protocol: &'static str, texts: [&[u8]; 3], judgement: Judgement) -> Record {
        let [method, path, host] = clip(texts);
        let mut record = Record {
            time: SystemTime::now(),
            latency: Duration::ZERO,
            client: self.client,
            destination: self.destination,
            source_identity: 0,
            destination_identity: 0,
            protocol,
            method,
            path,
            host,
            status: 0,
            grpc_status: -1,
            allowed: false,
            sent: false,
            reason: "cancelled",
            detail: "",
            egress: None,
            ingress: None,
            snapshot: 0,
        };
        record.judged(judgement);
        record
    }

    /// Counts a refusal and puts it into the record.
    pub(crate) fn note_refusal(&self, running: &mut Running<'_>, refusal: Refusal) {
        match refusal {
            Refusal::Denied | Refusal::NoSnapshot => self.counters().denied.add(),
            Refusal::Unreachable | Refusal::BadGateway | Refusal::BadResponse(_) => {}
            Refusal::NoRoom => self.counters().buffers_full.add(),
            Refusal::TooManyReadings => self.counters().too_many_readings.add(),
            _ => self.counters().malformed.add(),
        }
        running.note(|record| {
            (record.reason, record.detail) = (refusal.reason(), refusal.detail());
            record.status = refusal.status().0;
        });
    }
}

/// How a client begins.
enum First {
    Http1,
    Http2,
    /// It closed without a word.
    Nothing,
}
