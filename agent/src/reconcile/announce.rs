//! What this node tells the others of its pods, and the repair of what got lost on the way.

use std::collections::BTreeMap;

use super::Reconciler;
use super::world::same_uid;
use crate::journal::Allocation;
use crate::source::{Announcement, PodName, PodStatus, Records, Source};

/// All that a node has to announce: of each pod the addresses of its newest sandbox, and of those that were made for the
/// same object (a runtime replaces a sandbox by another). One that was made for an older object of this name is on its
/// way out, and its address is not the new one's.
fn of_pods<'a>(
    node: &str,
    allocations: impl Iterator<Item = &'a Allocation>,
) -> BTreeMap<PodName, PodStatus> {
    let mut by_pod: BTreeMap<PodName, Vec<&Allocation>> = BTreeMap::new();
    for allocation in allocations.filter(|allocation| !allocation.pod_name.is_empty()) {
        let pod = PodName::new(&allocation.pod_namespace, &allocation.pod_name);
        by_pod.entry(pod).or_default().push(allocation);
    }
    let statuses = by_pod.into_iter().filter_map(|(pod, mut own)| {
        own.sort_by_key(|allocation| (allocation.number, allocation.address));
        let uid = own.last()?.pod_uid.clone();
        own.retain(|allocation| allocation.pod_uid == uid);
        let addresses = own.iter().map(|allocation| allocation.address).collect();
        Some((pod, PodStatus { addresses, node: node.to_owned(), uid }))
    });
    statuses.collect()
}

/// What is to be announced again, or withdrawn, because the source says something else than `own`.
fn repairs(node: &str, records: &Records, own: BTreeMap<PodName, PodStatus>) -> Vec<Announcement> {
    let announced_here = records.pod_status.iter().filter(|(_, status)| status.node == node);
    let gone = announced_here.filter(|(pod, _)| !own.contains_key(*pod));
    let gone = gone.map(|(pod, status)| Announcement::PodGone(pod.clone(), status.addresses.clone()));
    let gone: Vec<Announcement> = gone.collect();
    let lost = own.into_iter().filter(|(pod, status)| {
        records.pod_status.get(pod) != Some(status) && !is_elsewhere(records, pod, status)
    });
    lost.map(|(pod, status)| Announcement::Pod(pod, status)).chain(gone).collect()
}

/// Whether another node announces this pod, and the object is its: what is left here belongs to one before it.
fn is_elsewhere(records: &Records, pod: &PodName, own: &PodStatus) -> bool {
    let announced = records.pod_status.get(pod).is_some_and(|status| status.node != own.node);
    let object = records.pods.get(pod);
    announced
        && object.is_some_and(|object| {
            !same_uid(&object.uid, &own.uid) || !(object.node.is_empty() || object.node == own.node)
        })
}

impl<S: Source> Reconciler<S> {
    /// Tells the others all addresses that a pod has here. Whether it has one.
    pub(super) fn announce_pod(&self, pod: &PodName) -> bool {
        let allocations = self.journal.contents().allocations.values();
        let of_pod = allocations.filter(|allocation| {
            allocation.pod_namespace == pod.namespace && allocation.pod_name == pod.name
        });
        let mut statuses = of_pods(&self.config.node_name, of_pod);
        let Some(status) = statuses.remove(pod) else { return false };
        self.publisher.announce(Announcement::Pod(pod.clone(), status));
        true
    }

    /// Repairs what is announced of this node and its pods, if it differs from what they are: an announcement was lost.
    pub(super) fn compare_announcements(&self) {
        let Some(records) = &self.records else { return };
        let node = &self.config.node_name;
        if let Some(status) = self.announced.as_ref().filter(|own| records.node_status.get(node) != Some(own))
        {
            self.publisher.announce(Announcement::Node(node.clone(), status.clone()));
        }
        let own = of_pods(node, self.journal.contents().allocations.values());
        for announcement in repairs(node, records, own) {
            self.publisher.announce(announcement);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use policy::Pod;

    use super::*;
    use crate::journal::allocation;

    fn sandbox(number: u64, address: &str, uid: &str) -> Allocation {
        let allocation = allocation("a", address);
        Allocation { number, pod_uid: uid.to_owned(), ..allocation }
    }

    fn status(addresses: &[&str], node: &str, uid: &str) -> PodStatus {
        let addresses = addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
        PodStatus { addresses, node: node.to_owned(), uid: uid.to_owned() }
    }

    fn pod() -> PodName {
        PodName::new("default", "a")
    }

    fn announced(allocations: &[Allocation]) -> PodStatus {
        of_pods("node-1", allocations.iter()).remove(&pod()).unwrap()
    }

    #[test]
    fn an_announcement_has_the_uid_and_the_addresses_of_one_object() {
        let (old, new) = (sandbox(7, "10.1.0.2", "old"), sandbox(8, "10.1.0.3", "new"));
        for order in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
            assert_eq!(announced(&order), status(&["10.1.0.3"], "node-1", "new"));
        }
        assert_eq!(announced(&[old]), status(&["10.1.0.2"], "node-1", "old"), "until the new one comes");
        let both = [sandbox(9, "10.1.0.4", "new"), new];
        assert_eq!(announced(&both), status(&["10.1.0.3", "10.1.0.4"], "node-1", "new"));
    }

    fn repairs_of(
        announced: Option<PodStatus>,
        own: &[Allocation],
        object: Option<Pod>,
    ) -> Vec<Announcement> {
        let mut records = Records::default();
        records.pod_status.extend(announced.map(|status| (pod(), status)));
        records.pods.extend(object.map(|object| (pod(), Arc::new(object))));
        repairs("node-1", &records, of_pods("node-1", own.iter()))
    }

    #[test]
    fn what_is_announced_is_exactly_what_there_is() {
        let own = [sandbox(1, "10.1.0.2", "u")];
        let right = status(&["10.1.0.2"], "node-1", "u");
        let again = [Announcement::Pod(pod(), right.clone())];
        assert_eq!(repairs_of(Some(right.clone()), &own, None), []);
        assert_eq!(repairs_of(None, &own, None), again);
        for wrong in [
            status(&["10.1.0.2", "10.1.0.9"], "node-1", "u"),
            status(&["10.1.0.9"], "node-1", "u"),
            status(&["10.1.0.2"], "node-1", "old"),
            status(&["10.1.0.2"], "node-2", "u"),
        ] {
            assert_eq!(repairs_of(Some(wrong.clone()), &own, None), again, "{wrong:?}");
        }
        let gone = Announcement::PodGone(pod(), right.addresses.clone());
        assert_eq!(repairs_of(Some(right), &[], None), [gone]);
        assert_eq!(repairs_of(Some(status(&["10.2.0.2"], "node-2", "u")), &[], None), []);
    }

    #[test]
    fn nodes_do_not_fight_for_a_pod_that_has_moved() {
        let own = [sandbox(1, "10.1.0.2", "old")];
        let there = || Some(status(&["10.2.0.2"], "node-2", "new"));
        let object = |uid: &str, node: &str| {
            Some(Pod { uid: uid.to_owned(), node: node.to_owned(), ..Pod::default() })
        };
        assert_eq!(repairs_of(there(), &own, object("new", "")), []);
        assert_eq!(repairs_of(there(), &own, object("", "node-2")), []);
        assert_eq!(repairs_of(there(), &own, object("old", "node-1")).len(), 1);
    }
}
