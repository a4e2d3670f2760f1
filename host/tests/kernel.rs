//! Namespaces, netlink, TUN and settings against the real kernel, in namespaces of this test.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use host::netlink::{
    FwMark, Link, LinkChange, Mac, Neighbour, Netlink, Route, RouteKind, Rule, TABLE_MAIN, VethPair,
};
use host::netns::{NetNs, NetNsError};
use host::sysctl;
use host::tun::{self, Queue, TunError};
use ipnet::IpNet;

/// Namespaces need root.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
        assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "skipped: needs root");
    }
    root
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A path for a namespace, free again at the end.
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

fn unused_path() -> Name {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Name(PathBuf::from(format!("/run/netns/host-test-{}-{number}", std::process::id())))
}

#[test]
fn a_named_namespace_lives_until_it_is_deleted() {
    if !is_root() {
        return;
    }
    let name = unused_path();
    let path = &name.0;
    let home = NetNs::current().unwrap();
    let made = NetNs::create(path).unwrap();
    assert_eq!(made, NetNs::open(path).unwrap());
    assert_ne!(made, home);
    assert!(matches!(NetNs::create(path), Err(NetNsError::Path { .. })), "the path is taken");
    let inside = made.run(|| NetNs::current().unwrap().id()).unwrap();
    assert_eq!(inside, made.id());
    assert_eq!(NetNs::current().unwrap(), home, "the caller stays where it is");
    {
        let _entered = made.enter().unwrap();
        assert_eq!(NetNs::current().unwrap(), made);
    }
    assert_eq!(NetNs::current().unwrap(), home);
    NetNs::delete(path).unwrap();
    assert!(!path.exists());
    NetNs::delete(path).unwrap();
    assert!(matches!(NetNs::open(path), Err(NetNsError::Open { .. })));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(NetNs::open(file.path()), Err(NetNsError::NotANamespace(_))));
    assert!(matches!(NetNs::open("/proc/self/ns/uts".as_ref()), Err(NetNsError::NotANamespace(_))));
    assert_eq!(NetNs::of_pid(std::process::id()).unwrap(), home);
}

#[test]
fn a_panic_inside_reaches_the_caller() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create_unnamed().unwrap();
    let result = std::panic::catch_unwind(|| namespace.run(|| panic!("inside")));
    assert_eq!(*result.unwrap_err().downcast_ref::<&str>().unwrap(), "inside");
}

#[tokio::test]
async fn a_veth_pair_is_born_across_namespaces() {
    if !is_root() {
        return;
    }
    let (node, pod) = (NetNs::create_unnamed().unwrap(), NetNs::create_unnamed().unwrap());
    let (node_link, pod_link) = (Netlink::connect_in(&node).unwrap(), Netlink::connect_in(&pod).unwrap());
    let pair = VethPair {
        name: "sv0",
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        peer_name: "eth0",
        peer_mac: Some(Mac([2, 0, 0, 0, 0, 2])),
        peer_namespace: Some(&pod),
        mtu: 1380,
    };
    node_link.create_veth(&pair).await.unwrap();
    let host: Link = node_link.link("sv0").await.unwrap().unwrap();
    let peer: Link = pod_link.link("eth0").await.unwrap().unwrap();
    assert_eq!((host.mac, host.mtu, host.up), (pair.mac, 1380, false));
    assert_eq!((peer.mac, peer.mtu, peer.kind.as_deref()), (pair.peer_mac, 1380, Some("veth")));
    assert_eq!((host.peer, peer.peer), (Some(peer.index), Some(host.index)));
    assert!(node_link.create_veth(&pair).await.unwrap_err().is_exists());
    let names = |links: Vec<Link>| links.into_iter().map(|link| link.name).collect::<Vec<_>>();
    assert_eq!(names(pod_link.links().await.unwrap()), ["lo", "eth0"]);

    let change = LinkChange { up: Some(true), mtu: Some(1300), name: Some("renamed".to_owned()), mac: None };
    pod_link.change_link(peer.index, &change).await.unwrap();
    let peer = pod_link.link_by_index(peer.index).await.unwrap().unwrap();
    assert_eq!((peer.name.as_str(), peer.mtu, peer.up), ("renamed", 1300, true));

    assert!(node_link.delete_link("sv0").await.unwrap());
    assert!(!node_link.delete_link("sv0").await.unwrap());
    assert!(!pod_link.delete_link_by_index(peer.index).await.unwrap(), "the other end went along");
    assert_eq!(node_link.link("sv0").await.unwrap(), None);
    let error = node_link.set_up(99).await.unwrap_err();
    assert!(error.is_missing() && error.to_string().contains("99"), "{error}");
}

