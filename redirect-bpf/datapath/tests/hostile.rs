//! What pods, neighbours and other software of the node try, and what must come of it: each is a way past policy that was
//! open once.

#[cfg(test)]
mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::packets::{ACK, SYN, bare_frag_needed, bare_udp, frame, icmp, tcp, tcp_with_data, udp};
use common::*;
use datapath::Program;
use layout::{Endpoint, Reason, RuleKey, direction, endpoint_flag, identity, verdict};

const CLIENT: (Ipv4Addr, u16) = (POD_A, 40_000);
const SERVER: (Ipv4Addr, u16) = (POD_B, 80);

/// The stack forwards to pod B what came in on this device.
fn through(bench: &Bench, ingress_ifindex: u32, packet: &[u8]) -> Outcome {
    bench.run(Program::ToPod, packet, Arrival { ingress_ifindex, ..arrival(bench.device_b) })
}

#[test]
fn a_segment_from_the_midst_of_nothing_does_not_reach_the_world() {
    let Some(mut bench) = bench("h-world") else { return };
    bench.confine_a();
    let site = (WORLD, 443);
    assert_eq!(bench.a_sends(&tcp(CLIENT, site, SYN)).action, DROP);
    bench.events();
    assert_eq!(bench.a_sends(&tcp_with_data(CLIENT, site)).action, DROP, "as a reply to what nobody asked");
    assert_eq!(bench.refusal().0, Reason::NoEntry);
    // Not even if A's own stack says so: A may have made it say that.
    let _sockets = bench.pods_have(CLIENT, site);
    assert_eq!(bench.a_sends(&tcp_with_data(CLIENT, site)).action, DROP);
    assert_eq!(bench.refusal(), (Reason::DeniedEgress, direction::EGRESS));
    // The same for real: the world's own segment shows that it opened the connection.
    assert_eq!(bench.forwarded_to_a(&tcp(site, CLIENT, ACK)).action, NEXT);
    assert_eq!(bench.a_sends(&tcp_with_data(CLIENT, site)).action, NEXT);
}

