//! Kubernetes' NetworkPolicy, by the checklist.

use policy::{PolicyKind, Protocol, Snapshot, Verdict};
use serde_json::{Value, json};

use crate::common::*;

/// The server's ingress, asked by: client on TCP 80, TCP 8080, UDP 80, SCTP 80, ICMP; staging's client and the world on
/// TCP 80.
fn ingress(snapshot: &Snapshot) -> String {
    let ask =
        |source, protocol, port| snapshot.decide_connection(&flow(source, SERVER, protocol, port)).verdict;
    signs([
        ask(CLIENT, Protocol::Tcp, 80),
        ask(CLIENT, Protocol::Tcp, 8080),
        ask(CLIENT, Protocol::Udp, 80),
        ask(CLIENT, Protocol::Sctp, 80),
        ask(CLIENT, Protocol::Icmp, 0),
        ask(STAGING, Protocol::Tcp, 80),
        ask(OUTSIDE, Protocol::Tcp, 80),
    ])
}

#[test]
fn ingress_rules() {
    for (what, spec, expected) in [
        ("ingress absent", json!({}), "-------"),
        ("ingress empty", json!({"ingress": []}), "-------"),
        ("ingress with an empty rule", json!({"ingress": [{}]}), "+++++++"),
        ("from empty", json!({"ingress": [{"from": [], "ports": []}]}), "+++++++"),
        ("only egress", json!({"policyTypes": ["Egress"]}), "+++++++"),
        ("ingress rules without the type", json!({"policyTypes": ["Egress"], "ingress": []}), "+++++++"),
        ("types empty", json!({"policyTypes": []}), "-------"),
        ("pods of the own namespace", json!({"ingress": [{"from": [{"podSelector": {}}]}]}), "+++++--"),
        ("all namespaces", json!({"ingress": [{"from": [{"namespaceSelector": {}}]}]}), "++++++-"),
        (
            "one namespace",
            json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"env": "test"}}}]}]}),
            "-----+-",
        ),
        (
            "by the default label",
            json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "staging"}}}]}]}),
            "-----+-",
        ),
        (
            "both selectors of one peer",
            json!({"ingress": [{"from": [{
                "namespaceSelector": {"matchLabels": {"env": "test"}}, "podSelector": {"matchLabels": {"app": "other"}}}]}]}),
            "-------",
        ),
        (
            "two peers",
            json!({"ingress": [{"from": [
                {"namespaceSelector": {"matchLabels": {"env": "test"}}}, {"podSelector": {"matchLabels": {"app": "client"}}}]}]}),
            "++++++-",
        ),
        ("a port is TCP", json!({"ingress": [{"ports": [{"port": 80}]}]}), "+----++"),
        (
            "UDP does not open TCP",
            json!({"ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}]}),
            "--+----",
        ),
        (
            "SCTP does not open TCP",
            json!({"ingress": [{"ports": [{"port": 80, "protocol": "SCTP"}]}]}),
            "---+---",
        ),
        ("a protocol without port", json!({"ingress": [{"ports": [{"protocol": "TCP"}]}]}), "++---++"),
        ("a port entry with nothing", json!({"ingress": [{"ports": [{}]}]}), "++---++"),
        ("a range", json!({"ingress": [{"ports": [{"port": 80, "endPort": 8080}]}]}), "++---++"),
        (
            "a range that ends before",
            json!({"ingress": [{"ports": [{"port": 80, "endPort": 8079}]}]}),
            "+----++",
        ),
        ("a name", json!({"ingress": [{"ports": [{"port": "web"}]}]}), "-+-----"),
        ("an unknown name", json!({"ingress": [{"ports": [{"port": "nope"}]}]}), "-------"),
    ] {
        let mut spec = spec;
        spec["podSelector"] = json!({"matchLabels": {"app": "server"}});
        assert_eq!(ingress(&good(vec![np("p", spec)])), expected, "{what}");
    }
}

