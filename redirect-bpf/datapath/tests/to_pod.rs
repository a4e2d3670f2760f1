//! `to_pod`, row by row: what the proxy sends and what was judged passes, a process of the node is let in, and what is
//! forwarded is judged here.

#[cfg(test)]
mod common;

use common::packets::{ACK, SYN, SYN_ACK, arp, bare_tcp, frag_needed, frame, icmp, tcp, udp};
use common::*;
use datapath::Program;
use layout::{Endpoint, Reason, direction, endpoint_flag, event_kind, identity, path, verdict};

const SERVER: (std::net::Ipv4Addr, u16) = (POD_B, 80);
const STRANGER: (std::net::Ipv4Addr, u16) = (WORLD, 40_000);
const KUBELET: (std::net::Ipv4Addr, u16) = (NODE, 50_000);

#[test]
fn marks_of_the_proxy_and_of_the_other_programs_pass() {
    let Some(mut bench) = bench("tp-marks") else { return };
    bench.protect_b();
    for mark in [FROM_PROXY, FROM_PROXY | 0x4000] {
        let arrival = Arrival { ifindex: bench.device_b, mark, ..Arrival::default() };
        let (outcome, counted) =
            bench.counted(|b| b.run(Program::ToPod, &tcp((POD_A, 40_000), SERVER, SYN), arrival));
        assert_eq!(outcome.verdict(), (NEXT, mark));
        assert_eq!(counted, [(Reason::ToPodJudged, 1)], "judged elsewhere, not again");
    }
    // What was judged has an entry, and passes for that alone.
    bench.allow_into_b(IDENTITY_A, 80);
    bench.a_sends(&tcp((POD_A, 40_000), SERVER, SYN));
    for (port, flags, action, reason) in [
        (80, SYN, NEXT, Reason::ToPodJudged),
        (80, ACK, NEXT, Reason::ToPodJudged),
        (81, SYN, DROP, Reason::DeniedIngress),
        (81, ACK, DROP, Reason::NoEntry),
    ] {
        let (ifindex, ingress_ifindex) = (bench.device_b, bench.device_a);
        let arrival = Arrival { ifindex, ingress_ifindex, mark: JUDGED };
        let packet = tcp((POD_A, 40_000), (POD_B, port), flags);
        let (outcome, counted) = bench.counted(|b| b.run(Program::ToPod, &packet, arrival));
        assert_eq!(outcome.action, action, "{port} {flags:#x}");
        assert!(counted.contains(&(reason, 1)), "{port} {flags:#x}: {counted:?}");
    }
    // Any other value is no pass.
    for mark in [0x100, TO_PROXY, 0x400, 0xb00, 0xf00] {
        let arrival = Arrival { ifindex: bench.device_b, ingress_ifindex: bench.uplink, mark };
        assert_eq!(bench.run(Program::ToPod, &tcp(STRANGER, SERVER, SYN), arrival).action, DROP, "{mark:#x}");
    }
}

#[test]
fn a_process_of_the_node_is_let_in_and_answered_past_the_pods_egress() {
    let Some(mut bench) = bench("tp-host") else { return };
    bench.put_b(endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS);
    bench.redirect_into_b(identity::HOST, 80);
    let (outcome, counted) = bench.counted(|b| b.host_to_b(&tcp(KUBELET, SERVER, SYN)));
    assert_eq!(outcome.verdict(), (NEXT, 0), "never proxied");
    assert_eq!(counted, [(Reason::ToPodHost, 1), (Reason::NewDirect, 1), (Reason::IngressVerdict, 1)]);
    let entry = bench.entry(TCP, KUBELET, SERVER).unwrap();
    assert_eq!((entry.path, entry.through_stack), (path::DIRECT, 1));
    let events = bench.events();
    assert_eq!(
        (events.len(), events[0].kind, events[0].source_identity),
        (1, event_kind::ALLOWED, identity::HOST)
    );
    assert_eq!(bench.b_sends(&tcp(SERVER, KUBELET, SYN_ACK)).verdict(), (NEXT, 0));
    // On its own B may not talk to the node.
    assert_eq!(bench.b_sends(&tcp(SERVER, (NODE, 50_001), SYN)).action, DROP);
    // UDP and echo alike.
    assert_eq!(bench.host_to_b(&udp(KUBELET, (POD_B, 53))).action, NEXT);
    assert_eq!(bench.b_sends(&udp((POD_B, 53), KUBELET)).verdict(), (NEXT, 0));
    assert_eq!(bench.host_to_b(&icmp(8, 1, NODE, POD_B)).action, NEXT);
    assert_eq!(bench.b_sends(&icmp(0, 1, POD_B, NODE)).verdict(), (NEXT, 0));
}

