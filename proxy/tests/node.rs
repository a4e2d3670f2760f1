//! The real programs: master and worker in a node's network namespace, between a client's and a server's.
//!
//! nftables stands in for the datapath: it steers what the client sends to port 8080 to the listener of the one slot.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::agent::proxy_server::{Proxy, ProxyServer};
use api::agent::{RequestRecord, RequestsSummary, SnapshotAck};
use common::frames::{
    self, ACK, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, frame, read_frame,
};
use common::{Client, GET, Origin, PATIENCE, SERVER, field, shop_policy, shop_policy_with, snapshot_with};
use host::netns::NetNs;
use policy::Identities;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

/// An agent that has one snapshot to send, and remembers what it is told.
#[derive(Clone)]
struct Agent {
    snapshot: watch::Sender<api::policy::Snapshot>,
    acks: Arc<Mutex<Vec<SnapshotAck>>>,
    records: Arc<Mutex<Vec<RequestRecord>>>,
}

#[tonic::async_trait]
impl Proxy for Agent {
    type SnapshotsStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<api::policy::Snapshot, Status>> + Send>>;

    async fn snapshots(
        &self,
        request: Request<Streaming<SnapshotAck>>,
    ) -> Result<Response<Self::SnapshotsStream>, Status> {
        let (mut incoming, acks) = (request.into_inner(), self.acks.clone());
        tokio::spawn(async move {
            while let Ok(Some(ack)) = incoming.message().await {
                acks.lock().unwrap().push(ack);
            }
        });
        Ok(Response::new(Box::pin(WatchStream::new(self.snapshot.subscribe()).map(Ok))))
    }

    async fn requests(
        &self,
        request: Request<Streaming<RequestRecord>>,
    ) -> Result<Response<RequestsSummary>, Status> {
        let mut incoming = request.into_inner();
        while let Some(record) = incoming.message().await? {
            self.records.lock().unwrap().push(record);
        }
        Ok(Response::new(RequestsSummary::default()))
    }
}

/// A node with one client pod and one server pod.
struct Node {
    name: String,
    namespaces: Vec<NetNs>,
    folder: tempfile::TempDir,
    pins: PathBuf,
    masters: Mutex<Vec<Child>>,
    agent: Agent,
    runtime: Option<tokio::runtime::Runtime>,
    identities: Identities,
}

impl Node {
    fn new(name: &str) -> Option<Self> {
        let node = Self::without_pins(name)?;
        node.pin();
        node.start_proxy();
        node.steer_to(node.listener_port());
        Some(node)
    }

