//! What each command prints and exits with, asked of an agent that answers what the test wants.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod agent;

use std::process::Command;

use api::agent::{
    DirectionVerdict, Endpoint, ExplainResponse, HttpVerdict, Policy, Problem, Program, StatusResponse,
};
use api::flow::{Flow, Verdict};
use api::policy::Origin;
use serde_json::{Value, json};

use agent::{Agent, Answers, flow_at};

fn run(agent: &Agent, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-ctl"))
        .args(arguments)
        .args(["--socket", agent.socket.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text + &String::from_utf8_lossy(&output.stderr))
}

fn run_json(agent: &Agent, arguments: &[&str]) -> (i32, Value) {
    let (code, text) = run(agent, &[arguments, &["-o", "json"]].concat());
    let answer = serde_json::from_str(&text);
    assert!(answer.is_ok(), "{answer:?}: {text}");
    (code, answer.unwrap())
}

fn program(name: &str, state: &str) -> Program {
    Program { name: name.into(), state: state.into(), pid: 7, version: "0.1.0".into() }
}

fn status(proxy: &str) -> StatusResponse {
    StatusResponse {
        node: "node-1".into(),
        programs: vec![program("mesh-agent", "running"), program("mesh-proxy", proxy)],
        snapshot: 3,
        snapshot_enforced: 3,
        snapshot_proxy: 2,
        encrypted: true,
        problems: vec![Problem {
            r#where: "CiliumNetworkPolicy a/b".into(),
            message: "spec.x is unknown".into(),
        }],
        ..StatusResponse::default()
    }
}

#[test]
fn status_names_each_program_and_fails_if_one_does_not_run() {
    let agent = Agent::start(Answers { status: status("connected"), ..Answers::default() });
    let (code, answer) = run_json(&agent, &["status"]);
    assert_eq!(code, 0);
    assert_eq!(answer[0]["node"], "node-1");
    let proxy = json!({"name": "mesh-proxy", "state": "connected", "pid": 7, "version": "0.1.0"});
    assert_eq!(answer[0]["programs"][1], proxy);
    assert_eq!(answer[0]["snapshot"], json!({"compiled": 3, "enforced": 3, "proxy": 2}));
    let (_, text) = run(&agent, &["status"]);
    assert!(text.contains("mesh-proxy   connected   7"), "{text}");
    assert!(text.contains("spec.x is unknown") && text.contains("3 (kernel 3, proxy 2)"), "{text}");

    let broken = Agent::start(Answers { status: status("not connected"), ..Answers::default() });
    assert_eq!(run(&broken, &["status"]).0, 1);
}

#[test]
fn nobody_there_is_not_reachable() {
    let nobody = Agent::nowhere();
    for command in [
        ["status"].as_slice(),
        &["endpoints"],
        &["policy", "list"],
        &["explain", "--from", "a/b", "--to", "a/c", "--port", "1"],
        &["observe"],
    ] {
        let (code, text) = run(&nobody, command);
        assert_eq!(code, 3, "{command:?}: {text}");
        assert!(text.contains("does not answer") || text.contains("not reachable"), "{command:?}: {text}");
    }
}

#[test]
fn endpoints_are_a_list_in_the_documented_form() {
    let endpoint = Endpoint {
        namespace: "production".into(),
        name: "api".into(),
        node: "node-1".into(),
        addresses: vec!["10.1.0.3".into()],
        labels: [("app".to_owned(), "api".to_owned())].into(),
        identity: 257,
        ingress_enforced: true,
        egress_enforced: false,
        local: true,
    };
    let agent = Agent::start(Answers { endpoints: vec![endpoint], ..Answers::default() });
    let expected = json!([{
        "namespace": "production", "name": "api", "node": "node-1", "addresses": ["10.1.0.3"], "labels": {"app": "api"},
        "identity": 257, "policy": {"ingress": true, "egress": false},
    }]);
    assert_eq!(run_json(&agent, &["endpoints"]), (0, expected));
}

#[test]
fn a_policy_with_a_problem_fails_and_an_unknown_one_too() {
    let policy = |problems| Policy {
        kind: "CiliumNetworkPolicy".into(),
        namespace: "a".into(),
        name: "p".into(),
        selects: vec!["a/x".into()],
        problems,
        manifest: r#"{"kind": "CiliumNetworkPolicy", "spec": {"port": "80"}}"#.into(),
    };
    let agent = Agent::start(Answers { policies: vec![policy(Vec::new())], ..Answers::default() });
    let (code, answer) = run_json(&agent, &["policy", "list"]);
    assert_eq!((code, &answer[0]["selects"]), (0, &json!(["a/x"])));
    let (code, page) = run(&agent, &["policy", "get", "a/p"]);
    assert_eq!(code, 0);
    assert!(page.contains("# selects a/x") && page.contains("port: \"80\""), "a number stays a text: {page}");
    assert_eq!(run(&agent, &["policy", "get", "a/q"]).0, 1);

    let problem = Problem { r#where: "spec".into(), message: "no such field".into() };
    let agent = Agent::start(Answers { policies: vec![policy(vec![problem])], ..Answers::default() });
    let (code, table) = run(&agent, &["policy", "list"]);
    assert_eq!(code, 1);
    assert!(table.contains("no such field"), "{table}");
}

fn explained(verdict: &str) -> ExplainResponse {
    let origin = Origin {
        kind: "CiliumNetworkPolicy".into(),
        namespace: "production".into(),
        name: "l7".into(),
        rule: 0,
        http_rule: 2,
        ..Origin::default()
    };
    ExplainResponse {
        verdict: verdict.into(),
        reason: "because".into(),
        ingress: Some(DirectionVerdict {
            verdict: verdict.into(),
            policy: Some(origin),
            ..DirectionVerdict::default()
        }),
        http: Some(HttpVerdict { verdict: verdict.into(), status: 200, reason: "matched".into() }),
        ..ExplainResponse::default()
    }
}

#[test]
fn explain_exits_as_the_verdict_and_passes_the_request_on() {
    for (verdict, expected) in [("allowed", 0), ("redirected", 0), ("denied", 1)] {
        let agent = Agent::start(Answers { explain: explained(verdict), ..Answers::default() });
        let base = ["explain", "--from", "production/web", "--to", "production/api", "--port", "8080"];
        let (code, answer) =
            run_json(&agent, &[base.as_slice(), &["--method", "POST", "--header", "A: b:c"]].concat());
        assert_eq!((code, answer["verdict"].as_str()), (expected, Some(verdict)));
        assert_eq!(answer["ingress"]["policy"]["rule"], "ingress[0].http[2]");
        assert_eq!(answer["egress"], Value::Null);
        assert_eq!(answer["http"]["status"], 200);
        let asked = agent.asked();
        assert!(asked.contains("method: \"POST\"") && asked.contains("value: \"b:c\""), "{asked}");
        assert!(asked.contains("from_pod: \"web\"") && asked.contains("port: 8080"), "{asked}");
    }
    let agent = Agent::start(Answers::default());
    assert_eq!(
        run(&agent, &["explain", "--from", "a/b", "--to", "a/c", "--port", "70000"]).0,
        2,
        "no such port"
    );
    assert_eq!(run(&agent, &["explain", "--from", "a/b"]).0, 2, "options are missing");
}

#[test]
fn observe_writes_one_response_a_line_in_order_of_time() {
    let flow =
        |summary: &str| Flow { summary: summary.into(), verdict: Verdict::Dropped.into(), ..Flow::default() };
    let flows = vec![flow_at(2, flow("second")), flow_at(1, flow("first")), flow_at(3, flow("third"))];
    let agent = Agent::start(Answers { flows, ..Answers::default() });
    let (code, text) =
        run(&agent, &["observe", "-o", "json", "--last", "2", "--from-pod", "a/b", "--verdict", "dropped"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summaries: Vec<_> = lines.iter().map(|line| line["flow"]["Summary"].as_str().unwrap()).collect();
    assert_eq!((code, summaries), (0, vec!["second", "third"]));
    assert_eq!(lines[0]["flow"]["verdict"], "DROPPED");
    let asked = agent.asked();
    assert!(asked.contains("number: 2") && asked.contains("source_pod: [\"a/b\"]"), "{asked}");
    let (_, text) = run(&agent, &["observe", "--follow", "--last", "3"]);
    let order: Vec<_> = ["first", "second", "third"].iter().map(|word| text.find(word).unwrap()).collect();
    assert!(order.is_sorted(), "{text}");
    assert_eq!(run(&agent, &["observe", "--verdict", "perhaps"]).0, 2);
}
