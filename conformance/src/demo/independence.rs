//! What is lost when a program dies or is replaced under load.

use std::time::Duration;

use anyhow::Result;
use lab::Lab;

use super::{Judge, NAMESPACE};
use crate::capture::Capture;
use crate::command::kill_now;
use crate::load::{self, Load, Plan, Report};
use crate::shop::HTTP_PORT;

/// Requests a second of each of the two protocols.
const RATE: u32 = 150;
/// Length of a load: 5 s before the fault, 5 s after it.
const SECONDS: u32 = 11;
/// From the start of the load to the fault.
const BEFORE_FAULT: Duration = Duration::from_millis(5_500);
/// L7 may be refused this long after the proxy's worker was killed.
const PROXY_GAP_MS_MAX: f64 = 100.0;
/// Traffic between nodes may pause this long after the tunnel's worker was killed.
const TUNNEL_GAP_MS_MAX: f64 = 1_000.0;

pub(super) fn show(lab: &Lab, judge: &mut Judge) -> Result<()> {
    println!(
        "\nUnder a load of {} requests a second (HTTP and gRPC, new and kept-alive, no retries):\n",
        2 * RATE
    );
    agent_killed(lab, judge)?;
    proxy_upgraded(lab, judge)?;
    proxy_worker_killed(lab, judge)?;
    tunnel_worker_killed(lab, judge)
}

/// HTTP from the frontend and gRPC from the gRPC client, to the server on `place`.
fn start(lab: &Lab, server: &str) -> Result<[Load; 2]> {
    let server = lab.pod_address(NAMESPACE, server)?;
    let plan = Plan { http: None, grpc: None, rate: RATE, seconds: SECONDS };
    Ok([
        load::start(
            |program| lab.pod_command(NAMESPACE, "frontend", program),
            Plan { http: Some(server), ..plan },
        )?,
        load::start(
            |program| lab.pod_command(NAMESPACE, "grpc-client", program),
            Plan { grpc: Some(server), ..plan },
        )?,
    ])
}

/// Both loads as one.
fn finish(loads: [Load; 2]) -> Result<Report> {
    let [http, grpc] = loads;
    let (mut both, grpc) = (http.finish()?, grpc.finish()?);
    both.sent += grpc.sent;
    both.ok += grpc.ok;
    both.failed += grpc.failed;
    both.failures.extend(grpc.failures);
    both.longest_gap_ms = both.longest_gap_ms.max(grpc.longest_gap_ms);
    Ok(both)
}

fn print_failures(report: &Report) {
    for failure in report.failures.iter().take(5) {
        println!("      failed after {:.0} ms: {}", failure.at_ms, failure.kind);
    }
}

fn agent_killed(lab: &Lab, judge: &mut Judge) -> Result<()> {
    let loads = start(lab, "api-server-1")?;
    std::thread::sleep(BEFORE_FAULT);
    kill_now(lab.program_pid("node-1", "mesh-agent")?)?;
    let report = finish(loads)?;
    let ok = judge.expect(report.failed == 0 && report.ok > 0);
    println!("  agent killed (SIGKILL): {} requests, {} failed: {ok}", report.sent, report.failed);
    print_failures(&report);
    Ok(())
}

fn proxy_upgraded(lab: &Lab, judge: &mut Judge) -> Result<()> {
    let before = lab.program_pid("node-1", "mesh-proxy")?;
    let loads = start(lab, "api-server-1")?;
    std::thread::sleep(BEFORE_FAULT);
    lab.upgrade("node-1", "mesh-proxy")?;
    let report = finish(loads)?;
    let replaced = lab.program_pid("node-1", "mesh-proxy")? != before;
    let ok = judge.expect(report.failed == 0 && report.ok > 0 && replaced);
    println!("  proxy upgraded by hand-over: {} requests, {} failed: {ok}", report.sent, report.failed);
    print_failures(&report);
    Ok(())
}

fn proxy_worker_killed(lab: &Lab, judge: &mut Judge) -> Result<()> {
    let loads = start(lab, "api-server-1")?;
    let refused = Denied::start(lab, "api-server-1")?;
    std::thread::sleep(BEFORE_FAULT);
    kill_now(lab.worker_pid("node-1", "mesh-proxy")?)?;
    let report = finish(loads)?;
    let (asked, passed) = refused.finish()?;
    let gap = judge.expect(report.longest_gap_ms < PROXY_GAP_MS_MAX && report.ok > 0);
    println!(
        "  proxy worker killed: {} requests, {} in flight lost, longest time without an answer {:.0} ms (< {PROXY_GAP_MS_MAX} ms): {gap}",
        report.sent, report.failed, report.longest_gap_ms
    );
    let unjudged = judge.expect(passed == 0 && asked > 0);
    println!("      {asked} forbidden requests meanwhile, {passed} reached the server: {unjudged}");
    Ok(())
}

fn tunnel_worker_killed(lab: &Lab, judge: &mut Judge) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let link =
        Capture::start(|program| lab.outside_command(program), "node-2", &folder.path().join("link.pcap"))?;
    let loads = start(lab, "api-server-2")?;
    std::thread::sleep(BEFORE_FAULT);
    kill_now(lab.worker_pid("node-1", "mesh-wireguard")?)?;
    let report = finish(loads)?;
    let frames = link.finish()?;
    let gap = judge.expect(report.longest_gap_ms < TUNNEL_GAP_MS_MAX && report.ok > 0);
    println!(
        "  tunnel worker killed: {} requests, {} failed, pause {:.0} ms (< {TUNNEL_GAP_MS_MAX} ms): {gap}",
        report.sent, report.failed, report.longest_gap_ms
    );
    let clear = judge.expect(frames.in_clear() == 0 && !frames.is_empty());
    println!("      {} frames on the link, {} in clear: {clear}", frames.len(), frames.in_clear());
    Ok(())
}

/// Forbidden requests, one after the other, until it is stopped; the server's own log says how many came through.
struct Denied {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    asked: std::thread::JoinHandle<u32>,
    log: std::path::PathBuf,
}

/// A path that no rule allows and nothing else asks for.
const FORBIDDEN: &str = "/forbidden-while-the-worker-dies";

impl Denied {
    fn start(lab: &Lab, server: &str) -> Result<Self> {
        use std::sync::atomic::{AtomicBool, Ordering};
        let address = lab.pod_address(NAMESPACE, server)?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mut curl = lab.pod_command(NAMESPACE, "frontend", "curl");
        curl.args(["-s", "-m", "1", "-o", "/dev/null", &format!("http://{address}:{HTTP_PORT}{FORBIDDEN}")]);
        let asked = std::thread::spawn(move || {
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) {
                // Its fate is the server's log's to tell.
                let _ = curl.status();
                asked += 1;
            }
            asked
        });
        Ok(Self { stop, asked, log: lab.pod_log(NAMESPACE, server) })
    }

    fn finish(self) -> Result<(u32, usize)> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let asked = self.asked.join().map_err(|_| anyhow::anyhow!("the client ended badly"))?;
        let log = std::fs::read_to_string(&self.log)?;
        Ok((asked, log.lines().filter(|line| line.contains(FORBIDDEN)).count()))
    }
}