#[test]
fn egress_by_types_and_rules() {
    let egress = |spec: Value| {
        let snapshot = good(vec![np("p", spec)]);
        let in_and_out = [tcp(&snapshot, OUTSIDE, SERVER, 80), tcp(&snapshot, SERVER, OUTSIDE, 80)];
        signs(in_and_out)
    };
    for (spec, expected) in [
        (json!({"podSelector": {}}), "-+"),
        (json!({}), "-+"),
        (json!({"podSelector": {}, "egress": []}), "-+"),
        (json!({"podSelector": {}, "egress": [{}]}), "-+"),
        (json!({"podSelector": {}, "egress": [{"ports": [{"port": 81}]}]}), "--"),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), "+-"),
        (json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}), "++"),
        (json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]}), "+-"),
        (
            json!({"podSelector": {"matchLabels": {"app": "nobody"}}, "policyTypes": ["Ingress", "Egress"]}),
            "++",
        ),
    ] {
        assert_eq!(egress(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn bad_rules_fail_alone() {
    let good_rule = json!({"ports": [{"port": 8080}]});
    for (place, rule) in [
        (".from[0].ipBlock", json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"podSelector": {}}]})),
        (".from[0]", json!({"from": [{}]})),
        (".from[0].podSelecter", json!({"from": [{"podSelecter": {}}]})),
        (".to", json!({"to": [{"podSelector": {}}]})),
        (".ports[0].endPort", json!({"ports": [{"port": 80, "endPort": 79}]})),
        (".ports[0].endPort", json!({"ports": [{"port": "web", "endPort": 79}]})),
        (".ports[0].endPort", json!({"ports": [{"endPort": 79}]})),
        (".ports[0].port", json!({"ports": [{"port": 0}]})),
        (".ports[0].port", json!({"ports": [{"port": 65536}]})),
        (".ports[0].port", json!({"ports": [{"port": "80"}]})),
        (".ports[0].port", json!({"ports": [{"port": true}]})),
        (".ports[0].protocol", json!({"ports": [{"port": 80, "protocol": "tcp"}]})),
        (".ports[0].protocol", json!({"ports": [{"port": 80, "protocol": "ANY"}]})),
    ] {
        let spec = json!({"podSelector": {}, "ingress": [rule, good_rule]});
        let (snapshot, problems) = compiled(vec![np("p", spec)]);
        let locations: Vec<_> = problems.iter().map(|problem| problem.location.as_str()).collect();
        assert_eq!(
            locations,
            [format!("NetworkPolicy production/p: spec.ingress[0]{place}")],
            "{problems:?}"
        );
        assert_eq!(ingress(&snapshot), "-+-----", "{rule}");
    }
}

#[test]
fn bad_specs_isolate() {
    for (place, spec) in [
        ("spec.policyTypes[0]", json!({"policyTypes": ["ingress"], "ingress": [{}]})),
        ("spec.egres", json!({"egres": []})),
        ("spec.ingress", json!({"ingress": {}})),
    ] {
        let mut spec = spec;
        spec["podSelector"] = json!({"matchLabels": {"app": "server"}});
        let (snapshot, problems) = compiled(vec![np("p", spec.clone())]);
        assert_eq!(problems[0].location, format!("NetworkPolicy production/p: {place}"));
        assert_eq!(tcp(&snapshot, OUTSIDE, SERVER, 80), Verdict::Denied, "{spec}");
        assert_eq!(tcp(&snapshot, SERVER, OUTSIDE, 80), Verdict::Denied, "{spec}");
        assert_eq!(tcp(&snapshot, OUTSIDE, CLIENT, 80), Verdict::Allowed, "{spec}");
    }
    let specs = json!({"spec": {"podSelector": {}, "ingress": [{}]}, "specs": []});
    let (snapshot, problems) = compiled(vec![object(PolicyKind::NetworkPolicy, "p", specs)]);
    assert_eq!(problems.len(), 1);
    assert_eq!(tcp(&snapshot, OUTSIDE, SERVER, 80), Verdict::Denied);
}

/// A flow that two policies speak of is allowed if either allows it; a pod is never blocked from itself.
#[test]
fn policies_add_up_across_languages() {
    let closed = np("closed", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let snapshot = good(vec![closed.clone()]);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Denied);
    assert_eq!(tcp(&snapshot, SERVER, SERVER, 80), Verdict::Allowed);
    let open_in =
        for_server("in", json!({"ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]}));
    assert_eq!(
        tcp(&good(vec![closed.clone(), open_in.clone()]), CLIENT, SERVER, 80),
        Verdict::Denied,
        "egress"
    );
    let open_out = np(
        "out",
        json!({
            "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}],
        }),
    );
    let snapshot = good(vec![closed, open_in, open_out]);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Allowed);
    assert_eq!(tcp(&snapshot, OTHER, SERVER, 80), Verdict::Denied);
}
