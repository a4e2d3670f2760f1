//! What the agent is told: one TOML file plus flags of the same names; flags win. Everything is read and checked before
//! anything starts.

use std::path::{Path, PathBuf};

use clap::Parser;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Read if it exists and `--config` names no other.
const DEFAULT_FILE: &str = "/etc/selvage/agent.toml";

/// The control program of a node: watches manifests, puts policy in force, serves the API.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version)]
pub struct Cli {
    /// TOML file with the options below (with underscores); `/etc/selvage/agent.toml` if it exists.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration as TOML and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Remove everything that the agent made on this node (pins, links of pods, routes, rules, firewall table, tunnel
    /// device) and exit. Pods lose their network. The state folder stays.
    #[arg(long)]
    pub cleanup: bool,
    /// The options.
    #[command(flatten)]
    pub settings: Settings,
}

/// Options as they were given, in the file or as flags; `None` is the default.
#[derive(Debug, Default, Clone, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Folder of manifests [default: /etc/selvage/manifests]
    #[arg(long, value_name = "DIR")]
    source_dir: Option<PathBuf>,
    /// What must survive a restart [default: /var/lib/selvage]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Sockets [default: /run/selvage]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Pinned maps and links, on a bpf file system [default: /sys/fs/bpf/selvage]
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// User of the proxy's worker, who owns proxy.sock [default: 65532]
    #[arg(long, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// User of the tunnel's worker, who owns tunnel.sock [default: 65533]
    #[arg(long, value_name = "UID")]
    tunnel_uid: Option<u32>,
    /// Addresses of all pods of the cluster and of nothing else, as kube-controller-manager's
    /// --cluster-cidr (required)
    #[arg(long, value_name = "CIDR")]
    pod_network: Option<IpNet>,
    /// Encrypt what goes to pods of other nodes [default: true]
    #[arg(long, value_name = "BOOL")]
    encryption: Option<bool>,
    /// Device of the underlay [default: the one that has this node's address]
    #[arg(long, value_name = "DEVICE")]
    uplink: Option<String>,
    /// TUN device of the tunnel [default: selvage0]
    #[arg(long, value_name = "DEVICE")]
    tunnel_device: Option<String>,
    /// UDP port of the tunnel, on every node the same [default: 51820]
    #[arg(long, value_name = "PORT")]
    tunnel_port: Option<u16>,
}

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Name of this node, as its Node object has it.
    pub node_name: String,
    /// Folder of manifests.
    pub source_dir: PathBuf,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
    /// Pinned maps and links.
    pub pin_dir: PathBuf,
    /// User of the proxy's worker.
    pub proxy_uid: u32,
    /// User of the tunnel's worker.
    pub tunnel_uid: u32,
    /// Addresses of all pods of the cluster.
    pub pod_network: IpNet,
    /// Whether traffic between nodes is encrypted.
    pub encryption: bool,
    /// Device of the underlay; none: found by the node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// TUN device of the tunnel.
    pub tunnel_device: String,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown or unfit key.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{field}: {problem}")]
    Invalid {
        /// The option.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// It could not be printed.
    #[error("cannot print the configuration: {0}")]
    Print(#[from] toml::ser::Error),
}

impl Config {
    /// From the flags and the file that they name.
    ///
    /// # Errors
    /// See [`ConfigError`]; the option is named.
    pub fn load(cli: &Cli) -> Result<Self, ConfigError> {
        let file = match &cli.config {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read(Path::new(DEFAULT_FILE))?,
            None => Settings::default(),
        };
        Self::from_settings(cli.settings.clone().or(file))
    }

    fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let config = Self {
            node_name: settings.node_name.map_or_else(host_name, Ok)?,
            source_dir: settings.source_dir.unwrap_or_else(|| "/etc/selvage/manifests".into()),
            state_dir: settings.state_dir.unwrap_or_else(|| "/var/lib/selvage".into()),
            run_dir: settings.run_dir.unwrap_or_else(|| "/run/selvage".into()),
            pin_dir: settings.pin_dir.unwrap_or_else(|| datapath::DEFAULT_PIN_DIR.into()),
            proxy_uid: settings.proxy_uid.unwrap_or(65532),
            tunnel_uid: settings.tunnel_uid.unwrap_or(65533),
            pod_network: settings.pod_network.ok_or_else(no_pod_network)?.trunc(),
            encryption: settings.encryption.unwrap_or(true),
            uplink: settings.uplink,
            tunnel_device: settings.tunnel_device.unwrap_or_else(|| "selvage0".to_owned()),
            tunnel_port: settings.tunnel_port.unwrap_or(51820),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem: &str| Err(ConfigError::Invalid { field, problem: problem.to_owned() });
        if !is_object_name(&self.node_name) {
            return invalid(
                "node_name",
                "lower-case letters, digits, '-' and '.', at most 253, as Kubernetes has them",
            );
        }
        if self.pod_network.addr().is_ipv6() {
            return invalid(
                "pod_network",
                "IPv6 is not supported yet: give an IPv4 network such as 10.0.0.0/8",
            );
        }
        // It also stands in firewall rules, where other characters mean something.
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let name = &self.tunnel_device;
        if !(1..=15).contains(&name.len()) || !name.bytes().all(fits) || name.starts_with('.') {
            return invalid("tunnel_device", "1 to 15 letters, digits, '-', '_' and '.', no '.' in front");
        }
        if self.tunnel_port == 0 {
            return invalid("tunnel_port", "0 is no port that peers could know");
        }
        Ok(())
    }

    /// The configuration as the file would have it.
    ///
    /// # Errors
    /// A path that is no UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string(self)?)
    }

    /// `<run_dir>/agent.sock`.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// `<run_dir>/proxy.sock`.
    pub fn proxy_socket(&self) -> PathBuf {
        self.run_dir.join("proxy.sock")
    }

    /// `<run_dir>/tunnel.sock`.
    pub fn tunnel_socket(&self) -> PathBuf {
        self.run_dir.join("tunnel.sock")
    }
}

