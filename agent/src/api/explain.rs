//! `Explain`: what would happen, asked of the snapshot that is in force.

use std::net::IpAddr;

use api::agent::{DirectionVerdict, ExplainRequest, ExplainResponse, HttpRequest, HttpVerdict};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use policy::{
    Direction, DirectionDecision, EndpointPolicy, Flow, Head, HeadProblem, HttpVersion, Protocol, Readings,
    RequestHead, Scope, Snapshot, Verdict,
};
use tonic::Status;

/// Answers with the verdict of both ends and of the request, each with the rule that decided.
pub(crate) fn explain(snapshot: &Snapshot, request: &ExplainRequest) -> Result<ExplainResponse, Status> {
    let source = endpoint(snapshot, "from", &request.from_namespace, &request.from_pod)?;
    let destination = endpoint(snapshot, "to", &request.to_namespace, &request.to_pod)?;
    let name = if request.protocol.is_empty() { "TCP" } else { &request.protocol };
    let protocol = Protocol::parse(name)
        .ok_or_else(|| Status::invalid_argument(format!("protocol {name:?} is not known")))?;
    let port = u16::try_from(request.port)
        .ok()
        .filter(|port| *port > 0 || !protocol.has_ports())
        .ok_or_else(|| Status::invalid_argument(format!("port {}: 1 to 65535", request.port)))?;
    if request.http.is_some() && protocol != Protocol::Tcp {
        return Err(Status::invalid_argument("requests are made over TCP"));
    }
    let flow = Flow { source: source.1, destination: destination.1, protocol, port };
    let policy = snapshot.request_policy(&flow, Scope::Cluster);
    let connection = policy.connection();
    let mut verdict = connection.verdict;
    let (mut egress, mut ingress) = (connection.egress.clone(), connection.ingress.clone());
    let mut http = None;
    if let (Some(asked), Verdict::Allowed) = (&request.http, verdict) {
        headers(asked)?;
        let reason = "requests on this connection are not judged; the server answers";
        http = Some(http_verdict(verdict, 200, reason));
    }
    if let (Some(asked), Verdict::Redirected) = (&request.http, verdict) {
        let headers = headers(asked)?;
        let target = admitted(asked, &headers).and_then(|host| match Readings::of(&asked.path) {
            Ok(target) => Ok((host, target)),
            Err(problem) => Err(HeadProblem::Malformed(problem.text())),
        });
        match target {
            Err(problem) => {
                verdict = Verdict::Denied;
                let status = u32::from(problem.status().0);
                http = Some(http_verdict(verdict, status, &format!("{}: no rule is asked", problem.text())));
            }
            Ok((host, target)) => {
                let head =
                    RequestHead { method: &asked.method, target: &target, host: &host, headers: &headers };
                let decision = policy.decide(&head);
                verdict = decision.verdict;
                (egress, ingress) = (decision.egress, decision.ingress);
                let reading = policy.denied_reading(&head).filter(|reading| *reading != asked.path);
                http = Some(request_verdict(verdict, reading));
            }
        }
    }
    let direction = |decision: &Option<DirectionDecision>, direction, node: &EndpointPolicy| {
        decision.as_ref().map(|decision| direction_verdict(decision, direction, node))
    };
    let egress = direction(&egress, Direction::Egress, source.0);
    let ingress = direction(&ingress, Direction::Ingress, destination.0);
    let reason = reason(verdict, egress.as_ref(), ingress.as_ref(), http.as_ref());
    Ok(ExplainResponse { verdict: verdict.name().to_owned(), reason, egress, ingress, http })
}

fn endpoint<'a>(
    snapshot: &'a Snapshot,
    which: &str,
    namespace: &str,
    name: &str,
) -> Result<(&'a EndpointPolicy, IpAddr), Status> {
    let endpoint = snapshot.endpoint_named(namespace, name).ok_or_else(|| {
        Status::not_found(format!(
            "{which}: no pod {namespace}/{name} (hostNetwork pods speak as their node)"
        ))
    })?;
    let address = endpoint.addresses.first().ok_or_else(|| {
        Status::failed_precondition(format!(
            "{which}: pod {namespace}/{name} has no address yet: nothing reaches it"
        ))
    })?;
    Ok((endpoint, *address))
}

/// The fields of the request as HTTP/1.1 sends them; gRPC has its authority elsewhere.
fn headers(request: &HttpRequest) -> Result<HeaderMap, Status> {
    let mut headers = HeaderMap::new();
    for header in &request.headers {
        let wrong = || Status::invalid_argument(format!("header {:?} is no header", header.name));
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::from_str(&header.value).map_err(|_| wrong())?);
    }
    if version(&headers) == HttpVersion::Http11 && !(request.host.is_empty() && headers.contains_key(HOST)) {
        let wrong = |_| Status::invalid_argument(format!("host {:?} is no host", request.host));
        headers.append(HOST, HeaderValue::from_str(&request.host).map_err(wrong)?);
    }
    Ok(headers)
}

/// gRPC runs over HTTP/2. Of other requests it is not said.
fn version(headers: &HeaderMap) -> HttpVersion {
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    if content_type.starts_with(b"application/grpc") { HttpVersion::Http2 } else { HttpVersion::Http11 }
}

