//! What the agent says of peers, and a peer that is another implementation.

use std::fs;
use std::time::Duration;

use api::agent::{Peer, PeerSet};
use nix::sys::signal::Signal;

use crate::base64;
use crate::support::{Echo, Lab, UNDERLAY, skipped, wait_for};

#[test]
fn what_the_agent_sends_is_reported_back() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let first = lab.one.agent.reports().remove(0);
    assert_eq!((first.public_key.len(), first.listen_port, first.peers.len()), (32, 51820, 0));
    assert_eq!(first.pid, lab.one.worker());

    let bad = Peer {
        node: "node-3".to_owned(),
        public_key: vec![3; 32],
        endpoint: "here".to_owned(),
        allowed_ips: vec![],
    };
    lab.one.agent.send(PeerSet { number: 2, peers: vec![lab.two.as_peer(), bad], no_other_node: false });
    let report =
        wait_for("report of set 2", || lab.one.agent.reports().pop().filter(|report| report.number == 2));
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].r#where, "peer node-3: endpoint");
    assert!(report.peers[0].last_handshake_ms.is_some(), "the session went on: {report:?}");

    // A pod of nobody, and a source that is not ours to send from.
    lab.one.run(&["ip", "route", "add", "10.9.0.0/16", "dev", "selvage0", "src", "10.1.0.1"]);
    assert!(!lab.one.reaches("10.9.0.1".parse().unwrap(), 100));
    lab.one.run(&["ip", "address", "add", "10.77.0.1/32", "dev", "lo"]);
    let _echo = Echo::start(&lab.two);
    assert!(!lab.one.reaches_from("10.77.0.1".parse().unwrap(), lab.two.pod(), 100));
    wait_for("counters", || {
        let (ours, theirs) = (lab.one.agent.reports().pop()?, lab.two.agent.reports().pop()?);
        (ours.no_peer_packets > 0 && theirs.refused_source_packets > 0).then_some(())
    });
}

#[test]
fn a_worker_that_is_killed_while_peers_change_comes_back_with_the_last_ones() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let other = |number: u64| Peer {
        node: format!("node-{}", 100 + number),
        public_key: vec![u8::try_from(number).unwrap(); 32],
        endpoint: "172.31.77.200:51820".to_owned(),
        allowed_ips: vec![format!("10.{}.0.0/16", 100 + number)],
    };
    for number in 2..=9 {
        let worker = lab.one.worker();
        // From right after the kill before to some time into the change.
        std::thread::sleep(Duration::from_millis(number * 3));
        let peers = vec![lab.two.as_peer(), other(number)];
        lab.one.agent.send(PeerSet { number, peers, no_other_node: false });
        std::thread::sleep(Duration::from_millis(number % 4));
        lab.one.kill(worker, Signal::SIGKILL);
        lab.one.worker_after(worker);
        let stored = fs::read(lab.one.state("worker/peers.pb")).unwrap();
        let stored = <PeerSet as prost::Message>::decode(stored.as_slice()).unwrap();
        assert!(stored.peers.iter().any(|peer| peer.node == "node-2"), "a whole set, old or new");
    }
    let worker = lab.one.worker();
    wait_for("the last set", || {
        lab.one.agent.reports().pop().filter(|report| report.pid == worker && report.number == 9)
    });
    let _echo = Echo::start(&lab.two);
    wait_for("echo", || lab.one.reaches(lab.two.pod(), 500).then_some(()));
}

