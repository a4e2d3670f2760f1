//! The policy that users write today, request by request, with the rule that decides.

use policy::{Direction, Flow, Pod, Protocol, Scope, Snapshot, Verdict};
use serde_json::json;

use crate::common::*;

const FRONTEND: &str = "10.1.0.11";
const GRPC: &str = "10.2.0.12";
const API: &str = "10.1.0.10";

fn snapshot() -> Snapshot {
    let spec = json!({
        "endpointSelector": {"matchLabels": {"app": "api-server"}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"app": "frontend"}}],
                "toPorts": [{
                    "ports": [{"port": "8080", "protocol": "TCP"}],
                    "rules": {"http": [
                        {"method": "GET", "path": "/api/v1/products.*"},
                        {"method": "POST", "path": "/api/v1/orders", "headers": ["Content-Type: application/json"]},
                        {"method": "GET", "path": "/healthz"},
                    ]},
                }],
            },
            {
                "fromEndpoints": [{"matchLabels": {"app": "grpc-client"}}],
                "toPorts": [{
                    "ports": [{"port": "9090", "protocol": "TCP"}],
                    "rules": {"http": [{"method": "POST", "path": "/com.example.OrderService/.*"}]},
                }],
            },
        ],
    });
    let mut world = world();
    let more: [Pod; 3] = [
        pod("production", "api-server", API),
        pod("production", "frontend", FRONTEND),
        pod("production", "grpc-client", GRPC),
    ];
    world.pods.extend(more);
    world.policies.push(cnp("api-l7-policy", spec));
    let (snapshot, problems) = policy::compile(&world, &mut policy::Identities::default(), 1);
    assert!(problems.is_empty(), "{problems:?}");
    snapshot
}

fn to_api(source: &str, port: u16) -> Flow {
    flow(source, API, Protocol::Tcp, port)
}

#[test]
fn requests_and_the_rule_that_decides() {
    let snapshot = snapshot();
    let json = ("content-type", "application/json");
    for (source, port, method, path, headers, expected) in [
        (FRONTEND, 8080, "GET", "/api/v1/products/7", &[][..], "allowed ingress[0].http[0]"),
        (FRONTEND, 8080, "GET", "/api/v1/products?x=1", &[], "allowed ingress[0].http[0]"),
        (FRONTEND, 8080, "GET", "/healthz", &[], "allowed ingress[0].http[2]"),
        (FRONTEND, 8080, "GET", "/healthz?x", &[], "denied ingress[0]"),
        (FRONTEND, 8080, "HEAD", "/healthz", &[], "denied ingress[0]"),
        (FRONTEND, 8080, "POST", "/api/v1/orders", &[json], "allowed ingress[0].http[1]"),
        (FRONTEND, 8080, "POST", "/api/v1/orders", &[], "denied ingress[0]"),
        (FRONTEND, 8080, "POST", "/api/v1/orders", &[("content-type", "text/plain")], "denied ingress[0]"),
        (FRONTEND, 8080, "POST", "/api/v1/orders", &[json, ("content-type", "x")], "denied ingress[0]"),
        (FRONTEND, 8080, "DELETE", "/api/v1/products/7", &[], "denied ingress[0]"),
        (GRPC, 9090, "POST", "/com.example.OrderService/Create", &[], "allowed ingress[1].http[0]"),
        (GRPC, 9090, "POST", "/com.example.UserService/Get", &[], "denied ingress[1]"),
    ] {
        let decision = request(&snapshot, &to_api(source, port), method, path, headers);
        let ingress = decision.ingress.unwrap();
        let origin = ingress.origin.describe(Direction::Ingress);
        let expected = expected.replace(' ', " CiliumNetworkPolicy production/api-l7-policy ");
        assert_eq!(format!("{} {origin}", ingress.verdict), expected, "{method} {path} {headers:?}");
        assert_eq!(decision.verdict, ingress.verdict);
        assert_eq!(decision.egress.unwrap().verdict, Verdict::Allowed);
    }
}

#[test]
fn connections() {
    let snapshot = snapshot();
    for (source, port, expected) in [
        (FRONTEND, 8080, Verdict::Redirected),
        (GRPC, 9090, Verdict::Redirected),
        (FRONTEND, 9090, Verdict::Denied),
        (GRPC, 8080, Verdict::Denied),
        (CLIENT, 8080, Verdict::Denied),
        (OUTSIDE, 8080, Verdict::Denied),
        (NOBODY, 8080, Verdict::Denied),
        (NODE_2, 8080, Verdict::Denied),
        (NODE, 8080, Verdict::Allowed),
        (API, 1, Verdict::Allowed),
    ] {
        let decision = snapshot.decide_connection(&to_api(source, port));
        assert_eq!(decision.verdict, expected, "{source} {port}");
        let ingress = decision.ingress.unwrap();
        let by_rule = expected == Verdict::Redirected;
        assert_eq!(ingress.origin.is_default(), !by_rule, "{source} {port}: {:?}", ingress.origin);
    }
}

/// A refused connection stays refused request by request, and so does one that no end on this node knows.
#[test]
fn requests_of_a_denied_connection_are_denied() {
    let snapshot = snapshot();
    assert_eq!(request(&snapshot, &to_api(CLIENT, 8080), "GET", "/healthz", &[]).verdict, Verdict::Denied);
    let nobody_here = flow(OUTSIDE, GRPC, Protocol::Tcp, 80);
    let headers = http::HeaderMap::new();
    let target = policy::Readings::of("/").unwrap();
    let head = policy::RequestHead { method: "GET", target: &target, host: "x", headers: &headers };
    let here = snapshot.request_policy(&nobody_here, Scope::ThisNode);
    assert_eq!(here.decide(&head).verdict, Verdict::Denied);
    assert_eq!(here.connection().verdict, Verdict::Denied);
    assert_eq!(snapshot.request_policy(&nobody_here, Scope::Cluster).decide(&head).verdict, Verdict::Allowed);
    let empty = Snapshot::default();
    assert_eq!(empty.request_policy(&nobody_here, Scope::ThisNode).decide(&head).verdict, Verdict::Denied);
}

/// Each node judges its own end only.
#[test]
fn this_node_judges_its_own_pods() {
    let snapshot = snapshot();
    let policy = snapshot.request_policy(&to_api(GRPC, 9090), Scope::ThisNode);
    assert!(policy.connection().egress.is_none(), "the client runs on the other node");
    assert_eq!(policy.connection().ingress.as_ref().unwrap().verdict, Verdict::Redirected);
}
