//! `mesh-ctl status`: programs, snapshots, tunnels and problems of each node.

use std::fmt::Write as _;

use api::agent::{PeerState, Problem, StatusRequest, StatusResponse};
use serde_json::{Map, Value, json};

use crate::cli::Scope;
use crate::error::{CtlError, DONE, REFUSED, UNREACHABLE};
use crate::table::Table;
use crate::target;

/// What a program is when all is well.
const WELL: [&str; 2] = ["running", "connected"];
/// State of an agent that does not answer.
const NOT_REACHABLE: &str = "not reachable";

type Answer = super::Answer<StatusResponse>;

/// 0 if all is well, 1 if there is any problem, 3 if an agent does not answer.
pub(super) async fn run(scope: &Scope, counters: bool) -> Result<u8, CtlError> {
    let answers = super::ask_all(scope, async |target| {
        target::answer(&target, target.control().status(StatusRequest {})).await
    });
    let answers = answers.await?;
    let problems = problems(&answers);
    super::print(
        scope,
        || Value::Array(answers.iter().map(json).collect()),
        || verdict(&answers, &problems) + &table(&answers, counters),
    )?;
    Ok(match () {
        () if answers.iter().any(|(_, status)| status.is_err()) => UNREACHABLE,
        () if problems.is_empty() => DONE,
        () => REFUSED,
    })
}

/// What is wrong, and on which nodes: the nodes of a cluster read the same manifests.
type Problems = Vec<((String, String), Vec<String>)>;

fn problems(answers: &[Answer]) -> Problems {
    let mut problems = Problems::new();
    let mut add = |node: &str, place: &str, message: &str| {
        let problem = (place.to_owned(), message.to_owned());
        match problems.iter_mut().find(|(known, _)| *known == problem) {
            Some((_, nodes)) => nodes.push(node.to_owned()),
            None => problems.push((problem, vec![node.to_owned()])),
        }
    };
    for (target, status) in answers {
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                add(&target.name(), "mesh-agent", &error.to_string());
                continue;
            }
        };
        for problem in &status.problems {
            add(&status.node, &problem.r#where, &problem.message);
        }
        let named = |name: &str| status.problems.iter().any(|problem| problem.r#where.starts_with(name));
        for program in status.programs.iter().filter(|program| !WELL.contains(&program.state.as_str())) {
            if !named(&program.name) {
                add(&status.node, &program.name, &format!("it is {}: see its log", program.state));
            }
        }
    }
    problems
}

/// The first lines: all that one needs who looks whether there is anything to do.
fn verdict(answers: &[Answer], problems: &Problems) -> String {
    if problems.is_empty() {
        let pods: u32 = answers.iter().flat_map(|(_, status)| status).map(|status| status.endpoints).sum();
        let plural = if answers.len() == 1 { "" } else { "s" };
        return format!("all is well: {} node{plural}, {pods} pods\n\n", answers.len());
    }
    let plural = if problems.len() == 1 { "" } else { "s" };
    let mut text = format!("{} problem{plural}:\n", problems.len());
    for ((place, message), nodes) in problems {
        let _ = writeln!(text, "  {}: {place}: {message}", nodes.join(", "));
    }
    text + "\n"
}

fn json((target, status): &Answer) -> Value {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let program = json!({"name": "mesh-agent", "state": NOT_REACHABLE, "pid": 0, "version": ""});
            let problem = json!({"where": "mesh-agent", "message": error.to_string()});
            let (node, error) = (target.name(), error.to_string());
            return json!({"node": node, "programs": [program], "problems": [problem], "error": error});
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
        "silent_ms": peer.silent_ms,
    })
}

/// A problem, wherever one is reported.
pub(super) fn problem(problem: &Problem) -> Value {
    json!({"where": problem.r#where, "message": problem.message})
}

fn table(answers: &[Answer], with_counters: bool) -> String {
    let mut programs = Table::new(&["NODE", "PROGRAM", "STATE", "PID", "VERSION"]);
    let mut nodes = Table::new(&["NODE", "SNAPSHOT", "ENDPOINTS", "ENCRYPTION", "TUNNELS"]);
    let mut counters = Table::new(&["NODE", "COUNTER", "VALUE"]);
    for (target, status) in answers {
        let Ok(status) = status else {
            programs.row([target.name(), "mesh-agent".to_owned(), NOT_REACHABLE.to_owned()]);
            continue;
        };
        for program in &status.programs {
            let pid = if program.pid == 0 { String::new() } else { program.pid.to_string() };
            programs.row([&status.node, &program.name, &program.state, &pid, &program.version]);
        }
        let encryption = if status.encrypted { "on" } else { "off" };
        let tunnels: Vec<_> = status.peers.iter().map(tunnel).collect();
        let endpoints = status.endpoints.to_string();
        nodes.row([&status.node, &snapshot(status), &endpoints, encryption, &tunnels.join(", ")]);
        for counter in &status.counters {
            counters.row([&status.node, &counter.name, &counter.value.to_string()]);
        }
    }
    let mut text = format!("{programs}\n{nodes}");
    if with_counters {
        let _ = write!(text, "\n{counters}");
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
