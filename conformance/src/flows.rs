//! What `mesh-ctl` says of a flow: `observe` what decided it, `explain` what would.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::command;
use crate::request::Request;
use crate::shop;

/// Limit on one `mesh-ctl` call.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a flow may take from the packet to `observe`.
const FLOW_LAG: Duration = Duration::from_secs(3);

/// Runs `mesh-ctl` on a lab and reads its JSON lines.
///
/// # Errors
/// If it cannot be run, is not reachable or prints no JSON.
pub fn mesh_ctl(lab: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = Command::new(shop::sibling("mesh-ctl")?);
    command.args(arguments).args(["--lab", lab, "-o", "json"]);
    let finished = command::run(&mut command, LIMIT)?;
    ensure!(matches!(finished.status.code(), Some(0 | 1)), "{command:?}: {}", finished.stderr.trim());
    let values = serde_json::Deserializer::from_str(&finished.stdout).into_iter();
    values.collect::<Result<_, _>>().with_context(|| format!("{command:?} printed {:?}", finished.stdout))
}

/// Who decided, in one form for flows and for `explain`: `KIND NAMESPACE/NAME RULE`, or `default deny`.
pub type Decider = String;

/// The decider that the flow event of this very request names. A request is found by its client's port; one that never
/// connected by the newest refusal between the two pods.
///
/// # Errors
/// If no such flow appears.
pub fn decider_of(lab: &str, from: &str, to: &str, client_port: u16, request: &Request) -> Result<Decider> {
    command::eventually(FLOW_LAG, || {
        let lines = mesh_ctl(lab, &["observe", "--from-pod", from, "--to-pod", to, "--last", "50"])?;
        let flows = lines.iter().rev().map(|line| &line["flow"]);
        let of_this_request = flows.filter(|flow| {
            let tcp = &flow["l4"]["TCP"];
            let same_port = client_port == 0 || tcp["source_port"] == client_port;
            tcp["destination_port"] == request.port() && same_port
        });
        // A refusal decides; else the verdict on the request itself does, which an L7 flow tells.
        let of_this_request: Vec<_> = of_this_request.collect();
        let deciding = of_this_request
            .iter()
            .find(|flow| flow["verdict"] == "DROPPED")
            .or_else(|| of_this_request.iter().find(|flow| flow["Type"] == "L7"));
        named_by(deciding.context("no flow event of this request")?)
    })
}

fn named_by(flow: &Value) -> Result<Decider> {
    for list in ["ingress_denied_by", "egress_denied_by", "ingress_allowed_by", "egress_allowed_by"] {
        let Some(policy) = flow[list].as_array().and_then(|policies| policies.first()) else { continue };
        let rule = policy["labels"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let rule = rule.filter_map(|label| label.strip_prefix("selvage.dev/rule=")).next().unwrap_or("");
        return Ok(decider(&policy["kind"], &policy["namespace"], &policy["name"], rule));
    }
    bail!("the flow names no policy: {flow}")
}

fn decider(kind: &Value, namespace: &Value, name: &Value, rule: &str) -> Decider {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    if text(kind).is_empty() {
        return "default deny".to_owned();
    }
    format!("{} {}/{} {rule}", text(kind), text(namespace), text(name)).trim_end().to_owned()
}

/// What `explain` says of the same request: the verdict and who decides it.
///
/// # Errors
/// If `explain` fails.
pub fn explain(lab: &str, from: &str, to: &str, request: &Request) -> Result<(String, Decider)> {
    let port = request.port().to_string();
    let mut arguments = vec!["explain", "--from", from, "--to", to, "--port", &port];
    let header;
    match request {
        Request::Http { method, path, content_type, .. } => {
            arguments.extend(["--method", method, "--path", path]);
            if let Some(kind) = content_type {
                header = format!("Content-Type: {kind}");
                arguments.extend(["--header", &header]);
            }
        }
        Request::Grpc { method } => arguments.extend(["--grpc", method]),
    }
    let answers = mesh_ctl(lab, &arguments)?;
    let answer = answers.first().context("explain printed nothing")?;
    let ingress = &answer["ingress"]["policy"];
    let rule = ingress["rule"].as_str().unwrap_or("");
    let decider = decider(&ingress["kind"], &ingress["namespace"], &ingress["name"], rule);
    Ok((answer["verdict"].as_str().unwrap_or("").to_owned(), decider))
}
