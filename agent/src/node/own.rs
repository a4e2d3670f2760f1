//! What this node is: its address, its pods' ranges and its uplink, from its Node object and the devices that are there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use host::netlink::{Link, Netlink, TABLE_MAIN};
use ipnet::IpNet;
use policy::Node;

use super::{NodeError, NodeNetwork};
use crate::config::Config;
use crate::ipam;

/// Bytes that encryption adds to a packet: IPv6 header 40, UDP 8, WireGuard 32.
const TUNNEL_OVERHEAD: u32 = 80;
/// The smallest MTU that IPv6 may have; below it the uplink cannot carry pods.
const MIN_MTU: u32 = 1280;

/// Device on which kube-proxy in IPVS mode keeps the addresses of all services: no process of the node has them.
const SERVICE_ADDRESSES: &str = "kube-ipvs0";

/// The device of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// How other nodes are reached through it; looked for only without encryption.
    pub neighbourhood: Neighbourhood,
}

/// What is behind a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbourhood {
    /// Networks that are directly on it.
    pub on_link: Vec<IpNet>,
    /// The router to all others.
    pub router: Option<IpAddr>,
}

impl Neighbourhood {
    async fn of(netlink: &Netlink, device: u32) -> Result<Self, NodeError> {
        let addresses = netlink.addresses().await?;
        let on_link = addresses.iter().filter(|(index, _)| *index == device).map(|(_, net)| net.trunc());
        let routes = netlink.routes(TABLE_MAIN).await?;
        let defaults = routes.iter().filter(|route| {
            route.device == Some(device) && route.destination.prefix_len() == 0 && route.gateway.is_some()
        });
        let router = defaults.min_by_key(|route| route.metric).and_then(|route| route.gateway);
        Ok(Self { on_link: on_link.collect(), router })
    }

    /// Who takes packets to the pods of the node with this address: that node itself, or the router, which must know
    /// where the pods are.
    pub(super) fn next_hop(&self, node: IpAddr) -> Option<IpAddr> {
        if self.on_link.iter().any(|net| net.contains(&node)) { Some(node) } else { self.router }
    }
}

impl NodeNetwork {
    /// Looks which addresses this node has beside that of its Node object: bridges of containers, other networks. Whether
    /// they are others than at the last look.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn look_at_addresses(&mut self) -> Result<bool, NodeError> {
        let services = self.netlink.link(SERVICE_ADDRESSES).await?.map(|link| link.index);
        let found = self.netlink.addresses().await?.into_iter();
        let own = found.filter(|(device, net)| {
            let of_pods = self.config.pod_network.contains(&net.addr());
            Some(*device) != services && net.addr().is_ipv4() && !net.addr().is_loopback() && !of_pods
        });
        let own: BTreeSet<IpAddr> = own.map(|(_, net)| net.addr()).collect();
        let own: Vec<IpAddr> = own.into_iter().collect();
        let changed = self.host_addresses != own;
        self.host_addresses = own;
        Ok(changed)
    }
}

/// A node as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) address: IpAddr,
    pub(super) pod_ranges: Vec<IpNet>,
    pub(super) uplink: Uplink,
    /// MTU of pods.
    pub(super) mtu: u32,
}

impl Own {
    /// What the Node object and the devices say now.
    pub(super) async fn find(netlink: &Netlink, config: &Config, node: &Node) -> Result<Self, NodeError> {
        let (address, pod_ranges) = addresses(config, node)?;
        let uplink = find_uplink(netlink, config, address).await?;
        let overhead = if config.encryption { TUNNEL_OVERHEAD } else { 0 };
        let mtu = uplink.mtu.saturating_sub(overhead);
        if mtu < MIN_MTU {
            let problem =
                format!("MTU {} is too small: at least {} is needed", uplink.mtu, MIN_MTU + overhead);
            return Err(NodeError::Device { device: uplink.name, problem });
        }
        let neighbourhood = match config.encryption {
            true => Neighbourhood::default(),
            false => Neighbourhood::of(netlink, uplink.index).await?,
        };
        let uplink = Uplink { index: uplink.index, name: uplink.name, neighbourhood };
        Ok(Self { address, pod_ranges, uplink, mtu })
    }
}

fn addresses(config: &Config, node: &Node) -> Result<(IpAddr, Vec<IpNet>), NodeError> {
    let wrong = |field, problem: String| NodeError::Object { node: node.name.clone(), field, problem };
    let address = node.addresses.iter().find(|address| address.is_ipv4()).copied();
    let address =
        address.ok_or_else(|| wrong("status.addresses", "an InternalIP (IPv4) is needed".to_owned()))?;
    let ranges: Vec<IpNet> = node.pod_ranges.iter().filter(|range| range.addr().is_ipv4()).copied().collect();
    let Some(&first) = ranges.first() else {
        return Err(wrong("spec.podCIDR", "an IPv4 range is needed".to_owned()));
    };
    ipam::usable(first).map_err(|error| wrong("spec.podCIDR", error.to_string()))?;
    for range in &ranges {
        if !config.pod_network.contains(range) {
            let problem =
                format!("{range} lies outside of the pod network {} (--pod-network)", config.pod_network);
            return Err(wrong("spec.podCIDR", problem));
        }
    }
    Ok((address, ranges))
}

async fn find_uplink(netlink: &Netlink, config: &Config, address: IpAddr) -> Result<Link, NodeError> {
    if let Some(name) = &config.uplink {
        let missing =
            || NodeError::Device { device: name.clone(), problem: "no such device (--uplink)".to_owned() };
        return netlink.link(name).await?.ok_or_else(missing);
    }
    let addresses = netlink.addresses().await?;
    let index = addresses.iter().find(|(_, known)| known.addr() == address).map(|(index, _)| *index);
    let index = index.ok_or(NodeError::NoUplink(address))?;
    netlink.link_by_index(index).await?.ok_or(NodeError::NoUplink(address))
}
