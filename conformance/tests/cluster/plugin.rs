//! The plugin called by hand, as a container runtime (or `cnitool`) calls it: configuration on stdin, the rest in the
//! environment; against the real agent of a node.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use conformance::{command, shop};
use lab::Lab;
use serde_json::{Value, json};

use crate::fixture::{self, NS};

const NODE: &str = "node-1";
const LIMIT: Duration = Duration::from_secs(10);

/// A namespace that a runtime made for a pod, and the container's name.
pub(crate) struct Sandbox<'a> {
    lab: &'a Lab,
    netns: String,
    container: String,
    pod: &'a str,
}

impl<'a> Sandbox<'a> {
    fn new(lab: &'a Lab, container: &str) -> Self {
        Self::of(lab, container, "frontend")
    }

    /// One more sandbox of a pod that the lab knows.
    pub(crate) fn of(lab: &'a Lab, container: &str, pod: &'a str) -> Self {
        let netns = format!("{}-{container}", lab.name());
        assert!(Command::new("ip").args(["netns", "add", &netns]).status().unwrap().success());
        Self { lab, netns, container: format!("{}-{container}", lab.name()), pod }
    }

    /// `program`, to be run in the sandbox.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg(program);
        command
    }

    /// Calls the plugin for its pod.
    fn plugin(&self, verb: &str, version: &str, agent_socket: &str) -> Output {
        let config = json!({
            "cniVersion": version,
            "name": "by-hand",
            "type": "mesh-cni",
            "agentSocket": agent_socket,
            "stateDir": self.lab.state_dir(NODE),
        });
        let mut plugin = self.lab.node_command(NODE, shop::sibling("mesh-cni").unwrap());
        plugin
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", format!("/run/netns/{}", self.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={NS};K8S_POD_NAME={}", self.pod))
            .env("CNI_PATH", "/opt/cni/bin");
        let mut child =
            plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // One that has ended without reading says why on stdout.
        let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Calls the plugin as the node's runtime would.
    pub(crate) fn call(&self, verb: &str, version: &str) -> Output {
        self.plugin(verb, version, &self.lab.agent_socket(NODE).to_string_lossy())
    }

    /// ADD; gives the result.
    pub(crate) fn add(&self, version: &str) -> Value {
        let output = self.call("ADD", version);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// DEL, which must succeed.
    pub(crate) fn delete(&self) {
        let output = self.call("DEL", "1.1.0");
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.netns]).status();
    }
}

fn json_of(mut command: Command) -> Value {
    serde_json::from_str(&command::run(&mut command, LIMIT).unwrap().stdout).unwrap()
}

/// Names of the node's devices, as the kernel lists them.
fn devices(lab: &Lab) -> BTreeSet<String> {
    let mut ip = lab.node_command(NODE, "ip");
    ip.args(["-j", "link"]);
    let links = json_of(ip);
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// The address that an ADD gave, with its prefix length.
pub(crate) fn address_of(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().to_owned()
}

#[test]
fn add_and_del_by_hand() {
    let Some(lab) = fixture::shop() else { return };
    let before = devices(&lab);
    for version in ["1.0.0", "1.1.0"] {
        let sandbox = Sandbox::new(&lab, &format!("hand-{}", version.replace('.', "-")));
        let result = sandbox.add(version);
        // Enforced when ADD returns: the very first packets meet policy.
        for (method, path, expected) in [("GET", "/healthz", 200), ("DELETE", "/healthz", 403)] {
            let url = fixture::url(&lab, "api-server-1", path);
            assert_eq!(
                fixture::curl_of(sandbox.command("curl"), &["-X", method, &url]),
                expected,
                "{method}"
            );
        }
        assert_eq!(result["cniVersion"], version);
        let mut ip = sandbox.command("ip");
        ip.args(["-j", "address", "show", "eth0"]);
        let eth0 = &json_of(ip)[0];
        let real = format!(
            "{}/{}",
            eth0["addr_info"][0]["local"].as_str().unwrap(),
            eth0["addr_info"][0]["prefixlen"]
        );
        assert_eq!(address_of(&result), real);
        let index = usize::try_from(result["ips"][0]["interface"].as_u64().unwrap()).unwrap();
        let interface = &result["interfaces"][index];
        assert_eq!((&interface["name"], &interface["mac"]), (&json!("eth0"), &eth0["address"]));
        assert_eq!(interface["sandbox"], format!("/run/netns/{}", sandbox.netns));
        if version == "1.1.0" {
            assert_eq!(interface["mtu"], eth0["mtu"]);
        }

        let again = sandbox.call("ADD", version);
        assert!(!again.status.success(), "a second ADD of the same interface: {again:?}");
        sandbox.delete();
        sandbox.delete();
        assert_eq!(devices(&lab), before);
    }
}

#[test]
fn an_address_is_not_given_out_again_at_once() {
    let Some(lab) = fixture::shop() else { return };
    let mut seen = BTreeSet::new();
    for round in 0..4 {
        let sandbox = Sandbox::new(&lab, &format!("round-{round}"));
        assert!(seen.insert(address_of(&sandbox.add("1.1.0"))), "round {round} got one of {seen:?}");
        sandbox.delete();
    }
}

#[test]
fn without_the_agent_add_fails_and_del_leaves_a_note() {
    let Some(lab) = fixture::shop() else { return };
    let before = devices(&lab);
    let sandbox = Sandbox::new(&lab, "away");
    let output = sandbox.plugin("ADD", "1.1.0", "/nonexistent/agent.sock");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.success(), &error["code"]), (false, &json!(11)), "{output:?}");
    assert_eq!(devices(&lab), before);

    let address = address_of(&sandbox.add("1.1.0"));
    let output = sandbox.plugin("DEL", "1.1.0", "/nonexistent/agent.sock");
    assert!(output.status.success(), "{output:?}");
    let notes = || std::fs::read_dir(lab.state_dir(NODE).join("cni/pending")).unwrap().count();
    assert_eq!(notes(), 1);
    let agent = lab.program_pid(NODE, "mesh-agent").unwrap();
    command::kill_now(agent).unwrap();
    command::eventually(LIMIT, || {
        anyhow::ensure!(notes() == 0, "the note is still there");
        Ok(())
    })
    .unwrap();
    assert_eq!(devices(&lab), before);
    let routed = command::run(lab.node_command(NODE, "ip").args(["route", "show", &address]), LIMIT).unwrap();
    assert_eq!(routed.stdout, "", "a route to the freed address is left");
}

