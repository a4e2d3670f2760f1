//! The WireGuard protocol of one node, without I/O: packets and datagrams go in, and come out through a [`Sink`].
//!
//! - A packet to an address that is no peer's is dropped and counted; there is no other way out of this module than encrypted.
//! - A decrypted packet is handed on only if its source address belongs to the peer that sent it (cryptokey routing).
//! - **Roaming.** Nodes have fixed endpoints, told by the agent, and handshakes start there. Answers of a handshake go where it came
//!   from; what follows goes where the peer's last answer or data came from. An initiation moves nothing, since a captured one can
//!   be sent again from elsewhere, and who diverts data with a datagram that he holds back loses them with the next handshake.
//! - **Under load** (more handshakes than [`HANDSHAKES_PER_SECOND`]) a cookie must prove the sender's address first (paper, 5.3),
//!   and senders that are no peer's endpoint share [`STRANGERS_PER_SECOND`].

mod update;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::allowed_ips::AllowedIps;
use crate::packet;
use crate::peer::{MAX_WAITING, Peer, PeerId, Waiting};
use crate::peers::Problem;

/// Largest packet and largest datagram: what the length field of an IP header can say.
pub const MAX_PACKET: usize = 65_535;
/// Header and tag that encryption adds to a packet (paper, 5.4.6).
pub const OVERHEAD: usize = 32;
/// How often [`Tunnel::tick`] wants to be called.
pub const TICK: Duration = Duration::from_millis(250);
/// Handshakes a second without proof of address. One costs about 0.2 ms; 5,000 nodes that renew every two minutes make 42.
pub const HANDSHAKES_PER_SECOND: u64 = 100;
/// Initiations a second from addresses where no peer is: enough for a node that has just got another address.
pub const STRANGERS_PER_SECOND: u32 = 20;

/// Bytes that wait for sessions with all peers: 46 nodes that are down have their whole share of 256 packets, and a node that is cut
/// off from a thousand does not run out of memory.
pub const MAX_WAITING_BYTES: usize = 16 << 20;

/// Message counters from here on are refused: `REJECT_AFTER_MESSAGES` of the paper (6.1).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Size of a cookie reply (paper, 5.4.7).
const COOKIE_REPLY: usize = 64;
/// Numbers of peers have 24 bits (boringtun keeps the lower 8 of an index for the session).
const PEER_IDS: u32 = 1 << 24;

/// Where a tunnel's output goes. Neither may block; what cannot be sent at once may be kept or dropped.
pub trait Sink {
    /// A datagram for a peer.
    fn to_network(&mut self, datagram: &[u8], to: SocketAddr);
    /// A decrypted packet for this host.
    fn to_host(&mut self, packet: &[u8]);
}

/// What was dropped, and why. Counted since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets to an address that is no peer's.
    pub no_peer: u64,
    /// What the TUN gave that is no IP packet, or too long for one.
    pub not_ip: u64,
    /// Decrypted packets whose source is not of the peer's allowed IPs.
    pub refused_source: u64,
    /// Decrypted packets that are no IP packet.
    pub refused_packet: u64,
    /// Datagrams that are no message, have a wrong MAC or tag, or belong to no session.
    pub invalid: u64,
    /// Messages that were seen before, or are too old to tell.
    pub replayed: u64,
    /// Messages of nobody we know.
    pub unknown_peer: u64,
    /// Initiations beyond [`STRANGERS_PER_SECOND`].
    pub strangers_limited: u64,
    /// Cookie replies sent under load.
    pub cookies: u64,
    /// Packets for a peer without a session that found no place to wait.
    pub waiting_overflow: u64,
}

/// A peer, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Name of its node.
    pub node: String,
    /// Its static public key.
    pub public_key: PublicKey,
    /// Where datagrams to it go now.
    pub endpoint: SocketAddr,
    /// Time since the handshake of the session in use; `None` without one.
    pub last_handshake: Option<Duration>,
    /// Bytes of packets received from it and handed on.
    pub received_bytes: u64,
    /// Bytes of packets given to it.
    pub sent_bytes: u64,
    /// How long it has been silent although it owes an answer; `None` if it owes none.
    pub silence: Option<Duration>,
}

