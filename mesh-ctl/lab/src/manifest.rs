//! Manifests as users write them: read, checked, and completed by what an API server and a scheduler would add.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::LabError;

/// Kinds that live in a namespace.
const NAMESPACED: [&str; 4] = ["Pod", "Service", "NetworkPolicy", "CiliumNetworkPolicy"];
/// Kinds that do not.
const CLUSTERWIDE: [&str; 3] = ["Node", "Namespace", "CiliumClusterwideNetworkPolicy"];
/// Longest name of an object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// What an object is called. Ordered by kind, namespace, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Kind, as in the manifest.
    pub kind: String,
    /// Namespace; empty for kinds that have none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl ObjectKey {
    /// Name of its file in the source folder. The `_` cannot stand in a name, so no two objects share one.
    pub fn file_name(&self) -> String {
        let kind = self.kind.to_lowercase();
        match self.namespace.as_str() {
            "" => format!("{kind}-{}.yaml", self.name),
            namespace => format!("{kind}-{namespace}_{}.yaml", self.name),
        }
    }
}

/// A checked manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What it is called.
    pub key: ObjectKey,
    /// The whole manifest, with the namespace filled in.
    pub manifest: Value,
}

/// Reads every document of `text`; `from` names it in errors. Lists (`kind: List`) are taken apart, empty documents left out.
///
/// # Errors
/// The first document that is no manifest of a kind that a lab knows.
pub fn parse(text: &str, from: &str) -> Result<Vec<Object>, LabError> {
    let refuse = |message: String| LabError::Manifest { location: from.to_owned(), message };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| refuse(format!("is not YAML: {error}")))?;
    let mut objects = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        let location = format!("{from}, document {}", number + 1);
        match document {
            Value::Null => {}
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                let Some(Value::Array(items)) = list.remove("items") else {
                    return Err(refuse(format!("document {}: a List needs `items`", number + 1)));
                };
                for item in items {
                    objects.push(check(item, &location)?);
                }
            }
            document => objects.push(check(document, &location)?),
        }
    }
    Ok(objects)
}

/// Reads a file, or all `*.yaml`, `*.yml` and `*.json` files of a folder in the order of their names.
///
/// # Errors
/// As [`parse`]; if nothing can be read, or a folder has no such file.
pub fn read(path: &Path) -> Result<Vec<Object>, LabError> {
    Ok(read_files(path)?.into_iter().map(|(_, object)| object).collect())
}

/// As [`read`], with the file of each object.
///
/// # Errors
/// As [`read`].
pub fn read_files(path: &Path) -> Result<Vec<(String, Object)>, LabError> {
    let files = if path.is_dir() { manifest_files(path)? } else { vec![path.to_owned()] };
    if files.is_empty() {
        let message = "has no *.yaml, *.yml or *.json file".to_owned();
        return Err(LabError::Manifest { location: path.display().to_string(), message });
    }
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(LabError::io("read", &file))?;
        let from = file.display().to_string();
        objects.extend(parse(&text, &from)?.into_iter().map(|object| (from.clone(), object)));
    }
    if objects.is_empty() {
        let message = "there is no object in it".to_owned();
        return Err(LabError::Manifest { location: path.display().to_string(), message });
    }
    Ok(objects)
}

fn manifest_files(folder: &Path) -> Result<Vec<PathBuf>, LabError> {
    let names = crate::folder::entries(folder)?;
    let mut files: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
    files.retain(|file| {
        file.is_file()
            && matches!(file.extension().and_then(|end| end.to_str()), Some("yaml" | "yml" | "json"))
    });
    files.sort();
    Ok(files)
}

