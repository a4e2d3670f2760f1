//! Real packets over real devices: pods in network namespaces, a listener in the proxy's place. What
//! `BPF_PROG_TEST_RUN` cannot show: where redirected packets arrive, which listener is picked, what a reset looks like.

#[cfg(test)]
mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use common::node::{Node, OUTSIDE, WAIT, accept, connect, exchange, mac_of, wait_for};
use common::packets::{ACK, SYN, bare_tcp, bare_udp, frame};
use common::raw::{open_tun, send_frame, set_checksums};
use common::*;
use layout::{Endpoint, Reason, RuleKey, direction, endpoint_flag, identity};

#[test]
fn direct_pods_talk_past_the_stack_of_the_node() {
    let Some(node) = Node::new("v-direct") else { return };
    let listener = node.listen_in_b(80);
    let mut client = node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let (mut server, peer) = accept(&listener);
    assert_eq!(peer.ip(), POD_A);
    exchange(&mut client, &mut server);
    let counters = node.bench.counters();
    assert!(counters.get(Reason::FromPodDirect) >= 8);
    for reason in [Reason::ToPodJudged, Reason::ToPodForwarded, Reason::ToPodHost, Reason::Internal] {
        assert_eq!(counters.get(reason), 0, "{}", reason.name());
    }
    let judged = counters.get(Reason::FromPodDirect);
    assert_eq!(counters.get(Reason::EgressVerdict), judged, "one egress verdict a packet");
    assert_eq!(counters.get(Reason::IngressVerdict), judged, "one ingress verdict a packet");
}

#[test]
fn a_shaped_pod_is_reached_through_the_stack_judged_once() {
    let Some(mut node) = Node::new("v-shaped") else { return };
    node.bench.put_b(endpoint_flag::SHAPED);
    let listener = node.listen_in_b(80);
    let mut client = node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let (mut server, _) = accept(&listener);
    exchange(&mut client, &mut server);
    let counters = node.bench.counters();
    assert!(counters.get(Reason::ToPodJudged) >= 8);
    assert_eq!(counters.get(Reason::IngressVerdict), counters.get(Reason::ToPodJudged));
}

#[test]
fn the_picked_listener_sees_the_true_ends_of_an_l7_connection() {
    let Some(mut node) = Node::new("v-l7") else { return };
    node.bench.protect_b();
    node.bench.redirect_into_b(IDENTITY_A, 80);
    let listener = node.proxy_listener();
    // A wildcard listener of the node on the same port is never an answer.
    let _wildcard = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    let mut client = node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let (mut accepted, peer) = accept(&listener);
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(accepted.local_addr().unwrap(), SocketAddr::from((POD_B, 80)));
    exchange(&mut client, &mut accepted);
    let counters = node.bench.counters();
    assert_eq!(counters.get(Reason::ListenerPicked), 1, "once for the SYN: {counters:?}");
    assert!(counters.get(Reason::ToPodJudged) > 0, "the proxy's packets come marked");
}

#[test]
fn an_empty_slot_drops_and_nobody_else_answers() {
    let Some(mut node) = Node::new("v-empty") else { return };
    node.bench.protect_b();
    node.bench.redirect_into_b(IDENTITY_A, 80);
    let _wildcard = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    let listener = node.proxy_listener();
    drop(listener);
    let error = node.a.run(|| connect((POD_B, 80), Duration::from_millis(300))).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(node.bench.counters().get(Reason::NoListener), 1);
    assert!(node.bench.events().iter().any(|event| event.reason == Reason::NoListener as u8));
    // A new listener in the slot answers the next try.
    let listener = node.proxy_listener();
    node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    accept(&listener);
}

