//! Two nodes in namespaces without names: they and all that is in them end with the test.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::agent::tunnel_server::{Tunnel, TunnelServer};
use api::agent::{Peer, PeerSet, TunnelReport};
use host::netlink::{Netlink, VethPair};
use host::netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status, Streaming};

/// In every payload; must not be seen on the underlay.
pub(crate) const MARKER: &str = "selvage-marker-7f3a91";
/// Device of the underlay in each namespace.
pub(crate) const UNDERLAY: &str = "under";
/// What the agent would set: 1500 - 80.
const TUN_MTU: &str = "1420";
/// Port of [`Echo`].
const ECHO: u16 = 7;
/// Between two packets of a [`Pump`].
const PACE: Duration = Duration::from_millis(5);
/// Longest wait for one echo.
const ECHO_LIMIT: Duration = Duration::from_millis(500);
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// Why these tests cannot run here; printed, or a failure where all must run.
pub(crate) fn skipped() -> bool {
    let lacks = |tool: &&str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output()
            .is_ok_and(|o| !o.status.success())
    };
    let reason = if !nix::unistd::geteuid().is_root() {
        "root is needed".to_owned()
    } else if !Path::new("/dev/net/tun").exists() {
        "no /dev/net/tun".to_owned()
    } else if let Some(tool) =
        ["ip", "tcpdump", "python3", "curl", "wg", "wireguard-go"].into_iter().find(lacks)
    {
        format!("{tool} is not installed")
    } else {
        return false;
    };
    assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "{reason}");
    println!("skipped: {reason}");
    true
}

/// Waits until `condition` gives something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stands for the agent of one node: a server on its tunnel.sock.
pub(crate) struct Agent {
    sets: watch::Sender<PeerSet>,
    reports: Arc<Mutex<Vec<TunnelReport>>>,
    server: tokio::task::JoinHandle<()>,
}

struct Service {
    sets: watch::Sender<PeerSet>,
    reports: Arc<Mutex<Vec<TunnelReport>>>,
}

#[tonic::async_trait]
impl Tunnel for Service {
    type PeersStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<PeerSet, Status>> + Send>>;

    async fn peers(
        &self,
        request: Request<Streaming<TunnelReport>>,
    ) -> Result<Response<Self::PeersStream>, Status> {
        use tokio_stream::StreamExt;
        let mut incoming = request.into_inner();
        let reports = self.reports.clone();
        tokio::spawn(async move {
            while let Ok(Some(report)) = incoming.message().await {
                reports.lock().unwrap().push(report);
            }
        });
        let sets = WatchStream::new(self.sets.subscribe()).filter(|set| set.number > 0).map(Ok);
        Ok(Response::new(Box::pin(sets)))
    }
}

impl Agent {
    fn start(runtime: &Runtime, socket: &Path) -> Self {
        let (sets, reports) = (watch::Sender::new(PeerSet::default()), Arc::default());
        let service = Service { sets: sets.clone(), reports: Arc::clone(&reports) };
        let _context = runtime.enter();
        let listener = UnixListener::bind(socket).unwrap();
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
        let server = tokio::spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(TunnelServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { sets, reports, server }
    }

    pub(crate) fn send(&self, set: PeerSet) {
        self.sets.send_replace(set);
    }

    pub(crate) fn reports(&self) -> Vec<TunnelReport> {
        self.reports.lock().unwrap().clone()
    }

    /// Ends with all its streams.
    pub(crate) fn stop(&self) {
        self.server.abort();
    }
}

/// Ends with its owner, also when a test fails.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) namespace: NetNs,
    pub(crate) agent: Agent,
    folder: PathBuf,
    masters: Mutex<Vec<Child>>,
}

impl Node {
    fn new(runtime: &Runtime, number: u8, folder: PathBuf) -> Self {
        fs::create_dir_all(folder.join("run")).unwrap();
        let namespace = NetNs::create_unnamed().unwrap();
        host::sysctl::write_in(&namespace, "net.ipv6.conf.all.disable_ipv6", "1").unwrap();
        let agent = Agent::start(runtime, &folder.join("run/tunnel.sock"));
        Self { number, namespace, agent, folder, masters: Mutex::default() }
    }

