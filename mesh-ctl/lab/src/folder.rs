//! Where a lab keeps what: one folder for its files, one for its pins, names for its namespaces and devices.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::LabError;

/// Folder of all labs.
pub const ROOT: &str = "/run/selvage-lab";
/// Pins of all labs.
pub const PIN_ROOT: &str = "/sys/fs/bpf/selvage-lab";
/// Where `ip netns` looks for namespaces.
pub(crate) const NETNS: &str = "/run/netns";

/// Longest name of a lab. The longest unix socket below its folder must fit into the 107 bytes that `sun_path` has.
const LAB_NAME_MAX: usize = 24;
/// Longest path of a unix socket, and what the programs put behind the run folder:
/// `wireguard-master.sock` and a suffix while it is replaced.
const SOCKET_PATH_MAX: usize = 107 - "/wireguard-master.sock.4194304.tmp".len();
/// Longest name of a network device.
const DEVICE_NAME_MAX: usize = 15;
/// Longest name of a file.
const FILE_NAME_MAX: usize = 200;

/// The names and places of one lab. Exists whether or not the lab does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    name: String,
    path: PathBuf,
}

impl Folder {
    /// The folder of the lab `name` below [`ROOT`].
    ///
    /// # Errors
    /// If `name` is no name for a lab: lower-case letters, digits and inner dashes.
    pub fn of(name: &str) -> Result<Self, LabError> {
        let refuse = |message: &str| Err(LabError::option("lab name", name, message));
        if name.is_empty() || name.len() > LAB_NAME_MAX {
            return refuse(&format!("use 1 to {LAB_NAME_MAX} characters"));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !name.chars().all(allowed) || name.starts_with('-') || name.ends_with('-') {
            return refuse("use lower-case letters, digits and inner dashes");
        }
        Ok(Self { name: name.to_owned(), path: Path::new(ROOT).join(name) })
    }

    /// Name of the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder source of all nodes.
    pub fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    /// Logs of all programs and pods.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Log of a program of a node.
    pub fn program_log(&self, node: &str, program: &str) -> PathBuf {
        self.logs().join(format!("{node}-{program}.log"))
    }

    /// Log of a pod's processes.
    pub fn pod_log(&self, namespace: &str, pod: &str) -> PathBuf {
        self.logs().join(format!("pod-{}.log", pair(namespace, pod)))
    }

    /// Folder of the records of all nodes.
    pub fn nodes(&self) -> PathBuf {
        self.path.join("nodes")
    }

    /// Folder of a node: its record, its programs' records, `state` and `run`.
    pub fn node(&self, node: &str) -> PathBuf {
        self.nodes().join(node)
    }

    /// `state_dir` of a node's programs.
    pub fn state(&self, node: &str) -> PathBuf {
        self.node(node).join("state")
    }

    /// `run_dir` of a node's programs.
    pub fn run(&self, node: &str) -> PathBuf {
        self.node(node).join("run")
    }

    /// Records of the pods, one file each.
    pub fn pods(&self) -> PathBuf {
        self.path.join("pods")
    }

    /// Record of a pod.
    pub fn pod_record(&self, namespace: &str, pod: &str) -> PathBuf {
        self.pods().join(format!("{}.json", pair(namespace, pod)))
    }

    /// Record of the supervisor's process.
    pub fn supervisor(&self) -> PathBuf {
        self.path.join("supervisor.json")
    }

    /// Record of the process without which the lab must not go on; absent if it may.
    pub fn owner(&self) -> PathBuf {
        self.path.join("owner.json")
    }

    /// Held while manifests are changed.
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Pins of the whole lab.
    pub fn pins(&self) -> PathBuf {
        Path::new(PIN_ROOT).join(&self.name)
    }

    /// `pin_dir` of a node's programs.
    pub fn node_pins(&self, node: &str) -> PathBuf {
        self.pins().join(node)
    }

    /// Namespace of a node, or of `outside`: `LAB_NODE`. The `_` cannot stand in a name, so nothing of two labs is ever named alike.
    pub fn node_namespace(&self, node: &str) -> PathBuf {
        Path::new(NETNS).join(shortened(&format!("{}_{node}", self.name), FILE_NAME_MAX))
    }

    /// Namespace of a pod: `LAB_NAMESPACE_POD`.
    pub fn pod_namespace(&self, namespace: &str, pod: &str) -> PathBuf {
        Path::new(NETNS).join(shortened(&format!("{}_{}", self.name, pair(namespace, pod)), FILE_NAME_MAX))
    }

    /// Record of a node.
    pub fn node_record(&self, node: &str) -> PathBuf {
        self.node(node).join("node.json")
    }

    /// Record of a program of a node.
    pub fn program_record(&self, node: &str, program: &str) -> PathBuf {
        self.node(node).join(format!("{program}.json"))
    }

    /// Asks the supervisor for a hand-over to a new instance of the program; gone when that is done or has failed.
    pub fn upgrade_request(&self, node: &str, program: &str) -> PathBuf {
        self.node(node).join(format!("{program}.upgrade"))
    }

    /// What the whole lab was started with.
    pub fn record(&self) -> PathBuf {
        self.path.join("lab.json")
    }

    /// Checks that the unix sockets of `node` will have paths that the kernel takes.
    ///
    /// # Errors
    /// If they would be too long.
    pub fn check_node_name(&self, node: &str) -> Result<(), LabError> {
        let length = self.run(node).as_os_str().len();
        if length > SOCKET_PATH_MAX {
            let excess = length - SOCKET_PATH_MAX;
            let message = format!("{excess} characters too long for the paths of unix sockets in this lab");
            return Err(LabError::option("node name", node, message));
        }
        Ok(())
    }

    /// Whether the lab exists.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }
}

/// The folders of all labs there are, by name.
///
/// # Errors
/// If the folder of labs cannot be read.
pub fn all() -> Result<Vec<Folder>, LabError> {
    let root = Path::new(ROOT);
    let mut found = match entries(root) {
        Ok(names) => names.iter().filter_map(|name| Folder::of(name).ok()).collect::<Vec<_>>(),
        Err(LabError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    found.retain(Folder::exists);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Names in a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<String>, LabError> {
    let entries = fs::read_dir(folder).map_err(LabError::io("list", folder))?;
    entries
        .map(|entry| {
            Ok(entry.map_err(LabError::io("list", folder))?.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

/// The device in `outside` that leads to `node`: named as it, or by a hash if that is too long or means something else.
pub(crate) fn link_name(node: &str) -> String {
    if node == "lo" || node.contains('.') {
        format!("n-{}", hash(node))
    } else {
        shortened(node, DEVICE_NAME_MAX)
    }
}

fn pair(namespace: &str, name: &str) -> String {
    shortened(&format!("{namespace}_{name}"), FILE_NAME_MAX)
}

/// `name`, or its beginning and a hash of the whole if it is longer than `max`.
fn shortened(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let hash = hash(name);
    let head: String = name.chars().take(max - hash.len() - 1).collect();
    format!("{head}-{hash}")
}

/// Eight hex digits of FNV-1a, which is the same in every version of this program.
fn hash(text: &str) -> String {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:08x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_name_is_a_file_name() {
        for bad in ["", "..", "a/b", "A", "-a", "a-", "a b", "a_b", "abcdefghijklmnopqrstuvwxy"] {
            assert!(Folder::of(bad).is_err(), "{bad:?}");
        }
        assert!(Folder::of("selvage-2").is_ok());
    }

    #[test]
    fn two_pods_never_share_a_name() {
        let lab = Folder::of("t").unwrap();
        assert_ne!(lab.pod_namespace("team", "a-b"), lab.pod_namespace("team-a", "b"));
        let long = "x".repeat(253);
        let other = format!("{}y", "x".repeat(252));
        assert_ne!(lab.pod_namespace("n", &long), lab.pod_namespace("n", &other));
        assert!(lab.pod_namespace("n", &long).file_name().unwrap().len() <= FILE_NAME_MAX);
    }

    #[test]
    fn a_device_name_fits_and_is_not_lo() {
        assert_eq!(link_name("node-1"), "node-1");
        assert_ne!(link_name("lo"), "lo");
        let long = link_name("a-very-long-node-name");
        assert_eq!(long.len(), DEVICE_NAME_MAX);
        assert_ne!(long, link_name("a-very-long-node-nome"));
    }

    #[test]
    fn a_node_whose_sockets_would_not_fit_is_refused() {
        let lab = Folder::of("t").unwrap();
        assert!(lab.check_node_name("node-1").is_ok());
        assert!(lab.check_node_name(&"n".repeat(63)).is_err());
    }
}
