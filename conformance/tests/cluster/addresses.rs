//! What does a pod inherit from the one that had its address before?

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use conformance::capture::Capture;
use conformance::command::{self, Background};
use conformance::shop;
use lab::{Lab, LabOptions};

use crate::fixture::{self, NS};
use crate::plugin::{Sandbox, address_of};

/// An address rests this long.
const REST: Duration = Duration::from_secs(60);
/// The node where the four pods of the example leave one address of five.
const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.1.0.0/29}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
";

/// Asks once on a connection that stays open, prints `ready`, waits for a word, asks again and prints what came of it.
const LONG_LIVED: &str = r"
import socket, sys
s = socket.create_connection((sys.argv[1], 8080), 3)
s.settimeout(5)
def ask(path):
    s.sendall(b'GET %s HTTP/1.1\r\nHost: a\r\n\r\n' % path)
    got = b''
    while b'}' not in got:
        more = s.recv(4096)
        if not more: return 'closed'
        got += more
    return got.split(b' ')[1].decode()
assert ask(b'/healthz') == '200'
print('ready', flush=True)
sys.stdin.readline()
try: print(ask(b'/of-the-old-connection'))
except Exception as e: print(type(e).__name__)
";
/// What only the second request of [`LONG_LIVED`] says.
const MARKER: &str = "of-the-old-connection";

struct LongLived {
    child: Background,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl LongLived {
    fn start(mut python: Command, server: &str) -> Self {
        python.args(["-c", LONG_LIVED, server]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        Self { child: Background(child), lines }
    }

    /// What came of the second request.
    fn ask_again(mut self) -> String {
        self.child.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        self.lines.next().unwrap().unwrap()
    }
}

fn serve(sandbox: &Sandbox<'_>, log: &std::path::Path) -> Background {
    let mut server = sandbox.command(&shop::program().unwrap());
    server.args(["serve", "--http", &shop::HTTP_PORT.to_string()]).stdin(Stdio::null());
    Background(server.stdout(std::fs::File::create(log).unwrap()).spawn().unwrap())
}

/// A lab whose first node has one address to spare.
fn crowded() -> Option<Lab> {
    let manifests = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(shop::manifests()).unwrap() {
        let file = entry.unwrap();
        std::fs::copy(file.path(), manifests.path().join(file.file_name())).unwrap();
    }
    std::fs::write(manifests.path().join("nodes.yaml"), NODES).unwrap();
    fixture::lab_of(LabOptions { manifests: Some(manifests.path().to_owned()), ..LabOptions::default() })
}

/// Established connections of `address` that the server pod's kernel knows.
fn established(lab: &Lab, server: &str, address: &str) -> String {
    let mut ss = lab.pod_command(NS, server, "ss");
    ss.args(["-Htn", "state", "established", "dst", address]);
    command::run(&mut ss, Duration::from_secs(5)).unwrap().stdout
}

/// Asks for an address until there is one.
fn add_when_rested(sandbox: &Sandbox<'_>) -> serde_json::Value {
    let added = command::eventually(REST + Duration::from_secs(15), || {
        let output = sandbox.call("ADD", "1.1.0");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        if !output.status.success() {
            std::thread::sleep(Duration::from_secs(1));
            anyhow::bail!("{answer}");
        }
        Ok(answer)
    });
    added.unwrap()
}

#[test]
fn a_pod_inherits_neither_verdicts_nor_connections_with_its_address() {
    let Some(lab) = crowded() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let old = Sandbox::of(&lab, "old", "frontend");
    let address = address_of(&old.add("1.1.0"));
    let host = address.split('/').next().unwrap();
    let url = format!("http://{host}:{}/healthz", shop::HTTP_PORT);
    let _server = serve(&old, &file("old"));
    command::eventually(Duration::from_secs(5), || {
        anyhow::ensure!(fixture::curl(&lab, "intruder", &[&url]) == 200, "it does not serve yet");
        Ok(())
    })
    .unwrap();
    // Anyone may connect to a frontend; a frontend may ask an API server by way of the proxy.
    let inbound = LongLived::start(lab.pod_command(NS, "intruder", "python3"), host);
    let api = lab.pod_address(NS, "api-server-1").unwrap().to_string();
    let _outbound = LongLived::start(old.command("python3"), &api);
    assert_ne!(established(&lab, "api-server-1", host), "", "the connection is not seen while it lives");

    let released = Instant::now();
    old.delete();
    command::eventually(Duration::from_secs(5), || {
        let left = established(&lab, "api-server-1", host);
        anyhow::ensure!(left.is_empty(), "what the old pod opened outlives it: {left}");
        Ok(())
    })
    .unwrap();
    let new = Sandbox::of(&lab, "new", "api-server-1");
    let refused = new.call("ADD", "1.1.0");
    assert!(!refused.status.success(), "the only free address was given out at once: {refused:?}");
    assert_eq!(address_of(&add_when_rested(&new)), address);
    assert!(released.elapsed() >= REST, "given out again after {:?}", released.elapsed());

    let seen = Capture::start(|tcpdump| new.command(tcpdump), "eth0", &file("new.pcap")).unwrap();
    let _server = serve(&new, &file("new"));
    let end = inbound.ask_again();
    assert!(matches!(end.as_str(), "ConnectionResetError" | "closed"), "the old connection: {end}");
    assert_eq!(fixture::curl(&lab, "intruder", &[&url]), 0, "who might connect to the old pod may not now");
    command::eventually(Duration::from_secs(5), || {
        anyhow::ensure!(fixture::curl(&lab, "frontend", &[&url]) == 200, "it does not serve yet");
        Ok(())
    })
    .unwrap();
    assert_eq!(fixture::curl(&lab, "frontend", &["-X", "DELETE", &url]), 403);
    assert!(
        !seen.finish().unwrap().contain(MARKER.as_bytes()),
        "the new pod was sent an old connection's bytes"
    );
    let log = std::fs::read_to_string(file("new")).unwrap();
    assert!(log.contains("GET /healthz") && !log.contains("DELETE"), "{log}");
}
