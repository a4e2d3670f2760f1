#![expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use layout::Event;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes as _;

use crate::Error;
use crate::layout_check::EVENTS;

/// What the programs report: refusals and new flows, in the order in which they happened.
///
/// The ring has one read position, kept by the kernel: what happens while nobody reads waits there, up to
/// `layout::limits::EVENT_BYTES`, and two readers would each see a part. What does not fit is counted
/// (`Reason::EventLost`) and lost.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Opens the pinned ring. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Map`] if it is not pinned or may not be opened, [`Error::LayoutMismatch`] if it is another version's.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        let ring = RingBuf::try_from(Map::RingBuf(EVENTS.open(pin_dir)?))
            .map_err(|source| EVENTS.error("open", source))?;
        // SAFETY: the ring owns the descriptor of its map, the same one until it is dropped, together with the AsyncFd.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self { ring: ring.map_err(|error| Error::Events(error.into()))? })
    }

    /// The next event, if one is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        next_of(self.ring.get_mut())
    }

    /// The next event; waits for one. Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// [`Error::Events`] if the runtime cannot wait for the ring.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let mut ready = self.ring.readable_mut().await.map_err(Error::Events)?;
            if let Some(event) = next_of(ready.get_inner_mut()) {
                return Ok(event);
            }
            ready.clear_ready();
        }
    }
}

/// Skips what has not the size of an event: only this layout's programs write to the ring, and it was compared.
fn next_of(ring: &mut RingBuf<MapData>) -> Option<Event> {
    while let Some(bytes) = ring.next() {
        match Event::read_from_bytes(&bytes) {
            Ok(event) => return Some(event),
            Err(_) => tracing::warn!(bytes = bytes.len(), "an event of unknown size was skipped"),
        }
    }
    None
}