/// How long what other nodes are told of a pod may take to arrive, and then some.
const TOLD: Duration = Duration::from_secs(3);

#[test]
fn a_sandbox_that_goes_leaves_the_other_one_of_its_pod_known_everywhere() {
    let Some(lab) = fixture::shop() else { return };
    let url = fixture::url(&lab, "api-server-2", "/healthz");
    let second = Sandbox::new(&lab, "second");
    second.add("1.1.0");
    command::eventually(LIMIT, || {
        let status = fixture::curl_of(second.command("curl"), &[&url]);
        anyhow::ensure!(status == 200, "the other node does not know the second sandbox: {status}");
        Ok(())
    })
    .unwrap();
    second.delete();
    let started = std::time::Instant::now();
    while started.elapsed() < TOLD {
        assert_eq!(
            fixture::curl(&lab, "frontend", &[&url]),
            200,
            "{:?} after the DEL of the second sandbox, the first is unknown on the other node",
            started.elapsed()
        );
    }
}

#[test]
fn an_agent_killed_between_two_calls_loses_no_release() {
    let Some(lab) = fixture::shop() else { return };
    let before = devices(&lab);
    let kill_agent = || {
        let agent = lab.program_pid(NODE, "mesh-agent").unwrap();
        command::kill_now(agent).unwrap();
    };
    let sandbox = Sandbox::new(&lab, "killed");
    kill_agent();
    let output = sandbox.call("ADD", "1.1.0");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The supervisor may have been quicker, then it is simply an ADD.
    if output.status.success() {
        sandbox.delete();
    } else {
        assert_eq!(answer["code"], 11, "{answer}");
        assert_eq!(devices(&lab), before, "a failed ADD left a device");
        let eth0 = command::run(sandbox.command("ip").args(["link", "show", "eth0"]), LIMIT).unwrap();
        assert!(!eth0.status.success(), "a failed ADD left eth0 in the pod");
    }
    let added = command::eventually(LIMIT, || {
        let output = sandbox.call("ADD", "1.1.0");
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice::<Value>(&output.stdout)?)
    });
    let address = address_of(&added.unwrap());
    kill_agent();
    sandbox.delete();
    assert_eq!(devices(&lab), before);
    // What other nodes are told of the pod is what the agent holds to be its addresses.
    let told = lab.folder().manifests().join(format!("status/pods/{NS}_frontend.json"));
    command::eventually(LIMIT, || {
        let told = std::fs::read_to_string(&told)?;
        let own = lab.pod_address(NS, "frontend")?.to_string();
        let freed = address.split('/').next().unwrap_or(&address);
        anyhow::ensure!(
            told.contains(&format!("\"{own}\"")) && !told.contains(&format!("\"{freed}\"")),
            "{told}"
        );
        Ok(())
    })
    .unwrap();
}
