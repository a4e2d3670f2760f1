//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`, `cilium.io/v2`.

use serde::Deserialize;
use serde_json::Value;

use super::element::Context;
use super::reader::Reader;
use super::selector::{Dialect, Selector};
use super::{DirectionSpec, Spec, isolate};
use crate::{Action, Direction, PolicyObject};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSpec {
    endpoint_selector: Option<Value>,
    node_selector: Option<Value>,
    ingress: Option<Vec<Value>>,
    ingress_deny: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
    egress_deny: Option<Vec<Value>>,
    enable_default_deny: Option<RawDefaultDeny>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "labels")]
    _labels: Option<Value>,
    log: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawDefaultDeny {
    ingress: Option<bool>,
    egress: Option<bool>,
}

/// How many elements of each list the specs before had: rules are numbered over all specs.
#[derive(Default)]
struct Counts {
    ingress: [u32; 2],
    egress: [u32; 2],
}

/// Reads the specs; None if there is nothing that could be one.
pub(super) fn read(object: &PolicyObject, reader: &mut Reader<'_>) -> Option<Vec<Spec>> {
    let frame = reader.frame(object)?;
    if frame.spec.is_none() && frame.specs.as_ref().is_none_or(Vec::is_empty) {
        reader.problem("spec", "missing: write `spec` or `specs`");
        return None;
    }
    let single = frame.spec.iter().map(|value| ("spec".to_owned(), value));
    let several = frame.specs.iter().flatten().enumerate();
    let several = several.map(|(index, value)| (format!("specs[{index}]"), value));
    let mut counts = Counts::default();
    Some(
        single
            .chain(several)
            .filter_map(|(place, value)| read_spec(value, &object.namespace, &place, &mut counts, reader))
            .collect(),
    )
}

/// Reads one spec. None: it is invalid in a way that Cilium does not enforce at all.
fn read_spec(
    value: &Value,
    namespace: &str,
    place: &str,
    counts: &mut Counts,
    reader: &mut Reader<'_>,
) -> Option<Spec> {
    let Some(raw) = reader.read::<RawSpec>(value, place) else {
        return Some(isolate(salvage_subject(value, namespace)));
    };
    if raw.node_selector.is_some() {
        reader.problem(&format!("{place}.nodeSelector"), "policy for nodes is not supported yet: remove it");
        // It selects nodes: there is no pod to isolate.
        return raw.endpoint_selector.map(|_| isolate(salvage_subject(value, namespace)));
    }
    let lists = [&raw.ingress, &raw.ingress_deny, &raw.egress, &raw.egress_deny];
    if lists.into_iter().flatten().all(Vec::is_empty) {
        let message =
            "has no rule: write at least one of ingress, ingressDeny, egress, egressDeny. Not enforced";
        reader.problem(place, message);
        return None;
    }
    if raw.log.is_some() {
        reader.problem(&format!("{place}.log"), "not shown in flows yet; the rules are enforced");
    }
    let Some(subject) = read_subject(raw.endpoint_selector.as_ref(), namespace, place, reader) else {
        return Some(isolate(Selector::all_of_namespace(namespace)));
    };
    let default_deny = raw.enable_default_deny.unwrap_or_default();
    let mut direction =
        |direction, default_deny: Option<bool>, allow: Option<Vec<_>>, deny: Option<Vec<_>>| {
            let lists =
                [(Action::Allow, allow.unwrap_or_default()), (Action::Deny, deny.unwrap_or_default())];
            read_direction(direction, default_deny, lists, namespace, place, counts, reader)
        };
    let ingress = direction(Direction::Ingress, default_deny.ingress, raw.ingress, raw.ingress_deny);
    let egress = direction(Direction::Egress, default_deny.egress, raw.egress, raw.egress_deny);
    Some(Spec { subject, ingress, egress })
}

fn read_direction(
    direction: Direction,
    default_deny: Option<bool>,
    lists: [(Action, Vec<Value>); 2],
    namespace: &str,
    place: &str,
    counts: &mut Counts,
    reader: &mut Reader<'_>,
) -> DirectionSpec {
    let counts = match direction {
        Direction::Ingress => &mut counts.ingress,
        Direction::Egress => &mut counts.egress,
    };
    let isolates = default_deny.unwrap_or_else(|| lists.iter().any(|(_, list)| !list.is_empty()));
    let mut rules = Vec::new();
    for ((action, list), count) in lists.into_iter().zip(counts) {
        let context = Context { namespace, direction, action };
        for (index, value) in list.iter().enumerate() {
            let place = format!("{place}.{}[{index}]", context.list());
            rules.extend(context.read(value, *count, &place, reader));
            *count = count.saturating_add(1);
        }
    }
    DirectionSpec { isolates, rules }
}

fn read_subject(
    value: Option<&Value>,
    namespace: &str,
    place: &str,
    reader: &mut Reader<'_>,
) -> Option<Selector> {
    let place = format!("{place}.endpointSelector");
    let Some(value) = value else {
        reader.problem(&place, "missing: write `endpointSelector: {}` to select every pod");
        return None;
    };
    let mut subject = Selector::read(value, Dialect::Cilium, &place, reader)?;
    if !namespace.is_empty() {
        if subject.drop_other_namespaces(namespace) {
            let message =
                format!("names another namespace; it selects from its own, `{namespace}`, all the same");
            reader.problem(&place, message);
        }
        subject.require_namespace(namespace);
    }
    Some(subject)
}

/// Whom a spec that is otherwise unreadable selects; everyone it may select if not even that can be read.
fn salvage_subject(value: &Value, namespace: &str) -> Selector {
    let mut unnoted = Vec::new();
    let mut reader = Reader::silent(&mut unnoted);
    read_subject(value.get("endpointSelector"), namespace, "", &mut reader)
        .unwrap_or_else(|| Selector::all_of_namespace(namespace))
}
