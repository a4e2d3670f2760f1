//! Random clusters of policies, judged by a second evaluator that walks the manifests for each single question and
//! shares no code with the engine.

use std::collections::BTreeMap;

use http::HeaderMap;
use policy::{
    Direction, Flow, Identities, Labels, Pod, PolicyKind, PolicyObject, Protocol, Readings, RequestHead,
    Scope, Snapshot, Verdict, World, compile,
};
use proptest::prelude::*;
use regex::Regex;
use serde_json::{Value, json};

use crate::common;
use crate::generate::{any_policy, one};

/// Who a packet comes from or goes to, for the oracle.
#[derive(Clone, Copy)]
enum Peer<'a> {
    Pod(&'a Pod),
    Host,
    RemoteNode,
    Unclaimed,
    World,
}

struct Question<'a> {
    pod: &'a Pod,
    peer: Peer<'a>,
    direction: Direction,
    protocol: Protocol,
    port: u16,
    method: &'a str,
    path: &'a str,
}

struct Oracle<'a> {
    policies: &'a [PolicyObject],
    namespaces: &'a BTreeMap<String, Labels>,
}

impl Oracle<'_> {
    /// The verdict on the connection, and on the request.
    fn judge(&self, q: &Question<'_>) -> (Verdict, bool) {
        if q.direction == Direction::Ingress && matches!(q.peer, Peer::Host) {
            return (Verdict::Allowed, true);
        }
        let (mut isolated, mut denied, mut allowed, mut proxied, mut request) =
            (false, false, false, false, false);
        for policy in self.policies {
            let spec = &policy.manifest["spec"];
            let kubernetes = policy.kind == PolicyKind::NetworkPolicy;
            let own = if policy.namespace.is_empty() { None } else { Some(policy.namespace.as_str()) };
            if own.is_some_and(|own| own != q.pod.namespace) {
                continue;
            }
            let selector = if kubernetes { &spec["podSelector"] } else { &spec["endpointSelector"] };
            if !self.selects(selector, q.pod, kubernetes) {
                continue;
            }
            let list = q.direction.name();
            let rules = spec[list].as_array().cloned().unwrap_or_default();
            if kubernetes {
                let types = spec["policyTypes"].as_array().cloned().unwrap_or_default();
                let listed =
                    types.iter().any(|name| name.as_str().is_some_and(|n| n.eq_ignore_ascii_case(list)));
                let by_default = q.direction == Direction::Ingress || !rules.is_empty();
                if !(listed || types.is_empty() && by_default) {
                    continue;
                }
                isolated = true;
                allowed |= rules.iter().any(|rule| self.kubernetes_rule(rule, q, &policy.namespace));
                continue;
            }
            let denies = spec[format!("{list}Deny")].as_array().cloned().unwrap_or_default();
            let default_deny = spec["enableDefaultDeny"][list].as_bool();
            isolated |= default_deny.unwrap_or(!rules.is_empty() || !denies.is_empty());
            denied |= denies.iter().any(|rule| {
                // Who is not known yet may be one of those that are denied.
                let chosen = rule
                    [if q.direction == Direction::Ingress { "fromEndpoints" } else { "toEndpoints" }]
                .as_array();
                let somebody = chosen.is_some_and(|selectors| !selectors.is_empty());
                let unclaimed = matches!(q.peer, Peer::Unclaimed) && somebody;
                !self.cilium_rule(rule, q, own, unclaimed).is_empty()
            });
            for http in rules.iter().flat_map(|rule| self.cilium_rule(rule, q, own, false)) {
                match http {
                    None => allowed = true,
                    Some(matches) => {
                        proxied = true;
                        request |= matches;
                    }
                }
            }
        }
        match (denied, isolated, allowed, proxied) {
            (true, ..) => (Verdict::Denied, false),
            (_, false, ..) | (_, _, true, _) => (Verdict::Allowed, true),
            (.., true) => (Verdict::Redirected, request),
            _ => (Verdict::Denied, false),
        }
    }

    fn label(&self, pod: &Pod, key: &str, raw: bool) -> Option<String> {
        if raw {
            return pod.labels.get(key).cloned();
        }
        let key = key.strip_prefix("k8s:").or_else(|| key.strip_prefix("any:")).unwrap_or(key);
        if key == "io.kubernetes.pod.namespace" {
            return Some(pod.namespace.clone());
        }
        match key.strip_prefix("io.cilium.k8s.namespace.labels.") {
            Some(name) => self.namespaces.get(&pod.namespace)?.get(name).cloned(),
            None => pod.labels.get(key).cloned(),
        }
    }

    fn selects(&self, selector: &Value, pod: &Pod, raw: bool) -> bool {
        holds(selector, |key| self.label(pod, key, raw))
    }

    fn kubernetes_rule(&self, rule: &Value, q: &Question<'_>, own: &str) -> bool {
        let side = if q.direction == Direction::Ingress { "from" } else { "to" };
        let peers = rule[side].as_array().cloned().unwrap_or_default();
        let peer_fits = peers.is_empty()
            || peers.iter().any(|peer| {
                let Peer::Pod(pod) = q.peer else { return false };
                let namespace_fits = match &peer["namespaceSelector"] {
                    Value::Null => pod.namespace == own,
                    selector => holds(selector, |key| self.namespaces.get(&pod.namespace)?.get(key).cloned()),
                };
                namespace_fits && self.selects(&peer["podSelector"], pod, true)
            });
        let ports = rule["ports"].as_array().cloned().unwrap_or_default();
        let port_fits = ports.is_empty()
            || ports.iter().any(|port| {
                let protocol = port["protocol"].as_str().unwrap_or("TCP");
                port_fits(&port["port"], port["endPort"].as_u64(), protocol, q)
            });
        peer_fits && port_fits
    }

    /// One entry for each part that matches the connection: without `http` None, else whether the request matches.
    fn cilium_rule(
        &self,
        rule: &Value,
        q: &Question<'_>,
        own: Option<&str>,
        whoever: bool,
    ) -> Vec<Option<bool>> {
        let side = if q.direction == Direction::Ingress { "from" } else { "to" };
        let (endpoints, entities) = (&rule[format!("{side}Endpoints")], &rule[format!("{side}Entities")]);
        let peers_named = endpoints.is_array() || entities.is_array();
        let by_endpoints = endpoints.as_array().is_some_and(|list| {
            list.iter().any(|selector| {
                let Peer::Pod(pod) = q.peer else { return false };
                let text = selector.to_string();
                let names_namespaces = text.contains("pod.namespace") || text.contains("namespace.labels");
                let at_home = own.is_none_or(|own| own == pod.namespace) || names_namespaces;
                at_home && self.selects(selector, pod, false)
            })
        });
        let by_entities = entities.as_array().is_some_and(|list| {
            list.iter().any(|entity| match entity.as_str().unwrap() {
                "all" => true,
                "cluster" => !matches!(q.peer, Peer::World),
                "host" => matches!(q.peer, Peer::Host),
                "remote-node" => matches!(q.peer, Peer::RemoteNode),
                "world" => matches!(q.peer, Peer::World),
                _ => false,
            })
        });
        if peers_named && !whoever && !by_endpoints && !by_entities {
            return Vec::new();
        }
        let elements = rule["toPorts"].as_array().cloned().unwrap_or_default();
        if elements.is_empty() {
            return if peers_named { vec![None] } else { Vec::new() };
        }
        let mut found = Vec::new();
        for element in elements {
            let ports = element["ports"].as_array().cloned().unwrap_or_default();
            let fits = ports.iter().any(|port| {
                let number = port["port"].as_str().unwrap();
                let number = number.parse::<u64>().map_or(json!(number), |number| json!(number));
                let every = number == json!(0);
                let (number, end) =
                    if every { (json!(0), Some(65535)) } else { (number, port["endPort"].as_u64()) };
                port_fits(&number, end, port["protocol"].as_str().unwrap_or("ANY"), q)
            });
            if !fits {
                continue;
            }
            let http = element["rules"]["http"].as_array().filter(|list| !list.is_empty());
            found.push(http.map(|list| {
                list.iter().any(|rule| {
                    let fits = |field: &str, text: &str| {
                        let source = rule[field].as_str().filter(|source| !source.is_empty());
                        source.is_none_or(|source| {
                            Regex::new(&format!("^(?:{source})$")).unwrap().is_match(text)
                        })
                    };
                    fits("method", q.method) && fits("path", q.path)
                })
            }));
        }
        found
    }
}