#[test]
fn an_answer_of_the_node_leaves_the_pods_entry_alone() {
    let Some(bench) = bench("tp-answer") else { return };
    let (client, api) = ((POD_B, 41_000), (NODE, 6443));
    assert_eq!(bench.b_sends(&tcp(client, api, SYN)).verdict(), (NEXT, 0));
    let before = bench.entry(TCP, client, api).unwrap();
    assert_eq!(bench.host_to_b(&tcp(api, client, SYN_ACK)).action, NEXT);
    assert_eq!(bench.entry(TCP, client, api).unwrap(), before);
}

#[test]
fn a_forwarded_packet_without_entry_gets_the_full_ingress_verdict() {
    let Some(mut bench) = bench("tp-forwarded") else { return };
    bench.protect_b();
    let (outcome, counted) = bench.counted(|b| b.forwarded_to_b(&tcp(STRANGER, SERVER, SYN)));
    assert_eq!(outcome.action, DROP);
    assert_eq!(counted, [(Reason::IngressVerdict, 1), (Reason::DeniedIngress, 1)]);
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    bench.allow_into_b(identity::WORLD, 80);
    let (outcome, counted) = bench.counted(|b| b.forwarded_to_b(&tcp(STRANGER, SERVER, SYN)));
    assert_eq!(outcome.verdict(), (NEXT, 0));
    assert_eq!(counted, [(Reason::ToPodForwarded, 1), (Reason::NewDirect, 1), (Reason::IngressVerdict, 1)]);
    // The reply goes through the stack without a mark, which would keep it from being translated back.
    assert_eq!(bench.b_sends(&tcp(SERVER, STRANGER, SYN_ACK)).verdict(), (NEXT, 0));
    assert_eq!(bench.forwarded_to_b(&tcp(STRANGER, SERVER, ACK)).action, NEXT);
}

#[test]
fn a_local_pods_translated_packet_is_judged_and_answered_through_the_stack() {
    let Some(mut bench) = bench("tp-translated") else { return };
    // A dialled a service address; somebody translated that to B.
    let (client, service) = ((POD_A, 40_000), (std::net::Ipv4Addr::new(172, 20, 0, 10), 80));
    bench.confine_a();
    bench.allow_out_of_a(identity::WORLD, 80);
    bench.protect_b();
    assert_eq!(bench.a_sends(&tcp(client, service, SYN)).verdict(), (NEXT, 0));
    let to_b = Arrival { ifindex: bench.device_b, ingress_ifindex: bench.device_a, mark: 0 };
    assert_eq!(bench.run(Program::ToPod, &tcp(client, SERVER, SYN), to_b).action, DROP);
    bench.allow_into_b(IDENTITY_A, 80);
    assert_eq!(bench.run(Program::ToPod, &tcp(client, SERVER, SYN), to_b).verdict(), (NEXT, 0));
    assert_eq!(bench.b_sends(&tcp(SERVER, client, SYN_ACK)).verdict(), (NEXT, 0), "not past the translation");
    // A's egress was judged on the service, and is not judged again on B when something changes.
    bench.confine_a();
    assert_eq!(bench.b_sends(&tcp(SERVER, client, ACK)).verdict(), (NEXT, 0));
    assert_eq!(bench.entry(TCP, client, SERVER).unwrap().path, path::DIRECT);
}

