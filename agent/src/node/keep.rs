//! Keeps the node as it shall be: reads what is there and writes only what differs, so that the regular look disturbs
//! nothing when nothing is wrong.

use std::collections::HashSet;
use std::fmt::Display;
use std::net::IpAddr;

use host::netlink::{
    Link, LinkChange, Neighbour, NetlinkError, ROUTE_PROTOCOL, Route, RouteKind, TABLE_MAIN,
};
use host::tun::TunError;

use super::wanted::{PRIORITY_NODES, PRIORITY_PROXY, PodLink, TABLE_NODES, TABLE_PROXY};
use super::{NodeError, NodeNetwork, settings};
use crate::names::is_host_interface;

/// What a look at the node came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was missing or different and is right now.
    pub made: Vec<String>,
    /// What could not be put right; to be tried again.
    pub failed: Vec<String>,
}

impl Outcome {
    /// Takes note of an attempt: whether something had to be made, or why it could not be.
    pub fn note(&mut self, what: impl Display, attempt: Result<bool, impl Display>) {
        match attempt {
            Ok(true) => self.made.push(what.to_string()),
            Ok(false) => {}
            Err(error) => self.failed.push(error.to_string()),
        }
    }

    /// Both.
    pub fn extend(&mut self, other: Self) {
        self.made.extend(other.made);
        self.failed.extend(other.failed);
    }
}

impl NodeNetwork {
    /// Kernel settings and the tunnel device.
    pub async fn ensure_devices(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.note("", settings::check(&self.uplink.name).map(|()| false));
        for (key, written) in settings::write() {
            outcome.note(format_args!("kernel setting {key}"), written);
        }
        if self.config.encryption {
            let made = self.ensure_tunnel().await;
            outcome.note(format_args!("device {}", self.config.tunnel_device), made);
        }
        outcome
    }

    /// The TUN, made if it is not there: routes need it before the tunnel program runs.
    async fn ensure_tunnel(&mut self) -> Result<bool, NodeError> {
        let name = self.config.tunnel_device.clone();
        let device = |problem: &str| NodeError::Device { device: name.clone(), problem: problem.to_owned() };
        let mut found = self.netlink.link(&name).await?;
        let mut changed = found.is_none();
        if found.is_none() {
            match host::tun::open_or_create(&name, false) {
                // The tunnel program was faster.
                Ok(_) | Err(TunError::Busy(_)) => {}
                Err(error) => return Err(error.into()),
            }
            found = self.netlink.link(&name).await?;
        }
        let link = found.ok_or_else(|| device("it vanished"))?;
        if link.kind.as_deref() != Some("tun") {
            return Err(device(
                "it exists and is no TUN device: delete it or choose another name (--tunnel-device)",
            ));
        }
        if link.mtu != self.mtu || !link.up {
            let change = LinkChange { up: Some(true), mtu: Some(self.mtu), ..LinkChange::default() };
            self.netlink.change_link(link.index, &change).await?;
            changed = true;
        }
        changed |= settings::write_tunnel(&name)?;
        self.tunnel = Some(Link { mtu: self.mtu, up: true, ..link });
        Ok(changed)
    }

    /// Firewall, rules, routes and neighbours: to the other nodes, and to these pods.
    pub async fn ensure_ways(&mut self, pods: &[PodLink]) -> Outcome {
        let mut outcome = Outcome::default();
        // First what drops. What fails stops nothing else: the next thing may be what closes another way.
        let ensured = self.ensure_firewall().await;
        outcome.note("nftables table inet selvage", ensured);
        let rules = self.ensure_rules(&mut outcome).await;
        outcome.note("", rules.map(|()| false));
        let devices = self.ensure_pod_devices(pods, &mut outcome).await;
        outcome.note("", devices.map(|()| false));
        let routes = self.ensure_routes(pods, &mut outcome).await;
        outcome.note("", routes.map(|()| false));
        outcome
    }

    async fn ensure_rules(&self, outcome: &mut Outcome) -> Result<(), NetlinkError> {
        let (wanted, actual) = (self.wanted_rules(), self.netlink.rules().await?);
        for rule in wanted.iter().filter(|rule| !actual.contains(rule)) {
            outcome.note(rule, self.netlink.ensure_rule(rule).await);
        }
        let ours = [(PRIORITY_PROXY, TABLE_PROXY), (PRIORITY_NODES, TABLE_NODES)];
        let stale = actual.iter().filter(|rule| ours.contains(&(rule.priority, rule.table)));
        for rule in stale.filter(|rule| !wanted.contains(rule)) {
            let deleted = self.netlink.delete_rule(rule).await;
            outcome.note(format_args!("{rule} (removed)"), deleted);
        }
        Ok(())
    }

