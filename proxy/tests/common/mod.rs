//! A proxy thread on loopback, in front of a server that the test plays itself.
//!
//! Pods live at 127.0.1.x, which a client can bind to; their destination is told to the thread, since nothing steers.
#![expect(dead_code, reason = "each test file uses its own part")]

pub(crate) mod frames;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use policy::{Identities, Labels, Node, Pod, PolicyKind, PolicyObject, Snapshot, World};
use proxy::counters::Counters;
use proxy::gate::Source;
use proxy::limits::Timeouts;
use proxy::policies::Policies;
use proxy::record::{Record, RecordSink};
use proxy::thread::Common;
use proxy::upstream::{Connect, ConnectError, Route};
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) const FRONTEND: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
pub(crate) const GRPC_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 3);
/// Whom the clients dial.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Nothing that works takes longer here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the test's server, whatever the route says.
pub(crate) struct Loopback {
    pub(crate) server: SocketAddr,
    pub(crate) sources: Arc<Mutex<Vec<Source>>>,
    /// While a test holds it, the thread stands still where it connects.
    hold: Arc<Mutex<()>>,
}

impl Connect for Loopback {
    async fn connect(&self, route: &Route, limit: Duration) -> Result<tokio::net::TcpStream, ConnectError> {
        self.sources.lock().unwrap().push(route.source);
        drop(self.hold.lock().unwrap());
        let destination = route.destination;
        let connecting = tokio::net::TcpStream::connect(self.server);
        match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected.map_err(|error| ConnectError::Connect { destination, error }),
            Err(_) => Err(ConnectError::TimedOut { destination, limit }),
        }
    }
}

/// A proxy thread under test.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    /// Where the proxy connects to.
    pub(crate) server: SocketAddr,
    port: u16,
    pub(crate) policies: Arc<Policies>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sources: Arc<Mutex<Vec<Source>>>,
    /// Locked, the thread stands still where it connects next.
    pub(crate) hold: Arc<Mutex<()>>,
    records: mpsc::Receiver<Record>,
    pub(crate) retire: watch::Sender<bool>,
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) listener: TcpListener,
    identities: Identities,
}

impl Rig {
    /// In front of `server`, with the policy of [`shop_policy`], snapshot 1.
    pub(crate) fn new(server: SocketAddr, port: u16) -> Self {
        Self::with(server, port, Timeouts::default())
    }

    pub(crate) fn with(server: SocketAddr, port: u16, timeouts: Timeouts) -> Self {
        let mut rig = Self::empty(server, port, timeouts);
        rig.apply(1, Some(shop_policy()));
        rig
    }

