//! What an adversary on the network, and the network itself, can do to nodes joined in memory.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::{Net, Out, endpoint, packet, peer, secret, set};
use proptest::prelude::*;
use wireguard::peers::PeerConfig;
use wireguard::tunnel::{HANDSHAKES_PER_SECOND, STRANGERS_PER_SECOND, Tunnel};

#[test]
fn a_replayed_datagram_is_refused() {
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2));
    let crossed = net.wire.clone();
    net.take_received();
    for (from, to, datagram) in crossed {
        net.carry(from, Out { datagrams: vec![(datagram, to)], packets: Vec::new() });
    }
    assert!(net.take_received().is_empty());
    assert_eq!(
        net.node(1).counters().replayed,
        2,
        "node 2's initiation, and its confirmation of the session"
    );
    assert_eq!(net.node(2).counters().replayed, 1, "the packet");
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
}

#[test]
fn the_endpoint_follows_data_and_not_a_repeated_initiation() {
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2));
    let elsewhere: SocketAddr = "198.51.100.7:4000".parse().unwrap();
    let there = |net: &mut Net| net.node(2).peers().next().unwrap().endpoint;
    let initiation =
        net.wire.iter().find(|(from, _, d)| *from == endpoint(1) && d[0] == 1).unwrap().2.clone();
    net.node(2).receive(&initiation, elsewhere, &mut Out::default());
    assert_eq!(there(&mut net), endpoint(1));

    let mut out = Out::default();
    net.node(1).encapsulate(&packet([10, 1, 0, 1], [10, 2, 0, 1], b"x"), &mut out);
    let mut forged = out.datagrams[0].0.clone();
    *forged.last_mut().unwrap() ^= 1;
    net.node(2).receive(&forged, elsewhere, &mut Out::default());
    assert_eq!(there(&mut net), endpoint(1), "a forged datagram moves nothing");
    net.node(2).receive(&out.datagrams[0].0, elsewhere, &mut Out::default());
    assert_eq!(there(&mut net), elsewhere, "an authentic one does");

    net.update(2, set(2, vec![peer(1)]));
    assert_eq!(there(&mut net), elsewhere, "nothing new was configured");
    let moved = PeerConfig { endpoint: "192.0.2.99:51820".parse().unwrap(), ..peer(1) };
    net.update(2, set(3, vec![moved]));
    assert_eq!(there(&mut net), "192.0.2.99:51820".parse().unwrap());
}

#[test]
fn under_load_a_cookie_is_asked_for_and_gets_its_owner_in() {
    let mut net = Net::of(&[1, 2]);
    let mut client = Tunnel::new(secret(3), net.now);
    let mut knock = || {
        let mut out = Out::default();
        let lost = PeerConfig { endpoint: "203.0.113.1:1".parse().unwrap(), ..peer(1) };
        client.update_peers(set(1, vec![lost]), net.now, &mut Out::default());
        client.update_peers(set(1, vec![peer(1)]), net.now, &mut out);
        out.datagrams.remove(0).0
    };
    // Node 1 knows node 3's key, but all these come from elsewhere.
    let mut knocks: Vec<_> = (0..HANDSHAKES_PER_SECOND + 10).map(|_| knock()).collect();
    let last = knock();
    net.update(1, set(2, vec![peer(2), peer(3)]));
    for initiation in knocks.drain(..) {
        net.node(1).receive(&initiation, "198.51.100.1:1".parse().unwrap(), &mut Out::default());
    }
    let counters = net.node(1).counters();
    assert!(counters.cookies >= 5, "{counters:?}");
    let beyond = HANDSHAKES_PER_SECOND - u64::from(STRANGERS_PER_SECOND) - 10;
    assert!(counters.strangers_limited >= beyond, "{counters:?}");

    // Node 3 itself is asked for a cookie too, and then let in.
    let mut out = Out::default();
    net.node(1).receive(&last, endpoint(3), &mut out);
    assert_eq!(out.datagrams[0].0.len(), 64);
    let now = net.now;
    client.receive(&out.datagrams[0].0, endpoint(1), &mut Out::default());
    net.nodes.insert(endpoint(3), client);
    let later = now + Duration::from_millis(600);
    let mut out = Out::default();
    net.node(3).tick(later, &mut out);
    net.carry(endpoint(3), out);
    assert!(net.reaches(3, 1) && net.reaches(1, 3));
}

