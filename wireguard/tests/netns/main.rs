//! The real program in namespaces, between a kernel's TUN and a kernel's UDP. The agent is a small server of the test.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use api::agent::{Peer, PeerSet};
use nix::sys::signal::Signal;
use support::{Echo, Lab, MARKER, Pump, UNDERLAY, skipped, wait_for};

/// The promise for a killed worker and for a hand-over.
const PAUSE: Duration = Duration::from_secs(1);

fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

#[test]
fn pods_reach_each_other_and_only_ciphertext_is_on_the_wire() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (mut outside, mut inside) = (lab.capture(&lab.one, UNDERLAY), lab.capture(&lab.one, "selvage0"));
    let target = lab.two.pod().to_string();
    let _echoes = [Echo::start(&lab.one), Echo::start(&lab.two)];
    for size in [28, 29, 100, 1405, 1420] {
        assert!(lab.one.reaches(lab.two.pod(), size), "{size} bytes");
        assert!(lab.two.reaches(lab.one.pod(), size), "{size} bytes");
    }
    assert!(lab.one.reaches(lab.two.pod(), 3000), "the kernel fragments it before the tunnel");

    let page = lab.folder.path().join("www");
    fs::create_dir(&page).unwrap();
    let body = format!("{MARKER} ").repeat(100_000);
    fs::write(page.join("page"), &body).unwrap();
    let page = page.to_str().unwrap();
    let server = lab.two.spawn(&["python3", "-m", "http.server", "-b", &target, "-d", page, "8080"], &[]);
    let url = format!("http://{target}:8080/page");
    let got = wait_for("page", || {
        let output =
            lab.one.try_run(&["curl", "-sS", "-m", "10", "-H", &format!("X-Marker: {MARKER}"), &url]);
        output.status.success().then_some(output.stdout)
    });
    drop(server);
    assert_eq!(got, body.as_bytes());

    inside.stop();
    assert!(inside.shows(MARKER), "the capture would have shown it");
    outside.assert_encrypted_only();
    assert_eq!(outside.count("greater 1515"), 0, "no datagram is larger than the underlay's MTU");
    assert_eq!(outside.count("ip[6:2] & 0x3fff != 0"), 0, "and none is fragmented");
}

#[test]
fn the_worker_has_no_rights_and_the_key_is_nowhere_to_be_read() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    let master = lab.one.start();
    let key = lab.one.public_key();
    let worker = lab.one.worker();
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    for line in [
        "Uid:\t65533\t65533\t65533\t65533",
        "Gid:\t65533",
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let private = fs::read_to_string(lab.one.state("private.key")).unwrap();
    for process in [master, worker] {
        for file in ["cmdline", "environ"] {
            let content = fs::read(format!("/proc/{process}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&content).contains(private.trim()), "{process} {file}");
        }
    }
    assert!(!lab.one.log().contains(private.trim()));
    // Who owns a folder can replace what is in it.
    let folder = fs::metadata(lab.one.state("")).unwrap();
    assert_eq!((folder.uid(), folder.mode() & 0o022), (0, 0));
    assert_eq!(fs::metadata(lab.one.state("private.key")).unwrap().mode() & 0o7777, 0o600);

    // `wg` agrees on what the public key of this file is.
    let wg = std::process::Command::new("sh")
        .args(["-c", "wg pubkey < \"$0\""])
        .arg(lab.one.state("private.key"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(wg.stdout).unwrap().trim(), base64(&key));
}

#[test]
fn a_killed_worker_is_replaced_and_nothing_leaves_in_clear() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    // Without an agent, the peers come from disk.
    lab.one.agent.stop();
    let stored = lab.one.state("worker/peers.pb");
    wait_for("stored peers", || stored.exists().then_some(()));
    let mut capture = lab.capture(&lab.one, UNDERLAY);
    let pump = Pump::start(&lab.one, &lab.two);
    for _ in 0..3 {
        let worker = lab.one.worker();
        lab.one.kill(worker, Signal::SIGKILL);
        lab.one.worker_after(worker);
        std::thread::sleep(Duration::from_millis(400));
    }
    let pumped = pump.stop();
    println!("worker killed three times: {pumped:?}");
    assert!(pumped.longest_gap < PAUSE, "{pumped:?}");
    assert!(pumped.received * 10 > pumped.sent * 7, "{pumped:?}");
    capture.assert_encrypted_only();
}

#[test]
fn a_successor_takes_over_and_the_old_master_leaves() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    let mut master = lab.one.start();
    lab.two.start();
    for (node, other) in [(&lab.one, &lab.two), (&lab.two, &lab.one)] {
        node.public_key();
        node.route(&format!("10.{}.0.0/16", other.number));
        node.agent.send(PeerSet { number: 1, peers: vec![other.as_peer()], no_other_node: false });
    }
    lab.one.wait_session();
    lab.two.wait_session();
    let device = lab.one.run(&["ip", "-o", "link", "show", "selvage0"]);
    let mut capture = lab.capture(&lab.one, UNDERLAY);
    let pump = Pump::start(&lab.one, &lab.two);
    for _ in 0..3 {
        let worker = lab.one.worker();
        let successor = lab.one.start();
        lab.one.wait_end(master);
        lab.one.worker_after(worker);
        master = successor;
        std::thread::sleep(Duration::from_millis(400));
    }
    let pumped = pump.stop();
    println!("three hand-overs: {pumped:?}");
    assert!(pumped.longest_gap < PAUSE, "{pumped:?}");
    assert!(pumped.received * 10 > pumped.sent * 8, "{pumped:?}");
    capture.assert_encrypted_only();
    assert_eq!(lab.one.run(&["ip", "-o", "link", "show", "selvage0"]), device);
}

#[test]
fn device_and_routes_outlive_the_program_and_nothing_leaks_meanwhile() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    let master = lab.one.start();
    lab.two.start();
    for (node, other) in [(&lab.one, &lab.two), (&lab.two, &lab.one)] {
        node.public_key();
        node.route(&format!("10.{}.0.0/16", other.number));
        // A way out in clear, if the tunnel's route ever went away; the blackhole must be in front of it.
        node.run(&["ip", "route", "add", "default", "via", &other.underlay().to_string()]);
        node.agent.send(PeerSet { number: 1, peers: vec![other.as_peer()], no_other_node: false });
    }
    lab.one.wait_session();
    let _echo = Echo::start(&lab.two);
    let reaches = || lab.one.reaches(lab.two.pod(), 500);
    let (key, worker) = (lab.one.public_key(), lab.one.worker());
    let routes = lab.one.run(&["ip", "route"]);
    let mut capture = lab.capture(&lab.one, UNDERLAY);
    assert!(reaches());

    lab.one.kill(master, Signal::SIGKILL);
    wait_for("end of the worker", || (!fs::exists(format!("/proc/{worker}")).unwrap()).then_some(()));
    assert!(!reaches());
    // The kernel takes `linkdown` away again when the device is opened.
    assert_eq!(lab.one.run(&["ip", "route"]).replace(" linkdown", ""), routes);

    lab.one.start();
    wait_for("echo after the restart", || reaches().then_some(()));
    assert_eq!(lab.one.run(&["ip", "route"]), routes);
    assert_eq!(lab.one.public_key(), key);
    assert!((0..20).all(|_| reaches()));
    capture.assert_encrypted_only();
}

