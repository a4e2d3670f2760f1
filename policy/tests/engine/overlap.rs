//! Section 1.7: several rules about one connection, and the bypasses that were published about it.

use policy::{Direction, Protocol, Verdict};
use serde_json::{Value, json};

use crate::common::*;

fn from(app: &str, ports: Value) -> Value {
    json!({"fromEndpoints": [{"matchLabels": {"app": app}}], "toPorts": ports})
}

fn l7(port: &str, rules: Value) -> Value {
    json!([{"ports": [{"port": port, "protocol": "TCP"}], "rules": {"http": rules}}])
}

fn l4(port: &str) -> Value {
    json!([{"ports": [{"port": port, "protocol": "TCP"}]}])
}

fn get(snapshot: &policy::Snapshot, source: &str, port: u16, path: &str) -> Verdict {
    request(snapshot, &flow(source, SERVER, Protocol::Tcp, port), "GET", path, &[]).verdict
}

#[test]
fn rules_on_requests_add_up() {
    let snapshot = good(vec![
        for_server("a", json!({"ingress": [from("client", l7("80", json!([{"path": "/a"}])))]})),
        for_server("b", json!({"ingress": [from("client", l7("80", json!([{"path": "/b"}])))]})),
    ]);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Redirected);
    let verdicts = ["/a", "/b", "/c"].map(|path| get(&snapshot, CLIENT, 80, path));
    assert_eq!(signs(verdicts), "++-");
}

#[test]
fn an_allow_that_does_not_look_at_requests_cancels_those_that_do() {
    let strict =
        for_server("strict", json!({"ingress": [from("client", l7("80", json!([{"path": "/a"}])))]}));
    for (what, other) in [
        ("the same port", from("client", l4("80"))),
        ("every port", from("client", json!([]))),
        ("port 0", from("client", l4("0"))),
        ("a range around it", from("client", json!([{"ports": [{"port": "1", "endPort": 100}]}]))),
        ("any peer", json!({"toPorts": l4("80")})),
        ("everyone", json!({"fromEntities": ["all"]})),
    ] {
        let snapshot = good(vec![strict.clone(), for_server("wide", json!({"ingress": [other]}))]);
        let decision = snapshot.decide_connection(&flow(CLIENT, SERVER, Protocol::Tcp, 80)).ingress.unwrap();
        assert_eq!(decision.verdict, Verdict::Allowed, "{what}");
        assert_eq!(
            decision.origin.describe(Direction::Ingress),
            "CiliumNetworkPolicy production/wide ingress[0]"
        );
        assert_eq!(get(&snapshot, CLIENT, 80, "/anything"), Verdict::Allowed, "{what}");
    }
    // Elsewhere it changes nothing.
    for other in [from("client", l4("81")), from("other", l4("80")), from("other", json!([]))] {
        let snapshot = good(vec![strict.clone(), for_server("wide", json!({"ingress": [other]}))]);
        assert_eq!(get(&snapshot, CLIENT, 80, "/anything"), Verdict::Denied);
    }
}

/// CVE-2023-30851: two selectors share a rule on requests, and one of them is allowed more elsewhere.
#[test]
fn a_wider_rule_for_one_peer_is_not_the_others() {
    let both = json!({
        "fromEndpoints": [{"matchLabels": {"app": "client"}}, {"matchLabels": {"app": "other"}}],
        "toPorts": l7("80", json!([{"path": "/a"}])),
    });
    let snapshot = good(vec![for_server("p", json!({"ingress": [both, from("other", l4("80"))]}))]);
    assert_eq!(tcp(&snapshot, OTHER, SERVER, 80), Verdict::Allowed);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Redirected);
    assert_eq!(get(&snapshot, CLIENT, 80, "/b"), Verdict::Denied);
}

/// CVE-2024-52529: a range that another rule looks at requests inside of.
#[test]
fn a_rule_on_requests_inside_of_a_range() {
    let ranged = json!([{"ports": [{"port": "80", "endPort": 90, "protocol": "TCP"}], "rules": {"http": [{"path": "/a"}]}}]);
    let snapshot = good(vec![for_server(
        "p",
        json!({"ingress": [
            from("client", ranged), from("client", l7("85", json!([{"path": "/b"}]))),
        ]}),
    )]);
    for port in 80..=90 {
        assert_eq!(tcp(&snapshot, CLIENT, SERVER, port), Verdict::Redirected, "{port}");
        assert_eq!(get(&snapshot, CLIENT, port, "/a"), Verdict::Allowed, "{port}");
        assert_eq!(get(&snapshot, CLIENT, port, "/b") == Verdict::Allowed, port == 85, "{port}");
        assert_eq!(get(&snapshot, CLIENT, port, "/c"), Verdict::Denied, "{port}");
    }
}

