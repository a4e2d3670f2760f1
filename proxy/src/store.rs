//! The last good snapshot on disk: what the worker judges by until the agent speaks.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::limits;

/// Why there is no stored snapshot, or it could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is there and cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Of the system call.
        error: io::Error,
    },
    /// The file is larger than any snapshot.
    #[error("{} is larger than {} bytes", path.display(), limits::SNAPSHOT_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("{} holds no snapshot: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It could not be written.
    #[error("cannot store the snapshot: {0}")]
    Write(#[from] host::file::FileError),
}

/// The file in `<state_dir>/proxy/`.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    path: PathBuf,
}

impl SnapshotStore {
    /// In this folder, which must exist and be the worker's.
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join("snapshot.pb") }
    }

    /// The stored snapshot; None: there is none yet.
    ///
    /// # Errors
    /// The file is there but is no snapshot. Nothing is allowed then until the agent sends one.
    pub fn load(&self) -> Result<Option<policy::Snapshot>, StoreError> {
        let path = self.path.clone();
        path.parent().map(host::file::remove_left_over);
        let read = |error| StoreError::Read { path: self.path.clone(), error };
        let length = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read(error)),
            Ok(metadata) => metadata.len(),
        };
        if length > limits::SNAPSHOT_BYTES as u64 {
            return Err(StoreError::TooLarge { path });
        }
        let bytes = std::fs::read(&path).map_err(read)?;
        let invalid = |problem: String| StoreError::Invalid { path: self.path.clone(), problem };
        let message =
            api::policy::Snapshot::decode(&bytes[..]).map_err(|error| invalid(error.to_string()))?;
        policy::Snapshot::try_from(message).map(Some).map_err(|error| invalid(error.to_string()))
    }

    /// Replaces the stored snapshot, so that a crash leaves either the old one or the new one.
    ///
    /// # Errors
    /// It could not be written; the old one is still there.
    pub fn save(&self, message: &api::policy::Snapshot) -> Result<(), StoreError> {
        Ok(host::file::write(&self.path, &message.encode_to_vec(), 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_snapshot_comes_back_and_rubbish_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::new(folder.path());
        assert!(store.load().unwrap().is_none());
        let world = policy::World { this_node: "n".to_owned(), ..Default::default() };
        let (snapshot, _) = policy::compile(&world, &mut policy::Identities::default(), 7);
        let message = api::policy::Snapshot::from(&snapshot);
        store.save(&message).unwrap();
        assert_eq!(store.load().unwrap().unwrap().number, 7);
        std::fs::write(folder.path().join("snapshot.pb"), b"\xff\xff\xff").unwrap();
        assert!(matches!(store.load(), Err(StoreError::Invalid { .. })));
    }
}
