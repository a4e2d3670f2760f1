//! What nodes do for each other, joined in memory.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Net, Out, endpoint, packet, packet_v6, peer, peer_with_key, public, secret, set};
use wireguard::peers::{PeerConfig, PeerSet};
use wireguard::tunnel::{MAX_WAITING_BYTES, Tunnel};

#[test]
fn packets_reach_the_node_of_their_destination_and_none_shows_on_the_wire() {
    let mut net = Net::of(&[1, 2, 3]);
    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 2), (2, 3)] {
        assert!(net.reaches(from, to), "{from} to {to}");
    }
    let v6 = packet_v6("fd00:1::7", "fd00:2::9");
    net.send(1, &v6);
    assert_eq!(net.take_received(), [(endpoint(2), v6)]);
    assert!(net.wire.iter().all(|(_, _, datagram)| !datagram.windows(5).any(|part| part == b"hello")));
    assert!(net.wire.iter().any(|(_, _, datagram)| datagram.len() == 25 + 32), "not padded");
    let status: Vec<_> = net.node(2).peers().collect();
    assert!(status.iter().all(|peer| peer.last_handshake.is_some()));
    let from_1 = status.iter().find(|peer| peer.node == "node-1").unwrap();
    assert_eq!((from_1.received_bytes, from_1.sent_bytes), (25 + 40, 25));
}

#[test]
fn a_peer_that_owes_an_answer_is_silent_and_one_that_owes_none_is_not() {
    let silence = |net: &mut Net| net.node(1).peers().next().unwrap().silence;
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    for _ in 0..5 {
        net.tick(Duration::from_secs(1));
    }
    assert_eq!(silence(&mut net), None, "nothing is outstanding");
    // A packet that nothing answers.
    let away = net.nodes.remove(&endpoint(2)).unwrap();
    net.send(1, &packet([10, 1, 0, 1], [10, 2, 0, 1], b"x"));
    for _ in 0..13 {
        net.tick(Duration::from_secs(1));
    }
    assert_eq!(silence(&mut net), Some(Duration::from_secs(12)), "since the first tick after it");
    net.nodes.insert(endpoint(2), away);
    assert!(net.reaches(2, 1));
    assert_eq!(silence(&mut net), None, "it was heard");

    // Handshakes that nothing answers.
    let mut alone = Net::of(&[1]);
    alone.update(1, set(2, vec![peer(2)]));
    for _ in 0..11 {
        alone.tick(Duration::from_secs(1));
    }
    assert!(silence(&mut alone).is_some_and(|silence| silence >= Duration::from_secs(10)));
}

#[test]
fn a_destination_without_peer_is_dropped_and_counted() {
    let mut net = Net::of(&[1, 2]);
    net.wire.clear();
    net.send(1, &packet([10, 1, 0, 1], [10, 9, 0, 1], b"x"));
    net.send(1, &packet([10, 1, 0, 1], [192, 0, 2, 3], b"x"));
    net.send(1, &packet_v6("fd00:1::7", "fd00:9::9"));
    assert_eq!(net.node(1).counters().no_peer, 3);
    for junk in [&[][..], &[0x45; 19], &[0x65; 39], &[0; 100]] {
        net.send(1, junk);
    }
    assert_eq!(net.node(1).counters().not_ip, 4);
    assert!(net.wire.is_empty());
}

#[test]
fn a_source_that_is_not_the_senders_is_refused() {
    let mut net = Net::of(&[1, 2, 3]);
    // Another node's pod, another node, the receiver's own pod, the world; and one address that is right.
    for source in [[10, 3, 0, 1], [192, 0, 2, 3], [10, 2, 0, 5], [198, 51, 100, 1]] {
        net.send(1, &packet(source, [10, 2, 0, 1], b"x"));
    }
    net.send(1, &packet_v6("fd00:3::7", "fd00:2::9"));
    assert!(net.take_received().is_empty());
    assert_eq!(net.node(2).counters().refused_source, 5);
    net.send(1, &packet([192, 0, 2, 1], [10, 2, 0, 1], b"x"));
    assert_eq!(net.take_received().len(), 1);
}

