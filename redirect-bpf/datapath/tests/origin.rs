//! Where a packet really came from, with real frames: what claims a remote address without having
//! come by the tunnel, and what the node gave another address after it was judged.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(test)]
mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::node::{Netns, Node, WAIT, mac_of};
use common::packets::bare_udp;
use common::raw::{send_frame, set_checksums};
use common::*;
use layout::{Reason, direction, verdict};

const SERVER: (Ipv4Addr, u16) = (POD_B, 53);
const SHORT: Duration = Duration::from_millis(50);

/// B, which lets in its port 53 for a remote pod, for one that is unknown and for other nodes.
fn node_with_server(name: &str) -> Option<(Node, UdpSocket)> {
    let mut node = Node::new(name)?;
    node.bench.protect_b();
    for peer in [IDENTITY_R, layout::identity::UNKNOWN, layout::identity::REMOTE_NODE] {
        node.bench.rule(RULES_B, direction::INGRESS, peer, UDP, 53, verdict::ALLOW);
    }
    let server = node.b.run(|| UdpSocket::bind(SERVER).unwrap());
    Some((node, server))
}

/// A frame to the node's device `to`, with these tags.
fn frame_to(to: &str, tags: &[[u8; 4]], source: Ipv4Addr) -> Vec<u8> {
    let mut packet = bare_udp((source, 5_000), SERVER);
    set_checksums(&mut packet);
    let mut frame = mac_of(to).to_vec();
    frame.extend([0x02, 0, 0, 0, 0, 9]);
    for tag in tags {
        frame.extend(tag);
    }
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

fn arrives(server: &UdpSocket, wait: Duration) -> bool {
    server.set_read_timeout(Some(wait)).unwrap();
    server.recv_from(&mut [0; 64]).is_ok()
}

#[test]
fn no_frame_in_clear_brings_what_only_the_tunnel_may_bring() {
    let Some((mut node, server)) = node_with_server("o-clear") else { return };
    // Another network card of the node, which no program watches.
    ip(&["link", "add", "second", "type", "veth", "peer", "name", "second-x"]);
    ip(&["link", "set", "second", "up"]);
    let neighbour = Netns::new();
    neighbour.take("second-x");
    neighbour.run(|| ip(&["link", "set", "second-x", "up"]));
    let (priority, service) = ([0x81, 0, 0xe0, 0], [0x88, 0xa8, 0, 0]);
    let tags: [&[[u8; 4]]; 6] = [
        &[],
        &[priority],
        &[priority, priority],
        &[priority, priority, priority],
        &[service],
        &[service, priority, service],
    ];
    let send = |node: &Node, tags, source| {
        let frame = frame_to("uplink", tags, source);
        node.outside.run(|| send_frame("uplink-x", &frame)).unwrap();
        let frame = frame_to("second", tags, source);
        neighbour.run(|| send_frame("second-x", &frame)).unwrap();
    };
    for source in [POD_R, POD_UNKNOWN, REMOTE_NODE] {
        for tags in tags {
            send(&node, tags, source);
        }
    }
    assert!(!arrives(&server, SHORT), "{:?}", server.recv_from(&mut [0; 64]));
    let counters = node.bench.counters();
    // All but the nested ones of the uplink, which are refused as such.
    assert_eq!(counters.get(Reason::Unencrypted), 3 * (3 + 6), "{counters:?}");
    assert_eq!(counters.get(Reason::TaggedFrame), 3 * 3);
    // The same frames arrive where nothing must be proven: what was refused could have been
    // delivered.
    node.bench.set_config(|config| config.flags = 0);
    send(&node, &[], POD_R);
    send(&node, &[priority], POD_R);
    for _ in 0..4 {
        assert!(arrives(&server, WAIT));
    }
}

#[test]
fn what_the_node_translates_after_the_verdict_is_judged_for_where_it_goes() {
    let Some(mut node) = Node::new("o-rewrite") else { return };
    node.bench.protect_b();
    let server = node.b.run(|| UdpSocket::bind(SERVER).unwrap());
    let client = node.a.run(|| UdpSocket::bind((POD_A, 5_000)).unwrap());
    // Without connection tracking, as IPVS and others do it: what goes to a remote pod, and to an
    // address that no pod has.
    let table = format!(
        "table ip rewrite {{ chain pre {{ type filter hook prerouting priority -310; \
            ip daddr {{ {POD_R}, {POD_UNKNOWN} }} ip daddr set {POD_B}; }}; }}"
    );
    assert!(Command::new("nft").arg(&table).status().unwrap().success());
    for dialled in [POD_R, POD_UNKNOWN] {
        client.send_to(b"x", (dialled, 53)).unwrap();
        assert!(!arrives(&server, SHORT), "{dialled}");
    }
    assert_eq!(node.bench.counters().get(Reason::DeniedIngress), 2);
    node.bench.rule(RULES_B, direction::INGRESS, IDENTITY_A, UDP, 53, verdict::ALLOW);
    for dialled in [POD_R, POD_UNKNOWN] {
        client.send_to(b"x", (dialled, 53)).unwrap();
        assert!(arrives(&server, WAIT), "{dialled}");
    }
}