#[test]
fn the_last_peer_goes_when_the_agent_says_that_there_is_none() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let peers = |number: u64| {
        wait_for("report", || {
            lab.one
                .agent
                .reports()
                .pop()
                .filter(|report| report.number == number)
                .map(|report| report.peers.len())
        })
    };
    let send = |number: u64, no_other_node: bool| {
        lab.one.agent.send(PeerSet { number, peers: Vec::new(), no_other_node });
    };
    send(2, false);
    wait_for("refusal", || lab.one.agent.reports().pop().filter(|report| !report.problems.is_empty()));
    assert_eq!(peers(1), 1, "silence");
    send(3, true);
    assert_eq!(peers(3), 0);
    let stored = lab.one.state("worker/peers.pb");
    let is_stored =
        || <PeerSet as prost::Message>::decode(fs::read(&stored).unwrap().as_slice()).unwrap().no_other_node;
    wait_for("stored set", || is_stored().then_some(()));
    let worker = lab.one.worker();
    lab.one.kill(worker, Signal::SIGKILL);
    let worker = lab.one.worker_after(worker);
    let report = wait_for("report of the next worker", || {
        lab.one.agent.reports().pop().filter(|report| report.pid == worker && report.number == 3)
    });
    assert_eq!(report.peers.len(), 0);
}

/// What a killed wireguard-go leaves.
struct RemovedAtLast(std::path::PathBuf);

impl Drop for RemovedAtLast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn wireguard_go_is_a_peer_like_any_other() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    lab.one.start();
    let ours = lab.one.public_key();
    lab.one.route("10.2.0.0/16");

    // Its control socket is in the file system, which all namespaces share.
    let device = format!("wgo{}", std::process::id() % 1_000_000);
    let mut go = lab
        .two
        .spawn(&["wireguard-go", "-f", &device], &[("WG_PROCESS_FOREGROUND", "1"), ("LOG_LEVEL", "error")]);
    let _socket = RemovedAtLast(format!("/var/run/wireguard/{device}.sock").into());
    wait_for("wireguard-go", || {
        if let Some(status) = go.0.try_wait().unwrap() {
            panic!(
                "wireguard-go: {status}: {}",
                std::io::read_to_string(go.0.stderr.take().unwrap()).unwrap()
            );
        }
        lab.two.try_run(&["wg", "show", &device]).status.success().then_some(())
    });
    let key = lab.folder.path().join("go.key");
    let private = lab.two.run(&["wg", "genkey"]);
    host::file::write(&key, private.as_bytes(), 0o600).unwrap();
    let endpoint = format!("{}:51820", lab.one.underlay());
    lab.two.run(&[
        "wg",
        "set",
        &device,
        "listen-port",
        "51820",
        "private-key",
        key.to_str().unwrap(),
        "peer",
        &base64(&ours),
        "endpoint",
        &endpoint,
        "allowed-ips",
        "10.1.0.0/16,172.31.77.1/32",
    ]);
    lab.two.run(&["ip", "address", "add", "10.2.0.1/32", "dev", "lo"]);
    lab.two.run(&["ip", "link", "set", &device, "mtu", "1420", "up"]);
    lab.two.run(&["ip", "route", "add", "10.1.0.0/16", "dev", &device, "src", "10.2.0.1"]);
    let theirs = lab.two.run(&["wg", "show", &device, "public-key"]);
    let decode =
        |text: &str| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    let peer = Peer {
        node: "node-2".to_owned(),
        public_key: decode(theirs.trim()),
        endpoint: format!("{}:51820", lab.two.underlay()),
        allowed_ips: vec!["10.2.0.0/16".to_owned()],
    };
    lab.one.agent.send(PeerSet { number: 1, peers: vec![peer], no_other_node: false });
    lab.one.wait_session();

    let mut capture = lab.capture(&lab.one, UNDERLAY);
    let _echoes = [Echo::start(&lab.one), Echo::start(&lab.two)];
    for size in [28, 29, 100, 1405, 1420] {
        assert!(lab.one.reaches(lab.two.pod(), size), "{size} bytes");
        assert!(lab.two.reaches(lab.one.pod(), size), "{size} bytes");
    }
    let worker = lab.one.worker();
    lab.one.kill(worker, Signal::SIGKILL);
    wait_for("echo after the worker was killed", || lab.one.reaches(lab.two.pod(), 500).then_some(()));
    capture.assert_encrypted_only();
}