#[test]
fn replies_of_the_world_follow_the_entry_of_the_pod() {
    let Some(mut bench) = bench("tp-reply") else { return };
    bench.protect_b();
    let (client, site) = ((POD_B, 41_000), (WORLD, 443));
    assert_eq!(bench.b_sends(&tcp(client, site, SYN)).verdict(), (NEXT, 0));
    let (outcome, counted) = bench.counted(|b| b.forwarded_to_b(&tcp(site, client, SYN_ACK)));
    assert_eq!(outcome.verdict(), (NEXT, 0));
    assert_eq!(counted, [(Reason::ToPodForwarded, 1), (Reason::IngressVerdict, 1)]);
    let _sockets = bench.pods_have(client, site);
    // The table is lost; the reply restores what B opened, and a change of B's egress is seen on it.
    bench.datapath.maps.remove_connections_of(std::net::IpAddr::V4(POD_B)).unwrap();
    assert_eq!(bench.forwarded_to_b(&tcp(site, client, ACK)).verdict(), (NEXT, 0));
    bench.put_b(endpoint_flag::ENFORCE_INGRESS | endpoint_flag::ENFORCE_EGRESS);
    assert_eq!(bench.forwarded_to_b(&tcp(site, client, ACK)).verdict(), (REDIRECT, TO_PROXY), "reset");
    assert_eq!(bench.b_sends(&tcp(client, site, ACK)).verdict(), (PASS, TO_PROXY));
}

