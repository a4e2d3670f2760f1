//! `from_tunnel`, row by row: the ingress verdict for pods of this node, and an Ethernet header for the way in.

#[cfg(test)]
mod common;

use common::packets::{ACK, ETHERNET, SYN, SYN_ACK, bare_frag_needed, bare_tcp, bare_udp, ipv4, tcp};
use common::*;
use layout::{Reason, direction, endpoint_flag, identity, path};

const CLIENT: (std::net::Ipv4Addr, u16) = (POD_R, 40_000);
const SERVER: (std::net::Ipv4Addr, u16) = (POD_B, 80);

#[test]
fn an_allowed_packet_gets_an_ethernet_header_and_goes_into_the_pod() {
    let Some(mut bench) = bench("ft-direct") else { return };
    bench.protect_b();
    bench.allow_into_b(IDENTITY_R, 80);
    let packet = bare_tcp(CLIENT, SERVER, SYN);
    let (outcome, counted) = bench.counted(|b| b.tunnel_delivers(&packet));
    assert_eq!(outcome.verdict(), (REDIRECT, 0));
    assert_eq!(outcome.packet[..6], MAC_B);
    assert_eq!(outcome.packet[12..14], [0x08, 0x00]);
    assert_eq!(outcome.packet[ETHERNET..], packet);
    assert_eq!(counted, [(Reason::FromTunnelDirect, 1), (Reason::NewDirect, 1), (Reason::IngressVerdict, 1)]);
    // The pod's replies go back through the stack to the tunnel.
    assert_eq!(bench.b_sends(&tcp(SERVER, CLIENT, SYN_ACK)).verdict(), (NEXT, JUDGED));
}

#[test]
fn ingress_is_denied_by_default_where_it_is_enforced() {
    let Some(mut bench) = bench("ft-denied") else { return };
    bench.protect_b();
    let (outcome, counted) = bench.counted(|b| b.tunnel_delivers(&bare_tcp(CLIENT, SERVER, SYN)));
    assert_eq!(outcome.action, DROP);
    assert_eq!(counted, [(Reason::IngressVerdict, 1), (Reason::DeniedIngress, 1)]);
    assert_eq!(bench.refusal(), (Reason::DeniedIngress, direction::INGRESS));
    // An address that nobody announced is not the world.
    bench.allow_into_b(identity::WORLD, 80);
    assert_eq!(bench.tunnel_delivers(&bare_tcp((POD_UNKNOWN, 40_000), SERVER, SYN)).action, DROP);
    bench.allow_into_b(identity::ANY, 80);
    assert_eq!(bench.tunnel_delivers(&bare_tcp((POD_UNKNOWN, 40_000), SERVER, SYN)).action, REDIRECT);
}

#[test]
fn l7_goes_to_the_proxy_and_so_do_replies_for_it() {
    let Some(mut bench) = bench("ft-l7") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_R, 80);
    let (outcome, counted) = bench.counted(|b| b.tunnel_delivers(&bare_tcp(CLIENT, SERVER, SYN)));
    assert_eq!(outcome.verdict(), (PASS, TO_PROXY));
    assert_eq!(outcome.packet, bare_tcp(CLIENT, SERVER, SYN), "no header for the stack");
    assert_eq!(
        counted,
        [(Reason::FromTunnelProxied, 1), (Reason::NewProxied, 1), (Reason::IngressVerdict, 1)]
    );
    // The client's node is the one that proxies: replies of the remote server.
    bench.confine_a();
    bench.rule(RULES_A, direction::EGRESS, IDENTITY_R, TCP, 8080, layout::verdict::REDIRECT);
    let (client, server) = ((POD_A, 41_000), (POD_R, 8080));
    assert_eq!(bench.a_sends(&tcp(client, server, SYN)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.tunnel_delivers(&bare_tcp(server, client, SYN_ACK)).verdict(), (PASS, TO_PROXY));
}

#[test]
fn a_reply_follows_the_entry_past_the_pods_ingress() {
    let Some(mut bench) = bench("ft-reply") else { return };
    bench.put_a(endpoint_flag::ENFORCE_INGRESS);
    let (client, server) = ((POD_A, 41_000), (POD_R, 8080));
    bench.a_sends(&tcp(client, server, SYN));
    assert_eq!(bench.tunnel_delivers(&bare_tcp(server, client, SYN_ACK)).action, REDIRECT);
    assert_eq!(bench.tunnel_delivers(&bare_tcp(server, client, SYN)).action, DROP);
    assert_eq!(bench.tunnel_delivers(&bare_udp(server, client)).action, DROP);
}

