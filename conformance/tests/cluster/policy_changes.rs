//! What happens to live connections when policy changes?

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use conformance::command::{self, Background};
use lab::Lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{self, NS};

/// One kept-alive connection, a request every 50 ms; prints `ready` after the first, then how it ended.
const KEPT_ALIVE: &str = r"
import socket, sys, time
host, seconds, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
s = socket.create_connection((host, 8080), 3)
until, asked = time.time() + seconds, 0
try:
    while time.time() < until:
        s.sendall(b'GET %s HTTP/1.1\r\nHost: a\r\n\r\n' % path.encode())
        got = b''
        while b'\r\n\r\n' not in got or (b' 200 ' in got and b'}' not in got):
            more = s.recv(4096)
            if not more: print('closed'); sys.exit()
            got += more
        asked += 1
        if asked == 1: print('ready', flush=True)
        status = got.split(b' ')[1].decode()
        if status != '200': print('status', status); sys.exit()
        time.sleep(0.05)
    print('lived')
except Exception as e: print(type(e).__name__)
";

struct Client {
    child: Background,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Client {
    fn start(lab: &Lab, server: &str, seconds: u32, path: &str) -> Self {
        let address = lab.pod_address(NS, server).unwrap().to_string();
        let mut python = lab.pod_command(NS, "frontend", "python3");
        python.args(["-c", KEPT_ALIVE, &address, &seconds.to_string(), path]);
        let mut child = python.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        Self { child: Background(child), lines }
    }

    /// How the connection ended.
    fn end(mut self) -> String {
        let line = self.lines.next().unwrap().unwrap();
        command::wait(&mut self.child.0, Duration::from_secs(5)).unwrap();
        line
    }
}

fn policy() -> String {
    std::fs::read_to_string(conformance::shop::manifests().join("policy.yaml")).unwrap()
}

/// Waits until a forbidden request gets this status: 403 with the policy in force, 200 without.
fn until_forbidden_gets(lab: &Lab, server: &str, status: u16) {
    let url = fixture::url(lab, server, "/forbidden");
    command::eventually(Duration::from_secs(5), || {
        let got = fixture::curl(lab, "frontend", &[&url]);
        anyhow::ensure!(got == status, "got {got}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_rule_added_resets_the_direct_connection_it_concerns() {
    let Some(lab) = fixture::shop() else { return };
    for server in ["api-server-1", "api-server-2"] {
        lab.delete_yaml(&policy()).unwrap();
        until_forbidden_gets(&lab, server, 200);
        let client = Client::start(&lab, server, 10, "/healthz");
        let changed = Instant::now();
        lab.apply_yaml(&policy()).unwrap();
        let end = client.end();
        assert!(matches!(end.as_str(), "ConnectionResetError" | "closed"), "{server}: {end}");
        assert!(changed.elapsed() < Duration::from_secs(3), "{server}: hung for {:?}", changed.elapsed());
        until_forbidden_gets(&lab, server, 403);
    }
}

#[test]
fn a_rule_removed_leaves_the_proxied_connection_alive() {
    let Some(lab) = fixture::shop() else { return };
    for server in ["api-server-1", "api-server-2"] {
        until_forbidden_gets(&lab, server, 403);
        let client = Client::start(&lab, server, 3, "/healthz");
        lab.delete_yaml(&policy()).unwrap();
        assert_eq!(client.end(), "lived", "{server}");
        until_forbidden_gets(&lab, server, 200);
        lab.apply_yaml(&policy()).unwrap();
    }
}

#[test]
fn a_forbidden_response_ends_while_it_streams() {
    let Some(lab) = fixture::shop() else { return };
    for server in ["api-server-1", "api-server-2"] {
        until_forbidden_gets(&lab, server, 403);
        let mut curl = lab.pod_command(NS, "frontend", "curl");
        curl.args([
            "-sS",
            "-N",
            "-m",
            "20",
            &fixture::url(&lab, server, "/api/v1/products/stream?seconds=15"),
        ]);
        let child = curl.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut child = Background(child);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("tick"));
        let changed = Instant::now();
        lab.apply_yaml(&policy().replace("/api/v1/products.*", "/nothing")).unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let status = command::wait(&mut child.0, Duration::from_secs(10)).unwrap();
        assert!(!status.success(), "{server}: the cut-off response looked complete");
        assert!(
            changed.elapsed() < Duration::from_secs(3),
            "{server}: it streamed on for {:?}",
            changed.elapsed()
        );
        lab.apply_yaml(&policy()).unwrap();
    }
}

/// Connections on each of which one request was answered; one more on each of them once it is told to; then waits.
const MANY_KEPT_ALIVE: &str = r"
import socket, sys
connections = [socket.create_connection((sys.argv[1], 8080), 3) for _ in range(20)]
for s in connections:
    s.sendall(b'GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n')
    got = b''
    while b'}' not in got: got += s.recv(4096)
print('ready', flush=True)
sys.stdin.readline()
for s in connections: s.sendall(b'GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n')
print('sent', flush=True)
sys.stdin.readline()
";

#[test]
fn a_hung_proxy_does_not_serve_what_was_forbidden_meanwhile() {
    let Some(lab) = fixture::shop() else { return };
    for (node, server) in [("node-1", "api-server-1"), ("node-2", "api-server-2")] {
        until_forbidden_gets(&lab, server, 403);
        let mut python = lab.pod_command(NS, "frontend", "python3");
        python.args(["-c", MANY_KEPT_ALIVE, &lab.pod_address(NS, server).unwrap().to_string()]);
        let mut child = Background(python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut tell = child.0.stdin.take().unwrap();
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");

        let worker = Hung::new(lab.worker_pid(node, "mesh-proxy").unwrap());
        lab.apply_yaml(&policy().replace("/healthz", "/nothing")).unwrap();
        until_nothing_connects(&lab, server);
        tell.write_all(b"\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "sent");
        // Long enough for each request to be sent again, and again.
        std::thread::sleep(Duration::from_secs(1));
        drop(worker);
        until_forbidden_gets(&lab, server, 403);
        let log = fixture::access_log(&lab, server);
        assert_eq!(log.lines().filter(|line| line.contains("/healthz")).count(), 20, "{server}: {log}");
        lab.apply_yaml(&policy()).unwrap();
    }
}

/// A process that runs again when this is dropped.
struct Hung(Pid);

impl Hung {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.try_into().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // If it is gone, the test has failed already.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Waits until not even a connection is made: the kernel denies.
fn until_nothing_connects(lab: &Lab, server: &str) {
    let address = lab.pod_address(NS, server).unwrap().to_string();
    let connect = "import socket, sys; socket.create_connection((sys.argv[1], 8080), 0.3)";
    command::eventually(Duration::from_secs(10), || {
        let said = fixture::python(lab, "frontend", connect, &[&address]);
        anyhow::ensure!(!said.status.success(), "connected");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_connection_that_stays_allowed_lives_through_changes() {
    let Some(lab) = fixture::shop() else { return };
    let client = Client::start(&lab, "api-server-1", 5, "/healthz");
    for round in 0..10 {
        lab.apply_yaml(&policy().replace("/api/v1/products.*", &format!("/round/{round}"))).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(client.end(), "lived");
}
