//! The start: what is there is adopted, what is gone is released. And what is repaired while the agent runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use api::agent::PeerSet;
use datapath::Datapath;
use datapath::lower::Installed;
use policy::{Problem, Snapshot};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;

use super::judges::Judge;
use super::{Handle, Problems, REQUESTS, ReconcileError, Reconciler, View, peers};
use crate::config::Config;
use crate::identities::StoredIdentities;
use crate::ipam::Pool;
use crate::journal::{Allocation, AttachmentKey, Journal};
use crate::known_nodes::KnownNodes;
use crate::names;
use crate::node::{NodeError, NodeNetwork};
use crate::numbers::Numbers;
use crate::publisher::Publisher;
use crate::source::Source;

/// A note of the plugin: it could not tell us that this attachment is gone.
#[derive(Deserialize)]
struct ReleaseNote {
    #[serde(rename = "containerID", alias = "containerId")]
    container_id: String,
    #[serde(alias = "interface")]
    ifname: String,
}

impl<S: Source> Reconciler<S> {
    /// Opens the state and the datapath. Programs of this version take over the links that are pinned; nothing else
    /// changes before the source has spoken.
    ///
    /// # Errors
    /// See [`ReconcileError`].
    pub fn open(config: &Config, source: Arc<S>) -> Result<(Self, Handle), ReconcileError> {
        let mut start = Vec::new();
        let (journal, unread) = Journal::open(&names::journal(config))?;
        start.extend(unread.into_iter().map(|message| Problem { location: "journal".into(), message }));
        host::mount::ensure_bpffs(&config.pin_dir)?;
        let mut datapath = Datapath::open(&config.pin_dir)?;
        let adopted = datapath.adopt()?;
        let (installed, origins) = Installed::read(&datapath.maps)?;
        tracing::info!(links = adopted.len(), "datapath loaded");
        let in_kernel =
            datapath.maps.identities()?.into_iter().map(|(_, identity)| identity).max().unwrap_or(0);
        let (identities, problem) = StoredIdentities::open(&names::identities(config), in_kernel);
        start.extend(problem.map(|message| Problem { location: "identities".into(), message }));
        let last_judge = Judge::stored(&names::proxy_snapshot(config));
        let at_least = if let Judge::Snapshot(snapshot) = &last_judge { snapshot.number } else { 0 };
        let slots = datapath.maps.config()?.slots.max(1);

        let (requests, queue) = mpsc::channel(REQUESTS);
        let (view, seen) = watch::channel(Arc::new(View::default()));
        let (snapshots, sent) = watch::channel(None);
        let (peer_sets, peers) = watch::channel(None);
        let origins = Arc::new(Mutex::new(origins));
        let handle = Handle { requests, view: seen, snapshots: sent, peers, origins: Arc::clone(&origins) };
        let reconciler = Self {
            config: config.clone(),
            publisher: Publisher::start(Arc::clone(&source)),
            source,
            requests: queue,
            view,
            snapshots,
            peer_sets,
            records: None,
            journal,
            pool: None,
            identities,
            numbers: Numbers::open(&names::numbers(config), at_least),
            unused_number: None,
            network: None,
            datapath,
            installed,
            origins,
            current: Arc::new(Snapshot::default()),
            pending: None,
            dirty: false,
            stale: false,
            retry_at: None,
            waiters: Vec::new(),
            proxies: BTreeMap::new(),
            last_judge,
            sent: Vec::new(),
            slots,
            tunnel: None,
            announced: None,
            known_nodes: KnownNodes::open(&names::known_nodes(config)),
            problems: Problems { start, ..Problems::default() },
        };
        Ok((reconciler, handle))
    }

    /// Makes this node a node, as soon as the source knows it. Whether it is one now.
    pub(super) async fn set_up_node(&mut self) -> Result<bool, ReconcileError> {
        let Some(records) = self.records.clone() else { return Ok(false) };
        let Some(node) = records.nodes.get(&self.config.node_name) else {
            self.problems.retry = vec![Problem {
                location: format!("Node {}", self.config.node_name),
                message:
                    "not in the source: add the object, or correct --node-name; until then nothing changes"
                        .into(),
            }];
            return Ok(false);
        };
        let mut network = NodeNetwork::set_up(&self.config, node).await?;
        let (routes, _) = peers::build(&self.config, &records, self.known_nodes.status(), &mut Vec::new());
        network.set_peers(&routes).await?;
        tracing::info!(uplink = network.uplink.name, address = %network.address, mtu = network.mtu, "node set up");
        self.problems.retry.clear();
        self.network = Some(network);
        self.write_config();
        self.attach_node()?;
        self.release_what_is_gone().await?;
        self.open_pool().await?;
        self.honour_release_notes().await;
        self.announce_node();
        self.compare_announcements();
        self.update_peers().await;
        self.dirty = true;
        Ok(true)
    }