    /// Without a snapshot.
    pub(crate) fn empty(server: SocketAddr, port: u16, timeouts: Timeouts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, server, port, timeouts)
    }

    pub(crate) fn on(listener: TcpListener, server: SocketAddr, port: u16, timeouts: Timeouts) -> Self {
        Self::bounded(listener, server, port, timeouts, proxy::limits::CONNECTIONS_PER_THREAD)
    }

    pub(crate) fn bounded(
        listener: TcpListener,
        server: SocketAddr,
        port: u16,
        timeouts: Timeouts,
        connections: usize,
    ) -> Self {
        let bytes = proxy::limits::BUFFERED_BYTES;
        Self::start(listener, server, port, timeouts, connections, bytes, Arc::default())
    }

    /// With so many bytes for what HTTP/2 has in memory; every pod may ask for `path`.
    pub(crate) fn buffering(server: SocketAddr, bytes: usize, path: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connections = proxy::limits::CONNECTIONS_PER_THREAD;
        let mut rig =
            Self::start(listener, server, 8080, Timeouts::default(), connections, bytes, Arc::default());
        let mut policy = shop_policy_with(json!([{ "path": path }]));
        policy["spec"]["ingress"][0]["fromEndpoints"] = json!([{}]);
        rig.apply(1, Some(policy));
        rig
    }

    /// Another thread for the same listener, with the same snapshot from its start on.
    pub(crate) fn successor(&self) -> Self {
        let policies = Arc::new(Policies::default());
        policies.install(self.policies.current().unwrap());
        let listener = self.listener.try_clone().unwrap();
        let connections = proxy::limits::CONNECTIONS_PER_THREAD;
        let bytes = proxy::limits::BUFFERED_BYTES;
        Self::start(listener, self.server, self.port, Timeouts::default(), connections, bytes, policies)
    }

    fn start(
        listener: TcpListener,
        server: SocketAddr,
        port: u16,
        timeouts: Timeouts,
        connections: usize,
        buffered_bytes: usize,
        policies: Arc<Policies>,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let (sink, mut queue) = RecordSink::new(counters.clone());
        let (sender, records) = mpsc::channel();
        std::thread::spawn(move || {
            while let Some(record) = queue.blocking_recv() {
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
        let common = Common {
            policies: policies.clone(),
            records: sink,
            counters: counters.clone(),
            timeouts,
            connections,
            buffered_bytes,
        };
        let (retire, retired) = watch::channel(false);
        let sources = Arc::new(Mutex::new(Vec::new()));
        let hold = Arc::new(Mutex::new(()));
        let connector = Loopback { server, sources: sources.clone(), hold: hold.clone() };
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let own = listener.try_clone().unwrap();
        let destination = SocketAddr::new(SERVER.into(), port);
        let thread = std::thread::spawn(move || {
            let (pulse, _) = proxy::pulse::pulses(1);
            proxy::slot::run(own, connector, common, retired, pulse, Some(destination)).unwrap();
        });
        Self {
            address,
            server,
            port,
            policies,
            counters,
            sources,
            hold,
            records,
            retire,
            thread: Some(thread),
            listener,
            identities: Identities::default(),
        }
    }

    /// Puts a snapshot in force.
    pub(crate) fn apply(&mut self, number: u64, policy: Option<Value>) {
        let snapshot = snapshot(number, policy, &mut self.identities);
        self.policies.install(Arc::new(snapshot));
    }

    /// The next record.
    pub(crate) fn record(&self) -> Record {
        self.records.recv_timeout(PATIENCE).expect("a record")
    }

    pub(crate) fn no_record(&self) {
        if let Ok(record) = self.records.recv_timeout(Duration::from_millis(100)) {
            panic!("unexpected {record:?}");
        }
    }

    pub(crate) fn client(&self, pod: Ipv4Addr) -> Client {
        Client::connect(pod, self.address)
    }
}

pub(crate) fn snapshot(number: u64, policy: Option<Value>, identities: &mut Identities) -> Snapshot {
    snapshot_with(FRONTEND, number, policy, identities)
}

/// With the frontend at another address.
pub(crate) fn snapshot_with(
    frontend: Ipv4Addr,
    number: u64,
    policy: Option<Value>,
    identities: &mut Identities,
) -> Snapshot {
    let labels = |app: &str| Labels::from([("app".to_owned(), app.to_owned())]);
    let pod = |name: &str, address: Ipv4Addr| Pod {
        namespace: "production".to_owned(),
        name: name.to_owned(),
        labels: labels(name),
        addresses: vec![address.into()],
        node: "node-1".to_owned(),
        ..Pod::default()
    };
    let node = Node {
        name: "node-1".to_owned(),
        addresses: vec![IpAddr::from([172, 31, 1, 2])],
        pod_ranges: vec!["10.1.0.0/16".parse().unwrap()],
    };
    let world = World {
        this_node: "node-1".to_owned(),
        pod_networks: vec!["10.0.0.0/8".parse().unwrap()],
        pods: vec![
            pod("frontend", frontend),
            pod("grpc-client", GRPC_CLIENT),
            pod("intruder", OTHER),
            pod("api-server", SERVER),
        ],
        nodes: vec![node],
        policies: policy.into_iter().map(policy_object).collect(),
        ..World::default()
    };
    let (snapshot, problems) = policy::compile(&world, identities, number);
    assert!(problems.is_empty(), "{problems:?}");
    snapshot
}

fn policy_object(manifest: Value) -> PolicyObject {
    PolicyObject {
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: "production".to_owned(),
        name: manifest["metadata"]["name"].as_str().unwrap().to_owned(),
        manifest,
    }
}

/// The example that users know, with an upload and a WebSocket.
pub(crate) fn shop_policy() -> Value {
    shop_policy_with(json!([
        { "method": "GET|HEAD", "path": "/api/v1/products.*" },
        { "method": "POST", "path": "/api/v1/orders", "headers": ["Content-Type: application/json"] },
        { "method": "GET", "path": "/healthz" },
        { "method": "POST|PUT", "path": "/upload" },
        { "method": "GET", "path": "/socket" },
    ]))
}

pub(crate) fn shop_policy_with(http: Value) -> Value {
    let rule = |app: &str, port: &str, http: Value| {
        json!({
            "fromEndpoints": [{ "matchLabels": { "app": app } }],
            "toPorts": [{ "ports": [{ "port": port, "protocol": "TCP" }], "rules": { "http": http } }],
        })
    };
    json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": { "name": "api-l7-policy", "namespace": "production" },
        "spec": {
            "endpointSelector": { "matchLabels": { "app": "api-server" } },
            "ingress": [
                rule("frontend", "8080", http),
                rule("grpc-client", "9090", json!([{ "method": "POST", "path": "/selvage.agent.v1.Proxy/.*" }])),
            ],
        },
    })
}

