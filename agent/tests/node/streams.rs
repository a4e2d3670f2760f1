//! What the proxy and the tunnel are sent, and what waits for their answers.

use std::time::Duration;

use api::agent::{SnapshotAck, TunnelReport};
use layout::verdict;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::fixture::{LIMIT, Node, can_run, eventually, pod_manifest};

fn l7_policy(path: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: l7}}\nspec:\n  endpointSelector: {{}}\n  \
         ingress: [{{toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}], rules: {{http: [{{path: {path}}}]}}}}]}}]\n"
    )
}

struct FakeProxy {
    acks: mpsc::Sender<SnapshotAck>,
    snapshots: Streaming<api::policy::Snapshot>,
}

impl FakeProxy {
    async fn connect(node: &Node, number: u64) -> Self {
        let (acks, receiver) = mpsc::channel(8);
        acks.send(SnapshotAck { number, pid: 1, slots: 3, ..SnapshotAck::default() }).await.unwrap();
        let snapshots = node.proxy().snapshots(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { acks, snapshots }
    }

    async fn next(&mut self) -> u64 {
        tokio::time::timeout(LIMIT, self.snapshots.message()).await.unwrap().unwrap().unwrap().number
    }

    async fn ack(&self, number: u64) {
        self.acks.send(SnapshotAck { number, pid: 1, slots: 3, ..SnapshotAck::default() }).await.unwrap();
    }
}

fn redirects(node: &Node) -> usize {
    node.maps().rules().unwrap().iter().filter(|rule| rule.verdict == verdict::REDIRECT).count()
}

async fn enforced(node: &Node) -> u64 {
    node.control().status(api::agent::StatusRequest {}).await.unwrap().into_inner().snapshot_enforced
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_on_requests_wait_for_the_proxy_and_deny_without_it() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    node.start().await;
    node.add("one", "a").await;
    let mut proxy = FakeProxy::connect(&node, 0).await;
    let first = proxy.next().await;
    proxy.ack(first).await;
    eventually("slots", || node.maps().config().unwrap().slots == 3).await;

    // The kernel follows the acknowledgement, not the other way round.
    node.apply("policy", &l7_policy("/one"));
    let second = proxy.next().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((second > first, enforced(&node).await, redirects(&node)), (true, first, 0));
    proxy.ack(second).await;
    eventually("redirected", || redirects(&node) > 0).await;
    assert_eq!(enforced(&node).await, second);

    // Silence for a second: in force, but what only requests allow is denied.
    node.apply("policy", &l7_policy("/two"));
    let third = proxy.next().await;
    eventually("closed", || redirects(&node) == 0).await;
    let status = node.control().status(api::agent::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.snapshot_enforced, status.snapshot_proxy), (third, second));
    assert!(
        status.problems.iter().any(|problem| problem.r#where == "Pod default/a"),
        "{:?}",
        status.problems
    );
    proxy.ack(third).await;
    eventually("redirected again", || redirects(&node) > 0).await;

    // The agent alone dies: the proxy judges by what it has, and nothing changes for it.
    node.kill();
    assert!(redirects(&node) > 0);
    node.start().await;
    let mut proxy = FakeProxy::connect(&node, third).await;
    let fourth = proxy.next().await;
    assert!(fourth > third, "numbers rise over a restart");
    proxy.ack(fourth).await;
    eventually("redirected still", || redirects(&node) > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_reachable_once_its_key_is_known() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.start().await;
    let routes = |node: &Node| {
        let shown = |table: &str| node.print("ip", &["route", "show", "table", table]);
        format!("{}{}", shown("main"), shown("2005"))
    };
    assert!(routes(&node).contains("blackhole 172.31.2.2"), "{}", routes(&node));
    assert!(!routes(&node).contains("10.2.0.0/16"));

    let (reports, receiver) = mpsc::channel(8);
    reports
        .send(TunnelReport { public_key: vec![7; 32], listen_port: 51820, ..TunnelReport::default() })
        .await
        .unwrap();
    let mut sets = node.tunnel().peers(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(sets.message().await.unwrap().unwrap().peers, []);
    let own = node.path("manifests/status/nodes/node-1.json");
    eventually("own key", || {
        std::fs::read_to_string(&own).is_ok_and(|text| text.contains("172.31.1.2:51820"))
    })
    .await;

    let other =
        std::fs::read_to_string(&own).unwrap().replace("172.31.1.2", "172.31.2.2").replace("10.1", "10.2");
    let path = node.path("manifests/status/nodes/node-2.json");
    host::file::write(&path, other.as_bytes(), 0o644).unwrap();
    let set = tokio::time::timeout(LIMIT, sets.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(set.peers[0].allowed_ips, ["10.2.0.0/16", "172.31.2.2/32"]);
    assert!(routes(&node).contains("10.2.0.0/16 dev selvage0"), "{}", routes(&node));
    assert!(routes(&node).contains("172.31.2.2 dev selvage0"));
    // The kernel takes the ways of a device that goes down; nothing may leave in clear then.
    assert!(routes(&node).contains("blackhole 172.31.2.2"), "{}", routes(&node));

    // A restart does not touch what is there, even if the other node's status has vanished meanwhile.
    node.monitor(&["route"]);
    node.kill();
    let kept = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    node.start().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let deleted =
        |node: &Node| std::fs::read_to_string(node.path("routes.log")).unwrap().contains("Deleted 10.2");
    assert!(!deleted(&node));
    assert!(routes(&node).contains("10.2.0.0/16 dev selvage0"));
    host::file::write(&path, &kept, 0o644).unwrap();
    let (reports, receiver) = mpsc::channel(8);
    reports.send(TunnelReport { public_key: vec![7; 32], ..TunnelReport::default() }).await.unwrap();
    let mut sets = node.tunnel().peers(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let again = tokio::time::timeout(LIMIT, sets.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((again.peers, again.number > set.number), (set.peers, true));

    // A key that is no longer announced is not a node that is gone; a Node object that is gone is.
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(routes(&node).contains("10.2.0.0/16 dev selvage0"));
    let manifest = std::fs::read_to_string(node.path("manifests/nodes.yaml")).unwrap();
    node.apply("nodes", manifest.split("---").next().unwrap());
    assert_eq!(tokio::time::timeout(LIMIT, sets.message()).await.unwrap().unwrap().unwrap().peers, []);
    let left = routes(&node);
    assert!(!left.contains("10.2.0.0/16") && !left.contains("172.31.2.2"), "{left}");
    eventually("the monitor sees it", || deleted(&node)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_connected_and_silent_is_hung_until_it_speaks() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.start().await;
    let ack = SnapshotAck { pid: 11, slots: 1, repeats: true, ..SnapshotAck::default() };
    let report = TunnelReport { public_key: vec![7; 32], pid: 12, repeats: true, ..TunnelReport::default() };
    let (acks, receiver) = mpsc::channel(8);
    acks.send(ack.clone()).await.unwrap();
    let _snapshots = node.proxy().snapshots(ReceiverStream::new(receiver)).await.unwrap();
    let (reports, receiver) = mpsc::channel(8);
    reports.send(report.clone()).await.unwrap();
    let _sets = node.tunnel().peers(ReceiverStream::new(receiver)).await.unwrap();

    let of = |status: &api::agent::StatusResponse, state: &str| {
        let programs = status.programs.iter().filter(|program| program.state == state);
        let programs: Vec<_> = programs.map(|program| (program.name.clone(), program.pid)).collect();
        let hung = status.problems.iter().filter(|problem| problem.message.contains("it hangs"));
        (programs, hung.map(|problem| problem.r#where.clone()).collect::<Vec<_>>())
    };
    let both = [("mesh-proxy".to_owned(), 11), ("mesh-wireguard".to_owned(), 12)];
    node.status_when("both are connected", LIMIT, |status| of(status, "connected").0 == both).await;
    let hung = node.status_when("both hang", LIMIT, |status| of(status, "hung").0 == both).await;
    assert_eq!(of(&hung, "hung").1, ["mesh-proxy, process 11", "mesh-wireguard, process 12"]);
    assert!(node.log().contains("the proxy is connected and silent"), "{}", node.log());

    acks.send(ack).await.unwrap();
    reports.send(report).await.unwrap();
    let well = node.status_when("both speak", LIMIT, |status| of(status, "connected").0 == both).await;
    assert_eq!(of(&well, "connected").1, [""; 0]);
}
