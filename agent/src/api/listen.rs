//! Sockets with the right owner from the first moment on.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Only the owner may connect.
const MODE: u32 = 0o600;

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("socket {}: cannot {action}: {source}", path.display())]
pub struct ListenError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// Listens on `path`, which belongs to `owner` (root if none). A socket that a dead process left is replaced; since the new
/// one appears by a rename, nobody can connect before its owner and mode are right.
pub(super) fn bind(path: &Path, owner: Option<u32>) -> Result<UnixListener, ListenError> {
    let failed = |action| move |source| ListenError { path: path.to_owned(), action, source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("make its folder"))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace it")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed("listen"))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(MODE)).map_err(failed("set its mode"))?;
    if owner.is_some() {
        chown(&temporary, owner, owner).map_err(failed("set its owner"))?;
    }
    fs::rename(&temporary, path).map_err(failed("put it in place"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_only_the_owner_may_connect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/agent.sock");
        drop(bind(&path, None).unwrap());
        assert!(tokio::net::UnixStream::connect(&path).await.is_err());
        let own_uid = fs::metadata(folder.path()).unwrap().uid();
        let _listener = bind(&path, Some(own_uid)).unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o600, own_uid));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