#[test]
fn a_packet_is_cut_to_its_length_and_one_that_does_not_fit_is_refused() {
    let mut net = Net::of(&[1, 2]);
    let whole = packet([10, 1, 0, 1], [10, 2, 0, 1], b"hello");
    let padded = [&whole[..], &[0; 7]].concat();
    net.send(1, &padded);
    assert_eq!(net.take_received(), [(endpoint(2), whole.clone())]);
    for length in [0u16, 19, 26, 1500] {
        let mut bad = whole.clone();
        bad[2..4].copy_from_slice(&length.to_be_bytes());
        net.send(1, &bad);
    }
    assert!(net.take_received().is_empty());
    assert_eq!(net.node(2).counters().refused_packet, 4);
}

#[test]
fn a_new_session_replaces_the_old_one_under_traffic() {
    let mut net = Net::of(&[1, 2]);
    for number in 2..40 {
        assert!(net.reaches(1, 2) && net.reaches(2, 1));
        // The endpoint changes and so the handshake is made anew, from the other side each time.
        let (at, other) = if number % 2 == 0 { (1, 2) } else { (2, 1) };
        let lost = PeerConfig { endpoint: "203.0.113.1:1".parse().unwrap(), ..peer(other) };
        net.update(at, set(number, vec![lost]));
        net.update(at, set(number, vec![peer(other)]));
    }
    let initiations = net.wire.iter().filter(|(_, _, datagram)| datagram[0] == 1).count();
    assert!(initiations > 38, "{initiations}");
}

#[test]
fn packets_wait_for_the_session_and_a_lost_handshake_is_repeated_at_the_next_tick() {
    let mut net = Net::of(&[1]);
    net.update(1, set(1, vec![peer(2)]));
    for number in 0..300u16 {
        net.send(1, &packet([10, 1, 0, 1], [10, 2, 0, 1], &number.to_be_bytes()));
    }
    let mut late = Tunnel::new(secret(2), net.now);
    // Node 1 has knocked at a closed door; node 2 learns of node 1 only now, and its own knock is lost.
    late.update_peers(set(1, vec![peer(1)]), net.now, &mut Out::default());
    net.nodes.insert(endpoint(2), late);
    net.tick(Duration::from_millis(250));
    let numbers: Vec<u16> =
        net.take_received().iter().map(|(_, p)| u16::from_be_bytes([p[20], p[21]])).collect();
    assert_eq!(numbers, (0..256).collect::<Vec<_>>(), "the first 256, in order");
    assert_eq!(net.node(1).counters().waiting_overflow, 300 - 256);
    assert!(net.reaches(1, 2), "nothing waits any more");
}

#[test]
fn what_waits_for_many_absent_peers_is_bounded_and_hinders_nobody_else() {
    let mut net = Net::of(&[1, 2]);
    let absent = 10..70u8;
    net.update(1, set(2, absent.clone().chain([2]).map(peer).collect()));
    let payload = [0; 1380];
    let mut sent = 0;
    for round in 0..256 {
        for node in absent.clone() {
            net.send(1, &packet([10, 1, 0, 1], [10, node, 0, 1], &payload));
            sent += 1400;
        }
        if round % 100 == 99 {
            net.tick(Duration::from_millis(250));
        }
    }
    let dropped = net.node(1).counters().waiting_overflow as usize * 1400;
    assert!((MAX_WAITING_BYTES..MAX_WAITING_BYTES + 1400).contains(&(sent - dropped)), "{sent} {dropped}");
    assert!(net.reaches(1, 2) && net.reaches(2, 1), "a session does not wait");

    // One of them comes, and gets what waited for it.
    let now = net.now;
    net.nodes.insert(endpoint(69), Tunnel::new(secret(69), now));
    net.update(69, set(1, vec![peer(1)]));
    assert!(!net.take_received().is_empty());
    assert!(net.reaches(1, 69) && net.reaches(69, 1));
}