#[test]
fn the_server_of_a_proxied_connection_meets_no_listener() {
    let Some(mut node) = Node::new("v-reverse") else { return };
    node.bench.protect_b();
    node.bench.redirect_into_b(IDENTITY_A, 80);
    let listener = node.proxy_listener();
    let client = node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let _accepted = accept(&listener);
    let port = client.local_addr().unwrap().port();
    let send = |flags| {
        let mut segment = bare_tcp((POD_B, 80), (POD_A, port), flags);
        set_checksums(&mut segment);
        let mut packet = mac_of("veth-b").to_vec();
        packet.extend(node.mac_b);
        packet.extend([0x08, 0x00]);
        packet.extend(segment);
        node.b.run(|| send_frame("eth0", &packet)).unwrap();
    };
    // The entry marks B's segment for the proxy; it is not the opener's, and there is no upstream socket.
    send(ACK);
    wait_for(|| node.bench.counters().get(Reason::ReverseSyn) == 1);
    // A SYN is judged anew, and the search for its socket is no attempt to reach the proxy.
    send(SYN);
    wait_for(|| node.bench.counters().get(Reason::NewDirect) == 1);
    assert_eq!(node.bench.counters().get(Reason::ReverseSyn), 1);
    assert_eq!(node.bench.counters().get(Reason::ListenerPicked), 1, "the opener's SYN alone");
}

#[test]
fn a_live_connection_goes_on_when_the_table_is_lost_and_a_forged_one_does_not_begin() {
    let Some(mut node) = Node::new("v-lost") else { return };
    // B lets A in and sends nothing on its own; A lets nobody in.
    node.bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    node.bench.put_b(endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS);
    node.bench.allow_into_b(IDENTITY_A, 80);
    let listener = node.listen_in_b(80);
    let mut client = node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let (mut server, _) = accept(&listener);
    exchange(&mut client, &mut server);
    for server_first in [true, false] {
        assert_eq!(node.bench.datapath.maps.remove_connections_of(POD_B.into()).unwrap(), 1);
        if server_first { exchange(&mut server, &mut client) } else { exchange(&mut client, &mut server) }
    }
    assert_eq!(node.bench.counters().get(Reason::EntryRestored), 2);
    // B forges an answer to another port of A's, where a socket listens.
    node.bench.datapath.maps.remove_connections_of(POD_B.into()).unwrap();
    let _listener = node.a.run(|| TcpListener::bind((POD_A, 8_080)).unwrap());
    let mut packet = mac_of("veth-b").to_vec();
    packet.extend(node.mac_b);
    packet.extend([0x08, 0x00]);
    let mut segment = bare_tcp((POD_B, 80), (POD_A, 8_080), ACK);
    set_checksums(&mut segment);
    packet.extend(segment);
    node.b.run(|| send_frame("eth0", &packet)).unwrap();
    wait_for(|| node.bench.counters().get(Reason::NoEntry) == 1);
    assert!(node.bench.datapath.maps.connections().unwrap().is_empty());
}

#[test]
fn a_live_connection_that_is_denied_is_reset_on_both_sides() {
    let Some(mut node) = Node::new("v-reset") else { return };
    node.bench.protect_b();
    node.bench.allow_into_b(IDENTITY_A, 80);
    let _proxy = node.proxy_listener();
    let listener = node.listen_in_b(80);
    let mut client = node.a.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let (mut server, _) = accept(&listener);
    exchange(&mut client, &mut server);
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, TCP, 80);
    node.bench.datapath.maps.remove_rule(RuleKey::BITS_EXACT, &key).unwrap();
    node.bench.protect_b();
    for side in [&mut client, &mut server] {
        side.write_all(b"more").unwrap();
        let error = side.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let counters = node.bench.counters();
    assert_eq!((counters.get(Reason::DeniedLive), counters.get(Reason::ReverseSyn)), (1, 0));
}

