//! The order of the rules: what an entry decides, when it is judged again, and what happens without one.

#[cfg(test)]
mod common;

use std::net::{IpAddr, TcpListener};

use common::packets::{
    ACK, FIN, RST, SYN, SYN_ACK, bare_tcp, bare_udp, frag_needed, tcp, tcp_with_data, udp,
};
use common::*;
use layout::{Endpoint, Reason, direction, endpoint_flag, event_kind, identity, path, verdict};

const CLIENT: (std::net::Ipv4Addr, u16) = (POD_A, 40_000);
const SERVER: (std::net::Ipv4Addr, u16) = (POD_B, 80);

/// A direct connection of A to B:80 that policy allows.
fn connected(name: &str) -> Option<Bench> {
    let mut bench = bench(name)?;
    bench.protect_b();
    bench.allow_into_b(IDENTITY_A, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, SYN_ACK)).action, REDIRECT);
    bench.events();
    Some(bench)
}

#[test]
fn rule_0_a_reverse_syn_over_an_old_entry_is_judged_in_its_own_direction() {
    let Some(mut bench) = connected("c-reverse") else { return };
    // A lets nobody in: B may answer A's connection, but not open one to A's port on its entry.
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, ACK)).action, REDIRECT);
    bench.events();
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, SYN)).action, DROP);
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    // The connection itself is none the worse.
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, ACK)).action, REDIRECT);
}

#[test]
fn rule_0_a_syn_over_a_proxied_entry_without_socket_is_judged_anew() {
    let Some(mut bench) = bench("c-syn-proxied") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    // The rule is lifted; the tuple is used again.
    bench.allow_into_b(IDENTITY_A, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
    assert_eq!(bench.entry(TCP, CLIENT, SERVER).unwrap().path, path::DIRECT);
    // SYN together with FIN or RST is no SYN, and follows the entry.
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN | FIN)).action, REDIRECT);
}

#[test]
fn rule_1_a_proxied_entry_stays_with_the_proxy_whatever_changes() {
    let Some(mut bench) = bench("c-proxied") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    bench.put_b(0);
    bench.put_a(0);
    for flags in [SYN_ACK, ACK, FIN | ACK, RST] {
        assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, flags)).verdict(), (PASS, TO_PROXY), "{flags:#x}");
        if flags != SYN_ACK {
            assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, flags)).verdict(), (PASS, TO_PROXY), "{flags:#x}");
        }
    }
}

#[test]
fn rule_3_a_proxied_connection_that_is_denied_now_gets_no_data_to_the_proxy_until_it_is_allowed_again() {
    let Some(mut bench) = bench("c-proxied-deny") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    let [request, response] = [(CLIENT, SERVER), (SERVER, CLIENT)].map(|(from, to)| tcp_with_data(from, to));
    assert_eq!(bench.a_sends(&request).verdict(), (PASS, TO_PROXY));
    // The agent leaves the rule out: no proxy has taken it over.
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, TCP, 80);
    bench.datapath.maps.remove_rule(layout::RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    bench.events();
    assert_eq!(bench.a_sends(&request).action, DROP);
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    assert_eq!(bench.b_sends(&response).action, DROP);
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    // The proxy ends the connection, and each side's stack answers.
    for flags in [ACK, FIN | ACK, RST] {
        assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, flags)).verdict(), (PASS, TO_PROXY), "{flags:#x}");
        assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, flags)).verdict(), (PASS, TO_PROXY), "{flags:#x}");
    }
    // The proxy has it now: the connection goes on with the next retransmission, judged once.
    bench.redirect_into_b(IDENTITY_A, 80);
    bench.protect_b();
    let (outcome, counted) = bench.counted(|b| b.a_sends(&request));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert!(counted.contains(&(Reason::JudgedAgain, 1)));
    let (outcome, counted) = bench.counted(|b| b.b_sends(&response));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert!(!counted.iter().any(|(reason, _)| *reason == Reason::JudgedAgain));
}

