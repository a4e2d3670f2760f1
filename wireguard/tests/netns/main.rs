//! The real program in namespaces, between a kernel's TUN and a kernel's UDP. The agent is a small server of the test.

#![expect(clippy::unwrap_used, reason = "tests")]

mod device;
mod peers;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use api::agent::PeerSet;
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
