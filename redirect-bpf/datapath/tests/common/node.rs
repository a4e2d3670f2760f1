//! A node of real devices: two pods in network namespaces behind the veths of a bench, the world behind its uplink, all
//! programs attached.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use datapath::Listeners;
use nix::sched::{CloneFlags, setns, unshare};

use super::{Bench, FROM_PROXY, NODE, POD_A, POD_B, bench, ip, netns_id};

pub(crate) const WAIT: Duration = Duration::from_secs(5);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A network namespace, which lives as long as this.
pub(crate) struct Netns(File);

impl Netns {
    pub(crate) fn new() -> Self {
        let netns = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip(&["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(netns.join().unwrap())
    }

    /// Runs an action inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                action()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves a device of the bench in.
    pub(crate) fn take(&self, device: &str) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        ip(&["link", "set", device, "netns", &path]);
    }
}

pub(crate) fn mac_of(device: &str) -> [u8; 6] {
    let output = std::process::Command::new("ip").args(["-br", "link", "show", device]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split_whitespace().nth(2).unwrap().to_owned();
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The bench with pods A and B behind its veths and the world behind its uplink, programs attached.
pub(crate) struct Node {
    pub(crate) bench: Bench,
    pub(crate) a: Netns,
    pub(crate) b: Netns,
    pub(crate) outside: Netns,
    pub(crate) mac_b: [u8; 6],
}

impl Node {
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mut bench = bench(name)?;
        for (path, value) in [("ip_forward", "1"), ("tcp_early_demux", "0"), ("conf/lo/accept_local", "1")] {
            // Of the calling thread's namespace.
            std::fs::write(format!("/proc/sys/net/ipv4/{path}"), value).unwrap();
        }
        ip(&["rule", "add", "fwmark", "0x200/0xf00", "lookup", "2004", "pref", "9"]);
        ip(&["route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "2004"]);
        let a = pod("veth-a", POD_A);
        let b = pod("veth-b", POD_B);
        (bench.netns_a, bench.netns_b) = (netns_id("veth-a"), netns_id("veth-b"));
        bench.put_a(0);
        bench.put_b(0);
        let mac_b = b.run(|| mac_of("eth0"));
        let outside = Netns::new();
        ip(&["addr", "add", &format!("{NODE}/24"), "dev", "uplink"]);
        outside.take("uplink-x");
        outside.run(|| {
            ip(&["link", "set", "uplink-x", "up"]);
            ip(&["addr", "add", "172.31.1.9/24", "dev", "uplink-x"]);
            ip(&["addr", "add", &format!("{OUTSIDE}/32"), "dev", "lo"]);
            ip(&["route", "add", "10.0.0.0/16", "via", &NODE.to_string(), "src", &OUTSIDE.to_string()]);
        });
        ip(&["route", "add", &format!("{OUTSIDE}/32"), "via", "172.31.1.9"]);
        bench.datapath.attach_pod("veth-a").unwrap();
        bench.datapath.attach_pod("veth-b").unwrap();
        bench.datapath.attach_uplink("uplink").unwrap();
        bench.datapath.attach_listener_picker().unwrap();
        bench.set_config(|config| config.slots = 1);
        Some(Self { bench, a, b, outside, mac_b })
    }

    /// A listener in the proxy's place, in slot 0.
    pub(crate) fn proxy_listener(&self) -> TcpListener {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_ip_transparent_v4(true).unwrap();
        socket.set_mark(FROM_PROXY).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        socket.listen(16).unwrap();
        Listeners::open(&self.bench.pin_dir).unwrap().set(0, &socket).unwrap();
        socket.into()
    }

    pub(crate) fn listen_in_b(&self, port: u16) -> TcpListener {
        self.b.run(|| TcpListener::bind((POD_B, port)).unwrap())
    }
}

/// Makes the other end of a veth a pod's eth0, with the node's side of it.
pub(crate) fn pod(device: &str, address: Ipv4Addr) -> Netns {
    let netns = Netns::new();
    let host_mac = mac_text(mac_of(device));
    netns.take(&format!("{device}-x"));
    let pod_mac = netns.run(|| {
        ip(&["link", "set", &format!("{device}-x"), "name", "eth0"]);
        ip(&["link", "set", "eth0", "up"]);
        ip(&["addr", "add", &format!("{address}/32"), "dev", "eth0"]);
        ip(&["route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"]);
        ip(&["route", "add", "default", "via", "169.254.1.1", "dev", "eth0"]);
        ip(&["neigh", "add", "169.254.1.1", "lladdr", &host_mac, "dev", "eth0", "nud", "permanent"]);
        mac_text(mac_of("eth0"))
    });
    ip(&["route", "add", &format!("{address}/32"), "dev", device, "scope", "link"]);
    ip(&["neigh", "add", &address.to_string(), "lladdr", &pod_mac, "dev", device, "nud", "permanent"]);
    netns
}

pub(crate) fn connect(to: (Ipv4Addr, u16), wait: Duration) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(to), wait)?;
    stream.set_read_timeout(Some(WAIT))?;
    Ok(stream)
}

pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(WAIT)).unwrap();
                return (stream, peer);
            }
            Err(_) if start.elapsed() < WAIT => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("nobody connected: {error}"),
        }
    }
}

/// Sends and receives in both directions.
pub(crate) fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    for _ in 0..2 {
        one.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        other.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        other.write_all(b"pong").unwrap();
        one.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"pong");
    }
}

pub(crate) fn wait_for(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WAIT, "did not happen in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}