/// One node's end of all its tunnels.
pub struct Tunnel {
    secret: StaticSecret,
    public: PublicKey,
    /// Judges handshakes of everybody.
    gate: RateLimiter,
    /// What boringtun asks again for each peer: never under load, since `gate` has counted already.
    admitted: Arc<RateLimiter>,
    peers: HashMap<PeerId, Peer>,
    by_key: HashMap<PublicKey, PeerId>,
    allowed: AllowedIps,
    /// Addresses where peers are, or were when the last set came.
    underlay: HashSet<IpAddr>,
    strangers: Strangers,
    last_id: PeerId,
    number: u64,
    no_other_node: bool,
    problems: Vec<Problem>,
    changed: bool,
    counters: Counters,
    /// Of all peers; exact again with each tick.
    waiting_bytes: usize,
    scratch: Box<[u8]>,
}

/// How many initiations came from unknown addresses in this second.
struct Strangers {
    seen: u32,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Initiation,
    /// With the index of the session on this side.
    Response(u32),
    Cookie,
    /// The same.
    Data(u32),
}

impl Tunnel {
    /// A tunnel without peers.
    pub fn new(secret: StaticSecret, now: Instant) -> Self {
        let public = PublicKey::from(&secret);
        Self {
            gate: RateLimiter::new(&public, HANDSHAKES_PER_SECOND),
            admitted: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
            peers: HashMap::new(),
            by_key: HashMap::new(),
            allowed: AllowedIps::default(),
            underlay: HashSet::new(),
            strangers: Strangers { seen: 0, since: now },
            // Messages of sessions of an earlier process should not even look like ours.
            last_id: RandomState::new().hash_one(()) as u32 % PEER_IDS,
            number: 0,
            no_other_node: false,
            problems: Vec::new(),
            changed: true,
            counters: Counters::default(),
            waiting_bytes: 0,
            scratch: vec![0; MAX_PACKET + OVERHEAD].into_boxed_slice(),
        }
    }

