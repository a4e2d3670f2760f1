//! Section 1.2: what is empty and what is absent. Reading one as the other was CVE-2025-64715.

use policy::{Direction, Protocol, Snapshot, Verdict};
use serde_json::{Value, json};

use crate::common::*;

/// The server's ingress, asked by: client on TCP 80, TCP 8080, UDP 80, ICMP; staging's client on TCP 80; a node's
/// other side, an unclaimed address, the world on TCP 80; and always last the own node, which always gets in.
fn ingress(snapshot: &Snapshot) -> String {
    let ask = |source, protocol, port| {
        snapshot.decide_connection(&flow(source, SERVER, protocol, port)).ingress.unwrap().verdict
    };
    signs([
        ask(CLIENT, Protocol::Tcp, 80),
        ask(CLIENT, Protocol::Tcp, 8080),
        ask(CLIENT, Protocol::Udp, 80),
        ask(CLIENT, Protocol::Icmp, 0),
        ask(STAGING, Protocol::Tcp, 80),
        ask(NODE_2, Protocol::Tcp, 80),
        ask(NOBODY, Protocol::Tcp, 80),
        ask(OUTSIDE, Protocol::Tcp, 80),
        ask(NODE, Protocol::Tcp, 80),
    ])
}

fn port(number: &str) -> Value {
    json!({"port": number, "protocol": "TCP"})
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn cilium_ingress() {
    let own = json!([{"matchLabels": {"app": "client"}}]);
    for (what, element, expected) in [
        ("nothing at all", json!({}), "--------+"),
        ("no peers, empty ports", json!({"toPorts": []}), "--------+"),
        ("null peers, null ports", json!({"fromEndpoints": null, "toPorts": null}), "--------+"),
        ("any peer on a port", json!({"toPorts": [{"ports": [port("80")]}]}), "+---+++++"),
        (
            "null peers on a port",
            json!({"fromEndpoints": null, "toPorts": [{"ports": [port("80")]}]}),
            "+---+++++",
        ),
        ("empty peers", json!({"fromEndpoints": []}), "--------+"),
        (
            "empty peers on a port",
            json!({"fromEndpoints": [], "toPorts": [{"ports": [port("80")]}]}),
            "--------+",
        ),
        (
            "empty entities on a port",
            json!({"fromEntities": [], "toPorts": [{"ports": [port("80")]}]}),
            "--------+",
        ),
        ("every pod of the namespace", json!({"fromEndpoints": [{}]}), "++++----+"),
        ("peer, ports absent", json!({"fromEndpoints": own}), "++++----+"),
        ("peer, ports empty", json!({"fromEndpoints": own, "toPorts": []}), "++++----+"),
        ("peer, one empty toPorts", json!({"fromEndpoints": own, "toPorts": [{}]}), "--------+"),
        (
            "peer, toPorts with empty ports",
            json!({"fromEndpoints": own, "toPorts": [{"ports": []}]}),
            "--------+",
        ),
        (
            "empty toPorts beside a port",
            json!({"fromEndpoints": own, "toPorts": [{}, {"ports": [port("80")]}]}),
            "+-------+",
        ),
        ("rules absent", json!({"fromEndpoints": own, "toPorts": [{"ports": [port("80")]}]}), "+-------+"),
        (
            "rules empty",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [port("80")], "rules": {}}]}),
            "+-------+",
        ),
        (
            "http empty",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [port("80")], "rules": {"http": []}}]}),
            "+-------+",
        ),
        (
            "one empty http rule",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [port("80")], "rules": {"http": [{}]}}]}),
            "r-------+",
        ),
        ("port 0", json!({"fromEndpoints": own, "toPorts": [{"ports": [port("0")]}]}), "++------+"),
        (
            "port 0 of any protocol",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [{"port": "0"}]}]}),
            "+++-----+",
        ),
        (
            "any protocol",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [{"port": "80", "protocol": "ANY"}]}]}),
            "+-+-----+",
        ),
        (
            "a range",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [{"port": "80", "endPort": 9000}]}]}),
            "+++-----+",
        ),
        (
            "a named port",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [{"port": "WEB"}]}]}),
            "-+------+",
        ),
        (
            "a named port of another protocol",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [{"port": "web", "protocol": "UDP"}]}]}),
            "--------+",
        ),
        (
            "an unknown name",
            json!({"fromEndpoints": own, "toPorts": [{"ports": [{"port": "nope"}]}]}),
            "--------+",
        ),
        ("all", json!({"fromEntities": ["all"]}), "+++++++++"),
        (
            "all on a port",
            json!({"fromEntities": ["all"], "toPorts": [{"ports": [port("80")]}]}),
            "+---+++++",
        ),
        ("cluster", json!({"fromEntities": ["cluster"]}), "+++++++-+"),
        ("world", json!({"fromEntities": ["world"]}), "-------++"),
        ("remote nodes", json!({"fromEntities": ["remote-node"]}), "-----+--+"),
        ("host", json!({"fromEntities": ["host"]}), "--------+"),
        ("none", json!({"fromEntities": ["none"]}), "--------+"),
    ] {
        let snapshot = good(vec![for_server("p", json!({"ingress": [element]}))]);
        assert_eq!(ingress(&snapshot), expected, "{what}");
    }
}

