//! Streams that a client cancels: each has cost the server a request. A client may cancel what it
//! likes as long as it also takes answers, or takes its time.

use std::cell::Cell;
use std::time::Instant;

use crate::limits;

/// Counts those of one connection.
#[derive(Debug)]
pub(super) struct Cancels {
    /// Young ones, less those that ended well and those that time has forgiven.
    young: Cell<u32>,
    forgiven: Cell<Instant>,
    /// Since the server last took something.
    stuck: Cell<u32>,
}

impl Cancels {
    pub(super) fn new() -> Self {
        Self { young: Cell::new(0), forgiven: Cell::new(Instant::now()), stuck: Cell::new(0) }
    }

    /// The client cancelled one that was young.
    pub(super) fn young(&self) {
        self.forgive(Instant::now());
        self.stuck.set(0);
        self.young.set(self.young.get() + 1);
    }

    /// The client cancelled one, and the server takes nothing.
    pub(super) fn stuck(&self) {
        self.stuck.set(self.stuck.get() + 1);
    }

    /// One ended well.
    pub(super) fn completed(&self) {
        self.stuck.set(0);
        self.young.set(self.young.get().saturating_sub(1));
    }

    pub(super) fn are_a_flood(&self) -> bool {
        self.young.get() > limits::H2_CANCELLED_STREAMS || self.stuck.get() > limits::H2_STUCK_STREAMS
    }

    /// After the connection was told to go.
    pub(super) fn forget(&self) {
        self.young.set(0);
        self.stuck.set(0);
    }

    fn forgive(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.forgiven.get()).as_millis();
        let forgiven = millis * u128::from(limits::H2_CANCELLED_STREAMS_PER_SECOND) / 1000;
        if forgiven > 0 {
            self.young.set(self.young.get().saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX)));
            self.forgiven.set(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_and_answers_forgive() {
        let cancels = Cancels::new();
        let begun = cancels.forgiven.get();
        cancels.young.set(limits::H2_CANCELLED_STREAMS);
        assert!(!cancels.are_a_flood());
        cancels.young.set(limits::H2_CANCELLED_STREAMS + 1);
        assert!(cancels.are_a_flood());
        cancels.completed();
        assert!(!cancels.are_a_flood());
        cancels.forgive(begun + Duration::from_millis(1));
        assert_eq!(cancels.young.get(), limits::H2_CANCELLED_STREAMS);
        cancels.forgive(begun + Duration::from_secs(1));
        assert_eq!(
            cancels.young.get(),
            limits::H2_CANCELLED_STREAMS - limits::H2_CANCELLED_STREAMS_PER_SECOND
        );
    }
}
