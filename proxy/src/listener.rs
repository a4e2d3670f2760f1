//! The sockets that steered connections are accepted on: one for each worker thread.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::{Domain, SockRef, Socket, Type};

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

/// Makes `held` complete: without any, opens a listener for each thread; of those that are there already (a successor gets them
/// from its predecessor), replaces only what does not listen any more. Puts them into their slots where these are empty: the map may be
/// another one by now, of a new layout or because the agent has made it again. Without a map, what is complete is left as it is.
///
/// # Errors
/// See [`ListenerError`]; what has been opened until then is in `held`.
pub fn complete(
    pin_dir: &Path,
    threads: u32,
    held: &mut Vec<(String, OwnedFd)>,
) -> Result<(), ListenerError> {
    let most = datapath::Listeners::SLOTS;
    if threads > most {
        return Err(ListenerError::TooManyThreads { threads, most });
    }
    let missing = if held.is_empty() { (0..threads).map(name_of).collect() } else { dead(held) };
    let mut slots = match datapath::Listeners::open(pin_dir) {
        Ok(slots) => slots,
        Err(error) if missing.is_empty() => {
            tracing::warn!(%error, "the listeners stay in the slots that they are in");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for name in missing {
        // What has another name is none of ours, and the worker says so.
        let Some(slot) = slot_of(&name) else { continue };
        let listener = open().map_err(|error| ListenerError::Open { slot, error })?;
        slots.set(slot, &listener)?;
        held.retain(|(known, _)| *known != name);
        held.push((name, listener.into()));
    }
    for (name, listener) in held {
        if let Some(slot) = slot_of(name) {
            slots.fill(slot, listener)?;
        }
    }
    Ok(())
}

/// Whether the agent has pinned the map that the kernel looks for listeners in.
pub(crate) fn is_pinned(pin_dir: &Path) -> bool {
    pin_dir.join(layout::maps::LISTENERS).exists()
}

/// Names of the listeners that were closed under us (`ss --kill`, say): they would never accept again.
fn dead(held: &[(String, OwnedFd)]) -> Vec<String> {
    let listens = |socket: &OwnedFd| SockRef::from(socket).is_listener().unwrap_or(false);
    held.iter().filter(|(_, socket)| !listens(socket)).map(|(name, _)| name.clone()).collect()
}

fn name_of(slot: u32) -> String {
    format!("{NAME}{slot}")
}

fn slot_of(name: &str) -> Option<u32> {
    name.strip_prefix(NAME)?.parse().ok()
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
        let slot = slot_of(&name).ok_or(UnknownDescriptor { name })?;
        listeners.push((slot, std::net::TcpListener::from(descriptor)));
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

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};

    use super::*;

    #[test]
    fn a_listener_that_was_closed_under_us_is_told_from_the_others() {
        let held: Vec<(String, OwnedFd)> =
            (0..3).map(|slot| (name_of(slot), TcpListener::bind("127.0.0.1:0").unwrap().into())).collect();
        assert_eq!(dead(&held), [""; 0]);
        // On a listener the same as what `ss --kill` does to it.
        SockRef::from(&held[1].1).shutdown(Shutdown::Read).unwrap();
        assert_eq!(dead(&held), ["listener-1"]);
    }
}
