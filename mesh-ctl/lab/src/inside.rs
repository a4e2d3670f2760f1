//! What can be done inside a running lab: commands in its namespaces, addresses, processes, hand-overs.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::LabError;
use crate::lab::Lab;
use crate::pod::{Phase, PodRecord};
use crate::process::ProcessId;
use crate::program::{Program, ProgramRecord, command_in};
use crate::{record, store, topology};

/// Longest wait for a hand-over: longer than the supervisor's own limit for it.
const UPGRADE_LIMIT: Duration = Duration::from_secs(20);
/// How often its progress is looked at.
const LOOK: Duration = Duration::from_millis(10);

impl Lab {
    /// `program`, to be run in the namespace of a pod (for a pod with `hostNetwork`: of its node). Add arguments, then start it.
    pub fn pod_command(&self, namespace: &str, pod: &str, program: impl AsRef<OsStr>) -> Command {
        let record = PodRecord::read(&self.folder().pod_record(namespace, pod)).ok().flatten();
        match record {
            Some(record) if record.host_network => self.node_command(&record.node, program),
            _ => command_in(&self.folder().pod_namespace(namespace, pod), program),
        }
    }

    /// `program`, to be run in the namespace of a node.
    pub fn node_command(&self, node: &str, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.folder().node_namespace(node), program)
    }

    /// `program`, to be run in the world around the nodes.
    pub fn outside_command(&self, program: impl AsRef<OsStr>) -> Command {
        self.node_command(topology::OUTSIDE, program)
    }

    /// The record of a running pod.
    ///
    /// # Errors
    /// If there is no such pod or it does not run yet.
    pub fn pod(&self, namespace: &str, pod: &str) -> Result<PodRecord, LabError> {
        let missing = |reason: String| LabError::NoPod {
            lab: self.name().to_owned(),
            pod: format!("{namespace}/{pod}"),
            reason,
        };
        match PodRecord::read(&self.folder().pod_record(namespace, pod))? {
            Some(record) if record.phase == Phase::Running => Ok(record),
            Some(record) if record.message.is_empty() => {
                Err(missing(format!("it is {:?}", record.phase).to_lowercase()))
            }
            Some(record) => Err(missing(record.message)),
            None => Err(missing("no manifest names it".to_owned())),
        }
    }

    /// Address of a running pod.
    ///
    /// # Errors
    /// As [`Lab::pod`].
    pub fn pod_address(&self, namespace: &str, pod: &str) -> Result<IpAddr, LabError> {
        let missing = || LabError::NoPod {
            lab: self.name().to_owned(),
            pod: format!("{namespace}/{pod}"),
            reason: "it has no address".to_owned(),
        };
        self.pod(namespace, pod)?.address.ok_or_else(missing)
    }

    /// Name of the host side of a running pod's veth, on its node.
    ///
    /// # Errors
    /// As [`Lab::pod`].
    pub fn pod_host_interface(&self, namespace: &str, pod: &str) -> Result<String, LabError> {
        Ok(self.pod(namespace, pod)?.host_interface)
    }

    /// Where a pod's processes write.
    pub fn pod_log(&self, namespace: &str, pod: &str) -> PathBuf {
        self.folder().pod_log(namespace, pod)
    }

    /// Address of a node on its link.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node_address(&self, node: &str) -> Result<IpAddr, LabError> {
        let nodes = store::places(self.folder())?;
        match nodes.get(node) {
            Some(place) => Ok(IpAddr::V4(topology::node_address(*place))),
            None => Err(LabError::NoNode {
                lab: self.name().to_owned(),
                node: node.to_owned(),
                known: nodes.into_keys().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Unix socket of a node's agent.
    pub fn agent_socket(&self, node: &str) -> PathBuf {
        self.folder().run(node).join("agent.sock")
    }

    /// `state_dir` of a node.
    pub fn state_dir(&self, node: &str) -> PathBuf {
        self.folder().state(node)
    }

    /// Pid of a program of a node; of the master, if it has a worker too.
    ///
    /// # Errors
    /// If it does not run at the moment.
    pub fn program_pid(&self, node: &str, program: &str) -> Result<u32, LabError> {
        let program: Program = program.parse()?;
        let record = record::read::<ProgramRecord>(&self.folder().program_record(node, program.name()))?;
        let process = record.and_then(|record| record.process).filter(|process| process.is_alive());
        process.map(|process| process.pid).ok_or_else(|| self.not_running(node, program))
    }

    /// Pid of the worker of a program of a node.
    ///
    /// # Errors
    /// If it has none, or does not run at the moment.
    pub fn worker_pid(&self, node: &str, program: &str) -> Result<u32, LabError> {
        let program: Program = program.parse()?;
        let file = program
            .worker_file()
            .ok_or_else(|| LabError::option("program", program.name(), "it has no worker"))?;
        let pid = std::fs::read_to_string(self.folder().run(node).join(file)).ok();
        let pid = pid.and_then(|pid| pid.trim().parse::<u32>().ok());
        pid.filter(|pid| ProcessId::of(*pid).is_some()).ok_or_else(|| self.not_running(node, program))
    }

    fn not_running(&self, node: &str, program: Program) -> LabError {
        LabError::NotReady {
            lab: self.name().to_owned(),
            missing: format!("{program} does not run on {node}"),
        }
    }

    /// Replaces a running program by a new instance that takes its descriptors over, and waits until it has. The old one
    /// drains meanwhile and ends by itself.
    ///
    /// # Errors
    /// If the program has no hand-over, or its successor did not take over; the old one then goes on.
    pub fn upgrade(&self, node: &str, program: &str) -> Result<(), LabError> {
        let before = self.program_pid(node, program)?;
        self.worker_pid(node, program)?;
        let request = self.folder().upgrade_request(node, program);
        record::write(&request, &json!({}))?;
        let started = Instant::now();
        while request.exists() && started.elapsed() < UPGRADE_LIMIT {
            std::thread::sleep(LOOK);
        }
        if self.program_pid(node, program)? == before {
            let log = self.folder().program_log(node, program);
            let missing = format!("{program} on {node} was not replaced; see {}", log.display());
            return Err(LabError::NotReady { lab: self.name().to_owned(), missing });
        }
        Ok(())
    }
}