#[test]
fn l7_for_a_forwarded_packet_goes_in_again_through_loopback() {
    let Some(mut bench) = bench("tp-l7") else { return };
    bench.protect_b();
    bench.redirect_into_b(identity::WORLD, 80);
    let (outcome, counted) = bench.counted(|b| b.forwarded_to_b(&tcp(STRANGER, SERVER, SYN)));
    assert_eq!(outcome.verdict(), (REDIRECT, TO_PROXY));
    assert_eq!(outcome.packet[..6], [0; 6], "addressed to the loopback device");
    assert_eq!(counted, [(Reason::ToPodProxied, 1), (Reason::NewProxied, 1), (Reason::IngressVerdict, 1)]);
    assert_eq!(bench.entry(TCP, STRANGER, SERVER).unwrap().path, path::PROXIED);
    assert_eq!(bench.b_sends(&tcp(SERVER, STRANGER, SYN_ACK)).verdict(), (PASS, TO_PROXY));
    // Where it cannot be steered it is dropped by name, never passed.
    bench.set_config(|config| config.loopback_ifindex = 0);
    bench.events();
    assert_eq!(bench.forwarded_to_b(&tcp(STRANGER, SERVER, ACK)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::CannotSteer);
}

#[test]
fn a_forwarded_icmp_error_follows_the_flow_that_it_quotes() {
    let Some(bench) = bench("tp-icmp") else { return };
    let (client, site) = ((POD_B, 41_000), (WORLD, 443));
    bench.b_sends(&tcp(client, site, SYN));
    let router = std::net::Ipv4Addr::new(203, 0, 113, 1);
    assert_eq!(bench.forwarded_to_b(&frag_needed(router, POD_B, &bare_tcp(client, site, ACK))).action, NEXT);
    bench.events();
    let unrelated = bare_tcp((POD_B, 41_001), site, ACK);
    assert_eq!(bench.forwarded_to_b(&frag_needed(router, POD_B, &unrelated)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
}

#[test]
fn what_is_not_for_the_pod_behind_the_device_is_dropped() {
    let Some(bench) = bench("tp-address") else { return };
    // An address of no pod, and another pod's.
    for destination in [POD_UNKNOWN, POD_A, WORLD] {
        for ingress_ifindex in [0, bench.uplink] {
            let arrival = Arrival { ifindex: bench.device_b, ingress_ifindex, mark: 0 };
            let packet = tcp(STRANGER, (destination, 80), SYN);
            assert_eq!(bench.run(Program::ToPod, &packet, arrival).action, DROP, "{destination}");
            assert_eq!(bench.refusal().0, Reason::NoEndpoint);
        }
    }
}

#[test]
fn arp_passes_and_other_protocols_are_dropped() {
    let Some(bench) = bench("tp-ethertypes") else { return };
    assert_eq!(bench.host_to_b(&arp(NODE, POD_B)).action, NEXT);
    for ethertype in [0x86dd, 0x88cc] {
        let (outcome, counted) = bench.counted(|b| b.host_to_b(&frame(ethertype, &[0x60; 60])));
        assert_eq!((outcome.action, counted), (DROP, vec![(Reason::UnsupportedProtocol, 1)]));
    }
}

#[test]
fn a_remote_node_is_not_the_host() {
    let Some(mut bench) = bench("tp-remote-node") else { return };
    let endpoint = Endpoint {
        ifindex: bench.device_b,
        identity: IDENTITY_B,
        ruleset: RULES_B,
        flags: endpoint_flag::ENFORCE_INGRESS,
        ..Endpoint::default()
    };
    bench.put(POD_B, endpoint);
    let from_tunnel = Arrival { ifindex: bench.device_b, ingress_ifindex: TUNNEL, mark: 0 };
    let syn = tcp((REMOTE_NODE, 40_000), SERVER, SYN);
    assert_eq!(bench.run(Program::ToPod, &syn, from_tunnel).action, DROP);
    bench.rule(RULES_B, direction::INGRESS, identity::REMOTE_NODE, TCP, 80, verdict::ALLOW);
    assert_eq!(bench.run(Program::ToPod, &syn, from_tunnel).action, NEXT);
}

#[test]
fn only_the_tunnel_brings_what_claims_to_be_from_another_node() {
    let Some(mut bench) = bench("tp-origin") else { return };
    // Let in whoever it is.
    bench.put_b(0);
    for source in [POD_R, POD_UNKNOWN, REMOTE_NODE] {
        // The mark of what was judged is no proof either.
        for mark in [0, JUDGED] {
            let by = |ingress_ifindex| Arrival { ifindex: bench.device_b, ingress_ifindex, mark };
            let syn = tcp((source, 40_000), SERVER, SYN);
            for device in [bench.uplink, bench.device_a] {
                let (outcome, counted) = bench.counted(|b| b.run(Program::ToPod, &syn, by(device)));
                assert_eq!((outcome.action, counted), (DROP, vec![(Reason::Unencrypted, 1)]), "{source}");
            }
            assert_eq!(bench.run(Program::ToPod, &syn, by(TUNNEL)).action, NEXT, "{source}");
        }
    }
    // Nothing is proven while there is no tunnel, and nothing needs to be without encryption.
    bench.set_config(|config| config.tunnel_ifindex = 0);
    let by_tunnel = Arrival { ifindex: bench.device_b, ingress_ifindex: TUNNEL, mark: 0 };
    let syn = tcp((POD_R, 40_000), SERVER, SYN);
    assert_eq!(bench.run(Program::ToPod, &syn, by_tunnel).action, DROP);
    bench.set_config(|config| config.flags = 0);
    assert_eq!(bench.forwarded_to_b(&syn).action, NEXT);
}

#[test]
fn tagged_frames_are_dropped_by_name() {
    let Some(bench) = bench("tp-tagged") else { return };
    let mut tagged = vec![0, 0, 0x08, 0];
    tagged.extend(bare_tcp((POD_A, 40_000), SERVER, SYN));
    for ethertype in [0x8100, 0x88a8] {
        let frame = frame(ethertype, &tagged);
        for run in [Bench::forwarded_to_b, Bench::host_to_b, Bench::a_sends, Bench::uplink_delivers] {
            let (outcome, counted) = bench.counted(|b| run(b, &frame));
            assert_eq!((outcome.action, counted), (DROP, vec![(Reason::TaggedFrame, 1)]), "{ethertype:#x}");
        }
    }
}