#[test]
fn rule_2_without_a_change_rules_are_not_looked_at_again() {
    let Some(mut bench) = connected("c-holds") else { return };
    // Gone from the map, but B's generation is the same: the agent has not switched yet.
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, TCP, 80);
    assert!(bench.datapath.maps.remove_rule(layout::RuleKey::BITS_EXACT, &key).unwrap());
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, ACK)));
    assert_eq!(outcome.action, REDIRECT);
    assert!(!counted.iter().any(|(reason, _)| *reason == Reason::JudgedAgain));
}

#[test]
fn rule_3_a_new_generation_is_judged_once_and_stays_if_allowed() {
    let Some(mut bench) = connected("c-again") else { return };
    bench.protect_b();
    // The server's packet comes first: it is judged as A's connection to B all the same.
    let (outcome, counted) = bench.counted(|b| b.b_sends(&tcp(SERVER, CLIENT, ACK)));
    assert_eq!(outcome.action, REDIRECT);
    assert!(counted.contains(&(Reason::JudgedAgain, 1)));
    let (_, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, ACK)));
    assert!(!counted.iter().any(|(reason, _)| *reason == Reason::JudgedAgain));
    assert!(bench.events().is_empty(), "nothing new happened");
}

#[test]
fn rule_3_a_connection_that_is_denied_now_is_reset_on_both_sides() {
    let Some(mut bench) = connected("c-deny") else { return };
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, TCP, 80);
    bench.datapath.maps.remove_rule(layout::RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, ACK)));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert!(counted.contains(&(Reason::DeniedLive, 1)));
    assert_eq!(bench.entry(TCP, CLIENT, SERVER).unwrap().path, path::RESET);
    let events = bench.events();
    assert_eq!(
        (events.len(), events[0].kind, events[0].direction),
        (1, event_kind::RESET, direction::INGRESS)
    );
    // The other side, without another count or event.
    let (outcome, counted) = bench.counted(|b| b.b_sends(&tcp(SERVER, CLIENT, ACK)));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert!(!counted.iter().any(|(reason, _)| *reason == Reason::DeniedLive));
    // A new attempt is refused as any other.
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, DROP);
}

#[test]
fn rule_3_an_l7_rule_over_a_live_direct_connection_resets_it() {
    let Some(mut bench) = connected("c-l7") else { return };
    bench.redirect_into_b(IDENTITY_A, 80);
    bench.protect_b();
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, ACK)).verdict(), (PASS, TO_PROXY));
    let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
    assert_eq!(entry.path, path::RESET);
    // Still A's connection: the opener is remembered through the change.
    assert_eq!(entry.opened_by_a, connection_key_sender_bit(CLIENT, SERVER));
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.entry(TCP, CLIENT, SERVER).unwrap().path, path::PROXIED);
}

#[test]
fn rule_3_a_remote_peer_with_another_identity_is_judged_again() {
    let Some(mut bench) = bench("c-identity") else { return };
    bench.protect_b();
    bench.allow_into_b(IDENTITY_R, 80);
    let client = (POD_R, 40_000);
    assert_eq!(bench.tunnel_delivers(&bare_tcp(client, SERVER, SYN)).action, REDIRECT);
    assert_eq!(bench.tunnel_delivers(&bare_tcp(client, SERVER, ACK)).action, REDIRECT);
    bench.datapath.maps.put_identity(IpAddr::V4(POD_R), 301).unwrap();
    assert_eq!(bench.tunnel_delivers(&bare_tcp(client, SERVER, ACK)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.entry(TCP, client, SERVER).unwrap().path, path::RESET);
}

#[test]
fn rule_3_drops_a_datagram_flow_that_is_denied_now() {
    let Some(mut bench) = bench("c-udp") else { return };
    bench.protect_b();
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 53, verdict::ALLOW);
    let (client, server) = ((POD_A, 5_000), (POD_B, 53));
    assert_eq!(bench.a_sends(&udp(client, server)).action, REDIRECT);
    assert_eq!(bench.b_sends(&udp(server, client)).action, REDIRECT);
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 53);
    bench.datapath.maps.remove_rule(layout::RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    bench.events();
    assert_eq!(bench.b_sends(&udp(server, client)).action, DROP, "the reply is A's flow too");
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    assert_eq!(bench.entry(UDP, client, server), None);
    assert_eq!(bench.a_sends(&udp(client, server)).action, DROP);
}

