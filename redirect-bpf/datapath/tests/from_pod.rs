//! `from_pod`, row by row: the source is proven, egress is judged, and for a pod of this node ingress too.

#[cfg(test)]
mod common;

use common::packets::{ACK, SYN, SYN_ACK, arp, frame, icmp, other, sctp, tcp, udp};
use common::*;
use datapath::Rule;
use layout::{Reason, RuleKey, direction, endpoint_flag, event_kind, identity, path, verdict};

const CLIENT: (std::net::Ipv4Addr, u16) = (POD_A, 40_000);
const SERVER: (std::net::Ipv4Addr, u16) = (POD_B, 80);

#[test]
fn without_policy_a_local_pod_is_reached_directly_with_one_verdict_each() {
    let Some(bench) = bench("fp-direct") else { return };
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, SYN)));
    assert_eq!(outcome.verdict(), (REDIRECT, 0));
    let expected = [
        (Reason::FromPodDirect, 1),
        (Reason::NewDirect, 1),
        (Reason::IngressVerdict, 1),
        (Reason::EgressVerdict, 1),
    ];
    assert_eq!(counted, expected);
    // Later packets of both sides follow the entry, and are counted as judged all the same.
    let (outcome, counted) = bench.counted(|b| b.b_sends(&tcp(SERVER, CLIENT, SYN_ACK)));
    assert_eq!(outcome.verdict(), (REDIRECT, 0));
    let expected = [(Reason::FromPodDirect, 1), (Reason::IngressVerdict, 1), (Reason::EgressVerdict, 1)];
    assert_eq!(counted, expected);
    let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
    assert_eq!((entry.path, entry.through_stack), (path::DIRECT, 0));
}

#[test]
fn a_new_flow_is_reported_with_ends_and_origins() {
    let Some(mut bench) = bench("fp-event") else { return };
    bench.confine_a();
    bench.protect_b();
    bench.rule(RULES_A, direction::EGRESS, IDENTITY_B, TCP, 80, verdict::ALLOW);
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, TCP, 80, verdict::ALLOW);
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    let events = bench.events();
    let [event] = events.as_slice() else { panic!("one event, not {events:?}") };
    assert_eq!((event.kind, event.reason, event.direction), (event_kind::ALLOWED, 0, 0));
    assert_eq!((event.source, event.destination), (POD_A.into(), POD_B.into()));
    assert_eq!((u16::from_be(event.source_port), u16::from_be(event.destination_port)), (40_000, 80));
    assert_eq!((event.source_identity, event.destination_identity), (IDENTITY_A, IDENTITY_B));
    assert_eq!((event.egress_origin, event.ingress_origin), (80, 80));
    assert_eq!((event.protocol, event.tcp_flags, event.ifindex), (TCP, SYN, bench.device_a));
    assert!(event.time_ns > 0);
}

#[test]
fn egress_is_denied_by_default_where_it_is_enforced() {
    let Some(mut bench) = bench("fp-egress") else { return };
    bench.confine_a();
    bench.allow_out_of_a(IDENTITY_B, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
    bench.events();
    assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_B, 81), SYN)).action, DROP);
    assert_eq!(bench.refusal(), (Reason::DeniedEgress, direction::EGRESS));
    assert_eq!(bench.entry(TCP, CLIENT, (POD_B, 81)), None);
}

#[test]
fn ingress_of_a_local_pod_is_judged_in_the_same_pass() {
    let Some(mut bench) = bench("fp-ingress") else { return };
    bench.protect_b();
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, SYN)));
    assert_eq!(outcome.action, DROP);
    let expected = [(Reason::IngressVerdict, 1), (Reason::EgressVerdict, 1), (Reason::DeniedIngress, 1)];
    assert_eq!(counted, expected);
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    bench.allow_into_b(IDENTITY_A, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
}

#[test]
fn l7_in_either_direction_goes_to_the_proxy() {
    let Some(mut bench) = bench("fp-l7") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, SERVER, SYN)));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert!(counted.contains(&(Reason::NewProxied, 1)) && counted.contains(&(Reason::FromPodProxied, 1)));
    let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
    assert_eq!(entry.path, path::PROXIED);
    assert!(entry.slot < 4);
    assert_eq!(bench.events()[0].kind, event_kind::REDIRECTED);
    // The server's replies take the same way.
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, SYN_ACK)).verdict(), (PASS, TO_PROXY));

    bench.put_b(0);
    bench.confine_a();
    bench.rule(RULES_A, direction::EGRESS, IDENTITY_B, TCP, 8080, verdict::REDIRECT);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_B, 8080), SYN)).verdict(), (PASS, TO_PROXY));
    // Deny wins over the proxy of the other side.
    bench.protect_b();
    assert_eq!(bench.a_sends(&tcp((POD_A, 40_001), (POD_B, 8080), SYN)).action, DROP);
}

