//! Follows what others change of the node's network, so that the next look comes at once and not
//! with the next tick.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use host::netlink::{Change, ROUTE_PROTOCOL, TABLE_MAIN, Watch};
use ipnet::IpNet;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::firewall::TABLE_NAME;
use super::wanted::{TABLE_NODES, TABLE_PROXY};
use crate::config::Config;
use crate::names::{device_name, is_host_interface};

/// What is flushed goes within microseconds: one look sees all of it.
const SETTLE: Duration = Duration::from_millis(2);
/// Pause before a socket that could not be opened or read is opened again. The regular look goes on
/// meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// A task that listens to the kernel until this is dropped.
pub struct Follow {
    wake: Arc<Notify>,
    /// Number of the uplink, which may change.
    uplink: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follow {
    /// Begins to listen. Needs a tokio runtime.
    pub fn start(config: &Config) -> Self {
        let (wake, uplink) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
        let ours = Ours {
            tunnel: config.tunnel_device.clone(),
            pod_network: config.pod_network,
            uplink: Arc::clone(&uplink),
        };
        let task = tokio::spawn(listen(ours, Arc::clone(&wake)));
        Self { wake, uplink, task }
    }

    /// Changes of this device concern the node, too.
    pub fn set_uplink(&self, index: u32) {
        self.uplink.store(index, Ordering::Relaxed);
    }

    /// Waits until something has changed since the last call. Safe to cancel.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

async fn listen(ours: Ours, wake: Arc<Notify>) {
    loop {
        if let Err(error) = listen_once(&ours, &wake).await {
            tracing::warn!(error, "changes of routes and firewall are not followed; opened again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen_once(ours: &Ours, wake: &Notify) -> Result<(), String> {
    let mut watch = Watch::open().map_err(|error| error.to_string())?;
    // What changed while nothing listened.
    wake.notify_one();
    loop {
        let changes = watch.next().await.map_err(|error| format!("cannot read a netlink socket: {error}"))?;
        if changes.iter().any(|change| ours.are_concerned(change)) {
            tokio::time::sleep(SETTLE).await;
            wake.notify_one();
        }
    }
}

/// What the agent made. Its own writes concern it only where they cannot be told from others': then
/// one look more finds nothing to do, writes nothing, and no look follows.
struct Ours {
    tunnel: String,
    pod_network: IpNet,
    uplink: Arc<AtomicU32>,
}

impl Ours {
    fn are_concerned(&self, change: &Change) -> bool {
        let is_pods_way =
            |address: Option<IpAddr>| address.is_some_and(|one| self.pod_network.contains(&one));
        match change {
            Change::Missed | Change::Address => true,
            Change::Firewall { table } => table == TABLE_NAME,
            // What is new with our protocol is the agent's or the plugin's.
            Change::Rule { protocol, deleted } => *deleted || *protocol != ROUTE_PROTOCOL,
            Change::Route { table, protocol, device, deleted } => {
                [TABLE_MAIN, TABLE_PROXY, TABLE_NODES].contains(table)
                    && (*protocol == ROUTE_PROTOCOL) == *deleted
                    && !(*deleted && is_gone(*device))
            }
            Change::Neighbour { device, address, permanent, deleted } => {
                is_pods_way(*address) && !permanent && !(*deleted && is_gone(Some(*device)))
            }
            Change::Link { index, name, set_down, deleted } => {
                if is_host_interface(name) {
                    // One that is gone is the business of the plugin's DEL.
                    return *set_down;
                }
                *name == self.tunnel || *index == self.uplink.load(Ordering::Relaxed) || *deleted
            }
        }
    }
}

/// Whether the device of a route or neighbour went with it: a pod that ends.
fn is_gone(device: Option<u32>) -> bool {
    device.is_some_and(|device| device_name(device).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_with_pods_is_no_reason_to_look() {
        let ours = Ours {
            tunnel: "selvage0".into(),
            pod_network: "10.0.0.0/8".parse().unwrap(),
            uplink: Arc::new(AtomicU32::new(2)),
        };
        let route = |table, protocol, device, deleted| Change::Route { table, protocol, device, deleted };
        let link = |index, name: &str, set_down, deleted| Change::Link {
            index,
            name: name.into(),
            set_down,
            deleted,
        };
        let neighbour = |address: [u8; 4], permanent, deleted| Change::Neighbour {
            device: 1,
            address: Some(address.into()),
            permanent,
            deleted,
        };
        let gone = Some(u32::MAX >> 1);
        for (concerns, change) in [
            (true, Change::Missed),
            (true, Change::Firewall { table: "selvage".into() }),
            (false, Change::Firewall { table: "kube-proxy".into() }),
            (true, Change::Rule { protocol: ROUTE_PROTOCOL, deleted: true }),
            (true, Change::Rule { protocol: 0, deleted: false }),
            (false, Change::Rule { protocol: ROUTE_PROTOCOL, deleted: false }),
            (true, route(TABLE_MAIN, ROUTE_PROTOCOL, Some(1), true)),
            (true, route(TABLE_NODES, ROUTE_PROTOCOL, None, true)),
            (false, route(TABLE_MAIN, ROUTE_PROTOCOL, gone, true)),
            (false, route(TABLE_MAIN, ROUTE_PROTOCOL, Some(1), false)),
            (true, route(TABLE_MAIN, 3, Some(1), false)),
            (false, route(77, 3, Some(1), false)),
            (true, link(7, "selvage0", false, false)),
            (true, link(2, "eth0", false, false)),
            (false, link(9, "docker0", false, false)),
            (false, link(9, "sv0123456789a", false, false)),
            (true, link(9, "sv0123456789a", true, false)),
            (false, link(9, "sv0123456789a", false, true)),
            (true, neighbour([10, 1, 0, 2], false, true)),
            (false, neighbour([10, 1, 0, 2], true, false)),
            (false, neighbour([192, 168, 0, 1], false, true)),
        ] {
            assert_eq!(ours.are_concerned(&change), concerns, "{change:?}");
        }
    }
}
