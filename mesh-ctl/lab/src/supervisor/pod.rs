//! A pod: a namespace, attached by the real plugin, with its containers' commands in it.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use host::netns::NetNs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use super::plugin;
use super::program::{BackOff, describe, spawn};
use crate::error::LabError;
use crate::folder::Folder;
use crate::pod::{Phase, PodRecord, PodSpec, Process, RestartPolicy};
use crate::process::Namespaces;
use crate::program::{command_in, with_own_path};
use crate::{record, topology};

/// How often it is looked whether the agent is there, or a server listens.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a declared port; a pod whose server never listens is running all the same.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
/// How often DEL is tried before the pod is removed without it.
const DELETE_TRIES: u32 = 3;

/// Keeps a pod until `cancel`, then takes it away.
pub(super) async fn keep(lab: Folder, spec: PodSpec, cancel: CancellationToken) {
    let mut pod = Pod { lab: &lab, record: new_record(&spec), spec: &spec };
    // Cancelled between two steps of an ADD, what was made so far is found by DEL.
    if cancel.run_until_cancelled(pod.run()).await.is_none() {
        pod.note(Phase::Deleting, String::new());
        pod.remove().await;
        if let Err(error) = host::file::remove(&lab.pod_record(&spec.namespace, &spec.name)) {
            tracing::error!(pod = pod.name(), %error, "cannot forget the pod");
        }
    }
}

fn new_record(spec: &PodSpec) -> PodRecord {
    PodRecord {
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        uid: spec.uid.clone(),
        node: spec.node.clone(),
        container_id: spec.uid.replace('-', ""),
        host_network: spec.host_network,
        phase: Phase::Creating,
        address: None,
        host_interface: String::new(),
        message: String::new(),
    }
}

struct Pod<'a> {
    lab: &'a Folder,
    spec: &'a PodSpec,
    record: PodRecord,
}

impl Pod<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    fn note(&mut self, phase: Phase, message: String) {
        self.record.phase = phase;
        self.record.message = message;
        if let Err(error) =
            record::write(&self.lab.pod_record(&self.spec.namespace, &self.spec.name), &self.record)
        {
            tracing::error!(pod = self.name(), %error, "cannot note the state of the pod");
        }
    }

    async fn run(&mut self) {
        self.note(Phase::Creating, String::new());
        let mut back_off = BackOff::new();
        while let Err(error) = self.attach().await {
            tracing::error!(pod = self.name(), %error, "cannot attach the pod");
            self.note(Phase::Failing, error.to_string());
            self.remove().await;
            tokio::time::sleep(back_off.after(Duration::ZERO)).await;
        }
        let namespace = self.namespace();
        let (lab, spec) = (self.lab, self.spec);
        let containers = spec.processes.iter().map(|process| container(lab, spec, &namespace, process));
        let listening = async {
            listens(&namespace, &spec.tcp_ports).await;
            self.note(Phase::Running, String::new());
        };
        futures::future::join(listening, join_all(containers)).await;
        // All its processes have ended for good, or it has none: it just waits.
        std::future::pending::<()>().await;
    }

    fn namespace(&self) -> std::path::PathBuf {
        match self.spec.host_network {
            true => self.lab.node_namespace(&self.spec.node),
            false => self.lab.pod_namespace(&self.spec.namespace, &self.spec.name),
        }
    }

    async fn attach(&mut self) -> Result<(), LabError> {
        // The agent has to be started only once; an agent that is gone later is the plugin's to complain about.
        let socket = self.lab.run(&self.spec.node).join("agent.sock");
        while !socket.exists() {
            tokio::time::sleep(LOOK).await;
        }
        if self.spec.host_network {
            let place = crate::store::places(self.lab)?.remove(&self.spec.node);
            self.record.address = place.map(|place| topology::node_address(place).into());
            return Ok(());
        }
        let path = self.namespace();
        host::netlink::Netlink::connect_in(&NetNs::create(&path)?)?.set_loopback_up().await?;
        let added = plugin::add(self.lab, &self.record).await?;
        self.record.address = Some(added.address);
        self.record.host_interface = added.host_interface;
        Ok(())
    }

    /// Processes, attachment, namespace: what is not there is no error.
    async fn remove(&self) {
        if self.spec.host_network {
            return;
        }
        let path = self.namespace();
        let inside = Namespaces::at(std::slice::from_ref(&path));
        // Off this thread: it may wait for a process to die whose parent this is.
        let _ = tokio::task::spawn_blocking(move || inside.kill_all()).await;
        let mut back_off = BackOff::new();
        for _ in 0..DELETE_TRIES {
            match plugin::delete(self.lab, &self.record).await {
                Ok(()) => break,
                Err(error) => tracing::error!(pod = self.name(), %error, "cannot detach the pod"),
            }
            tokio::time::sleep(back_off.after(Duration::ZERO)).await;
        }
        if let Err(error) = NetNs::delete(&path) {
            tracing::error!(pod = self.name(), %error, "cannot remove the pod's namespace");
        }
    }
}

