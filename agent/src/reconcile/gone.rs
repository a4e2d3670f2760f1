//! Pods that vanish without a DEL: their network namespace died, and their devices with it. The
//! regular look finds them and releases what they had.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use host::netlink::Link;
use host::netns::{NetNs, NetNsError};
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::Reconciler;
use crate::journal::{Allocation, AttachmentKey};
use crate::node::{NodeNetwork, Outcome};
use crate::source::Source;

/// How long a device must be missing. A DEL removes it and releases the rest within milliseconds;
/// an ADD that is tried again makes another in its place.
const MISSING: Duration = Duration::from_secs(5);
/// How long an ADD may take. The plugin waits 15 s for each of its two requests, and makes the
/// devices in between.
const ADD_LIMIT: Duration = Duration::from_secs(60);
/// What veth devices call themselves.
const VETH: &str = "veth";

/// What is known of attachments without a device. Only in memory: at the start of an agent all of
/// them are looked at at once.
#[derive(Default)]
pub(super) struct Gone {
    /// Since when the device is missing.
    missing: BTreeMap<AttachmentKey, Instant>,
    /// When an ADD began that has not attached its device yet.
    adding: BTreeMap<AttachmentKey, Instant>,
    /// When was last looked. What was due then and could not be released is tried again when all
    /// is.
    looked: Option<Instant>,
}

impl Gone {
    /// An ADD begins: it is going to make a device.
    pub(super) fn add_begins(&mut self, key: &AttachmentKey, now: Instant) {
        self.missing.remove(key);
        self.adding.insert(key.clone(), now);
    }

    /// An ADD has made its device, or the attachment is released.
    pub(super) fn forget(&mut self, key: &AttachmentKey) {
        self.missing.remove(key);
        self.adding.remove(key);
    }

    /// When the next of those that are missing is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let dues = self.missing.keys().filter_map(|key| self.due_at(key));
        dues.filter(|due| self.looked.is_none_or(|looked| *due > looked)).min()
    }

    fn due_at(&self, key: &AttachmentKey) -> Option<Instant> {
        let missing = *self.missing.get(key)? + MISSING;
        Some(self.adding.get(key).map_or(missing, |began| missing.max(*began + ADD_LIMIT)))
    }

    /// Of those whose device is missing now, the ones to release.
    fn due(&mut self, missing: Vec<AttachmentKey>, now: Instant) -> Vec<AttachmentKey> {
        self.looked = Some(now);
        self.missing.retain(|key, _| missing.contains(key));
        self.adding.retain(|_, began| now < *began + ADD_LIMIT);
        for key in &missing {
            self.missing.entry(key.clone()).or_insert(now);
        }
        missing.into_iter().filter(|key| self.due_at(key).is_some_and(|due| due <= now)).collect()
    }
}

impl<S: Source> Reconciler<S> {
    /// Releases allocations whose pods are gone; of the others the number of the device may have
    /// changed. At the `start` what is gone has been so for long; later it must be so for a while.
    pub(super) async fn release_what_is_gone(
        &mut self,
        network: &NodeNetwork,
        links: &[Link],
        start: bool,
        outcome: &mut Outcome,
    ) {
        let allocations: Vec<Allocation> = self.journal.contents().allocations.values().cloned().collect();
        let missing = allocations.iter().filter(|allocation| is_gone(allocation, links));
        let missing: Vec<AttachmentKey> = missing.map(|allocation| allocation.key.clone()).collect();
        let due = if start { missing } else { self.gone.due(missing, Instant::now()) };
        for mut allocation in allocations {
            let key = allocation.key.clone();
            let link = links.iter().find(|link| link.name == allocation.host_interface);
            match (link, &mut allocation.veth) {
                _ if due.contains(&key) => self.release_one_that_is_gone(network, &allocation, outcome).await,
                (Some(link), Some(veth)) if veth.host_ifindex != link.index => {
                    veth.host_ifindex = link.index;
                    let recorded = block_in_place(|| self.journal.allocate(allocation));
                    self.stale = true;
                    outcome.note("", recorded.map(|()| false));
                }
                _ => {}
            }
        }
    }

