//! Files that survive a crash: after a kill or a power cut there is either the old content or the new, never a part.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Which step failed, on which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried: "write", "rename", ...
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

impl FileError {
    fn of<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// How the names of temporary files end.
const TEMPORARY: &[u8] = b".tmp";

/// A temporary file that is older has lost its writer: one write takes milliseconds, on a busy disk
/// seconds.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// Two writers of one process never share a temporary name.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Replaces `path` by a file with `content` and exactly the permission bits `mode` (the umask is not applied): temporary file in
/// the same folder, fsync, rename, fsync of the folder. Readers see the old file or the new one.
///
/// # Errors
/// The step that failed; the old file is then as it was and no temporary file is left.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_name(path)?;
    let result = write_temporary(&temporary, content, mode)
        .and_then(|()| fs::rename(&temporary, path).map_err(FileError::of("rename", path)));
    if result.is_err() {
        // The error that matters is the first one; a left-over temporary file is never read.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    sync_folder(path)
}

/// Removes `path` for good (the folder is synced). Returns whether it existed.
///
/// # Errors
/// It could not be removed, or the folder not be synced.
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::of("remove", path)(error)),
    }
}

/// Whether [`write()`] may have given this name to a file that is not complete.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(TEMPORARY)
}

/// Removes the temporary files of writers that were killed, from `folder` alone. What cannot be
/// looked at or removed stays until the next time: no reader takes such a file.
pub fn remove_left_over(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|at| at.elapsed());
        // A time in the future is an error here, and a clock that was set back makes no file young
        // for ever.
        let is_old = age.is_ok_and(|age| age.is_ok_and(|age| age > WRITE_LIMIT));
        if is_old && is_temporary(&entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn temporary_name(path: &Path) -> Result<PathBuf, FileError> {
    let Some(name) = path.file_name() else {
        return Err(FileError::of("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(temporary))
}

fn write_temporary(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    // A file of the same name can only be left over from a process that was killed and had our number.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(FileError::of("create", path))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(FileError::of("set the mode of", path))?;
    file.write_all(content).map_err(FileError::of("write", path))?;
    file.sync_all().map_err(FileError::of("sync", path))
}

fn sync_folder(path: &Path) -> Result<(), FileError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::of("sync", folder))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn content_and_mode_are_replaced_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, b"one", 0o644).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["key"]);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn a_failed_rename_leaves_no_temporary_file_and_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("occupied");
        fs::create_dir(&path).unwrap();
        let error = write(&path, b"x", 0o600).unwrap_err();
        assert_eq!((error.action, &error.path), ("rename", &path));
        assert_eq!(names(folder.path()), ["occupied"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("note.json");
        let temporary = temporary_name(&path).unwrap();
        let others = ["note.json", ".hidden", "named.tmp"];
        for name in others {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let old = SystemTime::now() - 2 * WRITE_LIMIT;
        for file in fs::read_dir(folder.path()).unwrap() {
            File::options().write(true).open(file.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
        fs::write(&temporary, "half").unwrap();
        remove_left_over(folder.path());
        assert!(temporary.exists(), "its writer may live");
        File::options().write(true).open(&temporary).unwrap().set_modified(old).unwrap();
        remove_left_over(folder.path());
        let mut left = names(folder.path());
        left.sort_unstable();
        assert_eq!(left, [".hidden", "named.tmp", "note.json"]);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("no/where"), b"x", 0o600).unwrap_err();
        assert_eq!(error.action, "create");
    }
}
