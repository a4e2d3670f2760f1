//! What somebody else removes or changes of the agent's is made again; what is right is left alone.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use api::agent::TunnelReport;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{Node, can_run, pod_manifest, problems};

/// The agent looks every ten seconds.
const A_LOOK: Duration = Duration::from_secs(11);
const REPAIRED: Duration = Duration::from_secs(30);

/// Everything that the agent made, as the kernel shows it.
fn made(node: &Node) -> BTreeMap<&'static str, String> {
    let ip = |arguments: &[&str]| node.print("ip", arguments);
    let settings = "net.ipv4.ip_forward net.ipv4.tcp_early_demux net.ipv4.conf.lo.accept_local \
                    net.ipv4.conf.lo.rp_filter net.ipv4.conf.selvage0.rp_filter";
    let settings: Vec<&str> = settings.split_whitespace().collect();
    let mut pins = Vec::new();
    for entry in std::fs::read_dir(node.pins.join("links")).unwrap() {
        pins.push(entry.unwrap().file_name().to_string_lossy().into_owned());
    }
    pins.sort();
    let up = |device: &str| node.print("ip", &["-o", "link", "show", "up", "dev", device]).len();
    BTreeMap::from([
        ("main", ip(&["-4", "route", "show", "table", "main"])),
        ("2004", ip(&["-4", "route", "show", "table", "2004"])),
        ("2005", ip(&["-4", "route", "show", "table", "2005"])),
        ("rules", ip(&["-4", "rule"])),
        ("neighbours", ip(&["-4", "neigh", "show", "nud", "permanent"])),
        ("nft", node.print("nft", &["list", "ruleset"])),
        ("settings", node.print("sysctl", &settings)),
        ("pins", pins.join(" ")),
        ("tunnel", format!("{}", up("selvage0") > 0)),
    ])
}

/// What changes even if the same is made again.
fn versions(node: &Node) -> (String, Vec<u64>) {
    let pins = std::fs::read_dir(node.pins.join("links")).unwrap();
    let pins = pins.map(|entry| entry.unwrap().metadata().unwrap().ino()).collect();
    (node.print("nft", &["-a", "list", "ruleset"]), pins)
}

