//! Descriptors from a predecessor, and to a successor.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{UnixListener, UnixStream};

use super::worker::read_byte;
use super::{Descriptors, MasterError, beside};
use crate::descriptors::{self, DescriptorsError};

/// Successor to predecessor: my worker is ready.
const READY: u8 = b'r';
/// Predecessor to successor: mine drains.
const GIVING_WAY: u8 = b'd';

/// How long the other master may take for one step. It does nothing else that blocks; longer means that it is stopped or broken.
const STEP_LIMIT: Duration = Duration::from_secs(5);

/// How long a successor's worker may take to be ready. Longer than the successor itself waits for it, so that the successor is
/// the one that gives up.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(45);

/// A running master, seen by the one that wants to take over.
pub(super) struct Predecessor {
    socket: StdStream,
}

impl Predecessor {
    /// `None`: nobody answers at `path`.
    pub(super) fn connect(path: &Path) -> Result<Option<Self>, MasterError> {
        let failed = |source| MasterError::Connect { path: path.to_owned(), source };
        match StdStream::connect(path) {
            Ok(socket) => {
                socket.set_read_timeout(Some(STEP_LIMIT)).map_err(failed)?;
                socket.set_write_timeout(Some(STEP_LIMIT)).map_err(failed)?;
                Ok(Some(Self { socket }))
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Its descriptors.
    pub(super) fn take(&self) -> Result<Descriptors, DescriptorsError> {
        descriptors::receive(&self.socket)
    }

    /// Tells it to give way, and waits until it does. One that has died meanwhile has given way too.
    pub(super) fn replace(mut self, path: &Path) -> Result<(), MasterError> {
        let mut answer = [0];
        let result = self.socket.write_all(&[READY]).and_then(|()| self.socket.read_exact(&mut answer));
        let error = match result {
            Ok(()) if answer == [GIVING_WAY] => return Ok(()),
            Ok(()) => io::Error::new(io::ErrorKind::InvalidData, "unexpected answer"),
            Err(error) => error,
        };
        match Self::connect(path)? {
            None => Ok(()),
            Some(_) => Err(MasterError::NotGivingWay(error)),
        }
    }
}

/// Where a successor asks.
pub(super) struct HandoverSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

/// A hand-over socket that listens under a name of its own and is not in place yet.
pub(super) struct PreparedSocket {
    socket: HandoverSocket,
    temporary: PathBuf,
}

impl PreparedSocket {
    /// All that can well fail about the socket at `path`, done before a predecessor is asked to leave. From its first moment
    /// only root and the own user can connect.
    pub(super) fn new(path: &Path) -> Result<Self, MasterError> {
        let failed = |source| MasterError::Socket { action: "bind", path: path.to_owned(), source };
        let temporary = beside(path, &format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let bind = || -> io::Result<HandoverSocket> {
            let listener = StdListener::bind(&temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let metadata = fs::symlink_metadata(&temporary)?;
            let listener = UnixListener::from_std(listener)?;
            Ok(HandoverSocket { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
        };
        let socket = bind().inspect_err(|_| drop(fs::remove_file(&temporary))).map_err(failed)?;
        Ok(Self { socket, temporary })
    }

    /// Puts it in place of whatever is there.
    pub(super) fn publish(self) -> Result<HandoverSocket, MasterError> {
        let path = self.socket.path.clone();
        match fs::rename(&self.temporary, &path) {
            Ok(()) => Ok(self.socket),
            Err(source) => Err(MasterError::Socket { action: "publish", path, source }),
        }
    }

    /// Takes it away: there is nothing to hand over.
    pub(super) fn discard(self) {
        // A name that stays is in nobody's way: the next master has another.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl HandoverSocket {
    /// Offers `descriptors`, as they are at that moment, to one successor after the other. Returns when one of them has taken over.
    pub(super) async fn serve(&self, descriptors: &RefCell<Descriptors>) {
        /// Pause after an accept that failed (descriptors used up), so that it does not spin.
        const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
        loop {
            match self.listener.accept().await {
                Err(error) => {
                    tracing::warn!(%error, "hand-over socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Ok((socket, _)) => match hand_over(socket, descriptors).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "no hand-over; going on"),
                },
            }
        }
    }

    /// Removes the path, unless a successor's socket stands there by now.
    pub(super) fn remove(&self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if is_ours {
            // A path that stays refuses connections, which means the same to a successor.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns when the successor is ready and knows that this master gives way.
async fn hand_over(socket: UnixStream, descriptors: &RefCell<Descriptors>) -> io::Result<()> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        let message = format!("user {} (pid {}) may not take over", peer.uid(), peer.pid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    tracing::info!(successor = peer.pid(), "handing over");
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(STEP_LIMIT))?;
    send(&socket, &descriptors.borrow()).map_err(io::Error::other)?;
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    match tokio::time::timeout(SUCCESSOR_LIMIT, read_byte(&socket)).await {
        Ok(Some(READY)) => {}
        Ok(_) => return Err(io::Error::other("the successor left before it was ready")),
        Err(_) => {
            return Err(io::Error::other(format!("the successor is not ready after {SUCCESSOR_LIMIT:?}")));
        }
    }
    // A fresh socket takes one byte without waiting.
    socket.try_write(&[GIVING_WAY])?;
    tracing::info!(successor = peer.pid(), "handed over");
    Ok(())
}

fn send(socket: &StdStream, descriptors: &Descriptors) -> Result<(), DescriptorsError> {
    let borrowed: Vec<(&str, BorrowedFd<'_>)> =
        descriptors.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd())).collect();
    descriptors::send(socket, &borrowed)
}
