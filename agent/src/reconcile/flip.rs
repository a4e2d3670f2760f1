//! Into the kernel: the snapshot that is current becomes the one in force.

use datapath::lower::{Attached, FullMap, Installed, Plan};
use layout::{Addr, Config as KernelConfig, config_flag};
use policy::Problem;
use tokio::task::block_in_place;

use super::{Reconciler, judges};
use crate::node::NodeNetwork;
use crate::source::Source;

/// The kernel numbers the loopback device 1 in every namespace.
const LOOPBACK: u32 = 1;

impl<S: Source> Reconciler<S> {
    /// Writes the maps. What fails is tried again, from what the maps then hold.
    pub(super) fn flip(&mut self) {
        let (snapshot, concerned) = judges::enforceable(&self.current, &self.judges());
        let attached: Vec<Attached> = self.attached_pods();
        let (plan, next) = self.with_origins(|origins| self.installed.plan(&snapshot, &attached, origins));
        let result =
            if plan.is_empty() { Ok(()) } else { block_in_place(|| plan.apply(&mut self.datapath.maps)) };
        if let Err(error) = result {
            self.read_maps_again();
            return self.retry_later("policy in the kernel", &error);
        }
        if !plan.is_empty() {
            tracing::info!(
                number = snapshot.number,
                endpoints = plan.endpoints.len(),
                added = plan.add.len(),
                removed = plan.remove.len(),
                "in force"
            );
        }
        self.installed = next;
        // A second time then has nothing to remove.
        self.stale = plan.made_room();
        self.problems.retry.clear();
        self.problems.kernel = without_room(&plan)
            .chain(concerned.into_iter().map(|pod| Problem {
                location: format!("Pod {pod}"),
                message: format!(
                    "its rules on requests are new in snapshot {} and the proxy has not taken it over: they deny",
                    snapshot.number
                ),
            }))
            .collect();
    }

    pub(super) fn read_maps_again(&mut self) {
        match block_in_place(|| Installed::read(&self.datapath.maps)) {
            Ok((installed, _)) => self.installed = installed,
            Err(error) => tracing::error!(%error, "maps cannot be read"),
        }
    }

    /// Pods of the journal that have a veth.
    pub(super) fn attached_pods(&self) -> Vec<Attached> {
        let allocations = self.journal.contents().allocations.values();
        let attached = allocations.filter_map(|allocation| {
            let veth = allocation.veth?;
            Some(Attached {
                address: allocation.address,
                ifindex: veth.host_ifindex,
                mac: veth.pod_mac,
                shaped: self.keeping.shaped.contains(&veth.host_ifindex),
                netns: self.keeping.namespaces.get(&veth.host_ifindex).copied(),
            })
        });
        attached.collect()
    }

    /// Writes what the programs must know of the node.
    pub(super) fn write_config(&mut self) {
        let Some(network) = &self.network else { return };
        let config = KernelConfig {
            pod_network: Addr::from(self.config.pod_network.network()),
            pod_netmask: Addr::from(self.config.pod_network.netmask()),
            node_address: Addr::from(network.address),
            slots: self.slots.clamp(1, layout::limits::LISTENERS),
            loopback_ifindex: LOOPBACK,
            flags: if self.config.encryption { config_flag::ENCRYPTED } else { 0 },
            tunnel_ifindex: self.tunnel_ifindex(network),
        };
        if let Err(error) = self.datapath.maps.set_config(&config) {
            self.retry_later("configuration of the datapath", &error);
        }
    }

    /// The device that proves origin. One of before this agent's start does so until it was looked
    /// for.
    fn tunnel_ifindex(&self, network: &NodeNetwork) -> u32 {
        match &network.tunnel {
            Some(tunnel) => tunnel.index,
            None => self.datapath.maps.config().map_or(0, |config| config.tunnel_ifindex),
        }
    }

    /// Whether the kernel judges this address behind this device, by its own rules or as a pod that nobody knows.
    pub(super) fn is_in_force(&self, address: std::net::IpAddr, ifindex: u32) -> bool {
        self.installed.endpoints().any(|(known, endpoint)| known == address && endpoint.ifindex == ifindex)
    }

    /// The snapshot in force.
    pub(super) fn number_in_force(&self) -> u64 {
        self.current.number
    }
}

/// What a full map leaves out, in words.
fn without_room(plan: &Plan) -> impl Iterator<Item = Problem> {
    let endpoints = plan.no_room.iter().map(|(address, full)| Problem {
        location: format!("endpoint {address}"),
        message: match full {
            FullMap::Endpoints => format!(
                "nothing goes in or out: this node has more than {} pods; move some to other nodes",
                layout::limits::ENDPOINTS
            ),
            FullMap::Rules => format!(
                "everything is denied: the rules of this node exceed {}; use fewer or shorter policies",
                layout::limits::RULES
            ),
        },
    });
    let unknown = (plan.unknown > 0).then(|| Problem {
        location: "pods of the cluster".to_owned(),
        message: format!(
            "{} addresses stay unknown, and only rules for any peer match them: there are more than {}",
            plan.unknown,
            layout::limits::IDENTITIES
        ),
    });
    endpoints.chain(unknown)
}
