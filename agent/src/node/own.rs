//! What this node is: its address, its pods' ranges and its uplink, from its Node object and the devices that are there.

use std::net::IpAddr;

use host::netlink::{Link, Netlink};
use ipnet::IpNet;
use policy::Node;

use super::NodeError;
use crate::config::Config;
use crate::ipam;

/// Bytes that encryption adds to a packet: IPv6 header 40, UDP 8, WireGuard 32.
const TUNNEL_OVERHEAD: u32 = 80;
/// The smallest MTU that IPv6 may have; below it the uplink cannot carry pods.
const MIN_MTU: u32 = 1280;

/// The device of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
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
        Ok(Self { address, pod_ranges, uplink: Uplink { index: uplink.index, name: uplink.name }, mtu })
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
