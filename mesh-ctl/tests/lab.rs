//! A lab is made and taken away without a trace, whatever happens in between. Mostly with no programs on its nodes, or with
//! stand-ins that only sleep; what the real ones do in a lab is tested in `conformance/`.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod trace;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use host::netns::NetNs;
use lab::{Lab, LabOptions, OUTSIDE};

use trace::Trace;

const MESH_CTL: &str = env!("CARGO_BIN_EXE_mesh-ctl");
/// Longest connection attempt between two namespaces.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Whether this machine can run a lab; if not, says why.
fn can_run() -> bool {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root {
        assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none_or(|value| value != "1"), "not root");
        println!("skipped: not root");
    }
    is_root
}

fn name(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// A lab of two nodes on which nothing runs.
fn bare(test: &str) -> Lab {
    Lab::up(LabOptions { name: name(test), programs: Vec::new(), ..LabOptions::default() }).unwrap()
}

/// Whether a connection attempt from a namespace is answered, if only by a refusal.
fn reaches(lab: &Lab, from: &str, to: IpAddr) -> bool {
    let namespace = NetNs::open(&lab.folder().node_namespace(from)).unwrap();
    let attempt =
        namespace.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, 9), CONNECT_LIMIT)).unwrap();
    attempt.err().is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(15), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Programs that start and do nothing (as shells, whose arguments show the lab), and the real `mesh-ctl`.
