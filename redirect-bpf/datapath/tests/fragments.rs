//! Fragments: the later ones share the verdict of the first, whatever their order and whatever was
//! allowed before.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(test)]
mod common;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use common::node::{Node, OUTSIDE, WAIT};
use common::packets::{ETHERNET, SYN, icmp, tcp, tcp_with_data, udp};
use common::*;
use layout::{Reason, direction, identity, verdict};

const CLIENT: (Ipv4Addr, u16) = (POD_A, 5_000);
const SERVER: (Ipv4Addr, u16) = (POD_B, 53);

/// The packet as a fragment of datagram `id`, `offset` bytes behind its start.
fn piece(mut frame: Vec<u8>, id: u16, offset: u16, more: bool) -> Vec<u8> {
    if offset > 0 {
        // Whatever stands in the place of ports must not be taken for them.
        frame[ETHERNET + 20..].fill(0xff);
    }
    frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
    let bits = (offset / 8) | if more { 0x2000 } else { 0 };
    frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&bits.to_be_bytes());
    frame
}

#[test]
fn later_fragments_are_judged_by_the_first_one_that_was_allowed() {
    let Some(mut bench) = bench("g-first") else { return };
    bench.protect_b();
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 53, verdict::ALLOW);
    let allowed = |offset, more| piece(udp(CLIENT, SERVER), 7, offset, more);
    let denied = |id, offset| piece(udp(CLIENT, (POD_B, 54)), id, offset, true);
    assert_eq!(bench.a_sends(&allowed(1480, false)).action, DROP, "before its first");
    assert_eq!(bench.refusal().0, Reason::FragmentWithoutFirst);
    let (outcome, counted) = bench.counted(|b| b.a_sends(&allowed(0, true)));
    assert_eq!(outcome.action, REDIRECT);
    assert!(counted.contains(&(Reason::FragmentNoted, 1)), "{counted:?}");
    for offset in [1480, 8, 2960] {
        assert_eq!(bench.a_sends(&allowed(offset, true)).action, REDIRECT, "{offset}");
    }
    // A datagram that was refused: none of its pieces, also where it takes the number of one that
    // was allowed.
    for id in [8, 7] {
        bench.events();
        assert_eq!(bench.a_sends(&denied(id, 0)).action, DROP);
        assert_eq!(bench.refusal().0, Reason::DeniedIngress);
        assert_eq!(bench.a_sends(&denied(id, 1480)).action, DROP);
        assert_eq!(bench.refusal().0, Reason::FragmentWithoutFirst);
    }
    // Not by the first piece of another sender, receiver or protocol.
    bench.a_sends(&allowed(0, true));
    for other in [udp((POD_A, 1), (WORLD, 53)), icmp(8, 1, POD_A, POD_B)] {
        assert_eq!(bench.a_sends(&piece(other, 7, 1480, false)).action, DROP);
    }
    assert_eq!(bench.b_sends(&piece(udp(SERVER, CLIENT), 7, 1480, false)).action, DROP);
    // The rule is gone: what is on its way is judged again.
    bench.a_sends(&allowed(0, true));
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 53);
    bench.datapath.maps.remove_rule(layout::RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    assert_eq!(bench.a_sends(&allowed(1480, false)).action, DROP);
}

#[test]
fn every_program_knows_the_later_fragments_and_both_ways_of_echo() {
    let Some(mut bench) = bench("g-programs") else { return };
    bench.protect_b();
    for peer in [IDENTITY_R, identity::WORLD, IDENTITY_A] {
        bench.rule(RULES_B, direction::INGRESS, peer, UDP, 53, verdict::ALLOW);
        bench.rule(RULES_B, direction::INGRESS, peer, ICMP, 0, verdict::ALLOW);
    }
    let remote = udp((POD_R, 5_000), SERVER);
    let world = udp((WORLD, 5_000), SERVER);
    let node = udp((NODE, 5_000), SERVER);
    let answer = udp(SERVER, (NODE, 5_000));
    for (offset, more) in [(0, true), (1480, true), (2960, false)] {
        let cut = |frame: &Vec<u8>| piece(frame.clone(), 9, offset, more);
        assert_eq!(bench.tunnel_delivers(&cut(&remote)[ETHERNET..]).action, REDIRECT, "{offset}");
        assert_eq!(bench.uplink_delivers(&cut(&world)).action, NEXT, "{offset}");
        assert_eq!(bench.forwarded_to_b(&cut(&world)).action, NEXT, "{offset}");
        assert_eq!(bench.host_to_b(&cut(&node)).action, NEXT, "{offset}");
        assert_eq!(bench.b_sends(&cut(&answer)).verdict(), (NEXT, 0), "{offset}");
        assert_eq!(bench.a_sends(&cut(&icmp(8, 3, POD_A, POD_B))).action, REDIRECT, "{offset}");
        assert_eq!(bench.b_sends(&cut(&icmp(0, 3, POD_B, POD_A))).action, REDIRECT, "{offset}");
        // To the node itself, whose stack judges nothing of it.
        let to_node = cut(&udp((POD_R, 1), (NODE, 2)));
        assert_eq!(bench.tunnel_delivers(&to_node[ETHERNET..]).verdict(), (NEXT, 0), "{offset}");
    }
    bench.events();
    assert_eq!(
        bench.a_sends(&piece(icmp(0, 4, POD_A, POD_B), 10, 0, true)).action,
        DROP,
        "an answer to nothing"
    );
    assert_eq!(bench.refusal().0, Reason::NoEntry);
}

