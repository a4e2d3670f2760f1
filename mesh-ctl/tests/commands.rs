//! What each command prints and exits with, asked of an agent that answers what the test wants.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod agent;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use api::agent::{
    DirectionVerdict, Endpoint, ExplainResponse, HttpVerdict, Policy, Problem, Program, StatusResponse,
};
use api::flow::{Flow, Verdict};
use api::policy::Origin;
use serde_json::{Value, json};

use agent::{Agent, Answers, flow_at};

const MESH_CTL: &str = env!("CARGO_BIN_EXE_mesh-ctl");

fn run(agent: &Agent, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(MESH_CTL)
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
        endpoints: 4,
        ..StatusResponse::default()
    }
}

fn problem(place: &str, message: &str) -> Problem {
    Problem { r#where: place.into(), message: message.into() }
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
    assert!(text.starts_with("all is well: 1 node, 4 pods\n"), "{text}");
    assert!(text.contains("mesh-proxy   connected   7"), "{text}");
    assert!(text.contains("3 (kernel 3, proxy 2)"), "{text}");

    let broken = Agent::start(Answers { status: status("not connected"), ..Answers::default() });
    let (code, text) = run(&broken, &["status"]);
    assert_eq!(code, 1);
    assert!(text.starts_with("1 problem:\n  node-1: mesh-proxy: it is not connected"), "{text}");
}

#[test]
fn status_begins_with_every_problem_and_fails_if_there_is_one() {
    let found = problem("CiliumNetworkPolicy a/b: spec.x", "unknown field");
    let wrong = StatusResponse { problems: vec![found], ..status("connected") };
    let agent = Agent::start(Answers { status: wrong, ..Answers::default() });
    let (code, text) = run(&agent, &["status"]);
    assert_eq!(code, 1);
    assert!(
        text.starts_with("1 problem:\n  node-1: CiliumNetworkPolicy a/b: spec.x: unknown field\n"),
        "{text}"
    );
    let (code, answer) = run_json(&agent, &["status"]);
    let expected = json!([{"where": "CiliumNetworkPolicy a/b: spec.x", "message": "unknown field"}]);
    assert_eq!((code, &answer[0]["problems"]), (1, &expected));
}

/// A lab of fake agents; removed with everything in it.
struct FakeLab {
    name: String,
    folder: PathBuf,
}

impl FakeLab {
    fn new(name: &str) -> Option<Self> {
        let name = format!("{name}-{}", std::process::id());
        let folder = Path::new("/run/selvage-lab").join(&name);
        if std::fs::create_dir_all(folder.join("manifests")).is_err() {
            assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none_or(|value| value != "1"), "not root");
            println!("skipped: not root");
            return None;
        }
        let lab = Self { name, folder };
        for number in 1..=2 {
            let manifest = format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: node-{number}}}, status: {{addresses: [{{type: InternalIP, \
                 address: 172.31.{number}.2}}]}}}}"
            );
            std::fs::write(lab.folder.join(format!("manifests/node-{number}.yaml")), manifest).unwrap();
            std::fs::create_dir_all(lab.socket(number).parent().unwrap()).unwrap();
        }
        Some(lab)
    }

    fn socket(&self, node: u8) -> PathBuf {
        self.folder.join(format!("nodes/node-{node}/run/agent.sock"))
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(MESH_CTL).args(arguments).args(["--lab", &self.name]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for FakeLab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_dir("/run/selvage-lab");
    }
}

