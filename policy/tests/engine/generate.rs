//! Random manifests of policies, valid and full of corner cases: empty lists, absent fields, overlapping ports.

use policy::PolicyKind;
use proptest::prelude::*;
use serde_json::{Value, json};

fn maybe(strategy: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Option<Value>> {
    prop::option::of(strategy).boxed()
}

/// An object of the fields that are there.
fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let build = move |values: Vec<Option<Value>>| {
        let present = names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(present.collect())
    };
    values.prop_map(build).boxed()
}

pub(crate) fn one(choices: &[&str]) -> BoxedStrategy<Value> {
    prop::sample::select(choices.iter().map(|choice| json!(choice)).collect::<Vec<_>>()).boxed()
}

fn list(element: BoxedStrategy<Value>, most: usize) -> BoxedStrategy<Value> {
    prop::collection::vec(element, 0..=most).prop_map(Value::Array).boxed()
}

fn selector(keys: &'static [&'static str]) -> BoxedStrategy<Value> {
    let value = || prop::sample::select(vec!["a", "b", "live", "test", "production", "staging"]);
    let labels = prop::collection::btree_map(prop::sample::select(keys.to_vec()), value(), 0..2);
    let operator = prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    let expression = (prop::sample::select(keys.to_vec()), operator, prop::collection::vec(value(), 1..3));
    let expression = expression.prop_map(|(key, operator, values)| {
        let takes_values = operator == "In" || operator == "NotIn";
        json!({"key": key, "operator": operator, "values": if takes_values { json!(values) } else { json!(null) }})
    });
    object(vec![
        ("matchLabels", maybe(labels.prop_map(|labels| json!(labels)))),
        ("matchExpressions", prop::option::weighted(0.3, list(expression.boxed(), 1)).boxed()),
    ])
}

const POD_KEYS: &[&str] = &["app", "tier"];
const CILIUM_KEYS: &[&str] = &[
    "app",
    "app",
    "k8s:app",
    "any:tier",
    "io.kubernetes.pod.namespace",
    "io.cilium.k8s.namespace.labels.env",
];

fn cilium_ports(l7: bool) -> BoxedStrategy<Value> {
    let number = |protocols: &'static [&'static str]| {
        let port = one(&["80", "81", "90", "8080", "web", "dns", "0"]);
        (port, prop::option::of(one(protocols)), 0..3u64).prop_map(|(port, protocol, width)| {
            let mut entry = json!({"port": port});
            if let Some(first) =
                port.as_str().and_then(|port| port.parse::<u64>().ok()).filter(|port| *port > 0)
            {
                entry["endPort"] = json!(if width == 0 { 0 } else { first + width });
            }
            if let Some(protocol) = protocol {
                entry["protocol"] = protocol;
            }
            entry
        })
    };
    let plain = list(number(&["TCP", "UDP", "SCTP", "ANY"]).boxed(), 2);
    let plain = object(vec![
        ("ports", maybe(plain)),
        ("rules", prop::option::weighted(0.2, Just(json!({"http": []}))).boxed()),
    ]);
    if !l7 {
        return plain
            .prop_map(|mut element| {
                element.as_object_mut().unwrap().remove("rules");
                element
            })
            .boxed();
    }
    let judged = one(&["80", "81", "8080", "web"]).prop_map(|port| json!({"port": port, "protocol": "TCP"}));
    let rule = object(vec![
        ("method", maybe(one(&["GET", "GET|POST", ""]))),
        ("path", maybe(one(&["/a", "/a.*", "/[ab]", ".*/x", ""]))),
    ]);
    let judged = (list(judged.boxed(), 2), prop::collection::vec(rule, 1..3));
    let judged = judged.prop_map(|(ports, rules)| json!({"ports": ports, "rules": {"http": rules}}));
    prop_oneof![plain, judged].boxed()
}

fn cilium_element(side: &'static str, l7: bool) -> BoxedStrategy<Value> {
    let entities = list(one(&["all", "cluster", "host", "remote-node", "world", "none"]), 2);
    let (endpoints_field, entities_field) =
        if side == "from" { ("fromEndpoints", "fromEntities") } else { ("toEndpoints", "toEntities") };
    let ports = || prop::option::weighted(0.7, list(cilium_ports(l7), 2)).boxed();
    prop_oneof![
        4 => object(vec![(endpoints_field, maybe(list(selector(CILIUM_KEYS), 2))), ("toPorts", ports())]),
        1 => object(vec![(entities_field, maybe(entities)), ("toPorts", ports())]),
    ]
    .boxed()
}

fn cilium_spec() -> BoxedStrategy<Value> {
    let rules = |side, l7| prop::option::weighted(0.5, list(cilium_element(side, l7), 2)).boxed();
    let denies = |side| prop::option::weighted(0.2, list(cilium_element(side, false), 1)).boxed();
    let flag = || prop::option::weighted(0.2, any::<bool>().prop_map(|flag| json!(flag))).boxed();
    let spec = object(vec![
        ("endpointSelector", selector(POD_KEYS).prop_map(Some).boxed()),
        ("ingress", rules("from", true)),
        ("ingressDeny", denies("from")),
        ("egress", rules("to", true)),
        ("egressDeny", denies("to")),
        ("enableDefaultDeny", maybe(object(vec![("ingress", flag()), ("egress", flag())]))),
    ]);
    spec.prop_filter("a spec without any rule is invalid", |spec| {
        let lists = ["ingress", "ingressDeny", "egress", "egressDeny"];
        lists.iter().any(|list| spec[list].as_array().is_some_and(|list| !list.is_empty()))
    })
    .boxed()
}

fn kubernetes_spec() -> BoxedStrategy<Value> {
    let peer = prop_oneof![
        selector(POD_KEYS).prop_map(|pods| json!({"podSelector": pods})),
        selector(&["env"]).prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(POD_KEYS), selector(&["env"]))
            .prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
    ];
    let port = prop_oneof![
        object(vec![("protocol", maybe(one(&["TCP", "UDP", "SCTP"])))]),
        (1..4u64, one(&["TCP", "UDP"]))
            .prop_map(|(width, protocol)| json!({"port": 79, "endPort": 78 + width, "protocol": protocol})),
        one(&["web", "dns", "nope"]).prop_map(|name| json!({"port": name})),
        Just(json!({"port": "dns", "protocol": "UDP"})),
    ];
    let rule = |side| {
        object(vec![
            (side, maybe(list(peer.clone().boxed(), 2))),
            ("ports", maybe(list(port.clone().boxed(), 2))),
        ])
    };
    let types = prop::sample::subsequence(vec![json!("Ingress"), json!("Egress")], 0..=2);
    object(vec![
        ("podSelector", maybe(selector(POD_KEYS))),
        ("policyTypes", maybe(types.prop_map(Value::Array))),
        ("ingress", maybe(list(rule("from"), 2))),
        ("egress", maybe(list(rule("to"), 2))),
    ])
}

/// A policy without any problem.
pub(crate) fn any_policy() -> BoxedStrategy<(PolicyKind, &'static str, Value)> {
    let namespace = prop::sample::select(vec!["production", "staging"]);
    prop_oneof![
        4 => (namespace.clone(), cilium_spec()).prop_map(|(ns, spec)| (PolicyKind::CiliumNetworkPolicy, ns, spec)),
        1 => cilium_spec().prop_map(|spec| (PolicyKind::CiliumClusterwideNetworkPolicy, "", spec)),
        2 => (namespace, kubernetes_spec()).prop_map(|(ns, spec)| (PolicyKind::NetworkPolicy, ns, spec)),
    ]
    .boxed()
}
