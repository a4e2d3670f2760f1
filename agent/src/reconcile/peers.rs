//! Other nodes: what the tunnel is told of them, and what routes are made to them.

use std::net::IpAddr;

use api::agent::Peer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use policy::{Node, Problem};

use crate::config::Config;
use crate::known_nodes::KnownNodes;
use crate::node::PeerNode;
use crate::source::Records;

/// Bytes of a WireGuard public key.
const KEY_BYTES: usize = 32;

/// All other nodes: their routes, and those of them whose key is known as peers of the tunnel.
///
/// What a peer may send from is what the Node object says, not what the node says of itself.
pub(super) fn build(
    config: &Config,
    records: &Records,
    known: &KnownNodes,
    problems: &mut Vec<Problem>,
) -> (Vec<PeerNode>, Vec<Peer>) {
    let (mut routes, mut peers) = (Vec::new(), Vec::new());
    for (name, node) in records.nodes.iter().filter(|(name, _)| **name != config.node_name) {
        let pod_ranges = within_network(config, node, problems);
        let addresses = addresses_of(node, known, problems);
        let peer = known.status().get(name).and_then(|status| match decode_key(&status.public_key) {
            Ok(public_key) => Some(Peer {
                node: name.clone(),
                public_key,
                endpoint: status.endpoint.to_string(),
                allowed_ips: allowed_ips(&pod_ranges, &addresses),
            }),
            Err(message) => {
                problems.push(Problem { location: format!("announced key of Node {name}"), message });
                None
            }
        });
        routes.push(PeerNode { addresses, pod_ranges, reachable: peer.is_some() });
        peers.extend(peer);
    }
    (routes, peers)
}

/// Those of the Node object. One that has lost them keeps those that it had.
fn addresses_of(node: &Node, known: &KnownNodes, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    if !node.addresses.is_empty() {
        return node.addresses.clone();
    }
    let last = known.addresses().get(&node.name).cloned().unwrap_or_default();
    problems.push(Problem {
        location: format!("Node {}", node.name),
        message: match last.as_slice() {
            [] => "status.addresses: an InternalIP is needed; until then it cannot be reached".to_owned(),
            last => format!("status.addresses: an InternalIP is needed; {last:?} of before stays in force"),
        },
    });
    last
}

/// Whether this node is the only one. A source that does not name this node itself, or that could not be read in part, does not say so.
pub(super) fn is_alone(config: &Config, records: &Records) -> bool {
    records.problems.is_empty() && records.nodes.keys().eq([&config.node_name])
}

/// A range outside of the pod network would take away what this node itself sends there.
fn within_network(config: &Config, node: &Node, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let (inside, outside): (Vec<IpNet>, Vec<IpNet>) =
        node.pod_ranges.iter().partition(|range| config.pod_network.contains(*range));
    problems.extend(outside.iter().filter(|range| range.addr().is_ipv4()).map(|range| Problem {
        location: format!("Node {}", node.name),
        message: format!(
            "spec.podCIDR: {range} lies outside of the pod network {} (--pod-network) and has no effect",
            config.pod_network
        ),
    }));
    inside
}

fn allowed_ips(ranges: &[IpNet], addresses: &[IpAddr]) -> Vec<String> {
    let addresses = addresses.iter().map(|&address| IpNet::from(address));
    ranges.iter().copied().chain(addresses).map(|net| net.to_string()).collect()
}

fn decode_key(text: &str) -> Result<Vec<u8>, String> {
    let key = STANDARD.decode(text).map_err(|error| format!("{error}; the node stays unreachable"))?;
    if key.len() != KEY_BYTES {
        return Err(format!("{} bytes, {KEY_BYTES} expected; the node stays unreachable", key.len()));
    }
    Ok(key)
}

