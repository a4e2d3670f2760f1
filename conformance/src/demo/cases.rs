//! The requests of the demo and what must come of each, written by hand from `examples/shop/policy.yaml`.

use crate::request::{Outcome, Request};

/// A request and its expected fate.
#[derive(Clone, Debug)]
pub struct Case {
    /// Pod that asks, in namespace `production`.
    pub client: &'static str,
    /// What it asks.
    pub request: Request,
    /// What it must see.
    pub expected: Outcome,
    /// What must have decided it.
    pub decider: &'static str,
}

/// The namespace everything runs in.
pub const NAMESPACE: &str = "production";
/// The server on the clients' own node, and the one on the other node.
pub const SERVERS: [(&str, &str); 2] = [("same", "api-server-1"), ("other", "api-server-2")];

const PRODUCTS: &str = "CiliumNetworkPolicy production/api-l7-policy ingress[0].http[0]";
const ORDERS: &str = "CiliumNetworkPolicy production/api-l7-policy ingress[0].http[1]";
const HEALTH: &str = "CiliumNetworkPolicy production/api-l7-policy ingress[0].http[2]";
const GRPC: &str = "CiliumNetworkPolicy production/api-l7-policy ingress[1].http[0]";
/// The rule that sends the request to be judged, none of whose HTTP rules it meets.
const HTTP_RULES: &str = "CiliumNetworkPolicy production/api-l7-policy ingress[0]";
const GRPC_RULES: &str = "CiliumNetworkPolicy production/api-l7-policy ingress[1]";
const DEFAULT: &str = "default deny";

/// All of them.
pub fn cases() -> Vec<Case> {
    let order = |content_type| Request::Http {
        method: "POST",
        path: "/api/v1/orders",
        content_type: Some(content_type),
        body: r#"{"product":7}"#,
    };
    let case = |client, request, expected, decider| Case { client, request, expected, decider };
    let get = |path| Request::http("GET", path);
    vec![
        case("frontend", get("/api/v1/products/7"), Outcome::Status(200), PRODUCTS),
        case("frontend", get("/healthz"), Outcome::Status(200), HEALTH),
        case("frontend", order("application/json"), Outcome::Status(200), ORDERS),
        case("frontend", order("text/plain"), Outcome::Status(403), HTTP_RULES),
        case("frontend", Request::http("DELETE", "/api/v1/products/7"), Outcome::Status(403), HTTP_RULES),
        case("frontend", get("/admin"), Outcome::Status(403), HTTP_RULES),
        case("intruder", get("/api/v1/products/7"), Outcome::TimedOut, DEFAULT),
        case(
            "grpc-client",
            Request::Grpc { method: "com.example.OrderService/Create" },
            Outcome::GrpcStatus(0),
            GRPC,
        ),
        case(
            "grpc-client",
            Request::Grpc { method: "com.example.Admin/Drop" },
            Outcome::GrpcStatus(7),
            GRPC_RULES,
        ),
        case(
            "frontend",
            Request::Grpc { method: "com.example.OrderService/Create" },
            Outcome::TimedOut,
            DEFAULT,
        ),
    ]
}
