//! What a lab runs of a Pod: its containers' commands as processes, nothing of their images.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::LabError;
use crate::manifest::Object;

/// The part of a Pod that a lab acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`; empty until the lab has given one.
    pub uid: String,
    /// `spec.nodeName`; empty until the lab has chosen one.
    pub node: String,
    /// Whether it lives in the node's own namespace.
    pub host_network: bool,
    /// When a process that ended is started again.
    pub restart: RestartPolicy,
    /// What it runs: one for each container that has a command.
    pub processes: Vec<Process>,
    /// TCP ports that those containers declare: the pod is running when something listens there.
    pub tcp_ports: Vec<u16>,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    /// However it ended.
    #[default]
    Always,
    /// If it ended with a failure.
    OnFailure,
    /// Not at all.
    Never,
}

/// A container's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Name of the container.
    pub container: String,
    /// `command` and `args`, at least the program.
    pub command: Vec<String>,
    /// `env`.
    pub environment: Vec<(String, String)>,
    /// `workingDir`.
    pub folder: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    restart_policy: RestartPolicy,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    name: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    ports: Vec<Port>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    container_port: u16,
    #[serde(default)]
    protocol: Option<String>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
    #[serde(rename = "valueFrom")]
    value_from: Option<Value>,
}

impl PodSpec {
    /// Reads a Pod.
    ///
    /// # Errors
    /// If a field that a lab acts on has the wrong type, or asks for what a lab has not.
    pub fn of(object: &Object) -> Result<Self, LabError> {
        let refuse = |message: String| LabError::Manifest { location: object.key.to_string(), message };
        let spec =
            object.manifest.get("spec").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let spec: Spec = serde_json::from_value(spec).map_err(|error| refuse(format!("spec: {error}")))?;
        let (mut processes, mut tcp_ports) = (Vec::new(), Vec::new());
        for (index, container) in spec.containers.into_iter().enumerate() {
            let place = format!("spec.containers[{index}]");
            if let Some(variable) = container.env.iter().find(|variable| variable.value_from.is_some()) {
                let message =
                    format!("{place}.env {}: a lab has no `valueFrom`; give a `value`", variable.name);
                return Err(refuse(message));
            }
            if container.command.is_empty() {
                continue;
            }
            let tcp = |port: &&Port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            tcp_ports.extend(container.ports.iter().filter(tcp).map(|port| port.container_port));
            processes.push(Process {
                container: container.name,
                command: container.command.into_iter().chain(container.args).collect(),
                environment: container
                    .env
                    .into_iter()
                    .map(|variable| (variable.name, variable.value))
                    .collect(),
                folder: container.working_dir,
            });
        }
        Ok(Self {
            namespace: object.key.namespace.clone(),
            name: object.key.name.clone(),
            uid: object.text("/metadata/uid").unwrap_or_default().to_owned(),
            node: spec.node_name,
            host_network: spec.host_network,
            restart: spec.restart_policy,
            processes,
            tcp_ports,
        })
    }
}

/// How far a pod or a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its namespace is being made and attached, its processes begin.
    Creating,
    /// Attached, its processes run and listen on the ports they declare.
    Running,
    /// The last attempt failed; another will follow.
    Failing,
    /// It is being taken away.
    Deleting,
}

/// What the supervisor has made of a Pod; a file, so that it can be taken away even if the supervisor dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid` of the object it was made for.
    pub uid: String,
    /// Node it runs on.
    pub node: String,
    /// What the plugin was given as the container's ID.
    pub container_id: String,
    /// Whether it lives in the node's own namespace.
    pub host_network: bool,
    /// How far it is.
    pub phase: Phase,
    /// Address, once attached.
    pub address: Option<std::net::IpAddr>,
    /// Host side of its veth on the node, once attached.
    pub host_interface: String,
    /// Why it is failing.
    pub message: String,
}

impl PodRecord {
    /// Reads the record of a pod; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(file: &Path) -> Result<Option<Self>, LabError> {
        crate::record::read(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn pod(spec: &str) -> Result<PodSpec, LabError> {
        let text =
            format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: ns}}, spec: {spec}}}");
        parse(&text, "x").and_then(|objects| PodSpec::of(&objects[0]))
    }

    #[test]
    fn command_and_args_run_with_their_environment() {
        let spec = "{nodeName: node-2, containers: [{name: a, image: x, command: [sh], args: [-c, 'true'], \
                    env: [{name: K, value: v}]}, {name: b, image: y}]}";
        let spec = pod(spec).unwrap();
        assert_eq!(spec.node, "node-2");
        assert_eq!(spec.processes.len(), 1, "a container without a command just waits");
        assert_eq!(spec.processes[0].command, ["sh", "-c", "true"]);
        assert_eq!(spec.processes[0].environment, [("K".to_owned(), "v".to_owned())]);
        assert_eq!(pod("{}").unwrap().processes, []);
    }

    #[test]
    fn what_a_lab_cannot_do_is_refused() {
        let from = "{containers: [{name: a, command: [x], env: [{name: K, valueFrom: {fieldRef: {fieldPath: x}}}]}]}";
        assert!(pod(from).unwrap_err().to_string().contains("valueFrom"));
        assert!(pod("{containers: [{command: true}]}").unwrap_err().to_string().contains("spec"));
        assert!(pod("{restartPolicy: Sometimes}").unwrap_err().to_string().contains("Sometimes"));
    }
}
