//! Pods come and go, the agent is killed and comes back, and in the end nothing is left.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use api::agent::StatusResponse;
use layout::endpoint_flag::{ENFORCE_EGRESS, ENFORCE_INGRESS, SHAPED};

use nix::sys::signal::Signal;

use crate::fixture::{Node, can_run, eventually, pod_manifest, problems};

const DENY_ALL: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\n\
                        spec: {podSelector: {}, policyTypes: [Ingress]}\n";

fn flags(node: &Node, address: IpAddr) -> Option<u32> {
    let endpoints = node.maps().endpoints().unwrap();
    endpoints.into_iter().find(|(known, _)| *known == address).map(|(_, endpoint)| endpoint.flags)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_survive_a_killed_agent_and_cleanup_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    let before = [node.print("ip", &["route", "show", "table", "main"]), node.print("ip", &["rule"])];
    node.apply("pods", &[pod_manifest("a"), pod_manifest("b")].join("---\n"));
    let status = node.start().await;
    assert_eq!((status.node.as_str(), status.endpoints), ("node-1", 0));

    let (address, snapshot) = node.add("one", "a").await;
    assert_eq!((address.to_string().as_str(), snapshot > 0), ("10.1.0.2", true));
    assert_eq!(node.allocate("one", "a").await.address, "10.1.0.2", "asked again");
    assert_eq!(flags(&node, address), Some(0));
    let announced = node.path("manifests/status/pods/default_a.json");
    eventually("announced", || {
        std::fs::read_to_string(&announced).is_ok_and(|text| text.contains("10.1.0.2"))
    })
    .await;
    let endpoints =
        node.control().endpoints(api::agent::EndpointsRequest {}).await.unwrap().into_inner().endpoints;
    let shown: Vec<_> = endpoints.iter().map(|e| (e.name.as_str(), e.local, e.addresses.len())).collect();
    assert_eq!(shown, [("a", true, 1), ("b", false, 0)]);

    node.apply("policy", DENY_ALL);
    let took = eventually("policy in force", || flags(&node, address) == Some(ENFORCE_INGRESS)).await;
    eprintln!("policy in force after {took:?}");

    // Dead: what is in force stays, programs stay attached.
    node.kill();
    let attached = |node: &Node| std::fs::read_dir(node.pins.join("links")).unwrap().count();
    assert_eq!((flags(&node, address), attached(&node)), (Some(ENFORCE_INGRESS), 6));
    let status = node.start().await;
    assert_eq!(status.endpoints, 1);
    assert_eq!((flags(&node, address), attached(&node)), (Some(ENFORCE_INGRESS), 6));
    assert_eq!(node.allocate("one", "a").await.address, "10.1.0.2", "after the restart");
    let (second, _) = node.add("two", "b").await;
    assert_eq!(second.to_string(), "10.1.0.3");

    let links = async |node: &Node| node.netlink.links().await.unwrap().len();
    let with_two = links(&node).await;
    assert!(node.release("one").await);
    assert_eq!(links(&node).await, with_two - 1, "nobody keeps a device with an address that is free");
    assert!(!node.release("one").await);
    assert_eq!(flags(&node, address), None);
    eventually("withdrawn", || !announced.exists()).await;
    assert_eq!(node.allocate("three", "a").await.address, "10.1.0.4", "not the one that was just released");

    node.kill();
    node.cleanup();
    let after = [node.print("ip", &["route", "show", "table", "main"]), node.print("ip", &["rule"])];
    assert_eq!(before, after);
    assert_eq!(node.print("nft", &["list", "tables"]), "");
    let links: Vec<String> = node.netlink.links().await.unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(links.len(), 3, "{links:?}");
    assert!(!node.pins.exists() && !node.path("run/agent.sock").exists());
    node.cleanup();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_nobody_knows_is_closed_until_it_is_known() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.start().await;
    let (address, _) = node.add("one", "late").await;
    assert_eq!(flags(&node, address), Some(ENFORCE_INGRESS | ENFORCE_EGRESS));
    node.apply("late", &pod_manifest("late"));
    eventually("open", || flags(&node, address) == Some(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_or_noted_is_released_at_the_start() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &["a", "b", "c"].map(pod_manifest).join("---\n"));
    node.start().await;
    let (gone, _) = node.add("one", "a").await;
    let (noted, _) = node.add("two", "b").await;
    let (stays, _) = node.add("three", "c").await;
    node.kill();
    let links = node.netlink.links().await.unwrap();
    let index = node.maps().endpoints().unwrap().iter().find(|(known, _)| *known == gone).unwrap().1.ifindex;
    let name = links.iter().find(|link| link.index == index).unwrap().name.clone();
    node.netlink.delete_link(&name).await.unwrap();
    let notes = node.path("state/cni/pending");
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join("two_eth0.json"), r#"{"containerID":"two","ifname":"eth0"}"#).unwrap();

    let status = node.start().await;
    assert_eq!(status.endpoints, 1, "{}", node.log());
    let known: Vec<IpAddr> =
        node.maps().endpoints().unwrap().into_iter().map(|(address, _)| address).collect();
    assert_eq!(known, [stays], "not {gone} or {noted}");
    assert_eq!(std::fs::read_dir(&notes).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_and_a_wrong_setting_are_refused() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.namespace.run(|| host::sysctl::write("net.ipv4.fwmark_reflect", "1")).unwrap().unwrap();
    let refused = tokio::time::timeout(crate::fixture::LIMIT, node.start_and_wait()).await.unwrap();
    assert!(refused.contains("fwmark_reflect"), "{refused}");
    node.namespace.run(|| host::sysctl::write("net.ipv4.fwmark_reflect", "0")).unwrap().unwrap();
    node.start().await;
    let refused = tokio::time::timeout(crate::fixture::LIMIT, node.start_and_wait()).await.unwrap();
    assert!(refused.contains("another mesh-agent"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_is_a_look_at_the_node() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    node.start().await;
    node.add("one", "a").await;
    let notes = node.path("state/cni/pending");
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join("one_eth0.json"), r#"{"containerID":"one","ifname":"eth0"}"#).unwrap();
    node.signal(Signal::SIGHUP);
    // Sooner than the look that comes every ten seconds.
    let limit = Duration::from_secs(5);
    crate::fixture::within(limit, "the look that SIGHUP asks for", || {
        std::fs::read_dir(&notes).unwrap().count() == 0
    })
    .await;
    node.status_when("the agent still answers", limit, |status| status.snapshot_enforced > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_neither_the_agent_nor_what_is_in_force() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    let disk = Disk::mount(&node.path("state"), "1m");
    node.apply("pods", &["a", "b"].map(pod_manifest).join("---\n"));
    node.start().await;
    let (address, _) = node.add("one", "a").await;
    disk.fill();
    node.kill();
    // Its log stands on a full disk too.
    node.spawn_logging_to(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let limit = crate::fixture::LIMIT;
    let full = |status: &StatusResponse| {
        // What it compiles, once it has read the manifests, needs a number that is stored first.
        let is_full = |problem: &api::agent::Problem| {
            problem.r#where == "number of the next snapshot"
                && problem.message.contains("No space left on device")
        };
        status.problems.iter().any(is_full)
    };
    node.status_when("a full disk is a problem", limit, full).await;
    assert!(flags(&node, address).is_some(), "the pod is still judged by its rules");
    let refused = node.try_allocate("two", "b").await.unwrap_err();
    assert!(refused.message().contains("No space left on device"), "{refused}");
    disk.clear();
    node.status_when("no problem is left", limit, |status| problems(status).is_empty()).await;
    node.add("two", "b").await;
}

/// A small file system; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filling")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("filling")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_limits_on_a_pods_device_are_obeyed_and_their_end_too() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    node.start().await;
    let (address, _) = node.add("one", "a").await;
    assert_eq!(flags(&node, address), Some(0));
    let device = api::names::host_interface("one", "eth0");
    let limit = ["rate", "1mbit", "burst", "10k", "latency", "50ms"];
    let out = [&["qdisc", "add", "dev", &device, "root", "tbf"], &limit[..]].concat();
    let into = ["qdisc", "add", "dev", &device, "ingress"];
    for (add, remove) in [
        (&out[..], ["qdisc", "del", "dev", &device, "root"]),
        (&into[..], ["qdisc", "del", "dev", &device, "ingress"]),
    ] {
        node.print("tc", add);
        node.signal(Signal::SIGHUP);
        eventually("the pod's packets pass its queues", || flags(&node, address) == Some(SHAPED)).await;
        node.print("tc", &remove);
        node.signal(Signal::SIGHUP);
        eventually("they pass no queue", || flags(&node, address) == Some(0)).await;
    }
}
