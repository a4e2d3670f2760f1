//! Which of boringtun's eight places for sessions the one in use has.
//!
//! boringtun puts the session of each initiation that it answers into the place after the last one, whoever is there, and uses what
//! is in the place of the current one, confirmed or not. Eight initiations whose answers nobody takes (lost, or old ones that an
//! adversary sends again to a node that was started again) would so end a session that works, and look like a new one. This is a
//! copy of its book-keeping (`Tunn::set_current_session`, `Handshake::inc_index`), so that such an initiation can be told.

/// Places: boringtun's `N_SESSIONS`.
const PLACES: usize = 8;

/// The places of one peer's sessions.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Lowest byte of the last index that was given out: to an initiation, or to the answer to one.
    last: u8,
    current: usize,
    /// Ticks so far: the clock that boringtun compares sessions by.
    ticks: u64,
    /// When the session in each place was made.
    made: [u64; PLACES],
}

impl Slots {
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
    }

    /// An initiation was sent, with this index.
    pub(super) fn begun(&mut self, index: u32) {
        self.last = index.to_le_bytes()[0];
    }

    /// One was answered, with this index.
    pub(super) fn answered(&mut self, index: u32) {
        self.begun(index);
        self.made[place(index)] = self.ticks;
    }

    /// Our own was answered.
    pub(super) fn completed(&mut self, index: u32, in_use: impl FnOnce() -> bool) {
        self.made[place(index)] = self.ticks;
        self.heard(index, in_use);
    }

    /// Data came on the session with this index. `in_use` says whether there is a session in the current place.
    pub(super) fn heard(&mut self, index: u32, in_use: impl FnOnce() -> bool) {
        let place = place(index);
        if place != self.current && (self.made[place] >= self.made[self.current] || !in_use()) {
            self.current = place;
        }
    }

    /// Whether the session of the next answer would get the place of the one in use.
    pub(super) fn next_is_current(&self) -> bool {
        place(u32::from(self.last.wrapping_add(1))) == self.current
    }
}

fn place(index: u32) -> usize {
    index as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_session_in_use_is_told() {
        let mut slots = Slots::default();
        let yes = || true;
        let answer = |slots: &mut Slots| {
            let index = 0x100 | u32::from(slots.last.wrapping_add(1));
            slots.answered(index);
            index
        };
        // Without any session boringtun takes what is in the first place.
        let first = (0..7).map(|_| answer(&mut slots)).last().unwrap();
        assert!(slots.next_is_current());
        slots.heard(first, yes);
        assert!(!slots.next_is_current(), "seven is in use now, and eight is next");
        slots.tick();
        let later = answer(&mut slots);
        slots.heard(later, yes);
        slots.heard(first, yes);
        assert_eq!(slots.current, place(later), "an older session does not come back");
        slots.heard(first, || false);
        assert_eq!(slots.current, place(first), "unless there is no other");
        slots.tick();
        slots.begun(0x109);
        slots.completed(0x109, yes);
        assert_eq!(slots.current, place(0x109));
    }
}
