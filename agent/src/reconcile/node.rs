//! This node: made a node once the source knows it, and kept one while the source and whoever else works on the machine
//! change things.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use api::agent::{Peer, PeerSet};
use datapath::{Attachment, Program};
use host::netlink::{Link, Mac};
use policy::{Node, Problem};
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::{RETRY, ReconcileError, Reconciler, TICK, peers};
use crate::ipam::Pool;
use crate::journal::Allocation;
use crate::node::{NodeError, NodeNetwork, Outcome, PodLink};
use crate::source::Source;

/// Pods that a problem names. The others are counted: a node may have hundreds, and each has the same trouble.
const NAMED_PODS: usize = 5;

/// Pause after a look that changes by other programs ask for, in lengths of that look. A program
/// that changes something all the time, or undoes the repair, costs a fifth of one task's time.
const PAUSE_IN_LOOKS: u32 = 4;

/// What is known of this node beside its network.
#[derive(Default)]
pub(super) struct Keeping {
    /// From when on a change by others may lead to another look; at once if none has yet.
    pub(super) may_look_at: Option<Instant>,
    /// When it is looked at again because something failed.
    pub(super) retry_at: Option<Instant>,
    /// Looks in a row of which something failed.
    failures: u32,
    /// The Node object that was followed last, and what is wrong with it.
    object: Option<Arc<Node>>,
    object_problem: Option<Problem>,
    /// Allocations of before this agent's start whose pods are gone have been released.
    swept: bool,
    /// Ids of the pods' network namespaces, by the number of the host side: in them the programs
    /// look for sockets.
    pub(super) namespaces: BTreeMap<u32, u32>,
    /// What the last look found.
    problems: Vec<Problem>,
    /// Devices whose queues packets must pass: bandwidth limits, set by a plugin that runs after
    /// ours.
    pub(super) shaped: BTreeSet<u32>,
    /// What of the datapath it could not make.
    pub(super) lost: Vec<Problem>,
}