    /// Makes what is missing, then removes what is not wanted: a way that is replaced is never gone in between.
    async fn ensure_routes(&self, pods: &[PodLink], outcome: &mut Outcome) -> Result<(), NetlinkError> {
        let (wanted, actual) = (self.wanted_routes(pods), self.netlink.all_routes().await?);
        let (is_wanted, is_there): (HashSet<&Route>, HashSet<&Route>) =
            (wanted.iter().collect(), actual.iter().collect());
        for route in wanted.iter().filter(|route| !is_there.contains(route)) {
            let made = self.netlink.ensure_route(route).await;
            let is_to_pod = pods.iter().any(|pod| Some(pod.index) == route.device);
            outcome.note(route, if is_to_pod { unless_gone(made) } else { made.map(|()| true) });
        }
        let stale = actual.iter().filter(|route| is_ours(route) && !is_wanted.contains(route));
        let stale: Vec<&Route> = stale.collect();
        if stale.is_empty() {
            return Ok(());
        }
        // Asked for after the routes: a device that is not among them now is gone, with its routes.
        let links = self.netlink.links().await?;
        for route in stale.into_iter().filter(|route| !may_be_a_pods(route, &links)) {
            let deleted = self.netlink.delete_route(route).await;
            outcome.note(format_args!("{route} (removed)"), deleted);
        }
        Ok(())
    }

    /// The host sides of pods are up, and their pods need not be asked for their Ethernet address.
    async fn ensure_pod_devices(&self, pods: &[PodLink], outcome: &mut Outcome) -> Result<(), NetlinkError> {
        if pods.is_empty() {
            return Ok(());
        }
        let links = self.netlink.links().await?;
        for pod in pods.iter().filter(|pod| links.iter().any(|link| link.index == pod.index && !link.up)) {
            let set = unless_gone(self.netlink.set_up(pod.index).await);
            outcome.note(format_args!("device {} up", pod.device), set);
        }
        let neighbours: HashSet<Neighbour> = self.netlink.neighbours().await?.into_iter().collect();
        for pod in pods {
            let PodLink { index: device, address, mac, .. } = *pod;
            if !neighbours.contains(&Neighbour { device, address, mac, permanent: true }) {
                let made = unless_gone(self.netlink.ensure_neighbour(device, address, mac).await);
                outcome.note(format_args!("neighbour {address} on {}", pod.device), made);
            }
        }
        Ok(())
    }

    /// Cuts a pod off, whose programs cannot be attached: it is up again when they are.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn cut_off(&self, pod: &PodLink) -> Result<(), NodeError> {
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        Ok(self.netlink.change_link(pod.index, &down).await?)
    }

    /// Addresses of this node's pods that a device has, known to the journal or not.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn routed_pods(&self) -> Result<Vec<IpAddr>, NodeError> {
        let links = self.netlink.links().await?;
        let hosts = links.iter().filter(|link| is_host_interface(&link.name));
        let hosts: HashSet<u32> = hosts.map(|link| link.index).collect();
        let routes = self.netlink.routes(TABLE_MAIN).await?;
        let to_hosts =
            routes.iter().filter(|route| route.device.is_some_and(|device| hosts.contains(&device)));
        let addresses = to_hosts.map(|route| route.destination.addr());
        Ok(addresses.filter(|address| self.pod_ranges.iter().any(|range| range.contains(address))).collect())
    }
}

/// A pod may go, with its device, while it is looked at: then there is nothing to make.
fn unless_gone(made: Result<(), NetlinkError>) -> Result<bool, NetlinkError> {
    match made {
        Err(error) if error.is_missing() => Ok(false),
        made => made.map(|()| true),
    }
}

/// Whether an agent of this or another version may have made the route.
fn is_ours(route: &Route) -> bool {
    route.protocol == ROUTE_PROTOCOL && [TABLE_MAIN, TABLE_PROXY, TABLE_NODES].contains(&route.table)
}

/// Routes to pods are the plugin's: it makes one before the journal knows of its device.
fn may_be_a_pods(route: &Route, links: &[Link]) -> bool {
    if route.kind == RouteKind::Blackhole || route.table != TABLE_MAIN {
        return false;
    }
    let device = links.iter().find(|link| Some(link.index) == route.device);
    device.is_none_or(|link| is_host_interface(&link.name))
}