#[test]
fn diverted_data_come_back_with_the_next_handshake() {
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2));
    let elsewhere: SocketAddr = "198.51.100.7:4000".parse().unwrap();
    let there = |net: &mut Net| net.node(2).peers().next().unwrap().endpoint;
    // Somebody on the path holds a datagram back and is first to deliver it.
    let mut out = Out::default();
    net.node(1).encapsulate(&packet([10, 1, 0, 1], [10, 2, 0, 1], b"x"), &mut out);
    net.node(2).receive(&out.datagrams[0].0, elsewhere, &mut Out::default());
    assert_eq!(there(&mut net), elsewhere);
    assert!(!net.reaches(2, 1), "diverted");

    // The next handshake, for whatever reason: here an initiation of node 1 that came twice.
    let (from, _, initiation) =
        net.wire.iter().find(|(from, _, d)| *from == endpoint(1) && d[0] == 1).unwrap().clone();
    for _ in 0..2 {
        net.node(2).receive(&initiation, from, &mut Out::default());
    }
    net.tick(Duration::from_millis(250));
    assert_eq!(there(&mut net), endpoint(1));
    assert!(net.reaches(2, 1) && net.reaches(1, 2));
}

#[test]
fn a_peer_that_lives_in_the_past_is_shaken_hands_with_from_this_side() {
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    let (_, _, old) = net.wire.iter().find(|(from, _, d)| *from == endpoint(1) && d[0] == 1).unwrap().clone();
    // Node 1 is started again with its clock set back: all its initiations are as old as this one, and it has no session.
    let mut restarted = Tunnel::new(secret(1), net.now);
    restarted.update_peers(set(1, vec![peer(2)]), net.now, &mut Out::default());
    net.nodes.insert(endpoint(1), restarted);
    assert!(!net.reaches(2, 1));
    let initiations =
        |net: &Net| net.wire.iter().filter(|(from, _, d)| *from == endpoint(2) && d[0] == 1).count();
    let before = initiations(&net);
    for _ in 0..20 {
        net.node(2).receive(&old, endpoint(1), &mut Out::default());
        let (mut out, now) = (Out::default(), net.now);
        net.node(2).tick(now, &mut out);
        net.carry(endpoint(2), out);
    }
    assert!(net.reaches(2, 1) && net.reaches(1, 2));
    assert_eq!(
        initiations(&net),
        before + 1,
        "who sends an old one again and again gets one answer in five seconds"
    );
}

#[test]
fn a_lost_confirmation_is_said_again() {
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    let (mut restarted, mut out) = (Tunnel::new(secret(2), net.now), Out::default());
    restarted.update_peers(set(1, vec![peer(1)]), net.now, &mut out);
    let mut answer = Out::default();
    net.node(1).receive(&out.datagrams[0].0, endpoint(2), &mut answer);
    // What node 2 says to that is lost.
    restarted.receive(&answer.datagrams[0].0, endpoint(1), &mut Out::default());
    net.nodes.insert(endpoint(2), restarted);
    assert!(!net.reaches(1, 2), "node 1 still has the session that node 2 lost");
    net.tick(Duration::from_millis(250));
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    net.tick(Duration::from_millis(250));
    net.wire.clear();
    net.tick(Duration::from_millis(250));
    assert!(net.wire.is_empty(), "it is said three times in all");
}

