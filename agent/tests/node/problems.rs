//! What is wrong is in the status, and once in the log.

use std::time::Duration;

use api::agent::{PeerState, StatusResponse, TunnelReport};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{LIMIT, Node, can_run, eventually, pod_manifest};

/// A boolean where a text must stand.
const TYPO: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: typo}\nspec:\n  podSelector: \
                    {matchLabels: {app: a, canary: true}}\n  policyTypes: [Ingress]\n";

fn has(status: &StatusResponse, location: &str, message: &str) -> bool {
    status
        .problems
        .iter()
        .any(|problem| problem.r#where.contains(location) && problem.message.contains(message))
}

fn lines(node: &Node, level: &str, text: &str) -> usize {
    node.log().lines().filter(|line| line.contains(level) && line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_is_in_the_status_and_once_in_the_log_when_it_appears_and_when_it_ends() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    node.start().await;

    node.apply("policy", TYPO);
    let typo = |status: &StatusResponse| has(status, "NetworkPolicy default/typo: spec", "true");
    node.status_when("the typo is a problem", LIMIT, typo).await;
    eventually("a WARN", || lines(&node, "WARN", "NetworkPolicy default/typo") == 1).await;
    node.apply("policy", &TYPO.replace("true", "\"true\""));
    node.status_when("it is corrected", LIMIT, |status| !typo(status)).await;

    // No program of this node runs, and the other node has announced nothing.
    let away = |status: &StatusResponse| {
        has(status, "mesh-proxy", "not connected") && has(status, "mesh-wireguard", "not connected")
    };
    node.status_when("programs are missing", LIMIT, away).await;

    // A tunnel that sends and hears nothing.
    let (reports, receiver) = mpsc::channel(8);
    let report = |silent_ms| TunnelReport {
        public_key: vec![7; 32],
        peers: vec![PeerState { node: "node-2".into(), silent_ms, ..PeerState::default() }],
        ..TunnelReport::default()
    };
    let _sets = node.tunnel().peers(ReceiverStream::new(receiver)).await.unwrap();
    let silent = |status: &StatusResponse| has(status, "tunnel to node-2", "nothing was heard");
    reports.send(report(Some(5_000))).await.unwrap();
    node.status_when("it is connected", LIMIT, |status| !status.peers.is_empty()).await;
    for milliseconds in [13_000, 15_000] {
        reports.send(report(Some(milliseconds))).await.unwrap();
        let seconds = format!("for {} s", milliseconds / 1000);
        let status = node.status_when("silence", LIMIT, |status| has(status, "tunnel", &seconds)).await;
        assert!(silent(&status) && !has(&status, "mesh-wireguard", "not connected"), "{status:?}");
    }
    reports.send(report(None)).await.unwrap();
    node.status_when("it was heard", LIMIT, |status| !silent(status)).await;

    eventually("an INFO of each", || {
        lines(&node, "INFO", "NetworkPolicy default/typo") == 1
            && lines(&node, "INFO", "nothing was heard") == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let told = ["NetworkPolicy default/typo", "nothing was heard"].map(|text| lines(&node, "WARN", text));
    assert_eq!(told, [1, 1], "{}", node.log());
}