#[test]
fn a_datagram_flow_that_was_silent_too_long_is_void() {
    let Some(mut bench) = bench("c-idle") else { return };
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    let (client, server) = ((POD_A, 5_000), (POD_B, 53));
    assert_eq!(bench.a_sends(&udp(client, server)).action, REDIRECT);
    assert_eq!(bench.b_sends(&udp(server, client)).action, REDIRECT);
    let seen = bench.entry(UDP, client, server).unwrap().last_seen_ns;
    if seen < layout::limits::DATAGRAM_IDLE_NS + 1_000_000_000 {
        return skip("the machine is up for less than the time-out, its clock has no time that old");
    }
    bench.rewrite_entry(UDP, client, server, |entry| {
        // A machine that is up for less than the time-out has no clock value that old; a tick ahead wraps to none.
        entry.last_seen_ns =
            entry.last_seen_ns.saturating_sub(layout::limits::DATAGRAM_IDLE_NS + 1_000_000_000);
    });
    assert_eq!(bench.b_sends(&udp(server, client)).action, DROP, "A lets nobody in");
    assert_eq!(bench.a_sends(&udp(client, server)).action, REDIRECT, "A opens it again");
    assert!(bench.entry(UDP, client, server).unwrap().last_seen_ns >= seen);
}

#[test]
fn an_entry_whose_pod_is_gone_is_void_and_its_address_starts_anew() {
    let Some(mut bench) = connected("c-gone") else { return };
    let _sockets = bench.pods_have(CLIENT, SERVER);
    bench.datapath.maps.remove_endpoint(IpAddr::V4(POD_B)).unwrap();
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, ACK)));
    // Unknown now, and A is free to send there: through the stack, to nowhere.
    assert_eq!(outcome.verdict(), (NEXT, JUDGED));
    assert!(counted.contains(&(Reason::EntryRestored, 1)));
    // Another pod with the address, which lets nobody in, inherits nothing.
    let endpoint = Endpoint {
        ifindex: bench.device_b,
        identity: 400,
        ruleset: 9,
        flags: endpoint_flag::ENFORCE_INGRESS,
        ..Endpoint::default()
    };
    bench.put(POD_B, endpoint);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).verdict(), (PASS, TO_PROXY), "reset");
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, DROP);
}

#[test]
fn rule_4_a_socket_of_the_proxy_takes_its_segments_without_an_entry() {
    let Some(mut bench) = bench("c-socket") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    let (accepted, upstream) = bench.transparent_pair(SERVER, CLIENT);
    // The table is lost. The client's segments belong to a socket bound to the server's address.
    assert_eq!(bench.entry(TCP, CLIENT, SERVER), None);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).verdict(), (PASS, TO_PROXY));
    // Rule 0: also a SYN, for which the socket lives.
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.entry(TCP, CLIENT, SERVER), None, "sockets make no entries");
    drop((accepted, upstream));
}

#[test]
fn rule_4_a_listener_is_no_socket() {
    let Some(mut bench) = bench("c-listener") else { return };
    bench.put_a(endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS);
    let _wildcard = TcpListener::bind(("0.0.0.0", 80)).unwrap();
    assert_eq!(bench.a_sends(&tcp(CLIENT, (WORLD, 80), SYN)).action, DROP);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (WORLD, 80), ACK)).action, DROP);
}