#[test]
fn a_node_that_does_not_answer_is_named_and_an_answer_without_it_ends_with_3() {
    let Some(lab) = FakeLab::new("partial") else { return };
    let endpoint = endpoint("production", "api");
    let answers = Answers { endpoints: vec![endpoint], status: status("connected"), ..Answers::default() };
    let _agent = Agent::start_at(lab.socket(1), answers);
    for (command, expected) in [
        (["status"].as_slice(), 3),
        (&["endpoints"], 3),
        (&["observe"], 3),
        // Every agent knows the whole cluster, so the answer of one is complete.
        (&["policy", "list"], 0),
        (&["explain", "--from", "a/b", "--to", "a/c", "--port", "1"], 1),
    ] {
        let (code, out, errors) = lab.run(command);
        assert_eq!(code, expected, "{command:?}: {out}{errors}");
        assert!(format!("{out}{errors}").contains("node-2"), "{command:?}: {out}{errors}");
    }
    let (_, out, _) = lab.run(&["endpoints"]);
    assert!(out.contains("production"), "the others are shown: {out}");
    let (_, out, _) = lab.run(&["status", "-o", "json"]);
    let nodes: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(nodes[1]["node"], "node-2");
    assert_eq!(nodes[1]["problems"][0]["where"], "mesh-agent");

    // A broken file takes no node away.
    std::fs::write(lab.folder.join("manifests/broken.yaml"), "kind: [").unwrap();
    let _second =
        Agent::start_at(lab.socket(2), Answers { status: status("connected"), ..Answers::default() });
    for command in [["status"].as_slice(), &["endpoints"], &["policy", "list"]] {
        let (code, out, errors) = lab.run(command);
        assert_eq!(code, 0, "{command:?}: {out}{errors}");
    }
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

fn endpoint(namespace: &str, name: &str) -> Endpoint {
    Endpoint {
        namespace: namespace.into(),
        name: name.into(),
        node: "node-1".into(),
        addresses: vec!["10.1.0.3".into()],
        labels: [("app".to_owned(), "api".to_owned())].into(),
        identity: 257,
        ingress_enforced: true,
        egress_enforced: false,
        local: true,
    }
}

#[test]
fn a_pod_or_namespace_that_does_not_exist_is_bad_usage_and_the_one_that_is_meant_is_named() {
    let endpoints = vec![endpoint("production", "frontend"), endpoint("production", "api")];
    let agent = Agent::start(Answers { endpoints, is_strict: true, ..Answers::default() });
    let explain = |from: &str, to: &str| run(&agent, &["explain", "--from", from, "--to", to, "--port", "1"]);
    let asked = [
        explain("production/fronted", "production/api"),
        explain("production/api", "production/fronted"),
        run(&agent, &["observe", "--from-pod", "production/fronted"]),
        run(&agent, &["observe", "--to-pod", "fronted", "--namespace", "production"]),
    ];
    for (code, text) in asked {
        assert_eq!(code, 2, "{text}");
        assert!(text.contains("no pod production/fronted; did you mean production/frontend?"), "{text}");
    }
    for (code, text) in
        [explain("prodcution/api", "production/api"), run(&agent, &["observe", "-n", "prodcution"])]
    {
        assert_eq!(code, 2, "{text}");
        assert!(text.contains("there is no namespace \"prodcution\"; did you mean production"), "{text}");
    }
    assert_eq!(explain("production/frontend", "production/api").0, 1, "denied is something else");
    assert_eq!(
        run(&agent, &["observe", "-n", "production", "--verdict", "denied"]).0,
        0,
        "no flow, but the pods exist"
    );
}

#[test]
fn endpoints_are_a_list_in_the_documented_form() {
    let endpoint = endpoint("production", "api");
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
    assert_eq!(run(&agent, &["observe", "--verdict", "perhaps"]).0, 2);
}

/// A command that runs until it is dropped, and its lines as they come.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(socket: &Path) -> Self {
        let mut child = Command::new(MESH_CTL)
            .args(["observe", "--follow", "--last", "3", "-o", "json", "--socket"])
            .arg(socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(Duration::from_secs(10)).unwrap()).unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn following_goes_on_over_a_restart_and_says_what_is_missed() {
    let flow = |summary: &str| Flow { summary: summary.into(), ..Flow::default() };
    let answers = |flows| Answers { flows, ..Answers::default() };
    // Nothing is there yet.
    let nowhere = Agent::nowhere();
    let following = Following::start(&nowhere.socket);
    assert_eq!(following.next()["node_status"]["state_change"], "NODE_UNAVAILABLE");
    let flows = vec![flow_at(2, flow("second")), flow_at(1, flow("first"))];
    let agent = Agent::start_at(nowhere.socket.clone(), answers(flows));
    let summaries = |wanted: usize| {
        let mut found = Vec::new();
        let mut others = Vec::new();
        while found.len() < wanted {
            let line = following.next();
            match line["flow"]["Summary"].as_str() {
                Some(summary) => found.push(summary.to_owned()),
                None => others.push(line),
            }
        }
        (found, others)
    };
    assert_eq!(summaries(2).0, ["first", "second"]);
    drop(agent);
    let _agent =
        Agent::start_at(nowhere.socket.clone(), answers(vec![flow_at(4_000_000_000, flow("third"))]));
    let (found, others) = summaries(1);
    assert_eq!(found, ["third"]);
    let lost: Vec<_> = others.iter().filter(|line| line["lost_events"].is_object()).collect();
    let first =
        |line: &&Value| line["lost_events"]["first"].is_string() && line["lost_events"]["last"].is_string();
    assert!(!lost.is_empty() && lost.iter().all(first), "{others:?}");
    let states: Vec<_> =
        others.iter().filter_map(|line| line["node_status"]["state_change"].as_str()).collect();
    assert!(states.ends_with(&["NODE_UNAVAILABLE", "NODE_CONNECTED"]), "{others:?}");
}