/// The host of the request, if the proxy would ask any rule about it.
fn admitted(request: &HttpRequest, headers: &HeaderMap) -> Result<String, HeadProblem> {
    let version = version(headers);
    let authority = (version == HttpVersion::Http2).then_some(request.host.as_str());
    let authority = authority.filter(|host| !host.is_empty() || !headers.contains_key(HOST));
    let mut head = Head::new(version, &request.method, &request.path).with_authority(authority);
    for (name, value) in headers {
        head.field(name.as_str(), value.as_bytes())?;
    }
    head.admit().map(|admitted| admitted.host.to_owned())
}

fn http_verdict(verdict: Verdict, status: u32, reason: &str) -> HttpVerdict {
    HttpVerdict { verdict: verdict.name().to_owned(), status, reason: reason.to_owned() }
}

/// `reading`: what no rule allows, if that is not the target as it is asked about.
fn request_verdict(verdict: Verdict, reading: Option<&str>) -> HttpVerdict {
    match (verdict, reading) {
        (Verdict::Denied, None) => http_verdict(verdict, 403, "no rule on requests allows it"),
        (Verdict::Denied, Some(reading)) => {
            let reason = format!("servers may read the path as {reading}, which no rule on requests allows");
            http_verdict(verdict, 403, &reason)
        }
        _ => http_verdict(verdict, 200, "a rule on requests allows it; the server answers"),
    }
}

fn direction_verdict(
    decision: &DirectionDecision,
    direction: Direction,
    endpoint: &EndpointPolicy,
) -> DirectionVerdict {
    let by = decision.origin.describe(direction);
    let reason = match (decision.verdict, decision.origin.is_default(), decision.enforced) {
        (Verdict::Allowed, true, false) => format!("no policy restricts {direction} of the pod"),
        (Verdict::Allowed, true, true) => "processes of the pod's own node are always let in".to_owned(),
        (Verdict::Allowed, false, _) => format!("allowed by {by}"),
        (Verdict::Redirected, ..) => format!("each request is judged by {by}"),
        (Verdict::Denied, true, _) => format!("default deny: no rule allows it ({direction})"),
        (Verdict::Denied, false, _) => format!("denied by {by}"),
    };
    DirectionVerdict {
        verdict: decision.verdict.name().to_owned(),
        reason,
        policy: Some((&decision.origin).into()),
        node: endpoint.node.clone(),
        isolated_by: Vec::new(),
    }
}