/// CVE-2024-47825 and the like: a deny holds whatever is more specific beside it.
#[test]
fn a_deny_beats_every_allow() {
    let allows = json!([
        from("client", l4("80")), from("client", json!([])), {"fromEntities": ["all"]},
        from("client", l7("80", json!([{}]))),
    ]);
    for deny in [
        from("client", json!([])),
        from("client", l4("80")),
        from("client", json!([{"ports": [{"port": "0"}]}])),
        from("client", json!([{"ports": [{"port": "70", "endPort": 90}]}])),
        json!({"fromEndpoints": [{}]}),
        json!({"fromEntities": ["cluster"]}),
        json!({"toPorts": l4("80")}),
    ] {
        let snapshot = good(vec![
            for_server("allow", json!({"ingress": allows})),
            for_server("deny", json!({"ingressDeny": [{}, deny]})),
        ]);
        let decision = snapshot.decide_connection(&flow(CLIENT, SERVER, Protocol::Tcp, 80)).ingress.unwrap();
        assert_eq!(decision.verdict, Verdict::Denied, "{deny}");
        let origin = decision.origin.describe(Direction::Ingress);
        assert_eq!(origin, "CiliumNetworkPolicy production/deny ingressDeny[1]");
        assert_eq!(get(&snapshot, CLIENT, 80, "/"), Verdict::Denied);
    }
}

/// The first by kind, namespace, name and rule is named, however the objects were given.
#[test]
fn the_first_of_several_is_named() {
    let both = json!({"ingress": [{}, from("client", l4("80")), from("client", l4("80"))]});
    let policies = vec![
        np("a", json!({"podSelector": {}, "ingress": [{}]})),
        for_server("b", both.clone()),
        for_server("a", both),
        ccnp("z", json!({"endpointSelector": {}, "ingress": [{"fromEntities": ["world"]}]})),
    ];
    let mut reversed = policies.clone();
    reversed.reverse();
    for policies in [policies, reversed] {
        let snapshot = good(policies);
        let named = |source, port| {
            let decision = snapshot.decide_connection(&flow(source, SERVER, Protocol::Tcp, port));
            decision.ingress.unwrap().origin.describe(Direction::Ingress)
        };
        assert_eq!(named(CLIENT, 80), "CiliumNetworkPolicy production/a ingress[1]");
        assert_eq!(named(OUTSIDE, 80), "CiliumClusterwideNetworkPolicy z ingress[0]");
        assert_eq!(named(CLIENT, 81), "NetworkPolicy production/a ingress[0]");
    }
}

/// Rules of several specs are counted through, http rules over the toPorts of their rule.
#[test]
fn indices_count_over_specs_and_ports() {
    let select = json!({"matchLabels": {"app": "server"}});
    let manifest = json!({
        "spec": {"endpointSelector": select, "ingress": [{}, {}], "ingressDeny": [{}]},
        "specs": [{"endpointSelector": select, "ingress": [{
            "fromEndpoints": [{"matchLabels": {"app": "client"}}],
            "toPorts": [
                {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": "/a"}, {"path": "("}]}},
                {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": "/b"}]}},
            ],
        }]}],
    });
    let (snapshot, problems) = compiled(vec![object(policy::PolicyKind::CiliumNetworkPolicy, "p", manifest)]);
    assert_eq!(problems.len(), 1);
    let place = "CiliumNetworkPolicy production/p: specs[0].ingress[0].toPorts[0].rules.http[1].path";
    assert_eq!(problems[0].location, place);
    let decision = request(&snapshot, &flow(CLIENT, SERVER, Protocol::Tcp, 80), "GET", "/b", &[]);
    let origin = decision.ingress.unwrap().origin.describe(Direction::Ingress);
    assert_eq!(origin, "CiliumNetworkPolicy production/p ingress[2].http[2]");
}

/// Both ends must allow, each by its own policy.
#[test]
fn both_ends_are_asked() {
    let out = cnp(
        "out",
        json!({
            "endpointSelector": {"matchLabels": {"app": "client"}},
            "egress": [{"toEndpoints": [{"matchLabels": {"app": "server"}}], "toPorts": l7("80", json!([{"path": "/a|/b"}]))}],
        }),
    );
    let inward = for_server("in", json!({"ingress": [from("client", l7("80", json!([{"path": "/b|/c"}])))]}));
    let snapshot = good(vec![out.clone(), inward]);
    let verdicts = ["/a", "/b", "/c", "/d"].map(|path| get(&snapshot, CLIENT, 80, path));
    assert_eq!(signs(verdicts), "-+--");
    let decision = request(&snapshot, &flow(CLIENT, SERVER, Protocol::Tcp, 80), "GET", "/a", &[]);
    assert_eq!(decision.egress.unwrap().origin.http_rule, Some(0));
    assert_eq!(decision.ingress.unwrap().verdict, Verdict::Denied);
    // Egress judges requests, ingress lets the connection through.
    let snapshot = good(vec![out, for_server("in", json!({"ingress": [from("client", l4("80"))]}))]);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Redirected);
    assert_eq!(signs(["/a", "/c"].map(|path| get(&snapshot, CLIENT, 80, path))), "+-");
}
