//! What `h2` does not tell of the frames that it reads: whether a header block has begun that is
//! not complete, and whether the other side wants no more streams.

use super::PREFACE;

/// Types and flag of RFC 9113 section 6.
const HEADERS: u8 = 0x1;
const GOAWAY: u8 = 0x7;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// Bytes in front of each frame's payload: length (3), type, flags, stream (4).
const FRAME_HEAD: usize = 9;

/// Follows the frames that one side sends, from its first byte on.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; FRAME_HEAD],
    /// Bytes of `head` that are there.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// HEADERS or CONTINUATION that does not end its block.
    goes_on: bool,
    /// A GOAWAY has begun.
    goes_away: bool,
}

impl Frames {
    pub(super) fn of_client() -> Self {
        Self { left: PREFACE.len(), ..Self::of_server() }
    }

    pub(super) fn of_server() -> Self {
        Self { head: [0; FRAME_HEAD], have: 0, left: 0, goes_on: false, goes_away: false }
    }

    /// Whether it has begun to say that it wants no more streams.
    pub(super) fn goes_away(&self) -> bool {
        self.goes_away
    }

    /// Takes what was read. Whether everything that was incomplete before is complete by now.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut completed = false;
        while !bytes.is_empty() {
            let wanted = if self.left > 0 { self.left } else { FRAME_HEAD - self.have };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            if self.left > 0 {
                self.left -= now.len();
            } else {
                self.head[self.have..self.have + now.len()].copy_from_slice(now);
                self.have += now.len();
                if self.have == FRAME_HEAD {
                    self.begin_frame();
                }
            }
            completed |= !self.is_incomplete();
        }
        completed
    }

    fn begin_frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.have = 0;
        self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.goes_away |= kind == GOAWAY;
        if is_head(kind) {
            self.goes_on = flags & END_HEADERS == 0;
        }
    }

    /// Whether a header block has begun and not ended, or a frame of which it is not known yet.
    pub(super) fn is_incomplete(&self) -> bool {
        self.have > 0 || self.goes_on || self.left > 0 && is_head(self.head[3])
    }
}

fn is_head(kind: u8) -> bool {
    matches!(kind, HEADERS | CONTINUATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn only_header_blocks_and_unknown_frames_are_incomplete() {
        let mut blocks = Frames::of_client();
        assert!(blocks.take(PREFACE) && !blocks.is_incomplete());
        // What is incomplete after each part of it, byte by byte.
        let mut expect = |bytes: &[u8], incomplete: bool| {
            for byte in bytes {
                blocks.take(&[*byte]);
            }
            assert_eq!(blocks.is_incomplete(), incomplete, "after {bytes:?}");
        };
        let data = frame(0, 0, b"four");
        expect(&data[..8], true);
        expect(&data[8..10], false);
        expect(&data[10..], false);
        let head = frame(HEADERS, END_HEADERS, b"four");
        expect(&head[..12], true);
        expect(&head[12..], false);
        expect(&frame(HEADERS, 0, b"four"), true);
        expect(&frame(CONTINUATION, 0, b""), true);
        expect(&frame(CONTINUATION, END_HEADERS, b""), false);
    }

    #[test]
    fn says_when_one_ended_and_another_began() {
        let mut blocks = Frames::of_client();
        blocks.take(PREFACE);
        let (first, next) = (frame(0, 0, b"four"), frame(0, 0, b"four"));
        assert!(!blocks.take(&first[..3]));
        assert!(blocks.take(&[&first[3..], &next[..3]].concat()) && blocks.is_incomplete());
        assert!(!blocks.take(&next[3..8]));
    }
}
