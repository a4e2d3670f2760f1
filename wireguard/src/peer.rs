//! One peer: its sessions (boringtun's `Tunn`), where it is, and when to knock again.

mod slots;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;

use crate::packet::{self, Kind};
use crate::peers::PeerConfig;
use crate::tunnel::Sink;
use slots::Slots;

/// Number of a peer: the upper 24 bits of the receiver index of every message to it.
pub(crate) type PeerId = u32;

/// First wait for the answer to a handshake. Only a lost or untimely datagram gets here: two nodes that start together, two workers
/// in a hand-over.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Longest wait: `REKEY_TIMEOUT` of the paper (6.1). It costs 148 bytes each time for a node that is down.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Age at which a session is renewed although nobody uses it. Where there is traffic boringtun does it at 120 s; at 180 s it ends.
const RENEW_AFTER: Duration = Duration::from_secs(150);
/// How often a session that this side began is confirmed, one tick after the other. The other side goes on with the session it had
/// until it hears on the new one, and this side may have lost the old one with its process: boringtun confirms once, and notices a
/// lost confirmation after 15 s.
const CONFIRMATIONS: u8 = 2;
/// Packets that wait for a session at most: what boringtun queues. Some milliseconds of traffic; a handshake takes one.
pub(crate) const MAX_WAITING: usize = 256;

pub(crate) struct Peer {
    pub(crate) node: String,
    pub(crate) public_key: PublicKey,
    pub(crate) allowed_ips: Vec<IpNet>,
    /// As the agent says: where handshakes start.
    pub(crate) configured: SocketAddr,
    /// Where its last authenticated data or answer came from, or else as configured: where all else goes.
    pub(crate) endpoint: SocketAddr,
    pub(crate) tunn: Tunn,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    /// It was sent what it must answer: a handshake at once, a packet with one of its own or a
    /// keepalive within 10 s.
    owes: bool,
    /// Since when nothing came of a peer that owes an answer, to one tick.
    silent_since: Option<Instant>,
    last_tick: Instant,
    retry: Duration,
    next_attempt: Instant,
    established: bool,
    doubted: bool,
    next_doubt: Instant,
    confirmations: u8,
    slots: Slots,
    pub(crate) waiting: Waiting,
}