#[test]
fn captured_initiations_do_not_take_the_place_of_a_session() {
    let mut net = Net::of(&[1, 2]);
    let captured: Vec<Vec<u8>> = (0..20)
        .map(|_| {
            let (mut out, now) = (Out::default(), net.now);
            let lost = PeerConfig { endpoint: "203.0.113.1:1".parse().unwrap(), ..peer(2) };
            net.node(1).update_peers(set(1, vec![lost]), now, &mut Out::default());
            net.node(1).update_peers(set(1, vec![peer(2)]), now, &mut out);
            out.datagrams.remove(0).0
        })
        .collect();
    // Started again, node 2 has seen none of them.
    let restarted = Tunnel::new(secret(2), net.now);
    net.nodes.insert(endpoint(2), restarted);
    net.update(2, set(1, vec![peer(1)]));
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    for initiation in &captured {
        net.node(2).receive(initiation, "198.51.100.1:1".parse().unwrap(), &mut Out::default());
        assert!(net.reaches(1, 2) && net.reaches(2, 1));
    }
    assert_eq!(net.node(2).counters().strangers_limited, 0, "all came in");
}

#[test]
fn initiations_whose_answers_are_lost_are_no_session() {
    let mut net = Net::of(&[1]);
    let mut deaf = Tunnel::new(secret(2), net.now);
    let mut knocks = Vec::new();
    for number in 1..=20 {
        let mut out = Out::default();
        let lost = PeerConfig { endpoint: "203.0.113.1:1".parse().unwrap(), ..peer(1) };
        deaf.update_peers(set(number, vec![lost]), net.now, &mut Out::default());
        deaf.update_peers(set(number, vec![peer(1)]), net.now, &mut out);
        knocks.push(out.datagrams.remove(0).0);
    }
    net.update(1, set(1, vec![peer(2)]));
    for knock in knocks {
        net.node(1).receive(&knock, endpoint(2), &mut Out::default());
        assert!(net.node(1).peers().all(|peer| peer.last_handshake.is_none()));
    }
    net.nodes.insert(endpoint(2), deaf);
    net.tick(Duration::from_secs(5));
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
}