fn holds(selector: &Value, label: impl Fn(&str) -> Option<String>) -> bool {
    let labels = selector["matchLabels"].as_object().cloned().unwrap_or_default();
    let expressions = selector["matchExpressions"].as_array().cloned().unwrap_or_default();
    labels.iter().all(|(key, value)| label(key).as_deref() == value.as_str())
        && expressions.iter().all(|expression| {
            let own = label(expression["key"].as_str().unwrap());
            let values = expression["values"].as_array().cloned().unwrap_or_default();
            let listed = own.as_ref().is_some_and(|own| values.contains(&json!(own)));
            match expression["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => own.is_some(),
                _ => own.is_none(),
            }
        })
}

fn port_fits(port: &Value, end: Option<u64>, protocol: &str, q: &Question<'_>) -> bool {
    let own = match q.protocol.number() {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        _ => return false,
    };
    if protocol != "ANY" && protocol != own {
        return false;
    }
    let asked = u64::from(q.port);
    match port {
        Value::Null => true,
        Value::String(name) => {
            let destination = match (q.direction, q.peer) {
                (Direction::Ingress, _) => q.pod,
                (Direction::Egress, Peer::Pod(pod)) => pod,
                (Direction::Egress, _) => return false,
            };
            let mut named = destination.named_ports.iter();
            named.any(|port| port.name == *name && port.protocol == q.protocol && port.port == q.port)
        }
        number => {
            let first = number.as_u64().unwrap();
            (first..=end.filter(|end| *end > 0).unwrap_or(first)).contains(&asked)
        }
    }
}

