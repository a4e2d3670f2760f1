//! The manifests folder of a lab: what an API server and a scheduler do, as far as a lab needs them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::error::LabError;
use crate::folder::Folder;
use crate::manifest::{self, Object, ObjectKey};
use crate::pod::PodSpec;
use crate::record;
use crate::supervisor::NodeRecord;

/// Everything that pods have addresses of.
pub const POD_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
/// Most nodes of a lab: one of 172.31.N.0/24 each.
pub const NODES_MAX: u8 = 254;

/// What `apply` or `delete` did to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// It is another than before.
    Configured,
    /// It was the same before.
    Unchanged,
    /// It is gone.
    Deleted,
    /// It was not there.
    NotFound,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::NotFound => "not found",
        })
    }
}

/// The objects of a lab, by name.
pub(crate) type Objects = BTreeMap<ObjectKey, Object>;

/// Reads all objects. A file that another process replaces meanwhile is read before or after, never in part.
pub(crate) fn read(lab: &Folder) -> Result<Objects, LabError> {
    let (objects, broken) = read_in_part(lab)?;
    broken.into_iter().next().map_or(Ok(objects), Err)
}

/// Reads the objects of all files that make sense, and says what is wrong with the others.
pub(crate) fn read_in_part(lab: &Folder) -> Result<(Objects, Vec<LabError>), LabError> {
    let folder = lab.manifests();
    let (mut objects, mut broken) = (Objects::new(), Vec::new());
    for name in crate::folder::entries(&folder)? {
        if !name.ends_with(".yaml") || name.starts_with('.') {
            continue;
        }
        let file = folder.join(&name);
        match std::fs::read_to_string(&file) {
            Ok(text) => match manifest::parse(&text, &file.display().to_string()) {
                Ok(found) => objects.extend(found.into_iter().map(|object| (object.key.clone(), object))),
                Err(error) => broken.push(error),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => broken.push(LabError::io("read", &file)(error)),
        }
    }
    Ok((objects, broken))
}

/// Places of all nodes. A file that cannot be read takes no node away that runs.
pub(crate) fn places(lab: &Folder) -> Result<BTreeMap<String, u8>, LabError> {
    let (objects, broken) = read_in_part(lab)?;
    let mut places = nodes(&objects);
    if !broken.is_empty() {
        for node in crate::folder::entries(&lab.nodes())? {
            if let Ok(Some(NodeRecord { name, place, .. })) = record::read(&lab.node_record(&node)) {
                places.entry(name).or_insert(place);
            }
        }
    }
    Ok(places)
}

/// Stores objects, completed: nodes with addresses and a pod range, pods with a uid and a node. All or none.
pub(crate) fn apply(lab: &Folder, new: Vec<Object>) -> Result<Vec<(ObjectKey, Change)>, LabError> {
    let _lock = lock(lab)?;
    // What another hand broke in the folder keeps nothing else from being applied, but for nodes:
    // their places must differ.
    let needs_all = new.iter().any(|object| object.key.kind == "Node");
    let before = if needs_all { read(lab)? } else { read_in_part(lab)?.0 };
    let mut after = before.clone();
    let (nodes, others): (Vec<_>, Vec<_>) = new.into_iter().partition(|object| object.key.kind == "Node");
    let mut keys = Vec::new();
    for mut object in nodes.into_iter().chain(others) {
        match object.key.kind.as_str() {
            "Node" => complete_node(lab, &after, &mut object)?,
            "Pod" => complete_pod(lab, &after, &mut object)?,
            _ => {}
        }
        keys.push(object.key.clone());
        after.insert(object.key.clone(), object);
    }
    let mut changes = Vec::new();
    for key in keys {
        let change = match before.get(&key) {
            None => Change::Created,
            Some(old) if *old == after[&key] => Change::Unchanged,
            Some(_) => Change::Configured,
        };
        if change != Change::Unchanged {
            let file = lab.manifests().join(key.file_name());
            host::file::write(&file, after[&key].to_yaml().as_bytes(), 0o644)?;
        }
        changes.push((key, change));
    }
    Ok(changes)
}

/// Removes objects; a Namespace with everything in it. All or none.
pub(crate) fn delete(lab: &Folder, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Change)>, LabError> {
    let _lock = lock(lab)?;
    let needs_all = keys.iter().any(|key| matches!(key.kind.as_str(), "Node" | "Namespace"));
    let objects = if needs_all { read(lab)? } else { read_in_part(lab)?.0 };
    let mut doomed = Vec::new();
    for key in keys {
        if key.kind == "Namespace" {
            doomed.extend(objects.keys().filter(|other| other.namespace == key.name).cloned());
        }
        doomed.push(key.clone());
    }
    for node in doomed.iter().filter(|key| key.kind == "Node") {
        let stays = |pod: &&PodSpec| pod.node == node.name && !doomed.contains(&pod_key(pod));
        if let Some(pod) = pods(&objects).iter().find(stays) {
            let message = format!("pod {}/{} runs on it; delete that first", pod.namespace, pod.name);
            return Err(LabError::Manifest { location: node.to_string(), message });
        }
    }
    let mut changes = Vec::new();
    for key in doomed {
        let existed = host::file::remove(&lab.manifests().join(key.file_name()))?;
        changes.push((key, if existed { Change::Deleted } else { Change::NotFound }));
    }
    Ok(changes)
}

/// All pods. One that cannot be understood was put there by another hand than ours, and is left alone.
pub(crate) fn pods(objects: &Objects) -> Vec<PodSpec> {
    objects
        .values()
        .filter(|object| object.key.kind == "Pod")
        .filter_map(|object| PodSpec::of(object).ok())
        .collect()
}

/// All nodes that have a place in the network: (name, place).
pub(crate) fn nodes(objects: &Objects) -> BTreeMap<String, u8> {
    let nodes = objects.values().filter(|object| object.key.kind == "Node");
    nodes.filter_map(|node| Some((node.key.name.clone(), place(node)?))).collect()
}

/// Where the pods of a node get their addresses from.
pub(crate) fn pod_range(objects: &Objects, node: &str) -> Option<Ipv4Net> {
    let mut nodes = objects.values().filter(|object| object.key.kind == "Node" && object.key.name == node);
    nodes.next()?.text("/spec/podCIDR")?.parse().ok()
}

fn pod_key(pod: &PodSpec) -> ObjectKey {
    ObjectKey { kind: "Pod".to_owned(), namespace: pod.namespace.clone(), name: pod.name.clone() }
}

fn lock(lab: &Folder) -> Result<Flock<std::fs::File>, LabError> {
    let path = lab.lock();
    let file =
        OpenOptions::new().create(true).append(true).open(&path).map_err(LabError::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| LabError::io("lock", &path)(errno.into()))
}

/// The N of 172.31.N.2.
fn place(node: &Object) -> Option<u8> {
    let addresses = node.manifest.pointer("/status/addresses")?.as_array()?;
    let mut places = addresses.iter().filter(|entry| entry["type"] == "InternalIP").filter_map(|entry| {
        match entry["address"].as_str()?.parse::<Ipv4Addr>().ok()?.octets() {
            [172, 31, place, 2] => Some(place),
            _ => None,
        }
    });
    places.next()
}

fn complete_node(lab: &Folder, objects: &Objects, node: &mut Object) -> Result<(), LabError> {
    let refuse = |message: String| LabError::Manifest { location: node.key.to_string(), message };
    if node.key.name == crate::topology::OUTSIDE {
        return Err(refuse("the name `outside` is taken by the world around the nodes".to_owned()));
    }
    lab.check_node_name(&node.key.name)?;
    let taken = nodes(objects);
    let free = |place: &u8| !taken.values().any(|taken| taken == place);
    // node-3 gets 172.31.3.2, so that addresses read well.
    let wanted = node.key.name.rsplit_once('-').and_then(|(_, number)| number.parse::<u8>().ok());
    let place = taken
        .get(&node.key.name)
        .copied()
        .or(wanted.filter(|place| (1..=NODES_MAX).contains(place) && free(place)));
    let place = place
        .or_else(|| (1..=NODES_MAX).find(free))
        .ok_or_else(|| refuse(format!("a lab has at most {NODES_MAX} nodes")))?;
    match node.text("/spec/podCIDR").map(str::parse::<Ipv4Net>) {
        None => node.set(&["spec", "podCIDR"], json!(format!("10.{place}.0.0/16"))),
        Some(Ok(range)) if POD_NETWORK.contains(&range) => {}
        Some(_) => {
            return Err(refuse(format!(
                "spec.podCIDR must be an IPv4 range within {POD_NETWORK}, or be left out"
            )));
        }
    }
    let address = crate::topology::node_address(place);
    node.set(&["status", "addresses"], json!([{"type": "InternalIP", "address": address}]));
    Ok(())
}

fn complete_pod(lab: &Folder, objects: &Objects, pod: &mut Object) -> Result<(), LabError> {
    let nodes = nodes(objects);
    let asked_for = PodSpec::of(pod)?.node;
    let old = objects.get(&pod.key);
    let old_node = old.and_then(|old| old.text("/spec/nodeName"));
    let node = match (asked_for.as_str(), old_node) {
        ("", Some(node)) if nodes.contains_key(node) => node.to_owned(),
        ("", _) => emptiest(&nodes, objects),
        (node, _) if nodes.contains_key(node) => node.to_owned(),
        (node, _) => {
            let known = nodes.into_keys().collect::<Vec<_>>().join(", ");
            let message = format!("spec.nodeName: lab {:?} has no node {node:?}; it has {known}", lab.name());
            return Err(LabError::Manifest { location: pod.key.to_string(), message });
        }
    };
    pod.set(&["spec", "nodeName"], json!(node));
    // A pod's spec cannot change under it: another spec makes another pod of the same name.
    let same = old.filter(|old| old.manifest["spec"] == pod.manifest["spec"]);
    let uid = match same.and_then(|old| old.text("/metadata/uid")) {
        Some(uid) => uid.to_owned(),
        None => new_uid()?,
    };
    pod.set(&["metadata", "uid"], Value::String(uid));
    Ok(())
}

fn emptiest(nodes: &BTreeMap<String, u8>, objects: &Objects) -> String {
    let pods = pods(objects);
    let load = |node: &&String| pods.iter().filter(|pod| pod.node == **node).count();
    nodes.keys().min_by_key(load).cloned().unwrap_or_default()
}

fn new_uid() -> Result<String, LabError> {
    let source = std::path::Path::new("/proc/sys/kernel/random/uuid");
    Ok(std::fs::read_to_string(source).map_err(LabError::io("read", source))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab(Folder);

    impl Lab {
        fn new(name: &str) -> Self {
            let lab = Folder::of(&format!("{name}-{}", std::process::id())).unwrap();
            std::fs::create_dir_all(lab.manifests()).unwrap();
            Self(lab)
        }

        fn apply(&self, text: &str) -> Result<Vec<Change>, LabError> {
            let changes = apply(&self.0, manifest::parse(text, "x").unwrap())?;
            Ok(changes.into_iter().map(|(_, change)| change).collect())
        }

        fn pod(&self, name: &str) -> PodSpec {
            pods(&read(&self.0).unwrap()).into_iter().find(|pod| pod.name == name).unwrap()
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.path());
            let _ = std::fs::remove_dir(crate::folder::ROOT);
        }
    }

    fn pod(name: &str, spec: &str) -> String {
        format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}\n")
    }

    fn node(name: &str, spec: &str) -> String {
        format!("---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {spec}}}\n")
    }

    #[test]
    fn nodes_get_their_place_and_pods_are_spread() {
        let lab = Lab::new("spread");
        let all = ["a", "b", "c"].map(|name| pod(name, "{}")).concat()
            + &node("node-2", "{}")
            + &node("node-1", "{}");
        lab.apply(&all).unwrap();
        assert_eq!(
            nodes(&read(&lab.0).unwrap()),
            BTreeMap::from([("node-1".into(), 1), ("node-2".into(), 2)])
        );
        let on = ["a", "b", "c"].map(|name| lab.pod(name).node);
        assert_eq!(on, ["node-1", "node-2", "node-1"]);
        assert!(lab.apply(&pod("d", "{nodeName: node-9}")).unwrap_err().to_string().contains("node-9"));
        assert!(
            lab.apply(&node("node-3", "{podCIDR: 192.168.0.0/16}"))
                .unwrap_err()
                .to_string()
                .contains("podCIDR")
        );
        assert!(lab.apply(&node("outside", "{}")).is_err());
    }

    #[test]
    fn the_same_again_changes_nothing_and_another_spec_is_another_pod() {
        let lab = Lab::new("again");
        lab.apply(&node("node-1", "{}")).unwrap();
        assert_eq!(lab.apply(&pod("a", "{}")).unwrap(), [Change::Created]);
        let first = lab.pod("a");
        assert_eq!(lab.apply(&pod("a", "{}")).unwrap(), [Change::Unchanged]);
        assert_eq!(lab.apply(&pod("a", "{containers: [{command: [x]}]}")).unwrap(), [Change::Configured]);
        assert_ne!(lab.pod("a").uid, first.uid);
        assert_eq!(lab.pod("a").node, first.node);
    }

    #[test]
    fn a_namespace_goes_with_what_is_in_it_and_a_node_not_from_under_a_pod() {
        let lab = Lab::new("delete");
        let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: default}}\n";
        lab.apply(&(node("node-1", "{}") + &pod("a", "{}") + namespace)).unwrap();
        let key = |kind: &str, name: &str| ObjectKey {
            kind: kind.into(),
            namespace: String::new(),
            name: name.into(),
        };
        assert!(delete(&lab.0, &[key("Node", "node-1")]).unwrap_err().to_string().contains("default/a"));
        let gone = delete(&lab.0, &[key("Namespace", "default"), key("Namespace", "other")]).unwrap();
        let gone: Vec<_> = gone.iter().map(|(key, change)| format!("{key} {change}")).collect();
        assert_eq!(gone, ["Pod default/a deleted", "Namespace default deleted", "Namespace other not found"]);
        delete(&lab.0, &[key("Node", "node-1")]).unwrap();
        assert!(read(&lab.0).unwrap().is_empty());
    }
}
