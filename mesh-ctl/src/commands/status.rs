//! `mesh-ctl status`: programs, snapshots, tunnels and problems of each node.

use std::fmt::Write as _;

use api::agent::{PeerState, Problem, StatusRequest, StatusResponse};
use serde_json::{Map, Value, json};

use crate::cli::Scope;
use crate::error::{CtlError, DONE, REFUSED, UNREACHABLE};
use crate::table::Table;
use crate::target::{self, Target};

/// What a program is when all is well.
const WELL: [&str; 2] = ["running", "connected"];

/// A node, and its agent's answer or why there is none.
type Answer = (Target, Result<StatusResponse, CtlError>);

/// 0 if every program runs, 1 if one does not, 3 if an agent does not answer.
pub(super) async fn run(scope: &Scope) -> Result<u8, CtlError> {
    let mut answers: Vec<Answer> = Vec::new();
    for target in target::choose(scope)? {
        let status = target::answer(&target, target.control().status(StatusRequest {})).await;
        answers.push((target, status));
    }
    super::print(scope, || Value::Array(answers.iter().map(json).collect()), || table(&answers))?;
    let is_well = |status: &StatusResponse| {
        status.programs.iter().all(|program| WELL.contains(&program.state.as_str()))
    };
    Ok(match () {
        () if answers.iter().any(|(_, status)| status.is_err()) => UNREACHABLE,
        () if answers.iter().flat_map(|(_, status)| status).all(is_well) => DONE,
        () => REFUSED,
    })
}

fn json((target, status): &Answer) -> Value {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let program = json!({"name": "mesh-agent", "state": "not reachable", "pid": 0, "version": ""});
            return json!({"node": target.name(), "programs": [program], "error": error.to_string()});
        }
    };
    let programs = status.programs.iter().map(|program| {
        json!({"name": program.name, "state": program.state, "pid": program.pid, "version": program.version})
    });
    let counters: Map<_, _> =
        status.counters.iter().map(|counter| (counter.name.clone(), json!(counter.value))).collect();
    json!({
        "node": status.node,
        "programs": programs.collect::<Vec<_>>(),
        "snapshot": {"compiled": status.snapshot, "enforced": status.snapshot_enforced, "proxy": status.snapshot_proxy},
        "endpoints": status.endpoints,
        "encrypted": status.encrypted,
        "peers": status.peers.iter().map(peer).collect::<Vec<_>>(),
        "problems": status.problems.iter().map(problem).collect::<Vec<_>>(),
        "counters": counters,
    })
}

fn peer(peer: &PeerState) -> Value {
    json!({
        "node": peer.node,
        "last_handshake_ms": peer.last_handshake_ms,
        "received_bytes": peer.received_bytes,
        "sent_bytes": peer.sent_bytes,
    })
}

/// A problem, wherever one is reported.
pub(super) fn problem(problem: &Problem) -> Value {
    json!({"where": problem.r#where, "message": problem.message})
}

fn table(answers: &[Answer]) -> String {
    let mut programs = Table::new(&["NODE", "PROGRAM", "STATE", "PID", "VERSION"]);
    let mut nodes = Table::new(&["NODE", "SNAPSHOT", "ENDPOINTS", "ENCRYPTION", "TUNNELS"]);
    let (mut problems, mut counters) = (String::new(), Table::new(&["NODE", "COUNTER", "VALUE"]));
    for (target, status) in answers {
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                programs.row([target.name(), "mesh-agent".to_owned(), "not reachable".to_owned()]);
                let _ = writeln!(problems, "  {}: {error}", target.name());
                continue;
            }
        };
        for program in &status.programs {
            let pid = if program.pid == 0 { String::new() } else { program.pid.to_string() };
            programs.row([&status.node, &program.name, &program.state, &pid, &program.version]);
        }
        let encryption = if status.encrypted { "on" } else { "off" };
        let tunnels: Vec<_> = status.peers.iter().map(tunnel).collect();
        let endpoints = status.endpoints.to_string();
        nodes.row([&status.node, &snapshot(status), &endpoints, encryption, &tunnels.join(", ")]);
        for problem in &status.problems {
            let _ = writeln!(problems, "  {}: {}: {}", status.node, problem.r#where, problem.message);
        }
        for counter in &status.counters {
            counters.row([&status.node, &counter.name, &counter.value.to_string()]);
        }
    }
    let mut text = format!("{programs}\n{nodes}");
    if answers.iter().flat_map(|(_, status)| status).any(|status| !status.counters.is_empty()) {
        let _ = write!(text, "\n{counters}");
    }
    if !problems.is_empty() {
        let _ = write!(text, "\nproblems:\n{problems}");
    }
    text
}

/// `12`, or where it lags: `12 (kernel 11, proxy 12)`.
fn snapshot(status: &StatusResponse) -> String {
    let number = status.snapshot;
    if status.snapshot_enforced == number && status.snapshot_proxy == number {
        return number.to_string();
    }
    format!("{number} (kernel {}, proxy {})", status.snapshot_enforced, status.snapshot_proxy)
}

fn tunnel(peer: &PeerState) -> String {
    match peer.last_handshake_ms {
        Some(milliseconds) => format!("{} ({} s ago)", peer.node, milliseconds / 1000),
        None => format!("{} (no handshake)", peer.node),
    }
}