/// What happens on the network between two nodes, and to them.
#[derive(Debug, Clone)]
enum Event {
    /// One of the datagrams under way arrives.
    Arrives(prop::sample::Index),
    /// It arrives, and stays under way.
    ArrivesTwice(prop::sample::Index),
    Lost(prop::sample::Index),
    /// A quarter of a second passes.
    Tick,
    /// A node sends a packet to the other.
    Send(u8),
    /// A node is started again.
    Restart(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    let node = || 1..=2u8;
    prop_oneof![
        6 => index().prop_map(Event::Arrives),
        2 => index().prop_map(Event::ArrivesTwice),
        2 => index().prop_map(Event::Lost),
        3 => Just(Event::Tick),
        3 => node().prop_map(Event::Send),
        1 => node().prop_map(Event::Restart),
    ]
}

/// Two nodes and what is under way between them.
struct Path {
    net: Net,
    under_way: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Path {
    /// Both start at once: their initiations cross.
    fn new() -> Self {
        let mut path = Self { net: Net::of(&[]), under_way: Vec::new() };
        path.start(1);
        path.start(2);
        path
    }

    fn start(&mut self, node: u8) {
        let (mut tunnel, mut out) = (Tunnel::new(secret(node), self.net.now), Out::default());
        tunnel.update_peers(set(1, vec![peer(3 - node)]), self.net.now, &mut out);
        self.net.nodes.insert(endpoint(node), tunnel);
        self.put(endpoint(node), out);
    }

    fn put(&mut self, from: SocketAddr, out: Out) {
        self.under_way.extend(out.datagrams.into_iter().map(|(datagram, to)| (from, to, datagram)));
    }

    fn arrive(&mut self, (from, to, datagram): (SocketAddr, SocketAddr, Vec<u8>)) {
        let mut out = Out::default();
        self.net.nodes.get_mut(&to).unwrap().receive(&datagram, from, &mut out);
        self.put(to, out);
    }

    fn tick(&mut self, after: Duration) {
        self.net.now += after;
        for node in [1, 2] {
            let (now, mut out) = (self.net.now, Out::default());
            self.net.node(node).tick(now, &mut out);
            self.put(endpoint(node), out);
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Tick => self.tick(Duration::from_millis(250)),
            Event::Restart(node) => {
                // Its answers come before what it sends when it has been started again, or never. (One that is late by a restart
                // makes the other side take a session for newer than the new one; two minutes later it is renewed.)
                self.under_way.retain(|(from, _, datagram)| *from != endpoint(node) || datagram[0] != 2);
                self.start(node);
            }
            Event::Send(node) => {
                let mut out = Out::default();
                let packet = packet([10, node, 0, 1], [10, 3 - node, 0, 1], b"x");
                self.net.node(node).encapsulate(&packet, &mut out);
                self.put(endpoint(node), out);
            }
            Event::Arrives(_) | Event::ArrivesTwice(_) | Event::Lost(_) if self.under_way.is_empty() => {}
            Event::Arrives(index) => {
                let datagram = self.under_way.remove(index.index(self.under_way.len()));
                self.arrive(datagram);
            }
            Event::ArrivesTwice(index) => {
                let datagram = index.get(&self.under_way).clone();
                self.arrive(datagram);
            }
            Event::Lost(index) => drop(self.under_way.remove(index.index(self.under_way.len()))),
        }
    }

    fn all_arrive(&mut self) {
        while !self.under_way.is_empty() {
            let datagram = self.under_way.remove(0);
            self.arrive(datagram);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever arrives, nothing panics, nothing is let through, and the tunnel still works.
    #[test]
    fn hostile_datagrams_change_nothing(
        junk in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..20),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>()), 0..60),
        from in any::<(u32, u16)>(),
    ) {
        let mut net = Net::of(&[1, 2]);
        prop_assert!(net.reaches(1, 2) && net.reaches(2, 1));
        let from = SocketAddr::from((IpAddr::from(Ipv4Addr::from(from.0)), from.1));
        let crossed: Vec<Vec<u8>> = net.wire.iter().map(|(_, _, datagram)| datagram.clone()).collect();
        let mut out = Out::default();
        for datagram in &junk {
            net.node(2).receive(datagram, from, &mut out);
            let typed = [&[4, 0, 0, 0][..], datagram].concat();
            net.node(2).receive(&typed, from, &mut out);
        }
        for (which, at, value, cut) in &mutations {
            let mut datagram = which.get(&crossed).clone();
            let at = at.index(datagram.len());
            datagram[at] = *value;
            net.node(2).receive(&datagram, from, &mut out);
            datagram.truncate(cut.index(datagram.len()));
            net.node(2).receive(&datagram, from, &mut out);
        }
        prop_assert!(out.packets.is_empty());
        prop_assert!(net.reaches(1, 2) && net.reaches(2, 1));
    }

    /// Whatever is lost, late, twice or in another order, and whoever is started again: once the network is sound again one
    /// direction works within one wait of a retry, and the other with the first packet of that one.
    #[test]
    fn two_nodes_find_each_other_whatever_the_network_did(events in prop::collection::vec(event(), 0..60)) {
        let mut path = Path::new();
        for event in events {
            path.happens(event);
        }
        path.all_arrive();
        path.tick(Duration::from_secs(5));
        path.all_arrive();
        prop_assert!(path.net.reaches(1, 2) | path.net.reaches(2, 1));
        prop_assert!(path.net.reaches(1, 2) && path.net.reaches(2, 1));
    }

    /// Whatever the host sends into the device, nothing panics.
    #[test]
    fn any_packet_can_be_sent(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..50)) {
        let mut net = Net::of(&[1, 2]);
        for mut bytes in packets {
            net.send(1, &bytes);
            if bytes.len() >= 20 {
                bytes[0] = 0x45;
                bytes[16..20].copy_from_slice(&[10, 2, 0, 1]);
                net.send(1, &bytes);
            }
        }
        prop_assert!(net.reaches(1, 2));
    }
}