/// The key as status files have it; none if it is no key.
pub(super) fn encode_key(key: &[u8]) -> Option<String> {
    (key.len() == KEY_BYTES).then(|| STANDARD.encode(key))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;

    use super::*;
    use crate::config::Cli;
    use crate::source::NodeStatus;

    #[test]
    fn a_node_without_a_key_is_no_peer_and_not_reachable() {
        let mut records = Records::default();
        for i in 1..=4 {
            let node = Node {
                name: format!("node-{i}"),
                addresses: vec![IpAddr::from([172, 31, i, 2])],
                pod_ranges: vec![format!("10.{i}.0.0/16").parse().unwrap(), "172.31.0.0/16".parse().unwrap()],
            };
            records.nodes.insert(node.name.clone(), Arc::new(node));
        }
        let status = |i: u8, key: &str| NodeStatus {
            public_key: key.to_owned(),
            endpoint: format!("172.31.{i}.2:51820").parse().unwrap(),
            address: IpAddr::from([172, 31, i, 2]),
            pod_ranges: vec!["0.0.0.0/0".parse().unwrap()],
        };
        let good = encode_key(&[7; 32]).unwrap();
        records.node_status = [
            ("node-1".to_owned(), status(1, &good)),
            ("node-2".to_owned(), status(2, &good)),
            ("node-3".to_owned(), status(3, "c2hvcnQ=")),
            ("node-9".to_owned(), status(9, &good)),
        ]
        .into();
        let folder = tempfile::tempdir().unwrap();
        let mut known = KnownNodes::open(&folder.path().join("nodes.json"));
        known.learn(&records);
        let mut problems = Vec::new();
        let config =
            Config::load(&Cli::parse_from(["mesh-agent", "--node-name=node-1", "--pod-network=10.0.0.0/8"]))
                .unwrap();
        let (routes, peers) = build(&config, &records, &known, &mut problems);
        let ranges: Vec<_> = routes.iter().map(|route| route.pod_ranges.len()).collect();
        assert_eq!(ranges, [1, 1, 1], "not what lies outside of the pod network");
        assert_eq!(routes.iter().map(|route| route.reachable).collect::<Vec<_>>(), [true, false, false]);
        let [peer] = peers.as_slice() else { panic!("{peers:?}") };
        assert_eq!((peer.node.as_str(), peer.endpoint.as_str()), ("node-2", "172.31.2.2:51820"));
        assert_eq!(peer.allowed_ips, ["10.2.0.0/16", "172.31.2.2/32"], "not what it says of itself");
        assert_eq!(problems.len(), 4);

        // Its object loses its address: the way stays, and with it the ban on any other.
        let mut broken = Node::clone(&records.nodes["node-2"]);
        broken.addresses.clear();
        records.nodes.insert(broken.name.clone(), Arc::new(broken));
        known.learn(&records);
        let before = (routes, peers);
        let mut problems = Vec::new();
        assert_eq!(build(&config, &records, &known, &mut problems), before);
        assert!(problems.iter().any(|problem| problem.message.contains("status.addresses")), "{problems:?}");
    }

    #[test]
    fn a_node_is_alone_only_if_a_source_that_was_read_names_it_and_no_other() {
        let config =
            Config::load(&Cli::parse_from(["mesh-agent", "--node-name=node-1", "--pod-network=10.0.0.0/8"]))
                .unwrap();
        let node = |name: &str| Node { name: name.to_owned(), addresses: Vec::new(), pod_ranges: Vec::new() };
        let records = |names: &[&str]| {
            let nodes = names.iter().map(|name| ((*name).to_owned(), Arc::new(node(name)))).collect();
            Records { nodes, ..Records::default() }
        };
        assert!(is_alone(&config, &records(&["node-1"])));
        for names in [&[][..], &["node-2"], &["node-1", "node-2"]] {
            assert!(!is_alone(&config, &records(names)), "{names:?}");
        }
        let mut in_part = records(&["node-1"]);
        in_part.problems.push(Problem { location: "node-2.yaml".into(), message: "not YAML".into() });
        assert!(!is_alone(&config, &in_part));
    }
}
