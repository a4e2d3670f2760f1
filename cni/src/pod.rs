//! The pair of devices between a pod and its node.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use host::netlink::{Link, Mac, Netlink, Route, Rule, TABLE_MAIN, VethPair};
use host::netns::NetNs;
use ipnet::IpNet;

use crate::agent::Allocation;
use crate::error::CniError;
use crate::request::Target;

/// Of the rules in a pod that send what has the address of a second interface out through that
/// interface.
const SOURCE_PRIORITY: u32 = 1000;
/// The table that such a rule looks into is this and the number of the device.
const SOURCE_TABLES: u32 = 200_000;
/// Kind of the devices.
const VETH: &str = "veth";

/// A pod's namespace and the node's, with a connection to each.
pub(crate) struct Ends {
    namespace: NetNs,
    pub(crate) pod: Netlink,
    pub(crate) node: Netlink,
}

/// A pair that exists.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) pod: Link,
    pub(crate) pod_mac: Mac,
    pub(crate) host: Link,
    pub(crate) host_mac: Mac,
    /// Of the pod's routes through it.
    pub(crate) metric: u32,
}

impl Ends {
    /// Opens the pod's namespace. The plugin's own is refused: its devices are the node's.
    pub(crate) fn open(netns: &Path) -> Result<Self, CniError> {
        let namespace = NetNs::open(netns)?;
        if namespace == NetNs::current()? {
            return Err(CniError::NetNs(format!("{} is the node's own network namespace", netns.display())));
        }
        let pod = Netlink::connect_in(&namespace)?;
        Ok(Self { namespace, pod, node: Netlink::connect()? })
    }

    /// Makes the pair. A host side of this name whose other end is not where it should be is a left-over of an attempt that was
    /// killed, and goes first.
    pub(crate) async fn create(&self, ifname: &str, allocation: &Allocation) -> Result<Pair, CniError> {
        if let Some(stale) = self.node.link(&allocation.host_interface).await? {
            if stale.kind.as_deref() != Some(VETH) {
                return Err(CniError::HostInterfaceExists(stale.name));
            }
            self.node.delete_link_by_index(stale.index).await?;
        }
        // Chosen here: addresses that the kernel chose are changed by udev (MACAddressPolicy) after the neighbour entries are set.
        let (host_mac, pod_mac) = (random_mac()?, random_mac()?);
        let pair = VethPair {
            name: &allocation.host_interface,
            mac: Some(host_mac),
            peer_name: ifname,
            peer_mac: Some(pod_mac),
            peer_namespace: Some(&self.namespace),
            mtu: allocation.mtu,
        };
        self.node.create_veth(&pair).await?;
        let gone = |name: &str| CniError::NetNs(format!("{name} vanished while the pod was attached"));
        let host = self.node.link(&allocation.host_interface).await?;
        let host = host.ok_or_else(|| gone(&allocation.host_interface))?;
        let pod = self.pod.link(ifname).await?.ok_or_else(|| gone(ifname))?;
        Ok(Pair { pod, pod_mac, host, host_mac, metric: 0 })
    }

    /// Address, routes and neighbour in the pod. Returns the metric of the routes.
    pub(crate) async fn configure_pod(&self, pair: &Pair, allocation: &Allocation) -> Result<u32, CniError> {
        let device = pair.pod.index;
        self.pod.set_loopback_up().await?;
        self.pod.ensure_address(device, IpNet::from(allocation.address)).await?;
        self.pod.set_up(device).await?;
        self.pod.ensure_neighbour(device, allocation.gateway, pair.host_mac).await?;
        let metric = self.create_routes(device, allocation.gateway).await?;
        if metric != 0 {
            self.create_source_rule(device, allocation).await?;
        }
        Ok(metric)
    }

