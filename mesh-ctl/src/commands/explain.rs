//! `mesh-ctl explain`: would this be allowed, and by what rule?

use std::fmt::Write as _;

use api::agent::{DirectionVerdict, ExplainRequest, ExplainResponse, Header, HttpRequest};
use api::policy::Origin;
use serde_json::{Value, json};

use crate::cli::{Explain, Scope};
use crate::error::{CtlError, DONE, REFUSED};
use crate::suggest;
use crate::table::Table;
use crate::target::{self, namespaced};

/// 0 if it would be allowed (or, without a request, if requests would decide), else 1.
pub(super) async fn run(scope: &Scope, command: Explain) -> Result<u8, CtlError> {
    let request = request(&command)?;
    let answer = super::first_answer(scope, async |target| {
        target::answer(&target, target.control().explain(request.clone())).await
    });
    let answer = match answer.await {
        Err(CtlError::NotFound(why)) => return Err(not_found(scope, &request, why).await),
        answer => answer?,
    };
    super::print(scope, || json(&answer), || table(&command, &answer))?;
    Ok(if matches!(answer.verdict.as_str(), "allowed" | "redirected") { DONE } else { REFUSED })
}

/// Which of the two pods does not exist, and which may be meant.
async fn not_found(scope: &Scope, request: &ExplainRequest, why: String) -> CtlError {
    let known = super::pod_names(scope).await;
    let ends = [(&request.from_namespace, &request.from_pod), (&request.to_namespace, &request.to_pod)];
    let is_known =
        |(namespace, pod): &(&String, &String)| known.iter().any(|(a, b)| (&a, &b) == (namespace, pod));
    let missing = ends.into_iter().filter(|end| !is_known(end));
    let missing: Vec<_> = missing.map(|(namespace, pod)| suggest::no_pod(namespace, pod, &known)).collect();
    CtlError::NotFound(if missing.is_empty() { why } else { missing.join("\n") })
}

fn request(command: &Explain) -> Result<ExplainRequest, CtlError> {
    let (from_namespace, from_pod) = namespaced(&command.from);
    let (to_namespace, to_pod) = namespaced(&command.to);
    let protocol = command.protocol.to_uppercase();
    if !matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP") {
        return Err(CtlError::Usage(format!("--protocol {}: use TCP, UDP or SCTP", command.protocol)));
    }
    let http = http(command)?;
    if http.is_some() && protocol != "TCP" {
        return Err(CtlError::Usage(format!("HTTP runs over TCP, not over --protocol {protocol}")));
    }
    let port = u32::from(command.port);
    Ok(ExplainRequest { from_namespace, from_pod, to_namespace, to_pod, port, protocol, http })
}

/// The request, if any part of one was given.
fn http(command: &Explain) -> Result<Option<HttpRequest>, CtlError> {
    let mut headers = Vec::new();
    for text in &command.headers {
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| CtlError::Usage(format!("--header {text:?}: use 'NAME: VALUE'")))?;
        headers.push(Header { name: name.trim().to_owned(), value: value.trim().to_owned() });
    }
    let host = command.host.clone().unwrap_or_default();
    if let Some(call) = &command.grpc {
        let call = call.trim_start_matches('/');
        if call.split('/').filter(|part| !part.is_empty()).count() != 2 {
            return Err(CtlError::Usage(format!("--grpc {call:?}: use SERVICE/METHOD")));
        }
        headers.push(Header { name: "content-type".to_owned(), value: "application/grpc".to_owned() });
        return Ok(Some(HttpRequest { method: "POST".to_owned(), path: format!("/{call}"), host, headers }));
    }
    if command.method.is_none() && command.path.is_none() && command.host.is_none() && headers.is_empty() {
        return Ok(None);
    }
    let method = command.method.clone().unwrap_or_else(|| "GET".to_owned());
    let path = command.path.clone().unwrap_or_else(|| "/".to_owned());
    Ok(Some(HttpRequest { method, path, host, headers }))
}

fn json(answer: &ExplainResponse) -> Value {
    let http = answer
        .http
        .as_ref()
        .map(|http| json!({"verdict": http.verdict, "status": http.status, "reason": http.reason}));
    json!({
        "verdict": answer.verdict,
        "reason": answer.reason,
        "egress": answer.egress.as_ref().map(|verdict| direction(verdict, "egress")),
        "ingress": answer.ingress.as_ref().map(|verdict| direction(verdict, "ingress")),
        "http": http,
    })
}

fn direction(verdict: &DirectionVerdict, direction: &str) -> Value {
    let policy = verdict.policy.as_ref().filter(|origin| !origin.kind.is_empty());
    let policy = match policy {
        Some(origin) => json!({
            "kind": origin.kind,
            "namespace": origin.namespace,
            "name": origin.name,
            "rule": rule(origin, direction),
        }),
        None if verdict.verdict == "denied" => {
            json!({"kind": "", "namespace": "", "name": "default deny", "rule": null})
        }
        None => Value::Null,
    };
    let isolated_by = verdict
        .isolated_by
        .iter()
        .map(|origin| json!({"kind": origin.kind, "namespace": origin.namespace, "name": origin.name}));
    json!({
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "node": verdict.node,
        "policy": policy,
        "isolated_by": isolated_by.collect::<Vec<_>>(),
    })
}