#[test]
fn rule_4_sockets_of_the_node_itself_are_left_to_the_stack() {
    let Some(mut bench) = bench("c-node-socket") else { return };
    // A process of the node is connected with A; the table is lost.
    let node = (NODE, 10_250);
    let _of_a = bench.pods_have(CLIENT, node);
    let _sockets = bench.transparent_pair(node, CLIENT);
    assert_eq!(bench.a_sends(&tcp(CLIENT, node, ACK)).verdict(), (NEXT, 0), "never marked");
    // A SYN is judged like any other to the node.
    bench.confine_a();
    assert_eq!(bench.a_sends(&tcp(CLIENT, node, SYN)).action, DROP);
    bench.allow_out_of_a(identity::HOST, node.1);
    assert_eq!(bench.a_sends(&tcp(CLIENT, node, SYN)).verdict(), (NEXT, 0));
}

#[test]
fn rule_5_a_reply_makes_its_lost_entry_anew() {
    let Some(mut bench) = connected("c-restore") else { return };
    let _sockets = bench.pods_have(CLIENT, SERVER);
    // B may send nothing on its own: what passes is A's connection.
    bench.put_b(endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS);
    assert_eq!(bench.datapath.maps.remove_connections_of(IpAddr::V4(POD_A)).unwrap(), 1);
    let (outcome, counted) = bench.counted(|b| b.b_sends(&tcp(SERVER, CLIENT, ACK)));
    assert_eq!(outcome.action, REDIRECT);
    assert!(counted.contains(&(Reason::EntryRestored, 1)));
    let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
    assert_eq!(entry.opened_by_a, connection_key_sender_bit(CLIENT, SERVER), "A opened it");
    assert!(bench.events().is_empty(), "nothing new happened");
}

#[test]
fn rule_5_either_sides_segment_restores_the_openers_entry() {
    let Some(mut bench) = connected("c-restore-both") else { return };
    let _sockets = bench.pods_have(CLIENT, SERVER);
    for (from_server, flags) in [(true, ACK), (false, ACK)] {
        let mut bench_maps = datapath::Maps::open(&bench.pin_dir).unwrap();
        bench_maps.remove_connections_of(IpAddr::V4(POD_A)).unwrap();
        let outcome = if from_server {
            bench.b_sends(&tcp(SERVER, CLIENT, flags))
        } else {
            bench.a_sends(&tcp(CLIENT, SERVER, flags))
        };
        assert_eq!(outcome.action, REDIRECT);
        let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
        assert_eq!(entry.opened_by_a, connection_key_sender_bit(CLIENT, SERVER));
    }
}

#[test]
fn rule_5_a_connection_that_its_pod_does_not_have_is_not_restored() {
    let Some(mut bench) = bench("c-forged") else { return };
    // A lets nobody in and may send everything: whatever it says could be an answer. B is closed
    // outwards, and would let A in.
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    bench.put_b(endpoint_flag::ENFORCE_EGRESS);
    let stranger = (WORLD, 443);
    let remote = (POD_R, 443);
    let data = |from, to| tcp_with_data(from, to);
    let check = |bench: &Bench| {
        assert_eq!(bench.b_sends(&data(SERVER, CLIENT)).action, DROP);
        assert_eq!(bench.a_sends(&data(CLIENT, SERVER)).action, DROP);
        assert_eq!(bench.forwarded_to_a(&data(stranger, CLIENT)).action, DROP);
        assert_eq!(bench.tunnel_delivers(&data(remote, CLIENT)[14..]).action, DROP);
        assert_eq!(bench.b_sends(&data(SERVER, remote)).action, DROP);
        let refused = bench.events().into_iter().filter(|event| event.reason == Reason::NoEntry as u8);
        assert_eq!(refused.count(), 5);
        assert!(bench.datapath.maps.connections().unwrap().is_empty());
    };
    check(&bench);
    // Another connection of the same pods, and listeners, are none.
    let _others = bench.pods_have((POD_A, 40_001), (POD_B, 81));
    check(&bench);
    // An id that is not known, and one that no namespace has.
    let _sockets = bench.pods_have(CLIENT, SERVER);
    for netns in [0, 9_999] {
        for (address, ifindex) in [(POD_A, bench.device_a), (POD_B, bench.device_b)] {
            let mut endpoints = bench.datapath.maps.endpoints().unwrap().into_iter();
            let (_, endpoint) = endpoints.find(|(known, _)| *known == IpAddr::V4(address)).unwrap();
            assert_eq!(endpoint.ifindex, ifindex);
            let endpoint = Endpoint { netns, ..endpoint };
            bench.datapath.maps.put_endpoint(IpAddr::V4(address), &endpoint).unwrap();
        }
        check(&bench);
    }
}

