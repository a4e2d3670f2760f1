//! One peer: its sessions (boringtun's `Tunn`), where it is, and when to knock again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;

use crate::peers::PeerConfig;
use crate::tunnel::Sink;

/// Number of a peer: the upper 24 bits of the receiver index of every message to it.
pub(crate) type PeerId = u32;

/// First wait for the answer to a handshake. Only a lost or untimely datagram gets here: two nodes that start together, two workers
/// in a hand-over.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Longest wait: `REKEY_TIMEOUT` of the paper (6.1). It costs 148 bytes each time for a node that is down.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Age at which a session is renewed although nobody uses it. Where there is traffic boringtun does it at 120 s; at 180 s it ends.
const RENEW_AFTER: Duration = Duration::from_secs(150);
/// Datagrams that one flush may send: boringtun queues at most 256 packets while there is no session.
const MAX_FLUSH: usize = 256;

pub(crate) struct Peer {
    pub(crate) node: String,
    pub(crate) public_key: PublicKey,
    pub(crate) allowed_ips: Vec<IpNet>,
    /// As the agent says.
    configured: SocketAddr,
    /// Where its last authenticated data came from, or else as configured.
    pub(crate) endpoint: SocketAddr,
    pub(crate) tunn: Tunn,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    retry: Duration,
    next_attempt: Instant,
    established: bool,
}

impl Peer {
    pub(crate) fn new(
        config: PeerConfig,
        secret: StaticSecret,
        id: PeerId,
        limiter: Arc<RateLimiter>,
        now: Instant,
    ) -> Self {
        // No persistent keepalive: nodes have no NAT between them, and a lost session is renewed by `tick`.
        let tunn = Tunn::new(secret, config.public_key, None, None, id, Some(limiter));
        Self {
            node: config.node,
            public_key: config.public_key,
            allowed_ips: config.allowed_ips,
            configured: config.endpoint,
            endpoint: config.endpoint,
            tunn,
            received_bytes: 0,
            sent_bytes: 0,
            retry: FIRST_RETRY,
            next_attempt: now,
            established: false,
        }
    }

    /// Takes what may change over. Returns whether it is somewhere else now.
    pub(crate) fn update(&mut self, config: PeerConfig) -> bool {
        self.node = config.node;
        self.allowed_ips = config.allowed_ips;
        let moved = self.configured != config.endpoint;
        if moved {
            self.configured = config.endpoint;
            self.endpoint = config.endpoint;
        }
        moved
    }

    /// As the agent sent it.
    pub(crate) fn as_message(&self) -> api::agent::Peer {
        api::agent::Peer {
            node: self.node.clone(),
            public_key: self.public_key.as_bytes().to_vec(),
            endpoint: self.configured.to_string(),
            allowed_ips: self.allowed_ips.iter().map(ToString::to_string).collect(),
        }
    }

    /// Time since the last completed handshake of the session in use; `None` without one.
    pub(crate) fn last_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }

    /// Starts a handshake, whatever is in progress, and the waits for its answer anew.
    pub(crate) fn start_handshake(&mut self, now: Instant, scratch: &mut [u8], sink: &mut impl Sink) {
        self.retry = FIRST_RETRY;
        self.knock(now, scratch, sink);
    }

    fn knock(&mut self, now: Instant, scratch: &mut [u8], sink: &mut impl Sink) {
        self.next_attempt = now + self.retry;
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(scratch, true) {
            sink.to_network(datagram, self.endpoint);
        }
    }

    /// Runs the protocol's timers, and knocks while there is no session or only an old one. Returns whether a session came or went since the last call.
    ///
    /// A peer is never left without a session, used or not: the first packet after an idle hour then needs no handshake, and the age
    /// of the last one tells whether the node can be reached.
    pub(crate) fn tick(&mut self, now: Instant, scratch: &mut [u8], sink: &mut impl Sink) -> bool {
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.update_timers(scratch) {
            sink.to_network(datagram, self.endpoint);
        }
        let age = self.last_handshake();
        let established = age.is_some();
        if age.is_some_and(|age| age < RENEW_AFTER) {
            self.retry = FIRST_RETRY;
            self.next_attempt = now;
        } else if now >= self.next_attempt {
            if !established {
                // Where it was last heard it does not answer: back to where it should be.
                self.endpoint = self.configured;
            }
            self.knock(now, scratch, sink);
        }
        std::mem::replace(&mut self.established, established) != established
    }

    /// Sends what waited for a session.
    pub(crate) fn flush(&mut self, scratch: &mut [u8], sink: &mut impl Sink) {
        for _ in 0..=MAX_FLUSH {
            match self.tunn.decapsulate(None, &[], scratch) {
                TunnResult::WriteToNetwork(datagram) => sink.to_network(datagram, self.endpoint),
                _ => return,
            }
        }
    }
}