async fn with_peer(node: &mut Node) -> mpsc::Sender<TunnelReport> {
    let status = r#"{"publicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","endpoint":"172.31.2.2:51820","address":"172.31.2.2","podRanges":["10.2.0.0/16"]}"#;
    std::fs::create_dir_all(node.path("manifests/status/nodes")).unwrap();
    host::file::write(&node.path("manifests/status/nodes/node-2.json"), status.as_bytes(), 0o644).unwrap();
    node.start().await;
    let (reports, receiver) = mpsc::channel(8);
    let mut sets = node.tunnel().peers(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(sets.message().await.unwrap().unwrap().peers.len(), 1);
    reports
}

async fn becomes(node: &Node, wanted: &BTreeMap<&'static str, String>) {
    let start = Instant::now();
    while made(node) != *wanted {
        assert!(start.elapsed() < REPAIRED, "not repaired: {:#?}\nwanted {wanted:#?}", made(node));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Removes or changes all that the agent made, but for the devices.
fn break_everything(node: &Node, host: &str) {
    for table in ["main", "2004", "2005"] {
        node.print("ip", &["route", "flush", "table", table, "proto", "83"]);
    }
    for priority in ["9", "20"] {
        node.print("ip", &["rule", "del", "pref", priority]);
    }
    node.print("nft", &["delete", "chain", "inet", "selvage", "never_in_clear"]);
    node.print("nft", &["flush", "chain", "inet", "selvage", "untracked_in"]);
    let settings = [
        "net.ipv4.ip_forward=0",
        "net.ipv4.tcp_early_demux=1",
        "net.ipv4.conf.lo.accept_local=0",
        "net.ipv4.conf.lo.rp_filter=1",
        "net.ipv4.conf.selvage0.rp_filter=1",
    ];
    for setting in settings {
        node.print("sysctl", &["-w", setting]);
    }
    // Its route and its neighbour go with it.
    node.print("ip", &["link", "set", host, "down"]);
    for program in
        [format!("{host}_from_pod"), "uplink_from_uplink".to_owned(), "netns_pick_listener".to_owned()]
    {
        std::fs::remove_file(node.pins.join("links").join(program)).unwrap();
    }
    // And what is ours and nobody wants.
    node.print("ip", &["route", "add", "10.77.0.0/16", "dev", "uplink", "proto", "83"]);
    node.print(
        "ip",
        &["rule", "add", "pref", "20", "from", "10.77.0.0/16", "lookup", "2005", "protocol", "83"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_removes_is_made_again_and_what_is_right_is_left_alone() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    let _reports = with_peer(&mut node).await;
    node.add("one", "a").await;
    let host = node.allocate("one", "a").await.host_interface;
    // The plugin makes the way to the pod, the agent keeps it.
    node.print("ip", &["route", "add", "10.1.0.2/32", "dev", &host, "scope", "link", "proto", "83"]);
    node.print(
        "ip",
        &["neigh", "replace", "10.1.0.2", "lladdr", "02:00:00:00:00:01", "dev", &host, "nud", "permanent"],
    );
    let wanted = made(&node);
    assert!(
        wanted["2005"].contains("blackhole 172.31.2.2") && wanted["2005"].contains("172.31.2.2 dev selvage0")
    );
    assert!(
        wanted["main"].contains("blackhole 10.0.0.0/8") && wanted["main"].contains("10.1.0.2 dev"),
        "{wanted:?}"
    );

    node.monitor(&["route", "rule", "neigh"]);
    let before = versions(&node);
    tokio::time::sleep(A_LOOK).await;
    assert_eq!(std::fs::read_to_string(node.path("routes.log")).unwrap(), "", "nothing was wrong");
    assert_eq!(versions(&node), before);
    assert!(!node.log().contains("repaired"), "{}", node.log());

    break_everything(&node, &host);
    becomes(&node, &wanted).await;

    let status = node.status_when("no problem", REPAIRED, |status| problems(status).is_empty()).await;
    assert!(problems(&status).is_empty(), "{status:?}");
    let log = node.log();
    let warning = log.lines().find(|line| line.contains("repaired")).unwrap();
    for part in [
        "nftables table",
        "rule 9",
        "rule 20",
        "10.2.0.0/16",
        "172.31.2.2/32",
        "tcp_early_demux",
        "neighbour 10.1.0.2",
        "from_pod",
    ] {
        assert!(log.contains(part) && warning.len() < 4000, "{part}: {log}");
    }

    // A whole table and a device too.
    node.print("nft", &["delete", "table", "inet", "selvage"]);
    node.print("ip", &["link", "del", "selvage0"]);
    becomes(&node, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_in_clear_while_somebody_has_flushed_the_routes() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    let _reports = with_peer(&mut node).await;
    // As if in the moment before the agent looks again.
    node.kill();
    node.print("ip", &["route", "add", "default", "via", "172.31.1.1", "dev", "uplink"]);
    node.print(
        "ip",
        &[
            "neigh",
            "replace",
            "172.31.1.1",
            "lladdr",
            "02:00:00:00:00:09",
            "dev",
            "uplink",
            "nud",
            "permanent",
        ],
    );
    for table in ["main", "2005"] {
        node.print("ip", &["route", "flush", "table", table, "proto", "83"]);
    }
    let route = node.print("ip", &["route", "get", "10.2.0.5"]);
    assert!(route.contains("dev uplink"), "nothing but the firewall stands in the way: {route}");
    // An address of a pod of this node, which sends to another node itself.
    node.print("ip", &["addr", "add", "10.1.0.7/32", "dev", "lo"]);
    let send = |from: &'static str, to: &'static str| {
        node.namespace.run(move || UdpSocket::bind(from).unwrap().send_to(b"secret", to)).unwrap()
    };
    for (from, to) in
        [("172.31.1.2:0", "10.2.0.5:9"), ("10.1.0.7:0", "10.2.0.5:9"), ("10.1.0.7:0", "172.31.2.2:9")]
    {
        let refused = send(from, to).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::PermissionDenied), "{from} to {to}");
    }
    // Nodes among themselves, and the world.
    for (from, to) in [("172.31.1.2:0", "172.31.2.2:51820"), ("10.1.0.7:0", "192.0.2.1:9")] {
        assert_eq!(send(from, to).unwrap(), 6, "{from} to {to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_complete_gives_out_no_address_until_it_is() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    let programs = node.path("programs");
    std::fs::create_dir(&programs).unwrap();
    node.spawn(Some(&programs));
    let named = |status: &api::agent::StatusResponse| {
        status
            .problems
            .iter()
            .any(|problem| problem.r#where == "Node node-1" && problem.message.contains("nft"))
    };
    node.status_when("the missing program is named", REPAIRED, |status| {
        status.snapshot_enforced > 0 && named(status)
    })
    .await;
    let refused = node.try_allocate("one", "a").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().contains("nft"), "{refused}");
    // What does not need it is there.
    assert!(node.print("ip", &["route", "show", "table", "2005"]).contains("blackhole 172.31.2.2"));

    let nft = node.print("sh", &["-c", "command -v nft"]);
    std::os::unix::fs::symlink(Path::new(nft.trim()), programs.join("nft")).unwrap();
    node.status_when("complete", REPAIRED, |status| problems(status).is_empty()).await;
    assert_eq!(node.allocate("one", "a").await.address, "10.1.0.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_nobody_judges_is_cut_off_until_somebody_does() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &["a", "b"].map(pod_manifest).join("---\n"));
    node.start().await;
    node.add("one", "a").await;
    let host = node.allocate("one", "a").await.host_interface;
    let pin = node.pins.join("links").join(format!("{host}_from_pod"));
    // Detached, and a folder stands where the next link's pin would be.
    std::fs::remove_file(&pin).unwrap();
    std::fs::create_dir(&pin).unwrap();
    let is_named = |status: &api::agent::StatusResponse| {
        status.problems.iter().any(|problem| problem.message.contains(&host))
    };
    node.status_when("the program is named", REPAIRED, is_named).await;
    assert!(!node.netlink.link(&host).await.unwrap().unwrap().up);
    assert!(node.log().contains("10.1.0.2 (cut off)"), "{}", node.log());
    node.add("two", "b").await;

    std::fs::remove_dir(&pin).unwrap();
    node.status_when("repaired", REPAIRED, |status| problems(status).is_empty()).await;
    assert!(node.netlink.link(&host).await.unwrap().unwrap().up && pin.is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_of_maps_come_back_and_are_named() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.start().await;
    let pins = |node: &Node| {
        let entries = std::fs::read_dir(&node.pins).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    let all = pins(&node);
    let config = node.maps().config().unwrap();
    for name in [layout::maps::LISTENERS, layout::maps::CONFIG, layout::maps::ENDPOINTS] {
        std::fs::remove_file(node.pins.join(name)).unwrap();
    }
    crate::fixture::within(A_LOOK, "the pins are there again", || pins(&node) == all).await;
    assert_eq!(node.maps().config().unwrap(), config, "the maps that the programs work on");
    datapath::Listeners::open(&node.pins).unwrap();
    crate::fixture::eventually("the warning names it", || {
        node.log().contains(&format!("pin of map {}", layout::maps::LISTENERS))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_follows_within_milliseconds_and_no_look_follows_from_a_repair() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    let _reports = with_peer(&mut node).await;
    let made = |node: &Node| {
        let mut made = made(node);
        // What no look changes, and others count down.
        made.retain(|what, _| ["main", "2004", "2005", "rules", "nft", "tunnel"].contains(what));
        made
    };
    let wanted = made(&node);
    assert!(wanted["2005"].contains("172.31.2.2 dev selvage0"), "{wanted:?}");
    let faults: [(&str, &[&str]); 6] = [
        ("nft", &["flush", "ruleset"]),
        ("ip", &["route", "flush", "table", "main", "proto", "83"]),
        ("ip", &["route", "flush", "table", "2005"]),
        ("ip", &["rule", "del", "pref", "9"]),
        ("ip", &["link", "set", "selvage0", "down"]),
        ("ip", &["link", "del", "selvage0"]),
    ];
    for (program, arguments) in faults {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.print(program, arguments);
        let start = Instant::now();
        while made(&node) != wanted {
            let late = start.elapsed() > Duration::from_secs(1);
            assert!(!late, "{arguments:?} not repaired: {:#?}\nwanted {wanted:#?}", made(&node));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!("{program} {arguments:?}: repaired within {:?}", start.elapsed());
    }
    // Its own writes are no reason to write.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let repairs = |node: &Node| node.log().lines().filter(|line| line.contains("repaired=")).count();
    let before = (repairs(&node), versions(&node));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((repairs(&node), versions(&node)), before, "{}", node.log());
}
