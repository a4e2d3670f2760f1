//! A bench for the programs: a network namespace of its own with veths to stand on, its own pins, and crafted packets
//! through `BPF_PROG_TEST_RUN`. The oracle is what the kernel returns: action, mark, packet, counters, entries.
#![allow(dead_code, reason = "shared by several test programs, each of which uses a part")]

pub(crate) mod node;
pub(crate) mod packets;
pub(crate) mod raw;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;

use aya::programs::{TestRun as _, TestRunOptions};
use datapath::{Counters, Datapath, Program, Rule};
use layout::{
    Addr, Config, ConnectionEntry, ConnectionKey, Endpoint, Event, Reason, RuleKey, config_flag, direction,
    endpoint_flag, event_kind, range_kind, verdict,
};
use nix::sched::{CloneFlags, unshare};

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 1);
pub(crate) const POD_A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
pub(crate) const POD_B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
/// A pod of another node.
pub(crate) const POD_R: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 10);
/// An address of the pod network that nobody has announced.
pub(crate) const POD_UNKNOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);
pub(crate) const REMOTE_NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 2);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

pub(crate) const IDENTITY_A: u32 = 256;
pub(crate) const IDENTITY_B: u32 = 257;
pub(crate) const IDENTITY_R: u32 = 300;

/// Index of a tunnel's device, where a test has none.
pub(crate) const TUNNEL: u32 = 7_777;

pub(crate) const RULES_A: u32 = 1;
pub(crate) const RULES_B: u32 = 2;

pub(crate) const MAC_B: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const SCTP: u8 = 132;

/// Actions as the kernel returns them.
pub(crate) const NEXT: i32 = -1;
pub(crate) const PASS: i32 = 0;
pub(crate) const DROP: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

pub(crate) const TO_PROXY: u32 = 0x200;
pub(crate) const JUDGED: u32 = 0x300;
pub(crate) const FROM_PROXY: u32 = 0xa00;

pub(crate) const NEVER: u32 = Event::NOT_JUDGED;

/// What came out of a program.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) action: i32,
    pub(crate) mark: u32,
    pub(crate) packet: Vec<u8>,
}

impl Outcome {
    /// Action and mark, which most tests are about.
    pub(crate) fn verdict(&self) -> (i32, u32) {
        (self.action, self.mark)
    }
}

/// What a packet comes with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Arrival {
    /// Device whose hook runs the program.
    pub(crate) ifindex: u32,
    /// Device it came into the node on, 0 if a process of the node sent it.
    pub(crate) ingress_ifindex: u32,
    pub(crate) mark: u32,
}

pub(crate) struct Bench {
    pub(crate) datapath: Datapath,
    pub(crate) device_a: u32,
    pub(crate) device_b: u32,
    pub(crate) uplink: u32,
    pub(crate) pin_dir: PathBuf,
    /// Ids of the pods' network namespaces.
    pub(crate) netns_a: u32,
    pub(crate) netns_b: u32,
    /// Stands for the namespaces of both pods, where a test needs sockets in them and no more.
    pods: Option<node::Netns>,
    /// Keeps the event reader's registration alive.
    runtime: tokio::runtime::Runtime,
    next_generation: u32,
    /// Dropped last.
    _pins: Pins,
}

/// Says why a test does not run, or fails if all must run.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "skipped: {reason}");
    eprintln!("skipped: {reason}");
}

/// A bench, or none (with a word) where the kernel or the user cannot do it.
pub(crate) fn bench(name: &str) -> Option<Bench> {
    if !nix::unistd::geteuid().is_root() {
        skip("needs root");
        return None;
    }
    ensure_bpffs();
    Some(Bench::new(name))
}

/// A machine that was just started may have no BPF file system yet.
pub(crate) fn ensure_bpffs() {
    // Two tests at once would mount two, one over the other's pins.
    static ENSURED: std::sync::Once = std::sync::Once::new();
    ENSURED.call_once(|| {
        host::mount::ensure_bpffs(std::path::Path::new("/sys/fs/bpf")).unwrap();
    });
}

