//! A lab, as its users hold it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::LabError;
use crate::folder::{self, Folder};
use crate::manifest::{self, Object, ObjectKey};
use crate::pod::PodRecord;
use crate::process::ProcessId;
use crate::program::{self, Program};
use crate::store::{self, Change};
use crate::{ready, record, teardown, topology};

/// Longest wait for a lab to become ready. Debug builds on a busy machine need some seconds.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How a lab is to be.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Name: lower-case letters, digits and inner dashes.
    pub name: String,
    /// Number of nodes, if the manifests name none.
    pub nodes: u8,
    /// File or folder of the manifests that it starts with.
    pub manifests: Option<PathBuf>,
    /// What runs on each node. Without the agent pods cannot be attached, and are not waited for.
    pub programs: Vec<Program>,
    /// Whether traffic between nodes is encrypted. If not, no node runs the tunnel's program.
    pub encryption: bool,
    /// Longest wait for it to become ready.
    pub ready_limit: Duration,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            name: "selvage".to_owned(),
            nodes: 2,
            manifests: None,
            programs: Program::ALL.to_vec(),
            encryption: true,
            ready_limit: READY_LIMIT,
        }
    }
}

/// What a lab was started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LabRecord {
    pub(crate) programs: Vec<Program>,
    pub(crate) encryption: bool,
    pub(crate) started: SystemTime,
}

/// A running lab. One that was started here goes down when this is dropped, or when this process ends in any other way,
/// unless it was told to [`Lab::keep`] on.
#[derive(Debug)]
pub struct Lab {
    folder: Folder,
    supervisor: Option<Child>,
    owned: bool,
}

impl Lab {
    /// Starts a lab and waits until all is ready: agents answer, tunnels have shaken hands, proxies have the policy, pods are
    /// attached and their servers listen. If that fails, nothing is left of it.
    ///
    /// # Errors
    /// What is missing, of the machine or of the lab; a wrong option or manifest.
    pub fn up(mut options: LabOptions) -> Result<Self, LabError> {
        if !options.encryption {
            options.programs.retain(|program| *program != Program::Wireguard);
        }
        let folder = Folder::of(&options.name)?;
        check_machine(&options.programs)?;
        let objects = objects(&options)?;
        make_folders(&folder)?;
        // From here on, dropping it removes what is there.
        let mut lab = Self { folder, supervisor: None, owned: true };
        record::write(&lab.folder.owner(), &own_process()?)?;
        let record = LabRecord {
            programs: options.programs.clone(),
            encryption: options.encryption,
            started: SystemTime::now(),
        };
        record::write(&lab.folder.record(), &record)?;
        host::mount::ensure_bpffs(Path::new(folder::PIN_ROOT))
            .map_err(|error| LabError::Machine(error.to_string()))?;
        topology::prepare_namespace_folder(Path::new(folder::NETNS))?;
        store::apply(&lab.folder, objects)?;
        block_on(&lab.folder, topology::create_outside(&lab.folder))?;
        lab.start_supervisor()?;
        block_on(&lab.folder, ready::wait(&lab.folder, &options.programs, options.ready_limit))?;
        Ok(lab)
    }