#[test]
fn a_restarted_node_is_reached_at_once() {
    let mut net = Net::of(&[1, 2]);
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    let restarted = Tunnel::new(secret(2), net.now);
    net.nodes.insert(endpoint(2), restarted);
    assert!(!net.reaches(1, 2), "its old session is gone");
    net.update(2, set(1, vec![peer(1)]));
    assert!(net.reaches(1, 2) && net.reaches(2, 1), "its first initiation repairs both directions");
}

#[test]
fn an_allowed_ip_moves_and_a_key_changes_without_a_gap() {
    let mut net = Net::of(&[1, 2, 3]);
    // 10.2.0.0/16 moves to node 3.
    let (mut two, mut three) = (peer(2), peer(3));
    three.allowed_ips.push(two.allowed_ips.remove(0));
    net.update(1, set(2, vec![two, three]));
    let moved = packet([10, 1, 0, 1], [10, 2, 0, 1], b"x");
    net.send(1, &moved);
    assert_eq!(net.take_received(), [(endpoint(3), moved)]);
    net.send(2, &packet([10, 2, 0, 1], [10, 1, 0, 1], b"x"));
    assert!(net.take_received().is_empty(), "it is no longer node 2's to send from");

    // Node 2 comes back with another key.
    net.update(1, set(3, vec![peer(2), peer(3)]));
    let mut reborn = Tunnel::new(secret(22), net.now);
    reborn.update_peers(set(1, vec![peer(1)]), net.now, &mut Out::default());
    net.nodes.insert(endpoint(2), reborn);
    net.update(1, set(4, vec![peer_with_key(2, 22), peer(3)]));
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    assert_eq!(net.node(1).peers().count(), 2, "the old key is gone");
    assert!(net.reaches(1, 3), "others are not touched");
}

#[test]
fn a_removed_peer_is_heard_no_more_and_an_empty_set_removes_none() {
    let mut net = Net::of(&[1, 2, 3]);
    net.update(1, set(7, Vec::new()));
    assert_eq!(net.node(1).problems().len(), 1);
    assert_eq!(net.node(1).number(), 1);
    assert!(net.reaches(1, 2) && net.reaches(3, 1));
    net.update(1, set(8, vec![peer(3)]));
    assert!(net.node(1).problems().is_empty());
    assert!(!net.reaches(1, 2) && !net.reaches(2, 1) && net.reaches(3, 1));
    net.tick(Duration::from_secs(1));
    net.tick(Duration::from_secs(5));
    assert!(!net.reaches(2, 1));
    assert!(net.node(1).counters().unknown_peer > 0);
}

