//! Records of the proxy as flow records: one for each request. The verdict is what happened to it;
//! what policy decided stands in the policies that allowed or denied it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::agent::{RequestOutcome, RequestRecord};
use api::flow::layer4::Protocol as L4;
use api::flow::layer7::Record;
use api::flow::{
    CiliumEventType, DropReason, Flow, FlowType, Http, L7FlowType, Layer4, Layer7, Policy, Tcp,
    TrafficDirection, Verdict,
};
use api::policy::Origin as WireOrigin;
use policy::{Direction, Origin, Snapshot};

use super::convert;

/// Hubble's number of an access log record.
const EVENT_L7: i32 = 129;
/// Longest method, host or path that is kept, in bytes. A pod chooses them, and thousands of records are kept.
const MAX_TEXT: usize = 1024;

pub(super) fn flow(snapshot: &Snapshot, node_name: &str, mut record: RequestRecord) -> Flow {
    for text in [&mut record.method, &mut record.host, &mut record.path, &mut record.protocol] {
        shorten(text);
        escape(text);
    }
    let (source, destination) = (address(&record.source), address(&record.destination));
    let (egress_allowed_by, egress_denied_by) =
        side(record.egress_origin.as_ref(), Direction::Egress, record.egress_allowed);
    let (ingress_allowed_by, ingress_denied_by) =
        side(record.ingress_origin.as_ref(), Direction::Ingress, record.ingress_allowed);
    let direction = match (&record.ingress_origin, &record.egress_origin) {
        (Some(_), _) => TrafficDirection::Ingress,
        (None, Some(_)) => TrafficDirection::Egress,
        (None, None) => TrafficDirection::Unknown,
    };
    let url = url(&record);
    let tcp = Tcp { source_port: record.source_port, destination_port: record.destination_port, flags: None };
    let drop_reason = drop_reason(&record.reason).into();
    Flow {
        time: Some(convert::timestamp(record.time_ns)),
        verdict: verdict(&record).into(),
        ip: Some(convert::ip(source, destination)),
        l4: Some(Layer4 { protocol: Some(L4::Tcp(tcp)) }),
        source: Some(convert::endpoint(snapshot, source, record.source_identity)),
        destination: Some(convert::endpoint(snapshot, destination, record.destination_identity)),
        r#type: FlowType::L7.into(),
        node_name: node_name.to_owned(),
        summary: summary(&record, &url),
        l7: Some(Layer7 {
            r#type: L7FlowType::Request.into(),
            latency_ns: record.latency_ns,
            record: Some(Record::Http(Http {
                code: record.status,
                method: record.method,
                url,
                protocol: record.protocol,
                headers: Vec::new(),
            })),
        }),
        event_type: Some(CiliumEventType { r#type: EVENT_L7, sub_type: 0 }),
        traffic_direction: direction.into(),
        drop_reason_desc: drop_reason,
        is_reply: Some(false),
        egress_allowed_by,
        ingress_allowed_by,
        egress_denied_by,
        ingress_denied_by,
        ..Flow::default()
    }
}

/// Cuts off what is too long, and says so.
fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str("...");
        text.shrink_to_fit();
    }
}

/// A terminal would obey control characters, and a refused request may have them.
fn escape(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text
            .chars()
            .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() })
            .collect();
    }
}

/// Where it went; empty if it had neither host nor path. Other targets than a path stand as they
/// came.
fn url(record: &RequestRecord) -> String {
    let RequestRecord { host, path, .. } = record;
    match () {
        () if path.is_empty() && host.is_empty() => String::new(),
        () if path.is_empty() || path.starts_with('/') || path == "*" => format!("http://{host}{path}"),
        () => path.clone(),
    }
}

/// What happened to it.
fn verdict(record: &RequestRecord) -> Verdict {
    match record.outcome() {
        RequestOutcome::Forwarded => Verdict::Forwarded,
        RequestOutcome::Refused => Verdict::Dropped,
        RequestOutcome::Failed => Verdict::Error,
        RequestOutcome::Unspecified if record.allowed => Verdict::Forwarded,
        RequestOutcome::Unspecified => Verdict::Dropped,
    }
}

