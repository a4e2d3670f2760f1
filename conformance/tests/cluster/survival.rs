//! What is lost when a program dies or is replaced?

use std::time::Duration;

use conformance::command::kill_now;
use conformance::load::{self, Plan, Report};
use lab::Lab;
use nix::sys::signal::Signal;

use crate::fixture::{self, NS};

/// HTTP and gRPC without retries, at 200 requests a second, while `fault` happens after 2 s.
fn under_load(lab: &Lab, server: &str, fault: impl FnOnce()) -> [Report; 2] {
    let server = lab.pod_address(NS, server).unwrap();
    let plan = Plan { http: None, grpc: None, rate: 100, seconds: 5 };
    let http = Plan { http: Some(server), ..plan };
    let grpc = Plan { grpc: Some(server), ..plan };
    let http = load::start(|program| lab.pod_command(NS, "frontend", program), http).unwrap();
    let grpc = load::start(|program| lab.pod_command(NS, "grpc-client", program), grpc).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    fault();
    [http.finish().unwrap(), grpc.finish().unwrap()]
}

#[test]
fn nobody_notices_that_the_agent_died() {
    let Some(lab) = fixture::shop() else { return };
    for report in under_load(&lab, "api-server-1", || {
        kill_now(lab.program_pid("node-1", "mesh-agent").unwrap()).unwrap()
    }) {
        assert!(report.ok > 300 && report.failed == 0, "{report:?}");
    }
}

#[test]
fn nobody_notices_that_the_proxy_was_upgraded() {
    let Some(lab) = fixture::shop() else { return };
    let before = lab.program_pid("node-1", "mesh-proxy").unwrap();
    for report in under_load(&lab, "api-server-1", || lab.upgrade("node-1", "mesh-proxy").unwrap()) {
        assert!(report.ok > 300 && report.failed == 0, "{report:?}");
    }
    assert_ne!(lab.program_pid("node-1", "mesh-proxy").unwrap(), before);
}

#[test]
fn a_killed_proxy_worker_is_back_at_once() {
    let Some(lab) = fixture::shop() else { return };
    let worker = lab.worker_pid("node-1", "mesh-proxy").unwrap();
    for report in under_load(&lab, "api-server-1", || kill_now(worker).unwrap()) {
        // Requests in flight are lost with it; queued connections are not.
        assert!(report.ok > 300 && report.failed < 30, "{report:?}");
        assert!(report.longest_gap_ms < 500.0, "{report:?}");
    }
    assert_ne!(lab.worker_pid("node-1", "mesh-proxy").unwrap(), worker);
}

#[test]
fn a_killed_tunnel_worker_is_back_at_once() {
    let Some(lab) = fixture::shop() else { return };
    let worker = lab.worker_pid("node-1", "mesh-wireguard").unwrap();
    for report in under_load(&lab, "api-server-2", || kill_now(worker).unwrap()) {
        assert!(report.ok > 300 && report.longest_gap_ms < 1_500.0, "{report:?}");
    }
}

#[test]
fn workers_that_are_stopped_are_replaced() {
    let Some(lab) = fixture::shop() else { return };
    let pids = ["mesh-proxy", "mesh-wireguard"].map(|name| lab.worker_pid("node-1", name).unwrap());
    for pid in pids {
        send(pid, Signal::SIGSTOP);
    }
    conformance::command::eventually(Duration::from_secs(15), || {
        for (name, stopped) in ["mesh-proxy", "mesh-wireguard"].into_iter().zip(pids) {
            anyhow::ensure!(lab.worker_pid("node-1", name)? != stopped, "{name} has its stopped worker");
        }
        for server in ["api-server-1", "api-server-2"] {
            let status = fixture::curl(&lab, "frontend", &[&fixture::url(&lab, server, "/healthz")]);
            anyhow::ensure!(status == 200, "{server} answers {status}");
        }
        Ok(())
    })
    .unwrap();
}

fn send(pid: u32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

#[test]
fn an_agent_that_comes_back_serves_new_pods() {
    let Some(lab) = fixture::shop() else { return };
    kill_now(lab.program_pid("node-1", "mesh-agent").unwrap()).unwrap();
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: production, labels: {app: frontend}}
spec: {nodeName: node-1, containers: [{name: idle, image: none}]}
";
    lab.apply_yaml(pod).unwrap();
    let url = fixture::url(&lab, "api-server-2", "/healthz");
    conformance::command::eventually(Duration::from_secs(15), || {
        lab.pod_address(NS, "late")?;
        let status = fixture::curl(&lab, "late", &[&url]);
        anyhow::ensure!(status == 200, "the late pod got {status}");
        Ok(())
    })
    .unwrap();
    let addresses: std::collections::BTreeSet<_> =
        ["late", "frontend", "intruder", "api-server-1"].map(|pod| lab.pod_address(NS, pod).unwrap()).into();
    assert_eq!(addresses.len(), 4, "an address was given twice: {addresses:?}");
}