#[test]
fn the_last_peer_goes_when_the_set_says_that_there_is_none() {
    let mut net = Net::of(&[1, 2]);
    let none = PeerSet { number: 2, no_other_node: true, ..PeerSet::default() };
    net.update(1, none.clone());
    assert_eq!((net.node(1).number(), net.node(1).peers().count()), (2, 0));
    assert!(net.node(1).problems().is_empty());
    assert!(!net.reaches(1, 2) && !net.reaches(2, 1));
    let counters = net.node(1).counters();
    assert_eq!((counters.no_peer, counters.unknown_peer), (1, 1), "neither sent nor heard");
    let stored = net.node(1).in_force();
    assert_eq!(PeerSet::from(stored.clone()), none);

    // What is stored says it again to the next worker, and takes nothing from one that has peers by then but what it says.
    let mut next = Tunnel::new(secret(1), net.now);
    next.update_peers(PeerSet::from(stored), net.now, &mut Out::default());
    assert_eq!((next.number(), next.peers().count()), (2, 0));
    net.nodes.insert(endpoint(1), next);
    net.update(1, set(3, vec![peer(2)]));
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    assert!(!net.node(1).in_force().no_other_node);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_changes_nothing_else() {
    let mut net = Net::of(&[1, 2, 3]);
    let problems = |net: &mut Net| {
        net.node(1).problems().iter().map(|p| format!("{}: {}", p.location, p.message)).collect::<Vec<_>>()
    };
    // Node 4 claims our own key; node 0, sorted first, that of node 2; node 5 the pods of node 3.
    let thief = PeerConfig { allowed_ips: peer(3).allowed_ips, ..peer(5) };
    let peers = vec![peer_with_key(0, 2), peer(2), peer(3), peer_with_key(4, 1), thief, peer(3)];
    net.update(1, set(2, peers));
    let found = problems(&mut net);
    for expected in [
        "peer node-4: publicKey: is this node's own",
        "peer node-0: publicKey: is also that of node-2",
        "peer node-3: publicKey: is listed twice",
        "peer node-5: allowedIPs: 10.3.0.0/16 belongs to node-3",
    ] {
        assert!(found.iter().any(|problem| problem.starts_with(expected)), "{expected}: {found:#?}");
    }
    assert_eq!(found.len(), 6, "three prefixes, three keys: {found:#?}");
    assert!(net.reaches(1, 2) && net.reaches(1, 3) && net.reaches(3, 1));

    // An entry that became illegible leaves the peer as it was.
    let legible = api::agent::Peer {
        node: "node-2".to_owned(),
        public_key: public(2).as_bytes().to_vec(),
        endpoint: "nonsense".to_owned(),
        allowed_ips: Vec::new(),
    };
    let illegible = api::agent::PeerSet { number: 3, peers: vec![legible], no_other_node: true };
    net.update(1, PeerSet::from(illegible));
    assert_eq!(problems(&mut net).len(), 1);
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
    assert!(!net.reaches(1, 3), "node 3 was not in the set");
}

#[test]
fn a_key_whose_secrets_everybody_knows_is_no_key() {
    let mut net = Net::of(&[1, 2]);
    // Points of small order: 0, 1, two of order 8, p - 1, p, p + 1.
    for point in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        let bytes: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&point[2 * at..2 * at + 2], 16).unwrap()).collect();
        let bytes: [u8; 32] = bytes.try_into().unwrap();
        net.update(1, set(2, vec![peer(2), PeerConfig { public_key: bytes.into(), ..peer(3) }]));
        let [problem] = net.node(1).problems() else { panic!("{point}: {:?}", net.node(1).problems()) };
        assert_eq!(problem.location, "peer node-3: publicKey");
        assert_eq!(net.node(1).peers().count(), 1);
    }
    assert!(net.reaches(1, 2) && net.reaches(2, 1));
}

/// Ticks in real time, which is boringtun's; `each` is called after each tick.
fn live(net: &mut Net, time: Duration, mut each: impl FnMut(&mut Net, Duration)) {
    let start = Instant::now();
    while start.elapsed() < time {
        net.now = Instant::now();
        net.tick(Duration::ZERO);
        each(net, start.elapsed());
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn too_long() -> bool {
    let skip = std::env::var_os("SELVAGE_LONG").is_none();
    if skip {
        println!("skipped: takes minutes of real time; SELVAGE_LONG=1 runs it");
    }
    skip
}

#[test]
fn a_used_session_is_renewed_after_two_minutes() {
    if too_long() {
        return;
    }
    let mut net = Net::of(&[1, 2]);
    let initiations = |net: &Net| net.wire.iter().filter(|(_, _, datagram)| datagram[0] == 1).count();
    let first = initiations(&net);
    live(&mut net, Duration::from_secs(130), |net, time| {
        assert!(net.reaches(1, 2) && net.reaches(2, 1), "after {time:?}");
    });
    assert!(initiations(&net) > first);
    assert!(net.node(1).peers().all(|peer| peer.last_handshake.unwrap() < Duration::from_secs(60)));
}

#[test]
fn an_idle_session_never_ends() {
    if too_long() {
        return;
    }
    let mut net = Net::of(&[1, 2]);
    live(&mut net, Duration::from_secs(400), |net, time| {
        for node in [1, 2] {
            assert!(
                net.node(node).peers().all(|peer| peer.last_handshake.is_some()),
                "{node} after {time:?}"
            );
        }
    });
    net.wire.clear();
    assert!(net.reaches(1, 2));
    assert_eq!(net.wire.len(), 1, "no handshake was needed");
}
