//! What `mesh-wireguard` can be told: flags over a TOML file over defaults.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::{Deserialize, Serialize};

/// The encryption data path of a node: WireGuard between a TUN device and UDP.
#[derive(Debug, Parser)]
#[command(name = "mesh-wireguard", version)]
pub struct Options {
    /// TOML file with the options below (`state_dir = "..."`); flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration as TOML and exit.
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    flags: Partial,
}

/// Options as one source has them.
#[derive(Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
struct Partial {
    /// Folder for what survives a restart [default: /var/lib/selvage].
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Folder for sockets [default: /run/selvage].
    #[arg(long, value_name = "FOLDER")]
    run_dir: Option<PathBuf>,
    /// Name of the TUN device [default: selvage0].
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// UDP port, on all IPv4 addresses [default: 51820].
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// User and group of the worker; owner of the agent's tunnel.sock [default: 65533].
    #[arg(long, value_name = "UID")]
    worker_user: Option<u32>,
}

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Folder for what survives a restart.
    pub state_dir: PathBuf,
    /// Folder for sockets.
    pub run_dir: PathBuf,
    /// Name of the TUN device.
    pub device: String,
    /// UDP port.
    pub port: u16,
    /// User and group of the worker.
    pub worker_user: u32,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It is not TOML, or has an unknown key or a value of the wrong type.
    #[error("configuration {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{option}: {message}")]
    Value {
        /// The option's name.
        option: &'static str,
        /// What is wrong and what is possible.
        message: String,
    },
}

impl Options {
    /// The effective configuration.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let flags = self.flags;
        let config = Config {
            state_dir: flags.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/selvage".into()),
            run_dir: flags.run_dir.or(file.run_dir).unwrap_or_else(|| "/run/selvage".into()),
            device: flags.device.or(file.device).unwrap_or_else(|| "selvage0".to_owned()),
            port: flags.port.or(file.port).unwrap_or(51820),
            worker_user: flags.worker_user.or(file.worker_user).unwrap_or(65533),
        };
        config.check()?;
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Partial, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

impl Config {
    /// The same configuration as flags, for the worker: it may not be able to read the file.
    pub fn to_flags(&self) -> Vec<OsString> {
        vec![
            "--state-dir".into(),
            self.state_dir.clone().into(),
            "--run-dir".into(),
            self.run_dir.clone().into(),
            "--device".into(),
            self.device.clone().into(),
            "--port".into(),
            self.port.to_string().into(),
            "--worker-user".into(),
            self.worker_user.to_string().into(),
        ]
    }

    /// The node's private key: base64, as `wg genkey` prints it.
    pub fn private_key(&self) -> PathBuf {
        self.state_dir.join("wireguard/private.key")
    }

    /// The one folder that the worker may write to. Not the key's: who can write to a folder can replace what is in it.
    pub fn worker_folder(&self) -> PathBuf {
        self.state_dir.join("wireguard/worker")
    }

    /// The peers that were last in force.
    pub fn peers_file(&self) -> PathBuf {
        self.worker_folder().join("peers.pb")
    }

    /// Where the agent serves `Tunnel`.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("tunnel.sock")
    }

    /// Where a successor asks for the descriptors.
    pub fn handover_socket(&self) -> PathBuf {
        self.run_dir.join("wireguard-master.sock")
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |option, message: String| Err(ConfigError::Value { option, message });
        for (option, path) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if !path.is_absolute() {
                return bad(option, format!("{} is not an absolute path", path.display()));
            }
        }
        if self.port == 0 {
            return bad("port", "0 is no port: peers must know where to send".to_owned());
        }
        if self.worker_user == 0 {
            return bad("worker_user", "the worker must not be root: choose an unprivileged uid".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[&str]) -> Result<Config, ConfigError> {
        Options::try_parse_from([&["mesh-wireguard"], flags].concat()).unwrap().resolve()
    }

    #[test]
    fn flags_win_over_the_file_and_the_worker_gets_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.toml");
        let file = path.to_str().unwrap();
        std::fs::write(&path, "state_dir = \"/a\"\nport = 1000\nworker_user = 70000\n").unwrap();
        let config = resolve(&["--config", file, "--port", "2000"]).unwrap();
        assert_eq!((config.state_dir.to_str(), config.port, config.worker_user), (Some("/a"), 2000, 70000));
        assert_eq!((config.device.as_str(), config.run_dir.to_str()), ("selvage0", Some("/run/selvage")));
        let flags: Vec<String> =
            config.to_flags().into_iter().map(|flag| flag.into_string().unwrap()).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        assert_eq!(resolve(&flags).unwrap(), config);
        std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(resolve(&["--config", file]).unwrap(), config, "what --print-config prints is a file");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.toml");
        std::fs::write(&path, "prot = 51820\n").unwrap();
        for (flags, expected) in [
            (&["--config", path.to_str().unwrap()][..], "unknown field `prot`"),
            (&["--config", "/nowhere.toml"], "/nowhere.toml"),
            (&["--port", "0"], "port: 0"),
            (&["--worker-user", "0"], "worker_user: the worker must not be root"),
            (&["--state-dir", "here"], "state_dir: here is not an absolute path"),
        ] {
            let error = resolve(flags).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
