//! Who is selected, and who cannot pretend to be.

use policy::{Identities, Pod, PolicyObject, Verdict, World, compile};
use serde_json::{Value, json};

use crate::common::*;

/// Who reaches the server on TCP 80: client, other, staging's client.
fn reaches(policies: Vec<PolicyObject>) -> String {
    let snapshot = good(policies);
    signs([CLIENT, OTHER, STAGING].map(|source| tcp(&snapshot, source, SERVER, 80)))
}

fn from(selector: Value) -> Value {
    json!({"ingress": [{"fromEndpoints": [selector]}]})
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    let values = if values.is_empty() { json!(null) } else { json!(values) };
    json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}

#[test]
fn peers_of_a_namespaced_policy() {
    let namespace = "io.kubernetes.pod.namespace";
    let env = "io.cilium.k8s.namespace.labels.env";
    let labels = |pairs: &[(&str, &str)]| {
        let map: serde_json::Map<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        json!({"matchLabels": map})
    };
    for (selector, expected) in [
        (json!({}), "++-"),
        (labels(&[("app", "client")]), "+--"),
        (labels(&[("k8s:app", "client")]), "+--"),
        (labels(&[("any:app", "client")]), "+--"),
        (labels(&[("app", "Client")]), "---"),
        (labels(&[("app", "client"), (namespace, "staging")]), "--+"),
        (labels(&[("app", "client"), ("k8s:io.kubernetes.pod.namespace", "staging")]), "--+"),
        (labels(&[(namespace, "production")]), "++-"),
        (labels(&[(namespace, "nowhere")]), "---"),
        (labels(&[(env, "test")]), "--+"),
        (labels(&[(env, "live"), ("app", "other")]), "-+-"),
        (labels(&[("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "staging")]), "--+"),
        (labels(&[("io.cilium.k8s.policy.serviceaccount", "default")]), "++-"),
        (labels(&[("io.cilium.k8s.policy.serviceaccount", "robot")]), "---"),
        (labels(&[("io.cilium.k8s.policy.cluster", "default")]), "++-"),
        (expression(namespace, "Exists", &[]), "+++"),
        (expression(namespace, "DoesNotExist", &[]), "---"),
        (expression(namespace, "NotIn", &["production"]), "--+"),
        (expression("app", "In", &["client", "x"]), "+--"),
        (expression("app", "NotIn", &["client"]), "-+-"),
        (expression("app", "Exists", &[]), "++-"),
        (expression("app", "DoesNotExist", &[]), "---"),
        (expression("tier", "NotIn", &["x"]), "++-"),
        (expression("tier", "DoesNotExist", &[]), "++-"),
        (expression(env, "NotIn", &["live"]), "--+"),
    ] {
        let got = reaches(vec![for_server("p", from(selector.clone()))]);
        assert_eq!(got, expected, "{selector}");
    }
}

#[test]
fn peers_of_a_clusterwide_policy() {
    for (selector, expected) in [
        (json!({}), "+++"),
        (json!({"matchLabels": {"app": "client"}}), "+-+"),
        (json!({"matchLabels": {"app": "client", "io.kubernetes.pod.namespace": "staging"}}), "--+"),
    ] {
        let mut spec = from(selector.clone());
        spec["endpointSelector"] = json!({"matchLabels": {"app": "server"}});
        assert_eq!(reaches(vec![ccnp("p", spec)]), expected, "{selector}");
    }
}

/// Who is isolated by a policy that allows nothing: server, client, staging's client.
fn isolated(object: PolicyObject) -> (String, usize) {
    let (snapshot, problems) = compiled(vec![object]);
    (signs([SERVER, CLIENT, STAGING].map(|pod| tcp(&snapshot, OUTSIDE, pod, 80))), problems.len())
}

/// CVE-2023-41333: whatever a tenant writes, only its own namespace is selected.
#[test]
fn subjects_stay_in_their_namespace() {
    let namespace = "io.kubernetes.pod.namespace";
    for (selector, expected) in [
        (json!({}), ("--+", 0)),
        (json!({"matchLabels": {"app": "client"}}), ("+-+", 0)),
        (json!({"matchLabels": {namespace: "production"}}), ("--+", 0)),
        (json!({"matchLabels": {"app": "client", namespace: "staging"}}), ("+-+", 1)),
        (expression(namespace, "In", &["staging"]), ("+++", 0)),
        (expression(namespace, "Exists", &[]), ("--+", 0)),
        (expression("io.cilium.k8s.namespace.labels.env", "Exists", &[]), ("--+", 0)),
        (expression("reserved:init", "DoesNotExist", &[]), ("--+", 0)),
    ] {
        let object = cnp("p", json!({"endpointSelector": selector, "ingress": [{}]}));
        let (got, problems) = isolated(object);
        assert_eq!((got.as_str(), problems), expected, "{selector}");
    }
    let everyone = ccnp("p", json!({"endpointSelector": {}, "ingress": [{}]}));
    assert_eq!(isolated(everyone).0, "---");
    let staging =
        ccnp("p", json!({"endpointSelector": {"matchLabels": {namespace: "staging"}}, "ingress": [{}]}));
    assert_eq!(isolated(staging).0, "++-");
}

/// What is legal and no pod can have selects nothing, in both kinds of policy; what cannot be read
/// isolates.
#[test]
fn a_label_that_no_pod_can_have_selects_nothing() {
    let label = |key: &str| json!({"matchLabels": {key: ""}});
    for key in [
        "reserved:ingress",
        "reserved:health",
        "reserved:host",
        "reserved:init",
        "reserved:world",
        "reserved:kube-apiserver",
        "container:app",
        "cidr:10.0.0.0/8",
        "fqdn:example.com",
        "node:kubernetes.io/os",
        "io.cilium.k8s.policy.other",
        "k8s:io.cilium.k8s.other",
    ] {
        for selector in [label(key), expression(key, "Exists", &[]), expression(key, "In", &["x", "y"])] {
            for rules in [json!({"ingress": [{}], "egress": [{}]}), json!({"ingressDeny": [{}]})] {
                let mut spec = rules;
                spec["endpointSelector"] = selector.clone();
                for object in [ccnp("p", spec.clone()), cnp("p", spec)] {
                    assert_eq!(isolated(object), ("+++".to_owned(), 0), "{selector}");
                }
            }
        }
        for operator in ["DoesNotExist", "NotIn"] {
            let values: &[&str] = if operator == "NotIn" { &["x"] } else { &[] };
            let spec = json!({"endpointSelector": expression(key, operator, values), "ingress": [{}]});
            assert_eq!(isolated(ccnp("p", spec.clone())), ("---".to_owned(), 0), "{key} {operator}");
            assert_eq!(isolated(cnp("p", spec)), ("--+".to_owned(), 0), "{key} {operator}");
        }
    }
    for unreadable in [
        json!({"matchLabels": {"-app": "x"}}),
        json!({"matchLabels": {"app": "a b"}}),
        json!({"matchLabel": {"app": "x"}}),
        expression("app", "is", &["x"]),
    ] {
        let spec = json!({"endpointSelector": unreadable, "ingress": [{}]});
        assert_eq!(isolated(ccnp("p", spec)), ("---".to_owned(), 1), "{unreadable}");
    }
}

/// Of the server's peers: client, staging's client, another node, the world.
#[test]
fn reserved_labels_and_entities_are_peers() {
    let reached = |rule: Value| {
        let (snapshot, problems) = compiled(vec![for_server("p", rule)]);
        let peers = [CLIENT, STAGING, NODE_2, OUTSIDE].map(|peer| tcp(&snapshot, peer, SERVER, 80));
        (signs(peers), problems.len())
    };
    let label = |key: &str| json!({"matchLabels": {key: ""}});
    for (selector, allowed, problems) in [
        (label("reserved:remote-node"), "--+-", 0),
        (label("reserved:world"), "---+", 0),
        (label("reserved:ingress"), "----", 0),
        (label("reserved:health"), "----", 0),
        (label("reserved:host"), "----", 0),
        (label("container:app"), "----", 0),
        (label("io.cilium.k8s.other"), "----", 0),
        (json!({"matchLabels": {"reserved:world": "", "app": "client"}}), "----", 0),
        (expression("reserved:world", "Exists", &[]), "---+", 0),
        // These may select what is not told apart here: refused, and named.
        (label("reserved:kube-apiserver"), "----", 1),
        (label("cidr:10.0.0.0/8"), "----", 1),
        (expression("reserved:world", "DoesNotExist", &[]), "----", 1),
    ] {
        let allow = json!({"ingress": [{"fromEndpoints": [selector]}]});
        assert_eq!(reached(allow), (allowed.to_owned(), problems), "{selector}");
        let deny =
            json!({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"fromEndpoints": [selector]}]});
        let inverse = |sign| if sign == '-' && problems == 0 { '+' } else { '-' };
        let denied: String = allowed.chars().map(inverse).collect();
        assert_eq!(reached(deny), (denied, problems), "{selector}");
    }
    for entity in ["none", "health", "ingress", "init", "unmanaged"] {
        let allow = json!({"ingress": [{"fromEntities": [entity, "world"]}]});
        assert_eq!(reached(allow), ("---+".to_owned(), 0), "{entity}");
        let all = json!([{"fromEntities": ["all"]}]);
        let deny = json!({"ingress": all, "ingressDeny": [{"fromEntities": [entity]}]});
        assert_eq!(reached(deny.clone()), ("++++".to_owned(), 0), "{entity}");
        let (snapshot, _) = compiled(vec![for_server("p", deny)]);
        let unclaimed = tcp(&snapshot, NOBODY, SERVER, 80);
        assert_eq!(unclaimed == Verdict::Denied, matches!(entity, "init" | "unmanaged"), "{entity}");
    }
}

/// CVE-2023-39347 and GO-2022-0959: a pod cannot write the cluster's own labels on itself.
#[test]
fn labels_of_a_pod_cannot_speak_for_the_cluster() {
    let mut liar: Pod = pod("staging", "liar", "10.2.0.66");
    for (key, value) in [
        ("io.kubernetes.pod.namespace", "production"),
        ("io.cilium.k8s.namespace.labels.env", "live"),
        ("io.cilium.k8s.policy.serviceaccount", "robot"),
        ("io.cilium.k8s.policy.cluster", "other"),
        ("k8s:app", "client"),
        ("any:app", "client"),
    ] {
        liar.labels.insert(key.into(), value.into());
    }
    let selectors = [
        json!({}),
        json!({"matchLabels": {"io.kubernetes.pod.namespace": "production"}}),
        json!({"matchLabels": {"io.cilium.k8s.namespace.labels.env": "live"}}),
        json!({"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "robot"}}),
        json!({"matchLabels": {"k8s:app": "client", "io.kubernetes.pod.namespace": "staging"}}),
    ];
    for selector in selectors {
        let world = world();
        let mut pods = world.pods.clone();
        pods.push(liar.clone());
        let policies = vec![for_server("p", from(selector.clone()))];
        let (snapshot, problems) = compile(&World { pods, policies, ..world }, &mut Identities::default(), 1);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(tcp(&snapshot, "10.2.0.66", SERVER, 80), Verdict::Denied, "{selector}");
        let shown = &snapshot.identities[&snapshot.identity_of("10.2.0.66".parse().unwrap())];
        assert_eq!(shown.labels["io.kubernetes.pod.namespace"], "staging");
        assert_eq!(shown.labels["io.cilium.k8s.policy.serviceaccount"], "default");
    }
}

/// Port names are those of the pod that packets go to, also where labels are the same.
#[test]
fn port_names_resolve_for_each_destination() {
    let mut second = pod("production", "server", "10.1.0.8");
    second.name = "server-2".into();
    second.named_ports[0].port = 9090;
    let mut world = world();
    world.pods.push(second);
    let ports = json!([{"ports": [{"port": "web", "protocol": "TCP"}]}]);
    let client = json!({"matchLabels": {"app": "client"}});
    for policy in [
        for_server("p", json!({"ingress": [{"toPorts": ports}]})),
        cnp("p", json!({"endpointSelector": client, "egress": [{"toPorts": ports}]})),
        np(
            "p",
            json!({"podSelector": client, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}]}]}),
        ),
    ] {
        let world = World { policies: vec![policy], ..world.clone() };
        let (snapshot, problems) = compile(&world, &mut Identities::default(), 1);
        assert!(problems.is_empty(), "{problems:?}");
        let ask = |destination, port| tcp(&snapshot, CLIENT, destination, port);
        let got = signs([ask(SERVER, 8080), ask(SERVER, 9090), ask("10.1.0.8", 8080), ask("10.1.0.8", 9090)]);
        assert_eq!(got, "+--+");
    }
}
