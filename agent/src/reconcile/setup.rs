//! The start: what is there is adopted. And the notes that the plugin left meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use datapath::Datapath;
use datapath::lower::Installed;
use policy::{Problem, Snapshot};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::gone::Gone;
use super::health::Health;
use super::judges::Judge;
use super::node::Keeping;
use super::problems::{ProblemLog, Problems};
use super::silence::Voice;
use super::{Handle, REQUESTS, ReconcileError, Reconciler, View};
use crate::config::Config;
use crate::identities::StoredIdentities;
use crate::journal::{AttachmentKey, Journal};
use crate::known_nodes::KnownNodes;
use crate::names;
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
        host::file::remove_left_over(&config.state_dir);
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
            keeping: Keeping::default(),
            gone: Gone::default(),
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
            tunnel_voice: Voice::default(),
            announced: None,
            known_nodes: KnownNodes::open(&names::known_nodes(config)),
            problems: Problems { start, ..Problems::default() },
            problem_log: ProblemLog::new(Instant::now()),
            health: Health::default(),
        };
        Ok((reconciler, handle))
    }

    /// Releases what the plugin could not tell us of.
    pub(super) async fn honour_release_notes(&mut self) {
        let folder = names::release_notes(&self.config);
        host::file::remove_left_over(&folder);
        let Ok(folder) = std::fs::read_dir(folder) else { return };
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
}
