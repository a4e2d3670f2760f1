//! What is wrong or not supported: named by its place, and never wider than what it replaces.

use policy::{PolicyKind, PolicyObject, Verdict};
use serde_json::{Value, json};

use crate::common::*;

const PLACE: &str = "CiliumNetworkPolicy production/p: ";

/// One problem at `place`; the server is reached by: client on 80 and 81.
fn check(object: PolicyObject, place: &str, expected: &str) {
    let manifest = object.manifest.to_string();
    let (snapshot, problems) = compiled(vec![object]);
    let locations: Vec<_> = problems.iter().map(|problem| problem.location.as_str()).collect();
    assert_eq!(locations, [place], "{manifest}: {problems:?}");
    let got = signs([80, 81].map(|port| tcp(&snapshot, CLIENT, SERVER, port)));
    assert_eq!(got, expected, "{manifest}");
}

/// Elements of `ingress` beside one that allows port 81: it stays, they allow nothing.
#[test]
fn a_bad_element_fails_alone() {
    let good_element = json!({"toPorts": [{"ports": [{"port": "81", "protocol": "TCP"}]}]});
    let ports = |value: Value| json!({"toPorts": [value]});
    let http = |value: Value| ports(json!({"ports": [{"port": "80", "protocol": "TCP"}], "rules": value}));
    for (place, element) in [
        (".fromCIDR", json!({"fromCIDR": ["10.0.0.0/8"]})),
        (".fromCIDR", json!({"fromCIDR": []})),
        (".fromCIDRSet", json!({"fromCIDRSet": [{"cidr": "10.0.0.0/8"}]})),
        (".fromGroups", json!({"fromGroups": [{}]})),
        (".fromNodes", json!({"fromNodes": [{}]})),
        (".fromRequires", json!({"fromRequires": [{}], "fromEndpoints": [{}]})),
        (".icmps", json!({"icmps": [{"fields": []}]})),
        (".authentication", json!({"authentication": {"mode": "required"}, "fromEndpoints": [{}]})),
        (".fromEntities[1]", json!({"fromEntities": ["world", "kube-apiserver"]})),
        (".fromEntities", json!({"fromEntities": ["all"], "fromEndpoints": [{}]})),
        (".fromEntities", json!({"fromEntities": "all"})),
        (".toEndpoints", json!({"toEndpoints": [{}]})),
        (".toEntities", json!({"toEntities": ["all"]})),
        (".endpoints", json!({"endpoints": [{}]})),
        (".fromEndpoints[0].matchLabel", json!({"fromEndpoints": [{"matchLabel": {"app": "client"}}]})),
        (".fromEndpoints[0].matchLabels.app", json!({"fromEndpoints": [{"matchLabels": {"app": true}}]})),
        (".fromEndpoints[0].matchLabels[app]", json!({"fromEndpoints": [{"matchLabels": {"app": "a b"}}]})),
        (".fromEndpoints[0]", json!({"fromEndpoints": [{"matchLabels": {"reserved:kube-apiserver": ""}}]})),
        (".fromEndpoints[0]", json!({"fromEndpoints": [{"matchLabels": {"cidr:10.0.0.0/8": ""}}]})),
        (".fromEndpoints[0].matchLabels[-app]", json!({"fromEndpoints": [{"matchLabels": {"-app": "a"}}]})),
        (
            ".fromEndpoints[0].matchExpressions[0]",
            json!({"fromEndpoints": [{"matchExpressions": [{"key": "app", "operator": "In"}]}]}),
        ),
        (
            ".fromEndpoints[0].matchExpressions[0]",
            json!({"fromEndpoints": [{"matchExpressions": [{"key": "app", "operator": "in", "values": ["client"]}]}]}),
        ),
        (
            ".fromEndpoints[0].matchExpressions[0]",
            json!({"fromEndpoints": [{"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["x"]}]}]}),
        ),
        (".fromEndpoints[0]", json!({"fromEndpoints": [null]})),
        (".fromPods", json!({"fromPods": [{}]})),
        (".toPorts[0].serverNames", ports(json!({"ports": [{"port": "80"}], "serverNames": ["x"]}))),
        (".toPorts[0].terminatingTLS", ports(json!({"ports": [{"port": "80"}], "terminatingTLS": {}}))),
        (".toPorts[0].listener", ports(json!({"ports": [{"port": "80"}], "listener": {}}))),
        (".toPorts[0].port", ports(json!({"port": "80"}))),
        (".toPorts[0].ports[0].port", ports(json!({"ports": [{"port": 80}]}))),
        (".toPorts[0].ports[0].port", ports(json!({"ports": [{"port": "65536"}]}))),
        (".toPorts[0].ports[0].port", ports(json!({"ports": [{"port": "-1"}]}))),
        (".toPorts[0].ports[0].port", ports(json!({"ports": [{"port": "+80"}]}))),
        (".toPorts[0].ports[0].port", ports(json!({"ports": [{"port": ""}]}))),
        (".toPorts[0].ports[0].endPort", ports(json!({"ports": [{"port": "80", "endPort": 79}]}))),
        (".toPorts[0].ports[0].endPort", ports(json!({"ports": [{"port": "80", "endPort": 65536}]}))),
        (".toPorts[0].ports[0].endPort", ports(json!({"ports": [{"port": "web", "endPort": 90}]}))),
        (".toPorts[0].ports[0].protocol", ports(json!({"ports": [{"port": "80", "protocol": "ICMP"}]}))),
        (".toPorts[0].ports", ports(json!({"ports": vec![json!({"port": "80"}); 41]}))),
        (".toPorts[0].rules.dns", http(json!({"dns": [{"matchPattern": "*"}]}))),
        (".toPorts[0].rules.kafka", http(json!({"kafka": []}))),
        (".toPorts[0].rules.grpc", http(json!({"grpc": []}))),
        (".toPorts[0].ports[0].protocol", ports(json!({"ports": [{"port": "80"}], "rules": {"http": [{}]}}))),
        (
            ".toPorts[0].ports[0].protocol",
            ports(json!({"ports": [{"port": "80", "protocol": "UDP"}], "rules": {"http": [{}]}})),
        ),
        (
            ".toPorts[0].ports[0].port",
            ports(json!({"ports": [{"port": "0", "protocol": "TCP"}], "rules": {"http": [{}]}})),
        ),
    ] {
        let place = format!("{PLACE}spec.ingress[0]{place}");
        check(for_server("p", json!({"ingress": [element, good_element]})), &place, "-+");
    }
}

/// A bad rule on requests matches nothing; the connection still goes to the proxy, where the others count.
#[test]
fn a_bad_rule_on_requests_fails_alone() {
    for (place, rule) in [
        (".headerMatches", json!({"headerMatches": [{"name": "x"}]})),
        (".path", json!({"path": "(" })),
        (".path", json!({"path": "a)|(.*"})),
        (".path", json!({"path": 7})),
        (".method", json!({"method": "*"})),
        (".host", json!({"host": "[a"})),
        (".headers[0]", json!({"headers": ["X-Key:true"]})),
        (".headers[0]", json!({"headers": ["X-Key:"]})),
        (".query", json!({"query": "x"})),
    ] {
        let element = json!({"toPorts": [{
            "ports": [{"port": "80", "protocol": "TCP"}],
            "rules": {"http": [rule, {"path": "/good"}]},
        }]});
        let policy = for_server("p", json!({"ingress": [element]}));
        check(policy.clone(), &format!("{PLACE}spec.ingress[0].toPorts[0].rules.http[0]{place}"), "r-");
        let (snapshot, _) = compiled(vec![policy]);
        let to_server = flow(CLIENT, SERVER, policy::Protocol::Tcp, 80);
        let verdicts =
            ["/good", "/other"].map(|path| request(&snapshot, &to_server, "GET", path, &[]).verdict);
        assert_eq!(signs(verdicts), "+-", "{rule}");
    }
    // All bad: still not an allow without a look at requests.
    let element = json!({"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": "("}]}}]});
    let (snapshot, _) = compiled(vec![for_server("p", json!({"ingress": [element]}))]);
    let to_server = flow(CLIENT, SERVER, policy::Protocol::Tcp, 80);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Redirected);
    assert_eq!(request(&snapshot, &to_server, "GET", "/", &[]).verdict, Verdict::Denied);
}