impl Settings {
    /// What is given here, else what `other` gives.
    fn or(self, other: Self) -> Self {
        Self {
            node_name: self.node_name.or(other.node_name),
            source_dir: self.source_dir.or(other.source_dir),
            state_dir: self.state_dir.or(other.state_dir),
            run_dir: self.run_dir.or(other.run_dir),
            pin_dir: self.pin_dir.or(other.pin_dir),
            proxy_uid: self.proxy_uid.or(other.proxy_uid),
            tunnel_uid: self.tunnel_uid.or(other.tunnel_uid),
            pod_network: self.pod_network.or(other.pod_network),
            encryption: self.encryption.or(other.encryption),
            uplink: self.uplink.or(other.uplink),
            tunnel_device: self.tunnel_device.or(other.tunnel_device),
            tunnel_port: self.tunnel_port.or(other.tunnel_port),
        }
    }
}

/// Whether a text can be the name of a Kubernetes object (RFC 1123 subdomain): then it can also be part of a file name.
pub fn is_object_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(fits)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn host_name() -> Result<String, ConfigError> {
    let path = Path::new("/proc/sys/kernel/hostname");
    let name = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(name.trim_end().to_ascii_lowercase())
}

/// A guess would take addresses of services, or of other networks, for those of pods.
fn no_pod_network() -> ConfigError {
    let problem = "required: give the network of all pods, and of nothing else (--pod-network 10.244.0.0/16)";
    ConfigError::Invalid { field: "pod_network", problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, ConfigError> {
        let given = ["mesh-agent", "--pod-network", "10.0.0.0/8"];
        let given = if arguments.contains(&"--pod-network") { &given[..1] } else { &given[..] };
        Config::load(&Cli::try_parse_from([given, arguments].concat()).unwrap())
    }

    #[test]
    fn flags_win_over_the_file_and_what_is_printed_can_be_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, "node_name = \"from-file\"\ntunnel_port = 1000\nencryption = false\n").unwrap();
        let file = file.to_str().unwrap();
        let config = parse(&["--config", file, "--tunnel-port", "2000"]).unwrap();
        assert_eq!(
            (config.node_name.as_str(), config.tunnel_port, config.encryption),
            ("from-file", 2000, false)
        );

        std::fs::write(file, config.to_toml().unwrap()).unwrap();
        assert_eq!(parse(&["--config", file]).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_or_a_bad_value_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, "nodename = \"a\"\n").unwrap();
        let error = parse(&["--config", file.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("nodename"), "{error}");
        for (field, flags) in [
            ("node_name", ["--node-name", "../etc"]),
            ("pod_network", ["--pod-network", "fd00::/8"]),
            ("tunnel_device", ["--tunnel-device", "a-name-that-is-too-long"]),
            ("tunnel_device", ["--tunnel-device", "selvage*"]),
        ] {
            let error = parse(&flags).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let nothing = Config::load(&Cli::try_parse_from(["mesh-agent", "--node-name", "a"]).unwrap());
        assert!(nothing.unwrap_err().to_string().starts_with("pod_network: required"));
    }
}
