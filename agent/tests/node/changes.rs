//! What this node is changes while its agent runs and its pods live.

use std::net::IpAddr;
use std::time::Duration;

use api::agent::{StatusResponse, TunnelReport};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{Node, can_run, eventually, node_manifest, pod_manifest, problems, within};

/// Two looks of the agent, and a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn names<'a>(words: &'a [&'a str]) -> impl Fn(&StatusResponse) -> bool + 'a {
    |status| {
        let of_node = status.problems.iter().filter(|problem| problem.r#where == "Node node-1");
        let mut messages = of_node.map(|problem| &problem.message);
        messages.any(|message| words.iter().all(|word| message.contains(word)))
    }
}

fn is_fine(status: &StatusResponse) -> bool {
    problems(status).is_empty()
}

fn apply(node: &Node, own: &str) {
    node.apply("nodes", &[own.to_owned(), node_manifest(2)].join("---\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_range_is_for_new_pods_and_the_old_ones_live_on() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &["a", "b", "c"].map(pod_manifest).join("---\n"));
    node.start().await;
    let (reports, receiver) = mpsc::channel(8);
    let report = TunnelReport { public_key: vec![7; 32], listen_port: 51820, ..TunnelReport::default() };
    reports.send(report).await.unwrap();
    let _sets = node.tunnel().peers(ReceiverStream::new(receiver)).await.unwrap();
    let (old, _) = node.add("one", "a").await;
    assert_eq!(old.to_string(), "10.1.0.2");
    let endpoint = |node: &Node, address: IpAddr| {
        node.maps().endpoints().unwrap().into_iter().find(|(known, _)| *known == address)
    };
    let before = endpoint(&node, old);

    apply(&node, &node_manifest(1).replace("10.1.", "10.5."));
    let words = ["spec.podCIDR", "default/a 10.1.0.2", "10.5.0.0/16", "delete"];
    node.status_when("the pod is named", SOON, names(&words)).await;
    let (new, _) = node.add("two", "b").await;
    assert_eq!(new.to_string(), "10.5.0.2");
    assert_eq!(endpoint(&node, old), before, "it lives on");
    let rules = node.print("ip", &["rule"]);
    assert!(rules.contains("20:\tfrom 10.5.0.0/16 lookup 2005"), "{rules}");
    assert!(rules.contains("20:\tfrom 10.1.0.2 lookup 2005") && !rules.contains("10.1.0.0/16"), "{rules}");
    let firewall = node.print("nft", &["list", "chain", "inet", "selvage", "to_world"]);
    assert!(firewall.contains("10.5.0.0/16") && firewall.contains("10.1.0.2"), "{firewall}");
    let own = node.path("manifests/status/nodes/node-1.json");
    eventually("announced", || std::fs::read_to_string(&own).is_ok_and(|text| text.contains("10.5.0.0/16")))
        .await;

    // A restart knows it too.
    node.kill();
    node.start().await;
    node.status_when("the pod is named", SOON, names(&words)).await;
    assert_eq!(
        endpoint(&node, old).map(|(_, endpoint)| endpoint.ifindex),
        before.map(|(_, endpoint)| endpoint.ifindex)
    );
    assert_eq!(node.allocate("one", "a").await.address, "10.1.0.2");

    assert!(node.release("one").await);
    node.status_when("nothing is left of the old range", SOON, is_fine).await;
    assert!(!node.print("ip", &["rule"]).contains("10.1."));
    assert_eq!(node.allocate("three", "c").await.address, "10.5.0.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_the_node_is_the_nodes() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.start().await;
    let is_host = |node: &Node, address: &str| {
        let wanted = (address.parse::<IpAddr>().unwrap(), layout::identity::HOST);
        node.maps().identities().unwrap().contains(&wanted)
    };
    // A bridge of containers, say.
    node.print("ip", &["link", "add", "br-test", "type", "bridge"]);
    node.print("ip", &["addr", "add", "172.30.7.1/24", "dev", "br-test"]);
    within(SOON, "the new address", || is_host(&node, "172.30.7.1")).await;
    node.print("ip", &["link", "delete", "br-test"]);
    within(SOON, "it is gone", || !is_host(&node, "172.30.7.1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_gone_or_broken_takes_nothing_away() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &["a", "b", "c", "d"].map(pod_manifest).join("---\n"));
    node.start().await;
    let (address, _) = node.add("one", "a").await;
    let made = |node: &Node| {
        let ip = |arguments: &[&str]| node.print("ip", arguments);
        let firewall = node.print("nft", &["list", "ruleset"]);
        [
            ip(&["-4", "route", "show", "table", "all"]),
            ip(&["rule"]),
            ip(&["-o", "link", "show", "selvage0"]),
            firewall,
        ]
    };
    let before = made(&node);
    for (container, pod, object, words) in [
        ("two", "b", String::new(), &["not in the source", "stays"][..]),
        (
            "three",
            "c",
            node_manifest(1).replace("10.1.0.0/16", "192.168.1.0/24"),
            &["spec.podCIDR", "--pod-network", "keeps 172.31.1.2"],
        ),
        (
            "four",
            "d",
            node_manifest(1).replace("10.1.0.0/16", "10.1.0.0/30"),
            &["spec.podCIDR", "/29", "keeps 172.31.1.2"],
        ),
    ] {
        apply(&node, &object);
        node.status_when("the problem is named", SOON, names(words)).await;
        assert_eq!(made(&node), before, "{words:?}");
        assert!(node.maps().endpoints().unwrap().iter().any(|(known, _)| *known == address));
        assert!(node.allocate(container, pod).await.address.starts_with("10.1.0."), "new pods go on too");
    }
    apply(&node, &node_manifest(1));
    node.status_when("fine again", SOON, is_fine).await;
    assert_eq!(made(&node), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_address_and_a_smaller_uplink_are_taken_over() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &["a", "b"].map(pod_manifest).join("---\n"));
    node.start().await;
    node.add("one", "a").await;
    let own = |node: &Node| IpAddr::from(node.maps().config().unwrap().node_address);
    let (old, new) = (IpAddr::from([172, 31, 1, 2]), IpAddr::from([172, 31, 1, 9]));
    assert_eq!(own(&node), old);
    // The object is there before the device has the address.
    apply(&node, &node_manifest(1).replace("172.31.1.2", "172.31.1.9"));
    node.status_when("the address is named", SOON, names(&["172.31.1.9", "--uplink", "keeps 172.31.1.2"]))
        .await;
    assert_eq!(own(&node), old);
    let uplink = node.netlink.link("uplink").await.unwrap().unwrap().index;
    node.netlink.ensure_address(uplink, "172.31.1.9/24".parse().unwrap()).await.unwrap();
    node.status_when("fine", SOON, is_fine).await;
    assert_eq!(own(&node), new);
    assert!(node.print("nft", &["list", "ruleset"]).contains("172.31.1.9"));

    // Another device takes over its address: programs and MTU follow.
    node.print("ip", &["link", "add", "other", "type", "veth", "peer", "name", "its-end"]);
    for device in ["other", "its-end"] {
        node.print("ip", &["link", "set", device, "mtu", "1400", "up"]);
    }
    node.netlink.delete_address(uplink, "172.31.1.9/24".parse().unwrap()).await.unwrap();
    node.print("ip", &["addr", "add", "172.31.1.9/24", "dev", "other"]);
    let words = ["MTU", "1320", "default/a 10.1.0.2", "other"];
    node.status_when("pods with a larger MTU are named", SOON, names(&words)).await;
    assert!(node.pins.join("links/other_from_uplink").exists());
    assert_eq!(node.netlink.link("selvage0").await.unwrap().unwrap().mtu, 1320);
    assert_eq!(node.allocate("two", "b").await.mtu, 1320);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_address_comes_late_is_waited_for() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    let uplink = node.netlink.link("uplink").await.unwrap().unwrap().index;
    let address = "172.31.1.2/24".parse().unwrap();
    node.netlink.delete_address(uplink, address).await.unwrap();
    node.apply("pods", &pod_manifest("a"));
    node.spawn(None);
    node.status_when("the address is named", SOON, names(&["172.31.1.2", "--uplink"])).await;
    let refused = node.try_allocate("one", "a").await.unwrap_err();
    assert!(refused.message().contains("172.31.1.2"), "{refused}");
    node.netlink.ensure_address(uplink, address).await.unwrap();
    node.status_when("fine", SOON, |status| is_fine(status) && status.snapshot_enforced > 0).await;
    assert_eq!(node.allocate("one", "a").await.address, "10.1.0.2");
}
