//! Flows as Hubble writes them in JSON: proto3's mapping with the field names of the `.proto` files in their exact case, enums
//! by name, 64-bit numbers as text, and what has its default value left out.

use api::flow::{Endpoint, Flow, Layer4, Layer7, Policy, layer4, layer7};
use api::observer::GetFlowsResponse;
use api::observer::get_flows_response::ResponseTypes;
use serde_json::{Map, Value, json};

macro_rules! enum_name {
    ($kind:ty, $number:expr) => {
        named(<$kind>::try_from($number).ok().map(|value| value.as_str_name()), $number)
    };
}

/// One response of `GetFlows`, to be written as one line.
pub fn response(response: &GetFlowsResponse) -> Value {
    let mut object = Map::new();
    match &response.response_types {
        Some(ResponseTypes::Flow(found)) => put(&mut object, "flow", flow(found)),
        Some(ResponseTypes::LostEvents(lost)) => {
            let mut events = Map::new();
            put(&mut events, "num_events_lost", big(lost.num_events_lost));
            put(&mut events, "first", time(lost.first.as_ref()));
            put(&mut events, "last", time(lost.last.as_ref()));
            object.insert("lost_events".to_owned(), Value::Object(events));
        }
        Some(ResponseTypes::NodeStatus(status)) => {
            let status = fields([
                ("state_change", enum_name!(api::observer::NodeState, status.state_change)),
                ("node_names", json!(status.node_names)),
                ("message", json!(status.message)),
            ]);
            object.insert("node_status".to_owned(), status);
        }
        None => {}
    }
    put(&mut object, "node_name", json!(response.node_name));
    put(&mut object, "time", time(response.time.as_ref()));
    Value::Object(object)
}

/// Adds a field, unless it has its default value.
fn put(object: &mut Map<String, Value>, name: &str, value: Value) {
    let is_default = match &value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(_) => false,
    };
    if !is_default {
        object.insert(name.to_owned(), value);
    }
}

/// An object of those fields that do not have their default value.
fn fields<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let mut object = Map::new();
    for (name, value) in fields {
        put(&mut object, name, value);
    }
    Value::Object(object)
}

fn big(number: u64) -> Value {
    if number == 0 { Value::Null } else { json!(number.to_string()) }
}

fn time(time: Option<&prost_types::Timestamp>) -> Value {
    time.map_or(Value::Null, |time| json!(time.to_string()))
}

/// Name of an enum's value; the number, should this program be older than the agent.
fn named(name: Option<&'static str>, number: i32) -> Value {
    if number == 0 { Value::Null } else { name.map_or_else(|| json!(number), |name| json!(name)) }
}

