//! The routes and rules that a node shall have: what is local, what goes through the tunnel, and the blackholes below.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use host::netlink::{FwMark, Mac, Route, Rule};
use ipnet::IpNet;
use layout::{mark, range_kind};

use super::NodeNetwork;

/// Table in which everything is local: packets on their way to the proxy.
pub(super) const TABLE_PROXY: u32 = 2004;
/// Table of the ways from this node's pods to other nodes' own addresses.
pub(super) const TABLE_NODES: u32 = 2005;
/// Before the kernel's main table (32766), and so that other networks' usual numbers stay free.
pub(super) const PRIORITY_PROXY: u32 = 9;
/// Likewise; after the proxy's.
pub(super) const PRIORITY_NODES: u32 = 20;
/// Behind any other route to the same destination.
const BLACKHOLE_METRIC: u32 = 4_278_198_272;
/// The kernel numbers the loopback device 1 in every namespace.
const LOOPBACK: u32 = 1;

/// Another node, as far as routes are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its pods' addresses.
    pub pod_ranges: Vec<IpNet>,
    /// Its key is known: there is a way to it. Until then everything to it is dropped.
    pub reachable: bool,
}

/// The host side of a pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Its name.
    pub device: String,
    /// Its number.
    pub index: u32,
    /// The pod's address.
    pub address: IpAddr,
    /// Ethernet address of the pod's side.
    pub mac: Mac,
}

impl NodeNetwork {
    /// Rules, in the order in which they are to be made.
    pub(super) fn wanted_rules(&self) -> Vec<Rule> {
        let mark = FwMark { value: mark::TO_PROXY, mask: mark::MASK };
        let proxy = Rule { priority: PRIORITY_PROXY, mark: Some(mark), from: None, table: TABLE_PROXY };
        let nodes = self.pod_sources().into_iter().map(|range| Rule {
            priority: PRIORITY_NODES,
            mark: None,
            from: Some(range),
            table: TABLE_NODES,
        });
        std::iter::once(proxy).chain(nodes).collect()
    }

    /// Where this node's pods send from: its ranges, and addresses of before the ranges changed.
    pub(super) fn pod_sources(&self) -> Vec<IpNet> {
        let strays = self.strays.iter().map(|&address| IpNet::from(address));
        self.pod_ranges.iter().copied().chain(strays).collect()
    }

    /// Where pods and nodes are, for the programs: what may leave the node only through the tunnel.
    /// As with routes, the first of several nodes with the same range has it. A node's address
    /// stays a node's, even inside a range that another node claims for its pods.
    pub fn ranges(&self) -> BTreeMap<IpNet, u32> {
        let v4 = |net: &IpNet| net.addr().is_ipv4();
        let mut ranges = BTreeMap::new();
        let peers = || self.peers.iter();
        for range in peers().flat_map(|peer| peer.pod_ranges.iter().copied()).filter(v4) {
            ranges.insert(range.trunc(), range_kind::PEER_PODS);
        }
        for range in self.pod_sources().into_iter().filter(v4) {
            ranges.insert(range.trunc(), range_kind::OWN_PODS);
        }
        for address in
            peers().flat_map(|peer| &peer.addresses).map(|&address| IpNet::from(address)).filter(v4)
        {
            ranges.insert(address, range_kind::PEER_NODE);
        }
        ranges.insert(self.address.into(), range_kind::OWN_NODE);
        ranges
    }

    /// Routes, in the order in which they are to be made: what drops before what leads somewhere. Of several to the same
    /// place the first.
    pub(super) fn wanted_routes(&self, pods: &[PodLink]) -> Vec<Route> {
        let mut drops = vec![Route::blackhole(self.config.pod_network).with_metric(BLACKHOLE_METRIC)];
        let everything = IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let mut ways = vec![Route::local(everything, LOOPBACK).in_table(TABLE_PROXY)];
        ways.extend(pods.iter().map(|pod| Route::link(IpNet::from(pod.address), pod.index)));
        for peer in &self.peers {
            if self.config.encryption {
                self.add_encrypted(peer, &mut drops, &mut ways);
            } else {
                self.add_plain(peer, &mut ways);
            }
        }
        drops.append(&mut ways);
        let mut places = HashSet::new();
        drops.retain(|route| places.insert((route.table, route.destination, route.metric)));
        drops
    }