/// Kills a whole process group when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // Gone already, mostly.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

/// Runs a container's command as its pod's restart policy says.
async fn container(lab: &Folder, pod: &PodSpec, namespace: &Path, process: &Process) {
    let mut back_off = BackOff::new();
    loop {
        let started = Instant::now();
        let ended_well = match start(lab, pod, namespace, process) {
            Ok(mut child) => {
                let _group = Group(child.id());
                let status = child.wait().await;
                let ended_well = status.as_ref().is_ok_and(std::process::ExitStatus::success);
                tracing::info!(
                    pod = pod.name,
                    container = process.container,
                    end = describe(status),
                    "ended"
                );
                ended_well
            }
            Err(error) => {
                tracing::error!(pod = pod.name, container = process.container, %error, "cannot be started");
                false
            }
        };
        match pod.restart {
            RestartPolicy::Never => return,
            RestartPolicy::OnFailure if ended_well => return,
            _ => tokio::time::sleep(back_off.after(started.elapsed())).await,
        }
    }
}

fn start(
    lab: &Folder,
    pod: &PodSpec,
    namespace: &Path,
    process: &Process,
) -> Result<tokio::process::Child, LabError> {
    let program = process.command.first().map_or("", String::as_str);
    let mut command = command_in(namespace, program);
    command.args(process.command.iter().skip(1));
    with_own_path(&mut command)?;
    command.envs(process.environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(process.folder.as_deref().unwrap_or("/"));
    spawn(command, &lab.pod_log(&pod.namespace, &pod.name))
}

/// Waits until something listens on each of these ports of the namespace; looks only, so that no server sees a connection.
async fn listens(namespace: &Path, ports: &[u16]) {
    let started = Instant::now();
    while started.elapsed() < LISTEN_LIMIT {
        let open = NetNs::open(namespace).and_then(|inside| inside.run(listening_ports)).unwrap_or_default();
        if ports.iter().all(|port| open.contains(port)) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::warn!(namespace = %namespace.display(), ?ports, "nothing listens on a declared port");
}

/// Ports in state LISTEN of the calling thread's namespace.
fn listening_ports() -> Vec<u16> {
    /// As `/proc/net/tcp` writes LISTEN.
    const LISTEN: &str = "0A";
    let tables = ["tcp", "tcp6"]
        .map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    lines
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
            (state == LISTEN).then(|| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_and_its_end_too() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening_ports().contains(&port));
        drop(listener);
        // A program that another test starts right now holds a copy of the socket between its fork and its exec.
        let deadline = Instant::now() + LISTEN_LIMIT;
        while listening_ports().contains(&port) {
            assert!(Instant::now() < deadline, "port {port} is still seen");
            std::thread::sleep(LOOK);
        }
    }
}