    pub(crate) fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 77, self.number)
    }

    pub(crate) fn pod(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 1)
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut built = Command::new(command[0]);
        built.args(&command[1..]).stdin(Stdio::null());
        built
    }

    /// Runs a command in the node's namespace.
    pub(crate) fn try_run(&self, command: &[&str]) -> Output {
        let mut built = self.command(command);
        self.namespace.run(|| built.output().unwrap()).unwrap()
    }

    /// The same; it must succeed.
    pub(crate) fn run(&self, command: &[&str]) -> String {
        let output = self.try_run(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn spawn(&self, command: &[&str], environment: &[(&str, &str)]) -> Running {
        let mut built = self.command(command);
        built.envs(environment.iter().copied()).stderr(Stdio::piped()).stdout(Stdio::null());
        Running(self.namespace.run(|| built.spawn().unwrap()).unwrap())
    }

    /// A UDP socket of this node.
    pub(crate) fn socket(&self, address: SocketAddr) -> UdpSocket {
        self.namespace.run(|| UdpSocket::bind(address).unwrap()).unwrap()
    }

    /// Sends one packet of `size` bytes with its headers to the echo of `pod`. Whether it came back.
    pub(crate) fn reaches(&self, pod: Ipv4Addr, size: usize) -> bool {
        self.reaches_from(self.pod(), pod, size)
    }

    pub(crate) fn reaches_from(&self, source: Ipv4Addr, pod: Ipv4Addr, size: usize) -> bool {
        let socket = self.socket((source, 0).into());
        socket.set_read_timeout(Some(ECHO_LIMIT)).unwrap();
        let payload: Vec<u8> = MARKER.bytes().cycle().take(size - 28).collect();
        let mut buffer = [0; 4096];
        if socket.send_to(&payload, (pod, ECHO)).is_err() {
            return false;
        }
        loop {
            match socket.recv_from(&mut buffer) {
                // Children of other tests end, and their signal comes to any thread.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                answer => return answer.is_ok_and(|(length, _)| buffer[..length] == payload),
            }
        }
    }

    /// Starts a master; it is a successor if one runs already.
    pub(crate) fn start(&self) -> u32 {
        let program = env!("CARGO_BIN_EXE_mesh-wireguard");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = Command::new(program);
        command
            .arg("--state-dir")
            .arg(self.folder.join("state"))
            .arg("--run-dir")
            .arg(self.folder.join("run"));
        command.stderr(log).stdin(Stdio::null());
        let child = self.namespace.run(|| command.spawn().unwrap()).unwrap();
        let pid = child.id();
        self.masters.lock().unwrap().push(child);
        pid
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) fn state(&self, file: &str) -> PathBuf {
        self.folder.join("state/wireguard").join(file)
    }

    /// Pid of the worker that runs now.
    pub(crate) fn worker(&self) -> u32 {
        let file = self.folder.join("run/wireguard-master.sock.worker");
        wait_for("worker", || fs::read_to_string(&file).ok()?.trim().parse().ok())
    }

    /// Waits for another worker than this; its pid.
    pub(crate) fn worker_after(&self, worker: u32) -> u32 {
        wait_for("another worker", || Some(self.worker()).filter(|now| *now != worker))
    }

    /// Inodes of the bound UDP sockets in the node's namespace.
    pub(crate) fn udp_sockets(&self) -> Vec<String> {
        let table = self.run(&["cat", "/proc/thread-self/net/udp"]);
        table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned)).collect()
    }

    /// Waits until the master with this pid has ended by itself, with success.
    pub(crate) fn wait_end(&self, pid: u32) {
        let mut masters = self.masters.lock().unwrap();
        let master = masters.iter_mut().find(|child| child.id() == pid).unwrap();
        let status = wait_for("end of the master", || master.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub(crate) fn kill(&self, pid: u32, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    pub(crate) fn public_key(&self) -> Vec<u8> {
        wait_for("report with the public key", || {
            self.agent.reports().last().map(|report| report.public_key.clone())
        })
    }

    /// What the agent of the other node would say of this one.
    pub(crate) fn as_peer(&self) -> Peer {
        Peer {
            node: format!("node-{}", self.number),
            public_key: self.public_key(),
            endpoint: format!("{}:51820", self.underlay()),
            allowed_ips: vec![format!("10.{}.0.0/16", self.number), format!("{}/32", self.underlay())],
        }
    }

    pub(crate) fn wait_session(&self) {
        wait_for("session", || {
            let reports = self.agent.reports();
            reports.last()?.peers.first()?.last_handshake_ms.map(drop)
        });
    }

    /// What the agent does: addresses, MTU, routes over a blackhole.
    pub(crate) fn route(&self, remote: &str) {
        let pod = format!("{}/32", self.pod());
        self.run(&["ip", "address", "replace", &pod, "dev", "lo"]);
        self.run(&["ip", "link", "set", "selvage0", "mtu", TUN_MTU]);
        self.run(&["ip", "route", "replace", "blackhole", "10.0.0.0/8", "metric", "4278198272"]);
        let source = self.pod().to_string();
        self.run(&["ip", "route", "replace", remote, "dev", "selvage0", "src", &source]);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of node-{}:\n{}", self.number, self.log());
        }
        for child in self.masters.lock().unwrap().iter_mut() {
            // Its worker ends with it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) struct Lab {
    pub(crate) one: Node,
    pub(crate) two: Node,
    pub(crate) folder: TempDir,
    _runtime: Runtime,
}

impl Lab {
    /// Two nodes with a link between them and no program.
    pub(crate) fn bare() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // The workers' user must get through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let one = Node::new(&runtime, 1, folder.path().join("1"));
        let two = Node::new(&runtime, 2, folder.path().join("2"));
        runtime.block_on(async {
            let pair = VethPair {
                name: UNDERLAY,
                mac: None,
                peer_name: UNDERLAY,
                peer_mac: None,
                peer_namespace: Some(&two.namespace),
                mtu: 1500,
            };
            Netlink::connect_in(&one.namespace).unwrap().create_veth(&pair).await.unwrap();
        });
        for node in [&one, &two] {
            let address = format!("{}/24", node.underlay());
            node.run(&["ip", "address", "add", &address, "dev", UNDERLAY]);
            node.run(&["ip", "link", "set", UNDERLAY, "up"]);
            node.run(&["ip", "link", "set", "lo", "up"]);
        }
        Self { one, two, folder, _runtime: runtime }
    }

    /// Two nodes that can reach each other's pods.
    pub(crate) fn new() -> Self {
        let lab = Self::bare();
        for node in [&lab.one, &lab.two] {
            node.start();
            node.public_key();
        }
        lab.one.route("10.2.0.0/16");
        lab.two.route("10.1.0.0/16");
        lab.one.agent.send(PeerSet { number: 1, peers: vec![lab.two.as_peer()], no_other_node: false });
        lab.two.agent.send(PeerSet { number: 1, peers: vec![lab.one.as_peer()], no_other_node: false });
        for node in [&lab.one, &lab.two] {
            node.wait_session();
        }
        lab
    }

    /// Captures on a device of a node.
    pub(crate) fn capture(&self, node: &Node, device: &str) -> Capture {
        let file = self.folder.path().join(format!("{}-{device}.pcap", node.number));
        let path = file.to_str().unwrap();
        let mut child =
            node.spawn(&["tcpdump", "-i", device, "--immediate-mode", "-U", "-Z", "root", "-w", path], &[]);
        let mut stderr = std::io::BufReader::new(child.0.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "tcpdump ended");
        }
        Capture { child, file, _stderr: stderr }
    }
}

/// tcpdump: the oracle of what is on a wire.
pub(crate) struct Capture {
    child: Running,
    file: PathBuf,
    _stderr: std::io::BufReader<std::process::ChildStderr>,
}

impl Capture {
    pub(crate) fn stop(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        let _ = kill(Pid::from_raw(self.child.0.id().try_into().unwrap()), Signal::SIGINT);
        let _ = self.child.0.wait();
    }

    /// Packets that match a filter of pcap-filter(7).
    pub(crate) fn count(&self, filter: &str) -> usize {
        let output =
            Command::new("tcpdump").args(["-nn", "-r"]).arg(&self.file).arg(filter).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).lines().count()
    }

    pub(crate) fn shows(&self, text: &str) -> bool {
        fs::read(&self.file).unwrap().windows(text.len()).any(|part| part == text.as_bytes())
    }

    /// Fails unless all there is are the tunnel's datagrams, address resolution, and errors about such a datagram that found nobody
    /// (while a master is not there).
    pub(crate) fn assert_encrypted_only(&mut self) {
        self.stop();
        assert!(self.count("udp port 51820") > 10, "the capture works");
        let error = "(icmp[icmptype] == icmp-unreach and icmp[17] == 17 and icmp[30:2] == 51820)";
        let others = format!("not arp and not udp port 51820 and not {error}");
        assert_eq!(self.count(&others), 0, "something else on the wire");
        assert!(!self.shows(MARKER), "clear text on the wire");
    }
}

