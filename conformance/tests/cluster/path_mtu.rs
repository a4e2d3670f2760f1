//! Does the proxy learn that a hop beyond its upstream connection takes only small packets?

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use conformance::capture::Capture;
use conformance::command::{self, Background};
use conformance::shop;
use lab::Lab;

use crate::fixture::{self, NS};

/// Bytes of a request's body: some 150 segments, far more than a first window.
const BODY: usize = 200_000;
/// A body of this size takes milliseconds; a path MTU black hole takes minutes.
const LIMIT: Duration = Duration::from_secs(5);
/// How a router says that a hop takes 1300 bytes (RFC 1191): the end of the ICMP header, and the packet that it quotes.
const TAKES_1300: [u8; 5] = [0, 0, 0x05, 0x14, 0x45];

/// Makes a router of a pod: what comes for its address ($2) goes on, over a hop with MTU 1300, to a namespace ($1) that has
/// this address too. The hop is small in this direction only, and the inner end announces the segment size of a large one:
/// so a sender learns of it by the router's ICMP error and by nothing else. Being the source of that error, the address
/// stays the pod's own as well.
const ROUTER: &str = r#"
ip link add hop address 02:00:00:00:09:01 mtu 1300 type veth peer name inner address 02:00:00:00:09:02 mtu 1500 netns "$1"
ip link set hop up
cd /proc/sys/net/ipv4
echo 0 > conf/all/rp_filter; echo 0 > conf/hop/rp_filter; echo 1 > conf/hop/accept_local
echo 1 > ip_forward; echo 0 > conf/all/send_redirects
ip rule add pref 1 iif eth0 to "$2" lookup 100
ip rule add pref 2 lookup local
ip rule del pref 0
ip route add "$2" dev hop table 100
ip neigh add "$2" lladdr 02:00:00:00:09:02 dev hop
ip -n "$1" link set lo up
ip -n "$1" link set inner up
ip -n "$1" address add "$2/32" dev inner
ip -n "$1" route add 169.254.9.1 dev inner
ip -n "$1" route add default via 169.254.9.1
ip -n "$1" neigh add 169.254.9.1 lladdr 02:00:00:00:09:01 dev inner
"#;

/// A server behind a small hop, and the namespace that it runs in.
struct FarServer {
    namespace: String,
    server: Option<Background>,
}

impl FarServer {
    /// Moves the service of a pod behind a router in this pod; `log` gets what the server says.
    fn behind(lab: &Lab, pod: &str, log: &std::path::Path) -> Self {
        let namespace = format!("{}-far", lab.name());
        let added = ["netns", "add", &namespace];
        assert!(Command::new("ip").args(added).status().unwrap().success());
        let mut far = Self { namespace, server: None };
        let address = lab.pod_address(NS, pod).unwrap().to_string();
        let mut router = lab.pod_command(NS, pod, "sh");
        let built =
            command::run(router.args(["-ec", ROUTER, "sh", &far.namespace, &address]), LIMIT).unwrap();
        assert!(built.status.success(), "{built:?}");
        let server = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", far.namespace))
            .args([&shop::program().unwrap(), "serve", "--http", &shop::HTTP_PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(log).unwrap())
            .spawn();
        far.server = Some(Background(server.unwrap()));
        far
    }
}

impl Drop for FarServer {
    fn drop(&mut self) {
        self.server = None;
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

/// Gives every datagram back.
const ECHO: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5353))
while True:
    data, peer = s.recvfrom(65535)
    s.sendto(data, peer)
";

/// Sends datagrams below and above what one packet takes, and awaits each of them whole.
const SEND: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.5)
for size in (1000, 1392, 1393, 3000, 60000):
    data = bytes(i % 251 for i in range(size))
    for attempt in range(10):
        s.sendto(data, (sys.argv[1], 5353))
        try:
            assert s.recv(65535) == data
            break
        except TimeoutError:
            pass
    else:
        sys.exit(f'{size} bytes did not come back')
";

#[test]
fn large_datagrams_pass_between_nodes_and_from_outside() {
    let Some(lab) = fixture::shop() else { return };
    let route = ["route", "add", "10.2.0.0/16", "via", "172.31.2.2"];
    let added = command::run(lab.outside_command("ip").args(route), LIMIT).unwrap();
    assert!(added.status.success(), "{added:?}");
    let mut server = lab.pod_command(NS, "frontend-2", "python3");
    let _server = Background(server.args(["-c", ECHO]).stdin(Stdio::null()).spawn().unwrap());
    let address = lab.pod_address(NS, "frontend-2").unwrap().to_string();
    let clients = [
        ("a pod", lab.pod_command(NS, "frontend", "python3")),
        ("a process of its node", lab.node_command("node-2", "python3")),
        ("a process of the other node", lab.node_command("node-1", "python3")),
        ("outside", lab.outside_command("python3")),
    ];
    for (who, mut client) in clients {
        let sent = command::run(client.args(["-c", SEND, &address]), Duration::from_secs(30)).unwrap();
        assert!(sent.status.success(), "{who}: {sent:?}");
    }
}

#[test]
fn a_large_request_passes_a_small_hop_behind_the_proxy() {
    let Some(lab) = fixture::shop() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("body"), "x".repeat(BODY)).unwrap();
    for server in ["api-server-1", "api-server-2"] {
        let far = FarServer::behind(&lab, server, &file("log"));
        let small = fixture::url(&lab, server, "/healthz");
        command::eventually(LIMIT, || {
            let status = fixture::curl(&lab, "frontend", &[&small]);
            anyhow::ensure!(status == 200, "{server} behind its router answers {status}");
            Ok(())
        })
        .unwrap();
        let router = Capture::start(|tcpdump| lab.pod_command(NS, server, tcpdump), "eth0", &file("router"));
        let client =
            Capture::start(|tcpdump| lab.pod_command(NS, "frontend", tcpdump), "eth0", &file("client"));
        let started = Instant::now();
        let mut curl = lab.pod_command(NS, "frontend", "curl");
        curl.args(["-sS", "-m", "10", "-H", "Content-Type: application/json"]);
        curl.args(["--data-binary", &format!("@{}", file("body").display())]);
        let answer =
            command::run(curl.arg(fixture::url(&lab, server, "/api/v1/orders")), Duration::from_secs(20));
        let (answer, took) = (answer.unwrap(), started.elapsed());
        let (router, client) = (router.unwrap().finish().unwrap(), client.unwrap().finish().unwrap());
        assert!(
            router.contain(&TAKES_1300),
            "{server}: nobody said that the hop is small, so nothing is shown"
        );
        assert!(answer.status.success() && took < LIMIT, "{server}: {answer:?} after {took:?}");
        assert!(answer.stdout.contains(&format!("\"body_bytes\":{BODY}")), "{server}: {answer:?}");
        assert_eq!(
            client.by_protocol().get("ICMP"),
            None,
            "{server}: the client was told of the proxy's hop"
        );
        drop(far);
        assert!(std::fs::read_to_string(file("log")).unwrap().contains("POST /api/v1/orders"));
        assert!(!fixture::access_log(&lab, server).contains("orders"), "the pod itself answered");
    }
}