fn check(mut manifest: Value, location: &str) -> Result<Object, LabError> {
    let refuse = |message: String| LabError::Manifest { location: location.to_owned(), message };
    let text =
        |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text(&manifest, "/kind").ok_or_else(|| refuse("`kind` is missing".to_owned()))?;
    let namespaced = NAMESPACED.contains(&kind.as_str());
    if !namespaced && !CLUSTERWIDE.contains(&kind.as_str()) {
        let known = [NAMESPACED.as_slice(), CLUSTERWIDE.as_slice()].concat().join(", ");
        return Err(refuse(format!(
            "kind: {kind} has no meaning in a lab, which has no controllers; use {known}"
        )));
    }
    text(&manifest, "/apiVersion").ok_or_else(|| refuse(format!("{kind}: `apiVersion` is missing")))?;
    let name = text(&manifest, "/metadata/name")
        .ok_or_else(|| refuse(format!("{kind}: `metadata.name` is missing or no text")))?;
    check_name(&name, NAME_MAX).map_err(|why| refuse(format!("{kind}: metadata.name {name:?} {why}")))?;
    let mut namespace = String::new();
    let given = manifest.pointer("/metadata/namespace").is_some_and(|namespace| !namespace.is_null());
    if namespaced {
        let named = text(&manifest, "/metadata/namespace").or_else(|| (!given).then(|| "default".to_owned()));
        namespace = named
            .ok_or_else(|| refuse(format!("{kind} {name}: `metadata.namespace` is no text; quote it")))?;
        let problem = |why| refuse(format!("{kind} {name}: metadata.namespace {namespace:?} {why}"));
        check_name(&namespace, 63).map_err(problem)?;
        manifest["metadata"]["namespace"] = json!(namespace);
    } else if given {
        return Err(refuse(format!(
            "{kind} {name}: `metadata.namespace` must be left out: the kind has no namespace"
        )));
    }
    let object = Object { key: ObjectKey { kind, namespace, name }, manifest };
    if object.key.kind == "Pod" {
        crate::pod::PodSpec::of(&object)?;
    }
    Ok(object)
}

/// RFC 1123 subdomain; such a name is also safe as a part of a file name.
fn check_name(name: &str, max: usize) -> Result<(), &'static str> {
    let label = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    if name.len() > max {
        return Err("is too long");
    }
    if !name.split('.').all(label) {
        return Err("must be lower-case letters, digits, and inner `-` or `.`");
    }
    Ok(())
}

impl Object {
    /// An object made by the lab itself.
    pub fn new(kind: &str, name: &str, spec: &Value) -> Self {
        let manifest = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        let key = ObjectKey { kind: kind.to_owned(), namespace: String::new(), name: name.to_owned() };
        Self { key, manifest }
    }

    /// The text at a JSON pointer.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.manifest.pointer(pointer).and_then(Value::as_str)
    }

    /// Sets a field, making the objects on the way to it.
    pub fn set(&mut self, path: &[&str], value: Value) {
        let mut place = &mut self.manifest;
        for key in path {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[*key];
        }
        *place = value;
    }

    /// The manifest as YAML; as JSON, which is YAML too, should the writer ever change a value.
    pub fn to_yaml(&self) -> String {
        let yaml = serde_saphyr::to_string(&self.manifest).unwrap_or_default();
        match serde_saphyr::from_str::<Value>(&yaml) {
            Ok(read) if read == self.manifest => yaml,
            _ => format!("{:#}\n", self.manifest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text, "x.yaml").unwrap_err().to_string()
    }

    #[test]
    fn documents_and_lists_are_taken_apart_and_namespaced() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Pod, metadata: {name: p}}\n- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}}\n";
        let keys: Vec<String> =
            parse(text, "x").unwrap().iter().map(|object| object.key.to_string()).collect();
        assert_eq!(keys, ["Namespace a", "Pod default/p", "Pod a/p"]);
    }

    #[test]
    fn what_no_lab_can_run_is_refused_by_name() {
        assert!(refusal("kind: Deployment\napiVersion: apps/v1\nmetadata: {name: x}").contains("Deployment"));
        assert!(refusal("kind: Pod\nmetadata: {name: x}").contains("apiVersion"));
        assert!(refusal("kind: Pod\napiVersion: v1").contains("metadata.name"));
        assert!(refusal("kind: [").contains("not YAML"));
        for name in ["../x", "a/b", "A", "-a", "a..b", "a_b", "''"] {
            let text = format!("kind: Pod\napiVersion: v1\nmetadata: {{name: {name}}}");
            assert!(refusal(&text).contains("metadata.name"), "{name}");
        }
        assert!(refusal("kind: Pod\napiVersion: v1\nmetadata: {name: x, namespace: 7}").contains("quote"));
        assert!(
            refusal("kind: Node\napiVersion: v1\nmetadata: {name: x, namespace: y}").contains("left out")
        );
    }

    #[test]
    fn values_survive_being_written() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: x, labels: {a: '8080', b: 'no', c: 'null', d: '1e3', e: ''}}\n\
                    spec: {port: 8080, headers: ['Content-Type: application/json'], path: '/api.*', text: \"a\\nb: c\\n\"}";
        let object = parse(text, "x").unwrap().remove(0);
        let again = parse(&object.to_yaml(), "y").unwrap().remove(0);
        assert_eq!(again, object);
    }
}