/// Nobody knows what a bad deny would have denied.
#[test]
fn a_bad_deny_denies_everything() {
    let all = json!([{"fromEntities": ["all"]}]);
    for (place, element) in [
        (".fromCIDR", json!({"fromCIDR": ["192.0.2.0/24"]})),
        (".toPorts[0].ports[0].port", json!({"toPorts": [{"ports": [{"port": "x y"}]}]})),
        (
            ".toPorts[0].rules",
            json!({"toPorts": [{"ports": [{"port": "90", "protocol": "TCP"}], "rules": {"http": [{}]}}]}),
        ),
        (".fromPods", json!({"fromPods": []})),
    ] {
        let place = format!("{PLACE}spec.ingressDeny[0]{place}");
        check(for_server("p", json!({"ingress": all, "ingressDeny": [element]})), &place, "--");
    }
}

/// A spec that cannot be read isolates whom it selects, both ways.
#[test]
fn a_bad_spec_isolates() {
    let all = json!([{"fromEntities": ["all"]}]);
    for (place, spec) in [
        ("spec.ingres", json!({"ingres": all})),
        ("spec.ingressDenyy", json!({"ingress": all, "ingressDenyy": []})),
        ("spec.ingress", json!({"ingress": {"fromEntities": ["all"]}})),
        ("spec.enableDefaultDeny.ingres", json!({"ingress": all, "enableDefaultDeny": {"ingres": false}})),
        ("spec.nodeSelector", json!({"ingress": all, "nodeSelector": {}})),
    ] {
        check(for_server("p", spec.clone()), &format!("{PLACE}{place}"), "--");
        let (snapshot, _) = compiled(vec![for_server("p", spec)]);
        assert_eq!(tcp(&snapshot, SERVER, CLIENT, 80), Verdict::Denied, "both ways");
        assert_eq!(tcp(&snapshot, CLIENT, OTHER, 80), Verdict::Allowed, "others are not concerned");
    }
}