    /// The way out of the pod, by way of the gateway. A pod that has one through another interface
    /// keeps it: it belongs to another attachment, whose DEL takes it away and leaves this one,
    /// which is behind it until then.
    async fn create_routes(&self, device: u32, gateway: IpAddr) -> Result<u32, CniError> {
        /// Another ADD may make one between the look and the routes, each time.
        const ATTEMPTS: u32 = 5;
        let (link, out) = (Route::link(IpNet::from(gateway), device), everything(gateway));
        let mut attempt = 1;
        loop {
            let metric = self.free_metric(&[link.destination, out]).await?;
            let link = link.clone().with_metric(metric);
            let default = Route::via(out, gateway, device).with_metric(metric);
            let created = match self.pod.create_route(&link).await {
                Ok(()) => self.pod.create_route(&default).await,
                failed => failed,
            };
            match created {
                Ok(()) => return Ok(metric),
                Err(error) if error.is_exists() && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
            self.pod.delete_route(&link).await?;
        }
    }

    /// What is sent from the address of an interface whose routes are not the pod's best ones: by
    /// the other interface `from_pod` would refuse it, and no peer of this address would get an
    /// answer.
    async fn create_source_rule(&self, device: u32, allocation: &Allocation) -> Result<(), CniError> {
        let (gateway, table) = (allocation.gateway, SOURCE_TABLES.saturating_add(device));
        self.pod.create_route(&Route::link(IpNet::from(gateway), device).in_table(table)).await?;
        self.pod.create_route(&Route::via(everything(gateway), gateway, device).in_table(table)).await?;
        let from = Some(IpNet::from(allocation.address));
        self.pod.ensure_rule(&Rule { priority: SOURCE_PRIORITY, mark: None, from, table }).await?;
        Ok(())
    }

    /// Routes go with their device, rules do not.
    pub(crate) async fn delete_source_rules(&self, device: u32) -> Result<(), CniError> {
        let table = SOURCE_TABLES.saturating_add(device);
        for rule in self.pod.rules().await?.iter().filter(|rule| rule.table == table) {
            self.pod.delete_rule(rule).await?;
        }
        Ok(())
    }

    /// 0 if no route of the pod leads to any of these networks, else worse than all that do.
    async fn free_metric(&self, networks: &[IpNet]) -> Result<u32, CniError> {
        let routes = self.pod.routes(TABLE_MAIN).await?;
        let taken =
            routes.iter().filter(|route| networks.contains(&route.destination)).map(|route| route.metric);
        Ok(taken.max().map_or(0, |metric| metric.saturating_add(1)))
    }

    /// Route and neighbour on the node.
    pub(crate) async fn configure_host(&self, pair: &Pair, allocation: &Allocation) -> Result<(), CniError> {
        let device = pair.host.index;
        self.node.set_up(device).await?;
        self.node.ensure_neighbour(device, allocation.address, pair.pod_mac).await?;
        self.node.ensure_route(&Route::link(IpNet::from(allocation.address), device)).await?;
        Ok(())
    }

    /// The pair of `target`, if ADD made it: the other end is on this node and has the name of this
    /// attachment. A device that another plugin made, or that belongs to another attachment, does
    /// not.
    pub(crate) async fn find(&self, target: &Target) -> Result<Option<(Link, Link)>, CniError> {
        let Some(pod) = self.pod.link(&target.ifname).await? else { return Ok(None) };
        let Some(peer) = pod.peer.filter(|_| pod.kind.as_deref() == Some(VETH)) else { return Ok(None) };
        let host = self.node.link_by_index(peer).await?;
        let is_other_end = |host: &Link| is_host_side(host, target) && host.peer == Some(pod.index);
        Ok(host.filter(is_other_end).map(|host| (pod, host)))
    }
}

/// Whether a device of the node is the host side of this very attachment, by its kind and its name.
/// The name is a hash of container ID and interface, so no other device has it.
pub(crate) fn is_host_side(link: &Link, target: &Target) -> bool {
    link.kind.as_deref() == Some(VETH) && link.name == target.host_interface()
}

/// `0.0.0.0/0` or `::/0`, whichever `gateway` is of.
pub(crate) fn everything(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// Locally administered, unicast (IEEE 802).
fn random_mac() -> Result<Mac, CniError> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|source| CniError::System { action: "cannot read /dev/urandom", source })?;
    let [first, rest @ ..] = bytes;
    let [b, c, d, e, f] = rest;
    Ok(Mac([(first | 0x02) & !0x01, b, c, d, e, f]))
}
