//! A small cluster and short ways to ask about it.

use std::net::IpAddr;

use http::HeaderMap;
use policy::{
    Flow, Identities, NamedPort, Node, Pod, PolicyKind, PolicyObject, Problem, Protocol, Readings,
    RequestDecision, RequestHead, Scope, Snapshot, Verdict, World, compile,
};
use serde_json::{Value, json};

pub(crate) const SERVER: &str = "10.1.0.1";
pub(crate) const CLIENT: &str = "10.1.0.2";
pub(crate) const OTHER: &str = "10.2.0.3";
pub(crate) const STAGING: &str = "10.2.0.4";
pub(crate) const NOBODY: &str = "10.2.0.99";
pub(crate) const NODE: &str = "172.31.0.1";
pub(crate) const NODE_2: &str = "172.31.0.2";
pub(crate) const OUTSIDE: &str = "203.0.113.9";

pub(crate) fn pod(namespace: &str, name: &str, address: &str) -> Pod {
    let node = if address.starts_with("10.1.") { "node-1" } else { "node-2" };
    let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        addresses: vec![address.parse().unwrap()],
        node: node.into(),
        named_ports: vec![port("web", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 5353)],
        ..Pod::default()
    }
}

/// production: server and client on node-1, other on node-2. staging: client on node-2.
pub(crate) fn world() -> World {
    let node = |name: &str, address: &str| Node {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        pod_ranges: Vec::new(),
    };
    World {
        this_node: "node-1".into(),
        pod_networks: vec!["10.0.0.0/8".parse().unwrap()],
        namespaces: [
            ("production".to_owned(), [("env".to_owned(), "live".to_owned())].into()),
            ("staging".to_owned(), [("env".to_owned(), "test".to_owned())].into()),
        ]
        .into(),
        pods: vec![
            pod("production", "server", SERVER),
            pod("production", "client", CLIENT),
            pod("production", "other", OTHER),
            pod("staging", "client", STAGING),
        ],
        nodes: vec![node("node-1", NODE), node("node-2", NODE_2)],
        policies: Vec::new(),
    }
}

pub(crate) fn object(kind: PolicyKind, name: &str, manifest: Value) -> PolicyObject {
    let namespace = if kind == PolicyKind::CiliumClusterwideNetworkPolicy { "" } else { "production" };
    PolicyObject { kind, namespace: namespace.into(), name: name.into(), manifest }
}

pub(crate) fn cnp(name: &str, spec: Value) -> PolicyObject {
    object(PolicyKind::CiliumNetworkPolicy, name, json!({"spec": spec}))
}

pub(crate) fn ccnp(name: &str, spec: Value) -> PolicyObject {
    object(PolicyKind::CiliumClusterwideNetworkPolicy, name, json!({"spec": spec}))
}

pub(crate) fn np(name: &str, spec: Value) -> PolicyObject {
    object(PolicyKind::NetworkPolicy, name, json!({"spec": spec}))
}

/// A CNP that selects the server.
pub(crate) fn for_server(name: &str, mut spec: Value) -> PolicyObject {
    spec["endpointSelector"] = json!({"matchLabels": {"app": "server"}});
    cnp(name, spec)
}

pub(crate) fn compiled(policies: Vec<PolicyObject>) -> (Snapshot, Vec<Problem>) {
    compile(&World { policies, ..world() }, &mut Identities::default(), 1)
}

/// Compiled without any problem.
pub(crate) fn good(policies: Vec<PolicyObject>) -> Snapshot {
    let (snapshot, problems) = compiled(policies);
    assert!(problems.is_empty(), "{problems:?}");
    snapshot
}

pub(crate) fn flow(source: &str, destination: &str, protocol: Protocol, port: u16) -> Flow {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    Flow { source: address(source), destination: address(destination), protocol, port }
}

pub(crate) fn tcp(snapshot: &Snapshot, source: &str, destination: &str, port: u16) -> Verdict {
    snapshot.decide_connection(&flow(source, destination, Protocol::Tcp, port)).verdict
}

/// Asks for `method path` with headers, all ends judging.
pub(crate) fn request(
    snapshot: &Snapshot,
    flow: &Flow,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> RequestDecision {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    let target = Readings::of(path).unwrap();
    let head = RequestHead { method, target: &target, host: "server", headers: &map };
    snapshot.request_policy(flow, Scope::Cluster).decide(&head)
}

/// `+` for each allowed, `-` for each denied, `r` for each that requests decide.
pub(crate) fn signs(verdicts: impl IntoIterator<Item = Verdict>) -> String {
    let sign = |verdict| match verdict {
        Verdict::Allowed => '+',
        Verdict::Denied => '-',
        Verdict::Redirected => 'r',
    };
    verdicts.into_iter().map(sign).collect()
}