#[tokio::test]
async fn addresses_routes_rules_and_neighbours_are_idempotent() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create_unnamed().unwrap();
    let netlink = Netlink::connect_in(&namespace).unwrap();
    let pair =
        VethPair { name: "a", mac: None, peer_name: "b", peer_mac: None, peer_namespace: None, mtu: 1500 };
    netlink.create_veth(&pair).await.unwrap();
    netlink.set_loopback_up().await.unwrap();
    let device = netlink.link("a").await.unwrap().unwrap().index;
    netlink.set_up(device).await.unwrap();

    for _ in 0..2 {
        netlink.ensure_address(device, net("10.1.0.7/32")).await.unwrap();
    }
    assert!(netlink.addresses().await.unwrap().contains(&(device, net("10.1.0.7/32"))));

    let gateway = ip("169.254.1.1");
    let routes = [
        Route::link(net("169.254.1.1/32"), device),
        Route::via(net("0.0.0.0/0"), gateway, device),
        Route::blackhole(net("10.0.0.0/8")).with_metric(4_278_198_272),
        Route::local(net("0.0.0.0/0"), 1).in_table(2004),
    ];
    for route in routes.iter().chain(&routes) {
        netlink.ensure_route(route).await.unwrap();
    }
    let main = netlink.routes(TABLE_MAIN).await.unwrap();
    for route in &routes[..3] {
        assert!(main.contains(route), "{route} in {main:?}");
    }
    assert_eq!(netlink.routes(2004).await.unwrap(), routes[3..]);

    let way = Route::link(net("10.9.9.9/32"), device).in_table(2005);
    let hole = Route::blackhole(net("10.9.9.9/32")).in_table(2005);
    netlink.ensure_route(&hole).await.unwrap();
    netlink.ensure_route(&way).await.unwrap();
    assert_eq!(netlink.routes(2005).await.unwrap(), [way], "one replaces the other, there is no gap");
    netlink.ensure_route(&hole).await.unwrap();
    assert_eq!(netlink.routes(2005).await.unwrap()[0].kind, RouteKind::Blackhole);
    assert!(netlink.delete_route(&hole).await.unwrap());
    assert!(!netlink.delete_route(&hole).await.unwrap());

    let rules = [
        Rule { priority: 9, mark: Some(FwMark { value: 0x200, mask: 0xf00 }), from: None, table: 2004 },
        Rule { priority: 20, mark: None, from: Some(net("10.1.0.0/24")), table: 2005 },
    ];
    for rule in &rules {
        assert!(netlink.ensure_rule(rule).await.unwrap());
        assert!(!netlink.ensure_rule(rule).await.unwrap());
        assert_eq!(netlink.rules().await.unwrap().iter().filter(|found| *found == rule).count(), 1);
    }
    assert!(netlink.delete_rule(&rules[0]).await.unwrap());
    assert!(!netlink.delete_rule(&rules[0]).await.unwrap());
    assert!(netlink.rules().await.unwrap().contains(&rules[1]));

    let neighbour = Neighbour { device, address: gateway, mac: Mac([2, 0, 0, 0, 0, 9]), permanent: true };
    for _ in 0..2 {
        netlink.ensure_neighbour(device, gateway, neighbour.mac).await.unwrap();
    }
    assert!(netlink.neighbours().await.unwrap().contains(&neighbour));
    assert!(netlink.delete_neighbour(device, gateway).await.unwrap());
    assert!(!netlink.delete_neighbour(device, gateway).await.unwrap());
    assert!(netlink.delete_address(device, net("10.1.0.7/32")).await.unwrap());
    assert!(!netlink.delete_address(device, net("10.1.0.7/32")).await.unwrap());
    let error =
        netlink.ensure_route(&Route::via(net("10.3.0.0/16"), ip("192.0.2.1"), device)).await.unwrap_err();
    assert!(error.to_string().contains("10.3.0.0/16 via 192.0.2.1"), "{error}");
}

