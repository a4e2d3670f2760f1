use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::{Map, MapData, MapError, SockMap};

use crate::Error;
use crate::layout_check::LISTENERS;

/// Of `linux/bpf.h`: whatever is there.
const BPF_ANY: u64 = 0;
/// Likewise: only where nothing is.
const BPF_NOEXIST: u64 = 1;

/// The proxy's listeners, by slot. Belongs to the proxy's master; needs no capability, only the pin's permission.
///
/// A listener that is closed leaves its slot by itself, and a SYN for an empty slot is dropped: never answered by
/// somebody else.
pub struct Listeners {
    slots: SockMap<MapData>,
}

impl Listeners {
    /// Number of slots.
    pub const SLOTS: u32 = layout::limits::LISTENERS;

    /// Opens the pinned map; the agent must have loaded the datapath once.
    ///
    /// # Errors
    /// [`Error::Map`] if it is not pinned or may not be opened, [`Error::LayoutMismatch`] if it is another version's.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        let slots = SockMap::try_from(Map::SockMap(LISTENERS.open(pin_dir)?))
            .map_err(|source| LISTENERS.error("open", source))?;
        Ok(Self { slots })
    }

    /// Puts a TCP socket that listens already into a slot, over the one that may be there. The socket there before
    /// keeps what is in its queue and gets nothing new.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a slot out of range, [`Error::Map`] for a socket that does not listen.
    pub fn set(&mut self, slot: u32, listener: &impl AsFd) -> Result<(), Error> {
        self.put(slot, listener, BPF_ANY).map(drop)
    }

    /// Puts a TCP socket that listens already into a slot if that is empty; whether it was. (A socket that is put over itself is
    /// forgotten by the kernel, and would not leave the slot when it is closed.)
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn fill(&mut self, slot: u32, listener: &impl AsFd) -> Result<bool, Error> {
        self.put(slot, listener, BPF_NOEXIST)
    }

    /// Whether it was put there: not if the flags forbid it.
    fn put(&mut self, slot: u32, listener: &impl AsFd, flags: u64) -> Result<bool, Error> {
        check_slot(slot)?;
        match self.slots.set(slot, &listener.as_fd().as_raw_fd(), flags) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(false)
            }
            Err(source) => Err(LISTENERS.error("store a listener (it must listen already)", source)),
        }
    }

    /// Empties a slot; an empty one is fine.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a slot out of range, [`Error::Map`] if the kernel refuses.
    pub fn clear(&mut self, slot: u32) -> Result<(), Error> {
        check_slot(slot)?;
        match self.slots.clear_index(&slot) {
            // What the kernel says of a slot without a socket.
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(())
            }
            other => other.map_err(|source| LISTENERS.error("empty a slot", source)),
        }
    }
}

fn check_slot(slot: u32) -> Result<(), Error> {
    if slot < Listeners::SLOTS {
        return Ok(());
    }
    Err(Error::Invalid {
        field: "slot",
        problem: format!("{slot} is out of range: there are {} slots", Listeners::SLOTS),
    })
}