#[test]
fn no_fragment_reaches_into_the_header_of_the_first_or_the_proxy() {
    let Some(mut bench) = bench("g-header") else { return };
    bench.protect_b();
    bench.allow_into_b(IDENTITY_A, 81);
    bench.redirect_into_b(IDENTITY_A, 80);
    let (direct, proxied) = ((POD_B, 81), (POD_B, 80));
    assert_eq!(bench.a_sends(&piece(tcp(CLIENT, direct, SYN), 1, 0, true)).action, REDIRECT);
    for (offset, action) in [(8, DROP), (16, DROP), (24, REDIRECT), (32, REDIRECT)] {
        let later = piece(tcp_with_data(CLIENT, direct), 1, offset, false);
        assert_eq!(bench.a_sends(&later).action, action, "{offset}");
        if action == DROP {
            let refused =
                bench.events().into_iter().filter(|event| event.reason != 0).map(|event| event.reason);
            assert_eq!(refused.collect::<Vec<_>>(), [Reason::FragmentHidesHeader as u8], "{offset}");
        }
    }
    bench.events();
    assert_eq!(bench.a_sends(&tcp(CLIENT, proxied, SYN)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.a_sends(&piece(tcp_with_data(CLIENT, proxied), 2, 0, true)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::Fragment);
    assert_eq!(bench.a_sends(&piece(tcp_with_data(CLIENT, proxied), 2, 24, false)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::FragmentWithoutFirst);
}

/// Sends a datagram of this many bytes and awaits it whole.
fn carries(from: &UdpSocket, to: &UdpSocket, bytes: usize) {
    let data: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
    from.send_to(&data, to.local_addr().unwrap()).unwrap();
    let mut got = vec![0; bytes + 1];
    to.set_read_timeout(Some(WAIT)).unwrap();
    let (length, peer) = to.recv_from(&mut got).unwrap();
    assert!(got[..length] == data, "{length} of {bytes} bytes");
    assert_eq!(peer.port(), from.local_addr().unwrap().port());
}

/// Whether an echo request of this many bytes is answered.
fn echoes(to: Ipv4Addr, bytes: usize) -> bool {
    // Of the calling thread's namespace.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    let (domain, protocol) = (socket2::Domain::IPV4, socket2::Protocol::ICMPV4);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(protocol)).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let mut echo = vec![0; 8 + bytes];
    echo[0] = 8;
    socket.send_to(&echo, (to, 0)).unwrap();
    let mut answer = vec![0; 9 + bytes];
    matches!(socket.recv(&mut answer), Ok(length) if length == echo.len() && answer[0] == 0)
}

#[test]
fn large_datagrams_and_pings_pass_between_pods_the_node_and_the_world() {
    let Some(mut node) = Node::new("g-live") else { return };
    node.bench.protect_b();
    for peer in [IDENTITY_A, identity::WORLD] {
        node.bench.rule(RULES_B, direction::INGRESS, peer, UDP, 53, verdict::ALLOW);
        node.bench.rule(RULES_B, direction::INGRESS, peer, ICMP, 0, verdict::ALLOW);
    }
    let a = node.a.run(|| UdpSocket::bind(CLIENT).unwrap());
    let b = node.b.run(|| UdpSocket::bind(SERVER).unwrap());
    let outside = node.outside.run(|| UdpSocket::bind((OUTSIDE, 5_001)).unwrap());
    let process = UdpSocket::bind((NODE, 5_002)).unwrap();
    for bytes in [1_473, 3_000, 60_000] {
        for (one, other) in [(&a, &b), (&outside, &b), (&process, &b), (&a, &outside)] {
            carries(one, other, bytes);
            carries(other, one, bytes);
        }
    }
    assert!(node.a.run(|| echoes(POD_B, 3_000)) && node.outside.run(|| echoes(POD_B, 3_000)));
    assert!(echoes(POD_B, 3_000) && node.a.run(|| echoes(OUTSIDE, 3_000)));
    // A port that is not allowed gets nothing of it, and what was lost on the way keeps nothing
    // back.
    let closed = node.b.run(|| UdpSocket::bind((POD_B, 54)).unwrap());
    closed.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    a.send_to(&[1; 3_000], (POD_B, 54)).unwrap();
    assert!(closed.recv_from(&mut [0; 4_000]).is_err());
    assert!(node.bench.counters().get(Reason::FragmentWithoutFirst) >= 2);
    node.bench.datapath.maps.remove_connections_of(IpAddr::V4(POD_A)).unwrap();
    carries(&a, &b, 3_000);
}
