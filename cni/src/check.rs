//! CHECK: whether what ADD made is still there.

use std::net::IpAddr;

use host::netlink::{Link, Mac, Neighbour, Netlink, TABLE_MAIN};
use ipnet::IpNet;
use rscni_types::types::{CNIResult, Interface, IpConfig, Route};

use crate::agent::Agent;
use crate::config::Config;
use crate::error::CniError;
use crate::pod::Ends;
use crate::request::Target;

/// Compares `prevResult` with the kernel: both devices, the addresses, the routes and the neighbour
/// of the pod, the node's route and neighbour to it. Then the agent says what is lost of its
/// record, its programs and maps, and the ways of the node. What others in the chain added does not
/// matter.
pub(crate) async fn check(target: &Target, config: &Config) -> Result<(), CniError> {
    let Some(result) = &config.prev_result else {
        return Err(CniError::Config("CHECK needs prevResult, the result of the ADD".to_owned()));
    };
    let netns = target.netns.clone().unwrap_or_default();
    let ends = Ends::open(&netns)?;
    let Some((pod, host)) = ends.find(target).await? else {
        return lost(format!("{} is not in {}, or was not made by mesh-cni", target.ifname, netns.display()));
    };
    let sandbox = netns.display().to_string();
    let is_pod = |i: &&Interface| i.name == target.ifname && i.sandbox.as_deref() == Some(&sandbox);
    let Some(printed) = result.interfaces.iter().find(is_pod) else {
        return Err(CniError::Config(format!("prevResult has no interface {} in {sandbox}", target.ifname)));
    };
    compare(printed, &pod)?;
    for printed in result.interfaces.iter().filter(|interface| interface.name == host.name) {
        compare(printed, &host)?;
    }
    if !host.up {
        return lost(format!("{} is down", host.name));
    }
    let is_ours = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index as usize));
        interface.is_some_and(|interface| is_pod(&interface))
    };
    let ips: Vec<&IpConfig> = result.ips.iter().filter(is_ours).collect();
    addresses_and_routes(&ips, result, &ends.pod, &pod).await?;
    let routes = ends.node.routes(TABLE_MAIN).await?;
    for ip in &ips {
        let destination = IpNet::from(ip.address.addr());
        if !routes.iter().any(|route| route.destination == destination && route.device == Some(host.index)) {
            return lost(format!("the node has no route to {destination} through {}", host.name));
        }
    }
    neighbours(&ips, &ends, &pod, &host).await?;
    let addresses = ips.iter().map(|ip| ip.address.addr().to_string()).collect();
    let asked = Agent::new(&config.agent_socket).check(target, host.index, pod.mac, addresses).await;
    let missing = asked.map_err(|error| CniError::Check(error.to_string()))?;
    if missing.is_empty() { Ok(()) } else { lost(missing.join("; ")) }
}

/// The gateway is only a name for the host side, and the node asks no pod for its Ethernet address:
/// without these entries no packet leaves.
async fn neighbours(ips: &[&IpConfig], ends: &Ends, pod: &Link, host: &Link) -> Result<(), CniError> {
    let (in_pod, on_node) = (ends.pod.neighbours().await?, ends.node.neighbours().await?);
    let is_there = |entries: &[Neighbour], device: &Link, address: IpAddr, mac: Option<Mac>| {
        let expected = mac.map(|mac| Neighbour { device: device.index, address, mac, permanent: true });
        expected.is_some_and(|expected| entries.contains(&expected))
    };
    for ip in ips {
        if let Some(gateway) = ip.gateway.filter(|gateway| !is_there(&in_pod, pod, *gateway, host.mac)) {
            return lost(format!("the pod has lost its neighbour {gateway} on {}", pod.name));
        }
        let address = ip.address.addr();
        if !is_there(&on_node, host, address, pod.mac) {
            return lost(format!("the node has lost its neighbour {address} on {}", host.name));
        }
    }
    Ok(())
}

fn lost<T>(what: String) -> Result<T, CniError> {
    Err(CniError::Check(what))
}

fn compare(printed: &Interface, link: &Link) -> Result<(), CniError> {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !printed.mac.is_empty() && !printed.mac.eq_ignore_ascii_case(&mac) {
        return lost(format!("{} has the address {mac}, not {}", link.name, printed.mac));
    }
    if printed.mtu.is_some_and(|mtu| mtu != link.mtu) {
        return lost(format!("{} has an MTU of {}, not {:?}", link.name, link.mtu, printed.mtu));
    }
    Ok(())
}

/// Of the routes only those through our gateway: the others in the chain may have added some.
async fn addresses_and_routes(
    ips: &[&IpConfig],
    result: &CNIResult,
    netlink: &Netlink,
    pod: &Link,
) -> Result<(), CniError> {
    if !pod.up {
        return lost(format!("{} is down", pod.name));
    }
    let addresses = netlink.addresses().await?;
    if let Some(ip) = ips.iter().find(|ip| !addresses.contains(&(pod.index, ip.address))) {
        return lost(format!("{} has lost its address {}", pod.name, ip.address));
    }
    let routes = netlink.routes(TABLE_MAIN).await?;
    let is_ours = |route: &&Route| route.gw.is_some() && ips.iter().any(|ip| ip.gateway == route.gw);
    for printed in result.routes.iter().filter(is_ours) {
        let is_it = |route: &host::netlink::Route| {
            let metric_fits = printed.priority.is_none_or(|priority| route.metric == priority);
            (route.destination, route.gateway, route.device) == (printed.dst, printed.gw, Some(pod.index))
                && metric_fits
        };
        if !routes.iter().any(is_it) {
            return lost(format!("the pod has lost its route to {} by {}", printed.dst, pod.name));
        }
    }
    Ok(())
}
