//! Notes for an agent that was not there when a pod left.
//!
//! `<stateDir>/cni/pending/<container ID>_<interface>.json` holds `{"containerID": ..., "ifname": ...}`. The agent releases what
//! it names and removes it, *after* it has begun to listen: whoever writes a note tries once more afterwards, so that a note
//! written while the agent starts is seen by one of the two.

use std::fs;
use std::path::{Path, PathBuf};

use host::file;
use rscni_types::types::GcAttachment;

use crate::error::CniError;
use crate::request::Target;

/// Where the notes stand below the state folder.
const FOLDER: &str = "cni/pending";
/// Only root, as the rest of the agent's state.
const MODE: u32 = 0o600;

/// Leaves a note for `target`.
pub(crate) fn write(state_dir: &Path, target: &Target) -> Result<(), CniError> {
    let path = path(state_dir, target);
    if let Some(folder) = path.parent() {
        let action = "cannot create the folder for notes to mesh-agent";
        fs::create_dir_all(folder).map_err(|source| CniError::System { action, source })?;
    }
    let note = GcAttachment { container_id: target.container_id.clone(), ifname: target.ifname.clone() };
    let json = serde_json::to_vec(&note).map_err(CniError::Decode)?;
    Ok(file::write(&path, &json, MODE)?)
}

/// Takes the note for `target` back, if there is one: what it asks for is done, or no longer wanted.
pub(crate) fn remove(state_dir: &Path, target: &Target) -> Result<(), CniError> {
    let path = path(state_dir, target);
    if path.exists() {
        file::remove(&path)?;
    }
    Ok(())
}

/// Both names are free of slashes.
fn path(state_dir: &Path, target: &Target) -> PathBuf {
    state_dir.join(FOLDER).join(format!("{}_{}.json", target.container_id, target.ifname))
}
