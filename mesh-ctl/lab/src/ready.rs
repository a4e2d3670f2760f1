//! Is everything there? Asked of the records, and of each agent.

use std::path::Path;
use std::time::{Duration, Instant};

use api::agent::control_client::ControlClient;
use api::agent::{EndpointsRequest, StatusRequest, StatusResponse};

use crate::error::LabError;
use crate::folder::Folder;
use crate::pod::{Phase, PodRecord, PodSpec};
use crate::program::{Program, ProgramRecord};
use crate::supervisor::NodeRecord;
use crate::{record, store};

/// How often it is asked.
const LOOK: Duration = Duration::from_millis(30);
/// Longest wait for an agent's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Lines of a log that an error shows.
const LOG_LINES: usize = 3;

/// Waits until the whole lab is ready.
pub(crate) async fn wait(lab: &Folder, programs: &[Program], limit: Duration) -> Result<(), LabError> {
    let started = Instant::now();
    loop {
        match check(lab, programs).await? {
            None => return Ok(()),
            Some(missing) if started.elapsed() > limit => {
                let missing = format!("after {limit:?}: {missing}");
                return Err(LabError::NotReady { lab: lab.name().to_owned(), missing });
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Waits until each pod that the manifests name runs, and no other is left. Needs no agent's answer.
pub(crate) async fn wait_for_pods(lab: &Folder, limit: Duration) -> Result<(), LabError> {
    let started = Instant::now();
    loop {
        let wanted = store::pods(&store::read_in_part(lab)?.0);
        match pods(lab, &wanted)? {
            None => return Ok(()),
            Some(missing) if started.elapsed() > limit => {
                let missing = format!("after {limit:?}: {missing}");
                return Err(LabError::NotReady { lab: lab.name().to_owned(), missing });
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// What is missing.
async fn check(lab: &Folder, programs: &[Program]) -> Result<Option<String>, LabError> {
    let objects = store::read(lab)?;
    let nodes = store::nodes(&objects);
    let wanted = store::pods(&objects);
    for node in nodes.keys() {
        match record::read::<NodeRecord>(&lab.node_record(node))? {
            Some(NodeRecord { phase: Phase::Running, .. }) => {}
            Some(NodeRecord { message, .. }) if !message.is_empty() => {
                return Ok(Some(format!("{node}: {message}")));
            }
            _ => return Ok(Some(format!("{node} is being made"))),
        }
        for program in programs {
            if let Some(missing) = running(lab, node, *program)? {
                return Ok(Some(missing));
            }
        }
    }
    if programs.contains(&Program::Agent) {
        for node in nodes.keys() {
            let socket = lab.run(node).join("agent.sock");
            if let Some((blamed, missing)) = ask(&socket, programs, nodes.len(), &wanted).await {
                let tail = tail(&lab.program_log(node, blamed.name()));
                return Ok(Some(format!("{node}: {missing}{tail}")));
            }
        }
    } else {
        return Ok(None);
    }
    pods(lab, &wanted)
}

fn running(lab: &Folder, node: &str, program: Program) -> Result<Option<String>, LabError> {
    let record = record::read::<ProgramRecord>(&lab.program_record(node, program.name()))?;
    Ok(match record {
        Some(ProgramRecord { process: Some(process), .. }) if process.is_alive() => None,
        Some(ProgramRecord { restarts, last_end, .. }) if !last_end.is_empty() => {
            let tail = tail(&lab.program_log(node, program.name()));
            Some(format!("{program} on {node} ended ({last_end}), started {} times{tail}", restarts + 1))
        }
        _ => Some(format!("{program} on {node} is not started yet")),
    })
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let mut lines: Vec<_> = text.lines().rev().filter(|line| !line.is_empty()).take(LOG_LINES).collect();
    lines.reverse();
    lines.iter().map(|line| format!("\n    {line}")).collect()
}

/// What an agent says is missing, and whose log may say why.
async fn ask(
    socket: &Path,
    programs: &[Program],
    nodes: usize,
    pods: &[PodSpec],
) -> Option<(Program, String)> {
    let of_agent = |missing: String| Some((Program::Agent, format!("mesh-agent {missing}")));
    let mut agent = ControlClient::new(api::connect::channel(socket));
    let answer = tokio::time::timeout(ANSWER_LIMIT, agent.status(StatusRequest {})).await;
    let status = match answer {
        Ok(Ok(status)) => status.into_inner(),
        Ok(Err(error)) => return of_agent(format!("does not answer: {}", error.message())),
        Err(_) => return of_agent(format!("does not answer within {ANSWER_LIMIT:?}")),
    };
    if let Some(missing) = status_lacks(&status, programs, nodes) {
        return Some(missing);
    }
    let answer = tokio::time::timeout(ANSWER_LIMIT, agent.endpoints(EndpointsRequest {})).await;
    let Ok(Ok(endpoints)) = answer else { return of_agent("does not list its endpoints".to_owned()) };
    let endpoints = endpoints.into_inner().endpoints;
    let is_known = |pod: &PodSpec| {
        let mut found =
            endpoints.iter().filter(|found| found.namespace == pod.namespace && found.name == pod.name);
        found.any(|found| !found.addresses.is_empty())
    };
    let unknown = pods.iter().find(|pod| !pod.host_network && !is_known(pod))?;
    of_agent(format!("does not know the address of pod {}/{}", unknown.namespace, unknown.name))
}

fn status_lacks(status: &StatusResponse, programs: &[Program], nodes: usize) -> Option<(Program, String)> {
    let number = status.snapshot;
    if number == 0 || status.snapshot_enforced != number {
        let enforced = status.snapshot_enforced;
        let missing = format!("policy snapshot {number} is not enforced yet (in the kernel: {enforced})");
        return Some((Program::Agent, missing));
    }
    if programs.contains(&Program::Proxy) && status.snapshot_proxy != number {
        let missing = format!("mesh-proxy has policy snapshot {}, not {number}", status.snapshot_proxy);
        return Some((Program::Proxy, missing));
    }
    let shaken = status.peers.iter().filter(|peer| peer.last_handshake_ms.is_some()).count();
    if programs.contains(&Program::Wireguard) && shaken + 1 < nodes {
        return Some((Program::Wireguard, format!("tunnels to {shaken} of {} other nodes", nodes - 1)));
    }
    None
}

/// What the records of pods lack.
fn pods(lab: &Folder, wanted: &[PodSpec]) -> Result<Option<String>, LabError> {
    let records: Vec<PodRecord> = record::read_all(&lab.pods())?;
    for pod in wanted {
        let name = format!("{}/{}", pod.namespace, pod.name);
        match records.iter().find(|record| record.uid == pod.uid) {
            Some(PodRecord { phase: Phase::Running, .. }) => {}
            Some(PodRecord { message, .. }) if !message.is_empty() => {
                return Ok(Some(format!("pod {name}: {message}")));
            }
            _ => return Ok(Some(format!("pod {name} is not running yet"))),
        }
    }
    let left = records.iter().find(|record| !wanted.iter().any(|pod| pod.uid == record.uid));
    Ok(left.map(|record| format!("pod {}/{} is being removed", record.namespace, record.name)))
}
