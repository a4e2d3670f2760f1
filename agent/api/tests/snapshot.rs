//! Snapshots survive the wire unchanged, and what is not understood is refused by the name of its field.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use api::policy as wire;
use api::snapshot::Error;
use policy::{
    Identities, NamedPort, Node, Pod, PolicyKind, PolicyObject, Protocol, Snapshot, World, compile,
};

fn pod(name: &str, node: &str, address: &str) -> Pod {
    Pod {
        namespace: "production".into(),
        name: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        addresses: vec![address.parse().unwrap()],
        node: node.into(),
        named_ports: vec![NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: 8080 }],
        ..Pod::default()
    }
}

fn snapshot() -> Snapshot {
    let manifest = serde_json::json!({"spec": {
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [
            {"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": [{
                "ports": [{"port": "web", "protocol": "TCP"}],
                "rules": {"http": [
                    {"headerMatches": []},
                    {"method": "GET|HEAD", "path": "/a.*", "host": "a", "headers": ["X-Key: true", "X-Other"]},
                ]},
            }]},
            {"fromEntities": ["world"], "toPorts": [{"ports": [{"port": "1000", "endPort": 2000}]}]},
            {"fromEntities": ["all"]},
        ],
        "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": "bad"}}]}],
    }});
    let policy = PolicyObject {
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: "production".into(),
        name: "api".into(),
        manifest,
    };
    let world = World {
        this_node: "node-1".into(),
        pod_networks: vec!["10.1.0.0/16".parse().unwrap()],
        namespaces: BTreeMap::new(),
        pods: vec![
            pod("server", "node-1", "10.1.0.1"),
            pod("client", "node-2", "fd00::2"),
            pod("bad", "node-1", "10.1.0.3"),
        ],
        nodes: vec![
            Node {
                name: "node-1".into(),
                addresses: vec!["172.31.0.1".parse().unwrap()],
                pod_ranges: vec![],
            },
            Node {
                name: "node-2".into(),
                addresses: vec!["172.31.0.2".parse().unwrap()],
                pod_ranges: vec![],
            },
        ],
        policies: vec![policy],
    };
    let (snapshot, problems) = compile(&world, &mut Identities::default(), 7);
    assert_eq!(problems.len(), 1, "{problems:?}");
    snapshot
}

#[test]
fn round_trip() {
    let snapshot = snapshot();
    let server = snapshot.endpoint_named("production", "server").unwrap();
    let rules = &snapshot.ruleset_of(server).unwrap().ingress.rules;
    assert_eq!(rules.len(), 4, "the example has every form: {rules:#?}");
    let message = wire::Snapshot::from(&snapshot);
    let back = Snapshot::try_from(message.clone()).unwrap();
    assert_eq!(*back, *snapshot);
    assert_eq!(wire::Snapshot::from(&back), message);
}

#[test]
fn what_is_not_understood_is_refused() {
    type Spoil = fn(&mut wire::Snapshot);
    fn rule(message: &mut wire::Snapshot) -> &mut wire::Rule {
        let rulesets = message.rulesets.iter_mut();
        let mut rules =
            rulesets.flat_map(|ruleset| ruleset.ingress.iter_mut().flat_map(|side| &mut side.rules));
        rules.find(|rule| rule.http.is_some()).unwrap()
    }
    let cases: &[(&str, Spoil)] = &[
        ("format", |message| message.format = 2),
        ("rulesets.ingress", |message| message.rulesets[0].ingress = None),
        ("rulesets.egress", |message| message.rulesets[0].egress = None),
        ("endpoints[0].ruleset", |message| message.endpoints[0].ruleset = 99),
        ("endpoints[1]", |message| message.endpoints.swap(0, 1)),
        ("endpoints[1].addresses", |message| {
            message.endpoints[1].addresses = message.endpoints[0].addresses.clone();
        }),
        ("addresses.address", |message| message.addresses[0].address.push(1)),
        ("pod_networks", |message| message.pod_networks.push("10.0.0.0".into())),
        ("node_addresses", |message| message.node_addresses.push("x".into())),
        ("rules.origin", |message| rule(message).origin = None),
        ("origin.kind", |message| rule(message).origin.as_mut().unwrap().kind = "Other".into()),
        ("rules.identities", |message| rule(message).any_peer = true),
        ("rules.ports", |message| rule(message).any_port = true),
        ("rules.http", |message| rule(message).deny = true),
        ("ports.protocol", |message| rule(message).ports[0].protocol = 300),
        ("ports.first", |message| rule(message).ports[0].first = 70_000),
        ("ports.last", |message| rule(message).ports[0].last = 1),
        ("http.path", |message| rule(message).http.as_mut().unwrap().rules[0].path = Some("(".into())),
        ("http.headers.name", |message| {
            rule(message).http.as_mut().unwrap().rules[0].headers[0].name = "a b".into();
        }),
    ];
    let whole = wire::Snapshot::from(&snapshot());
    for (field, spoil) in cases {
        let mut message = whole.clone();
        spoil(&mut message);
        let error: Error = Snapshot::try_from(message).expect_err(field);
        assert!(error.to_string().starts_with(field), "{field}: {error}");
    }
}
