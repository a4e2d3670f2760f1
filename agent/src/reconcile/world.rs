//! From what the source and the journal say to what the policy engine is told.

use std::net::IpAddr;
use std::sync::Arc;

use policy::{Node, Pod, Problem, World};

use crate::config::Config;
use crate::journal::Allocation;
use crate::source::{PodName, PodStatus, Records};

/// The cluster as this node sees it. Addresses of pods of this node come from the journal, those of others from what
/// their nodes announce, as far as it lies within the announcer's own pod range.
pub(super) fn build<'a>(
    config: &Config,
    records: &Records,
    host_addresses: &[IpAddr],
    allocations: impl Iterator<Item = &'a Allocation> + Clone,
    problems: &mut Vec<Problem>,
) -> World {
    let pods = records.pods.iter().map(|(name, pod)| {
        let mut pod = Pod::clone(pod);
        if !pod.host_network {
            place(&mut pod, name, config, records, allocations.clone(), problems);
        }
        pod
    });
    World {
        this_node: config.node_name.clone(),
        pod_networks: vec![config.pod_network],
        namespaces: records.namespaces.clone(),
        pods: pods.collect(),
        nodes: records.nodes.values().map(|node| with_all_addresses(node, config, host_addresses)).collect(),
        policies: records.policies.values().map(|policy| (**policy).clone()).collect(),
    }
}

/// The Node object; for this node with every address that its processes may speak from.
fn with_all_addresses(node: &Node, config: &Config, host_addresses: &[IpAddr]) -> Node {
    let mut node = node.clone();
    if node.name == config.node_name {
        let more = host_addresses.iter().filter(|address| !node.addresses.contains(address));
        let more: Vec<IpAddr> = more.copied().collect();
        node.addresses.extend(more);
    }
    node
}

/// Fills in where a pod is and its addresses.
fn place<'a>(
    pod: &mut Pod,
    name: &PodName,
    config: &Config,
    records: &Records,
    allocations: impl Iterator<Item = &'a Allocation>,
    problems: &mut Vec<Problem>,
) {
    let own = allocations.filter(|allocation| is_of(allocation, pod));
    let own: Vec<IpAddr> = own.map(|allocation| allocation.address).collect();
    if !own.is_empty() {
        if pod.node.is_empty() {
            pod.node.clone_from(&config.node_name);
        }
        pod.addresses = own;
        return;
    }
    // What this node announced and no longer has is on its way out.
    let status = records.pod_status.get(name).filter(|status| status.node != config.node_name);
    let Some(status) = status.filter(|status| same_uid(&status.uid, &pod.uid)) else { return };
    if pod.node.is_empty() {
        pod.node.clone_from(&status.node);
    }
    if pod.node == status.node {
        pod.addresses = within_range(name, status, records.nodes.get(&status.node), problems);
    }
}

/// A node speaks for its own range only.
fn within_range(
    name: &PodName,
    status: &PodStatus,
    node: Option<&Arc<Node>>,
    problems: &mut Vec<Problem>,
) -> Vec<IpAddr> {
    let ranges = node.map_or(&[][..], |node| &node.pod_ranges);
    let (inside, outside): (Vec<IpAddr>, Vec<IpAddr>) =
        status.addresses.iter().partition(|address| ranges.iter().any(|range| range.contains(*address)));
    for address in outside {
        let message = format!(
            "{address} lies outside of the pod ranges of node {:?} and is not believed: correct the Node's podCIDR",
            status.node
        );
        problems.push(Problem { location: format!("announced addresses of Pod {name}"), message });
    }
    inside
}

/// Whether an allocation was made for this very pod.
pub(super) fn is_of(allocation: &Allocation, pod: &Pod) -> bool {
    allocation.pod_namespace == pod.namespace
        && allocation.pod_name == pod.name
        && same_uid(&allocation.pod_uid, &pod.uid)
}

