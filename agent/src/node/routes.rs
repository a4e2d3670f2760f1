//! Routes and rules: what is local, what goes through the tunnel, and the blackholes below.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use host::netlink::{FwMark, ROUTE_PROTOCOL, Route, Rule, TABLE_MAIN};
use ipnet::IpNet;
use layout::mark;

use super::{NodeError, NodeNetwork, masquerade};
use crate::names::is_host_interface;

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

pub(super) fn rules(pod_ranges: &[IpNet]) -> Vec<Rule> {
    let mark = FwMark { value: mark::TO_PROXY, mask: mark::MASK };
    let proxy = Rule { priority: PRIORITY_PROXY, mark: Some(mark), from: None, table: TABLE_PROXY };
    let nodes = pod_ranges.iter().map(|&range| Rule {
        priority: PRIORITY_NODES,
        mark: None,
        from: Some(range),
        table: TABLE_NODES,
    });
    std::iter::once(proxy).chain(nodes).collect()
}

impl NodeNetwork {
    /// What must be there before the first pod.
    pub(super) async fn routes_before_pods(&self) -> Result<(), NodeError> {
        let blackhole = Route::blackhole(self.config.pod_network).with_metric(BLACKHOLE_METRIC);
        self.netlink.ensure_route(&blackhole).await?;
        let everything = IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        self.netlink.ensure_route(&Route::local(everything, LOOPBACK).in_table(TABLE_PROXY)).await?;
        for rule in rules(&self.pod_ranges) {
            self.netlink.ensure_rule(&rule).await?;
        }
        Ok(())
    }

    /// Routes to exactly these peers. New ways are made before old ones are removed.
    ///
    /// # Errors
    /// What the kernel refused; call it again then.
    pub async fn set_peers(&mut self, peers: &[PeerNode]) -> Result<(), NodeError> {
        if self.peers.as_deref() == Some(peers) {
            return Ok(());
        }
        self.peers = None;
        let wanted = self.peer_routes(peers);
        for route in &wanted {
            self.netlink.ensure_route(route).await?;
        }
        let place = |route: &Route| (route.table, route.destination, route.metric);
        let keep: HashSet<_> = wanted.iter().map(place).collect();
        for route in self.routes_to_peers().await? {
            if !keep.contains(&place(&route)) {
                self.netlink.delete_route(&route).await?;
            }
        }
        let addresses = peers.iter().flat_map(|peer| &peer.addresses).chain([&self.address]);
        let addresses: Vec<IpAddr> = addresses.filter(|address| address.is_ipv4()).copied().collect();
        masquerade::apply(self.config.pod_network, &self.pod_ranges, &addresses).await?;
        self.peers = Some(peers.to_vec());
        Ok(())
    }

    fn peer_routes(&self, peers: &[PeerNode]) -> Vec<Route> {
        let mut routes = Vec::new();
        for peer in peers {
            let addresses = peer.addresses.iter().filter(|address| address.is_ipv4());
            let ranges = peer.pod_ranges.iter().filter(|range| range.addr().is_ipv4());
            match &self.tunnel {
                Some(tunnel) => {
                    for &address in addresses {
                        let address = IpNet::from(address);
                        // Always below the way: when the device is deleted or set down, the kernel removes the way, and
                        // the main table would send in clear.
                        let blackhole = Route::blackhole(address).with_metric(BLACKHOLE_METRIC);
                        routes.push(blackhole.in_table(TABLE_NODES));
                        let way = Route::link(address, tunnel.index).in_table(TABLE_NODES);
                        routes.extend(peer.reachable.then_some(way));
                    }
                    // Without a key the blackhole of the whole pod network stays.
                    let ranges = ranges.filter(|_| peer.reachable);
                    routes.extend(ranges.map(|&range| Route::link(range, tunnel.index)));
                }
                None => {
                    let Some(&gateway) = peer.addresses.iter().find(|address| address.is_ipv4()) else {
                        continue;
                    };
                    routes.extend(ranges.map(|&range| Route::via(range, gateway, self.uplink.index)));
                }
            }
        }
        routes
    }

    /// Addresses of this node's pods that a device has, known to the journal or not.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn routed_pods(&self) -> Result<Vec<IpAddr>, NodeError> {
        let links = self.netlink.links().await?;
        let hosts = links.iter().filter(|link| is_host_interface(&link.name));
        let hosts: HashSet<u32> = hosts.map(|link| link.index).collect();
        let routes = self.netlink.routes(TABLE_MAIN).await?;
        let to_hosts =
            routes.iter().filter(|route| route.device.is_some_and(|device| hosts.contains(&device)));
        let addresses = to_hosts.map(|route| route.destination.addr());
        Ok(addresses.filter(|address| self.pod_ranges.iter().any(|range| range.contains(address))).collect())
    }

    /// Those that are there, made by us.
    async fn routes_to_peers(&self) -> Result<Vec<Route>, NodeError> {
        let devices = [self.tunnel.as_ref().map(|link| link.index), Some(self.uplink.index)];
        let mut found = self.netlink.routes(TABLE_NODES).await?;
        let main = self.netlink.routes(TABLE_MAIN).await?;
        found.extend(
            main.into_iter().filter(|route| route.device.is_some() && devices.contains(&route.device)),
        );
        found.retain(|route| route.protocol == ROUTE_PROTOCOL);
        Ok(found)
    }
}