impl Bench {
    fn new(name: &str) -> Self {
        // This thread only; its children (ip) come along. The namespace ends with the thread.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let index = |device: &str| nix::net::if_::if_nametoindex(device).unwrap();
        for device in ["veth-a", "veth-b", "uplink"] {
            ip(&["link", "add", device, "type", "veth", "peer", "name", &format!("{device}-x")]);
            ip(&["link", "set", device, "up"]);
            ip(&["link", "set", &format!("{device}-x"), "up"]);
        }
        ip(&["link", "set", "lo", "up"]);
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/selvage-test-{}-{name}", std::process::id()));
        let pins = Pins(pin_dir.clone());
        let datapath = Datapath::open(&pin_dir).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let mut bench = Self {
            datapath,
            device_a: index("veth-a"),
            device_b: index("veth-b"),
            uplink: index("uplink"),
            pin_dir,
            netns_a: 0,
            netns_b: 0,
            pods: None,
            runtime,
            next_generation: 100,
            _pins: pins,
        };
        bench.set_config(|_| {});
        bench.put_a(0);
        bench.put_b(0);
        bench.datapath.maps.put_identity(IpAddr::V4(POD_R), IDENTITY_R).unwrap();
        bench.datapath.maps.put_identity(IpAddr::V4(REMOTE_NODE), layout::identity::REMOTE_NODE).unwrap();
        bench
    }

    pub(crate) fn set_config(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config {
            pod_network: Ipv4Addr::new(10, 0, 0, 0).into(),
            pod_netmask: Ipv4Addr::new(255, 255, 0, 0).into(),
            node_address: NODE.into(),
            slots: 4,
            loopback_ifindex: 1,
            flags: config_flag::ENCRYPTED,
            tunnel_ifindex: TUNNEL,
        };
        change(&mut config);
        self.datapath.maps.set_config(&config).unwrap();
    }

    /// Writes pod A with these flags and a new generation.
    pub(crate) fn put_a(&mut self, flags: u32) {
        self.put(
            POD_A,
            Endpoint {
                ifindex: self.device_a,
                identity: IDENTITY_A,
                ruleset: RULES_A,
                flags,
                ..Endpoint::default()
            },
        );
    }

    /// Writes pod B with these flags and a new generation.
    pub(crate) fn put_b(&mut self, flags: u32) {
        self.put(
            POD_B,
            Endpoint {
                ifindex: self.device_b,
                identity: IDENTITY_B,
                ruleset: RULES_B,
                flags,
                mac: MAC_B,
                ..Endpoint::default()
            },
        );
    }

    /// Writes a pod as the planner does: with a new generation, and as another one if the device is.
    pub(crate) fn put(&mut self, address: Ipv4Addr, endpoint: Endpoint) {
        self.next_generation += 1;
        let generation = self.next_generation;
        let mut known = self.datapath.maps.endpoints().unwrap().into_iter();
        let known = known.find(|(known, old)| *known == address && old.ifindex == endpoint.ifindex);
        let birth = known.map_or(generation, |(_, old)| old.birth);
        let netns = 1 + if address == POD_A { self.netns_a } else { self.netns_b };
        let endpoint = Endpoint { generation, birth, netns, ..endpoint };
        self.datapath.maps.put_endpoint(IpAddr::V4(address), &endpoint).unwrap();
    }

    /// Pod B lets in only what a rule allows.
    pub(crate) fn protect_b(&mut self) {
        self.put_b(endpoint_flag::ENFORCE_INGRESS);
    }

    /// Pod A sends only what a rule allows.
    pub(crate) fn confine_a(&mut self) {
        self.put_a(endpoint_flag::ENFORCE_EGRESS);
    }

    /// A rule for exactly one port; its origin is the port, to be told apart.
    pub(crate) fn rule(
        &mut self,
        ruleset: u32,
        direction: u8,
        peer: u32,
        protocol: u8,
        port: u16,
        verdict: u8,
    ) {
        let key = rule_key(ruleset, direction, peer, protocol, port);
        let rule = Rule { prefix_len: RuleKey::BITS_EXACT, key, verdict, origin: u32::from(port) };
        self.datapath.maps.put_rule(&rule).unwrap();
    }

    pub(crate) fn allow_into_b(&mut self, peer: u32, port: u16) {
        self.rule(RULES_B, direction::INGRESS, peer, TCP, port, verdict::ALLOW);
    }

    pub(crate) fn redirect_into_b(&mut self, peer: u32, port: u16) {
        self.rule(RULES_B, direction::INGRESS, peer, TCP, port, verdict::REDIRECT);
    }

    pub(crate) fn allow_out_of_a(&mut self, peer: u32, port: u16) {
        self.rule(RULES_A, direction::EGRESS, peer, TCP, port, verdict::ALLOW);
    }