/// A side that knows no uid cannot disagree.
pub(super) fn same_uid(a: &str, b: &str) -> bool {
    a.is_empty() || b.is_empty() || a == b
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Cli;
    use crate::journal::allocation;

    fn config() -> Config {
        Config::load(&Cli::parse_from(["mesh-agent", "--node-name=node-1", "--pod-network=10.0.0.0/8"]))
            .unwrap()
    }

    fn records(pods: &[Pod], status: &[(&str, &str, &str, &str)]) -> Records {
        let mut records = Records::default();
        for (name, range) in [("node-1", "10.1.0.0/16"), ("node-2", "10.2.0.0/16")] {
            let node =
                Node { name: name.into(), addresses: Vec::new(), pod_ranges: vec![range.parse().unwrap()] };
            records.nodes.insert(name.into(), Arc::new(node));
        }
        for pod in pods {
            records.pods.insert(PodName::new(&pod.namespace, &pod.name), Arc::new(pod.clone()));
        }
        for (pod, address, node, uid) in status {
            let status = PodStatus {
                addresses: vec![address.parse().unwrap()],
                node: (*node).into(),
                uid: (*uid).into(),
            };
            records.pod_status.insert(PodName::new("default", pod), status);
        }
        records
    }

    fn pod(name: &str, node: &str, uid: &str) -> Pod {
        Pod {
            namespace: "default".into(),
            name: name.into(),
            node: node.into(),
            uid: uid.into(),
            ..Pod::default()
        }
    }

    fn placed(records: &Records, allocations: &[Allocation]) -> (Vec<(String, Vec<String>)>, usize) {
        let mut problems = Vec::new();
        let world = build(&config(), records, &[], allocations.iter(), &mut problems);
        let text = |pod: &Pod| pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        (world.pods.iter().map(|pod| (pod.node.clone(), text(pod))).collect(), problems.len())
    }

    #[test]
    fn own_addresses_come_from_the_journal_and_others_from_their_nodes() {
        let records = records(
            &[pod("a", "", ""), pod("b", "", "")],
            &[("a", "10.2.0.9", "node-2", ""), ("b", "10.2.0.5", "node-2", "")],
        );
        let (pods, problems) = placed(&records, &[allocation("a", "10.1.0.2")]);
        assert_eq!(
            pods,
            [
                ("node-1".to_owned(), vec!["10.1.0.2".to_owned()]),
                ("node-2".to_owned(), vec!["10.2.0.5".to_owned()])
            ]
        );
        assert_eq!(problems, 0);
    }

    #[test]
    fn what_a_node_may_not_announce_is_not_believed() {
        let nothing = |pods: &[Pod], status| {
            let (placed, problems) = placed(&records(pods, status), &[]);
            assert_eq!(placed[0].1, [""; 0]);
            problems
        };
        assert_eq!(
            nothing(&[pod("a", "", "")], &[("a", "10.1.0.5", "node-2", "")]),
            1,
            "another node's range"
        );
        assert_eq!(nothing(&[pod("a", "", "")], &[("a", "10.9.0.5", "node-9", "")]), 1, "no such node");
        assert_eq!(nothing(&[pod("a", "node-3", "")], &[("a", "10.2.0.5", "node-2", "")]), 0, "not its pod");
        assert_eq!(
            nothing(&[pod("a", "", "new")], &[("a", "10.2.0.5", "node-2", "old")]),
            0,
            "the pod before it"
        );
        assert_eq!(nothing(&[pod("a", "", "")], &[("a", "10.1.0.5", "node-1", "")]), 0, "gone from here");
    }

    #[test]
    fn an_allocation_of_the_pod_before_it_is_not_its_own() {
        let records = records(&[pod("a", "node-1", "new")], &[]);
        let old = Allocation { pod_uid: "old".into(), ..allocation("a", "10.1.0.2") };
        assert_eq!(placed(&records, &[old]).0[0].1, [""; 0]);
        let new = Allocation { pod_uid: "new".into(), ..allocation("a", "10.1.0.3") };
        assert_eq!(placed(&records, &[new]).0[0].1, ["10.1.0.3"]);
    }
}
