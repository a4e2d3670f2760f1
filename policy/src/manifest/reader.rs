use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fix::with_fix;
use crate::{PolicyObject, Problem};

/// A field that exists but is not supported, and what to write instead.
pub(super) type Unsupported = (&'static str, &'static str);

/// Reads parts of one object and notes what is wrong, by place.
pub(super) struct Reader<'a> {
    object: String,
    problems: &'a mut Vec<Problem>,
}

/// The frame of every Kubernetes object; what is inside is read part by part, so that one bad part fails alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Frame {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "status")]
    _status: Option<Value>,
    pub(super) spec: Option<Value>,
    pub(super) specs: Option<Vec<Value>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(object: &PolicyObject, problems: &'a mut Vec<Problem>) -> Self {
        let namespace =
            if object.namespace.is_empty() { String::new() } else { format!("{}/", object.namespace) };
        Self { object: format!("{} {namespace}{}", object.kind, object.name), problems }
    }

    /// For a second look at something whose problems are noted already.
    pub(super) fn silent(unnoted: &'a mut Vec<Problem>) -> Self {
        Self { object: String::new(), problems: unnoted }
    }

    /// Notes a problem at a place within the object.
    pub(super) fn problem(&mut self, place: &str, message: impl Into<String>) {
        let location =
            if place.is_empty() { self.object.clone() } else { format!("{}: {place}", self.object) };
        self.problems.push(Problem { location, message: message.into() });
    }

    /// Reads the frame, which must be of the right kind and version.
    pub(super) fn frame(&mut self, object: &PolicyObject) -> Option<Frame> {
        let frame: Frame = self.read(&object.manifest, "")?;
        let mut right = true;
        for (place, got, expected) in [
            ("apiVersion", &frame.api_version, object.kind.api_version()),
            ("kind", &frame.kind, object.kind.name()),
        ] {
            if let Some(got) = got.as_deref().filter(|got| *got != expected) {
                self.problem(place, format!("`{got}` is not understood here, write `{expected}`"));
                right = false;
            }
        }
        right.then_some(frame)
    }

    /// Reads a part into its record; unknown fields are refused.
    pub(super) fn read<T: DeserializeOwned>(&mut self, value: &Value, place: &str) -> Option<T> {
        match serde_path_to_error::deserialize(value) {
            Ok(record) => Some(record),
            Err(error) => {
                let path = error.path().to_string();
                let path = if path == "." { "" } else { path.as_str() };
                let dot = if place.is_empty() || path.is_empty() || path.starts_with('[') { "" } else { "." };
                let place = format!("{place}{dot}{path}");
                self.problem(&place, with_fix(error.into_inner().to_string()));
                None
            }
        }
    }

    /// Notes every unsupported field that is present. False if there was one.
    pub(super) fn supported(&mut self, value: &Value, place: &str, unsupported: &[Unsupported]) -> bool {
        let mut supported = true;
        for (field, fix) in unsupported {
            if value.get(field).is_some_and(|value| !value.is_null()) {
                self.problem(&format!("{place}.{field}"), format!("`{field}` is not supported yet: {fix}"));
                supported = false;
            }
        }
        supported
    }
}