#[test]
fn a_deleted_device_is_opened_anew_with_the_same_socket_and_key() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    // A way out in clear, if only the blackhole were not in front of it.
    for (node, other) in [(&lab.one, &lab.two), (&lab.two, &lab.one)] {
        node.run(&["ip", "route", "add", "default", "via", &other.underlay().to_string()]);
    }
    let _echo = Echo::start(&lab.two);
    let (key, sockets) = (lab.one.public_key(), lab.one.udp_sockets());
    let reaches = || lab.one.reaches(lab.two.pod(), 500);
    let mut capture = lab.capture(&lab.one, UNDERLAY);
    assert!(reaches());
    for _ in 0..3 {
        let worker = lab.one.worker();
        lab.one.run(&["ip", "link", "delete", "selvage0"]);
        assert!(!reaches(), "its routes are gone with it, and what is left drops");
        lab.one.worker_after(worker);
        wait_for("device", || {
            lab.one.try_run(&["ip", "link", "show", "selvage0"]).status.success().then_some(())
        });
        assert!(!reaches(), "a device without routes");
        // As the agent does when it finds another device than it knew.
        lab.one.route("10.2.0.0/16");
        wait_for("echo through the new device", || reaches().then_some(()));
    }
    assert_eq!((lab.one.public_key(), lab.one.udp_sockets()), (key, sockets));
    capture.assert_encrypted_only();
}

#[test]
fn a_device_that_cannot_be_opened_again_is_tried_again_and_again() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    let master = lab.one.start();
    lab.one.public_key();
    let worker = lab.one.worker();
    // Something else is faster than the master.
    lab.one.kill(master, Signal::SIGSTOP);
    lab.one.run(&["ip", "link", "delete", "selvage0"]);
    lab.one.run(&["ip", "link", "add", "selvage0", "type", "veth", "peer", "other"]);
    lab.one.kill(master, Signal::SIGCONT);
    let reason = "selvage0 exists and is not a single-queue TUN device";
    wait_for("the reason, twice", || (lab.one.log().matches(reason).count() > 1).then_some(()));
    lab.one.run(&["ip", "link", "delete", "selvage0"]);
    lab.one.worker_after(worker);
    assert!(lab.one.run(&["ip", "-d", "link", "show", "selvage0"]).contains("tun type tun"));
    lab.one.kill(master, Signal::SIGTERM);
    lab.one.wait_end(master);
}

#[test]
fn a_device_and_a_port_that_are_held_for_a_moment_are_waited_for() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    let tun = lab.one.namespace.run(|| host::tun::open_or_create("selvage0", false).unwrap()).unwrap();
    let port = lab.one.socket("0.0.0.0:51820".parse().unwrap());
    let master = lab.one.start();
    std::thread::sleep(Duration::from_millis(300));
    drop(tun);
    std::thread::sleep(Duration::from_millis(300));
    drop(port);
    lab.one.public_key();

    // A second program, with folders of its own, gets neither, and says so.
    let other = lab.folder.path().join("other");
    let other = other.to_str().unwrap();
    let program = env!("CARGO_BIN_EXE_mesh-wireguard");
    for (flags, expected) in [
        (&["--device", "selvage0"][..], "TUN device selvage0 is in use"),
        (&["--device", "selvage1"], "UDP port 51820"),
    ] {
        let output = lab.one.try_run(&[&[program, "--state-dir", other, "--run-dir", other], flags].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{text}");
    }
    lab.one.kill(master, Signal::SIGTERM);
    lab.one.wait_end(master);
}

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