    fn add_encrypted(&self, peer: &PeerNode, drops: &mut Vec<Route>, ways: &mut Vec<Route>) {
        // Without a key, or a device, the blackholes alone are there.
        let tunnel = self.tunnel.as_ref().filter(|_| peer.reachable);
        for address in peer.addresses.iter().filter(|address| address.is_ipv4()) {
            let address = IpNet::from(*address);
            // Always below the way: when the device is deleted or set down, the kernel removes the way, and the main
            // table would send in clear.
            drops.push(Route::blackhole(address).with_metric(BLACKHOLE_METRIC).in_table(TABLE_NODES));
            ways.extend(tunnel.map(|tunnel| Route::link(address, tunnel.index).in_table(TABLE_NODES)));
        }
        let ranges = peer.pod_ranges.iter().filter(|range| range.addr().is_ipv4());
        ways.extend(
            tunnel.iter().flat_map(|tunnel| ranges.clone().map(|&range| Route::link(range, tunnel.index))),
        );
    }

    fn add_plain(&self, peer: &PeerNode, ways: &mut Vec<Route>) {
        let address = peer.addresses.iter().find(|address| address.is_ipv4()).copied();
        // Without one the blackhole of the whole pod network stays.
        let Some(gateway) = address.and_then(|address| self.uplink.neighbourhood.next_hop(address)) else {
            return;
        };
        let ranges = peer.pod_ranges.iter().filter(|range| range.addr().is_ipv4());
        ways.extend(ranges.map(|&range| Route::via(range, gateway, self.uplink.index)));
    }
}

#[cfg(test)]
mod tests {
    use host::netlink::{Link, RouteKind};

    use super::super::{network_of_a_test, peer_of_a_test};

    #[tokio::test]
    async fn without_its_device_an_encrypted_node_has_no_way_to_another_but_blackholes() {
        let peers = vec![peer_of_a_test([172, 31, 2, 2], "10.2.0.0/16")];
        let mut network = network_of_a_test(&[], peers);
        let is_way = |route: &&host::netlink::Route| route.kind == RouteKind::Unicast;
        let routes = network.wanted_routes(&[]);
        assert_eq!(routes.iter().filter(is_way).count(), 0, "{routes:?}");
        assert!(routes.iter().any(|route| route.destination.to_string() == "172.31.2.2/32"), "{routes:?}");
        network.tunnel = Some(Link {
            index: 7,
            name: "selvage0".into(),
            mac: None,
            peer_namespace: None,
            mtu: 1420,
            up: true,
            loopback: false,
            kind: None,
            peer: None,
        });
        let routes = network.wanted_routes(&[]);
        let ways: Vec<_> = routes.iter().filter(is_way).map(|route| route.device).collect();
        assert_eq!(ways, [Some(7), Some(7)]);
        let last_drop = routes.iter().rposition(|route| route.kind == RouteKind::Blackhole);
        let first_way = routes.iter().position(|route| route.kind == RouteKind::Unicast);
        assert!(last_drop < first_way, "what drops is made first: {routes:?}");
        network.peers[0].reachable = false;
        assert_eq!(network.wanted_routes(&[]).iter().filter(is_way).count(), 0);
    }

    #[tokio::test]
    async fn two_nodes_with_the_same_range_do_not_take_turns() {
        let peers = [[172, 31, 2, 2], [172, 31, 3, 2]].map(|address| peer_of_a_test(address, "10.2.0.0/16"));
        let mut network = network_of_a_test(&["--encryption", "false"], peers.to_vec());
        network.uplink.neighbourhood.on_link = vec!["172.31.0.0/16".parse().unwrap()];
        let routes = network.wanted_routes(&[]);
        let to_range = routes.iter().filter(|route| route.destination.to_string() == "10.2.0.0/16");
        let gateways: Vec<_> = to_range.map(|route| route.gateway).collect();
        assert_eq!(gateways, [Some(std::net::IpAddr::from([172, 31, 2, 2]))]);
    }
}
