//! `mesh-ctl policy`: policies as the agent understands them.

use api::agent::{PoliciesRequest, Policy};
use serde_json::{Value, json};

use super::status::problem;
use crate::cli::{PolicyCommand, Scope};
use crate::error::{CtlError, DONE, REFUSED};
use crate::table::Table;
use crate::target;

/// 0 if no policy has a problem, else 1.
pub(super) async fn run(scope: &Scope, command: PolicyCommand) -> Result<u8, CtlError> {
    let (namespace, name) = match &command {
        PolicyCommand::List => (String::new(), String::new()),
        PolicyCommand::Get { policy } => match policy.split_once('/') {
            Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
            None => (String::new(), policy.clone()),
        },
    };
    let request = PoliciesRequest { namespace: namespace.clone(), name: name.clone() };
    let mut policies = super::first_answer(scope, async |target| {
        target::answer(&target, target.control().policies(request.clone())).await
    })
    .await?
    .policies;
    if let PolicyCommand::Get { policy } = &command {
        policies.retain(|found| found.namespace == namespace && found.name == name);
        if policies.is_empty() {
            return Err(CtlError::Refused(format!("there is no policy {policy}")));
        }
        let one = |policies: &[Policy]| match policies {
            [only] => json(only),
            several => Value::Array(several.iter().map(json).collect()),
        };
        super::print(
            scope,
            || one(&policies),
            || policies.iter().map(page).collect::<Vec<_>>().join("---\n"),
        )?;
    } else {
        super::print(scope, || Value::Array(policies.iter().map(json).collect()), || table(&policies))?;
    }
    Ok(if policies.iter().all(|policy| policy.problems.is_empty()) { DONE } else { REFUSED })
}

fn manifest(policy: &Policy) -> Value {
    serde_json::from_str(&policy.manifest).unwrap_or(Value::Null)
}

fn json(policy: &Policy) -> Value {
    json!({
        "kind": policy.kind,
        "namespace": policy.namespace,
        "name": policy.name,
        "selects": policy.selects,
        "problems": policy.problems.iter().map(problem).collect::<Vec<_>>(),
        "manifest": manifest(policy),
    })
}

fn table(policies: &[Policy]) -> String {
    let mut table = Table::new(&["NAMESPACE", "KIND", "NAME", "SELECTS", "PROBLEMS"]);
    for policy in policies {
        let problems: Vec<_> = policy.problems.iter().map(|problem| problem.message.as_str()).collect();
        let selects = policy.selects.join(",");
        table.row([&policy.namespace, &policy.kind, &policy.name, &selects, &problems.join("; ")]);
    }
    table.to_string()
}

/// What it does, as comments, and its manifest: one YAML document.
fn page(policy: &Policy) -> String {
    let mut text = String::new();
    for pod in &policy.selects {
        text.push_str(&format!("# selects {pod}\n"));
    }
    for problem in &policy.problems {
        text.push_str(&format!("# problem: {}: {}\n", problem.r#where, problem.message.replace('\n', " ")));
    }
    let manifest = manifest(policy);
    text + &serde_saphyr::to_string(&manifest).unwrap_or_else(|_| format!("{manifest:#}\n"))
}
