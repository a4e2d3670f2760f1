//! The bpf file system, in which maps, programs and links are pinned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::MsFlags;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where every distribution mounts the bpf file system.
const STANDARD: &str = "/sys/fs/bpf";

/// Why there is no bpf file system at a path.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The folder could not be made.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The mount was refused.
    #[error("cannot mount the bpf file system at {} (root is needed): {source}", path.display())]
    Mount {
        /// Where it was to be mounted.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Makes the folder `path` on a bpf file system. If none is there yet, one is mounted: at `/sys/fs/bpf` for what lies below it,
/// else at `path` itself. Returns where one was mounted, if it was.
///
/// # Errors
/// The folder or the mount failed.
pub fn ensure_bpffs(path: &Path) -> Result<Option<PathBuf>, MountError> {
    let create = |folder: &Path| {
        fs::create_dir_all(folder).map_err(|source| MountError::Create { path: folder.to_owned(), source })
    };
    if is_bpffs(nearest_existing(path)) {
        return create(path).map(|()| None);
    }
    let at = if path.starts_with(STANDARD) { Path::new(STANDARD) } else { path };
    create(at)?;
    let failed = |source: io::Error| MountError::Mount { path: at.to_owned(), source };
    // Of two programs that start at once, the second would mount over the first one's pins.
    let folder = fs::File::open(at).map_err(failed)?;
    let _lock = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
    if is_bpffs(at) {
        return create(path).map(|()| None);
    }
    nix::mount::mount(
        Some("bpf"),
        at,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0755"),
    )
    .map_err(|errno| failed(errno.into()))?;
    tracing::info!(path = %at.display(), "mounted the bpf file system");
    create(path).map(|()| Some(at.to_owned()))
}

fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or_else(|| Path::new("/"))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
