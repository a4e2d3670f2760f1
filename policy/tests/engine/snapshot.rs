//! Identities, addresses and what is shared.

use std::collections::HashSet;

use policy::{Identities, Verdict, World, compile, identity};
use serde_json::json;

use crate::common::*;

fn numbers(world: &World, identities: &mut Identities) -> Vec<u32> {
    let (snapshot, _) = compile(world, identities, 1);
    snapshot.endpoints.iter().map(|endpoint| endpoint.identity).collect()
}

#[test]
fn addresses_have_identities() {
    let snapshot = good(Vec::new());
    let of = |text: &str| snapshot.identity_of(text.parse().unwrap());
    assert_eq!(of(NODE), identity::HOST);
    assert_eq!(of(NODE_2), identity::REMOTE_NODE);
    assert_eq!(of(NOBODY), identity::UNKNOWN);
    assert_eq!(of(OUTSIDE), identity::WORLD);
    assert!(of(SERVER) >= identity::FIRST_LOCAL);
    assert_eq!(of("::ffff:10.1.0.1"), of(SERVER));
    assert_eq!(snapshot.endpoint_at("::ffff:10.1.0.1".parse().unwrap()).unwrap().name, "server");
}

#[test]
fn equal_pods_share_and_numbers_stay() {
    let mut world = world();
    let mut twin = pod("production", "client", "10.1.0.7");
    twin.name = "client-2".into();
    world.pods.push(twin);
    let mut identities = Identities::default();
    let first = numbers(&world, &mut identities);
    let distinct: HashSet<_> = first.iter().collect();
    assert_eq!((first.len(), distinct.len()), (5, 4), "the twins are one identity");
    assert_eq!(numbers(&world, &mut identities), first);
    // Stored and read again, and in another order.
    let (next, entries) = identities.entries();
    assert_eq!((next, entries.len()), (identity::FIRST_LOCAL + 4, 4));
    let mut restored = Identities::from_entries(next, entries);
    world.pods.reverse();
    assert_eq!(numbers(&world, &mut restored), first);
}

#[test]
fn a_number_is_never_given_twice() {
    let mut world = world();
    let mut identities = Identities::default();
    let before = numbers(&world, &mut identities);
    world.pods[0].labels.insert("app".into(), "renamed".into());
    let after = numbers(&world, &mut identities);
    let renamed: Vec<_> = after.iter().filter(|number| !before.contains(number)).collect();
    assert_eq!(renamed, [&(identity::FIRST_LOCAL + 4)]);
    // Entries that were damaged do not make it start over.
    let damaged = vec![
        policy::IdentityEntry { number: 2, key: "reserved".into() },
        policy::IdentityEntry { number: 900, key: "a".into() },
        policy::IdentityEntry { number: 900, key: "b".into() },
    ];
    let (next, entries) = Identities::from_entries(0, damaged).entries();
    assert_eq!((next, entries.len()), (901, 1));
    let mut exhausted = Identities::from_entries(u32::MAX, Vec::new());
    let (snapshot, problems) = compile(&world, &mut exhausted, 1);
    assert_eq!(problems.len(), 1);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Denied);
}

#[test]
fn whatever_policy_can_see_makes_another_identity() {
    let base = pod("production", "client", CLIENT);
    let mut variants = vec![base.clone()];
    let mut vary = |change: fn(&mut policy::Pod)| {
        let mut pod = base.clone();
        change(&mut pod);
        variants.push(pod);
    };
    vary(|pod| pod.service_account = "robot".into());
    vary(|pod| drop(pod.labels.insert("x".into(), String::new())));
    vary(|pod| pod.labels.clear());
    vary(|pod| pod.namespace = "staging".into());
    vary(|pod| pod.named_ports.clear());
    vary(|pod| pod.named_ports[0].port += 1);
    let mut world = world();
    for (index, pod) in variants.iter_mut().enumerate() {
        pod.name = format!("p{index}");
        pod.addresses.clear();
    }
    let count = variants.len();
    world.pods = variants;
    let numbers: HashSet<_> = numbers(&world, &mut Identities::default()).into_iter().collect();
    assert_eq!(numbers.len(), count);
}

/// An address that two claim is nobody's: a verdict on it would be a guess.
#[test]
fn one_address_is_never_two_pods() {
    let allow_client =
        for_server("p", json!({"ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]}));
    let ask = |mut pods: Vec<policy::Pod>| {
        let mut world = world();
        world.pods.append(&mut pods);
        world.policies.push(allow_client.clone());
        let (snapshot, problems) = compile(&world, &mut Identities::default(), 1);
        (snapshot, problems.len())
    };
    // A remote pod claims a local one's address: the local one keeps it.
    let mut thief = pod("production", "thief", CLIENT);
    thief.node = "node-2".into();
    let (snapshot, problems) = ask(vec![thief]);
    assert_eq!(problems, 1);
    assert_eq!(tcp(&snapshot, CLIENT, SERVER, 80), Verdict::Allowed);
    assert!(snapshot.endpoint_named("production", "thief").unwrap().addresses.is_empty());
    // Two remote ones: neither is who it says.
    let (snapshot, problems) = ask(vec![pod("production", "thief", STAGING)]);
    assert_eq!(problems, 2);
    assert_eq!(snapshot.identity_of(STAGING.parse().unwrap()), identity::UNKNOWN);
    assert_eq!(tcp(&snapshot, STAGING, OUTSIDE, 80), Verdict::Denied);
    assert_eq!(tcp(&snapshot, OUTSIDE, STAGING, 80), Verdict::Denied);
    // A pod claims a node's address: it stays the node's.
    let (snapshot, problems) = ask(vec![pod("production", "thief", NODE_2)]);
    assert_eq!(problems, 1);
    assert_eq!(snapshot.identity_of(NODE_2.parse().unwrap()), identity::REMOTE_NODE);
    assert!(snapshot.endpoint_at(NODE_2.parse().unwrap()).is_none());
    // One name twice.
    let (snapshot, problems) = ask(vec![pod("production", "client", "10.1.0.55")]);
    assert_eq!(problems, 1);
    assert_eq!(snapshot.endpoints.len(), 4);
}

#[test]
fn host_network_pods_are_their_node() {
    let mut world = world();
    let mut agent = pod("production", "agent", NODE);
    agent.host_network = true;
    world.pods.push(agent);
    world.policies.push(np("closed", json!({"podSelector": {}})));
    let (snapshot, problems) = compile(&world, &mut Identities::default(), 1);
    assert!(problems.is_empty(), "{problems:?}");
    assert!(snapshot.endpoint_named("production", "agent").is_none());
    assert_eq!(tcp(&snapshot, NODE, SERVER, 80), Verdict::Allowed);
    assert_eq!(tcp(&snapshot, NODE, OTHER, 80), Verdict::Denied, "another node's pod sees a remote node");
}