#[test]
fn the_slot_is_the_same_for_the_same_tuple_and_spreads() {
    let Some(mut bench) = bench("fp-slot") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_A, 80);
    let slot = |bench: &Bench, port| {
        bench.a_sends(&tcp((POD_A, port), SERVER, SYN));
        bench.entry(TCP, (POD_A, port), SERVER).unwrap().slot
    };
    let first: Vec<u8> = (40_000..40_100).map(|port| slot(&bench, port)).collect();
    let again: Vec<u8> = (40_000..40_100).map(|port| slot(&bench, port)).collect();
    assert_eq!(first, again);
    for wanted in 0..4 {
        let hits = first.iter().filter(|slot| **slot == wanted).count();
        assert!(hits >= 10, "slot {wanted} got {hits} of 100");
    }
}

#[test]
fn a_source_that_is_not_the_pods_own_is_dropped() {
    let Some(bench) = bench("fp-spoof") else { return };
    for source in [POD_B, POD_R, WORLD, NODE] {
        let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp((source, 40_000), (WORLD, 80), SYN)));
        assert_eq!(outcome.action, DROP, "{source}");
        assert_eq!(counted, [(Reason::SpoofedSource, 1)]);
        assert_eq!(bench.refusal().0, Reason::SpoofedSource);
    }
}

#[test]
fn a_remote_pod_is_reached_through_the_stack_judged() {
    let Some(mut bench) = bench("fp-remote") else { return };
    let (outcome, counted) = bench.counted(|b| b.a_sends(&tcp(CLIENT, (POD_R, 80), SYN)));
    assert_eq!(outcome.verdict(), (NEXT, JUDGED));
    assert!(!counted.iter().any(|(reason, _)| *reason == Reason::IngressVerdict));
    bench.confine_a();
    assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_R, 80), SYN)).action, DROP);
    bench.allow_out_of_a(IDENTITY_R, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_R, 80), SYN)).verdict(), (NEXT, JUDGED));
}

#[test]
fn world_and_node_are_reached_unmarked_so_that_a_translation_is_judged_again() {
    let Some(mut bench) = bench("fp-world") else { return };
    for destination in [WORLD, NODE] {
        assert_eq!(bench.a_sends(&tcp(CLIENT, (destination, 80), SYN)).verdict(), (NEXT, 0));
    }
    bench.confine_a();
    bench.allow_out_of_a(identity::WORLD, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (WORLD, 80), SYN)).verdict(), (NEXT, 0));
    assert_eq!(bench.a_sends(&tcp(CLIENT, (NODE, 80), SYN)).action, DROP);
    bench.allow_out_of_a(identity::HOST, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (NODE, 80), SYN)).verdict(), (NEXT, 0));
}

#[test]
fn bits_of_the_mark_that_are_not_ours_stay() {
    let Some(bench) = bench("fp-mark") else { return };
    let arrival = Arrival { mark: 0x4a05, ..arrival(bench.device_a) };
    let outcome = bench.run(datapath::Program::FromPod, &tcp(CLIENT, (POD_R, 80), SYN), arrival);
    assert_eq!(outcome.verdict(), (NEXT, 0x4005 | JUDGED));
}

#[test]
fn an_unknown_address_matches_only_rules_for_everybody() {
    let Some(mut bench) = bench("fp-unknown") else { return };
    bench.confine_a();
    bench.allow_out_of_a(identity::WORLD, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_UNKNOWN, 80), SYN)).action, DROP);
    bench.allow_out_of_a(identity::ANY, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_UNKNOWN, 80), SYN)).verdict(), (NEXT, JUDGED));
}

#[test]
fn the_first_answer_of_the_rules_is_the_whole_answer() {
    let Some(mut bench) = bench("fp-lpm") else { return };
    bench.protect_b();
    // Any peer may reach every TCP port; A, more exactly, only ports 8080 to 8087, and not 8081.
    let key = |peer, port| rule_key(RULES_B, direction::INGRESS, peer, TCP, port);
    let rules = [
        (RuleKey::BITS_ANY_PORT, key(identity::ANY, 0), verdict::ALLOW),
        (RuleKey::BITS_ANY_PORT + 13, key(IDENTITY_A, 8080), verdict::ALLOW),
        (RuleKey::BITS_EXACT, key(IDENTITY_A, 8081), verdict::DENY),
        (RuleKey::BITS_ANY_PROTOCOL, rule_key(RULES_B, direction::INGRESS, IDENTITY_A, 0, 0), verdict::DENY),
    ];
    for (prefix_len, key, verdict) in rules {
        bench.datapath.maps.put_rule(&Rule { prefix_len, key, verdict, origin: 7 }).unwrap();
    }
    for (port, expected) in [(8080, REDIRECT), (8087, REDIRECT), (8081, DROP), (8088, DROP), (80, DROP)] {
        assert_eq!(bench.a_sends(&tcp(CLIENT, (POD_B, port), SYN)).action, expected, "port {port}");
    }
    // Another ruleset's rules and another direction's are not looked at.
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    assert_eq!(bench.b_sends(&tcp((POD_B, 41_000), (POD_A, 8080), SYN)).action, DROP);
}