fn stand_ins() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for program in ["mesh-agent", "mesh-wireguard", "mesh-proxy", "mesh-cni"] {
        let path = folder.path().join(program);
        std::fs::write(&path, "#!/bin/sh\nwhile :; do sleep 600; done\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    symlink(MESH_CTL, folder.path().join("mesh-ctl")).unwrap();
    folder
}

fn up_with(programs: &Path, name: &str, timeout: &str) -> Command {
    let mut command = Command::new(MESH_CTL);
    command.args(["lab", "up", "--name", name, "--timeout", timeout]).env("SELVAGE_BIN_DIR", programs);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn nodes_reach_each_other_through_outside_and_nothing_is_left() {
    if !can_run() {
        return;
    }
    let before = Trace::of(&name("net"));
    let lab = bare("net");
    let [first, second] = ["node-1", "node-2"].map(|node| lab.node_address(node).unwrap());
    assert_eq!(second.to_string(), "172.31.2.2");
    for (from, to) in [("node-1", second), ("node-2", first), (OUTSIDE, second)] {
        assert!(reaches(&lab, from, to), "{from} does not reach {to}");
    }
    assert!(reaches(&lab, "node-1", lab::topology::INTERNET.into()), "node-1 does not reach the world");
    assert!(!reaches(&lab, OUTSIDE, [10, 1, 0, 7].into()), "the world has a way to a pod");
    assert_ne!(Trace::of(&name("net")), before, "the trace does not see a lab");
    lab.down().unwrap();
    before.assert_same();
}

#[test]
fn commands_run_in_their_namespace_with_their_exit_code() {
    if !can_run() {
        return;
    }
    let lab = bare("exec");
    let exec = |arguments: &[&str]| {
        Command::new(MESH_CTL)
            .args(["lab", arguments[0], "--name", lab.name()])
            .args(&arguments[1..])
            .output()
            .unwrap()
    };
    let address = exec(&["node-exec", "node-2", "--", "ip", "-4", "-o", "addr", "show", "uplink"]);
    assert!(String::from_utf8_lossy(&address.stdout).contains("172.31.2.2/24"), "{address:?}");
    assert_eq!(exec(&["outside", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(exec(&["exec", "a/b", "--", "true"]).status.code(), Some(2), "there is no such pod");
    assert_eq!(exec(&["node-exec", "node-9", "--", "true"]).status.code(), Some(3), "there is no such node");
    assert_eq!(exec(&["node-exec", "node-1"]).status.code(), Some(2), "a command is missing");
    assert_eq!(exec(&["up"]).status.code(), Some(1), "the lab is there already");
    let list = Command::new(MESH_CTL).args(["lab", "ls", "-o", "json"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let own = list.as_array().unwrap().iter().find(|entry| entry["name"] == lab.name()).unwrap();
    assert_eq!(own["nodes"], serde_json::json!(["node-1", "node-2"]));
}

#[test]
fn a_node_can_join_and_leave() {
    if !can_run() {
        return;
    }
    let lab = bare("join");
    let node = "{apiVersion: v1, kind: Node, metadata: {name: node-7}}";
    lab.apply_yaml(node).unwrap();
    let address = lab.node_address("node-7").unwrap();
    assert_eq!(address.to_string(), "172.31.7.2");
    let namespace = lab.folder().node_namespace("node-7");
    eventually("node-7 is made", || NetNs::open(&namespace).is_ok() && reaches(&lab, "node-1", address));
    lab.delete_yaml(node).unwrap();
    eventually("node-7 is gone", || !namespace.exists() && !lab.folder().node("node-7").exists());
}

#[test]
fn a_killed_supervisor_leaves_nothing_that_down_does_not_find() {
    if !can_run() {
        return;
    }
    let before = Trace::of(&name("killed"));
    let lab = bare("killed");
    let mut sleeper = lab.node_command("node-1", "sleep").arg("600").spawn().unwrap();
    let record = std::fs::read_to_string(lab.folder().supervisor()).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let killed = Command::new("kill").args(["-KILL", &record["pid"].to_string()]).status().unwrap();
    assert!(killed.success());
    eventually("the supervisor is gone", || !lab.is_supervised());
    let down = Command::new(MESH_CTL).args(["lab", "down", "--name", lab.name()]).output().unwrap();
    assert!(down.status.success(), "{down:?}");
    assert!(!sleeper.wait().unwrap().success(), "what ran on a node goes with the lab");
    drop(lab);
    before.assert_same();
}

#[test]
fn an_up_that_fails_says_what_is_missing_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let (before, programs) = (Trace::of(&name("fails")), stand_ins());
    let up = up_with(programs.path(), &name("fails"), "2").output().unwrap();
    assert_eq!(up.status.code(), Some(1));
    let words = String::from_utf8_lossy(&up.stderr);
    assert!(words.contains("node-1") && words.contains("mesh-agent does not answer"), "{words}");
    before.assert_same();
}

#[test]
fn a_lab_whose_starter_is_killed_removes_itself() {
    if !can_run() {
        return;
    }
    let (before, programs) = (Trace::of(&name("orphan")), stand_ins());
    let mut up = up_with(programs.path(), &name("orphan"), "60").spawn().unwrap();
    let folder = lab::folder::Folder::of(&name("orphan")).unwrap();
    eventually("the programs are started", || folder.program_record("node-2", "mesh-proxy").exists());
    up.kill().unwrap();
    up.wait().unwrap();
    before.assert_same();
}

/// The folder of the example's manifests.
const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop");

/// Whether all programs are built beside `mesh-ctl`; if not, says which is not.
fn programs_are_built() -> bool {
    let folder = Path::new(MESH_CTL).parent().unwrap();
    let missing = |program: &&str| !folder.join(program).exists();
    let missing =
        ["mesh-agent", "mesh-wireguard", "mesh-proxy", "mesh-cni", "shop"].into_iter().find(missing);
    if let Some(program) = missing {
        assert!(
            std::env::var_os("MESH_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "{program} is not built"
        );
        println!("skipped: {program} is not built");
    }
    missing.is_none()
}

/// Runs `mesh-ctl lab VERB --name NAME ...`; fails unless that succeeds.
fn mesh_ctl_lab(verb: &str, name: &str, arguments: &[&str]) -> String {
    let output = Command::new(MESH_CTL).args(["lab", verb, "--name", name]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{verb} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Removes a lab that was started by `mesh-ctl`, should the test fail before it does.
struct Removed<'a>(&'a str);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Ok(lab) = Lab::open(self.0) {
            // The failure that matters is the test's.
            let _ = lab.down();
        }
    }
}

/// A boolean where a text must stand: the pods of the namespace would be closed.
const TYPO: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: typo, namespace: production}
spec: {podSelector: {matchLabels: {app: frontend, canary: true}}}
";

/// What a typo in a policy does: nothing is applied, unless it is allowed, and then all say it.
fn a_typo_is_refused_or_named(name: &str, lab: &Lab, folder: &Path) {
    let run = |arguments: &[&str]| {
        let output = Command::new(MESH_CTL).args(arguments).args(["--lab", name]).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    assert_eq!(run(&["status"]).0, 0, "{}", run(&["status"]).1);
    let file = folder.join("typo.yaml");
    std::fs::write(&file, TYPO).unwrap();
    let file = file.to_str().unwrap();
    let (code, text) = run(&["lab", "apply", "-f", file]);
    assert_eq!(code, 1, "{text}");
    for word in ["typo.yaml", "NetworkPolicy production/typo", "canary", "`true`", "\"true\"", "isolate"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let stored = lab.folder().manifests().join("networkpolicy-production_typo.yaml");
    assert!(!stored.exists(), "it is applied");

    let (code, text) = run(&["lab", "apply", "-f", file, "--allow-problems"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("in force on 2 nodes after"), "{text}");
    // In force is what was said: no later look is needed.
    let (code, text) = run(&["status"]);
    assert!(code == 1 && text.contains("NetworkPolicy production/typo"), "{text}");
    let pods = lab.pods().unwrap();
    let frontend = pods.iter().find(|pod| pod.name.starts_with("frontend")).unwrap();
    let server = pods.iter().find(|pod| pod.name.starts_with("api")).unwrap();
    let [from, to] = [frontend, server].map(|pod| format!("{}/{}", pod.namespace, pod.name));
    let (code, text) = run(&["explain", "--from", &from, "--to", &to, "--port", "8080"]);
    assert!(code == 1 && text.contains("NetworkPolicy production/typo cannot be read"), "{text}");
    let (code, text) = run(&["lab", "delete", "-f", file]);
    assert!(code == 0 && text.contains("in force on 2 nodes after"), "{text}");
    assert_eq!(run(&["status"]).0, 0);

    // A file that another hand broke is a problem, and all else goes on.
    let broken = lab.folder().manifests().join("broken.yaml");
    std::fs::write(&broken, "kind: [").unwrap();
    eventually("the broken file is a problem", || run(&["status"]).1.contains("broken.yaml"));
    for arguments in [["policy", "list"], ["lab", "ls"]] {
        assert_eq!(run(&arguments).0, 0, "{}", run(&arguments).1);
    }
    assert_eq!(lab.nodes().unwrap(), ["node-1", "node-2"]);
    std::fs::remove_file(&broken).unwrap();
}

const LATE_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: production, labels: {app: frontend}}
spec:
  nodeName: node-1
  containers: [{name: late, image: any, command: [sh, -c, 'echo began; exec sleep 600']}]
";

#[test]
fn the_real_programs_and_pods_come_and_go_without_a_trace() {
    if !can_run() || !programs_are_built() {
        return;
    }
    let (name, folder) = (name("whole"), tempfile::tempdir().unwrap());
    let before = Trace::of(&name);
    let _removed = Removed(&name);
    mesh_ctl_lab("up", &name, &["--manifests", SHOP]);
    let lab = Lab::open(&name).unwrap();
    let mut inside = trace::processes_in("/run/netns", &name);
    // Two nodes with an agent, and two masters and workers each; four servers.
    assert!(inside.len() >= 2 * 5 + 4, "{inside:?}");

    let late = folder.path().join("late.yaml");
    std::fs::write(&late, LATE_POD).unwrap();
    let late = late.to_str().unwrap();
    mesh_ctl_lab("apply", &name, &["-f", late]);
    let links = mesh_ctl_lab("node-exec", &name, &["node-1", "--", "ip", "-o", "link"]);
    let veth = lab.pod_host_interface("production", "late").unwrap();
    assert!(links.contains(&veth), "{links}");
    let address = lab.pod_address("production", "late").unwrap().to_string();
    assert!(mesh_ctl_lab("exec", &name, &["production/late", "--", "ip", "-o", "addr"]).contains(&address));
    let log = lab.pod_log("production", "late");
    eventually("the pod's process writes", || {
        std::fs::read_to_string(&log).unwrap_or_default().contains("began")
    });

    a_typo_is_refused_or_named(&name, &lab, folder.path());

    mesh_ctl_lab("delete", &name, &["-f", late]);
    let links = mesh_ctl_lab("node-exec", &name, &["node-1", "--", "ip", "-o", "link"]);
    assert!(!links.contains(&veth), "the link is left: {links}");
    eventually("the agent has released the pod", || {
        let endpoints =
            Command::new(MESH_CTL).args(["endpoints", "--lab", &name, "-o", "json"]).output().unwrap();
        assert!(endpoints.status.success(), "{endpoints:?}");
        !String::from_utf8_lossy(&endpoints.stdout).contains("\"late\"")
    });
    assert!(!lab.folder().pod_namespace("production", "late").exists());

    inside.extend(trace::processes_in("/run/netns", &name));
    mesh_ctl_lab("down", &name, &[]);
    inside.retain(|pid| trace::still_runs(pid));
    assert!(inside.is_empty(), "processes left: {inside:?}");
    before.assert_same();
}

#[test]
fn a_program_that_ends_is_started_again_and_one_that_is_upgraded_hands_over() {
    if !can_run() || !programs_are_built() {
        return;
    }
    let lab = Lab::up(LabOptions { name: name("keep"), ..LabOptions::default() }).unwrap();
    let agent = lab.program_pid("node-1", "mesh-agent").unwrap();
    assert!(Command::new("kill").args(["-KILL", &agent.to_string()]).status().unwrap().success());
    eventually("the agent is back", || lab.program_pid("node-1", "mesh-agent").is_ok_and(|pid| pid != agent));
    lab.wait_until_ready(Duration::from_secs(20)).unwrap();
    for program in ["mesh-proxy", "mesh-wireguard"] {
        let (master, worker) =
            (lab.program_pid("node-2", program).unwrap(), lab.worker_pid("node-2", program).unwrap());
        lab.upgrade("node-2", program).unwrap();
        assert_ne!(lab.program_pid("node-2", program).unwrap(), master);
        assert_ne!(lab.worker_pid("node-2", program).unwrap(), worker);
    }
    assert!(lab.upgrade("node-2", "mesh-agent").is_err(), "the agent has nothing to hand over");
    assert!(lab.upgrade("node-2", "no-such-program").is_err());
    lab.wait_until_ready(Duration::from_secs(20)).unwrap();
    lab.down().unwrap();
}

#[test]
fn bad_usage_and_wrong_manifests_change_nothing() {
    if !can_run() {
        return;
    }
    let before = Trace::of(&name("usage"));
    let up = |arguments: &[&str]| {
        let mut command = Command::new(MESH_CTL);
        command.args(["lab", "up"]).args(arguments).output().unwrap().status.code()
    };
    assert_eq!(up(&["--name", "No Lab"]), Some(2));
    assert_eq!(up(&["--name", &name("usage"), "--nodes", "0"]), Some(2));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(up(&["--name", &name("usage"), "--manifests", path]), Some(2), "an empty folder");
    std::fs::write(
        folder.path().join("x.yaml"),
        "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: x}",
    )
    .unwrap();
    assert_eq!(up(&["--name", &name("usage"), "--manifests", path]), Some(2));
    before.assert_same();
}
