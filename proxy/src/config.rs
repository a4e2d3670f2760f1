//! Options: one TOML file, and flags of the same names that win over it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser};
use serde::{Deserialize, Serialize};

/// The shared L7 proxy of a node: judges each request to or from the pods whose policy has HTTP rules.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version)]
pub struct CommandLine {
    /// File with the options below, in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the options in effect and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Options that win over those of the file.
    #[command(flatten)]
    pub options: Options,
}

/// Every option, each optional.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Name of this node, for logs [default: the host name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Folder for what must survive a restart [default: /var/lib/selvage]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder of the sockets [default: /run/selvage]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder of the pinned maps [default: /sys/fs/bpf/selvage]
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// Worker threads, each with a listener of its own [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// User and group of the worker; 0 leaves it root [default: 65532]
    #[arg(long, value_name = "UID")]
    worker_uid: Option<u32>,
    /// Seconds that open connections may go on after a hand-over [default: 600]
    #[arg(long, value_name = "SECONDS")]
    drain_seconds: Option<u64>,
}

/// The options in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Name of this node.
    pub node_name: String,
    /// Folder for what must survive a restart.
    pub state_dir: PathBuf,
    /// Folder of the sockets.
    pub run_dir: PathBuf,
    /// Folder of the pinned maps.
    pub pin_dir: PathBuf,
    /// Worker threads.
    pub threads: u32,
    /// User and group of the worker.
    pub worker_uid: u32,
    /// Seconds that open connections may go on after a hand-over.
    pub drain_seconds: u64,
}

/// Why the options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Of the system call.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {error}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Names field and place.
        error: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("{field}: {problem}")]
    Invalid {
        /// The option.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// User and group that the worker drops to: "nobody" in most images, one up from the usual 65534.
const WORKER_UID: u32 = 65532;

/// Longest drain: a hand-over that takes longer than a day has been forgotten.
const LONGEST_DRAIN: u64 = 86_400;

impl CommandLine {
    /// File and flags together.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => Options::read(path)?,
            None => Options::default(),
        };
        self.options.over(file).checked()
    }
}

impl Options {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), error: Box::new(error) })
    }

    fn over(self, file: Self) -> Self {
        Self {
            node_name: self.node_name.or(file.node_name),
            state_dir: self.state_dir.or(file.state_dir),
            run_dir: self.run_dir.or(file.run_dir),
            pin_dir: self.pin_dir.or(file.pin_dir),
            threads: self.threads.or(file.threads),
            worker_uid: self.worker_uid.or(file.worker_uid),
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
        }
    }

    fn checked(self) -> Result<Config, ConfigError> {
        let path = |value: Option<PathBuf>, default: &str| value.unwrap_or_else(|| default.into());
        let threads = self.threads.unwrap_or_else(cores);
        let most = layout::limits::LISTENERS;
        if threads == 0 || threads > most {
            let problem = format!("must be from 1 to {most}, is {threads}");
            return Err(ConfigError::Invalid { field: "threads", problem });
        }
        let drain_seconds = self.drain_seconds.unwrap_or(600);
        if drain_seconds > LONGEST_DRAIN {
            let problem = format!("must be at most {LONGEST_DRAIN}, is {drain_seconds}");
            return Err(ConfigError::Invalid { field: "drain_seconds", problem });
        }
        let worker_uid = self.worker_uid.unwrap_or(WORKER_UID);
        if worker_uid == 0 {
            let problem = "must not be 0: what parses the bytes of pods does not run as root".to_owned();
            return Err(ConfigError::Invalid { field: "worker_uid", problem });
        }
        Ok(Config {
            node_name: self.node_name.unwrap_or_else(host_name),
            state_dir: path(self.state_dir, "/var/lib/selvage"),
            run_dir: path(self.run_dir, "/run/selvage"),
            pin_dir: path(self.pin_dir, "/sys/fs/bpf/selvage"),
            threads,
            worker_uid,
            drain_seconds,
        })
    }
}

impl Config {
    /// Where snapshots come from and records go to.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("proxy.sock")
    }

    /// Where a successor asks for the listeners.
    pub fn handover_socket(&self) -> PathBuf {
        self.run_dir.join("proxy-master.sock")
    }

    /// The worker's own folder.
    pub fn store_dir(&self) -> PathBuf {
        self.state_dir.join("proxy")
    }

    /// How long open connections may go on after a hand-over.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
        .min(layout::limits::LISTENERS)
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, ConfigError> {
        CommandLine::parse_from([&["mesh-proxy"], arguments].concat()).resolve()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.toml");
        std::fs::write(&file, "threads = 3\nrun_dir = \"/tmp/a\"\n").unwrap();
        let file = file.to_str().unwrap();
        let config = parse(&["--config", file, "--run-dir", "/tmp/b"]).unwrap();
        assert_eq!((config.threads, config.worker_uid), (3, 65532));
        assert_eq!(config.handover_socket(), Path::new("/tmp/b/proxy-master.sock"));
    }

    #[test]
    fn errors_name_the_field() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.toml");
        std::fs::write(&file, "thread = 3\n").unwrap();
        let unknown = parse(&["--config", file.to_str().unwrap()]).unwrap_err().to_string();
        assert!(unknown.contains("thread"), "{unknown}");
        let zero = parse(&["--threads", "0"]).unwrap_err().to_string();
        assert!(zero.starts_with("threads: "), "{zero}");
        let root = parse(&["--worker-uid", "0"]).unwrap_err().to_string();
        assert!(root.starts_with("worker_uid: "), "{root}");
    }
}
