//! Runs the CNI plugin as a container runtime of that node would: configuration on stdin, the rest in the environment.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::error::LabError;
use crate::folder::Folder;
use crate::pod::PodRecord;
use crate::program::{bin_dir, command_in, find};

/// Version of the protocol that is spoken.
const CNI_VERSION: &str = "1.1.0";
/// Name of the device in the pod.
const INTERFACE: &str = "eth0";
/// Longest run of the plugin. containerd gives up much later; a plugin this slow is stuck.
const LIMIT: Duration = Duration::from_secs(30);

/// What ADD gave the pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) address: IpAddr,
    /// Device on the node.
    pub(super) host_interface: String,
}

/// Attaches the pod.
pub(super) async fn add(lab: &Folder, pod: &PodRecord) -> Result<Added, LabError> {
    let result = run(lab, pod, "ADD").await?;
    understand(&result).ok_or_else(|| LabError::Plugin {
        verb: "ADD",
        message: format!("its result is incomplete: {result}"),
    })
}

fn understand(result: &Value) -> Option<Added> {
    let address = result.pointer("/ips/0/address")?.as_str()?;
    let on_host = |interface: &&Value| interface["sandbox"].as_str().is_none_or(str::is_empty);
    let host = result["interfaces"].as_array()?.iter().find(on_host)?;
    Some(Added {
        address: address.split('/').next()?.parse().ok()?,
        host_interface: host["name"].as_str()?.to_owned(),
    })
}

/// Detaches the pod. Succeeds if it is not attached.
pub(super) async fn delete(lab: &Folder, pod: &PodRecord) -> Result<(), LabError> {
    run(lab, pod, "DEL").await.map(drop)
}

async fn run(lab: &Folder, pod: &PodRecord, verb: &'static str) -> Result<Value, LabError> {
    let refuse = |message: String| LabError::Plugin { verb, message };
    let config = json!({
        "cniVersion": CNI_VERSION,
        "name": "selvage",
        "type": "mesh-cni",
        "agentSocket": lab.run(&pod.node).join("agent.sock"),
        "stateDir": lab.state(&pod.node),
    });
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.container_id, pod.uid
    );
    let mut command =
        tokio::process::Command::from(command_in(&lab.node_namespace(&pod.node), find("mesh-cni")?));
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", lab.pod_namespace(&pod.namespace, &pod.name))
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", bin_dir()?)
        .env("CNI_ARGS", arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| refuse(format!("cannot be started: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(config.to_string().as_bytes()).await;
        // One that has ended without reading says why on stdout.
        written.or_else(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(refuse(format!("cannot be given its configuration: {error}"))),
        })?;
    }
    let finished = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let finished = finished.map_err(|_| refuse(format!("did not end within {LIMIT:?}")))?;
    let finished = finished.map_err(|error| refuse(error.to_string()))?;
    let printed: Value = serde_json::from_slice(&finished.stdout).unwrap_or(Value::Null);
    if finished.status.success() {
        return Ok(printed);
    }
    let field = |name: &str| printed[name].as_str().unwrap_or_default().to_owned();
    let words = [field("msg"), field("details"), String::from_utf8_lossy(&finished.stderr).trim().to_owned()];
    let words: Vec<_> = words.into_iter().filter(|words| !words.is_empty()).collect();
    Err(refuse(format!("{}: {}", finished.status, words.join(": "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_names_address_and_host_side() {
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "sv0123", "mac": "x"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.1.0.7/32", "interface": 1}],
        });
        let added = Added { address: [10, 1, 0, 7].into(), host_interface: "sv0123".to_owned() };
        assert_eq!(understand(&result), Some(added));
        assert_eq!(understand(&json!({"ips": [{"address": "10.1.0.7/32"}]})), None);
        assert_eq!(understand(&Value::Null), None);
    }
}