/// In Hubble's words, as near as they come to the proxy's.
fn drop_reason(reason: &str) -> DropReason {
    match reason {
        "policy_denied" | "policy_changed" => DropReason::PolicyDenied,
        "bad_request" | "too_many_readings" | "head_too_large" | "expectation_failed" | "connect_refused" => {
            DropReason::InvalidPacketDropped
        }
        "buffers_full" => DropReason::RateLimited,
        _ => DropReason::Unknown,
    }
}

/// Method and URL, as far as they could be read, then what became of it, and why it did not go
/// well.
fn summary(record: &RequestRecord, url: &str) -> String {
    let mut text = record.protocol.clone();
    for part in [&record.method, url] {
        if !part.is_empty() {
            text.push(' ');
            text.push_str(part);
        }
    }
    if record.status != 0 {
        text.push_str(&format!(" {}", record.status));
    }
    if record.grpc_status >= 0 {
        text.push_str(&format!(" grpc-status {}", record.grpc_status));
    }
    match record.detail.as_str() {
        "" if record.reason == "forwarded" => {}
        "" => text.push_str(&format!(" ({})", record.reason)),
        detail => text.push_str(&format!(" ({}: {detail})", record.reason)),
    }
    text
}

/// (allowed by, denied by) of one direction; none if it was not judged here.
fn side(origin: Option<&WireOrigin>, direction: Direction, allowed: bool) -> (Vec<Policy>, Vec<Policy>) {
    let origin = origin.and_then(|origin| Origin::try_from(origin.clone()).ok());
    let policies = origin.map(|origin| convert::policies(&origin, direction, allowed)).unwrap_or_default();
    if allowed { (policies, Vec::new()) } else { (Vec::new(), policies) }
}

/// 4 or 16 bytes; anything else is nobody's address.
fn address(bytes: &[u8]) -> IpAddr {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return IpAddr::V4(Ipv4Addr::from(v4));
    }
    <[u8; 16]>::try_from(bytes)
        .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |v6| Ipv6Addr::from(v6).to_canonical())
}

#[cfg(test)]
mod tests {
    use policy::PolicyKind;

    use super::*;

    fn record(allowed: bool, http_rule: Option<u32>) -> RequestRecord {
        let mut origin = Origin::policy(PolicyKind::CiliumNetworkPolicy, "production", "api");
        (origin.rule, origin.http_rule) = (Some(0), http_rule);
        RequestRecord {
            time_ns: 1_500_000_000_000_000_000,
            latency_ns: 5,
            source: vec![10, 1, 0, 2],
            source_port: 40_000,
            destination: IpAddr::from([10, 1, 0, 3])
                .to_string()
                .parse::<Ipv4Addr>()
                .unwrap()
                .to_ipv6_mapped()
                .octets()
                .to_vec(),
            destination_port: 8080,
            protocol: "HTTP/1.1".into(),
            method: "DELETE".into(),
            path: "/api".into(),
            host: "api:8080".into(),
            status: if allowed { 200 } else { 403 },
            grpc_status: -1,
            allowed,
            reason: if allowed { "forwarded" } else { "policy_denied" }.into(),
            outcome: if allowed { RequestOutcome::Forwarded } else { RequestOutcome::Refused }.into(),
            ingress_origin: Some((&origin).into()),
            ingress_allowed: allowed,
            ..RequestRecord::default()
        }
    }

