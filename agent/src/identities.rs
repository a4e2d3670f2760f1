//! Identities on disk: a label set keeps its number over restarts, and no number ever stands for another one.

use std::io;
use std::path::{Path, PathBuf};

use host::file::FileError;
use policy::{Identities, IdentityEntry, IdentityId};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Stored {
    next: IdentityId,
    entries: Vec<(IdentityId, String)>,
}

/// The allocator and its file.
pub struct StoredIdentities {
    path: PathBuf,
    /// Hands out the numbers.
    pub identities: Identities,
    stored: Option<IdentityId>,
}

impl StoredIdentities {
    /// What was stored. A file that cannot be understood is a problem for people and counts as empty, with numbers
    /// beginning after `in_use`, the largest one in the kernel.
    pub fn open(path: &Path, in_use: IdentityId) -> (Self, Option<String>) {
        let (stored, problem) = match std::fs::read(path).map(|json| serde_json::from_slice::<Stored>(&json))
        {
            Ok(Ok(stored)) => (Some(stored), None),
            Ok(Err(error)) => {
                (None, Some(format!("{}: {error}; identities get new numbers", path.display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(error) => (None, Some(format!("{}: {error}; identities get new numbers", path.display()))),
        };
        let stored = stored.unwrap_or(Stored { next: 0, entries: Vec::new() });
        let entries = stored.entries.into_iter().map(|(number, key)| IdentityEntry { number, key });
        let identities = Identities::from_entries(stored.next.max(in_use.saturating_add(1)), entries);
        (Self { path: path.to_owned(), identities, stored: None }, problem)
    }

    /// Stores what is new. To be done before a snapshot is put in force.
    ///
    /// # Errors
    /// Nothing may be put in force.
    pub fn store(&mut self) -> Result<(), FileError> {
        let (next, entries) = self.identities.entries();
        if self.stored == Some(next) {
            return Ok(());
        }
        let entries = entries.into_iter().map(|entry| (entry.number, entry.key)).collect();
        let json = serde_json::to_vec(&Stored { next, entries }).unwrap_or_default();
        host::file::write(&self.path, &json, 0o600)?;
        self.stored = Some(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use policy::{Pod, World};

    use super::*;

    fn number_of(identities: &mut StoredIdentities, label: &str) -> IdentityId {
        let pod = Pod {
            namespace: "ns".into(),
            name: "p".into(),
            labels: [("app".to_owned(), label.to_owned())].into(),
            ..Pod::default()
        };
        let world = World { pods: vec![pod], ..World::default() };
        let (snapshot, _) = policy::compile(&world, &mut identities.identities, 1);
        identities.store().unwrap();
        snapshot.endpoints[0].identity
    }

    #[test]
    fn numbers_survive_a_restart_and_a_broken_file_repeats_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identities.json");
        let (mut first, problem) = StoredIdentities::open(&path, 0);
        assert_eq!(problem, None);
        let (a, b) = (number_of(&mut first, "a"), number_of(&mut first, "b"));
        assert_ne!(a, b);
        let (mut second, _) = StoredIdentities::open(&path, 0);
        assert_eq!((number_of(&mut second, "b"), number_of(&mut second, "a")), (b, a));
        std::fs::write(&path, "{").unwrap();
        let (mut third, problem) = StoredIdentities::open(&path, b);
        assert!(problem.is_some());
        assert!(number_of(&mut third, "c") > b);
    }
}
