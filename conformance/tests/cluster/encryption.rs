//! Does anything leave a node in clear?

use std::time::Duration;

use conformance::capture::{Capture, Frames};
use conformance::command::kill_now;
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
