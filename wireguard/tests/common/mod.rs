//! Nodes joined in memory: the protocol without a kernel.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boringtun::x25519::{PublicKey, StaticSecret};
use wireguard::peers::{PeerConfig, PeerSet};
use wireguard::tunnel::{Sink, Tunnel};

/// What came out of a tunnel.
#[derive(Default)]
pub(crate) struct Out {
    pub(crate) datagrams: Vec<(Vec<u8>, SocketAddr)>,
    pub(crate) packets: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn to_network(&mut self, datagram: &[u8], to: SocketAddr) {
        self.datagrams.push((datagram.to_vec(), to));
    }
    fn to_host(&mut self, packet: &[u8]) {
        self.packets.push(packet.to_vec());
    }
}

pub(crate) fn secret(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}

pub(crate) fn public(seed: u8) -> PublicKey {
    PublicKey::from(&secret(seed))
}

pub(crate) fn endpoint(node: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node], 51820))
}

/// Node n has key n, endpoint 192.0.2.n, pods 10.n.0.0/16 and address 192.0.2.n.
pub(crate) fn peer(node: u8) -> PeerConfig {
    peer_with_key(node, node)
}

pub(crate) fn peer_with_key(node: u8, key: u8) -> PeerConfig {
    PeerConfig {
        node: format!("node-{node}"),
        public_key: public(key),
        endpoint: endpoint(node),
        allowed_ips: vec![
            format!("10.{node}.0.0/16").parse().unwrap(),
            format!("192.0.2.{node}/32").parse().unwrap(),
            format!("fd00:{node}::/32").parse().unwrap(),
        ],
    }
}

pub(crate) fn set(number: u64, peers: Vec<PeerConfig>) -> PeerSet {
    PeerSet { number, peers, ..PeerSet::default() }
}

pub(crate) fn packet(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    packet[8] = 64;
    packet[9] = 253;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet.extend_from_slice(payload);
    packet
}

pub(crate) fn packet_v6(source: &str, destination: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[6] = 59;
    packet[8..24].copy_from_slice(&octets(source));
    packet[24..40].copy_from_slice(&octets(destination));
    packet
}

/// A network of tunnels, each at its address.
pub(crate) struct Net {
    pub(crate) nodes: BTreeMap<SocketAddr, Tunnel>,
    pub(crate) now: Instant,
    /// Every datagram that crossed, with its sender.
    pub(crate) wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub(crate) received: Vec<(SocketAddr, Vec<u8>)>,
}

impl Net {
    /// Nodes that all know each other and have spoken.
    pub(crate) fn of(nodes: &[u8]) -> Self {
        let mut net =
            Self { nodes: BTreeMap::new(), now: Instant::now(), wire: Vec::new(), received: Vec::new() };
        for node in nodes {
            net.nodes.insert(endpoint(*node), Tunnel::new(secret(*node), net.now));
        }
        for node in nodes {
            net.update(*node, set(1, nodes.iter().filter(|n| *n != node).map(|n| peer(*n)).collect()));
        }
        net
    }

    pub(crate) fn node(&mut self, node: u8) -> &mut Tunnel {
        self.nodes.get_mut(&endpoint(node)).unwrap()
    }

    pub(crate) fn update(&mut self, node: u8, peers: PeerSet) {
        let mut out = Out::default();
        let now = self.now;
        self.node(node).update_peers(peers, now, &mut out);
        self.carry(endpoint(node), out);
    }

    pub(crate) fn send(&mut self, node: u8, packet: &[u8]) {
        let mut out = Out::default();
        self.node(node).encapsulate(packet, &mut out);
        self.carry(endpoint(node), out);
    }

    pub(crate) fn tick(&mut self, after: Duration) {
        self.now += after;
        for address in self.nodes.keys().copied().collect::<Vec<_>>() {
            let mut out = Out::default();
            let now = self.now;
            self.nodes.get_mut(&address).unwrap().tick(now, &mut out);
            self.carry(address, out);
        }
    }

    /// Delivers until all is quiet. Datagrams to nobody are lost.
    pub(crate) fn carry(&mut self, from: SocketAddr, out: Out) {
        self.received.extend(out.packets.into_iter().map(|packet| (from, packet)));
        for (datagram, to) in out.datagrams {
            self.wire.push((from, to, datagram.clone()));
            let mut answer = Out::default();
            if let Some(node) = self.nodes.get_mut(&to) {
                node.receive(&datagram, from, &mut answer);
            }
            self.carry(to, answer);
        }
    }

    pub(crate) fn take_received(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.received)
    }

    /// Sends one packet and says whether it arrived, whole and once.
    pub(crate) fn reaches(&mut self, from: u8, to: u8) -> bool {
        self.take_received();
        let packet = packet([10, from, 0, 1], [10, to, 0, 1], b"hello");
        self.send(from, &packet);
        let received = self.take_received();
        assert!(received.len() <= 1);
        received == [(endpoint(to), packet)]
    }
}