    pub(crate) fn run(&self, program: Program, packet: &[u8], arrival: Arrival) -> Outcome {
        let mut context = [0u8; SKB_SIZE];
        let fields = [
            (SKB_MARK, arrival.mark),
            (SKB_INGRESS_IFINDEX, arrival.ingress_ifindex),
            (SKB_IFINDEX, arrival.ifindex),
        ];
        for (offset, value) in fields {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut context_out = [0u8; SKB_SIZE];
        let mut packet_out = vec![0u8; packet.len() + 64];
        let classifier = self.datapath.classifier(program).unwrap();
        let result = classifier
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut packet_out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                ..TestRunOptions::default()
            })
            .unwrap();
        packet_out.truncate(result.data_size_out as usize);
        let mark = u32::from_ne_bytes(context_out[SKB_MARK..SKB_MARK + 4].try_into().unwrap());
        Outcome { action: result.return_value.cast_signed(), mark, packet: packet_out }
    }

    /// Pod A sends.
    pub(crate) fn a_sends(&self, packet: &[u8]) -> Outcome {
        self.run(Program::FromPod, packet, arrival(self.device_a))
    }

    /// Pod B sends.
    pub(crate) fn b_sends(&self, packet: &[u8]) -> Outcome {
        self.run(Program::FromPod, packet, arrival(self.device_b))
    }

    /// The stack forwards to pod A what came in on the uplink.
    pub(crate) fn forwarded_to_a(&self, packet: &[u8]) -> Outcome {
        self.run(Program::ToPod, packet, Arrival { ingress_ifindex: self.uplink, ..arrival(self.device_a) })
    }

    /// The stack forwards to pod B what came in on the uplink.
    pub(crate) fn forwarded_to_b(&self, packet: &[u8]) -> Outcome {
        self.run(Program::ToPod, packet, Arrival { ingress_ifindex: self.uplink, ..arrival(self.device_b) })
    }

    /// A process of the node sends to pod B.
    pub(crate) fn host_to_b(&self, packet: &[u8]) -> Outcome {
        self.run(Program::ToPod, packet, arrival(self.device_b))
    }

    /// The tunnel delivers; a packet without Ethernet header.
    pub(crate) fn tunnel_delivers(&self, packet: &[u8]) -> Outcome {
        self.run(Program::FromTunnel, packet, Arrival::default())
    }

    /// The stack sends out of the uplink.
    pub(crate) fn leaves_by_uplink(&self, packet: &[u8], mark: u32) -> Outcome {
        self.run(Program::ToUplink, packet, Arrival { mark, ..arrival(self.uplink) })
    }

    /// Tells where pods and nodes are, and, with `tunnel`, that there is one.
    pub(crate) fn know_ranges(&mut self, tunnel: u32) {
        let range = |range: &str, kind| (range.parse::<ipnet::IpNet>().unwrap(), kind);
        let ranges = [
            range("10.0.1.0/24", range_kind::OWN_PODS),
            range("10.0.2.0/24", range_kind::PEER_PODS),
            // Another node's address lies in its own range of pods.
            range("10.0.2.1/32", range_kind::PEER_NODE),
            range(&format!("{REMOTE_NODE}/32"), range_kind::PEER_NODE),
            range(&format!("{NODE}/32"), range_kind::OWN_NODE),
        ];
        self.datapath.maps.set_ranges(&ranges.into()).unwrap();
        self.set_config(|config| config.tunnel_ifindex = tunnel);
    }

    pub(crate) fn uplink_delivers(&self, packet: &[u8]) -> Outcome {
        self.run(Program::FromUplink, packet, arrival(self.uplink))
    }

    pub(crate) fn counters(&self) -> Counters {
        self.datapath.maps.counters().unwrap()
    }

    /// What was counted while `action` ran, without zeros.
    pub(crate) fn counted<T>(&self, action: impl FnOnce(&Self) -> T) -> (T, Vec<(Reason, u64)>) {
        let before = self.counters();
        let result = action(self);
        let after = self.counters();
        let grown = after.iter().map(|(reason, count)| (reason, count - before.get(reason)));
        (result, grown.filter(|(_, count)| *count > 0).collect())
    }

    /// Uses up the quota of new entries behind a device.
    pub(crate) fn spend_quota(&self, ifindex: u32) {
        let pin = self.pin_dir.join(layout::maps::QUOTAS);
        let map = aya::maps::Map::LruHashMap(aya::maps::MapData::from_pin(pin).unwrap());
        let mut quotas: aya::maps::HashMap<_, u32, layout::InsertQuota> = map.try_into().unwrap();
        let quota = quotas.get(&ifindex, 0).unwrap();
        assert!(quota.entries > 0, "the first flow was counted");
        let entries = u64::from(layout::limits::QUOTA_ENTRIES);
        quotas.insert(ifindex, layout::InsertQuota { entries, ..quota }, 0).unwrap();
    }

    /// The entry of a flow, from either end.
    pub(crate) fn entry(
        &self,
        protocol: u8,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
    ) -> Option<ConnectionEntry> {
        self.datapath.maps.connection(&connection_key(protocol, from, to)).unwrap()
    }

    /// Changes an entry behind the programs' back.
    pub(crate) fn rewrite_entry(
        &self,
        protocol: u8,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        change: impl FnOnce(&mut ConnectionEntry),
    ) {
        let pin = self.pin_dir.join(layout::maps::CONNECTIONS);
        let map = aya::maps::Map::LruHashMap(aya::maps::MapData::from_pin(pin).unwrap());
        let mut entries: aya::maps::HashMap<_, ConnectionKey, ConnectionEntry> = map.try_into().unwrap();
        let key = connection_key(protocol, from, to);
        let mut entry = entries.get(&key, 0).unwrap();
        change(&mut entry);
        entries.insert(key, entry, 0).unwrap();
    }

    /// A connected pair of TCP sockets of this namespace with exactly these ends, as the proxy's transparent sockets
    /// have them: the first is bound to `local`, its peer is `remote`.
    pub(crate) fn transparent_pair(
        &self,
        local: (Ipv4Addr, u16),
        remote: (Ipv4Addr, u16),
    ) -> (std::net::TcpStream, std::net::TcpStream) {
        for address in [local.0, remote.0] {
            ip(&["addr", "replace", &format!("{address}/32"), "dev", "lo"]);
        }
        let listener = std::net::TcpListener::bind(remote).unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(local).into()).unwrap();
        socket.connect(&std::net::SocketAddr::from(remote).into()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (socket.into(), accepted)
    }

    /// A connection that the stacks of pods A and B have, each its end of it, and the node has not.
    pub(crate) fn pods_have(
        &mut self,
        one: (Ipv4Addr, u16),
        other: (Ipv4Addr, u16),
    ) -> (std::net::TcpStream, std::net::TcpStream) {
        let pods = self.pods.take().unwrap_or_else(|| {
            let pods = node::Netns::new();
            pods.take("veth-a-x");
            pods.take("veth-b-x");
            assert_eq!(netns_id("veth-a"), self.netns_a);
            assert_eq!(netns_id("veth-b"), self.netns_b);
            pods
        });
        let pair = pods.run(|| self.transparent_pair(one, other));
        self.pods = Some(pods);
        pair
    }

    /// What the programs reported since the last call.
    pub(crate) fn events(&self) -> Vec<Event> {
        let _inside = self.runtime.enter();
        let mut events = self.datapath.events().unwrap();
        std::iter::from_fn(|| events.try_next()).collect()
    }

    /// The one refusal reported since the last call to [`Self::events`], with the direction that refused.
    pub(crate) fn refusal(&self) -> (Reason, u8) {
        let dropped: Vec<_> = self.events().into_iter().filter(|e| e.kind == event_kind::DROPPED).collect();
        assert_eq!(dropped.len(), 1, "exactly one refusal, not {dropped:?}");
        (Reason::from_number(dropped[0].reason).unwrap(), dropped[0].direction)
    }
}