#[test]
fn rule_5_segments_of_no_connection_are_dropped() {
    let Some(mut bench) = bench("c-midstream") else { return };
    bench.put_b(endpoint_flag::ENFORCE_INGRESS);
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    for flags in [ACK, SYN_ACK, FIN | ACK, RST, FIN, 0] {
        assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, flags)).action, DROP, "{flags:#x}");
        assert_eq!(bench.refusal().0, Reason::NoEntry);
    }
    assert!(bench.datapath.maps.connections().unwrap().is_empty());
}

#[test]
fn rule_5_a_lost_connection_under_an_l7_rule_is_reset_from_either_side() {
    let Some(mut bench) = bench("c-l7-lost") else { return };
    let _sockets = bench.pods_have(CLIENT, SERVER);
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    for from_server in [false, true] {
        bench.datapath.maps.remove_connections_of(IpAddr::V4(POD_A)).unwrap();
        let outcome = if from_server {
            bench.b_sends(&tcp(SERVER, CLIENT, ACK))
        } else {
            bench.a_sends(&tcp(CLIENT, SERVER, ACK))
        };
        assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
        let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
        assert_eq!(entry.path, path::RESET);
        assert_eq!(entry.opened_by_a, connection_key_sender_bit(CLIENT, SERVER));
    }
}

#[test]
fn icmp_errors_follow_the_flow_that_they_quote() {
    let Some(mut bench) = bench("c-icmp") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    bench.allow_into_b(IDENTITY_A, 81);
    let direct = (POD_B, 81);
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    bench.a_sends(&tcp(CLIENT, direct, SYN));
    // B tells A that A's packet was too large: for the proxied flow that is the proxy's business.
    let (outcome, counted) =
        bench.counted(|b| b.b_sends(&frag_needed(POD_B, POD_A, &bare_tcp(CLIENT, SERVER, ACK))));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert!(counted.contains(&(Reason::IcmpToProxy, 1)));
    assert_eq!(bench.b_sends(&frag_needed(POD_B, POD_A, &bare_tcp(CLIENT, direct, ACK))).action, REDIRECT);
    bench.events();
    // About no flow at all, and about A's flow but told to somebody else.
    assert_eq!(bench.b_sends(&frag_needed(POD_B, POD_A, &bare_tcp((POD_A, 1), direct, ACK))).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
    assert_eq!(bench.b_sends(&frag_needed(POD_B, WORLD, &bare_tcp(CLIENT, direct, ACK))).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
    // A may not tell B about what A itself sent, proxied or not.
    assert_eq!(bench.a_sends(&frag_needed(POD_A, POD_B, &bare_tcp(CLIENT, SERVER, ACK))).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
    // UDP alike.
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 53, verdict::ALLOW);
    let (client, server) = ((POD_A, 5_000), (POD_B, 53));
    bench.a_sends(&udp(client, server));
    assert_eq!(bench.b_sends(&frag_needed(POD_B, POD_A, &bare_udp(client, server))).action, REDIRECT);
}

#[test]
fn icmp_errors_reach_a_socket_of_the_proxy_without_entry() {
    let Some(bench) = bench("c-icmp-socket") else { return };
    // The proxy's upstream: A's address, another port than A's, connected to B.
    let upstream = (POD_A, 20_001);
    let _sockets = bench.transparent_pair(upstream, SERVER);
    let error = frag_needed(POD_B, POD_A, &bare_tcp(upstream, SERVER, ACK));
    assert_eq!(bench.b_sends(&error).verdict(), (PASS, TO_PROXY));
}
