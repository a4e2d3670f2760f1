//! Network namespaces: open, create, delete, and run code inside.
//!
//! A namespace belongs to a *thread*. Code that must run in another one therefore gets a thread of its own ([`NetNs::run`]): a
//! thread of a runtime that forgot to come back would silently do its next job in the wrong namespace.

use std::fs::{self, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns, unshare};

/// Unmounts tried on one file: namespaces mounted over each other at the same path are a mistake, but not an endless one.
const MAX_STACKED_MOUNTS: usize = 16;

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The path could not be opened.
    #[error("cannot open network namespace {}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path is something else.
    #[error("{} is not a network namespace", .0.display())]
    NotANamespace(PathBuf),
    /// `setns` was refused.
    #[error("cannot enter the network namespace: {0}")]
    Enter(io::Error),
    /// A new one could not be made.
    #[error("cannot create a network namespace: {0}")]
    Create(io::Error),
    /// It could not be bound to its path, or the path not be removed.
    #[error("cannot {action} {}: {source}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What makes a namespace the same namespace: two descriptors are equal if these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetNsId {
    device: u64,
    inode: u64,
}

impl NetNsId {
    /// The number that `readlink /proc/PID/ns/net` shows.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

/// An open network namespace. It lives at least as long as this.
#[derive(Debug)]
pub struct NetNs {
    descriptor: OwnedFd,
    id: NetNsId,
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for NetNs {}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace at `path`: a file that one is bound to, or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// It cannot be opened, or is no network namespace.
    pub fn open(path: &Path) -> Result<Self, NetNsError> {
        let failed = |source| NetNsError::Open { path: path.to_owned(), source };
        // A path that is a pipe must not make the caller wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        #[expect(unsafe_code, reason = "ioctl")]
        // SAFETY: NS_GET_NSTYPE takes no argument. Files that are not namespaces refuse it.
        let kind = unsafe { request::namespace_type(file.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(NetNsError::NotANamespace(path.to_owned()));
        }
        let metadata = file.metadata().map_err(failed)?;
        let id = NetNsId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { descriptor: file.into(), id })
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn of_pid(pid: u32) -> Result<Self, NetNsError> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// A new namespace without a name. It ends when nothing holds it any more.
    ///
    /// # Errors
    /// Root is needed.
    pub fn create_unnamed() -> Result<Self, NetNsError> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetNsError::Create(errno.into()))?;
            Self::current()
        })
    }

    /// A new namespace bound to the new file `path`, as `ip netns add` makes them; its folder is made if needed. It lives until
    /// [`NetNs::delete`].
    ///
    /// # Errors
    /// Root is needed; `path` must not exist.
    pub fn create(path: &Path) -> Result<Self, NetNsError> {
        let failed =
            |action| move |source: io::Error| NetNsError::Path { action, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
        }
        OpenOptions::new().write(true).create_new(true).open(path).map_err(failed("create"))?;
        let bound = Self::create_unnamed().and_then(|namespace| {
            let source = format!("/proc/self/fd/{}", namespace.descriptor.as_raw_fd());
            nix::mount::mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| failed("bind a network namespace to")(errno.into()))?;
            Ok(namespace)
        });
        if bound.is_err() {
            let _ = fs::remove_file(path);
        }
        bound
    }

    /// Takes the name of a namespace away; it ends with its last process and descriptor. Succeeds if there is none.
    ///
    /// # Errors
    /// The unmount or the removal was refused.
    pub fn delete(path: &Path) -> Result<(), NetNsError> {
        let failed =
            |action| move |source: io::Error| NetNsError::Path { action, path: path.to_owned(), source };
        for _ in 0..MAX_STACKED_MOUNTS {
            match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(failed("unmount")(errno.into())),
            }
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
            _ => Ok(()),
        }
    }

    /// What identifies it.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Runs `work` in this namespace, on a thread of its own, and waits for it. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// The namespace could not be entered; `work` then did not run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_own_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET).map_err(|errno| NetNsError::Enter(errno.into()))?;
            Ok(work())
        })
    }

    /// Moves the calling thread into this namespace until the guard is dropped. For programs and tests of one thread; a runtime's
    /// thread uses [`NetNs::run`].
    ///
    /// # Errors
    /// The namespace could not be entered.
    pub fn enter(&self) -> Result<Entered, NetNsError> {
        let home = Self::current()?;
        setns(self, CloneFlags::CLONE_NEWNET).map_err(|errno| NetNsError::Enter(errno.into()))?;
        Ok(Entered { home, thread_bound: PhantomData })
    }
}

mod request {
    nix::ioctl_none_bad!(namespace_type, libc::NS_GET_NSTYPE);
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, NetNsError> + Send) -> Result<T, NetNsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        match thread.spawn_scoped(scope, work).map_err(NetNsError::Create)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The calling thread is in another namespace until this is dropped. It cannot leave its thread.
#[derive(Debug)]
pub struct Entered {
    home: NetNs,
    thread_bound: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            // Going on would do the next job in the wrong namespace, unseen.
            tracing::error!(%errno, "cannot return to the network namespace this thread came from");
            std::process::abort();
        }
    }
}
