//! A node of one test: a network namespace with an uplink, a folder of manifests, and the real program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use api::agent::cni_client::CniClient;
use api::agent::control_client::ControlClient;
use api::agent::{
    AllocateRequest, AllocateResponse, AttachRequest, Attachment, ReleaseRequest, StatusResponse,
};
use host::netlink::{Link, Netlink, VethPair};
use host::netns::NetNs;
use tonic::transport::Channel;

/// Longest wait for anything: a debug build on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

static NODES: AtomicU32 = AtomicU32::new(0);

/// Whether this test can run here; says why not.
pub(crate) fn can_run() -> bool {
    if nix::unistd::geteuid().is_root() && Path::new("/sys/fs/bpf").is_dir() {
        return true;
    }
    assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "needs root and a bpf file system");
    eprintln!("skipped: needs root and a bpf file system");
    false
}

/// A node; everything of it is removed when it is dropped.
pub(crate) struct Node {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pins: PathBuf,
    namespace_path: PathBuf,
    pub(crate) namespace: NetNs,
    pub(crate) netlink: Netlink,
    agent: Option<Child>,
    monitor: Option<Child>,
    pods: Vec<PathBuf>,
}

impl Node {
    pub(crate) async fn new() -> Self {
        let name = format!("selvage-agent-{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        let namespace_path = Path::new("/run/netns").join(&name);
        let namespace = NetNs::create(&namespace_path).unwrap();
        let netlink = Netlink::connect_in(&namespace).unwrap();
        netlink.set_loopback_up().await.unwrap();
        let pair = VethPair {
            name: "uplink",
            mac: None,
            peer_name: "outside",
            peer_mac: None,
            peer_namespace: None,
            mtu: 1500,
        };
        netlink.create_veth(&pair).await.unwrap();
        for device in ["uplink", "outside"] {
            let index = netlink.link(device).await.unwrap().unwrap().index;
            netlink.set_up(index).await.unwrap();
        }
        let uplink = netlink.link("uplink").await.unwrap().unwrap().index;
        netlink.ensure_address(uplink, "172.31.1.2/24".parse().unwrap()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        let pins = Path::new("/sys/fs/bpf").join(&name);
        let node = Self {
            folder,
            pins,
            namespace_path,
            namespace,
            netlink,
            agent: None,
            monitor: None,
            pods: Vec::new(),
        };
        node.apply("nodes", &[node_manifest(1), node_manifest(2)].join("---\n"));
        node
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub(crate) fn apply(&self, name: &str, manifest: &str) {
        host::file::write(&self.path(&format!("manifests/{name}.yaml")), manifest.as_bytes(), 0o644).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command.args(["--node-name", "node-1", "--pod-network", "10.0.0.0/8"]);
        for (flag, below) in [("--source-dir", "manifests"), ("--state-dir", "state"), ("--run-dir", "run")] {
            command.arg(flag).arg(self.path(below));
        }
        command.arg("--pin-dir").arg(&self.pins).stdin(Stdio::null());
        command
    }

    /// Starts the agent and waits until it has compiled its first snapshot.
    pub(crate) async fn start(&mut self) -> StatusResponse {
        self.spawn(None);
        self.status_when("a snapshot is in force", LIMIT, |status| status.snapshot_enforced > 0).await
    }

    /// Starts the agent, with `path` as its search path for programs.
    pub(crate) fn spawn(&mut self, path: Option<&Path>) {
        let mut command = self.command();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("agent.log")).unwrap();
        command.stderr(log);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        self.agent = Some(self.namespace.run(move || command.spawn()).unwrap().unwrap());
    }

    /// The agent's status as soon as it is as it should be.
    pub(crate) async fn status_when(
        &mut self,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&StatusResponse) -> bool,
    ) -> StatusResponse {
        let start = Instant::now();
        loop {
            let status =
                self.control().status(api::agent::StatusRequest {}).await.map(tonic::Response::into_inner);
            if let Ok(status) = &status
                && is_so(status)
            {
                return status.clone();
            }
            let ended = self.agent.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < limit,
                "not within {limit:?}: {what}; {ended:?} {status:?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the agent, with `log` as its standard error.
    pub(crate) fn spawn_logging_to(&mut self, log: std::fs::File) {
        let mut command = self.command();
        command.stderr(log);
        self.agent = Some(self.namespace.run(move || command.spawn()).unwrap().unwrap());
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.agent.as_ref().unwrap().id().try_into().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// As a crash: no chance to clean up.
    pub(crate) fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Runs `mesh-agent --cleanup`.
    pub(crate) fn cleanup(&self) {
        let mut command = self.command();
        command.arg("--cleanup");
        let output = self.namespace.run(move || command.output()).unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// `ip monitor` for some kinds of objects into `routes.log`, from now on.
    pub(crate) fn monitor(&mut self, objects: &[&str]) {
        let mut command = Command::new("ip");
        command
            .args(["-4", "monitor"])
            .args(objects)
            .stdout(std::fs::File::create(self.path("routes.log")).unwrap());
        self.monitor = Some(self.namespace.run(move || command.spawn()).unwrap().unwrap());
    }

    /// What a command of the node's namespace prints.
    pub(crate) fn print(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.namespace.run(move || command.output()).unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn channel(&self, socket: &str) -> Channel {
        api::connect::channel(&self.path("run").join(socket))
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel("agent.sock"))
    }

    pub(crate) fn cni(&self) -> CniClient<Channel> {
        CniClient::new(self.channel("agent.sock"))
    }

    pub(crate) fn proxy(&self) -> api::agent::proxy_client::ProxyClient<Channel> {
        api::agent::proxy_client::ProxyClient::new(self.channel("proxy.sock"))
    }

    pub(crate) fn tunnel(&self) -> api::agent::tunnel_client::TunnelClient<Channel> {
        api::agent::tunnel_client::TunnelClient::new(self.channel("tunnel.sock"))
    }

    pub(crate) fn maps(&self) -> datapath::Maps {
        datapath::Maps::open(&self.pins).unwrap()
    }

    pub(crate) async fn allocate(&self, container: &str, pod: &str) -> AllocateResponse {
        self.try_allocate(container, pod).await.unwrap()
    }

    pub(crate) async fn try_allocate(
        &self,
        container: &str,
        pod: &str,
    ) -> Result<AllocateResponse, tonic::Status> {
        let request = AllocateRequest {
            attachment: attachment(container),
            netns: self.namespace_path.display().to_string(),
            pod_namespace: "default".into(),
            pod_name: pod.into(),
            pod_uid: String::new(),
            network: "pods".into(),
        };
        Ok(self.cni().allocate(request).await?.into_inner())
    }

    /// Builds the veth as the plugin does.
    pub(crate) async fn build(&mut self, container: &str, name: &str) -> Link {
        let path = self.namespace_path.with_extension(container);
        let pod = NetNs::create(&path).unwrap();
        self.pods.push(path);
        let pair = VethPair {
            name,
            mac: None,
            peer_name: "eth0",
            peer_mac: None,
            peer_namespace: Some(&pod),
            mtu: 1420,
        };
        self.netlink.create_veth(&pair).await.unwrap();
        let link = self.netlink.link(name).await.unwrap().unwrap();
        self.netlink.set_up(link.index).await.unwrap();
        link
    }

    /// Allocates, builds and attaches; gives back the address and the number of the snapshot in force.
    pub(crate) async fn add(&mut self, container: &str, pod: &str) -> (std::net::IpAddr, u64) {
        let allocated = self.allocate(container, pod).await;
        let link = self.build(container, &allocated.host_interface).await;
        let attached = self.attach(container, link.index).await.unwrap();
        (allocated.address.parse().unwrap(), attached)
    }

    pub(crate) async fn attach(&self, container: &str, index: u32) -> Result<u64, tonic::Status> {
        let request = AttachRequest {
            attachment: attachment(container),
            host_ifindex: index,
            pod_mac: vec![2, 0, 0, 0, 0, 1],
            host_mac: vec![2, 0, 0, 0, 0, 2],
        };
        Ok(self.cni().attach(request).await?.into_inner().snapshot)
    }

    /// Ends the network namespace of a pod, as if nothing had been told.
    pub(crate) fn end(&mut self, container: &str) {
        let path = self.namespace_path.with_extension(container);
        NetNs::delete(&path).unwrap();
        self.pods.retain(|pod| *pod != path);
    }

    pub(crate) async fn release(&self, container: &str) -> bool {
        let request = ReleaseRequest { attachment: attachment(container) };
        self.cni().release(request).await.unwrap().into_inner().existed
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill();
        }
        // Also when the test fails: it would hold the namespace, and the pipe of whoever runs the tests.
        if let Some(mut monitor) = self.monitor.take() {
            let _ = monitor.kill();
            let _ = monitor.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        for path in self.pods.iter().chain([&self.namespace_path]) {
            let _ = NetNs::delete(path);
        }
        // A folder that a test put in the place of a pin is none of theirs.
        for entry in std::fs::read_dir(self.pins.join("links")).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = datapath::remove_pins(&self.pins);
    }
}

fn attachment(container: &str) -> Option<Attachment> {
    Some(Attachment { container_id: container.into(), interface: "eth0".into() })
}

/// Problems but those of the programs that a node of these tests runs without, and of nodes that
/// there are not.
pub(crate) fn problems(status: &StatusResponse) -> Vec<&api::agent::Problem> {
    let is_absent = |location: &str| {
        ["mesh-proxy", "mesh-wireguard"].contains(&location) || location.starts_with("tunnel to ")
    };
    status.problems.iter().filter(|problem| !is_absent(&problem.r#where)).collect()
}

pub(crate) fn node_manifest(number: u8) -> String {
    format!(
        "kind: Node\nmetadata: {{name: node-{number}}}\nspec: {{podCIDR: 10.{number}.0.0/16}}\n\
         status: {{addresses: [{{type: InternalIP, address: 172.31.{number}.2}}]}}\n"
    )
}

pub(crate) fn pod_manifest(name: &str) -> String {
    format!("kind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{nodeName: node-1}}\n")
}

/// Asks again until the answer is yes.
pub(crate) async fn eventually(what: &str, is_so: impl FnMut() -> bool) -> Duration {
    within(LIMIT, what, is_so).await
}

pub(crate) async fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

impl Node {
    /// Starts another agent that is expected to give up; what it said.
    pub(crate) async fn start_and_wait(&self) -> String {
        let mut command = self.command();
        command.stderr(Stdio::piped());
        let child = self.namespace.run(move || command.spawn()).unwrap().unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