    /// This node's public key.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Number of the peer set in force; 0: none yet.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What of the last peer set was refused.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// What was dropped so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// All peers, in no order.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.values().map(|peer| PeerStatus {
            node: peer.node.clone(),
            public_key: peer.public_key,
            endpoint: peer.endpoint,
            last_handshake: peer.last_handshake(),
            received_bytes: peer.received_bytes,
            sent_bytes: peer.sent_bytes,
            silence: peer.silence(),
        })
    }

    /// The peers in force as the agent would send them, for the next start.
    pub fn in_force(&self) -> api::agent::PeerSet {
        let peers = self.peers.values().map(Peer::as_message).collect();
        api::agent::PeerSet { number: self.number, peers, no_other_node: self.no_other_node }
    }

    /// Whether peers, sessions or problems changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Encrypts a packet of this host for the peer whose address its destination is. While there is no session with that peer, up to
    /// 256 packets wait for one, and [`MAX_WAITING_BYTES`] for all peers together (and one packet for each).
    pub fn encapsulate(&mut self, packet: &[u8], sink: &mut impl Sink) {
        let Some(destination) = packet::destination(packet).filter(|_| packet.len() <= MAX_PACKET) else {
            self.counters.not_ip += 1;
            return;
        };
        let peer = self.allowed.peer_of(destination).and_then(|id| self.peers.get_mut(&id));
        let Some(peer) = peer else {
            self.counters.no_peer += 1;
            return;
        };
        let Waiting { packets, .. } = peer.waiting;
        if packets >= MAX_WAITING || (packets > 0 && self.waiting_bytes >= MAX_WAITING_BYTES) {
            self.counters.waiting_overflow += 1;
            return;
        }
        self.waiting_bytes += peer.encapsulate(packet, &mut self.scratch, sink);
    }

    /// Takes a datagram in: decrypted packets, answers, and what waited for a session come out.
    pub fn receive(&mut self, datagram: &[u8], from: SocketAddr, sink: &mut impl Sink) {
        let Some((message, id)) = self.addressee(datagram, from, sink) else { return };
        let Some(peer) = self.peers.get_mut(&id) else {
            self.counters.unknown_peer += 1;
            return;
        };
        if message == Message::Initiation && !peer.may_answer(&mut self.scratch, sink) {
            return;
        }
        match peer.tunn.decapsulate(Some(from.ip()), datagram, &mut self.scratch) {
            TunnResult::WriteToNetwork(answer) => peer.answer(answer, from, sink),
            TunnResult::WriteToTunnelV4(packet, source) => {
                deliver(packet, source.into(), (id, peer), &self.allowed, &mut self.counters, sink);
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                deliver(packet, source.into(), (id, peer), &self.allowed, &mut self.counters, sink);
            }
            TunnResult::Done => {}
            TunnResult::Err(error) => {
                self.counters.refuse(&error);
                if matches!(error, WireGuardError::WrongTai64nTimestamp) {
                    peer.doubt();
                }
                // What is no packet was authentic all the same; that it is a message has been seen before.
                if !matches!(error, WireGuardError::InvalidPacket) {
                    return;
                }
            }
        }
        match message {
            // The session is not confirmed yet, and boringtun would answer a flush with an initiation of its own.
            Message::Initiation | Message::Cookie => return,
            Message::Response(index) => peer.completed(index, from),
            Message::Data(index) => peer.heard(index, from),
        }
        peer.flush(&mut self.scratch, sink);
    }

    /// Runs the timers of all peers; to be called every [`TICK`].
    pub fn tick(&mut self, now: Instant, sink: &mut impl Sink) {
        self.gate.reset_count();
        if now.duration_since(self.strangers.since) >= Duration::from_secs(1) {
            self.strangers = Strangers { seen: 0, since: now };
        }
        self.waiting_bytes = 0;
        for peer in self.peers.values_mut() {
            if peer.tick(now, &mut self.scratch, sink) {
                self.changed = true;
                let (node, endpoint) = (&peer.node, peer.endpoint);
                match peer.last_handshake() {
                    Some(_) => tracing::info!(%node, %endpoint, "session"),
                    None => tracing::warn!(%node, %endpoint, "no session"),
                }
            }
            self.waiting_bytes += peer.waiting.bytes;
        }
    }

    /// What kind of message it is and which peer's; `None` if that was all.
    fn addressee(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        sink: &mut impl Sink,
    ) -> Option<(Message, PeerId)> {
        if datagram.len() > MAX_PACKET {
            self.counters.invalid += 1;
            return None;
        }
        let mut cookie = [0; COOKIE_REPLY];
        match self.gate.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => {
                if !self.admits(from.ip()) {
                    self.counters.strangers_limited += 1;
                    return None;
                }
                let Ok(initiator) = parse_handshake_anon(&self.secret, &self.public, &initiation) else {
                    self.counters.invalid += 1;
                    return None;
                };
                let id = self.by_key.get(&PublicKey::from(initiator.peer_static_public)).copied();
                self.counters.unknown_peer += u64::from(id.is_none());
                Some((Message::Initiation, id?))
            }
            Ok(Packet::HandshakeResponse(response)) => {
                Some((Message::Response(response.receiver_idx), response.receiver_idx >> 8))
            }
            Ok(Packet::PacketCookieReply(reply)) => Some((Message::Cookie, reply.receiver_idx >> 8)),
            Ok(Packet::PacketData(data)) => {
                let fresh = packet::counter(datagram).is_some_and(|counter| counter < REJECT_AFTER_MESSAGES);
                self.counters.invalid += u64::from(!fresh);
                fresh.then_some((Message::Data(data.receiver_idx), data.receiver_idx >> 8))
            }
            Err(TunnResult::WriteToNetwork(reply)) => {
                self.counters.cookies += 1;
                sink.to_network(reply, from);
                None
            }
            Err(_) => {
                self.counters.invalid += 1;
                None
            }
        }
    }

    /// Whether an initiation from `address` is worth the elliptic curve's time.
    fn admits(&mut self, address: IpAddr) -> bool {
        if self.underlay.contains(&address) {
            return true;
        }
        self.strangers.seen = self.strangers.seen.saturating_add(1);
        self.strangers.seen <= STRANGERS_PER_SECOND
    }
}

/// Hands a decrypted packet on if it says that it comes from where its sender is.
fn deliver(
    packet: &[u8],
    source: IpAddr,
    (id, peer): (PeerId, &mut Peer),
    allowed: &AllowedIps,
    counters: &mut Counters,
    sink: &mut impl Sink,
) {
    // boringtun has cut the packet to the length in its header, which may be shorter than the header itself.
    if packet.len() < packet::IPV4_HEADER {
        counters.refused_packet += 1;
    } else if allowed.peer_of(source) != Some(id) {
        counters.refused_source += 1;
    } else {
        peer.received_bytes += packet.len() as u64;
        sink.to_host(packet);
    }
}

impl Counters {
    fn refuse(&mut self, error: &WireGuardError) {
        use WireGuardError::{
            DuplicateCounter, InvalidCounter, InvalidPacket, InvalidTai64nTimestamp, WrongTai64nTimestamp,
        };
        match error {
            DuplicateCounter | InvalidCounter | InvalidTai64nTimestamp | WrongTai64nTimestamp => {
                self.replayed += 1
            }
            InvalidPacket => self.refused_packet += 1,
            _ => self.invalid += 1,
        }
    }
}
