//! What the agent makes of the node: kernel settings, the tunnel device, rules, routes, the firewall table. Every step is
//! idempotent, so a restart adopts what is there, and is taken again regularly; nothing is torn down when the agent ends.
//! docs/ARCHITECTURE.md has the list ("Addresses, routes, rules").

mod cleanup;
mod firewall;
mod follow;
mod keep;
mod lost;
mod own;
mod settings;
mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;

use host::netlink::{Link, Netlink, NetlinkError};
use host::sysctl::SysctlError;
use host::tun::TunError;
use ipnet::IpNet;
use policy::Node;

use crate::config::Config;

pub use cleanup::cleanup;
pub use firewall::FirewallError;
pub use follow::Follow;
pub use keep::Outcome;
pub use own::Uplink;
pub use wanted::{PeerNode, PodLink};

use firewall::Firewall;
use own::Own;

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

impl NodeError {
    /// Whether nothing but another start can help: the administrator must change the kernel's settings first.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Setting { .. } | Self::Sysctl(_))
    }
}

/// The node's own network.
pub struct NodeNetwork {
    netlink: Netlink,
    config: Config,
    /// Device of the underlay.
    pub uplink: Uplink,
    /// The TUN; none without encryption, or before it could be made.
    pub tunnel: Option<Link>,
    /// MTU of pods.
    pub mtu: u32,
    /// This node's address.
    pub address: IpAddr,
    /// All addresses that its processes may speak from, sorted; [`Self::look_at_addresses`].
    pub host_addresses: Vec<IpAddr>,
    /// Where its pods get their addresses from; at least one.
    pub pod_ranges: Vec<IpNet>,
    /// Addresses that pods of this node have outside of its ranges, which were others when they got them.
    strays: Vec<IpAddr>,
    peers: Vec<PeerNode>,
    firewall: Firewall,
}

impl NodeNetwork {
    /// Checks the node and its kernel's settings. Nothing else is made: [`Self::ensure_devices`] and
    /// [`Self::ensure_ways`] follow.
    ///
    /// # Errors
    /// What is wrong with the Node object, the devices or the kernel's settings.
    pub async fn set_up(config: &Config, node: &Node) -> Result<Self, NodeError> {
        let netlink = Netlink::connect()?;
        let Own { address, pod_ranges, uplink, mtu } = Own::find(&netlink, config, node).await?;
        settings::check(&uplink.name)?;
        for (_, written) in settings::write() {
            written?;
        }
        Ok(Self {
            netlink,
            config: config.clone(),
            uplink,
            tunnel: None,
            mtu,
            address,
            host_addresses: Vec::new(),
            pod_ranges,
            strays: Vec::new(),
            peers: Vec::new(),
            firewall: Firewall::default(),
        })
    }

    /// Becomes what the Node object and the devices say now, if that is something else. Whether it was.
    ///
    /// # Errors
    /// What is wrong with them; the node stays what it was.
    pub async fn follow(&mut self, node: &Node) -> Result<bool, NodeError> {
        let own = Own::find(&self.netlink, &self.config, node).await?;
        let before = Own {
            address: self.address,
            pod_ranges: self.pod_ranges.clone(),
            uplink: self.uplink.clone(),
            mtu: self.mtu,
        };
        let changed = own != before;
        Own { address: self.address, pod_ranges: self.pod_ranges, uplink: self.uplink, mtu: self.mtu } = own;
        Ok(changed)
    }

    /// What is known of the other nodes, and which addresses this node's pods have outside of its ranges. Whether that is
    /// something new: then [`Self::ensure_ways`] is to follow.
    pub fn set_neighbourhood(&mut self, peers: Vec<PeerNode>, strays: Vec<IpAddr>) -> bool {
        let changed = self.peers != peers || self.strays != strays;
        (self.peers, self.strays) = (peers, strays);
        changed
    }

    /// All devices.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn links(&self) -> Result<Vec<Link>, NodeError> {
        Ok(self.netlink.links().await?)
    }

    /// Numbers of the devices on which a queueing discipline works.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn devices_with_queues(&self) -> Result<BTreeSet<u32>, NodeError> {
        Ok(self.netlink.devices_with_queues().await?)
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

/// A node without devices, on a machine of whoever runs the tests: nothing is written there.
#[cfg(test)]
fn network_of_a_test(arguments: &[&str], peers: Vec<PeerNode>) -> NodeNetwork {
    use clap::Parser as _;
    let cli = [&["mesh-agent", "--node-name", "node-1", "--pod-network", "10.0.0.0/8"], arguments].concat();
    NodeNetwork {
        netlink: Netlink::connect().unwrap(),
        config: Config::load(&crate::config::Cli::parse_from(cli)).unwrap(),
        uplink: Uplink { index: 2, name: "uplink".to_owned(), neighbourhood: own::Neighbourhood::default() },
        tunnel: None,
        mtu: 1420,
        address: IpAddr::from([10, 99, 0, 1]),
        pod_ranges: vec!["10.1.0.0/16".parse().unwrap()],
        host_addresses: Vec::new(),
        strays: Vec::new(),
        peers,
        firewall: Firewall::default(),
    }
}

#[cfg(test)]
fn peer_of_a_test(address: [u8; 4], range: &str) -> PeerNode {
    let pod_ranges = vec![range.parse().unwrap()];
    PeerNode { addresses: vec![IpAddr::from(address)], pod_ranges, reachable: true }
}