/// Removes the pins of a bench, also of one that could not be set up.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let removed = datapath::remove_pins(&self.0);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

/// Id that this namespace has for the one of a veth's other end.
pub(crate) fn netns_id(device: &str) -> u32 {
    let output = Command::new("ip").args(["link", "show", device]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "link-netnsid");
    words.nth(1).unwrap_or_else(|| panic!("no id: {text}")).parse().unwrap()
}

/// Size of `struct __sk_buff`, and places in it.
const SKB_SIZE: usize = 192;
const SKB_MARK: usize = 8;
const SKB_INGRESS_IFINDEX: usize = 36;
const SKB_IFINDEX: usize = 40;

pub(crate) fn arrival(ifindex: u32) -> Arrival {
    Arrival { ifindex, ..Arrival::default() }
}

pub(crate) fn connection_key(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> ConnectionKey {
    ConnectionKey::of(protocol, from.0.into(), from.1.to_be(), Addr::from(to.0), to.1.to_be()).0
}

/// 1 if `from` is end `a` of its flow to `to`.
pub(crate) fn connection_key_sender_bit(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> u8 {
    ConnectionKey::of(TCP, from.0.into(), from.1.to_be(), Addr::from(to.0), to.1.to_be()).1
}

pub(crate) fn rule_key(ruleset: u32, direction: u8, peer: u32, protocol: u8, port: u16) -> RuleKey {
    RuleKey {
        ruleset: ruleset.to_be_bytes(),
        identity: peer.to_be_bytes(),
        direction,
        protocol,
        port: port.to_be_bytes(),
    }
}

/// Number of the program at a tcx hook, if there is exactly one.
pub(crate) fn attached(device: &str, hook: aya::programs::TcAttachType) -> Option<u32> {
    let (_, programs) = aya::programs::SchedClassifier::query_tcx(device, hook).unwrap();
    assert!(programs.len() <= 1, "{} programs", programs.len());
    programs.first().map(aya::programs::ProgramInfo::id)
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An error with everything behind it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
