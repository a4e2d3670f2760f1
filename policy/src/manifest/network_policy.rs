//! `NetworkPolicy`, `networking.k8s.io/v1`.

use serde::Deserialize;
use serde_json::Value;

use super::ports::NetworkPolicyPort;
use super::reader::{Reader, Unsupported};
use super::selector::{Dialect, Selector};
use super::{DirectionSpec, PeersSpec, PortList, PortsSpec, RuleSpec, Spec, isolate};
use crate::{Action, Direction, PolicyObject};

const UNSUPPORTED_PEERS: &[Unsupported] = &[("ipBlock", "use `podSelector` and `namespaceSelector`")];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSpec {
    pod_selector: Option<Value>,
    policy_types: Option<Vec<PolicyType>>,
    ingress: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
enum PolicyType {
    Ingress,
    Egress,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIngress {
    from: Option<Vec<Value>>,
    ports: Option<Vec<NetworkPolicyPort>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEgress {
    to: Option<Vec<Value>>,
    ports: Option<Vec<NetworkPolicyPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPeer {
    pod_selector: Option<Value>,
    namespace_selector: Option<Value>,
}

/// Reads the spec; None if there is nothing that could be one.
pub(super) fn read(object: &PolicyObject, reader: &mut Reader<'_>) -> Option<Vec<Spec>> {
    let frame = reader.frame(object)?;
    if frame.specs.is_some() {
        reader.problem("specs", "unknown field `specs`: a NetworkPolicy has one `spec`");
        return None;
    }
    let Some(value) = frame.spec else {
        reader.problem("spec", "missing");
        return None;
    };
    let Some(raw) = reader.read::<RawSpec>(&value, "spec") else {
        return Some(vec![isolate(salvage_subject(&value, &object.namespace))]);
    };
    let Some(subject) = read_subject(raw.pod_selector.as_ref(), &object.namespace, reader) else {
        return Some(vec![isolate(Selector::all_of_namespace(&object.namespace))]);
    };
    let types = raw.policy_types.filter(|types| !types.is_empty()).unwrap_or_else(|| {
        let egress = raw.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        if egress { vec![PolicyType::Ingress, PolicyType::Egress] } else { vec![PolicyType::Ingress] }
    });
    let mut direction = |direction, policy_type, list: Option<Vec<Value>>| {
        if types.contains(&policy_type) {
            read_direction(direction, &list.unwrap_or_default(), &object.namespace, reader)
        } else {
            DirectionSpec::default()
        }
    };
    let ingress = direction(Direction::Ingress, PolicyType::Ingress, raw.ingress);
    let egress = direction(Direction::Egress, PolicyType::Egress, raw.egress);
    Some(vec![Spec { subject, ingress, egress }])
}

fn read_subject(value: Option<&Value>, namespace: &str, reader: &mut Reader<'_>) -> Option<Selector> {
    let mut subject = match value {
        Some(value) => Selector::read(value, Dialect::Pod, "spec.podSelector", reader)?,
        None => Selector::default(),
    };
    subject.require_namespace(namespace);
    Some(subject)
}

/// Whom an otherwise unreadable spec selects; the whole namespace if not even that can be read.
fn salvage_subject(value: &Value, namespace: &str) -> Selector {
    let mut unnoted = Vec::new();
    let mut reader = Reader::silent(&mut unnoted);
    read_subject(value.get("podSelector"), namespace, &mut reader)
        .unwrap_or_else(|| Selector::all_of_namespace(namespace))
}

fn read_direction(
    direction: Direction,
    list: &[Value],
    namespace: &str,
    reader: &mut Reader<'_>,
) -> DirectionSpec {
    let mut rules = Vec::new();
    for (index, value) in (0u32..).zip(list) {
        let place = format!("spec.{direction}[{index}]");
        rules.extend(read_rule(direction, value, index, namespace, &place, reader));
    }
    DirectionSpec { isolates: true, rules }
}

fn read_rule(
    direction: Direction,
    value: &Value,
    index: u32,
    namespace: &str,
    place: &str,
    reader: &mut Reader<'_>,
) -> Option<RuleSpec> {
    let (peers, ports, side) = match direction {
        Direction::Ingress => {
            let raw: RawIngress = reader.read(value, place)?;
            (raw.from, raw.ports, "from")
        }
        Direction::Egress => {
            let raw: RawEgress = reader.read(value, place)?;
            (raw.to, raw.ports, "to")
        }
    };
    let peers = match peers.filter(|list| !list.is_empty()) {
        None => PeersSpec::Any,
        Some(list) => read_peers(&list, namespace, &format!("{place}.{side}"), reader)?,
    };
    let ports = match ports.filter(|list| !list.is_empty()) {
        None => PortsSpec::any(),
        Some(list) => read_ports(&list, place, reader)?,
    };
    Some(RuleSpec { index, action: Action::Allow, peers, ports: vec![ports] })
}

fn read_peers(list: &[Value], namespace: &str, place: &str, reader: &mut Reader<'_>) -> Option<PeersSpec> {
    let mut selectors = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let place = format!("{place}[{index}]");
        if !reader.supported(value, &place, UNSUPPORTED_PEERS) {
            return None;
        }
        let raw: RawPeer = reader.read(value, &place)?;
        let mut read = |field: &str, dialect, value: Option<&Value>| match value {
            Some(value) => Selector::read(value, dialect, &format!("{place}.{field}"), reader).map(Some),
            None => Some(None),
        };
        let pods = read("podSelector", Dialect::Pod, raw.pod_selector.as_ref())?;
        let namespaces = read("namespaceSelector", Dialect::Namespace, raw.namespace_selector.as_ref())?;
        selectors.push(match (pods, namespaces) {
            (pods, Some(namespaces)) => namespaces.and(pods.unwrap_or_default()),
            (Some(mut pods), None) => {
                pods.require_namespace(namespace);
                pods
            }
            (None, None) => {
                reader.problem(&place, "names nobody: write `podSelector` or `namespaceSelector`");
                return None;
            }
        });
    }
    Some(PeersSpec::Selected { selectors, reserved: Vec::new(), every_pod: false })
}

fn read_ports(list: &[NetworkPolicyPort], place: &str, reader: &mut Reader<'_>) -> Option<PortsSpec> {
    let mut ports = Vec::with_capacity(list.len());
    for (index, raw) in list.iter().enumerate() {
        match raw.resolve() {
            Ok(port) => ports.push(port),
            Err((field, message)) => {
                reader.problem(&format!("{place}.ports[{index}].{field}"), message);
                return None;
            }
        }
    }
    Some(PortsSpec { ports: PortList::Listed(ports), http: None })
}
