//! What the agent makes of the node: kernel settings, the tunnel device, rules, routes, the firewall table. Every step is
//! idempotent, so a restart adopts what is there; nothing is torn down when the agent ends. docs/ARCHITECTURE.md has the
//! list ("Addresses, routes, rules").

mod cleanup;
mod masquerade;
mod routes;
mod settings;

use std::net::IpAddr;

use host::netlink::{Link, LinkChange, Netlink, NetlinkError};
use host::sysctl::SysctlError;
use host::tun::TunError;
use ipnet::IpNet;
use policy::Node;

use crate::config::Config;

pub use cleanup::cleanup;
pub use masquerade::FirewallError;
pub use routes::PeerNode;

/// Bytes that encryption adds to a packet: IPv6 header 40, UDP 8, WireGuard 32.
const TUNNEL_OVERHEAD: u32 = 80;
/// The smallest MTU that IPv6 may have; below it the uplink cannot carry pods.
const MIN_MTU: u32 = 1280;

/// Why the node cannot be a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The Node object lacks something.
    #[error("Node {node}: {field}: {problem}")]
    Object {
        /// Its name.
        node: String,
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// No device has the node's address.
    #[error(
        "no device has this node's address {0} (status.addresses of its Node object): name the device with --uplink"
    )]
    NoUplink(IpAddr),
    /// A device is not what it should be.
    #[error("device {device}: {problem}")]
    Device {
        /// Its name.
        device: String,
        /// What is wrong.
        problem: String,
    },
    /// A kernel setting would let packets take another way than policy decided.
    #[error(
        "kernel setting {key} is {value}, must be 0: it makes the kernel follow our packet marks elsewhere; sysctl -w {key}=0"
    )]
    Setting {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
    },
    /// A kernel setting could not be read or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Links, routes, rules.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tunnel device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The firewall table.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// Pins.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
}

/// The node's own network, set up.
pub struct NodeNetwork {
    netlink: Netlink,
    config: Config,
    /// Device of the underlay.
    pub uplink: Link,
    /// The TUN; none without encryption.
    pub tunnel: Option<Link>,
    /// MTU of pods.
    pub mtu: u32,
    /// This node's address.
    pub address: IpAddr,
    /// Where its pods get their addresses from; at least one.
    pub pod_ranges: Vec<IpNet>,
    /// Peers as they were last routed.
    peers: Option<Vec<PeerNode>>,
}

impl NodeNetwork {
    /// Checks the node and makes everything that pods need before the first of them, but for what depends on the other
    /// nodes: [`Self::set_peers`] follows. Until then routes to them stay as an earlier agent left them.
    ///
    /// # Errors
    /// What is wrong with the Node object, the kernel's settings, or what the kernel refused.
    pub async fn set_up(config: &Config, node: &Node) -> Result<Self, NodeError> {
        let (address, pod_ranges) = own_addresses(config, node)?;
        let netlink = Netlink::connect()?;
        let uplink = find_uplink(&netlink, config, address).await?;
        settings::check(&uplink.name)?;
        settings::write()?;
        let overhead = if config.encryption { TUNNEL_OVERHEAD } else { 0 };
        let mtu = uplink.mtu.saturating_sub(overhead);
        if mtu < MIN_MTU {
            let problem =
                format!("MTU {} is too small: at least {} is needed", uplink.mtu, MIN_MTU + overhead);
            return Err(NodeError::Device { device: uplink.name, problem });
        }
        let mut network = Self {
            netlink,
            config: config.clone(),
            uplink,
            tunnel: None,
            mtu,
            address,
            pod_ranges,
            peers: None,
        };
        network.routes_before_pods().await?;
        if config.encryption {
            network.tunnel = Some(network.ensure_tunnel().await?);
        }
        Ok(network)
    }

    /// The TUN, made if it is not there: routes need it before the tunnel program runs.
    async fn ensure_tunnel(&self) -> Result<Link, NodeError> {
        let name = &self.config.tunnel_device;
        if self.netlink.link(name).await?.is_none() {
            match host::tun::open_or_create(name, false) {
                // The tunnel program was faster.
                Ok(_) | Err(TunError::Busy(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let device = |problem: &str| NodeError::Device { device: name.clone(), problem: problem.to_owned() };
        let link = self.netlink.link(name).await?.ok_or_else(|| device("it vanished"))?;
        if link.kind.as_deref() != Some("tun") {
            return Err(device(
                "it exists and is no TUN device: delete it or choose another name (--tunnel-device)",
            ));
        }
        if link.mtu != self.mtu || !link.up {
            let change = LinkChange { up: Some(true), mtu: Some(self.mtu), ..LinkChange::default() };
            self.netlink.change_link(link.index, &change).await?;
        }
        settings::write_tunnel(name)?;
        Ok(Link { mtu: self.mtu, up: true, ..link })
    }

    /// Whether the tunnel device was made anew (by somebody who deleted it), so that routes and programs are gone; it is
    /// set up again then.
    ///
    /// # Errors
    /// As [`Self::set_up`].
    pub async fn repair_tunnel(&mut self) -> Result<bool, NodeError> {
        let Some(known) = self.tunnel.clone() else { return Ok(false) };
        let found = self.netlink.link(&known.name).await?;
        if found.is_some_and(|link| link.index == known.index && link.up && link.mtu == known.mtu) {
            return Ok(false);
        }
        tracing::warn!(device = known.name, "the tunnel device was changed by somebody; setting it up again");
        self.tunnel = Some(self.ensure_tunnel().await?);
        let peers = self.peers.take().unwrap_or_default();
        self.set_peers(&peers).await?;
        Ok(true)
    }

    /// The device with this name.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NodeError> {
        Ok(self.netlink.link(name).await?)
    }
}

/// Deletes a device; whether it was there.
///
/// # Errors
/// The kernel refused.
pub async fn delete_device(name: &str) -> Result<bool, NodeError> {
    Ok(Netlink::connect()?.delete_link(name).await?)
}

fn own_addresses(config: &Config, node: &Node) -> Result<(IpAddr, Vec<IpNet>), NodeError> {
    let wrong = |field, problem: String| NodeError::Object { node: node.name.clone(), field, problem };
    let address = node.addresses.iter().find(|address| address.is_ipv4()).copied();
    let address =
        address.ok_or_else(|| wrong("status.addresses", "an InternalIP (IPv4) is needed".to_owned()))?;
    let ranges: Vec<IpNet> = node.pod_ranges.iter().filter(|range| range.addr().is_ipv4()).copied().collect();
    if ranges.is_empty() {
        return Err(wrong("spec.podCIDR", "an IPv4 range is needed".to_owned()));
    }
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