    /// The running lab `name`. Dropping it changes nothing.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let folder = Folder::of(name)?;
        if !folder.exists() {
            return Err(LabError::NoLab(name.to_owned()));
        }
        Ok(Self { folder, supervisor: None, owned: false })
    }

    /// All labs of this machine, by name.
    ///
    /// # Errors
    /// If their folder cannot be read.
    pub fn all() -> Result<Vec<Self>, LabError> {
        let folders = folder::all()?;
        Ok(folders.into_iter().map(|folder| Self { folder, supervisor: None, owned: false }).collect())
    }

    fn start_supervisor(&mut self) -> Result<(), LabError> {
        let log = self.folder.logs().join("supervisor.log");
        let failed = || LabError::io("open", &log);
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(failed())?;
        let errors = output.try_clone().map_err(failed())?;
        let program = program::find("mesh-ctl")?;
        let mut command = Command::new(&program);
        command.args(["lab", "supervise", "--name", self.name()]).current_dir("/");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(LabError::io("start", &program))?;
        let id = ProcessId::of(child.id());
        self.supervisor = Some(child);
        let died = || LabError::NotReady {
            lab: self.name().to_owned(),
            missing: "its supervisor ended at once".to_owned(),
        };
        record::write(&self.folder.supervisor(), &id.ok_or_else(died)?)
    }

    /// Lets it run on when this process ends; [`Lab::open`] finds it again.
    ///
    /// # Errors
    /// If that cannot be noted; it then goes down.
    pub fn keep(mut self) -> Result<(), LabError> {
        host::file::remove(&self.folder.owner())?;
        self.owned = false;
        Ok(())
    }

    /// Removes it: no process, namespace, link, route, rule, pin or file is left.
    ///
    /// # Errors
    /// What would not go.
    pub fn down(mut self) -> Result<(), LabError> {
        self.owned = false;
        self.remove()
    }

    fn remove(&mut self) -> Result<(), LabError> {
        let removed = teardown::remove(&self.folder);
        if let Some(mut supervisor) = self.supervisor.take() {
            // It is dead; this only frees its entry in the process table.
            let _ = supervisor.kill();
            let _ = supervisor.wait();
        }
        removed
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.folder.name()
    }

    /// Where it keeps what.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// When it was started.
    ///
    /// # Errors
    /// If its record is not there (yet).
    pub fn started(&self) -> Result<SystemTime, LabError> {
        let record: Option<LabRecord> = record::read(&self.folder.record())?;
        record.map(|record| record.started).ok_or_else(|| LabError::NoLab(self.name().to_owned()))
    }

    /// Whether its supervisor lives.
    pub fn is_supervised(&self) -> bool {
        matches!(record::read::<ProcessId>(&self.folder.supervisor()), Ok(Some(process)) if process.is_alive())
    }

    /// Names of its nodes.
    ///
    /// # Errors
    /// If its manifests cannot be read.
    pub fn nodes(&self) -> Result<Vec<String>, LabError> {
        Ok(store::places(&self.folder)?.into_keys().collect())
    }

    /// Whether its nodes run this program.
    ///
    /// # Errors
    /// If its record is not there (yet).
    pub fn runs(&self, program: Program) -> Result<bool, LabError> {
        let record: Option<LabRecord> = record::read(&self.folder.record())?;
        let record = record.ok_or_else(|| LabError::NoLab(self.name().to_owned()))?;
        Ok(record.programs.contains(&program))
    }

    /// The objects of its manifests, without those of files that cannot be read.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn objects(&self) -> Result<Vec<Object>, LabError> {
        Ok(store::read_in_part(&self.folder)?.0.into_values().collect())
    }

    /// The pods that it has made or is making.
    ///
    /// # Errors
    /// If their records cannot be read.
    pub fn pods(&self) -> Result<Vec<PodRecord>, LabError> {
        record::read_all(&self.folder.pods())
    }

    /// Applies manifests, as the nodes' agents will see them within milliseconds; does not wait for pods.
    ///
    /// # Errors
    /// The first manifest that is wrong; then none of them is applied.
    pub fn apply_yaml(&self, text: &str) -> Result<Vec<(ObjectKey, Change)>, LabError> {
        self.apply(manifest::parse(text, "manifest")?)
    }

    /// Applies manifests that were read before.
    ///
    /// # Errors
    /// As [`Lab::apply_yaml`].
    pub fn apply(&self, objects: Vec<Object>) -> Result<Vec<(ObjectKey, Change)>, LabError> {
        store::apply(&self.folder, objects)
    }

    /// Deletes the objects that these manifests name.
    ///
    /// # Errors
    /// If a manifest names nothing; then none is deleted.
    pub fn delete_yaml(&self, text: &str) -> Result<Vec<(ObjectKey, Change)>, LabError> {
        let keys: Vec<_> = manifest::parse(text, "manifest")?.into_iter().map(|object| object.key).collect();
        self.delete(&keys)
    }

    /// Deletes objects.
    ///
    /// # Errors
    /// A node with pods on it; then nothing is deleted.
    pub fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Change)>, LabError> {
        store::delete(&self.folder, keys)
    }

    /// Waits until the pods that run are those of the manifests.
    ///
    /// # Errors
    /// What is missing after `limit`.
    pub fn wait_for_pods(&self, limit: Duration) -> Result<(), LabError> {
        block_on(&self.folder, ready::wait_for_pods(&self.folder, limit))
    }

    /// Waits until everything is ready, as [`Lab::up`] does.
    ///
    /// # Errors
    /// What is missing after `limit`.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<(), LabError> {
        let record: LabRecord =
            record::read(&self.folder.record())?.ok_or_else(|| LabError::NoLab(self.name().to_owned()))?;
        block_on(&self.folder, ready::wait(&self.folder, &record.programs, limit))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.remove()
        {
            tracing::error!(%error, "the lab was not removed");
        }
    }
}

fn check_machine(programs: &[Program]) -> Result<(), LabError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::Machine("not root; network namespaces and eBPF need it".to_owned()));
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&folders).any(|folder| folder.join("nsenter").is_file()) {
        return Err(LabError::Machine("nsenter is not in PATH; install the package util-linux".to_owned()));
    }
    let plugin = programs.contains(&Program::Agent).then_some("mesh-cni");
    for name in programs.iter().map(|program| program.name()).chain(["mesh-ctl"]).chain(plugin) {
        program::find(name)?;
    }
    Ok(())
}

/// The manifests that it starts with: those given, and nodes if they name none.
fn objects(options: &LabOptions) -> Result<Vec<Object>, LabError> {
    let mut objects = options.manifests.as_deref().map_or_else(|| Ok(Vec::new()), manifest::read)?;
    if objects.iter().any(|object| object.key.kind == "Node") {
        return Ok(objects);
    }
    if !(1..=store::NODES_MAX).contains(&options.nodes) {
        let message = format!("use 1 to {}", store::NODES_MAX);
        return Err(LabError::option("nodes", &options.nodes.to_string(), message));
    }
    objects
        .extend((1..=options.nodes).map(|number| Object::new("Node", &format!("node-{number}"), &json!({}))));
    Ok(objects)
}

/// Fails if the lab exists: its folder is its lock.
fn make_folders(folder: &Folder) -> Result<(), LabError> {
    let root = Path::new(folder::ROOT);
    std::fs::create_dir_all(root).map_err(LabError::io("create", root))?;
    match std::fs::create_dir(folder.path()) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(LabError::Exists(folder.name().to_owned()));
        }
        made => made.map_err(LabError::io("create", folder.path()))?,
    }
    for part in [folder.manifests(), folder.logs(), folder.nodes(), folder.pods()] {
        std::fs::create_dir(&part).map_err(LabError::io("create", &part))?;
    }
    Ok(())
}

fn own_process() -> Result<ProcessId, LabError> {
    ProcessId::of(std::process::id()).ok_or_else(|| LabError::Machine("/proc is not mounted".to_owned()))
}

/// Runs `work` to its end, on a thread of its own: the caller may be in a runtime.
fn block_on<T: Send>(
    folder: &Folder,
    work: impl Future<Output = Result<T, LabError>> + Send,
) -> Result<T, LabError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(LabError::io("start a runtime for", folder.path()))?.block_on(work)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
