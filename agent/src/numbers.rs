//! Numbers that never repeat, also after a kill: of snapshots and of peer sets.

use std::path::{Path, PathBuf};

use host::file::FileError;
use serde::{Deserialize, Serialize};

/// Numbers set aside with one write to the disk. A kill loses the rest of them, which nobody misses.
const BLOCK: u64 = 1000;

#[derive(Serialize, Deserialize)]
struct Stored {
    next: u64,
}

/// Hands out 1, 2, 3, ...
#[derive(Debug)]
pub struct Numbers {
    path: PathBuf,
    next: u64,
    reserved: u64,
}

impl Numbers {
    /// Goes on behind what any earlier process may have handed out. An unreadable file counts as none; `at_least` says
    /// what is known from elsewhere.
    pub fn open(path: &Path, at_least: u64) -> Self {
        let stored = std::fs::read(path).ok().and_then(|json| serde_json::from_slice::<Stored>(&json).ok());
        let next = stored.map_or(1, |stored| stored.next).max(at_least.saturating_add(1));
        Self { path: path.to_owned(), next, reserved: next }
    }

    /// The next number.
    ///
    /// # Errors
    /// It could not be made sure that it is never given out again.
    pub fn take(&mut self) -> Result<u64, FileError> {
        if self.next >= self.reserved {
            let reserved = self.next.saturating_add(BLOCK);
            let json = format!("{{\"next\":{reserved}}}\n");
            host::file::write(&self.path, json.as_bytes(), 0o600)?;
            self.reserved = reserved;
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers");
        let mut seen = Vec::new();
        for _ in 0..3 {
            let mut numbers = Numbers::open(&path, 0);
            seen.extend((0..BLOCK + 5).map(|_| numbers.take().unwrap()));
        }
        assert!(seen.is_sorted_by(|a, b| a < b));
        assert_eq!(seen[0], 1);
        std::fs::write(&path, "broken").unwrap();
        assert_eq!(Numbers::open(&path, 70).take().unwrap(), 71);
    }
}
