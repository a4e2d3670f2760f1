//! The one process of a lab that keeps it as its manifests say: nodes with their programs, pods with theirs.
//!
//! It is told nothing but the manifests folder, and writes down what it makes before it makes it. So it can be killed at any
//! time: `down` finds everything by those records.

mod node;
mod plugin;
mod pod;
mod program;
mod reap;

pub(crate) use node::NodeRecord;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::LabError;
use crate::folder::Folder;
use crate::lab::LabRecord;
use crate::process::ProcessId;
use crate::{record, store, teardown};

/// How often the folder is looked at. A look costs some tens of microseconds.
const LOOK: Duration = Duration::from_millis(50);

/// How often, in looks, orphans are reaped.
const LOOKS_PER_REAP: u32 = 20;

/// Runs until SIGTERM, ends all processes then and leaves the rest for `down` to remove; or until the lab's owner is gone, and
/// then removes it all. Makes the calling process the leader of a session of its own.
///
/// # Errors
/// If the lab is not there.
pub fn supervise(name: &str) -> Result<(), LabError> {
    let lab = Folder::of(name)?;
    let record: LabRecord = record::read(&lab.record())?.ok_or_else(|| LabError::NoLab(name.to_owned()))?;
    // Refused only to the leader of a group, which is then as far from its starter's terminal as is needed.
    let _ = nix::unistd::setsid();
    reap::adopt_orphans();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LabError::io("start a runtime for", lab.path()))?;
    let orphaned = runtime.block_on(Supervisor::new(lab.clone(), record).run())?;
    drop(runtime);
    teardown::kill_processes(&lab);
    reap::reap_all();
    if orphaned {
        tracing::warn!("the lab's owner is gone: removing the lab");
        teardown::remove(&lab)?;
    }
    Ok(())
}

/// Something that is kept until it is no longer wanted.
struct Kept {
    /// Kept as it is while this is the same.
    version: String,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Kept {
    fn start<F: Future<Output = ()> + 'static>(
        version: String,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let cancel = CancellationToken::new();
        let task = tokio::task::spawn_local(work(cancel.clone()));
        Self { version, cancel, task }
    }
}

/// State of the manifests folder that changes with every file in it.
type Fingerprint = Vec<(String, u64, i64, i64)>;

struct Supervisor {
    lab: Folder,
    record: LabRecord,
    nodes: BTreeMap<String, Kept>,
    /// By namespace and name.
    pods: BTreeMap<(String, String), Kept>,
    seen: Fingerprint,
    settled: bool,
}

impl Supervisor {
    fn new(lab: Folder, record: LabRecord) -> Self {
        Self { lab, record, nodes: BTreeMap::new(), pods: BTreeMap::new(), seen: Vec::new(), settled: false }
    }

    /// Returns whether it ended because the owner did.
    async fn run(mut self) -> Result<bool, LabError> {
        let failed = |error| LabError::io("await signals for", self.lab.path())(error);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let local = tokio::task::LocalSet::new();
        let work = async {
            let mut reaper = reap::Reaper::default();
            for number in 1u32.. {
                tokio::select! {
                    _ = terminate.recv() => return false,
                    _ = look.tick() => {}
                }
                if self.is_orphaned() {
                    return true;
                }
                if number.is_multiple_of(LOOKS_PER_REAP) {
                    reaper.look();
                }
                if let Err(error) = self.reconcile() {
                    // Whatever is wrong with the folder, what runs goes on.
                    tracing::error!(%error, "cannot follow the manifests");
                }
            }
            false
        };
        Ok(local.run_until(work).await)
    }

    fn is_orphaned(&self) -> bool {
        matches!(record::read::<ProcessId>(&self.lab.owner()), Ok(Some(owner)) if !owner.is_alive())
    }

    fn reconcile(&mut self) -> Result<(), LabError> {
        let now = fingerprint(&self.lab)?;
        if self.settled && now == self.seen {
            return Ok(());
        }
        let (objects, broken) = store::read_in_part(&self.lab)?;
        for error in &broken {
            tracing::error!(%error, "what it says is not followed, and nothing is taken away meanwhile");
        }
        // What a file that cannot be read no longer says may be what runs.
        let stays = || (!broken.is_empty()).then(|| "in use".to_owned());
        let nodes = store::nodes(&objects);
        let pods: BTreeMap<_, _> = store::pods(&objects)
            .into_iter()
            .filter(|pod| nodes.contains_key(&pod.node))
            .map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod))
            .collect();
        retire(&mut self.pods, |key| pods.get(key).map(|pod| pod.uid.clone()).or_else(stays));
        // A node goes after its pods, which need its agent for their DEL.
        let in_use = self.pods.values().any(|pod| pod.cancel.is_cancelled());
        retire(&mut self.nodes, |name| {
            nodes.get(name).map(u8::to_string).or_else(|| in_use.then(|| "in use".to_owned())).or_else(stays)
        });
        for (name, place) in nodes {
            self.nodes.entry(name.clone()).or_insert_with(|| {
                let (lab, record) = (self.lab.clone(), self.record.clone());
                Kept::start(place.to_string(), |cancel| node::keep(lab, name, place, record, cancel))
            });
        }
        for (key, pod) in pods {
            let lab = self.lab.clone();
            self.pods
                .entry(key)
                .or_insert_with(|| Kept::start(pod.uid.clone(), |cancel| pod::keep(lab, pod, cancel)));
        }
        // Until what is cancelled has ended, its successor cannot be started: look again.
        let ending = |kept: &Kept| kept.cancel.is_cancelled();
        self.settled = !self.pods.values().any(ending) && !self.nodes.values().any(ending);
        self.seen = now;
        Ok(())
    }
}

/// Cancels what is not wanted in this version any more, and forgets what has ended.
fn retire<K: Ord>(kept: &mut BTreeMap<K, Kept>, wanted: impl Fn(&K) -> Option<String>) {
    kept.retain(|key, kept| {
        if wanted(key).is_none_or(|version| version != kept.version && version != "in use") {
            kept.cancel.cancel();
        }
        !kept.task.is_finished()
    });
}

fn fingerprint(lab: &Folder) -> Result<Fingerprint, LabError> {
    let folder = lab.manifests();
    let failed = || LabError::io("list", &folder);
    let mut files = Fingerprint::new();
    for entry in std::fs::read_dir(&folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".yaml") {
            continue;
        }
        // One that was removed meanwhile will be missing at the next look too.
        if let Ok(metadata) = entry.metadata() {
            files.push((name, metadata.ino(), metadata.mtime(), metadata.mtime_nsec()));
        }
    }
    files.sort();
    Ok(files)
}