#[test]
fn a_forwarded_client_meets_the_proxy_through_loopback() {
    let Some(mut node) = Node::new("v-forwarded") else { return };
    node.bench.protect_b();
    node.bench.redirect_into_b(identity::WORLD, 80);
    let listener = node.proxy_listener();
    let mut client = node.outside.run(|| connect((POD_B, 80), WAIT)).unwrap();
    let (mut accepted, peer) = accept(&listener);
    assert_eq!(peer, SocketAddr::from((OUTSIDE, client.local_addr().unwrap().port())));
    assert_eq!(accepted.local_addr().unwrap(), SocketAddr::from((POD_B, 80)));
    exchange(&mut client, &mut accepted);
    let counters = node.bench.counters();
    assert_eq!(counters.get(Reason::ToPodProxied), 1, "the SYN; the uplink steers the rest");
    assert!(counters.get(Reason::FromUplinkProxied) >= 4);
    let error = node.outside.run(|| connect((POD_B, 81), Duration::from_millis(200))).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_process_of_the_node_reaches_a_closed_pod() {
    let Some(mut node) = Node::new("v-host") else { return };
    node.bench.put_b(endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS);
    let listener = node.listen_in_b(80);
    let mut client = connect((POD_B, 80), WAIT).unwrap();
    let (mut server, peer) = accept(&listener);
    assert_eq!(peer.ip(), NODE);
    exchange(&mut client, &mut server);
    let error = node.a.run(|| connect((POD_B, 80), Duration::from_millis(200))).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_packet_of_the_tunnel_arrives_in_the_pod() {
    let Some(mut node) = Node::new("v-tunnel") else { return };
    let endpoint = Endpoint {
        ifindex: node.bench.device_b,
        identity: IDENTITY_B,
        ruleset: RULES_B,
        mac: node.mac_b,
        ..Endpoint::default()
    };
    node.bench.put(POD_B, endpoint);
    let tun = open_tun("tun0");
    ip(&["link", "set", "tun0", "up"]);
    node.bench.datapath.attach_tunnel("tun0").unwrap();
    let server = node.b.run(|| UdpSocket::bind((POD_B, 53)).unwrap());
    server.set_read_timeout(Some(WAIT)).unwrap();
    let mut packet = bare_udp((POD_R, 5_000), (POD_B, 53));
    set_checksums(&mut packet);
    nix::unistd::write(&tun, &packet).unwrap();
    let (_, peer) = server.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(peer, SocketAddr::from((POD_R, 5_000)));
    assert_eq!(node.bench.counters().get(Reason::FromTunnelDirect), 1);
}

#[test]
fn what_is_masqueraded_as_the_node_has_not_the_nodes_rights() {
    let Some(mut node) = Node::new("v-node-port") else { return };
    // A NodePort as kube-proxy makes it: translated, and masqueraded as the node.
    let table = format!(
        "table ip node_port {{ \
            chain in {{ type nat hook prerouting priority dstnat; \
                ip daddr {NODE} tcp dport 30080 meta mark set meta mark or 0x4000 dnat to {POD_B}:80; }}; \
            chain out {{ type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade; }}; }}"
    );
    assert!(std::process::Command::new("nft").arg(&table).status().unwrap().success());
    node.bench.protect_b();
    let listener = node.listen_in_b(80);
    let short = Duration::from_millis(500);
    for from in [&node.a, &node.outside] {
        assert!(from.run(|| connect((NODE, 30_080), short)).is_err(), "whoever is behind the node's address");
    }
    node.bench.allow_into_b(identity::ANY, 80);
    node.bench.protect_b();
    for from in [&node.a, &node.outside] {
        let mut client = from.run(|| connect((NODE, 30_080), WAIT)).unwrap();
        let (mut server, peer) = accept(&listener);
        assert_eq!(peer.ip(), NODE);
        exchange(&mut client, &mut server);
    }
}

#[test]
fn truncated_frames_are_dropped_by_every_program() {
    let Some(node) = Node::new("v-truncated") else { return };
    let good = bare_tcp((WORLD, 40_000), (POD_B, 80), SYN);
    let mut expected = 0;
    for length in [0, 1, 19] {
        let cut = frame(0x0800, &good[..length]);
        node.a.run(|| send_frame("eth0", &cut)).unwrap();
        node.outside.run(|| send_frame("uplink-x", &cut)).unwrap();
        assert_eq!(send_frame("veth-b", &cut).unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        expected += 3;
    }
    wait_for(|| node.bench.counters().get(Reason::Malformed) >= expected);
    assert_eq!(node.bench.counters().get(Reason::Malformed), expected);
}
