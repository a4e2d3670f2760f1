//! Who may ask what: every case from the same node and from the other, and what the servers saw.

use anyhow::{Context as _, Result};
use lab::Lab;
use serde_json::Value;

use super::{Case, Judge, NAMESPACE, SERVERS, cases};
use crate::flows;
use crate::request::{self, Answer, Outcome};

pub(super) fn show(lab: &Lab, judge: &mut Judge) -> Result<()> {
    println!("Requests by real clients (curl, gRPC), judged by examples/shop/policy.yaml:\n");
    println!(
        "  {:<12} {:<46} {:<6} {:<14} {:<14} {:<64} verdict",
        "client", "request", "node", "expected", "observed", "decided by (flow event = explain)"
    );
    let mut seen = Vec::new();
    for case in cases() {
        for (place, server) in SERVERS {
            let answer = row(lab, judge, &case, place, server)?;
            if matches!(case.expected, Outcome::Status(200)) {
                seen.push((case.client, place, server, answer));
            }
        }
    }
    println!("\nWhat the servers saw as their client:\n");
    for (client, place, server, answer) in seen.iter().take(2) {
        let address = lab.pod_address(NAMESPACE, client)?;
        let is = format!("{address}:{}", answer.client_port);
        let body: Value = serde_json::from_str(&answer.body).context("the server's answer is not JSON")?;
        let said = body["client"].as_str().unwrap_or("nothing");
        let ok = judge.expect(said == is);
        println!("  {server} ({place} node): {said}; {client} is {is}: {ok}");
    }
    Ok(())
}

fn row(lab: &Lab, judge: &mut Judge, case: &Case, place: &str, server: &str) -> Result<Answer> {
    let address = lab.pod_address(NAMESPACE, server)?;
    let in_pod = |program: &str| {
        let mut command = lab.pod_command(NAMESPACE, case.client, program);
        command.env_remove("http_proxy");
        command
    };
    let answer = request::send(in_pod, address, &case.request)?;
    let from = format!("{NAMESPACE}/{}", case.client);
    let to = format!("{NAMESPACE}/{server}");
    let decider = flows::decider_of(lab.name(), &from, &to, answer.client_port, &case.request)
        .unwrap_or_else(|error| format!("no flow event: {error:#}"));
    let (verdict, explained) = flows::explain(lab.name(), &from, &to, &case.request)?;
    let allowed = matches!(case.expected, Outcome::Status(200) | Outcome::GrpcStatus(0));
    let agrees = explained == decider && (verdict == "allowed") == allowed;
    let ok = judge.expect(answer.outcome == case.expected && decider == case.decider && agrees);
    println!(
        "  {:<12} {:<46} {:<6} {:<14} {:<14} {:<64} {ok}",
        case.client,
        case.request.to_string(),
        place,
        case.expected.to_string(),
        answer.outcome.to_string(),
        decider
    );
    if explained != decider {
        println!("      explain says: {verdict}, {explained}");
    }
    Ok(answer)
}
