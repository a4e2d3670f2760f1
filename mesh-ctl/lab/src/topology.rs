//! The network between the namespaces: a link from each node to `outside`, which is the world and the router between them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use host::netlink::{Netlink, NetlinkError, Route, VethPair};
use host::netns::NetNs;
use ipnet::{IpNet, Ipv4Net};

use crate::error::LabError;
use crate::folder::{self, Folder};

/// Name of the world's namespace.
pub const OUTSIDE: &str = "outside";
/// An address in the world that is on no link of a node.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A node's device towards the others.
pub const UPLINK: &str = "uplink";

/// As Ethernet has it.
const UPLINK_MTU: u32 = 1500;
/// `rtm_protocol` of routes set by an administrator: these are not the agent's own.
const ROUTE_PROTOCOL_STATIC: u8 = 4;

/// Address of the node at `place` on its link.
pub const fn node_address(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, place, 2)
}

/// Address of `outside` on the link of the node at `place`.
pub const fn gateway_address(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, place, 1)
}

/// A new namespace with `lo` up.
async fn create(path: &Path) -> Result<(NetNs, Netlink), LabError> {
    let namespace = NetNs::create(path)?;
    let netlink = Netlink::connect_in(&namespace)?;
    netlink.set_loopback_up().await?;
    Ok((namespace, netlink))
}

/// Makes `outside`: it forwards between the nodes, and has no route to any pod yet.
pub(crate) async fn create_outside(lab: &Folder) -> Result<(), LabError> {
    let (namespace, netlink) = create(&lab.node_namespace(OUTSIDE)).await?;
    host::sysctl::write_in(&namespace, "net.ipv4.ip_forward", "1")?;
    let loopback = device(&netlink, "lo").await?;
    netlink.ensure_address(loopback, IpNet::from(IpAddr::V4(INTERNET))).await?;
    Ok(())
}

/// Makes a node's namespace and its link to `outside`.
pub(crate) async fn create_node(lab: &Folder, node: &str, place: u8) -> Result<(), LabError> {
    let outside = NetNs::open(&lab.node_namespace(OUTSIDE))?;
    let router = Netlink::connect_in(&outside)?;
    let (namespace, netlink) = create(&lab.node_namespace(node)).await?;
    let name = folder::link_name(node);
    let pair = VethPair {
        name: &name,
        mac: None,
        peer_name: UPLINK,
        peer_mac: None,
        peer_namespace: Some(&namespace),
        mtu: UPLINK_MTU,
    };
    router.create_veth(&pair).await?;
    join(&router, &name, gateway_address(place)).await?;
    let uplink = join(&netlink, UPLINK, node_address(place)).await?;
    let mut default = Route::via(IpNet::from(Ipv4Net::default()), IpAddr::V4(gateway_address(place)), uplink);
    default.protocol = ROUTE_PROTOCOL_STATIC;
    netlink.ensure_route(&default).await?;
    Ok(())
}

/// Lets `outside` know where a node's pods are: without encryption it carries their packets, not the nodes'.
pub(crate) async fn route_pods(lab: &Folder, node: &str, place: u8, range: Ipv4Net) -> Result<(), LabError> {
    let router = Netlink::connect_in(&NetNs::open(&lab.node_namespace(OUTSIDE))?)?;
    let link = device(&router, &folder::link_name(node)).await?;
    let mut way = Route::via(range.into(), node_address(place).into(), link);
    way.protocol = ROUTE_PROTOCOL_STATIC;
    Ok(router.ensure_route(&way).await?)
}

/// Takes a node's namespace away, and its link with it.
pub(crate) async fn delete_node(lab: &Folder, node: &str) -> Result<(), LabError> {
    let outside = NetNs::open(&lab.node_namespace(OUTSIDE))?;
    Netlink::connect_in(&outside)?.delete_link(&folder::link_name(node)).await?;
    Ok(NetNs::delete(&lab.node_namespace(node))?)
}

async fn join(netlink: &Netlink, name: &str, address: Ipv4Addr) -> Result<u32, LabError> {
    let index = device(netlink, name).await?;
    netlink.ensure_address(index, IpNet::from(Ipv4Net::new_assert(address, 24))).await?;
    netlink.set_up(index).await?;
    Ok(index)
}

async fn device(netlink: &Netlink, name: &str) -> Result<u32, NetlinkError> {
    let missing = || NetlinkError::Refused {
        action: "find",
        object: format!("link {name}"),
        source: std::io::ErrorKind::NotFound.into(),
    };
    Ok(netlink.link(name).await?.ok_or_else(missing)?.index)
}

/// Makes `/run/netns` a shared mount point, as `ip netns` does at its first use. Made later by `ip`, that mount would hide the
/// namespaces bound before, and they could not be unbound any more. It stays, as `ip`'s does.
pub(crate) fn prepare_namespace_folder(folder: &Path) -> Result<(), LabError> {
    use nix::mount::{MsFlags, mount};
    let failed = |action| move |errno: nix::Error| LabError::io(action, folder)(errno.into());
    std::fs::create_dir_all(folder).map_err(LabError::io("create", folder))?;
    let mounts = Path::new("/proc/self/mountinfo");
    let mounts = std::fs::read_to_string(mounts).map_err(LabError::io("read", mounts))?;
    if mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == folder)) {
        return Ok(());
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(folder), folder, None::<&str>, bind, None::<&str>).map_err(failed("mount"))?;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, folder, None::<&str>, shared, None::<&str>).map_err(failed("share the mount"))
}
