//! `from_uplink`, row by row: nothing in clear from a pod's address, the proxy's replies steered, the rest left alone.

#[cfg(test)]
mod common;

use common::packets::{ACK, SYN, SYN_ACK, arp, bare_tcp, frag_needed, frame, ipv4, tcp, tcp_with_data};
use common::*;
use layout::{Reason, direction, identity};

const SERVER: (std::net::Ipv4Addr, u16) = (POD_B, 80);
const STRANGER: (std::net::Ipv4Addr, u16) = (WORLD, 40_000);

#[test]
fn a_pods_address_in_clear_is_dropped_while_encryption_is_on() {
    let Some(mut bench) = bench("fu-clear") else { return };
    for source in [POD_R, POD_UNKNOWN, POD_A] {
        for destination in [POD_B, NODE] {
            let packet = tcp((source, 40_000), (destination, 80), SYN);
            let (outcome, counted) = bench.counted(|b| b.uplink_delivers(&packet));
            assert_eq!((outcome.action, counted), (DROP, vec![(Reason::Unencrypted, 1)]), "{source}");
            assert_eq!(bench.refusal().0, Reason::Unencrypted);
        }
    }
    bench.set_config(|config| config.flags = 0);
    assert_eq!(bench.uplink_delivers(&tcp((POD_R, 40_000), SERVER, SYN)).verdict(), (NEXT, 0));
    // A pod of this node never comes from outside, encrypted or not.
    assert_eq!(bench.uplink_delivers(&tcp((POD_A, 40_000), SERVER, SYN)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::SpoofedSource);
}

#[test]
fn options_and_fragments_do_not_hide_a_pods_address() {
    let Some(bench) = bench("fu-hidden") else { return };
    let mut with_options = ipv4(TCP, POD_R, NODE, &[0; 40]);
    with_options[0] = 0x46;
    let mut fragment = ipv4(TCP, POD_R, NODE, &[0; 40]);
    fragment[6..8].copy_from_slice(&[0x20, 0x01]);
    for packet in [with_options, fragment] {
        assert_eq!(bench.uplink_delivers(&frame(0x0800, &packet)).action, DROP);
        assert_eq!(bench.refusal().0, Reason::Unencrypted);
    }
}

#[test]
fn the_nodes_own_traffic_passes_untouched() {
    let Some(bench) = bench("fu-node") else { return };
    let mut fragment = ipv4(TCP, WORLD, NODE, &[0; 40]);
    fragment[6..8].copy_from_slice(&[0x20, 0x01]);
    let mut with_options = ipv4(TCP, WORLD, NODE, &[0; 40]);
    with_options[0] = 0x46;
    let packets = [
        tcp(STRANGER, (NODE, 22), SYN),
        tcp((REMOTE_NODE, 1), (NODE, 22), ACK),
        arp(REMOTE_NODE, NODE),
        frame(0x86dd, &[0x60; 40]),
        frame(0x0800, &fragment),
        frame(0x0800, &with_options),
    ];
    for packet in packets {
        let (outcome, counted) = bench.counted(|b| b.uplink_delivers(&packet));
        assert_eq!(outcome.verdict(), (NEXT, 0));
        assert_eq!(counted, []);
    }
}

#[test]
fn what_is_forwarded_to_a_pod_is_left_to_be_judged_there() {
    let Some(mut bench) = bench("fu-forwarded") else { return };
    bench.protect_b();
    let (outcome, counted) = bench.counted(|b| b.uplink_delivers(&tcp(STRANGER, SERVER, SYN)));
    assert_eq!((outcome.verdict(), counted), ((NEXT, 0), vec![]));
    assert_eq!(bench.entry(TCP, STRANGER, SERVER), None);
}

#[test]
fn a_proxied_flow_is_steered_past_the_pod() {
    let Some(mut bench) = bench("fu-proxied") else { return };
    bench.protect_b();
    bench.redirect_into_b(identity::WORLD, 80);
    bench.allow_into_b(identity::WORLD, 81);
    bench.forwarded_to_b(&tcp(STRANGER, SERVER, SYN));
    bench.forwarded_to_b(&tcp(STRANGER, (POD_B, 81), SYN));
    let (outcome, counted) = bench.counted(|b| b.uplink_delivers(&tcp(STRANGER, SERVER, ACK)));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert_eq!(counted, [(Reason::FromUplinkProxied, 1), (Reason::IngressVerdict, 1)]);
    assert_eq!(bench.uplink_delivers(&tcp(STRANGER, (POD_B, 81), ACK)).verdict(), (NEXT, 0));
    // A new SYN follows no entry.
    assert_eq!(bench.uplink_delivers(&tcp(STRANGER, SERVER, SYN)).verdict(), (NEXT, 0));
    // An ICMP error about the proxied flow (sent by B's address) is the proxy's.
    let error = |port| frag_needed(WORLD, POD_B, &bare_tcp((POD_B, port), STRANGER, ACK));
    assert_eq!(bench.uplink_delivers(&error(80)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.uplink_delivers(&error(81)).verdict(), (NEXT, 0));
}

#[test]
fn a_proxied_flow_whose_pod_changed_is_judged_again_at_the_pod() {
    let Some(mut bench) = bench("fu-changed") else { return };
    bench.protect_b();
    bench.redirect_into_b(identity::WORLD, 80);
    bench.forwarded_to_b(&tcp(STRANGER, SERVER, SYN));
    let request = tcp_with_data(STRANGER, SERVER);
    assert_eq!(bench.uplink_delivers(&request).verdict(), (PASS, TO_PROXY));
    // No proxy has taken over the new rules: the agent leaves them out.
    let key = rule_key(RULES_B, direction::INGRESS, identity::WORLD, TCP, 80);
    bench.datapath.maps.remove_rule(layout::RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    assert_eq!(bench.uplink_delivers(&request).verdict(), (NEXT, 0));
    assert_eq!(bench.forwarded_to_b(&request).action, DROP);
    // Now one has.
    bench.redirect_into_b(identity::WORLD, 80);
    bench.protect_b();
    assert_eq!(bench.uplink_delivers(&request).verdict(), (NEXT, 0));
    assert_eq!(bench.forwarded_to_b(&request).verdict(), (REDIRECT, TO_PROXY));
    assert_eq!(bench.uplink_delivers(&request).verdict(), (PASS, TO_PROXY));
}

#[test]
fn a_socket_of_the_proxy_without_entry_gets_its_replies() {
    let Some(bench) = bench("fu-socket") else { return };
    // The proxy's upstream with A's address, to a server in the world.
    let (local, server) = ((POD_A, 20_002), (WORLD, 443));
    let _sockets = bench.transparent_pair(local, server);
    assert_eq!(bench.uplink_delivers(&tcp(server, local, SYN_ACK)).verdict(), (PASS, TO_PROXY));
    assert_eq!(
        bench.uplink_delivers(&tcp(server, local, SYN)).verdict(),
        (PASS, TO_PROXY),
        "rule 0: it lives"
    );
    assert_eq!(bench.uplink_delivers(&tcp(server, (POD_A, 20_003), ACK)).verdict(), (NEXT, 0));
    // Sockets of the node itself are none of ours.
    let node = (NODE, 20_004);
    let _own = bench.transparent_pair(node, (WORLD, 444));
    assert_eq!(bench.uplink_delivers(&tcp((WORLD, 444), node, ACK)).verdict(), (NEXT, 0));
}
