//! The streams that a server lets be open at a time (its SETTINGS_MAX_CONCURRENT_STREAMS). `h2`
//! keeps one above that for as long as it takes, and tells nobody; here it waits for a while and is
//! then refused.

use std::cell::Cell;
use std::time::Duration;

use h2::client::SendRequest;
use tokio::sync::Notify;

use super::piece::Piece;

/// How often the server's limit is looked at while a stream waits: settings that raise it wake no
/// stream.
const LOOK: Duration = Duration::from_millis(20);

/// The streams that are open on one upstream connection.
#[derive(Default)]
pub(super) struct Slots {
    open: Cell<usize>,
    /// One of them ended.
    ended: Notify,
}

/// One of them; given back when dropped.
pub(super) struct Slot<'a>(&'a Slots);

impl Slots {
    /// A place for one more, at once if there is one. None: there was none for so long.
    pub(super) async fn take(&self, sender: &SendRequest<Piece>, longest: Duration) -> Option<Slot<'_>> {
        if !self.has_room(sender) {
            tokio::time::timeout(longest, self.room(sender)).await.ok()?;
        }
        self.open.set(self.open.get() + 1);
        Some(Slot(self))
    }

    async fn room(&self, sender: &SendRequest<Piece>) {
        while !self.has_room(sender) {
            let _ = tokio::time::timeout(LOOK, self.ended.notified()).await;
        }
    }

    fn has_room(&self, sender: &SendRequest<Piece>) -> bool {
        self.open.get() < sender.current_max_send_streams()
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.ended.notify_one();
    }
}
