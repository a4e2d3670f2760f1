//! From a YAML file to objects. Strict where a mistake could change a verdict, tolerant of the many fields of Kubernetes'
//! objects that do not concern us.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy::{Labels, NamedPort, Node, Pod, PolicyKind, PolicyObject, Protocol};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{PodName, Records};
use crate::config::is_object_name;

/// An object of a manifest, as far as it concerns us.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Node(Arc<Node>),
    Namespace(String, Labels),
    Pod(PodName, Arc<Pod>),
    Policy(Arc<PolicyObject>),
}

impl Object {
    /// Adds it to what a source says; gives its name back if there is one already.
    pub(super) fn add_to(&self, records: &mut Records) -> Option<String> {
        fn first<K: Ord, V>(entry: Entry<'_, K, V>, value: V) -> bool {
            match entry {
                Entry::Occupied(_) => false,
                Entry::Vacant(vacant) => {
                    vacant.insert(value);
                    true
                }
            }
        }
        let (is_first, what) = match self {
            Object::Node(node) => (
                first(records.nodes.entry(node.name.clone()), Arc::clone(node)),
                format!("Node {}", node.name),
            ),
            Object::Namespace(name, labels) => {
                (first(records.namespaces.entry(name.clone()), labels.clone()), format!("Namespace {name}"))
            }
            Object::Pod(name, pod) => {
                (first(records.pods.entry(name.clone()), Arc::clone(pod)), format!("Pod {name}"))
            }
            Object::Policy(policy) => {
                let key = (policy.kind, policy.namespace.clone(), policy.name.clone());
                let what = format!("{} {}/{}", policy.kind, policy.namespace, policy.name);
                (first(records.policies.entry(key), Arc::clone(policy)), what)
            }
        };
        (!is_first).then_some(what)
    }
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Object>,
    /// Documents that are none of ours: (which, why).
    pub(super) unknown: Vec<(String, String)>,
}

/// Kinds that mean nothing to us yet and are no mistake in a manifest.
const IGNORED: &[&str] = &["Service"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    kind: String,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<Labels>,
}

/// A field that is written without a value is absent, as the API server reads it: templates render
/// empty lists so.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(field: D) -> Result<T, D::Error> {
    Option::deserialize(field).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct NodeObject {
    spec: NodeSpec,
    #[serde(default, deserialize_with = "or_default")]
    status: NodeObjectStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<IpNet>,
    #[serde(default, deserialize_with = "or_default", rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
}

#[derive(Default, Deserialize)]
struct NodeObjectStatus {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    r#type: String,
    address: String,
}

#[derive(Deserialize)]
struct PodObject {
    spec: PodSpec,
    #[serde(default, deserialize_with = "or_default")]
    status: PodObjectStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    host_network: bool,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    protocol: Option<String>,
    container_port: u16,
}

#[derive(Default, Deserialize)]
struct PodObjectStatus {
    phase: Option<String>,
}

/// Reads all documents of a file.
///
/// # Errors
/// Why the file as a whole is not taken: no YAML, or an object of ours that lacks what it must have.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    // Its writer was cut off, or the disk was full: nobody says "nothing" this way.
    if text.trim().is_empty() {
        return Err("it is empty: delete it if its objects are to go".to_owned());
    }
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())?;
    let mut parsed = Parsed::default();
    for (index, document) in documents.into_iter().enumerate() {
        read_document(document, index, &mut parsed)?;
    }
    Ok(parsed)
}

