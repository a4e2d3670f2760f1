//! Parts of bodies on their way out: counted from when they were read until the socket has taken them.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Waker;

use bytes::{Buf, Bytes};

use crate::buffers::Held;

/// A part of a body, for `h2` to send. It is dropped when it is in the socket, or given up.
pub(super) struct Piece {
    bytes: Bytes,
    /// None for texts of ours.
    _passage: Option<Passage>,
}

impl Piece {
    /// Of somebody's body.
    pub(super) fn new(bytes: Bytes, held: Held, transit: &Rc<Transit>) -> Self {
        transit.pieces.set(transit.pieces.get() + 1);
        let passage = Passage { length: bytes.len(), transit: transit.clone(), _held: held };
        Self { bytes, _passage: Some(passage) }
    }

    /// A short one of ours, or none.
    pub(super) fn own(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), _passage: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// What of one direction of a stream `h2` has and the socket has not.
#[derive(Default)]
pub(super) struct Transit {
    pieces: Cell<usize>,
    /// Bytes that have gone since this was last asked.
    gone: Cell<usize>,
    waker: Cell<Option<Waker>>,
}

impl Transit {
    /// Pieces on their way.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.get()
    }

    /// Bytes that have gone since the last call; wakes `waker` when more have.
    pub(super) fn take_gone(&self, waker: &Waker) -> usize {
        self.waker.set(Some(waker.clone()));
        self.gone.take()
    }
}

struct Passage {
    length: usize,
    transit: Rc<Transit>,
    _held: Held,
}

/// `h2` drops pieces while it holds its own lock, so nothing of it may be called from here: the relay is woken instead.
impl Drop for Passage {
    fn drop(&mut self) {
        let Transit { pieces, gone, waker } = &*self.transit;
        pieces.set(pieces.get() - 1);
        gone.set(gone.get() + self.length);
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }
}
