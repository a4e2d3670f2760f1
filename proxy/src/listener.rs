//! The sockets that steered connections are accepted on: one for each worker thread.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use crate::limits;

/// Names of the descriptors on their way from master to worker and to a successor: this and the slot.
const NAME: &str = "listener-";

/// Why the listeners could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// A socket could not be made as it must be.
    #[error("cannot open the listener of slot {slot}: {error}")]
    Open {
        /// Its slot.
        slot: u32,
        /// Of the system call.
        error: io::Error,
    },
    /// The map that the kernel looks for listeners in.
    #[error("the listener map: {0}")]
    Map(#[from] datapath::Error),
    /// More threads than slots.
    #[error("threads = {threads}: there are only {most} listener slots")]
    TooManyThreads {
        /// How many were asked for.
        threads: u32,
        /// How many there can be.
        most: u32,
    },
}

/// Opens a listener for each thread and puts it into its slot. Only the first master does: successors get the same
/// sockets, so the slots need no change.
///
/// # Errors
/// See [`ListenerError`].
pub fn open_all(pin_dir: &Path, threads: u32) -> Result<Vec<(String, OwnedFd)>, ListenerError> {
    let most = datapath::Listeners::SLOTS;
    if threads > most {
        return Err(ListenerError::TooManyThreads { threads, most });
    }
    let mut slots = datapath::Listeners::open(pin_dir)?;
    let mut listeners = Vec::new();
    for slot in 0..threads {
        let listener = open().map_err(|error| ListenerError::Open { slot, error })?;
        slots.set(slot, &listener)?;
        listeners.push((format!("{NAME}{slot}"), listener.into()));
    }
    Ok(listeners)
}

/// Bound to loopback: nobody reaches it by its own address. Transparent, so that it accepts for addresses that are not
/// the node's; marked, and the mark is inherited; SO_REUSEADDR is inherited too and lets upstream sockets have the same
/// port. Not SO_REUSEPORT: closing one of a group resets what is in its queue.
fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(layout::mark::FROM_PROXY)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    Ok(socket)
}

/// The listeners among the descriptors that the master sent, in the order of their slots.
///
/// # Errors
/// A descriptor with another name, or none at all.
pub fn from_descriptors(
    descriptors: Vec<(String, OwnedFd)>,
) -> Result<Vec<std::net::TcpListener>, UnknownDescriptor> {
    let mut listeners = Vec::new();
    for (name, descriptor) in descriptors {
        let slot = name.strip_prefix(NAME).and_then(|slot| slot.parse::<u32>().ok());
        listeners.push((slot.ok_or(UnknownDescriptor { name })?, std::net::TcpListener::from(descriptor)));
    }
    listeners.sort_by_key(|(slot, _)| *slot);
    if listeners.is_empty() {
        return Err(UnknownDescriptor { name: "none".to_owned() });
    }
    Ok(listeners.into_iter().map(|(_, listener)| listener).collect())
}

/// The master sent something that is no listener.
#[derive(Debug, thiserror::Error)]
#[error("expected descriptors named {NAME}SLOT, got {name}")]
pub struct UnknownDescriptor {
    /// What it is called.
    pub name: String,
}
