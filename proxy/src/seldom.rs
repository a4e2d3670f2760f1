//! Log lines that clients could repeat without bound.

use std::cell::Cell;
use std::time::Instant;

use crate::limits;

/// Whether something may be said again. One for each place that says something, and thread.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Cell<Option<Instant>>);

impl Seldom {
    /// Whether it was not said within [`limits::LOG_PAUSE`]; then it counts as said now.
    pub(crate) fn may_say(&self) -> bool {
        let may = self.0.get().is_none_or(|said| said.elapsed() >= limits::LOG_PAUSE);
        if may {
            self.0.set(Some(Instant::now()));
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_it_once_in_a_while() {
        let seldom = Seldom::default();
        assert!(seldom.may_say() && !seldom.may_say());
        seldom.0.set(Instant::now().checked_sub(limits::LOG_PAUSE));
        assert!(seldom.may_say() && !seldom.may_say());
    }
}