#[test]
fn a_shaped_pod_is_reached_through_its_queues() {
    let Some(mut bench) = bench("ft-shaped") else { return };
    bench.put_b(endpoint_flag::SHAPED);
    let packet = bare_tcp(CLIENT, SERVER, SYN);
    let outcome = bench.tunnel_delivers(&packet);
    assert_eq!(outcome.verdict(), (NEXT, JUDGED));
    assert_eq!(outcome.packet, packet, "no header for the stack");
}

#[test]
fn the_node_itself_is_reached_through_the_stack() {
    let Some(bench) = bench("ft-node") else { return };
    let (outcome, counted) = bench.counted(|b| b.tunnel_delivers(&bare_tcp(CLIENT, (NODE, 10_250), SYN)));
    assert_eq!(outcome.verdict(), (NEXT, 0));
    assert_eq!(counted, []);
}

#[test]
fn what_is_for_nobody_here_is_dropped() {
    let Some(bench) = bench("ft-nobody") else { return };
    for destination in [POD_UNKNOWN, WORLD, REMOTE_NODE] {
        assert_eq!(bench.tunnel_delivers(&bare_tcp(CLIENT, (destination, 80), SYN)).action, DROP);
        assert_eq!(bench.refusal().0, Reason::NoEndpoint);
    }
}

#[test]
fn a_proxied_flow_of_a_pod_that_is_gone_still_reaches_the_proxy() {
    let Some(mut bench) = bench("ft-gone") else { return };
    bench.protect_b();
    bench.redirect_into_b(IDENTITY_R, 80);
    bench.allow_into_b(IDENTITY_R, 81);
    bench.tunnel_delivers(&bare_tcp(CLIENT, SERVER, SYN));
    bench.tunnel_delivers(&bare_tcp(CLIENT, (POD_B, 81), SYN));
    bench.datapath.maps.remove_endpoint(std::net::IpAddr::V4(POD_B)).unwrap();
    assert_eq!(bench.tunnel_delivers(&bare_tcp(CLIENT, SERVER, ACK)).verdict(), (PASS, TO_PROXY));
    assert_eq!(bench.tunnel_delivers(&bare_tcp(CLIENT, (POD_B, 81), ACK)).action, DROP);
    assert_eq!(bench.entry(TCP, CLIENT, SERVER).unwrap().path, path::PROXIED);
}

#[test]
fn a_pod_of_this_node_does_not_live_behind_the_tunnel() {
    let Some(bench) = bench("ft-spoof") else { return };
    assert_eq!(bench.tunnel_delivers(&bare_tcp((POD_A, 40_000), SERVER, SYN)).action, DROP);
    assert_eq!(bench.refusal().0, Reason::SpoofedSource);
}

#[test]
fn an_icmp_error_reaches_the_proxy_or_the_pod_that_it_concerns() {
    let Some(mut bench) = bench("ft-icmp") else { return };
    bench.confine_a();
    bench.rule(RULES_A, direction::EGRESS, IDENTITY_R, TCP, 8080, layout::verdict::REDIRECT);
    bench.allow_out_of_a(IDENTITY_R, 8081);
    let client = (POD_A, 41_000);
    bench.a_sends(&tcp(client, (POD_R, 8080), SYN));
    bench.a_sends(&tcp(client, (POD_R, 8081), SYN));
    let about = |port| bare_frag_needed(REMOTE_NODE, POD_A, &bare_tcp(client, (POD_R, port), ACK));
    assert_eq!(bench.tunnel_delivers(&about(8080)).verdict(), (PASS, TO_PROXY));
    let outcome = bench.tunnel_delivers(&about(8081));
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.packet.len(), about(8081).len() + ETHERNET);
    assert_eq!(bench.tunnel_delivers(&about(8082)).action, DROP);
}

#[test]
fn other_than_ipv4_is_dropped() {
    let Some(bench) = bench("ft-ipv6") else { return };
    let mut packet = ipv4(TCP, POD_R, POD_B, &[0; 40]);
    packet[0] = 0x60;
    let (outcome, counted) = bench.counted(|b| b.tunnel_delivers(&packet));
    assert_eq!((outcome.action, counted), (DROP, vec![(Reason::UnsupportedProtocol, 1)]));
}