    /// With everything but maps and a proxy.
    fn without_pins(name: &str) -> Option<Self> {
        let missing = missing();
        if let Some(reason) = missing {
            println!("skipped: {reason}");
            assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "{reason}");
            return None;
        }
        let name = format!("svpx-{}-{name}", std::process::id());
        let pins = Path::new("/sys/fs/bpf").join(&name);
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let agent = Agent {
            snapshot: watch::Sender::new(api::policy::Snapshot::default()),
            acks: Arc::default(),
            records: Arc::default(),
        };
        let mut node = Self {
            name,
            namespaces: Vec::new(),
            folder,
            pins,
            masters: Mutex::default(),
            agent,
            runtime: None,
            identities: Identities::default(),
        };
        node.send_snapshot(1, shop_policy());
        node.wire();
        node.start_agent();
        Some(node)
    }

    /// What the agent does first.
    fn pin(&self) {
        drop(datapath::Datapath::open(&self.pins).unwrap());
    }

    fn namespace_name(&self, which: &str) -> String {
        format!("{}-{which}", self.name)
    }

    fn wire(&mut self) {
        for which in ["node", "client", "server"] {
            self.namespaces
                .push(NetNs::create(&Path::new("/run/netns").join(self.namespace_name(which))).unwrap());
        }
        for (which, address) in [("client", CLIENT), ("server", SERVER)] {
            let pod = self.namespace_name(which);
            self.node(&format!("ip link add {which} type veth peer name eth0 netns {pod}"));
            self.node(&format!("ip link set {which} up"));
            self.node(&format!("ip addr add 169.254.1.1/32 dev {which}"));
            self.node(&format!("ip route add {address}/32 dev {which} scope link"));
            let namespace = &self.namespaces[if which == "client" { 1 } else { 2 }];
            for command in [
                "ip link set lo up".to_owned(),
                "ip link set eth0 up".to_owned(),
                format!("ip addr add {address}/32 dev eth0"),
                "ip route add 169.254.1.1 dev eth0 scope link".to_owned(),
                "ip route add default via 169.254.1.1".to_owned(),
            ] {
                run(namespace, &command);
            }
        }
        for command in [
            "ip link set lo up",
            "ip rule add fwmark 0x200/0xf00 lookup 2004 pref 9",
            "ip route add local 0.0.0.0/0 dev lo table 2004",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.tcp_early_demux=0",
        ] {
            self.node(command);
        }
    }

    fn node(&self, command: &str) {
        run(&self.namespaces[0], command);
    }

    fn steer_to(&self, port: u16) {
        self.node("nft add table ip steer");
        self.node("nft add chain ip steer to_proxy { type filter hook prerouting priority mangle ; }");
        self.node(
            "nft add rule ip steer to_proxy meta l4proto tcp socket transparent 1 meta mark set 0x200 accept",
        );
        self.node(&format!(
            "nft add rule ip steer to_proxy iifname client tcp dport 8080 tproxy to 127.0.0.1:{port} meta mark set 0x200"
        ));
    }

    fn start_agent(&mut self) {
        let socket = self.folder.path().join("proxy.sock");
        let _ = std::fs::remove_file(&socket);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = ProxyServer::new(self.agent.clone());
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    fn stop_agent(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    fn start_proxy(&self) {
        let acks = self.agent.acks.lock().unwrap().len();
        self.spawn_proxy();
        // The first says what it starts with, the second that it took what we sent.
        wait(|| self.agent.acks.lock().unwrap().len() >= acks + 2);
    }

    fn spawn_proxy(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"));
        let folder = self.folder.path();
        command
            .args(["--threads", "1", "--drain-seconds", "20"])
            .arg("--run-dir")
            .arg(folder)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--pin-dir")
            .arg(&self.pins)
            .stdout(Stdio::null())
            .stderr(std::fs::File::options().create(true).append(true).open(self.log()).unwrap());
        let master = self.namespaces[0].run(|| command.spawn().unwrap()).unwrap();
        self.masters.lock().unwrap().push(master);
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn last_master_has_ended(&self) -> Option<std::process::ExitStatus> {
        self.masters.lock().unwrap().last_mut().unwrap().try_wait().unwrap()
    }

    fn send_snapshot(&mut self, number: u64, policy: serde_json::Value) {
        let snapshot = snapshot_with(CLIENT, number, Some(policy), &mut self.identities);
        self.agent.snapshot.send_replace((&snapshot).into());
    }

    fn last_ack(&self) -> SnapshotAck {
        self.agent.acks.lock().unwrap().last().cloned().unwrap()
    }

    fn worker(&self) -> u32 {
        let file = self.folder.path().join("proxy-master.sock.worker");
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    /// Of the one slot, in the node's namespace.
    fn listener_port(&self) -> u16 {
        let table =
            self.namespaces[0].run(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap()).unwrap();
        let ports: Vec<u16> = table
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let port = fields.get(1)?.strip_prefix("0100007F:")?;
                (fields.get(3) == Some(&"0A")).then(|| u16::from_str_radix(port, 16).unwrap())
            })
            .collect();
        assert_eq!(ports.len(), 1, "{table}");
        ports[0]
    }

    /// A server on port 8080 that answers with its client's address.
    fn server(&self) -> Origin {
        let listener = self.namespaces[2].run(|| TcpListener::bind((SERVER, 8080)).unwrap()).unwrap();
        Origin::on(listener, |mut peer| {
            let client = peer.stream.peer_addr().unwrap().to_string();
            while let Some(head) = peer.head() {
                if head.contains("endless") {
                    peer.send("HTTP/1.1 200 OK\r\n\r\nbegun");
                    let error = peer.until_end().expect_err("the server must see a reset");
                    peer.note(error.to_string().as_bytes());
                    return;
                }
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{client}", client.len()));
                if head.contains("products/last") {
                    return std::thread::sleep(Duration::from_millis(30));
                }
            }
        })
    }

    fn client(&self) -> Client {
        self.client_from(0).unwrap()
    }

    /// With this port of its own.
    fn client_from(&self, port: u16) -> std::io::Result<Client> {
        self.namespaces[1]
            .run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::from((CLIENT, port)).into())?;
                socket.connect_timeout(&SocketAddr::from((SERVER, 8080)).into(), PATIENCE)?;
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Client(stream))
            })
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for master in self.masters.get_mut().unwrap() {
            let _ = master.kill();
            let _ = master.wait();
        }
        eprint!("{}", std::fs::read_to_string(self.log()).unwrap_or_default());
        for which in ["node", "client", "server"] {
            let _ = NetNs::delete(&Path::new("/run/netns").join(self.namespace_name(which)));
        }
        let _ = datapath::remove_pins(&self.pins);
    }
}

