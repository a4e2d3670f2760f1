//! Flows as Hubble writes them for people:
//! `TIME [NODE]: SOURCE (IDENTITY) ARROW DESTINATION (IDENTITY) TYPE VERDICT [BY POLICY] (SUMMARY)`.

use api::flow::{
    DropReason, Endpoint, Flow, Layer7, LostEvent, Policy, TrafficDirection, Verdict, layer4, layer7,
};
use api::observer::GetFlowsResponse;
use api::observer::get_flows_response::ResponseTypes;

/// Kinds of events, as Cilium numbers them.
const EVENT_DROP: i32 = 1;
const EVENT_POLICY_VERDICT: i32 = 5;

/// Label of a policy that carries the rule, for which Hubble has no field.
const RULE_LABEL: &str = "selvage.dev/rule=";

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// One response of `GetFlows` as one line.
pub fn line(response: &GetFlowsResponse) -> String {
    let time = response.time.as_ref().map(|time| stamp(&time.to_string())).unwrap_or_default();
    let node =
        if response.node_name.is_empty() { String::new() } else { format!(" [{}]", response.node_name) };
    match &response.response_types {
        Some(ResponseTypes::Flow(found)) => format!("{time}{node}: {}", flow(found)),
        Some(ResponseTypes::LostEvents(lost)) => format!("{time}{node}: {}", lost_events(lost)),
        Some(ResponseTypes::NodeStatus(status)) => format!("{time}{node}: {}", status.message),
        None => format!("{time}{node}: nothing"),
    }
}

fn lost_events(lost: &LostEvent) -> String {
    let number = match lost.num_events_lost {
        0 => "EVENTS".to_owned(),
        number => format!("{number} EVENTS"),
    };
    match (&lost.first, &lost.last) {
        (Some(first), Some(last)) => {
            format!("{number} LOST from {} to {}", stamp(&first.to_string()), stamp(&last.to_string()))
        }
        _ => format!("{number} LOST"),
    }
}

/// `Nov 21 03:08:40.123` of an RFC 3339 time, in UTC.
fn stamp(time: &str) -> String {
    let (Some(month), Some(day), Some(clock)) = (time.get(5..7), time.get(8..10), time.get(11..)) else {
        return time.to_owned();
    };
    let month =
        month.parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1))).unwrap_or(&"");
    let clock = clock.trim_end_matches('Z');
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let milliseconds: String = fraction.chars().chain("000".chars()).take(3).collect();
    format!("{month} {:>2} {seconds}.{milliseconds}", day.trim_start_matches('0'))
}

fn flow(flow: &Flow) -> String {
    let ip = flow.ip.clone().unwrap_or_default();
    let (source_port, destination_port) = ports(flow);
    let mut source = side(flow.source.as_ref(), &ip.source, source_port);
    let mut destination = side(flow.destination.as_ref(), &ip.destination, destination_port);
    let arrow = match flow.is_reply {
        None => "<>",
        Some(false) => "->",
        Some(true) => {
            std::mem::swap(&mut source, &mut destination);
            "<-"
        }
    };
    let summary = summary(flow);
    let (kind, verdict) = (kind(flow), verdict(flow));
    let line = format!("{source} {arrow} {destination} {kind} {verdict}{}", by(flow));
    if summary.is_empty() { line } else { format!("{line} ({summary})") }
}

fn ports(flow: &Flow) -> (u32, u32) {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(layer4::Protocol::Tcp(tcp)) => (tcp.source_port, tcp.destination_port),
        Some(layer4::Protocol::Udp(udp)) => (udp.source_port, udp.destination_port),
        Some(layer4::Protocol::Sctp(sctp)) => (sctp.source_port, sctp.destination_port),
        _ => (0, 0),
    }
}

/// `production/frontend:40000 (ID:257)`, `172.31.1.2:22 (host)`.
fn side(endpoint: Option<&Endpoint>, address: &str, port: u32) -> String {
    let pod = endpoint.filter(|endpoint| !endpoint.pod_name.is_empty());
    let name = pod.map_or_else(|| address.to_owned(), |pod| format!("{}/{}", pod.namespace, pod.pod_name));
    let port = if port == 0 { String::new() } else { format!(":{port}") };
    let identity = match endpoint.map_or(0, |endpoint| endpoint.identity) {
        0 => "unknown".to_owned(),
        1 => "host".to_owned(),
        2 => "world".to_owned(),
        3 => "unmanaged".to_owned(),
        6 => "remote-node".to_owned(),
        number => format!("ID:{number}"),
    };
    format!("{name}{port} ({identity})")
}

