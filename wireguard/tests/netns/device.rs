//! What becomes of the master's descriptors: a device that is deleted or held, a socket that takes nothing for a while.

use std::time::{Duration, Instant};

use api::agent::{Peer, PeerSet, TunnelReport};
use boringtun::x25519::{PublicKey, StaticSecret};
use nix::sys::signal::Signal;
use wireguard::control::Control;
use wireguard::device::Device;
use wireguard::tunnel::Tunnel;

use crate::support::{Echo, Lab, UNDERLAY, skipped, wait_for};

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
fn a_send_buffer_that_is_full_for_a_while_is_waited_for() {
    if skipped() {
        return;
    }
    let lab = Lab::bare();
    lab.two.start();
    let secret = StaticSecret::from([7; 32]);
    let one = Peer {
        node: "node-1".to_owned(),
        public_key: PublicKey::from(&secret).as_bytes().to_vec(),
        endpoint: format!("{}:51820", lab.one.underlay()),
        allowed_ips: vec!["10.1.0.0/16".to_owned()],
    };
    // Node 1 is this process, with the smallest buffer that there is. What is sent to a node that does not answer the question for
    // its hardware address stays in it until the kernel stops asking, after three seconds.
    let tun = lab.one.namespace.run(|| host::tun::open_or_create("selvage0", false).unwrap()).unwrap();
    let udp = lab.one.socket("0.0.0.0:51820".parse().unwrap());
    socket2::SockRef::from(&udp).set_send_buffer_size(1).unwrap();
    lab.one.run(&["ip", "link", "set", "selvage0", "up"]);
    lab.one.route("10.2.0.0/16");
    let absent = (100..108u8).map(|number| Peer {
        node: format!("node-{number}"),
        public_key: vec![number; 32],
        endpoint: format!("172.31.77.{number}:51820"),
        allowed_ips: vec![format!("10.{number}.0.0/16")],
    });
    let with_absent = absent.chain([lab.two.as_peer()]).collect();
    lab.two.route("10.1.0.0/16");
    lab.two.agent.send(PeerSet { number: 1, peers: vec![one], no_other_node: false });

    let (sets, pending) = tokio::sync::mpsc::channel(2);
    for (number, peers) in [(1, with_absent), (2, vec![lab.two.as_peer()])] {
        sets.try_send(PeerSet { number, peers, no_other_node: false }).unwrap();
    }
    let (report, reports) = tokio::sync::watch::channel(TunnelReport::default());
    let in_force = tokio::sync::watch::Sender::new(PeerSet::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let node = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let device = Device::new(tun, udp.into()).unwrap();
            let control = Control { sets: pending, report, in_force };
            let stop = async { drop(stopped.await) };
            device.run(Tunnel::new(secret, Instant::now()), control, stop).await.unwrap();
        });
    });
    let _echo = Echo::start(&lab.two);
    wait_for("echo", || lab.one.reaches(lab.two.pod(), 500).then_some(()));
    let counters =
        wait_for("report", || Some(reports.borrow().counters.clone()).filter(|found| !found.is_empty()));
    let count =
        |name: &str| counters.iter().find(|counter| counter.name == name).map_or(0, |counter| counter.value);
    assert!(count("tunnel_held") > 0, "{counters:?}");
    assert_eq!(count("tunnel_held_overflow"), 0, "{counters:?}");
    stop.send(()).unwrap();
    node.join().unwrap();
}
