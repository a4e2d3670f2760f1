//! What leaves the node: into the tunnel past the stack, and by the uplink nothing that should have
//! gone there.

#[cfg(test)]
mod common;

use std::io::{ErrorKind, Read as _};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::node::Node;
use common::packets::{ACK, SYN, arp, frame, icmp, other, tcp, udp};
use common::raw::{open_tun, send_frame};
use common::*;
use datapath::Attachment;
use datapath::Program;
use layout::{Reason, config_flag, endpoint_flag};

const ONLY_ENCRYPTED: u32 = 0x400;
/// Another node, whose address lies in its range of pods.
const NODE_IN_RANGE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// A neighbour of the node with an address of what was said to be the pod network.
const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);

#[test]
fn nothing_between_pods_or_pods_and_nodes_leaves_in_clear() {
    let Some(mut bench) = bench("u-clear") else { return };
    bench.know_ranges(0);
    let secret = [
        ("pod to pod", POD_A, POD_R),
        ("pod to unknown pod", POD_A, Ipv4Addr::new(10, 0, 7, 7)),
        ("pod to node", POD_A, REMOTE_NODE),
        ("pod that is gone to node", Ipv4Addr::new(10, 0, 1, 77), REMOTE_NODE),
        ("node to pod", NODE, POD_R),
        ("node to pod nobody announced", NODE, POD_UNKNOWN),
        ("world to pod", WORLD, POD_R),
        ("node to own pod that is gone", NODE, Ipv4Addr::new(10, 0, 1, 77)),
    ];
    for (what, from, to) in secret {
        let plain = udp((from, 5_000), (to, 51_820));
        // As WireGuard's, tagged, tagged twice, a later fragment, with options.
        let tagged = |tag: u16, inner: &[u8]| {
            let mut tagged = inner[..12].to_vec();
            tagged.extend(tag.to_be_bytes());
            tagged.extend([0, 5]);
            tagged.extend(&inner[12..]);
            tagged
        };
        let once = tagged(0x8100, &plain);
        let mut fragment = plain.clone();
        fragment[14 + 7] = 9;
        let mut options = plain.clone();
        options[14] = 0x46;
        for packet in [
            plain.clone(),
            once.clone(),
            tagged(0x88a8, &once),
            fragment,
            options,
            tcp((from, 40_000), (to, 80), SYN),
            icmp(8, 7, from, to),
            other(47, from, to),
        ] {
            let (sent, counted) = bench.counted(|bench| bench.leaves_by_uplink(&packet, 0));
            assert_eq!(sent.action, DROP, "{what}: {packet:?}");
            assert_eq!(counted, [(Reason::LeavesInClear, 1)], "{what}");
        }
        bench.set_config(|config| config.flags = 0);
        assert_eq!(bench.leaves_by_uplink(&plain, 0).action, NEXT, "without encryption: {what}");
        bench.set_config(|config| config.flags = config_flag::ENCRYPTED);
    }
}

#[test]
fn what_is_the_nodes_own_leaves() {
    let Some(mut bench) = bench("u-own") else { return };
    bench.know_ranges(0);
    let own = [
        ("WireGuard", NODE, REMOTE_NODE),
        ("WireGuard to a node within a range", NODE, NODE_IN_RANGE),
        ("a node within a range to a node", NODE_IN_RANGE, REMOTE_NODE),
        ("node to world", NODE, WORLD),
        ("pod to world, not masqueraded", POD_A, WORLD),
        ("node to neighbour", NODE, LAN),
        ("another address of the node", Ipv4Addr::new(192, 168, 1, 1), REMOTE_NODE),
    ];
    for (what, from, to) in own {
        for packet in [udp((from, 51_820), (to, 51_820)), tcp((from, 40_000), (to, 6443), ACK)] {
            assert_eq!(bench.leaves_by_uplink(&packet, 0).verdict(), (NEXT, 0), "{what}");
            assert_eq!(bench.leaves_by_uplink(&packet, ONLY_ENCRYPTED).action, DROP, "{what}, of a pod once");
        }
    }
    for packet in [arp(NODE, REMOTE_NODE), frame(0x86dd, &[0x60; 48]), frame(0x88cc, &[0; 4])] {
        assert_eq!(bench.leaves_by_uplink(&packet, 0).action, NEXT);
    }
}