#[tokio::test]
async fn many_routes_are_listed_completely() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create_unnamed().unwrap();
    let netlink = Netlink::connect_in(&namespace).unwrap();
    for number in 0..1000u32 {
        let address = IpAddr::from((0x0a00_0000 + number * 256).to_be_bytes());
        netlink
            .ensure_route(&Route::blackhole(IpNet::new(address, 24).unwrap()).in_table(300))
            .await
            .unwrap();
    }
    assert_eq!(netlink.routes(300).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_tun_device_persists_and_has_one_owner() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create_unnamed().unwrap();
    let netlink = Netlink::connect_in(&namespace).unwrap();
    let open = |header| namespace.run(|| tun::open_or_create("selvage0", header)).unwrap();
    let first = open(false).unwrap();
    assert!(matches!(open(false), Err(TunError::Busy(name)) if name == "selvage0"));
    let device = netlink.link("selvage0").await.unwrap().unwrap();
    assert_eq!((device.mac, device.kind.as_deref()), (None, Some("tun")));
    netlink.set_up(device.index).await.unwrap();
    let route = Route::link(net("10.2.0.0/16"), device.index);
    netlink.ensure_route(&route).await.unwrap();
    drop(first);
    assert!(
        netlink.routes(TABLE_MAIN).await.unwrap().contains(&route),
        "device and route outlive the process"
    );
    let second = open(true).unwrap();
    assert_eq!(netlink.link("selvage0").await.unwrap().unwrap().index, device.index);
    drop(second);

    let pair =
        VethPair { name: "v", mac: None, peer_name: "w", peer_mac: None, peer_namespace: None, mtu: 1500 };
    netlink.create_veth(&pair).await.unwrap();
    let veth = namespace.run(|| tun::open_or_create("v", false)).unwrap();
    assert!(matches!(veth, Err(TunError::Incompatible(_))), "{veth:?}");
    for name in ["", "a/b", "a b", "..", "sixteen-letters-", "tun%d"] {
        assert!(matches!(tun::open_or_create(name, false), Err(TunError::Name(_))), "{name}");
    }
}

#[tokio::test]
async fn a_deleted_tun_device_wakes_its_reader_and_is_told_from_a_living_one() {
    if !is_root() {
        return;
    }
    let namespace = NetNs::create_unnamed().unwrap();
    let netlink = Netlink::connect_in(&namespace).unwrap();
    let open = || namespace.run(|| tun::open_or_create("selvage0", false)).unwrap().unwrap();
    let held = open();
    let queue = Queue::new(held.try_clone().unwrap()).unwrap();
    assert!(tun::has_device(&held));
    assert!(!tun::has_device(&tempfile::tempfile().unwrap()), "something else");
    let read = async {
        queue.readable().await.unwrap();
        queue.try_read(&mut [0; 100]).unwrap_err()
    };
    let (error, deleted) =
        tokio::join!(tokio::time::timeout(Duration::from_secs(20), read), netlink.delete_link("selvage0"));
    assert!(deleted.unwrap());
    assert!(tun::is_gone(&error.unwrap()));
    // A worker that gets the dead one is told at once.
    let late = Queue::new(held.try_clone().unwrap()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), late.readable()).await.unwrap().unwrap();
    let again = open();
    assert!(!tun::has_device(&held), "another device of that name is not its own");
    assert!(tun::has_device(&again));
}

#[test]
fn settings_belong_to_a_namespace() {
    if !is_root() {
        return;
    }
    let key = "net.ipv4.ip_forward";
    let before = sysctl::read(key).unwrap();
    let namespace = NetNs::create_unnamed().unwrap();
    for value in ["1", "0", "1"] {
        sysctl::write_in(&namespace, key, value).unwrap();
        assert_eq!(sysctl::read_in(&namespace, key).unwrap(), value);
        assert_eq!(sysctl::read(key).unwrap(), before);
    }
    let error = sysctl::write_in(&namespace, key, "no number").unwrap_err();
    assert!(error.to_string().contains(key), "{error}");
}

#[test]
fn a_pin_folder_is_made_where_bpf_is_mounted() {
    if !is_root() {
        return;
    }
    let path = PathBuf::from(format!("/sys/fs/bpf/host-test-{}/links", std::process::id()));
    host::mount::ensure_bpffs(&path).unwrap();
    assert!(path.is_dir());
    assert_eq!(host::mount::ensure_bpffs(&path).unwrap(), None);
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("pins");
    assert_eq!(host::mount::ensure_bpffs(&elsewhere).unwrap(), Some(elsewhere.clone()));
    assert_eq!(host::mount::ensure_bpffs(&elsewhere.join("links")).unwrap(), None);
    nix::mount::umount(&elsewhere).unwrap();
}

#[test]
fn programs_that_start_at_once_mount_bpf_once() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for _ in 0..20 {
        let mounted = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| host::mount::ensure_bpffs(at).unwrap().is_some())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|did| *did).count()
        });
        nix::mount::umount(at).unwrap();
        assert_eq!(mounted, 1);
    }
}
