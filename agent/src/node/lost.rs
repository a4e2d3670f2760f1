//! What a pod's ways have lost, for CHECK: looks, and makes nothing.

use std::collections::HashSet;

use host::netlink::{Neighbour, Route};

use super::{NodeError, NodeNetwork, PodLink};

impl NodeNetwork {
    /// Rules, routes and the firewall of the node, and the way to this pod: each that is missing or
    /// different.
    ///
    /// # Errors
    /// The kernel does not say.
    pub async fn lost_ways(&self, pod: &PodLink) -> Result<Vec<String>, NodeError> {
        let mut lost = Vec::new();
        let rules = self.netlink.rules().await?;
        let gone = self.wanted_rules().into_iter().filter(|rule| !rules.contains(rule));
        lost.extend(gone.map(|rule| format!("{rule} is missing")));
        let routes: HashSet<Route> = self.netlink.all_routes().await?.into_iter().collect();
        let gone =
            self.wanted_routes(std::slice::from_ref(pod)).into_iter().filter(|route| !routes.contains(route));
        lost.extend(gone.map(|route| format!("{route} is missing")));
        let PodLink { index: device, address, mac, .. } = *pod;
        let neighbour = Neighbour { device, address, mac, permanent: true };
        if !self.netlink.neighbours().await?.contains(&neighbour) {
            lost.push(format!("neighbour {address} on {} is missing", pod.device));
        }
        if self.has_lost_firewall().await? {
            lost.push("nftables table inet selvage is missing or was changed".to_owned());
        }
        Ok(lost)
    }
}