fn missing() -> Option<String> {
    if !Path::new("/sys/fs/bpf").metadata().is_ok_and(|folder| folder.is_dir()) {
        return Some("no bpf file system at /sys/fs/bpf".to_owned());
    }
    let can = NetNs::create_unnamed();
    can.err().map(|error| format!("cannot make network namespaces: {error}"))
}

fn run(namespace: &NetNs, command: &str) {
    let mut words = command.split_whitespace();
    let mut process = Command::new(words.next().unwrap());
    process.args(words);
    let output = namespace.run(|| process.output().unwrap()).unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn wait(mut until: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !until() {
        assert!(Instant::now() < deadline, "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn catches_sigterm(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (15 - 1)) != 0
}

fn kill(pid: u32) {
    signal("-9", pid);
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn the_server_sees_the_clients_own_address_and_port() {
    let Some(node) = Node::new("addr") else { return };
    let ack = node.last_ack();
    assert_eq!((ack.number, ack.slots, ack.error.as_str(), ack.pid), (1, 1, "", node.worker()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.worker())).unwrap();
    assert!(status.contains("Uid:\t65532\t65532\t65532\t65532"), "{status}");
    // CAP_NET_BIND_SERVICE and CAP_NET_RAW, nothing else.
    assert!(status.contains("CapEff:\t0000000000002400"), "{status}");

    let server = node.server();
    let mut client = node.client();
    let own = client.0.local_addr().unwrap().to_string();
    assert_eq!(client.send(GET).response().1, own);
    client.send("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").expect("HTTP/1.1 403 Forbidden\r\n");
    assert_eq!(server.connections(), 1);
    wait(|| node.agent.records.lock().unwrap().len() == 2);
    let records = node.agent.records.lock().unwrap().clone();
    assert_eq!(
        (records[0].status, records[0].reason.as_str(), records[0].source.clone()),
        (200, "forwarded", vec![10, 1, 0, 1])
    );
    let origin = records[1].ingress_origin.clone().unwrap();
    assert_eq!(
        (records[1].status, records[1].ingress_allowed, origin.name.as_str()),
        (403, false, "api-l7-policy")
    );
    assert!(records[1].egress_origin.is_some(), "the client is a pod of this node too");

    // A port below 1024 needs a capability; one that a process of the node listens on cannot be had.
    let mut client = node.client_from(80).unwrap();
    assert_eq!(client.send(GET).response().1, "10.1.0.1:80");
    let taken = node.namespaces[0].run(|| TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
    let mut client = node.client_from(taken.local_addr().unwrap().port()).unwrap();
    let seen: SocketAddr = client.send(GET).response().1.parse().unwrap();
    assert!(seen.ip() == CLIENT && (20_000..30_000).contains(&seen.port()), "{seen}");
}

/// `h2` warns of each PING ACK that answers nothing.
#[test]
fn nothing_that_a_client_repeats_fills_the_log() {
    let Some(node) = Node::new("log") else { return };
    let mut client = node.client();
    client.send(PREFACE).send(frame(SETTINGS, 0, 0, &[]));
    client.send(frame(PING, ACK, 0, b"12345678").repeat(20_000));
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/closed")));
    while read_frame(&mut client.0).expect("a refusal").kind != HEADERS {}
    let log = std::fs::read_to_string(node.log()).unwrap();
    assert!(log.lines().count() < 100 && !log.contains(" h2"), "{} lines", log.lines().count());
}

#[test]
fn a_master_that_is_before_the_agent_waits_for_its_pins() {
    let Some(node) = Node::without_pins("pins") else { return };
    let _server = node.server();
    node.spawn_proxy();
    let pid = node.masters.lock().unwrap()[0].id().to_string();
    wait(|| catches_sigterm(&pid));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(node.last_master_has_ended(), None);
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    wait(|| node.last_master_has_ended().is_some_and(|status| status.success()));

    node.spawn_proxy();
    std::thread::sleep(Duration::from_millis(500));
    assert!(node.agent.acks.lock().unwrap().is_empty(), "there is a worker without a listener");
    node.pin();
    wait(|| node.agent.acks.lock().unwrap().len() >= 2);
    assert_eq!(node.last_master_has_ended(), None);
    node.steer_to(node.listener_port());
    assert!(node.client().send(GET).response().0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_port_that_is_used_again_at_once_works() {
    let Some(node) = Node::new("reuse") else { return };
    let _server = node.server();
    let port = 40_000;
    for round in 0..200 {
        // A program that another test starts holds our sockets for a moment, until its exec: then the old one is there
        // still, and this kernel's own answer is that the address is not free.
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut client = loop {
            match node.client_from(port) {
                Ok(client) => break client,
                Err(error)
                    if error.kind() == std::io::ErrorKind::AddrNotAvailable && Instant::now() < deadline => {}
                Err(error) => panic!("round {round}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let (head, seen) = client.send(GET).response();
        assert!(head.starts_with("HTTP/1.1 200 ") && seen.starts_with("10.1.0.1:"), "round {round}: {head}");
        socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// The worker finds the end of the server and the next request at once.
#[test]
fn another_connection_to_the_server_has_the_same_address_and_port() {
    let Some(node) = Node::new("again") else { return };
    let server = node.server();
    let mut client = node.client();
    let own = client.0.local_addr().unwrap().to_string();
    for round in 1..=10 {
        let last = "GET /api/v1/products/last HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(client.send(last).response().1, own);
        assert_eq!(server.connections(), round, "one more each time");
        signal("-STOP", node.worker());
        std::thread::sleep(Duration::from_millis(50));
        client.send(GET);
        std::thread::sleep(Duration::from_millis(5));
        signal("-CONT", node.worker());
        assert_eq!(client.response().1, own);
    }
}

#[test]
fn a_bad_snapshot_is_refused_by_name_and_the_last_good_one_stays() {
    let Some(mut node) = Node::new("bad") else { return };
    let _server = node.server();
    node.agent.snapshot.send_modify(|snapshot| {
        snapshot.number = 2;
        snapshot.pod_networks = vec!["nonsense".to_owned()];
    });
    wait(|| !node.last_ack().error.is_empty());
    let ack = node.last_ack();
    assert!(ack.number == 1 && ack.error.contains("pod_networks"), "{ack:?}");
    assert!(node.client().send(GET).response().0.starts_with("HTTP/1.1 200 "));
    node.send_snapshot(3, shop_policy_with(json!([{ "path": "/other" }])));
    wait(|| node.last_ack().number == 3);
    assert!(node.client().send(GET).response().0.starts_with("HTTP/1.1 403 "));
}

#[test]
fn a_killed_worker_is_a_reset_and_the_next_one_knows_the_last_snapshot() {
    let Some(mut node) = Node::new("kill") else { return };
    let server = node.server();
    node.send_snapshot(2, shop_policy_with(json!([{ "path": "/api/v1/products/7|/endless" }])));
    wait(|| node.last_ack().number == 2);
    node.stop_agent();
    let mut busy = node.client();
    busy.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").expect("HTTP/1.1 200 OK\r\n\r\nbegun");
    let old = node.worker();
    let killed = Instant::now();
    kill(old);
    busy.expect_reset();
    server.wait_for("reset");
    // Connections that come now wait in the queue for the next worker.
    assert!(node.client().send(GET).response().0.starts_with("HTTP/1.1 200 "));
    let pause = killed.elapsed();
    assert!(
        node.client()
            .send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .response()
            .0
            .starts_with("HTTP/1.1 403 ")
    );
    assert_ne!(node.worker(), old);
    println!("served again after {pause:?}");
    assert!(pause < Duration::from_secs(2), "{pause:?}");
}

#[test]
fn an_upgrade_loses_no_request() {
    let Some(mut node) = Node::new("upgrade") else { return };
    let _server = node.server();
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let shared = &node;
        let load: Vec<_> = [false, false, true, true]
            .map(|keeps| {
                let stop = stop.clone();
                let namespace =
                    NetNs::open(&Path::new("/run/netns").join(shared.namespace_name("client"))).unwrap();
                scope.spawn(move || {
                    let connect = || {
                        let stream = namespace.run(|| TcpStream::connect((SERVER, 8080)).unwrap()).unwrap();
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        Client(stream)
                    };
                    let (mut count, mut client) = (0, connect());
                    while !stop.load(Ordering::SeqCst) {
                        let (head, _) = client.send(GET).response();
                        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                        count += 1;
                        if !keeps || field(&head, "connection") == Some("close") {
                            client = connect();
                        }
                    }
                    count
                })
            })
            .into_iter()
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(300));
                // Another master takes over; the one before ends by itself when it has drained.
                shared.start_proxy();
            }
            std::thread::sleep(Duration::from_millis(300));
        }));
        stop.store(true, Ordering::SeqCst);
        let requests: Vec<usize> = load.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(requests.iter().all(|count| *count > 20), "{requests:?}");
        println!("{requests:?} requests, none failed");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // The last of three goes on; those before it have left by themselves.
    for old in &mut node.masters.get_mut().unwrap()[..2] {
        let status = old.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}