/// Of what decided: the first end that denies, else what is left to decide, else what allowed it.
fn reason(
    verdict: Verdict,
    egress: Option<&DirectionVerdict>,
    ingress: Option<&DirectionVerdict>,
    http: Option<&HttpVerdict>,
) -> String {
    let ends = [("egress", egress), ("ingress", ingress)];
    let ends = ends.into_iter().filter_map(|(name, end)| Some((name, end?)));
    let deciding: Vec<_> = ends.filter(|(_, end)| end.verdict == verdict.name()).collect();
    match (deciding.as_slice(), http) {
        // Neither end denies: the request itself is refused.
        ([], Some(http)) => http.reason.clone(),
        ([], None) => "nothing judges it".to_owned(),
        ([(name, end), ..], _) if verdict != Verdict::Allowed => format!("{name}: {}", end.reason),
        (ends, _) => {
            ends.iter().map(|(name, end)| format!("{name}: {}", end.reason)).collect::<Vec<_>>().join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use api::agent::Header;
    use policy::{Identities, Pod, PolicyKind, PolicyObject, World};

    use super::*;

    fn snapshot() -> Snapshot {
        let pod = |name: &str, last: u8| Pod {
            namespace: "production".into(),
            name: name.into(),
            node: "n".into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            addresses: vec![IpAddr::from([10, 1, 0, last])],
            ..Pod::default()
        };
        let manifest = serde_json::json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "production"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{
                    "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                    "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [
                        {"method": "GET", "path": "/a"},
                        {"method": "POST", "path": "/b", "headers": ["X-Key: 1"]},
                    ]}}, {"ports": [{"port": "81", "protocol": "TCP"}], "rules": {"http": [{}]}}],
                }],
            },
        });
        let policy = PolicyObject {
            kind: PolicyKind::CiliumNetworkPolicy,
            namespace: "production".into(),
            name: "p".into(),
            manifest,
        };
        let late = Pod { addresses: Vec::new(), ..pod("late", 9) };
        let world = World {
            this_node: "n".into(),
            pods: vec![pod("client", 2), pod("server", 3), pod("other", 4), late],
            policies: vec![policy],
            ..World::default()
        };
        let (snapshot, problems) = policy::compile(&world, &mut Identities::default(), 1);
        assert_eq!(problems, []);
        snapshot
    }

    fn ask(from: &str, to: &str, http: Option<(&str, &str)>) -> Result<ExplainResponse, Status> {
        let request = ExplainRequest {
            from_namespace: "production".into(),
            from_pod: from.into(),
            to_namespace: "production".into(),
            to_pod: to.into(),
            port: 80,
            protocol: String::new(),
            http: http.map(|(method, path)| HttpRequest {
                method: method.into(),
                path: path.into(),
                host: "server".into(),
                headers: vec![Header { name: "x-key".into(), value: "1".into() }],
            }),
        };
        explain(&snapshot(), &request)
    }

    fn answer(from: &str, http: Option<(&str, &str)>) -> (String, i32, i32, u32) {
        let answer = ask(from, "server", http).unwrap();
        let origin = answer.ingress.unwrap().policy.unwrap();
        (answer.verdict, origin.rule, origin.http_rule, answer.http.map_or(0, |http| http.status))
    }

    #[test]
    fn the_rule_that_decides_is_named() {
        assert_eq!(answer("client", None), ("redirected".into(), 0, -1, 0));
        assert_eq!(answer("client", Some(("GET", "/a"))), ("allowed".into(), 0, 0, 200));
        assert_eq!(answer("client", Some(("POST", "/b"))), ("allowed".into(), 0, 1, 200));
        assert_eq!(answer("client", Some(("DELETE", "/a"))), ("denied".into(), 0, -1, 403));
        assert_eq!(answer("client", Some(("GET", "/%2f"))), ("denied".into(), 0, -1, 403));
        assert_eq!(answer("client", Some(("GET", "/../a"))), ("denied".into(), 0, -1, 400));
        assert_eq!(answer("other", Some(("GET", "/a"))), ("denied".into(), -1, -1, 0));
    }

    #[test]
    fn reasons_are_words() {
        let reason = |from, http| ask(from, "server", http).unwrap().reason;
        assert_eq!(reason("other", None), "ingress: default deny: no rule allows it (ingress)");
        let allowed = reason("client", Some(("POST", "/b")));
        assert!(allowed.contains("CiliumNetworkPolicy production/p ingress[0].http[1]"), "{allowed}");
        assert!(allowed.contains("no policy restricts egress"), "{allowed}");
    }

    /// The same as the proxy says (`proxy/tests/strict.rs`), from the same functions.
    #[test]
    fn a_head_that_the_proxy_refuses_is_denied() {
        let everything = |method: &str, path: &str, host: &str, headers: &[(&str, &str)]| {
            let header =
                |(name, value): &(&str, &str)| Header { name: (*name).into(), value: (*value).into() };
            let http = HttpRequest {
                method: method.into(),
                path: path.into(),
                host: host.into(),
                headers: headers.iter().map(header).collect(),
            };
            let request = ExplainRequest {
                from_namespace: "production".into(),
                from_pod: "client".into(),
                to_namespace: "production".into(),
                to_pod: "server".into(),
                port: 81,
                protocol: String::new(),
                http: Some(http),
            };
            let answer = explain(&snapshot(), &request).unwrap();
            (answer.verdict, answer.http.unwrap().status)
        };
        let denied = |status| ("denied".to_owned(), status);
        let allowed = ("allowed".to_owned(), 200);
        let grpc = ("content-type", "application/grpc");
        for (method, path, host, headers, expected) in [
            ("GET", "/a?q=\u{e9}", "server", &[][..], allowed.clone()),
            ("GET", "/@scope%2fname", "server:81", &[], allowed.clone()),
            ("GET", "/", "", &[], allowed.clone()),
            ("GET", "/", "", &[("Host", "server")], allowed.clone()),
            ("GET", "http://server/a", "server", &[], allowed.clone()),
            ("OPTIONS", "*", "server", &[], allowed.clone()),
            ("POST", "/", "server", &[("Expect", "100-continue")], allowed.clone()),
            ("POST", "/", "server", &[("Transfer-Encoding", "chunked")], allowed.clone()),
            ("POST", "/s/m", "server", &[grpc], allowed.clone()),
            ("GET", "/", "user@server", &[], denied(400)),
            ("GET", "/", "a, b", &[], denied(400)),
            ("GET", "/", "server", &[("Host", "server")], denied(400)),
            ("GET", "http://other/a", "server", &[], denied(400)),
            ("GET", "https://server/a", "server", &[], denied(400)),
            ("GET", "*", "server", &[], denied(400)),
            ("GET", "/a b", "server", &[], denied(400)),
            ("GET", "/a%zz", "server", &[], denied(400)),
            ("GET", "/../a", "server", &[], denied(400)),
            ("GE T", "/", "server", &[], denied(400)),
            ("CONNECT", "server:81", "server", &[], denied(405)),
            ("POST", "/", "server", &[("Expect", "200-ok")], denied(417)),
            ("POST", "/", "server", &[("Transfer-Encoding", "gzip, chunked")], denied(400)),
            ("POST", "/s/m", "server", &[grpc, ("Transfer-Encoding", "chunked")], denied(400)),
            ("POST", "/", "server", &[("Content-Length", "+3")], denied(400)),
        ] {
            let got = everything(method, path, host, headers);
            assert_eq!(got, expected, "{method} {path} {host} {headers:?}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        assert_eq!(ask("nobody", "server", None).unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(ask("client", "late", None).unwrap_err().code(), tonic::Code::FailedPrecondition);
    }
}