fn flow(flow: &Flow) -> Value {
    let ip = flow.ip.as_ref().map(|ip| {
        fields([
            ("source", json!(ip.source)),
            ("destination", json!(ip.destination)),
            ("ipVersion", enum_name!(api::flow::IpVersion, ip.ip_version)),
            ("encrypted", json!(ip.encrypted)),
        ])
    });
    let event_type = flow.event_type.as_ref();
    let event_type =
        event_type.map(|kind| fields([("type", json!(kind.r#type)), ("sub_type", json!(kind.sub_type))]));
    let mut value = fields([
        ("time", time(flow.time.as_ref())),
        ("verdict", enum_name!(api::flow::Verdict, flow.verdict)),
        ("IP", ip.unwrap_or_default()),
        ("l4", flow.l4.as_ref().map(layer4).unwrap_or_default()),
        ("source", flow.source.as_ref().map(endpoint).unwrap_or_default()),
        ("destination", flow.destination.as_ref().map(endpoint).unwrap_or_default()),
        ("Type", enum_name!(api::flow::FlowType, flow.r#type)),
        ("node_name", json!(flow.node_name)),
        ("l7", flow.l7.as_ref().map(layer7).unwrap_or_default()),
        ("event_type", event_type.unwrap_or_default()),
        ("traffic_direction", enum_name!(api::flow::TrafficDirection, flow.traffic_direction)),
        ("policy_match_type", json!(flow.policy_match_type)),
        ("drop_reason_desc", enum_name!(api::flow::DropReason, flow.drop_reason_desc)),
        ("uuid", json!(flow.uuid)),
        ("Summary", json!(flow.summary)),
        ("egress_allowed_by", policies(&flow.egress_allowed_by)),
        ("ingress_allowed_by", policies(&flow.ingress_allowed_by)),
        ("egress_denied_by", policies(&flow.egress_denied_by)),
        ("ingress_denied_by", policies(&flow.ingress_denied_by)),
    ]);
    // A wrapper type: present and false is not the same as absent.
    if let Some(is_reply) = flow.is_reply {
        value["is_reply"] = json!(is_reply);
    }
    value
}

fn endpoint(endpoint: &Endpoint) -> Value {
    fields([
        ("ID", json!(endpoint.id)),
        ("identity", json!(endpoint.identity)),
        ("namespace", json!(endpoint.namespace)),
        ("labels", json!(endpoint.labels)),
        ("pod_name", json!(endpoint.pod_name)),
    ])
}

fn policies(policies: &[Policy]) -> Value {
    let policy = |policy: &Policy| {
        fields([
            ("name", json!(policy.name)),
            ("namespace", json!(policy.namespace)),
            ("labels", json!(policy.labels)),
            ("revision", big(policy.revision)),
            ("kind", json!(policy.kind)),
        ])
    };
    Value::Array(policies.iter().map(policy).collect())
}

fn layer4(layer4: &Layer4) -> Value {
    let ports = |source: u32, destination: u32| {
        fields([("source_port", json!(source)), ("destination_port", json!(destination))])
    };
    let icmp = |kind: u32, code: u32| fields([("type", json!(kind)), ("code", json!(code))]);
    match &layer4.protocol {
        Some(layer4::Protocol::Tcp(tcp)) => {
            let mut value = ports(tcp.source_port, tcp.destination_port);
            if let Some(flags) = &tcp.flags {
                value["flags"] = fields([
                    ("FIN", json!(flags.fin)),
                    ("SYN", json!(flags.syn)),
                    ("RST", json!(flags.rst)),
                    ("PSH", json!(flags.psh)),
                    ("ACK", json!(flags.ack)),
                    ("URG", json!(flags.urg)),
                    ("ECE", json!(flags.ece)),
                    ("CWR", json!(flags.cwr)),
                    ("NS", json!(flags.ns)),
                ]);
            }
            json!({"TCP": value})
        }
        Some(layer4::Protocol::Udp(udp)) => json!({"UDP": ports(udp.source_port, udp.destination_port)}),
        Some(layer4::Protocol::Sctp(sctp)) => json!({"SCTP": ports(sctp.source_port, sctp.destination_port)}),
        Some(layer4::Protocol::IcmPv4(packet)) => json!({"ICMPv4": icmp(packet.r#type, packet.code)}),
        Some(layer4::Protocol::IcmPv6(packet)) => json!({"ICMPv6": icmp(packet.r#type, packet.code)}),
        None => json!({}),
    }
}

fn layer7(layer7: &Layer7) -> Value {
    let mut value = fields([
        ("type", enum_name!(api::flow::L7FlowType, layer7.r#type)),
        ("latency_ns", big(layer7.latency_ns)),
    ]);
    if let Some(layer7::Record::Http(http)) = &layer7.record {
        let header = |header: &api::flow::HttpHeader| {
            fields([("key", json!(header.key)), ("value", json!(header.value))])
        };
        value["http"] = fields([
            ("code", json!(http.code)),
            ("method", json!(http.method)),
            ("url", json!(http.url)),
            ("protocol", json!(http.protocol)),
            ("headers", Value::Array(http.headers.iter().map(header).collect())),
        ]);
    }
    value
}

#[cfg(test)]
mod tests {
    use api::flow::{CiliumEventType, Http, Ip, Tcp, TcpFlags};

    use super::*;

    #[test]
    fn names_enums_and_numbers_are_hubbles() {
        let time = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 };
        let flow = Flow {
            time: Some(time),
            verdict: api::flow::Verdict::Dropped.into(),
            ip: Some(Ip {
                source: "10.1.0.2".into(),
                destination: "10.1.0.3".into(),
                ip_version: 1,
                encrypted: false,
            }),
            l4: Some(Layer4 {
                protocol: Some(layer4::Protocol::Tcp(Tcp {
                    source_port: 40000,
                    destination_port: 8080,
                    flags: Some(TcpFlags { syn: true, ..TcpFlags::default() }),
                })),
            }),
            r#type: api::flow::FlowType::L7.into(),
            l7: Some(Layer7 {
                r#type: api::flow::L7FlowType::Request.into(),
                latency_ns: 1_500_000,
                record: Some(layer7::Record::Http(Http {
                    code: 403,
                    method: "GET".into(),
                    ..Http::default()
                })),
            }),
            event_type: Some(CiliumEventType { r#type: 129, sub_type: 0 }),
            drop_reason_desc: api::flow::DropReason::PolicyDenied.into(),
            is_reply: Some(false),
            ingress_denied_by: vec![Policy {
                name: "p".into(),
                kind: "CiliumNetworkPolicy".into(),
                ..Policy::default()
            }],
            ..Flow::default()
        };
        let all = GetFlowsResponse {
            node_name: "node-1".into(),
            time: Some(time),
            response_types: Some(ResponseTypes::Flow(flow)),
        };
        let expected = json!({
            "flow": {
                "time": "2023-11-14T22:13:20.123Z",
                "verdict": "DROPPED",
                "IP": {"source": "10.1.0.2", "destination": "10.1.0.3", "ipVersion": "IPv4"},
                "l4": {"TCP": {"source_port": 40000, "destination_port": 8080, "flags": {"SYN": true}}},
                "Type": "L7",
                "l7": {"type": "REQUEST", "latency_ns": "1500000", "http": {"code": 403, "method": "GET"}},
                "event_type": {"type": 129},
                "drop_reason_desc": "POLICY_DENIED",
                "is_reply": false,
                "ingress_denied_by": [{"name": "p", "kind": "CiliumNetworkPolicy"}],
            },
            "node_name": "node-1",
            "time": "2023-11-14T22:13:20.123Z",
        });
        assert_eq!(response(&all), expected);
    }
}