    fn attach_node(&mut self) -> Result<(), ReconcileError> {
        let Some(network) = &self.network else { return Ok(()) };
        self.datapath.attach_listener_picker()?;
        if let Some(tunnel) = &network.tunnel {
            self.datapath.attach_tunnel(&tunnel.name)?;
        }
        self.datapath.attach_uplink(&network.uplink.name)?;
        Ok(())
    }

    /// Allocations whose device or namespace is gone have nobody to release them; the others get their programs.
    async fn release_what_is_gone(&mut self) -> Result<(), ReconcileError> {
        let allocations: Vec<Allocation> = self.journal.contents().allocations.values().cloned().collect();
        for mut allocation in allocations {
            let Some(network) = &self.network else { break };
            let link = network.link(&allocation.host_interface).await?;
            let gone = match allocation.veth {
                Some(_) => link.is_none(),
                None => link.is_none() && !Path::new(&allocation.netns).exists(),
            };
            if gone {
                tracing::info!(key = %allocation.key, address = %allocation.address, "its pod is gone");
                let released = self.release(&allocation.key).await;
                released.map_err(|error| start_problem(&allocation.key, &error))?;
                continue;
            }
            let (Some(link), Some(veth)) = (link, &mut allocation.veth) else { continue };
            self.datapath.attach_pod(&allocation.host_interface)?;
            if veth.host_ifindex != link.index {
                veth.host_ifindex = link.index;
                self.journal.allocate(allocation)?;
            }
        }
        Ok(())
    }

    async fn open_pool(&mut self) -> Result<(), ReconcileError> {
        let Some(network) = &self.network else { return Ok(()) };
        let Some(&range) = network.pod_ranges.first() else { return Ok(()) };
        let contents = self.journal.contents();
        let mut used: Vec<IpAddr> =
            contents.allocations.values().map(|allocation| allocation.address).collect();
        for address in network.routed_pods().await? {
            if !used.contains(&address) {
                let location = format!("address {address}");
                let message = "a device has it that the journal does not know; it is not handed out until that device \
                               is gone and the agent starts again";
                self.problems.start.push(Problem { location, message: message.into() });
                used.push(address);
            }
        }
        let pool = Pool::new(range, used, self.journal.released());
        let wrong = |error: crate::ipam::IpamError| NodeError::Object {
            node: self.config.node_name.clone(),
            field: "spec.podCIDR",
            problem: error.to_string(),
        };
        self.pool = Some(pool.map_err(wrong)?);
        Ok(())
    }

    /// Releases what the plugin could not tell us of.
    pub(super) async fn honour_release_notes(&mut self) {
        let Ok(folder) = std::fs::read_dir(names::release_notes(&self.config)) else { return };
        for path in folder.flatten().map(|entry| entry.path()) {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden || path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if let Err(error) = self.honour_release_note(&path).await {
                tracing::error!(path = %path.display(), %error, "note of the plugin not honoured yet");
            }
        }
    }

    async fn honour_release_note(&mut self, path: &Path) -> anyhow::Result<()> {
        let note: ReleaseNote = serde_json::from_slice(&std::fs::read(path)?)?;
        let key = AttachmentKey { container_id: note.container_id, interface: note.ifname };
        let existed = self.release(&key).await?;
        host::file::remove(path)?;
        tracing::info!(%key, existed, "released what the plugin noted");
        Ok(())
    }

    pub(super) async fn repair_tunnel(&mut self) {
        let Some(network) = &mut self.network else { return };
        let repaired = match network.repair_tunnel().await {
            Ok(repaired) => repaired,
            Err(error) => return self.retry_later("tunnel device", &error),
        };
        if repaired && let Err(error) = self.attach_node() {
            self.retry_later("programs of the node", &error);
        }
    }

    /// Routes to the other nodes, and the tunnel's peers.
    pub(super) async fn update_peers(&mut self) {
        let (Some(network), Some(records)) = (&mut self.network, &self.records) else { return };
        let mut problems = Vec::new();
        let (routes, peers) = peers::build(&self.config, records, self.known_nodes.status(), &mut problems);
        if let Err(error) = network.set_peers(&routes).await {
            tracing::error!(%error, "routes to the other nodes are not complete; they will be tried again");
            problems
                .push(Problem { location: "routes to the other nodes".into(), message: error.to_string() });
        }
        self.problems.peers = problems;
        let set = PeerSet { number: 0, peers, no_other_node: peers::is_alone(&self.config, records) };
        let known = |known: &Arc<PeerSet>| PeerSet { number: 0, ..(**known).clone() } == set;
        let known = self.peer_sets.borrow().as_ref().is_some_and(known);
        if known {
            return;
        }
        match block_in_place(|| self.numbers.take()) {
            Ok(number) => {
                self.peer_sets.send_replace(Some(Arc::new(PeerSet { number, ..set })));
            }
            Err(error) => self.retry_later("number of the next peer set", &error),
        }
    }
}

fn start_problem(key: &AttachmentKey, error: &super::CniError) -> NodeError {
    NodeError::Device {
        device: key.to_string(),
        problem: format!("it is gone but cannot be released: {error}"),
    }
}