fn kind(flow: &Flow) -> String {
    if let Some(Layer7 { record: Some(layer7::Record::Http(_)), r#type, .. }) = &flow.l7 {
        let is_response = *r#type == i32::from(api::flow::L7FlowType::Response);
        return if is_response { "http-response" } else { "http-request" }.to_owned();
    }
    match flow.event_type.as_ref().map_or(0, |kind| kind.r#type) {
        EVENT_POLICY_VERDICT => {
            format!("policy-verdict:{} {}", match_type(flow.policy_match_type), direction(flow))
        }
        EVENT_DROP => drop_text(flow.drop_reason_desc),
        number => format!("event:{number}"),
    }
}

const fn match_type(number: u32) -> &'static str {
    match number {
        1 => "L3-Only",
        2 => "L3-L4",
        3 => "L4-Only",
        4 => "all",
        5 => "L3-Proto",
        6 => "Proto-Only",
        _ => "none",
    }
}

fn direction(flow: &Flow) -> &'static str {
    match TrafficDirection::try_from(flow.traffic_direction) {
        Ok(TrafficDirection::Ingress) => "INGRESS",
        Ok(TrafficDirection::Egress) => "EGRESS",
        _ => "UNKNOWN",
    }
}

/// `POLICY_DENIED` as "Policy denied".
fn drop_text(number: i32) -> String {
    let Ok(reason) = DropReason::try_from(number) else { return format!("drop reason {number}") };
    let text = reason.as_str_name().to_lowercase().replace('_', " ");
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn verdict(flow: &Flow) -> &'static str {
    let is_policy_verdict = flow.event_type.as_ref().is_some_and(|kind| kind.r#type == EVENT_POLICY_VERDICT);
    match Verdict::try_from(flow.verdict) {
        Ok(Verdict::Forwarded) if is_policy_verdict => "ALLOWED",
        Ok(Verdict::Dropped) if is_policy_verdict => "DENIED",
        Ok(verdict) => verdict.as_str_name(),
        Err(_) => "VERDICT_UNKNOWN",
    }
}

/// ` BY api-l7-policy ingress[0].http[1] (CiliumNetworkPolicy)`, one for each direction that was
/// judged. Empty for an error, which no policy caused.
fn by(flow: &Flow) -> String {
    let denied = flow.egress_denied_by.iter().chain(&flow.ingress_denied_by);
    let allowed = flow.egress_allowed_by.iter().chain(&flow.ingress_allowed_by);
    let policies: Vec<_> = match Verdict::try_from(flow.verdict) {
        Ok(Verdict::Error) => Vec::new(),
        Ok(Verdict::Dropped) => denied.map(policy).collect(),
        _ => allowed.map(policy).collect(),
    };
    if policies.is_empty() { String::new() } else { format!(" BY {}", policies.join(", ")) }
}

fn policy(policy: &Policy) -> String {
    let rule = policy.labels.iter().find_map(|label| label.strip_prefix(RULE_LABEL));
    let rule = rule.map(|rule| format!(" {rule}")).unwrap_or_default();
    let kind = if policy.kind.is_empty() { String::new() } else { format!(" ({})", policy.kind) };
    format!("{}{rule}{kind}", policy.name)
}

/// What the agent says of it, else what can be said of a request.
fn summary(flow: &Flow) -> String {
    let Some(Layer7 { record: Some(layer7::Record::Http(http)), latency_ns, r#type }) = &flow.l7 else {
        return flow.summary.clone();
    };
    if !flow.summary.is_empty() {
        return flow.summary.clone();
    }
    let request = format!("{} {}", http.method, http.url);
    let answered = http.code != 0 && *r#type != i32::from(api::flow::L7FlowType::Request);
    match answered {
        true => format!("{} {} {}ms ({request})", http.protocol, http.code, latency_ns / 1_000_000),
        false if http.code == 0 => format!("{} {request}", http.protocol),
        false => format!("{} {request} {}", http.protocol, http.code),
    }
}

#[cfg(test)]
mod tests {
    use api::flow::{CiliumEventType, Http, Ip, Layer4, Tcp};

    use super::*;

    fn flow_of(verdict: Verdict, event: i32) -> Flow {
        let pod = |name: &str, identity| {
            Some(Endpoint {
                identity,
                namespace: "production".into(),
                pod_name: name.into(),
                ..Endpoint::default()
            })
        };
        let tcp = Tcp { source_port: 40000, destination_port: 8080, flags: None };
        Flow {
            verdict: verdict.into(),
            ip: Some(Ip { source: "10.1.0.2".into(), destination: "10.1.0.3".into(), ..Ip::default() }),
            l4: Some(Layer4 { protocol: Some(layer4::Protocol::Tcp(tcp)) }),
            source: pod("frontend", 257),
            destination: pod("api", 258),
            event_type: Some(CiliumEventType { r#type: event, sub_type: 0 }),
            traffic_direction: TrafficDirection::Ingress.into(),
            is_reply: Some(false),
            ..Flow::default()
        }
    }

    fn line_of(flow: Flow) -> String {
        line(&GetFlowsResponse {
            node_name: "node-1".into(),
            time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            response_types: Some(ResponseTypes::Flow(flow)),
        })
    }

    #[test]
    fn a_policy_verdict_names_its_policy_and_rule() {
        let mut flow = flow_of(Verdict::Redirected, EVENT_POLICY_VERDICT);
        flow.policy_match_type = 2;
        flow.summary = "TCP Flags: SYN".into();
        flow.ingress_allowed_by = vec![Policy {
            name: "api-l7".into(),
            kind: "CiliumNetworkPolicy".into(),
            labels: vec!["selvage.dev/rule=ingress[0]".into()],
            ..Policy::default()
        }];
        assert_eq!(
            line_of(flow),
            "Nov 14 22:13:20.005 [node-1]: production/frontend:40000 (ID:257) -> production/api:8080 (ID:258) \
             policy-verdict:L3-L4 INGRESS REDIRECTED BY api-l7 ingress[0] (CiliumNetworkPolicy) (TCP Flags: SYN)"
        );
    }

    #[test]
    fn a_drop_names_its_reason_and_the_world_its_address() {
        let mut flow = flow_of(Verdict::Dropped, EVENT_DROP);
        flow.source = Some(Endpoint { identity: 2, ..Endpoint::default() });
        flow.drop_reason_desc = DropReason::PolicyDenied.into();
        let line = line_of(flow);
        assert!(
            line.ends_with("10.1.0.2:40000 (world) -> production/api:8080 (ID:258) Policy denied DROPPED"),
            "{line}"
        );
    }

    #[test]
    fn a_request_that_failed_is_an_error_and_blames_no_policy() {
        let mut flow = flow_of(Verdict::Error, 129);
        flow.summary = "HTTP/1.1 GET http://a/b 503 (upstream_unreachable)".into();
        flow.l7 = Some(Layer7 { record: Some(layer7::Record::Http(Http::default())), ..Layer7::default() });
        flow.ingress_allowed_by = vec![Policy { name: "api-l7".into(), ..Policy::default() }];
        let line = line_of(flow);
        let end = "http-request ERROR (HTTP/1.1 GET http://a/b 503 (upstream_unreachable))";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn a_request_shows_what_was_asked_and_a_reply_turns_the_arrow() {
        let mut flow = flow_of(Verdict::Forwarded, 129);
        let http = Http {
            code: 200,
            method: "GET".into(),
            url: "http://a/b".into(),
            protocol: "HTTP/1.1".into(),
            headers: vec![],
        };
        flow.l7 = Some(Layer7 { r#type: 2, latency_ns: 3_400_000, record: Some(layer7::Record::Http(http)) });
        flow.is_reply = Some(true);
        let line = line_of(flow);
        assert!(
            line.contains("production/api:8080 (ID:258) <- production/frontend:40000 (ID:257) http-response"),
            "{line}"
        );
        assert!(line.ends_with("FORWARDED (HTTP/1.1 200 3ms (GET http://a/b))"), "{line}");
    }
}
