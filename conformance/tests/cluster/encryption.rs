//! Does anything leave a node in clear?

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use conformance::capture::{Capture, Frames};
use conformance::command::{self, Background, kill_now};
use conformance::load::{self, Plan};
use lab::Lab;

use crate::fixture::{self, NS};

/// What stood on the link of node-2 while `during` ran under a load across the nodes.
fn on_the_link(lab: &Lab, during: impl FnOnce()) -> Frames {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("link.pcap");
    let link = Capture::start(|program| lab.outside_command(program), "node-2", &file).unwrap();
    let server = lab.pod_address(NS, "api-server-2").unwrap();
    let plan = Plan { http: Some(server), grpc: None, rate: 100, seconds: 6 };
    let load = load::start(|program| lab.pod_command(NS, "frontend", program), plan).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    during();
    load.finish().unwrap();
    link.finish().unwrap()
}

#[track_caller]
fn assert_encrypted(frames: &Frames) {
    assert!(frames.by_protocol().contains_key("WireGuard (UDP 51820)"), "{:?}", frames.by_protocol());
    assert_eq!(frames.in_clear(), 0, "{:?}", frames.by_protocol());
}

#[test]
fn nothing_in_clear_while_programs_die() {
    let Some(lab) = fixture::shop() else { return };
    for program in ["mesh-agent", "mesh-wireguard", "mesh-proxy"] {
        let frames = on_the_link(&lab, || kill_now(lab.program_pid("node-1", program).unwrap()).unwrap());
        assert_encrypted(&frames);
    }
}

#[test]
fn nothing_in_clear_while_a_key_changes() {
    let Some(lab) = fixture::shop() else { return };
    let frames = on_the_link(&lab, || {
        std::fs::remove_file(lab.state_dir("node-2").join("wireguard/private.key")).unwrap();
        kill_now(lab.program_pid("node-2", "mesh-wireguard").unwrap()).unwrap();
    });
    assert_encrypted(&frames);
    let url = fixture::url(&lab, "api-server-2", "/healthz");
    conformance::command::eventually(Duration::from_secs(10), || {
        let status = fixture::curl(&lab, "frontend", &[&url]);
        anyhow::ensure!(status == 200, "with the new key: {status}");
        Ok(())
    })
    .unwrap();
}

/// Datagrams from pods to pods and nodes, and from a node to pods, as long as this lives.
fn chatter(lab: &Lab) -> Vec<Background> {
    let program = "
import socket, sys, time
targets = [(address, 9) for address in sys.argv[1:]]
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for target in targets:
        try: sender.sendto(b'secret', target)
        except OSError: pass
    time.sleep(0.001)
";
    let address = |pod| lab.pod_address(NS, pod).unwrap().to_string();
    let node = |node| lab.node_address(node).unwrap().to_string();
    let talkers = [
        (lab.pod_command(NS, "frontend", "python3"), [address("api-server-2"), node("node-2")]),
        (lab.node_command("node-1", "python3"), [address("api-server-2"), address("api-server-2")]),
        (lab.pod_command(NS, "api-server-2", "python3"), [address("frontend"), node("node-1")]),
    ];
    let start = |(mut command, targets): (Command, [String; 2])| {
        Background(command.args(["-c", program]).args(targets).spawn().unwrap())
    };
    talkers.into_iter().map(start).collect()
}

/// What firewall and network services do when they start again.
fn flush(lab: &Lab) {
    for node in ["node-1", "node-2"] {
        let all = "nft flush ruleset; for table in main 2005; do ip route flush table $table proto 83; done; \
                   ip rule del pref 20";
        let mut shell = lab.node_command(node, "sh");
        shell.args(["-c", all]).stderr(Stdio::null());
        command::run(&mut shell, Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn nothing_in_clear_and_no_silence_when_firewall_and_routes_are_flushed_together() {
    let Some(lab) = fixture::shop() else { return };
    let url = fixture::url(&lab, "api-server-2", "/healthz");
    let talkers = chatter(&lab);
    let frames = on_the_link(&lab, || {
        // Close together, and each as the agent may have just repaired the last.
        for pause in (0..10).map(|number| Duration::from_millis(number * 31)) {
            flush(&lab);
            std::thread::sleep(pause);
        }
        flush(&lab);
        let start = Instant::now();
        // A second, and two for a machine that is busy with other tests.
        conformance::command::eventually(Duration::from_secs(3), || {
            let status = fixture::curl(&lab, "frontend", &["-m", "0.5", &url]);
            anyhow::ensure!(status == 200, "after the last flush: {status}");
            Ok(())
        })
        .unwrap();
        println!("traffic was back {:?} after the last flush", start.elapsed());
    });
    drop(talkers);
    assert_encrypted(&frames);
}