/// Without a selector that can be read, all that it could have selected are isolated, and nobody else.
#[test]
fn a_bad_selector_isolates_all_that_it_may_have_selected() {
    let all = json!([{"fromEntities": ["all"]}]);
    for (kind, place, manifest, staging_too) in [
        (
            PolicyKind::CiliumNetworkPolicy,
            ": spec.endpointSelector",
            json!({"spec": {"ingress": all}}),
            false,
        ),
        (
            PolicyKind::CiliumNetworkPolicy,
            ": spec.endpointSelector.matchLabel",
            json!({"spec": {"endpointSelector": {"matchLabel": {}}, "ingress": all}}),
            false,
        ),
        (PolicyKind::CiliumNetworkPolicy, ": spec", json!({}), false),
        (PolicyKind::CiliumNetworkPolicy, ": spec", json!({"spec": 1}), false),
        (PolicyKind::CiliumNetworkPolicy, ": specc", json!({"specc": {}}), false),
        (
            PolicyKind::CiliumNetworkPolicy,
            ": apiVersion",
            json!({"apiVersion": "cilium.io/v3", "spec": {"endpointSelector": {}, "ingress": all}}),
            false,
        ),
        (PolicyKind::CiliumNetworkPolicy, "", json!(null), false),
        (
            PolicyKind::CiliumClusterwideNetworkPolicy,
            ": spec.endpointSelector",
            json!({"spec": {"ingress": all}}),
            true,
        ),
        (
            PolicyKind::NetworkPolicy,
            ": spec.podSelector.matchLabels.app",
            json!({"spec": {"podSelector": {"matchLabels": {"app": 1}}, "ingress": [{}]}}),
            false,
        ),
        (PolicyKind::NetworkPolicy, ": spec", json!({"kind": "NetworkPolicy"}), false),
        (
            PolicyKind::NetworkPolicy,
            ": kind",
            json!({"kind": "CiliumNetworkPolicy", "spec": {"podSelector": {}, "ingress": [{}]}}),
            false,
        ),
    ] {
        let object = object(kind, "p", manifest);
        let name = if kind == PolicyKind::CiliumClusterwideNetworkPolicy { "p" } else { "production/p" };
        check(object.clone(), &format!("{kind} {name}{place}"), "--");
        let (snapshot, _) = compiled(vec![object]);
        let in_staging = tcp(&snapshot, OUTSIDE, STAGING, 80);
        assert_eq!(in_staging, if staging_too { Verdict::Denied } else { Verdict::Allowed });
    }
}

/// A policy for nodes says nothing about pods; what only labels flows is enforced without it. Both are said.
#[test]
fn what_does_not_concern_verdicts_is_only_said() {
    let spec = json!({"nodeSelector": {}, "ingress": [{}]});
    check(ccnp("p", spec), "CiliumClusterwideNetworkPolicy p: spec.nodeSelector", "++");
    let spec = json!({"ingress": [{"fromEntities": ["all"]}], "log": {"value": "x"}, "description": "d", "labels": []});
    check(for_server("p", spec), &format!("{PLACE}spec.log"), "++");
}

#[test]
fn a_second_object_of_one_name_allows_nothing_more() {
    let wide = for_server("p", json!({"ingress": [{"fromEntities": ["all"]}]}));
    let narrow = for_server("p", json!({"ingress": [{"toPorts": [{"ports": [{"port": "80"}]}]}]}));
    let (snapshot, problems) = compiled(vec![narrow, wide]);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].location, "CiliumNetworkPolicy production/p");
    assert_eq!(signs([80, 81].map(|port| tcp(&snapshot, CLIENT, SERVER, port))), "+-");
}