/// A client that sees bytes.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn connect(from: Ipv4Addr, to: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from.into(), 0).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Reads exactly this.
    pub(crate) fn expect(&mut self, expected: impl AsRef<[u8]>) -> &mut Self {
        let expected = expected.as_ref();
        let mut got = Vec::new();
        while got.len() < expected.len() {
            let mut buffer = vec![0; expected.len() - got.len()];
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => got.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&got)),
            }
        }
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
        self
    }

    /// A response with Content-Length: status line and fields, body.
    pub(crate) fn response(&mut self) -> (String, String) {
        let head = read_head(&mut self.0).unwrap();
        let length = field(&head, "content-length").map_or(0, |value| value.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    pub(crate) fn end(&mut self) -> &mut Self {
        self.0.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// What comes until the server ends cleanly, or the error.
    pub(crate) fn rest(&mut self) -> std::io::Result<String> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest)?;
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }

    pub(crate) fn expect_clean_end(&mut self) {
        assert_eq!(self.rest().expect("a clean end"), "");
    }

    pub(crate) fn expect_reset(&mut self) {
        let error = self.rest().expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

/// The next head from a stream, with its empty line.
pub(crate) fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = match stream.read(&mut byte) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            let got = String::from_utf8_lossy(&head).into_owned();
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, got));
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// A server that the test plays: each connection is handled by `handler` on a thread of its own.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Origin {
    pub(crate) fn new(handler: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), handler)
    }

    pub(crate) fn on(listener: TcpListener, handler: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let (connections, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (handler, count, bytes) = (Arc::new(handler), connections.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (handler, bytes) = (handler.clone(), bytes.clone());
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    stream.set_nodelay(true).unwrap();
                    handler(Peer { stream, seen: bytes });
                });
            }
        });
        Self { address, connections, seen }
    }

    /// Answers every request with 200 and a short text; reads bodies of a Content-Length.
    pub(crate) fn polite() -> Self {
        Self::new(|mut peer| {
            while let Some(head) = peer.head() {
                let length = field(&head, "content-length").map_or(0, |value| value.parse().unwrap_or(0));
                peer.exactly(length);
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// All bytes that any connection has received and its handler has read.
    pub(crate) fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until this was received.
    pub(crate) fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One connection of an [`Origin`].
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Peer {
    /// Adds to what the server has seen.
    pub(crate) fn note(&self, bytes: &[u8]) {
        self.seen.lock().unwrap().extend_from_slice(bytes);
    }

    /// The next head; None at the end.
    pub(crate) fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                _ => return None,
            }
            self.note(&byte);
        }
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        self.note(&body);
        body
    }

    /// Everything until the other side ends; the error if it does not end cleanly.
    pub(crate) fn until_end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.stream.read_to_end(&mut all)?;
        self.note(&all);
        Ok(all)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

pub(crate) const GET: &str = "GET /api/v1/products/7 HTTP/1.1\r\nHost: api\r\n\r\n";
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