/// What waits for a session.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waiting {
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
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
            owes: false,
            silent_since: None,
            last_tick: now,
            retry: FIRST_RETRY,
            next_attempt: now,
            established: false,
            doubted: false,
            next_doubt: now,
            confirmations: 0,
            slots: Slots::default(),
            waiting: Waiting::default(),
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

    /// How long a peer that owes an answer had been silent at the last tick; `None` if it owes
    /// none.
    pub(crate) fn silence(&self) -> Option<Duration> {
        self.silent_since.map(|since| self.last_tick.saturating_duration_since(since))
    }

    fn answered(&mut self) {
        (self.owes, self.silent_since) = (false, None);
    }

    /// Starts a handshake, whatever is in progress, and the waits for its answer anew.
    pub(crate) fn start_handshake(&mut self, now: Instant, scratch: &mut [u8], sink: &mut impl Sink) {
        self.retry = FIRST_RETRY;
        self.knock(now, scratch, sink);
    }

    fn knock(&mut self, now: Instant, scratch: &mut [u8], sink: &mut impl Sink) {
        self.next_attempt = now + self.retry;
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        self.initiate(scratch, sink);
    }

    fn initiate(&mut self, scratch: &mut [u8], sink: &mut impl Sink) {
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(scratch, true) {
            self.send(datagram, sink);
        }
    }

    /// Sends what boringtun made without being asked by a datagram. A handshake starts where the peer should be: whoever diverted
    /// its data with one datagram, sent first from elsewhere, does not keep them.
    pub(crate) fn send(&mut self, datagram: &[u8], sink: &mut impl Sink) {
        match packet::kind(datagram) {
            Some((Kind::Initiation, index)) => {
                self.slots.begun(index);
                self.owes = true;
                sink.to_network(datagram, self.configured);
            }
            _ => sink.to_network(datagram, self.endpoint),
        }
    }

    /// Encrypts a packet; without a session it waits for one. Returns the bytes that wait now and did not before.
    pub(crate) fn encapsulate(&mut self, packet: &[u8], scratch: &mut [u8], sink: &mut impl Sink) -> usize {
        self.sent_bytes += packet.len() as u64;
        self.owes = true;
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(packet, scratch) {
            self.send(datagram, sink);
            if packet::kind(datagram).is_none() {
                return 0;
            }
        }
        self.waiting.packets += 1;
        self.waiting.bytes += packet.len();
        packet.len()
    }

    /// Sends what boringtun says to a datagram of the peer.
    pub(crate) fn answer(&mut self, answer: &[u8], to: SocketAddr, sink: &mut impl Sink) {
        if let Some((Kind::Response, index)) = packet::kind(answer) {
            self.slots.answered(index);
            self.answered();
        }
        sink.to_network(answer, to);
    }

    /// Whether an initiation of the peer may be answered. One whose session would take the place of the one in use is not, since
    /// nobody knows yet that the peer takes the answer; instead this side starts a handshake, which ends in the same.
    pub(crate) fn may_answer(&mut self, scratch: &mut [u8], sink: &mut impl Sink) -> bool {
        let may = !self.slots.next_is_current();
        if !may {
            self.initiate(scratch, sink);
        }
        may
    }

    /// To be called for authentic data on the session `index` of this side.
    pub(crate) fn heard(&mut self, index: u32, from: SocketAddr) {
        self.endpoint = from;
        self.answered();
        self.slots.heard(index, || self.tunn.time_since_last_handshake().is_some());
    }

    /// To be called for an authentic answer to this side's handshake.
    pub(crate) fn completed(&mut self, index: u32, from: SocketAddr) {
        self.endpoint = from;
        self.answered();
        self.confirmations = CONFIRMATIONS;
        self.slots.completed(index, || self.tunn.time_since_last_handshake().is_some());
    }

    /// To be called for an authentic initiation that is too old: it was sent twice, or the peer lives in the past (it was started
    /// again, and its clock set back). All that such a peer sends will be refused for as long, so the next tick knocks.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
    }

    fn confirm(&mut self, scratch: &mut [u8], sink: &mut impl Sink) {
        self.confirmations = self.confirmations.saturating_sub(1);
        // Without a session it would wait for one.
        if self.last_handshake().is_some()
            && let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(&[], scratch)
        {
            self.send(datagram, sink);
        }
    }

    /// Runs the protocol's timers, and knocks while there is no session or only an old one. Returns whether a session came or went
    /// since the last call.
    ///
    /// A peer is never left without a session, used or not: the first packet after an idle hour then needs no handshake, and the age
    /// of the last one tells whether the node can be reached.
    pub(crate) fn tick(&mut self, now: Instant, scratch: &mut [u8], sink: &mut impl Sink) -> bool {
        self.slots.tick();
        self.last_tick = now;
        // Here and not for each packet, which needs no clock this way.
        if self.owes {
            self.silent_since.get_or_insert(now);
        }
        match self.tunn.update_timers(scratch) {
            TunnResult::WriteToNetwork(datagram) => self.send(datagram, sink),
            // A minute and a half without an answer: boringtun drops what waits.
            TunnResult::Err(WireGuardError::ConnectionExpired) => self.waiting = Waiting::default(),
            _ => {}
        }
        if self.confirmations > 0 {
            self.confirm(scratch, sink);
        }
        let age = self.last_handshake();
        let established = age.is_some();
        if std::mem::take(&mut self.doubted) && now >= self.next_doubt {
            self.next_doubt = now + LONGEST_RETRY;
            self.start_handshake(now, scratch, sink);
        } else if age.is_some_and(|age| age < RENEW_AFTER) {
            self.retry = FIRST_RETRY;
            self.next_attempt = now;
        } else if now >= self.next_attempt {
            self.knock(now, scratch, sink);
        }
        std::mem::replace(&mut self.established, established) != established
    }

    /// Sends what waited for a session.
    pub(crate) fn flush(&mut self, scratch: &mut [u8], sink: &mut impl Sink) {
        self.waiting = Waiting::default();
        for _ in 0..=MAX_WAITING {
            match self.tunn.decapsulate(None, &[], scratch) {
                TunnResult::WriteToNetwork(datagram) => self.send(datagram, sink),
                _ => return,
            }
        }
    }
}