/// Sends back what it gets, on port 7 of a node's pod.
pub(crate) struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let server = node.socket((node.pod(), ECHO).into());
        server.set_read_timeout(Some(PACE)).unwrap();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(&buffer[..length], from);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet each few milliseconds from one pod to the other and back.
pub(crate) struct Pump {
    stop: Arc<AtomicBool>,
    _echo: Echo,
    pump: JoinHandle<Pumped>,
}

#[derive(Debug)]
pub(crate) struct Pumped {
    pub(crate) sent: usize,
    pub(crate) received: usize,
    pub(crate) longest_gap: Duration,
}

impl Pump {
    pub(crate) fn start(from: &Node, to: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let echo = Echo::start(to);
        let client = from.socket((from.pod(), 0).into());
        client.set_nonblocking(true).unwrap();
        client.connect((to.pod(), ECHO)).unwrap();
        let stopped = Arc::clone(&stop);
        let pump = std::thread::spawn(move || {
            let mut pumped = Pumped { sent: 0, received: 0, longest_gap: Duration::ZERO };
            let mut last = Instant::now();
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                pumped.sent += usize::from(client.send(MARKER.as_bytes()).is_ok());
                std::thread::sleep(PACE);
                while client.recv(&mut buffer).is_ok() {
                    pumped.received += 1;
                    last = Instant::now();
                }
                pumped.longest_gap = pumped.longest_gap.max(last.elapsed());
            }
            pumped
        });
        std::thread::sleep(Duration::from_millis(300));
        Self { stop, _echo: echo, pump }
    }

    pub(crate) fn stop(self) -> Pumped {
        // A pause that does not end shows as a gap of more than a second.
        std::thread::sleep(Duration::from_millis(1200));
        self.stop.store(true, Ordering::Relaxed);
        self.pump.join().unwrap()
    }
}
