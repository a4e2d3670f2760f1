//! A node of namespaces: the plugin runs in one, pods are others, the agent is [`Agent`].

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use host::netlink::{Neighbour, Netlink, Route, TABLE_MAIN};
use host::netns::NetNs;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::agent::{Agent, Journal, Key};

/// A node for one test. All of it is gone when dropped.
pub(crate) struct Node {
    pub(crate) namespace: NetNs,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) agent: Option<Agent>,
    pub(crate) journal: Arc<Mutex<Journal>>,
    /// Step before which the plugin kills itself.
    pub(crate) kill_at: Option<u32>,
    /// `cniVersion` of the configuration.
    pub(crate) version: &'static str,
}

/// How a run of the plugin ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) success: bool,
    pub(crate) killed: bool,
}

impl Run {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Code and message of a failed run.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.success && !self.killed, "{self:?}");
        let json = self.json();
        (json["code"].as_u64().unwrap(), json["msg"].as_str().unwrap().to_owned())
    }
}

/// A pod's namespace.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) namespace: Option<NetNs>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.path);
    }
}

impl Pod {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("cni-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(format!("/run/netns/{id}"));
        let namespace = Some(NetNs::create(&path).unwrap());
        Self { id, path, namespace }
    }

    pub(crate) fn namespace(&self) -> &NetNs {
        self.namespace.as_ref().unwrap()
    }

    /// Ends the namespace; the path is gone too.
    pub(crate) fn end(&mut self) {
        NetNs::delete(&self.path).unwrap();
        self.namespace = None;
    }

    pub(crate) fn variables(&self) -> Vec<(&str, String)> {
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={0};K8S_POD_UID=u-{0}", self.id);
        vec![
            ("CNI_CONTAINERID", self.id.clone()),
            ("CNI_NETNS", self.path.display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("CNI_ARGS", arguments),
        ]
    }
}

impl Node {
    /// `None`: the machine does not allow it, and the test prints why.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "skipped: needs root");
            return None;
        }
        let namespace = NetNs::create_unnamed().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let journal = Arc::default();
        let mut node = Self { namespace, folder, agent: None, journal, kill_at: None, version: "1.1.0" };
        node.netlink(|netlink| async move { netlink.set_loopback_up().await.unwrap() });
        node.start_agent();
        Some(node)
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(Agent::start(&self.socket(), self.journal.clone()));
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": self.version,
            "name": "k8s-cluster-network",
            "type": "mesh-cni",
            "ipam": {"type": "mesh-ipam", "ipv4_pools": ["10.244.0.0/16"]},
            "agentSocket": self.socket(),
            "stateDir": self.folder.path(),
        })
    }

    /// Runs the plugin in the node's namespace.
    pub(crate) fn run(&self, variables: &[(&str, String)], stdin: &str) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-cni"));
        command.env_clear().envs(variables.iter().map(|(name, value)| (*name, value)));
        if let Some(step) = self.kill_at {
            command.env(cni::step::KILL_VARIABLE, step.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.namespace.run(|| command.spawn().unwrap()).unwrap();
        // VERSION does not read it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        Run {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            success: output.status.success(),
            killed: output.status.signal() == Some(9),
        }
    }

    pub(crate) fn call(&self, command: &str, pod: &Pod, config: &Value) -> Run {
        let mut variables = pod.variables();
        variables.push(("CNI_COMMAND", command.to_owned()));
        self.run(&variables, &config.to_string())
    }

    pub(crate) fn add(&self, pod: &Pod) -> Run {
        self.call("ADD", pod, &self.config())
    }

    pub(crate) fn del(&self, pod: &Pod) -> Run {
        self.call("DEL", pod, &self.config())
    }

    /// Notes that are left for the agent.
    pub(crate) fn notes(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("cni/pending")) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Asks the node's kernel.
    pub(crate) fn netlink<T, F: Future<Output = T>>(&self, ask: impl FnOnce(Netlink) -> F) -> T {
        ask_in(&self.namespace, ask)
    }

    /// Everything that an ADD may leave: in the agent, on the node and in the pod.
    pub(crate) fn state(&self, pod: &Pod) -> State {
        State {
            allocations: self.journal.lock().unwrap().allocations.keys().cloned().collect(),
            node: Tables::of(&self.namespace),
            pod: pod.namespace.as_ref().map(Tables::of),
        }
    }
}

/// Asks the kernel about a namespace.
pub(crate) fn ask_in<T, F: Future<Output = T>>(namespace: &NetNs, ask: impl FnOnce(Netlink) -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { ask(Netlink::connect_in(namespace).unwrap()).await })
}

/// See [`Node::state`].
#[derive(Debug, PartialEq)]
pub(crate) struct State {
    allocations: Vec<Key>,
    node: Tables,
    pod: Option<Tables>,
}

/// What a namespace holds.
#[derive(Debug, PartialEq)]
pub(crate) struct Tables {
    links: Vec<String>,
    addresses: Vec<IpNet>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

impl Tables {
    /// IPv4 only: the kernel gives every device that is up an IPv6 address, and `lo` one of each.
    fn of(namespace: &NetNs) -> Self {
        ask_in(namespace, |netlink| async move {
            let links = netlink.links().await.unwrap();
            let addresses = netlink.addresses().await.unwrap().into_iter().map(|(_, address)| address);
            let routes = netlink.routes(TABLE_MAIN).await.unwrap();
            let neighbours = netlink.neighbours().await.unwrap();
            Self {
                links: links.into_iter().map(|link| link.name).collect(),
                addresses: addresses.filter(|a| a.addr().is_ipv4() && !a.addr().is_loopback()).collect(),
                routes: routes.into_iter().filter(|route| route.destination.addr().is_ipv4()).collect(),
                neighbours: neighbours.into_iter().filter(|neighbour| neighbour.permanent).collect(),
            }
        })
    }
}

/// Writes `content` where a network namespace is expected.
pub(crate) fn plain_file(folder: &Path) -> PathBuf {
    let path = folder.join("not-a-namespace");
    std::fs::write(&path, "x").unwrap();
    path
}