fn cluster(policies: Vec<(PolicyKind, &'static str, Value)>) -> World {
    let mut world = common::world();
    let values = [("a", "a"), ("b", ""), ("a", "b"), ("b", "a")];
    for (pod, (app, tier)) in world.pods.iter_mut().zip(values) {
        pod.labels = [("app".to_owned(), app.to_owned())].into();
        if !tier.is_empty() {
            pod.labels.insert("tier".into(), tier.into());
        }
    }
    world.pods[2].named_ports[0].port = 90;
    world.pods[3].named_ports.clear();
    let objects = policies.into_iter().enumerate().map(|(index, (kind, namespace, spec))| PolicyObject {
        kind,
        namespace: namespace.into(),
        name: format!("p{index}"),
        manifest: json!({"spec": spec}),
    });
    world.policies = objects.collect();
    world
}

/// The first question on which the two disagree.
fn disagreement(world: &World, snapshot: &Snapshot) -> Option<String> {
    let oracle = Oracle { policies: &world.policies, namespaces: &world.namespaces };
    let addresses = [common::NODE, common::NODE_2, common::NOBODY, common::OUTSIDE];
    let others = [Peer::Host, Peer::RemoteNode, Peer::Unclaimed, Peer::World];
    let pods = world.pods.iter().map(|pod| (pod.addresses[0], Peer::Pod(pod)));
    let peers: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).zip(others).chain(pods).collect();
    let ports = [(6, 80), (6, 81), (6, 82), (6, 90), (6, 8080), (17, 80), (17, 5353), (132, 79), (1, 0)];
    let headers = HeaderMap::new();
    // Only pods of the snapshot's node: for another node's pods the own node is a remote one, which is tested elsewhere.
    for pod in &world.pods[..2] {
        for (address, peer) in &peers {
            for (direction, (protocol, port)) in
                Direction::ALL.into_iter().flat_map(|direction| ports.map(|port| (direction, port)))
            {
                if pod.addresses[0] == *address {
                    continue;
                }
                let protocol = Protocol::from_number(protocol);
                let (source, destination) = match direction {
                    Direction::Ingress => (*address, pod.addresses[0]),
                    Direction::Egress => (pod.addresses[0], *address),
                };
                let flow = Flow { source, destination, protocol, port };
                let policy = snapshot.request_policy(&flow, Scope::Cluster);
                let side = |egress, ingress| if direction == Direction::Egress { egress } else { ingress };
                let connection = policy.connection().clone();
                let verdict = side(connection.egress, connection.ingress).unwrap().verdict;
                for (method, path) in [("GET", "/a"), ("GET", "/ax"), ("POST", "/b"), ("PUT", "/c/x")] {
                    let target = Readings::of(path).unwrap();
                    let head = RequestHead { method, target: &target, host: "h", headers: &headers };
                    let decision = policy.decide(&head);
                    let request =
                        side(decision.egress, decision.ingress).unwrap().verdict == Verdict::Allowed;
                    let question = Question { pod, peer: *peer, direction, protocol, port, method, path };
                    let expected = oracle.judge(&question);
                    // Requests are only asked about on TCP.
                    let got = (verdict, request);
                    if got != expected {
                        let (namespace, name) = (&pod.namespace, &pod.name);
                        return Some(format!(
                            "{namespace}/{name} {direction} {address} {protocol} {port} {method} {path}: \
                             {got:?}, oracle {expected:?}"
                        ));
                    }
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_says_what_the_oracle_says(policies in prop::collection::vec(any_policy(), 0..6)) {
        let world = cluster(policies);
        let (snapshot, problems) = compile(&world, &mut Identities::default(), 1);
        prop_assert!(problems.is_empty(), "{:?}", problems);
        let found = disagreement(&world, &snapshot);
        prop_assert!(found.is_none(), "{}\n{:#?}", found.unwrap_or_default(), world.policies);
    }

    /// Whatever stands in a manifest is read without a panic, and what is refused allows nothing that the whole did not.
    #[test]
    fn a_damaged_policy_never_allows_more(
        policy in any_policy(),
        at in any::<prop::sample::Index>(),
        junk in prop_oneof![one(&["", "x", "0", "("]), Just(json!(7)), Just(json!([])), Just(json!({"x": 1}))],
    ) {
        let (kind, namespace, spec) = policy;
        let mut damaged = spec.clone();
        let places = places(&spec, String::new());
        if let Some(value) = damaged.pointer_mut(&places[at.index(places.len())]) {
            *value = junk;
        }
        let (before, _) = compile(&cluster(vec![(kind, namespace, spec)]), &mut Identities::default(), 1);
        let world = cluster(vec![(kind, namespace, damaged)]);
        let (after, problems) = compile(&world, &mut Identities::default(), 1);
        let not_enforced = |problem: &policy::Problem| problem.message.contains("Not enforced");
        if !problems.is_empty() && !problems.iter().any(not_enforced) {
            let more = allows_more(&world, &after, &before);
            prop_assert!(more.is_none(), "{}: {:?}\n{:#?}", more.unwrap_or_default(), problems, world.policies);
        }
    }
}

/// The first flow of which `one` allows more than `other`.
fn allows_more(world: &World, one: &Snapshot, other: &Snapshot) -> Option<String> {
    let reach = |snapshot: &Snapshot, flow: &Flow| {
        let policy = snapshot.request_policy(flow, Scope::Cluster);
        let headers = HeaderMap::new();
        let requests = [("GET", "/a"), ("POST", "/b"), ("PUT", "/c/x")];
        let allowed = requests.map(|(method, path)| {
            let target = Readings::of(path).unwrap();
            let head = RequestHead { method, target: &target, host: "h", headers: &headers };
            policy.decide(&head).verdict == Verdict::Allowed
        });
        (policy.connection().verdict, allowed)
    };
    let outside = [common::NODE_2, common::NOBODY, common::OUTSIDE].map(|text| text.parse().unwrap());
    let ends: Vec<_> = world.pods.iter().map(|pod| pod.addresses[0]).chain(outside).collect();
    for (&source, &destination) in ends.iter().flat_map(|source| ends.iter().map(move |end| (source, end))) {
        for (protocol, port) in [(6, 80), (6, 81), (6, 8080), (17, 80), (17, 5353), (1, 0)] {
            let flow = Flow { source, destination, protocol: Protocol::from_number(protocol), port };
            let (one, other) = (reach(one, &flow), reach(other, &flow));
            let connection_wider = match one.0 {
                Verdict::Allowed => other.0 != Verdict::Allowed,
                Verdict::Redirected => other.0 == Verdict::Denied,
                Verdict::Denied => false,
            };
            if connection_wider || one.1.iter().zip(other.1).any(|(one, other)| *one && !other) {
                return Some(format!("{flow:?}: {one:?}, before {other:?}"));
            }
        }
    }
    None
}

/// JSON pointers to everything inside.
fn places(value: &Value, at: String) -> Vec<String> {
    let inner: Vec<_> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.replace('/', "~1"), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    let inner =
        inner.into_iter().flat_map(|(key, value)| places(value, format!("{at}/{key}"))).collect::<Vec<_>>();
    [vec![at], inner].concat()
}

/// The comparison itself must be able to fail.
#[test]
fn a_planted_difference_is_found() {
    let policy = json!({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "80"}]}]}]});
    let world = cluster(vec![(PolicyKind::CiliumNetworkPolicy, "production", policy)]);
    let (right, _) = compile(&world, &mut Identities::default(), 1);
    assert_eq!(disagreement(&world, &right), None);
    for (field, value) in [("port", json!("81")), ("protocol", json!("UDP")), ("endPort", json!(82))] {
        let mut other = world.clone();
        other.policies[0].manifest["spec"]["ingress"][0]["toPorts"][0]["ports"][0][field] = value;
        let (wrong, _) = compile(&other, &mut Identities::default(), 1);
        assert!(disagreement(&world, &wrong).is_some(), "{field}");
    }
}