    async fn release_one_that_is_gone(
        &mut self,
        network: &NodeNetwork,
        allocation: &Allocation,
        outcome: &mut Outcome,
    ) {
        let Allocation { key, address, host_interface, .. } = allocation;
        // A list of devices that is read while they change may lack some.
        match network.link(host_interface).await {
            Ok(None) => {}
            Ok(Some(_)) => return,
            Err(error) => return outcome.failed.push(error.to_string()),
        }
        tracing::info!(%key, %address, device = host_interface, "its pod is gone without DEL: released");
        let released = self.release(key).await.map(|_| false);
        outcome.note("", released.map_err(|error| format!("{key} is gone but not released: {error}")));
    }
}

/// Whether an attachment has neither its device nor a namespace that could still have it.
fn is_gone(allocation: &Allocation, links: &[Link]) -> bool {
    if links.iter().any(|link| link.name == allocation.host_interface) {
        return false;
    }
    let Some(veth) = allocation.veth else { return !is_namespace(&allocation.netns) };
    // Under another name it is still the pod's. After a start of the machine another device may
    // have the number.
    let is_renamed = |link: &Link| link.index == veth.host_ifindex && link.kind.as_deref() == Some(VETH);
    !(links.iter().any(is_renamed) && is_namespace(&allocation.netns))
}

/// Whether there is a namespace at this path, as far as this process sees.
fn is_namespace(path: &str) -> bool {
    match NetNs::open(Path::new(path)) {
        Err(NetNsError::NotANamespace(_)) => false,
        Err(NetNsError::Open { source, .. }) => source.kind() != std::io::ErrorKind::NotFound,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Veth, allocation};

    fn key(container: &str) -> AttachmentKey {
        allocation(container, "10.1.0.2").key
    }

    #[test]
    fn what_is_missing_for_a_while_is_released_and_an_add_under_way_is_left_alone() {
        let start = Instant::now();
        let mut gone = Gone::default();
        gone.add_begins(&key("added"), start);
        let missing = || vec![key("gone"), key("added")];
        assert_eq!(gone.due(missing(), start), []);
        assert_eq!(gone.next_due(), Some(start + MISSING));
        assert_eq!(gone.due(missing(), start + MISSING - Duration::from_millis(1)), []);
        assert_eq!(gone.due(missing(), start + MISSING), [key("gone")]);
        assert_eq!(gone.next_due(), Some(start + ADD_LIMIT), "what cannot be released wakes nobody at once");
        let due = gone.due(missing(), start + ADD_LIMIT);
        assert_eq!(due, missing(), "also what an ADD left that was killed");
        gone.forget(&key("gone"));
        gone.forget(&key("added"));
        assert_eq!(gone.next_due(), None);
    }

    #[test]
    fn a_device_that_comes_back_is_missing_from_then_on_only() {
        let start = Instant::now();
        let mut gone = Gone::default();
        assert_eq!(gone.due(vec![key("a")], start), []);
        assert_eq!(gone.due(vec![], start + MISSING), []);
        assert_eq!(gone.due(vec![key("a")], start + MISSING), []);
        // Tried again: the old device is removed, and the new one is not there yet.
        gone.add_begins(&key("a"), start + MISSING);
        assert_eq!(gone.due(vec![key("a")], start + MISSING * 3), []);
    }

    #[test]
    fn a_pod_is_gone_when_nothing_can_have_its_device() {
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1420,
            up: true,
            loopback: false,
            kind: Some(VETH.to_owned()),
            peer: None,
            peer_namespace: None,
        };
        let of = |veth: Option<u32>, netns: &str| Allocation {
            veth: veth.map(|host_ifindex| Veth { host_ifindex, pod_mac: [0; 6] }),
            netns: netns.to_owned(),
            ..allocation("a", "10.1.0.2")
        };
        let (alive, file, nothing) = ("/proc/self/ns/net", "/etc/passwd", "/no/such/path");
        let others = [link(7, "other")];
        for (allocation, links, expected, what) in [
            (of(Some(7), alive), &[link(7, "sva")][..], false, "its device is there"),
            (of(Some(7), nothing), &[link(7, "sva")], false, "a process still has the namespace"),
            (of(Some(7), alive), &[link(9, "sva")], false, "its device was made again"),
            (of(Some(8), alive), &others, true, "its device is gone"),
            (of(Some(7), alive), &others, false, "its device was renamed"),
            (of(Some(7), nothing), &others, true, "another device has the number"),
            (of(None, alive), &others, false, "the ADD has not got so far"),
            (of(None, nothing), &others, true, "the namespace is gone"),
            (of(None, file), &others, true, "only the file is left of the namespace"),
        ] {
            assert_eq!(is_gone(&allocation, links), expected, "{what}");
        }
    }
}