#[test]
fn a_pod_sends_into_the_tunnel_past_the_stack() {
    let Some(mut bench) = bench("u-tunnel") else { return };
    let tun = open_tun("tun-t");
    ip(&["link", "set", "tun-t", "up", "mtu", "1280"]);
    let index = nix::net::if_::if_nametoindex("tun-t").unwrap();
    bench.know_ranges(index);
    for to in [POD_R, POD_UNKNOWN, REMOTE_NODE, NODE_IN_RANGE] {
        let sent = bench.counted(|bench| bench.a_sends(&udp((POD_A, 5_000), (to, 53))));
        assert_eq!(sent.0.action, REDIRECT, "{to}");
        assert!(sent.1.contains(&(Reason::FromPodTunnel, 1)), "{:?}", sent.1);
    }
    for to in [WORLD, NODE, LAN] {
        assert_ne!(bench.a_sends(&udp((POD_A, 5_000), (to, 53))).action, REDIRECT, "{to}");
    }
    // Too long: the stack tells the pod.
    let of_length = |to, length: usize| {
        let mut packet = udp((POD_A, 5_000), (to, 53));
        packet.resize(14 + length, 0);
        packet[16..18].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        packet
    };
    assert_eq!(bench.a_sends(&of_length(POD_R, 1280)).action, REDIRECT);
    assert_eq!(bench.a_sends(&of_length(POD_R, 1281)).action, NEXT);
    assert_eq!(bench.a_sends(&of_length(REMOTE_NODE, 1281)).verdict(), (NEXT, ONLY_ENCRYPTED));
    // Bandwidth limits work in the stack.
    bench.put_a(endpoint_flag::SHAPED);
    assert_eq!(bench.a_sends(&of_length(REMOTE_NODE, 100)).verdict(), (NEXT, ONLY_ENCRYPTED));
    bench.put_a(0);
    // Without a device, and without encryption, by the stack.
    bench.know_ranges(0);
    assert_eq!(bench.a_sends(&of_length(REMOTE_NODE, 100)).verdict(), (NEXT, ONLY_ENCRYPTED));
    bench.know_ranges(index);
    bench.set_config(|config| (config.flags, config.tunnel_ifindex) = (0, index));
    assert_eq!(bench.a_sends(&of_length(REMOTE_NODE, 100)).verdict(), (NEXT, 0));
    drop(tun);
}

#[test]
fn a_real_pod_reaches_the_tunnel_without_any_route_and_nothing_else_reaches_the_link() {
    let Some(mut node) = Node::new("u-real") else { return };
    let tun = open_tun("tun-r");
    ip(&["link", "set", "tun-r", "up"]);
    node.bench.know_ranges(nix::net::if_::if_nametoindex("tun-r").unwrap());
    node.bench.datapath.attach_uplink("uplink").unwrap();
    let attached = Attachment { device: "uplink".to_owned(), program: Program::ToUplink };
    assert!(node.bench.datapath.attachments().unwrap().contains(&attached));
    // All that leads anywhere is by the uplink.
    ip(&["route", "add", "default", "via", "172.31.1.9"]);
    let send = |from: &'static str, to: &'static str| {
        std::net::UdpSocket::bind(from).unwrap().send_to(b"secret", to).map_err(|error| error.kind())
    };
    for to in ["10.0.2.10:9", "172.31.1.2:9"] {
        node.a.run(|| send("0.0.0.0:0", to)).unwrap();
        assert!(read_from(&tun).windows(6).any(|window| window == b"secret"), "{to}: without link layer");
    }
    // A process of the node follows the routes, and is stopped at the link.
    let before = node.bench.counters().get(Reason::LeavesInClear);
    let _ = send("0.0.0.0:0", "10.0.2.10:9");
    assert_eq!(node.bench.counters().get(Reason::LeavesInClear), before + 1);
    send("0.0.0.0:0", "172.31.1.9:9").unwrap();
    assert_eq!(node.bench.counters().get(Reason::LeavesInClear), before + 1);
    assert_eq!(
        send_frame("uplink", &udp((POD_A, 5_000), (POD_R, 9))).map_err(|error| error.raw_os_error()),
        Err(Some(libc::ENOBUFS)),
        "a raw frame of the node itself"
    );
}

/// The next IPv4 packet that the TUN was given.
#[cfg(test)]
fn read_from(tun: &std::fs::File) -> Vec<u8> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(tun, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    let start = Instant::now();
    let mut packet = vec![0; 2_000];
    loop {
        match (&*tun).read(&mut packet) {
            Ok(length) if packet[0] >> 4 == 4 => {
                packet.truncate(length);
                return packet;
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(error) => panic!("{error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(3), "nothing came");
    }
}