fn read_document(document: Value, index: usize, parsed: &mut Parsed) -> Result<(), String> {
    if document.is_null() {
        return Ok(());
    }
    if document["kind"] == "List" {
        let items = match document["items"].clone() {
            Value::Array(items) => items,
            Value::Null => return Ok(()),
            _ => return Err(format!("document {}: List: items: a sequence is needed", index + 1)),
        };
        return items.into_iter().try_for_each(|item| read_document(item, index, parsed));
    }
    let head: Head = read(&document).map_err(|why| format!("document {}: {why}", index + 1))?;
    let namespace = head.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let location = format!("{} {}", head.kind, head.metadata.name);
    let failed = |why: String| format!("{location}: {why}");
    if !is_object_name(&head.metadata.name) || !is_object_name(&namespace) {
        return Err(failed(
            "metadata.name and metadata.namespace: no name that Kubernetes would take".to_owned(),
        ));
    }
    if let Some(kind) = PolicyKind::from_name(&head.kind) {
        // Anything else about a policy is the engine's to judge: it knows how to deny safely.
        let clusterwide = kind == PolicyKind::CiliumClusterwideNetworkPolicy;
        let namespace = if clusterwide { String::new() } else { namespace };
        let policy = PolicyObject { kind, namespace, name: head.metadata.name, manifest: document };
        parsed.objects.push(Object::Policy(Arc::new(policy)));
        return Ok(());
    }
    match head.kind.as_str() {
        "Node" => parsed.objects.push(node(head, &document).map_err(failed)?),
        "Namespace" => parsed.objects.push(self::namespace(head)),
        "Pod" => parsed.objects.extend(pod(head, namespace, &document).map_err(failed)?),
        kind if IGNORED.contains(&kind) => {}
        kind => parsed.unknown.push((location, format!("kind {kind} is not known and has no effect"))),
    }
    Ok(())
}

fn read<T: DeserializeOwned>(document: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(document).map_err(|error| error.to_string())
}

fn node(head: Head, document: &Value) -> Result<Object, String> {
    let object: NodeObject = read(document)?;
    let mut pod_ranges = object.spec.pod_cidrs;
    if let Some(range) = object.spec.pod_cidr.filter(|range| !pod_ranges.contains(range)) {
        pod_ranges.insert(0, range);
    }
    let internal = object.status.addresses.iter().filter(|address| address.r#type == "InternalIP");
    let addresses = internal.map(|entry| {
        entry.address.parse().map_err(|_| format!("status.addresses: {:?} is no IP address", entry.address))
    });
    let addresses: Vec<IpAddr> = addresses.collect::<Result<_, String>>()?;
    Ok(Object::Node(Arc::new(Node {
        name: head.metadata.name,
        addresses,
        pod_ranges: pod_ranges.iter().map(IpNet::trunc).collect(),
    })))
}

fn namespace(head: Head) -> Object {
    let mut labels = head.metadata.labels.unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), head.metadata.name.clone());
    Object::Namespace(head.metadata.name, labels)
}