/// `ingress[0].http[1]`, `ingressDeny[0]`; `None` if no single rule decided.
fn rule(origin: &Origin, direction: &str) -> Option<String> {
    let direction = if origin.deny { format!("{direction}Deny") } else { direction.to_owned() };
    match (origin.rule, origin.http_rule) {
        (..0, _) => None,
        (rule, ..0) => Some(format!("{direction}[{rule}]")),
        (rule, http) => Some(format!("{direction}[{rule}].http[{http}]")),
    }
}

fn table(command: &Explain, answer: &ExplainResponse) -> String {
    let mut text = format!(
        "{}: {} -> {} {}/{}",
        answer.verdict, command.from, command.to, command.protocol, command.port
    );
    if let Some(call) = &command.grpc {
        let _ = write!(text, ", gRPC {call}");
    } else if let Ok(Some(http)) = http(command) {
        let _ = write!(text, ", {} {}", http.method, http.path);
    }
    let _ = writeln!(text, "\n{}\n", answer.reason);
    let mut table = Table::new(&["DIRECTION", "VERDICT", "NODE", "POLICY", "REASON"]);
    for (name, verdict) in [("egress", &answer.egress), ("ingress", &answer.ingress)] {
        let Some(verdict) = verdict else { continue };
        let policy = verdict.policy.as_ref().filter(|origin| !origin.kind.is_empty()).map(|origin| {
            let rule = rule(origin, name).unwrap_or_default();
            format!("{} {}/{} {rule}", origin.kind, origin.namespace, origin.name).trim_end().to_owned()
        });
        table.row([name, &verdict.verdict, &verdict.node, &policy.unwrap_or_default(), &verdict.reason]);
    }
    if let Some(http) = &answer.http {
        table.row(["http", &http.verdict, "", "", &http.reason]);
    }
    text + &table.to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(arguments: &str) -> Result<ExplainRequest, CtlError> {
        let base = "mesh-ctl explain --from a/b --to c --port 80 ";
        let cli = Cli::try_parse_from((base.to_owned() + arguments).split_whitespace()).unwrap();
        let Command::Explain(command) = cli.command else { panic!("not explain") };
        request(&command)
    }

    #[test]
    fn a_request_is_asked_about_only_if_one_is_given() {
        let plain = asked("").unwrap();
        assert_eq!((plain.to_namespace.as_str(), plain.to_pod.as_str(), plain.http), ("default", "c", None));
        let http = asked("--header X:1").unwrap().http.unwrap();
        assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/"));
        assert_eq!(http.headers, [Header { name: "X".into(), value: "1".into() }]);
        let grpc = asked("--grpc com.example.S/M").unwrap().http.unwrap();
        assert_eq!((grpc.method.as_str(), grpc.path.as_str()), ("POST", "/com.example.S/M"));
        assert_eq!(grpc.headers[0].value, "application/grpc");
    }

    #[test]
    fn nonsense_is_bad_usage() {
        for arguments in ["--grpc S", "--header X", "--protocol ICMP", "--protocol UDP --path /"] {
            assert_eq!(asked(arguments).unwrap_err().exit_code(), crate::error::USAGE, "{arguments}");
        }
    }

    #[test]
    fn json_names_the_deciding_rule_of_each_direction() {
        let origin = |rule, http_rule| Origin {
            kind: "CiliumNetworkPolicy".into(),
            namespace: "n".into(),
            name: "p".into(),
            rule,
            http_rule,
            ..Origin::default()
        };
        let verdict = |verdict: &str, policy| {
            Some(DirectionVerdict {
                verdict: verdict.into(),
                reason: String::new(),
                policy,
                node: "node-1".into(),
                ..DirectionVerdict::default()
            })
        };
        let answer = ExplainResponse {
            verdict: "denied".into(),
            egress: verdict("allowed", Some(origin(2, 0))),
            ingress: verdict("denied", Some(Origin { rule: -1, http_rule: -1, ..Origin::default() })),
            ..ExplainResponse::default()
        };
        let answer = json(&answer);
        assert_eq!(answer["egress"]["policy"]["rule"], "egress[2].http[0]");
        assert_eq!(answer["ingress"]["policy"]["name"], "default deny");
        assert_eq!(answer["http"], Value::Null);
        assert_eq!(rule(&origin(1, -1), "ingress").as_deref(), Some("ingress[1]"));
        assert_eq!(rule(&origin(-1, -1), "ingress"), None);
        let deny = Origin { deny: true, ..origin(1, -1) };
        assert_eq!(rule(&deny, "ingress").as_deref(), Some("ingressDeny[1]"));
    }
}