impl<S: Source> Reconciler<S> {
    /// Makes this node a node, as soon as the source knows it. Whether it is one now.
    ///
    /// # Errors
    /// What only an administrator can change. All else is tried again.
    pub(super) async fn set_up_node(&mut self) -> Result<bool, ReconcileError> {
        let Some(records) = self.records.clone() else { return Ok(false) };
        if self.keeping.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(false);
        }
        self.keeping.retry_at = None;
        let Some(node) = records.nodes.get(&self.config.node_name) else {
            let message =
                "not in the source: add the object, or correct --node-name; until then nothing changes";
            self.problems.node = vec![self.node_problem(message)];
            return Ok(false);
        };
        match NodeNetwork::set_up(&self.config, node).await {
            Ok(network) => self.network = Some(network),
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => {
                self.problems.node = vec![self.node_problem(&format!("{error}; until then nothing changes"))];
                self.keeping.retry_at = Some(Instant::now() + RETRY);
                return Ok(false);
            }
        }
        self.write_config();
        self.keep_node(true).await;
        self.honour_release_notes().await;
        self.announce_node();
        self.compare_announcements();
        self.dirty = true;
        Ok(true)
    }

    pub(super) fn node_problem(&self, message: &str) -> Problem {
        Problem { location: format!("Node {}", self.config.node_name), message: message.to_owned() }
    }

    /// Follows what the source says of this node and the others. With `look` it also looks whether everything that was
    /// made is still there, and makes it again; without, only if something is new.
    pub(super) async fn keep_node(&mut self, look: bool) {
        let Some(records) = self.records.clone() else { return };
        let Some(mut network) = self.network.take() else { return };
        let start = Instant::now();
        // The kernel is asked about devices only if there is a reason: a change of policy waits behind this.
        let object = records.nodes.get(&self.config.node_name);
        let is_new = look || object != self.keeping.object.as_ref();
        let moved = is_new && self.follow(&mut network, object).await;
        let mut problems: Vec<Problem> = self.keeping.object_problem.iter().cloned().collect();
        let (routes, peers) = peers::build(&self.config, &records, &self.known_nodes, &mut problems);
        let strays = self.strays(&network, &mut problems);
        let changed = network.set_neighbourhood(routes, strays) || moved;
        let tunnel = network.tunnel.as_ref().map(|tunnel| tunnel.index);
        if look || changed {
            let expected = changed || self.pool.is_none();
            self.ensure_node(&mut network, expected).await;
            let took = start.elapsed();
            self.keeping.may_look_at = Some(Instant::now() + took.saturating_mul(PAUSE_IN_LOOKS).min(TICK));
        }
        let replaced = network.tunnel.as_ref().map(|tunnel| tunnel.index) != tunnel;
        self.network = Some(network);
        if moved || replaced {
            self.write_config();
        }
        if moved {
            self.announce_node();
        }
        problems.extend(self.keeping.problems.iter().cloned());
        self.problems.node = problems;
        self.send_peers(peers, peers::is_alone(&self.config, &records));
    }

    /// Becomes what the Node object says; whether that is something new. An object that is gone or makes no sense
    /// changes nothing.
    async fn follow(&mut self, network: &mut NodeNetwork, object: Option<&Arc<Node>>) -> bool {
        self.keeping.object = object.cloned();
        let followed = match object {
            Some(node) => network.follow(node).await.map_err(|error| {
                let NodeNetwork { address, pod_ranges, uplink, .. } = &*network;
                format!("{error}; it keeps {address}, pods {pod_ranges:?}, device {}", uplink.name)
            }),
            None => Err("not in the source any more; this node stays as it was set up".to_owned()),
        };
        self.keeping.object_problem = followed.as_ref().err().map(|message| self.node_problem(message));
        let moved = followed.unwrap_or(false);
        if moved {
            tracing::info!(
                uplink = network.uplink.name,
                address = %network.address,
                pods = ?network.pod_ranges,
                mtu = network.mtu,
                "this node is another one now"
            );
            // New addresses come from the new range once all is made for them.
            self.pool = None;
        }
        moved
    }

    /// Addresses that pods got before the ranges changed.
    fn strays(&self, network: &NodeNetwork, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
        let allocations = self.journal.contents().allocations.values();
        let is_stray = |allocation: &&Allocation| {
            !network.pod_ranges.iter().any(|range| range.contains(&allocation.address))
        };
        let strays: Vec<&Allocation> = allocations.filter(is_stray).collect();
        if !strays.is_empty() {
            let ranges = &network.pod_ranges;
            problems.push(self.node_problem(&format!(
                "spec.podCIDR: {} have addresses outside of {ranges:?}, and other nodes do not reach them: delete these \
                 pods, so that they get new ones, or put the range back",
                named(&strays)
            )));
        }
        strays.iter().map(|allocation| allocation.address).collect()
    }

    /// Looks at everything that belongs to this node and makes what is missing. `expected`: this is the start, or the
    /// source changed, so something will be.
    async fn ensure_node(&mut self, network: &mut NodeNetwork, expected: bool) {
        let mut outcome = network.ensure_devices().await;
        match network.look_at_addresses().await {
            Ok(changed) => self.dirty |= changed,
            Err(error) => outcome.failed.push(error.to_string()),
        }
        self.ensure_pins(&mut outcome);
        // What is dropped follows from these: before the programs, and before what has other
        // routes.
        let ranges = block_in_place(|| self.datapath.maps.set_ranges(&network.ranges()));
        outcome.note("ranges of pods and nodes", ranges.map_err(chain));
        let pins = self.pinned_links();
        self.attach_node(network, &mut outcome);
        // What a single pod lacks keeps no other pod from starting.
        let mut of_pods = Outcome::default();
        let links = match network.links().await {
            Ok(links) => {
                if self.keeping.swept || outcome.failed.is_empty() {
                    let start = !self.keeping.swept;
                    self.release_what_is_gone(network, &links, start, &mut of_pods).await;
                    self.keeping.swept |= of_pods.failed.is_empty();
                }
                links
            }
            // Without the list no device is known to be missing.
            Err(error) => {
                outcome.failed.push(error.to_string());
                Vec::new()
            }
        };
        if !links.is_empty() {
            let namespaces: BTreeMap<u32, u32> =
                links.iter().filter_map(|link| Some((link.index, link.peer_namespace?))).collect();
            self.stale |= self.keeping.namespaces != namespaces;
            self.keeping.namespaces = namespaces;
        }
        match network.devices_with_queues().await {
            Ok(shaped) if shaped != self.keeping.shaped => {
                self.keeping.shaped = shaped;
                self.stale = true;
            }
            Ok(_) => {}
            Err(error) => outcome.failed.push(error.to_string()),
        }
        let unreleased = of_pods.failed.len();
        let pods = self.attach_pods(network, &links, &mut of_pods).await;
        let attached = self.pinned_links();
        let anew = attached.into_iter().filter(|(name, inode)| pins.get(name) != Some(inode));
        outcome.made.extend(anew.map(|(name, _)| format!("program {}", name.display())));
        outcome.extend(network.ensure_ways(&pods).await);
        let lost = outcome.failed.iter().chain(&of_pods.failed[unreleased..]);
        self.keeping.lost = lost.map(|error| self.node_problem(error)).collect();
        let mut problems = Vec::new();
        if self.pool.is_none() && outcome.failed.is_empty() {
            match self.open_pool(network, &mut problems).await {
                Ok(pool) => self.pool = Some(pool),
                Err(error) => outcome.failed.push(error.to_string()),
            }
        }
        problems.extend(self.narrow_pods(network, &links));
        outcome.extend(of_pods);
        self.conclude(outcome, problems, expected);
    }

    fn conclude(&mut self, outcome: Outcome, mut problems: Vec<Problem>, expected: bool) {
        let Outcome { made, failed } = outcome;
        if !made.is_empty() && expected {
            tracing::info!(made = made.join(", "), "this node is set up");
        } else if !made.is_empty() {
            tracing::warn!(repaired = made.join(", "), "somebody removed or changed what is the agent's");
        }
        let failed: Vec<Problem> = failed.iter().map(|error| self.node_problem(error)).collect();
        self.keeping.failures = if failed.is_empty() { 0 } else { self.keeping.failures.saturating_add(1) };
        // What fails may take its time to do so, and everything else waits behind it: less and less often.
        let pause = RETRY.saturating_mul(1 << self.keeping.failures.min(5) >> 1).min(TICK);
        self.keeping.retry_at = (!failed.is_empty()).then(|| Instant::now() + pause);
        problems.extend(failed);
        self.keeping.problems = problems;
    }

    /// The maps by their pins, for the proxy and for tools.
    fn ensure_pins(&self, outcome: &mut Outcome) {
        let made = block_in_place(|| {
            host::mount::ensure_bpffs(&self.config.pin_dir).map_err(|error| error.to_string())?;
            self.datapath.ensure_pins().map_err(chain)
        });
        match made {
            Ok(names) => outcome.made.extend(names.into_iter().map(|name| format!("pin of map {name}"))),
            Err(error) => outcome.failed.push(error),
        }
    }

    fn attach_node(&mut self, network: &NodeNetwork, outcome: &mut Outcome) {
        block_in_place(|| {
            outcome.note("", self.datapath.attach_listener_picker().map(|()| false).map_err(chain));
            if let Some(tunnel) = &network.tunnel {
                outcome.note("", self.datapath.attach_tunnel(&tunnel.name).map(|()| false).map_err(chain));
            }
            outcome
                .note("", self.datapath.attach_uplink(&network.uplink.name).map(|()| false).map_err(chain));
        });
    }

    /// Programs on the devices of all pods; those that may be reached then.
    async fn attach_pods(
        &mut self,
        network: &NodeNetwork,
        links: &[Link],
        outcome: &mut Outcome,
    ) -> Vec<PodLink> {
        let allocations = self.journal.contents().allocations.values();
        let links =
            |index: u32, name: &str| links.iter().any(|link| link.index == index && link.name == name);
        let there = allocations.filter_map(|allocation| {
            let veth = allocation.veth?;
            links(veth.host_ifindex, &allocation.host_interface).then(|| PodLink {
                device: allocation.host_interface.clone(),
                index: veth.host_ifindex,
                address: allocation.address,
                mac: Mac(veth.pod_mac),
            })
        });
        let mut judged = Vec::new();
        for pod in there.collect::<Vec<_>>() {
            let attached = block_in_place(|| self.datapath.attach_pod(&pod.device));
            let error = match attached {
                Ok(()) => {
                    judged.push(pod);
                    continue;
                }
                // On its way out: it was there a moment ago.
                Err(datapath::Error::Device { .. }) => continue,
                Err(error) => error,
            };
            outcome.failed.push(chain(error));
            // The programs that are pinned judge on. Without them nobody does.
            if !self.is_judged(&pod.device) {
                let what = format!("pod {} (cut off)", pod.address);
                outcome.note(what, network.cut_off(&pod).await.map(|()| true));
            }
        }
        judged
    }

    fn is_judged(&self, device: &str) -> bool {
        let attached = self.datapath.attachments().unwrap_or_default();
        [Program::FromPod, Program::ToPod]
            .into_iter()
            .all(|program| attached.contains(&Attachment { device: device.to_owned(), program }))
    }

    /// Pins of links: name and number of the file, which a new link has anew.
    fn pinned_links(&self) -> BTreeMap<OsString, u64> {
        let entries = std::fs::read_dir(self.config.pin_dir.join("links"));
        let entries = entries.into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.ino()))).collect()
    }

    async fn open_pool(&self, network: &NodeNetwork, problems: &mut Vec<Problem>) -> Result<Pool, NodeError> {
        let mut used: Vec<IpAddr> =
            self.journal.contents().allocations.values().map(|allocation| allocation.address).collect();
        for address in network.routed_pods().await? {
            if !used.contains(&address) {
                let message = "a device has it that the journal does not know; it is not handed out until that device \
                               is gone and the agent starts again";
                problems.push(Problem { location: format!("address {address}"), message: message.into() });
                used.push(address);
            }
        }
        let wrong = |problem: String| NodeError::Object {
            node: self.config.node_name.clone(),
            field: "spec.podCIDR",
            problem,
        };
        let range = network.pod_ranges.first().ok_or_else(|| wrong("a range is needed".to_owned()))?;
        Pool::new(*range, used, self.journal.released()).map_err(|error| wrong(error.to_string()))
    }

    /// Pods whose devices take larger packets than the uplink, since that was changed.
    fn narrow_pods(&self, network: &NodeNetwork, links: &[Link]) -> Option<Problem> {
        let allocations = self.journal.contents().allocations.values();
        let wide: Vec<&Allocation> = allocations
            .filter(|allocation| {
                links.iter().any(|link| link.name == allocation.host_interface && link.mtu > network.mtu)
            })
            .collect();
        let message = format!(
            "{} have a larger MTU than the {} that device {} allows now: delete these pods, so that they get it",
            named(&wide),
            network.mtu,
            network.uplink.name
        );
        (!wide.is_empty()).then(|| self.node_problem(&message))
    }

    /// Tells the tunnel of its peers, if they are others than before.
    fn send_peers(&mut self, peers: Vec<Peer>, no_other_node: bool) {
        let same = |set: &Arc<PeerSet>| set.peers == peers && set.no_other_node == no_other_node;
        if self.peer_sets.borrow().as_ref().is_some_and(same) {
            return;
        }
        match block_in_place(|| self.numbers.take()) {
            Ok(number) => {
                self.peer_sets.send_replace(Some(Arc::new(PeerSet { number, peers, no_other_node })));
            }
            Err(error) => self.retry_later("number of the next peer set", &error),
        }
    }
}

/// An error with its causes.
fn chain(error: datapath::Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// "pods default/a 10.1.0.2, default/b 10.1.0.3 and 7 more".
fn named(pods: &[&Allocation]) -> String {
    let first = pods
        .iter()
        .take(NAMED_PODS)
        .map(|pod| format!("{}/{} {}", pod.pod_namespace, pod.pod_name, pod.address));
    let first = first.collect::<Vec<_>>().join(", ");
    match pods.len().saturating_sub(NAMED_PODS) {
        0 => format!("pods {first}"),
        more => format!("pods {first} and {more} more"),
    }
}