#[test]
fn a_forwarded_packet_with_the_nodes_address_is_no_process_of_the_node() {
    let Some(mut bench) = bench("h-snat") else { return };
    bench.protect_b();
    let port = |port| tcp((NODE, 40_000), (POD_B, port), SYN);
    for device in [bench.uplink, bench.device_a] {
        assert_eq!(through(&bench, device, &port(80)).action, DROP, "whoever is behind that address");
    }
    bench.allow_into_b(identity::ANY, 81);
    assert_eq!(through(&bench, bench.uplink, &port(81)).verdict(), (NEXT, 0), "anyone may");
    bench.redirect_into_b(identity::ANY, 82);
    bench.events();
    assert_eq!(through(&bench, bench.uplink, &port(82)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::CannotSteer);
    assert_eq!(bench.host_to_b(&port(80)).verdict(), (NEXT, 0), "a process of the node is let in");
}

#[test]
fn only_a_pods_own_device_speaks_for_it() {
    let Some(mut bench) = bench("h-device") else { return };
    bench.protect_b();
    bench.allow_into_b(IDENTITY_A, 80);
    assert_eq!(through(&bench, bench.device_a, &tcp(CLIENT, SERVER, SYN)).action, NEXT);
    bench.events();
    // A bridge of containers, a second network card: `from_uplink` is not there.
    assert_eq!(through(&bench, bench.uplink, &tcp((POD_A, 40_001), SERVER, SYN)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::SpoofedSource);
}

#[test]
fn another_node_does_not_speak_to_pods_in_clear() {
    let Some(mut bench) = bench("h-node") else { return };
    let packet = tcp((REMOTE_NODE, 40_000), SERVER, SYN);
    assert_eq!(bench.uplink_delivers(&packet).action, DROP);
    assert_eq!(bench.refusal().0, Reason::Unencrypted);
    assert_eq!(bench.uplink_delivers(&tcp((REMOTE_NODE, 40_000), (NODE, 6443), SYN)).action, NEXT);
    bench.set_config(|config| config.flags = 0);
    assert_eq!(bench.uplink_delivers(&packet).action, NEXT, "without encryption");
}

#[test]
fn a_pod_without_endpoint_gets_nothing() {
    let Some(mut bench) = bench("h-no-endpoint") else { return };
    bench.datapath.maps.remove_endpoint(IpAddr::V4(POD_B)).unwrap();
    let packet = udp((POD_A, 5_000), (POD_B, 53));
    let sent = bench.a_sends(&packet);
    assert_eq!(sent.mark, JUDGED, "a pod of another node, for all that is known");
    bench.events();
    let arrival = Arrival { ingress_ifindex: bench.device_a, mark: sent.mark, ..arrival(bench.device_b) };
    assert_eq!(bench.run(Program::ToPod, &packet, arrival).action, DROP);
    assert_eq!(bench.refusal().0, Reason::NoEndpoint);
}

#[test]
fn who_is_pinged_may_not_ping_back() {
    let Some(mut bench) = bench("h-ping") else { return };
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    assert_eq!(bench.a_sends(&icmp(8, 7, POD_A, POD_B)).action, REDIRECT);
    assert_eq!(bench.b_sends(&icmp(0, 7, POD_B, POD_A)).action, REDIRECT);
    for kind in [8, 13] {
        assert_eq!(bench.b_sends(&icmp(kind, 7, POD_B, POD_A)).action, DROP, "a request of its own, {kind}");
    }
    // Where both may, one identifier serves both.
    bench.put_a(0);
    for kind in [8, 0] {
        assert_eq!(bench.b_sends(&icmp(kind, 7, POD_B, POD_A)).action, REDIRECT);
        assert_eq!(bench.a_sends(&icmp(kind, 7, POD_A, POD_B)).action, REDIRECT);
    }
}

#[test]
fn a_pod_speaks_of_no_flow_that_is_not_its_own() {
    let Some(mut bench) = bench("h-error") else { return };
    // A lets nobody in, B may send nothing: they have nothing to say to each other.
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    bench.put_b(endpoint_flag::ENFORCE_EGRESS);
    let (asker, site) = ((POD_A, 5_000), (WORLD, 53));
    assert_eq!(bench.a_sends(&udp(asker, site)).action, NEXT);
    let error = |from| bare_frag_needed(from, POD_A, &bare_udp(asker, site));
    bench.events();
    assert_eq!(bench.b_sends(&frame(0x0800, &error(POD_B))).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
    assert_eq!(bench.tunnel_delivers(&error(POD_R)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::IcmpUnrelated);
    // A router on the way may.
    assert_eq!(bench.forwarded_to_a(&frame(0x0800, &error(Ipv4Addr::new(203, 0, 113, 1)))).action, NEXT);
}

#[test]
fn the_entry_of_a_translated_flow_permits_nothing_else() {
    let Some(mut bench) = bench("h-service") else { return };
    let (client, server, service) = ((POD_A, 5_000), (POD_B, 53), (Ipv4Addr::new(172, 20, 0, 10), 53));
    bench.confine_a();
    bench.rule(RULES_A, direction::EGRESS, identity::WORLD, UDP, 53, verdict::ALLOW);
    assert_eq!(bench.a_sends(&udp(client, service)).action, NEXT);
    // Somebody translates it.
    assert_eq!(through(&bench, bench.device_a, &udp(client, server)).action, NEXT);
    assert_eq!(bench.b_sends(&udp(server, client)).verdict(), (NEXT, 0), "the reply, to be translated back");
    assert_eq!(bench.a_sends(&udp(client, server)).action, DROP, "B itself was never allowed");
}

#[test]
fn a_pod_inherits_no_flow_with_its_address() {
    let Some(mut bench) = bench("h-heir") else { return };
    let (client, server) = ((POD_A, 5_000), (POD_B, 53));
    let both = |bench: &Bench| {
        (bench.b_sends(&udp(server, client)).action, bench.b_sends(&tcp(SERVER, CLIENT, ACK)).verdict())
    };
    assert_eq!(bench.a_sends(&udp(client, server)).action, REDIRECT);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
    assert_eq!(both(&bench), (REDIRECT, (REDIRECT, 0)));
    // Its rules change: still the same pod, and its flows.
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    assert_eq!(both(&bench), (REDIRECT, (REDIRECT, 0)));
    bench.datapath.maps.remove_endpoint(IpAddr::V4(POD_A)).unwrap();
    let heir = Endpoint {
        ifindex: bench.uplink,
        identity: 999,
        ruleset: 77,
        flags: endpoint_flag::ENFORCE_INGRESS,
        ..Endpoint::default()
    };
    bench.put(POD_A, heir);
    assert_eq!(both(&bench), (DROP, (PASS, TO_PROXY)), "it never asked; the peer is told");
    // Also where policy would let it go on, or make it anew from either side.
    let heir = Endpoint { ifindex: bench.device_a, ..heir };
    for flags in [0, endpoint_flag::ENFORCE_INGRESS] {
        bench.put_a(0);
        assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
        bench.put(POD_A, Endpoint { ifindex: bench.uplink, flags, ..heir });
        assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, ACK)).verdict(), (PASS, TO_PROXY));
    }
}

#[test]
fn half_of_two_policies_ends_no_connection() {
    let Some(mut bench) = bench("h-swap") else { return };
    bench.protect_b();
    bench.allow_into_b(IDENTITY_A, 80);
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, SYN)).action, REDIRECT);
    // The old rule is gone, the new one not there yet.
    bench.datapath.maps.set_swapping(true).unwrap();
    let key = rule_key(RULES_B, direction::INGRESS, IDENTITY_A, TCP, 80);
    bench.datapath.maps.remove_rule(RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    bench.events();
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::Swapping);
    bench.allow_into_b(IDENTITY_A, 80);
    bench.datapath.maps.set_swapping(false).unwrap();
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).action, REDIRECT, "sent again");
    // What is denied once all is written is reset.
    bench.datapath.maps.remove_rule(RuleKey::BITS_EXACT, &key).unwrap();
    bench.protect_b();
    assert_eq!(bench.a_sends(&tcp(CLIENT, SERVER, ACK)).verdict(), (PASS, TO_PROXY));
}
