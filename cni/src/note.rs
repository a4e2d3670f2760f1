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

/// Most notes that wait at once. A node has a few hundred pods; more means that its agent has been away for days of restarts, and
/// then the runtime's own retries are the better queue.
const MAX_NOTES: usize = 10_000;

/// Leaves a note for `target`.
pub(crate) fn write(state_dir: &Path, target: &Target) -> Result<(), CniError> {
    let path = path(state_dir, target);
    if let Some(folder) = path.parent() {
        let failed =
            |source| CniError::System { action: "cannot use the folder for notes to mesh-agent", source };
        fs::create_dir_all(folder).map_err(failed)?;
        host::file::remove_left_over(folder);
        let names = fs::read_dir(folder).map_err(failed)?.flatten().map(|entry| entry.file_name());
        if !path.exists() && names.filter(|name| !host::file::is_temporary(name)).count() >= MAX_NOTES {
            return Err(CniError::TooManyNotes { folder: folder.to_owned(), limit: MAX_NOTES });
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PodName;

    #[test]
    fn the_folder_has_a_limit_and_old_notes_can_be_rewritten() {
        let state = tempfile::tempdir().unwrap();
        let target = |id: usize| Target {
            container_id: format!("c{id}"),
            ifname: "eth0".to_owned(),
            netns: None,
            pod: PodName::default(),
        };
        write(state.path(), &target(0)).unwrap();
        for number in 1..MAX_NOTES {
            fs::write(path(state.path(), &target(number)), "").unwrap();
        }
        // What a writer that was killed left does not count.
        let half = path(state.path(), &target(1)).with_file_name(".c1_eth0.json.7.0.tmp");
        fs::write(&half, "").unwrap();
        fs::remove_file(path(state.path(), &target(1))).unwrap();
        write(state.path(), &target(1)).unwrap();
        let error = write(state.path(), &target(MAX_NOTES)).unwrap_err();
        assert!(error.code() == 11 && error.to_string().contains("cni/pending"), "{error}");
        write(state.path(), &target(0)).unwrap();
        remove(state.path(), &target(0)).unwrap();
        write(state.path(), &target(MAX_NOTES)).unwrap();
    }
}
