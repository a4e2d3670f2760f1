//! The end of a node: removes everything that the agent and the plugin made, for an uninstallation or the lab.

use std::net::IpAddr;
use std::path::Path;

use host::netlink::{Netlink, ROUTE_PROTOCOL, TABLE_MAIN};

use super::wanted::{PRIORITY_NODES, PRIORITY_PROXY, TABLE_NODES, TABLE_PROXY};
use super::{NodeError, firewall};
use crate::config::Config;
use crate::journal::Journal;

/// Removes pins, links of pods, routes, rules, the firewall table, the tunnel device and sockets; releases all addresses.
/// What is gone already is fine. Kernel settings stay as they are, and so does the rest of the state folder.
///
/// # Errors
/// The first thing that could not be removed; call it again.
pub async fn cleanup(config: &Config) -> Result<(), NodeError> {
    let netlink = Netlink::connect()?;
    let mut journal = open_journal(config)?;
    let journalled: Vec<_> =
        journal.iter().flat_map(|journal| journal.contents().allocations.values()).collect();
    let journalled: Vec<String> =
        journalled.iter().map(|allocation| allocation.host_interface.clone()).collect();
    // Links first: no pod is left without the programs that judge it.
    for link in netlink.links().await? {
        let ours = journalled.contains(&link.name) || crate::names::is_host_interface(&link.name);
        if ours && link.kind.as_deref() == Some("veth") {
            netlink.delete_link(&link.name).await?;
        }
    }
    for rule in netlink.rules().await? {
        if matches!(
            (rule.priority, rule.table),
            (PRIORITY_PROXY, TABLE_PROXY) | (PRIORITY_NODES, TABLE_NODES)
        ) {
            netlink.delete_rule(&rule).await?;
        }
    }
    for table in [TABLE_MAIN, TABLE_PROXY, TABLE_NODES] {
        for route in netlink.routes(table).await? {
            if route.protocol == ROUTE_PROTOCOL {
                netlink.delete_route(&route).await?;
            }
        }
    }
    firewall::remove().await?;
    delete_tunnel(&netlink, &config.tunnel_device).await?;
    datapath::remove_pins(&config.pin_dir)?;
    if let Some(journal) = &mut journal {
        let addresses: Vec<IpAddr> = journal.contents().allocations.values().map(|a| a.address).collect();
        for address in addresses {
            journal.release(address)?;
        }
    }
    for socket in [config.agent_socket(), config.proxy_socket(), config.tunnel_socket()] {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

async fn delete_tunnel(netlink: &Netlink, name: &str) -> Result<(), NodeError> {
    match netlink.link(name).await? {
        Some(link) if link.kind.as_deref() == Some("tun") => netlink.delete_link(name).await.map(drop)?,
        _ => {}
    }
    Ok(())
}

/// None if there never was one.
fn open_journal(config: &Config) -> Result<Option<Journal>, NodeError> {
    let path: &Path = &crate::names::journal(config);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Journal::open(path)?.0))
}
