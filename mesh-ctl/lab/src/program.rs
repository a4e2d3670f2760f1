//! The programs of a node, and how anything is started inside a namespace.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::folder::Folder;
use crate::process::ProcessId;
use crate::store::POD_NETWORK;

/// Where the programs are, if not beside the running one.
const BIN_DIR: &str = "SELVAGE_BIN_DIR";

/// A program that a node keeps running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Program {
    /// Control.
    #[serde(rename = "mesh-agent")]
    Agent,
    /// Encryption.
    #[serde(rename = "mesh-wireguard")]
    Wireguard,
    /// L7.
    #[serde(rename = "mesh-proxy")]
    Proxy,
}

impl Program {
    /// All of a node, in the order in which they are started.
    pub const ALL: [Self; 3] = [Self::Agent, Self::Wireguard, Self::Proxy];

    /// Name of the executable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "mesh-agent",
            Self::Wireguard => "mesh-wireguard",
            Self::Proxy => "mesh-proxy",
        }
    }

    /// Name of the file in the run folder that holds its worker's pid; `None` if it has no worker.
    pub(crate) const fn worker_file(self) -> Option<&'static str> {
        match self {
            Self::Agent => None,
            Self::Wireguard => Some("wireguard-master.sock.worker"),
            Self::Proxy => Some("proxy-master.sock.worker"),
        }
    }
}

impl FromStr for Program {
    type Err = LabError;

    fn from_str(name: &str) -> Result<Self, LabError> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|program| program.name() == name);
        found.ok_or_else(|| LabError::option("program", name, format!("a node runs {}", known())))
    }
}

/// What the supervisor knows of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramRecord {
    /// The program.
    pub program: Program,
    /// Its process; `None` between two.
    pub process: Option<ProcessId>,
    /// How often it was started again after it had ended.
    pub restarts: u32,
    /// How the last one ended; empty if none did.
    pub last_end: String,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Folder of the programs: `$SELVAGE_BIN_DIR`, else where the running one is (tests run from `deps/` below it).
pub(crate) fn bin_dir() -> Result<PathBuf, LabError> {
    if let Some(folder) = std::env::var_os(BIN_DIR) {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe().map_err(LabError::io("find", Path::new("/proc/self/exe")))?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}

/// Path of the program `name`.
pub(crate) fn find(name: &str) -> Result<PathBuf, LabError> {
    let folder = bin_dir()?;
    let program = folder.join(name);
    if program.is_file() {
        return Ok(program);
    }
    let folder = folder.display();
    Err(LabError::Machine(format!("{name} is not in {folder}; build it with `make build`, or set {BIN_DIR}")))
}

/// `program`, to be run in the network namespace bound to `namespace`. Further arguments are the program's own; a program that
/// cannot be found ends with the exit code 127, as in a shell.
pub(crate) fn command_in(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    // nsenter becomes the program: its pid, exit code, signals and terminal are the program's.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
    command
}

/// The command line of a node's program: where its node keeps what, as far as it needs to know.
pub(crate) fn program_command(
    lab: &Folder,
    node: &str,
    program: Program,
    encryption: bool,
) -> Result<Command, LabError> {
    let mut command = command_in(&lab.node_namespace(node), find(program.name())?);
    command.arg("--state-dir").arg(lab.state(node)).arg("--run-dir").arg(lab.run(node));
    if matches!(program, Program::Agent | Program::Proxy) {
        command.arg("--node-name").arg(node).arg("--pin-dir").arg(lab.node_pins(node));
    }
    if program == Program::Agent {
        command.arg("--source-dir").arg(lab.manifests());
        command.arg("--pod-network").arg(POD_NETWORK.to_string());
        command.arg("--encryption").arg(encryption.to_string());
    }
    Ok(command)
}

/// Makes `command` find the shop and other programs of this workspace by name, before those of the machine.
pub(crate) fn with_own_path(command: &mut Command) -> Result<(), LabError> {
    let machine = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(bin_dir()?).chain(std::env::split_paths(&machine));
    let path = std::env::join_paths(folders).map_err(|error| LabError::Machine(error.to_string()))?;
    command.env("PATH", path);
    Ok(())
}