/// None for a pod that has finished: its addresses are others' by now.
fn pod(head: Head, namespace: String, document: &Value) -> Result<Option<Object>, String> {
    let object: PodObject = read(document)?;
    if matches!(object.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Ok(None);
    }
    let containers = object.spec.init_containers.iter().chain(&object.spec.containers);
    let mut named_ports = BTreeMap::new();
    for port in containers.flat_map(|container| &container.ports) {
        let Some(name) = &port.name else { continue };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = Protocol::parse(protocol)
            .filter(|protocol| protocol.has_ports())
            .ok_or_else(|| format!("port {name}: protocol {protocol:?} is none of TCP, UDP, SCTP"))?;
        let port = NamedPort { name: name.clone(), protocol, port: port.container_port };
        named_ports.entry((port.name.clone(), port.protocol)).or_insert(port);
    }
    let pod = Pod {
        uid: head.metadata.uid.unwrap_or_default(),
        namespace,
        name: head.metadata.name,
        labels: head.metadata.labels.unwrap_or_default(),
        service_account: object.spec.service_account_name.unwrap_or_default(),
        addresses: Vec::new(),
        node: object.spec.node_name.unwrap_or_default(),
        named_ports: named_ports.into_values().collect(),
        host_network: object.spec.host_network,
    };
    Ok(Some(Object::Pod(PodName::new(&pod.namespace, &pod.name), Arc::new(pod))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.1.0.0/16, podCIDRs: [10.1.0.0/16]}
status:
  addresses:
    - {type: Hostname, address: node-1}
    - {type: InternalIP, address: 172.31.1.2}
---
apiVersion: v1
kind: Namespace
metadata: {name: production, labels: {env: "prod"}}
---
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: production, labels: {app: api-server}}
spec:
  nodeName: node-1
  serviceAccountName: api
  containers:
    - {name: c, image: i, ports: [{name: http, containerPort: 8080}, {containerPort: 9}, {name: dns, protocol: UDP, containerPort: 53}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: all}
spec: {}
"#;

    #[test]
    fn every_kind_is_read_and_unknown_ones_are_named() {
        let parsed = parse(ALL).unwrap();
        let [
            Object::Node(node),
            Object::Namespace(name, labels),
            Object::Pod(pod_name, pod),
            Object::Policy(policy),
        ] = parsed.objects.as_slice()
        else {
            panic!("{:?}", parsed.objects)
        };
        assert_eq!(node.addresses, ["172.31.1.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.pod_ranges, ["10.1.0.0/16".parse::<IpNet>().unwrap()]);
        assert_eq!(
            (name.as_str(), labels["kubernetes.io/metadata.name"].as_str()),
            ("production", "production")
        );
        assert_eq!(pod_name.to_string(), "production/api");
        assert_eq!((pod.node.as_str(), pod.service_account.as_str()), ("node-1", "api"));
        let ports: Vec<_> = pod.named_ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)).collect();
        assert_eq!(ports, [("dns", Protocol::Udp, 53), ("http", Protocol::Tcp, 8080)]);
        assert_eq!((policy.namespace.as_str(), policy.name.as_str()), ("", "all"));
        assert_eq!(parsed.unknown.len(), 1);
        assert!(parsed.unknown[0].0.contains("Deployment web"), "{:?}", parsed.unknown);
    }

    #[test]
    fn a_finished_pod_is_none_and_the_namespace_defaults() {
        let pod = "kind: Pod\nmetadata: {name: a}\nspec: {}\n";
        let Object::Pod(name, _) = &parse(pod).unwrap().objects[0] else { panic!() };
        assert_eq!(name.to_string(), "default/a");
        assert_eq!(parse(&format!("{pod}status: {{phase: Failed}}\n")).unwrap().objects, []);
    }

    #[test]
    fn a_field_without_a_value_is_absent() {
        let node = "kind: Node\nmetadata: {name: a, labels: }\nspec: {podCIDR: , podCIDRs: }\nstatus: {addresses: }\n";
        let bare_node = "kind: Node\nmetadata: {name: a}\nspec: {}\n";
        assert_eq!(parse(node).unwrap(), parse(bare_node).unwrap());
        assert_eq!(parse(&format!("{bare_node}status:\n")).unwrap(), parse(bare_node).unwrap());
        let pod = "kind: Pod\nmetadata: {name: a, namespace: , uid: , labels: }\nspec:\n  nodeName:\n  hostNetwork:\n  \
                   initContainers:\n  containers:\n  - name: c\n    ports:\nstatus:\n";
        let bare_pod = "kind: Pod\nmetadata: {name: a}\nspec: {}\n";
        assert_eq!(parse(pod).unwrap(), parse(bare_pod).unwrap());
        assert_eq!(parse("kind: List\nitems:\n").unwrap(), Parsed::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("kind: [", "line"),
            ("kind: Pod\nmetadata: {}\nspec: {}\n", "name"),
            ("kind: Pod\nmetadata: {name: ../up}\nspec: {}\n", "metadata.name"),
            ("kind: Pod\nmetadata: {name: a}\n", "spec"),
            (
                "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{ports: 80}]}\n",
                "spec.containers[0].ports",
            ),
            ("kind: Pod\nmetadata: {name: a, labels: {app: }}\nspec: {}\n", "metadata.labels.app"),
            ("kind: Node\nmetadata: {name: a}\nspec: {podCIDR: nonsense}\n", "Node a"),
            (
                "kind: Node\nmetadata: {name: a}\nspec: {}\nstatus: {addresses: [{type: InternalIP, address: x}]}\n",
                "no IP",
            ),
            ("just text", "document 1"),
            ("kind: Pod\nkind: Node\nmetadata: {name: a}\n", "uplicate"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn values_keep_their_type() {
        let text = "kind: NetworkPolicy\nmetadata: {name: a}\nspec: {on: yes, port: \"8080\", n: 8080}\n";
        let Object::Policy(policy) = &parse(text).unwrap().objects[0] else { panic!() };
        assert_eq!(policy.manifest["spec"], serde_json::json!({"on": "yes", "port": "8080", "n": 8080}));
    }
}