#[test]
fn udp_and_sctp_are_judged_by_port_and_others_by_protocol() {
    let Some(mut bench) = bench("fp-protocols") else { return };
    bench.protect_b();
    let client = (POD_A, 5_000);
    for protocol in [UDP, SCTP] {
        bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, protocol, 53, verdict::ALLOW);
    }
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, 47, 0, verdict::ALLOW);
    assert_eq!(bench.a_sends(&udp(client, (POD_B, 53))).action, REDIRECT);
    assert_eq!(bench.a_sends(&udp(client, (POD_B, 54))).action, DROP);
    assert_eq!(bench.a_sends(&sctp(client, (POD_B, 53))).action, REDIRECT);
    assert_eq!(bench.a_sends(&sctp(client, (POD_B, 54))).action, DROP);
    assert_eq!(bench.a_sends(&other(47, POD_A, POD_B)).action, REDIRECT);
    assert_eq!(bench.a_sends(&other(50, POD_A, POD_B)).action, DROP);
    // L7 is TCP's: what asks for it on UDP is refused by name.
    bench.events();
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 55, verdict::REDIRECT);
    assert_eq!(bench.a_sends(&udp(client, (POD_B, 55))).action, DROP);
    assert_eq!(bench.refusal().0, Reason::CannotSteer);
}

#[test]
fn echo_is_judged_without_port_and_only_an_asked_for_reply_passes() {
    let Some(mut bench) = bench("fp-echo") else { return };
    bench.protect_b();
    assert_eq!(bench.a_sends(&icmp(8, 7, POD_A, POD_B)).action, DROP);
    bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, ICMP, 0, verdict::ALLOW);
    assert_eq!(bench.a_sends(&icmp(8, 7, POD_A, POD_B)).action, REDIRECT);
    assert_eq!(bench.b_sends(&icmp(0, 7, POD_B, POD_A)).action, REDIRECT);
    bench.events();
    assert_eq!(bench.b_sends(&icmp(0, 8, POD_B, POD_A)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::NoEntry);
    // A redirect (5) changes routes: never.
    assert_eq!(bench.a_sends(&icmp(5, 7, POD_A, POD_B)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
}

#[test]
fn a_shaped_pod_is_reached_through_its_queues() {
    let Some(mut bench) = bench("fp-shaped") else { return };
    bench.put_b(endpoint_flag::SHAPED);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).verdict(), (NEXT, JUDGED));
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, SYN_ACK)).verdict(), (NEXT, JUDGED));
}

#[test]
fn other_than_ipv4_is_dropped_but_for_the_pods_own_arp() {
    let Some(bench) = bench("fp-ethertypes") else { return };
    for ethertype in [0x86dd, 0x88cc] {
        let (outcome, counted) = bench.counted(|b| b.a_sends(&frame(ethertype, &[0x60; 60])));
        assert_eq!((outcome.action, counted), (DROP, vec![(Reason::UnsupportedProtocol, 1)]));
    }
    let gateway = std::net::Ipv4Addr::new(169, 254, 1, 1);
    assert_eq!(bench.a_sends(&arp(POD_A, gateway)).action, NEXT);
    assert_eq!(bench.a_sends(&arp(POD_B, gateway)).action, DROP);
    assert_eq!(bench.a_sends(&arp(gateway, POD_A)).action, DROP);
}

#[test]
fn new_entries_of_a_pod_are_limited_but_not_its_live_flows() {
    let Some(bench) = bench("fp-quota") else { return };
    // As after a scan: the quota of this window is used up.
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    bench.spend_quota(bench.device_a);
    bench.events();
    assert_eq!(bench.a_sends(&tcp((POD_A, 40_001), SERVER, SYN)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::QuotaExceeded);
    // The flow that is there goes on, its tuple may be used again, and another pod is not concerned.
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).action, REDIRECT);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
    assert_eq!(bench.b_sends(&tcp((POD_B, 41_000), (POD_A, 80), SYN)).action, REDIRECT);
}