#[test]
fn cilium_specs() {
    let all = json!([{"fromEntities": ["all"]}]);
    let deny = json!([{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]);
    for (what, spec, expected) in [
        ("egress alone leaves ingress", json!({"egress": [{}]}), "+++++++++"),
        ("empty ingress beside egress", json!({"ingress": [], "egress": [{}]}), "+++++++++"),
        ("a deny alone denies the rest, too", json!({"ingressDeny": deny}), "--------+"),
        ("an empty deny denies by default only", json!({"ingressDeny": [{}], "ingress": all}), "+++++++++"),
        // Also for an address that nobody claims yet: it may be the client's.
        ("deny beats allow", json!({"ingressDeny": deny, "ingress": all}), "----++-++"),
        (
            "deny without default deny",
            json!({"ingressDeny": deny, "enableDefaultDeny": {"ingress": false}}),
            "----++-++",
        ),
        (
            "allow without default deny",
            json!({"ingress": [{}], "enableDefaultDeny": {"ingress": false}}),
            "+++++++++",
        ),
        (
            "default deny asked for",
            json!({"egress": [{}], "enableDefaultDeny": {"ingress": true}}),
            "--------+",
        ),
        ("deny to nobody", json!({"ingressDeny": [{"fromEndpoints": []}], "ingress": all}), "+++++++++"),
        (
            "deny on a port",
            json!({"ingressDeny": [{"toPorts": [{"ports": [port("80")]}]}], "ingress": all}),
            "-+++----+",
        ),
    ] {
        let snapshot = good(vec![for_server("p", spec)]);
        assert_eq!(ingress(&snapshot), expected, "{what}");
    }
}

/// Without default deny anywhere, rules on requests let everything pass; one policy with default deny brings them back.
#[test]
fn default_deny_is_of_all_policies_together() {
    let l7 = json!([{"toPorts": [{"ports": [port("80")], "rules": {"http": [{"method": "GET"}]}}]}]);
    let soft = for_server("soft", json!({"ingress": l7, "enableDefaultDeny": {"ingress": false}}));
    assert_eq!(ingress(&good(vec![soft.clone()])), "+++++++++");
    let deny = json!([{"fromEndpoints": [{"matchLabels": {"app": "other"}}]}]);
    let with_deny = json!({"ingress": l7, "ingressDeny": deny, "enableDefaultDeny": {"ingress": false}});
    let snapshot = good(vec![for_server("soft", with_deny)]);
    let allowed = snapshot.decide_connection(&flow(CLIENT, SERVER, Protocol::Tcp, 80)).ingress.unwrap();
    assert!(allowed.verdict == Verdict::Allowed && allowed.origin.is_default(), "{allowed:?}");
    let hard = for_server("hard", json!({"ingress": [{}]}));
    assert_eq!(ingress(&good(vec![soft, hard])), "r---rrrr+");
}

#[test]
fn an_empty_rule_is_invalid_and_not_enforced() {
    for spec in [
        json!({"ingress": []}),
        json!({}),
        json!({"ingress": [], "egress": [], "ingressDeny": [], "egressDeny": null}),
        json!({"ingress": [], "enableDefaultDeny": {"ingress": true}}),
    ] {
        let (snapshot, problems) = compiled(vec![for_server("p", spec)]);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].location, "CiliumNetworkPolicy production/p: spec");
        assert_eq!(ingress(&snapshot), "+++++++++");
    }
}

/// The same tables hold outwards.
#[test]
fn cilium_egress() {
    let server = json!([{"matchLabels": {"app": "server"}}]);
    for (what, element, expected) in [
        ("nothing at all", json!({}), "-------"),
        ("any peer on a port", json!({"toPorts": [{"ports": [port("80")]}]}), "+--++++"),
        (
            "empty peers on a port",
            json!({"toEndpoints": [], "toPorts": [{"ports": [port("80")]}]}),
            "-------",
        ),
        ("peer", json!({"toEndpoints": server}), "+++----"),
        ("peer, one empty toPorts", json!({"toEndpoints": server, "toPorts": [{}]}), "-------"),
        (
            "a named port of the destination",
            json!({"toEndpoints": server, "toPorts": [{"ports": [port("web")]}]}),
            "-+-----",
        ),
        ("a named port of anyone", json!({"toPorts": [{"ports": [port("web")]}]}), "-+-----"),
        ("host", json!({"toEntities": ["host"]}), "----+--"),
        ("world", json!({"toEntities": ["world"]}), "------+"),
        ("cluster", json!({"toEntities": ["cluster"]}), "++++++-"),
    ] {
        let mut spec = json!({"egress": [element]});
        spec["endpointSelector"] = json!({"matchLabels": {"app": "client"}});
        let snapshot = good(vec![cnp("p", spec)]);
        let ask = |destination, protocol, port| {
            snapshot.decide_connection(&flow(CLIENT, destination, protocol, port)).egress.unwrap().verdict
        };
        let got = signs([
            ask(SERVER, Protocol::Tcp, 80),
            ask(SERVER, Protocol::Tcp, 8080),
            ask(SERVER, Protocol::Icmp, 0),
            ask(OTHER, Protocol::Tcp, 80),
            ask(NODE, Protocol::Tcp, 80),
            ask(NOBODY, Protocol::Tcp, 80),
            ask(OUTSIDE, Protocol::Tcp, 80),
        ]);
        assert_eq!(got, expected, "{what}");
    }
}

#[test]
fn the_own_node_gets_in_whatever_policy_says() {
    let deny = json!({"ingressDeny": [{"fromEntities": ["all"]}]});
    let snapshot = good(vec![for_server("p", deny)]);
    assert_eq!(ingress(&snapshot), "--------+");
    let server = snapshot.endpoint_named("production", "server").unwrap();
    let out = snapshot.decide_direction(server, Direction::Egress, policy::identity::HOST, Protocol::Tcp, 80);
    assert_eq!((out.verdict, out.enforced), (Verdict::Allowed, false));
}