    #[test]
    fn a_refused_request_names_the_rules_that_had_a_say() {
        let flow = flow(&Snapshot::default(), "n", record(false, None));
        assert_eq!((flow.verdict(), flow.drop_reason_desc()), (Verdict::Dropped, DropReason::PolicyDenied));
        assert_eq!(flow.ingress_denied_by[0].labels, ["selvage.dev/rule=ingress[0]"]);
        assert!(flow.ingress_allowed_by.is_empty() && flow.egress_denied_by.is_empty());
        assert_eq!(flow.summary, "HTTP/1.1 DELETE http://api:8080/api 403 (policy_denied)");
        assert_eq!(flow.event_type.unwrap().r#type, EVENT_L7);
        assert_eq!(flow.ip.unwrap().destination, "10.1.0.3");
    }

    #[test]
    fn an_allowed_request_names_the_very_rule() {
        let flow = flow(&Snapshot::default(), "n", record(true, Some(2)));
        assert_eq!(flow.verdict(), Verdict::Forwarded);
        assert_eq!(flow.ingress_allowed_by[0].labels, ["selvage.dev/rule=ingress[0].http[2]"]);
        let Some(Record::Http(http)) = flow.l7.unwrap().record else { panic!() };
        assert_eq!(
            (http.code, http.method.as_str(), http.url.as_str()),
            (200, "DELETE", "http://api:8080/api")
        );
        assert_eq!(flow.time.unwrap().seconds, 1_500_000_000);
    }

    /// Allowed or not, the verdict says what happened, and the summary names the request and why.
    #[test]
    fn what_was_not_forwarded_is_not_called_so() {
        let ended = |outcome: RequestOutcome, status, reason: &str, detail: &str| RequestRecord {
            outcome: outcome.into(),
            status,
            reason: reason.into(),
            detail: detail.into(),
            ..record(true, Some(2))
        };
        let url = "HTTP/1.1 DELETE http://api:8080/api";
        for (record, verdict, drop_reason, summary) in [
            (
                ended(RequestOutcome::Refused, 400, "bad_request", "Invalid chunked body"),
                Verdict::Dropped,
                DropReason::InvalidPacketDropped,
                format!("{url} 400 (bad_request: Invalid chunked body)"),
            ),
            (
                ended(RequestOutcome::Failed, 503, "upstream_unreachable", ""),
                Verdict::Error,
                DropReason::Unknown,
                format!("{url} 503 (upstream_unreachable)"),
            ),
            (
                ended(RequestOutcome::Failed, 200, "upstream_invalid", "Invalid chunked body"),
                Verdict::Error,
                DropReason::Unknown,
                format!("{url} 200 (upstream_invalid: Invalid chunked body)"),
            ),
            (
                ended(RequestOutcome::Forwarded, 200, "client_gone", ""),
                Verdict::Forwarded,
                DropReason::Unknown,
                format!("{url} 200 (client_gone)"),
            ),
        ] {
            let flow = flow(&Snapshot::default(), "n", record);
            assert_eq!((flow.verdict(), flow.drop_reason_desc()), (verdict, drop_reason), "{summary}");
            assert_eq!(flow.summary, summary);
            assert_eq!(flow.ingress_allowed_by.len(), 1, "policy did allow it");
        }
    }

    #[test]
    fn a_request_that_could_be_read_in_part_is_named_by_that_part() {
        let refused = |method: &str, path: &str, host: &str| {
            let record = RequestRecord {
                method: method.into(),
                path: path.into(),
                host: host.into(),
                status: 400,
                reason: "bad_request".into(),
                detail: "Bare LF".into(),
                ..record(false, None)
            };
            flow(&Snapshot::default(), "n", record).summary
        };
        assert_eq!(refused("", "", ""), "HTTP/1.1 400 (bad_request: Bare LF)");
        assert_eq!(refused("GET", "/a", ""), "HTTP/1.1 GET http:///a 400 (bad_request: Bare LF)");
        assert_eq!(refused("GET", "ftp://b/", "a"), "HTTP/1.1 GET ftp://b/ 400 (bad_request: Bare LF)");
        assert_eq!(
            refused("GET", "/\u{1b}[2J", "a"),
            "HTTP/1.1 GET http://a/\\u{1b}[2J 400 (bad_request: Bare LF)"
        );
    }

    #[test]
    fn a_long_path_is_cut_off_between_characters() {
        let path = "/é".repeat(MAX_TEXT);
        let flow = flow(&Snapshot::default(), "n", RequestRecord { path, ..record(true, None) });
        let Some(Record::Http(http)) = flow.l7.unwrap().record else { panic!() };
        assert!(http.url.ends_with("/...") && http.url.len() < MAX_TEXT + 64, "{}", http.url.len());
    }

    #[test]
    fn an_address_of_a_strange_length_is_nobodys() {
        assert_eq!(address(&[1, 2, 3]), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
}
