//! What a client sends, on its way to `h2`: header blocks are replaced by what [`super::heads`]
//! makes of them, everything else passes untouched, without a copy.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use super::PREFACE;
use super::heads::{self, Fault};
use super::hpack::{Corrupt, Decoder};
use crate::limits;

/// Types and flags of RFC 9113 section 6.
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Bytes in front of each frame's payload: length (3), type, flags, stream (4).
const FRAME_HEAD: usize = 9;

/// Bytes of a frame, and what we put into one: no side has settings for more.
const FRAME_BYTES: usize = 16_384;

/// For `h2`, in place of what cannot be decoded: it ends the connection for it.
const CORRUPT: &[u8] = &[0, 0, 1, HEADERS, END_HEADERS, 0, 0, 0, 1, 0x80];

/// Requests whose heads are malformed, until they are taken out of `h2`.
pub(super) type Faults = RefCell<VecDeque<Fault>>;

/// The frames of one client.
#[derive(Debug)]
pub(super) struct Inlet {
    /// Bytes that pass before the next frame begins.
    passing: usize,
    /// Came, and was not looked at.
    raw: BytesMut,
    /// For `h2`.
    ready: BytesMut,
    decoder: Decoder,
    block: Option<Block>,
    /// The highest stream that was opened.
    opened: u32,
    is_corrupt: bool,
}

/// A header block that has begun.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
    frames: usize,
}

impl Inlet {
    /// Of a connection of which `early` was read.
    pub(super) fn new(early: BytesMut) -> Self {
        Self {
            passing: PREFACE.len(),
            raw: early,
            ready: BytesMut::new(),
            decoder: Decoder::new(),
            block: None,
            opened: 0,
            is_corrupt: false,
        }
    }

    /// Whether what comes next may be shown to [`Self::pass`] first.
    pub(super) fn is_empty(&self) -> bool {
        self.raw.is_empty() && self.ready.is_empty() && self.block.is_none() && !self.is_corrupt
    }

    /// How much of the beginning of `new` can go to `h2` as it is. The rest is for [`Self::raw`].
    pub(super) fn pass(&mut self, new: &[u8]) -> usize {
        let mut passed = 0;
        loop {
            let now = self.passing.min(new.len() - passed);
            self.passing -= now;
            passed += now;
            match frame(&new[passed..]) {
                Some((HEADERS | CONTINUATION, ..)) | None => return passed,
                Some((.., length)) => self.passing = FRAME_HEAD + length,
            }
        }
    }

    /// For what was read.
    pub(super) fn raw(&mut self) -> &mut BytesMut {
        &mut self.raw
    }

    /// What is there for `h2`; empty if more must be read first.
    pub(super) fn ready(&mut self, faults: &Faults) -> &mut BytesMut {
        while self.ready.is_empty() && !self.raw.is_empty() && !self.is_corrupt {
            match self.next(faults) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Corrupt) => {
                    self.is_corrupt = true;
                    self.ready.extend_from_slice(CORRUPT);
                }
            }
        }
        if self.is_corrupt {
            self.raw.clear();
        }
        &mut self.ready
    }

    /// Takes one frame. Whether it was there.
    fn next(&mut self, faults: &Faults) -> Result<bool, Corrupt> {
        if self.passing > 0 {
            let now = self.passing.min(self.raw.len());
            self.passing -= now;
            self.ready = self.raw.split_to(now);
            return Ok(true);
        }
        let Some((kind, flags, stream, length)) = frame(&self.raw) else { return Ok(false) };
        if !matches!(kind, HEADERS | CONTINUATION) {
            self.passing = FRAME_HEAD + length;
            return if self.block.is_none() { Ok(true) } else { Err(Corrupt) };
        }
        if length > FRAME_BYTES || self.block.is_some() != (kind == CONTINUATION) {
            return Err(Corrupt);
        }
        if self.raw.len() < FRAME_HEAD + length {
            return Ok(false);
        }
        let mut frame = self.raw.split_to(FRAME_HEAD + length);
        frame.advance(FRAME_HEAD);
        self.take(kind, flags, stream, &frame, faults).map(|()| true)
    }

    fn take(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        faults: &Faults,
    ) -> Result<(), Corrupt> {
        let part = if kind == HEADERS { unpadded(flags, payload)? } else { payload };
        let begun = self.block.take();
        let mut block = begun.unwrap_or(Block {
            stream,
            ends_stream: flags & END_STREAM != 0,
            bytes: Vec::new(),
            frames: 0,
        });
        block.frames += 1;
        block.bytes.extend_from_slice(part);
        let is_too_much = block.frames > limits::H2_HEAD_FRAMES
            || block.bytes.len() > limits::H2_HEADER_LIST_BYTES as usize;
        if block.stream != stream || is_too_much {
            return Err(Corrupt);
        }
        if flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let full = if stream > self.opened {
            self.opened = stream;
            let (full, fault) = heads::request(&mut self.decoder, &block.bytes, stream, block.ends_stream)?;
            faults.borrow_mut().extend(fault);
            full
        } else {
            heads::trailers(&mut self.decoder, &block.bytes)?
        };
        self.put(stream, block.ends_stream, &full);
        Ok(())
    }

    /// HEADERS, and CONTINUATION as it needs it.
    fn put(&mut self, stream: u32, ends_stream: bool, block: &[u8]) {
        let mut rest = block;
        let mut kind = HEADERS;
        loop {
            let (part, later) = rest.split_at(rest.len().min(FRAME_BYTES));
            rest = later;
            let ends = if rest.is_empty() { END_HEADERS } else { 0 };
            let flags = ends | if kind == HEADERS && ends_stream { END_STREAM } else { 0 };
            self.ready.extend_from_slice(&(part.len() as u32).to_be_bytes()[1..]);
            self.ready.extend_from_slice(&[kind, flags]);
            self.ready.extend_from_slice(&stream.to_be_bytes());
            self.ready.extend_from_slice(part);
            kind = CONTINUATION;
            if rest.is_empty() {
                return;
            }
        }
    }
}

/// Type, flags, stream and length of payload of the frame that begins here.
fn frame(bytes: &[u8]) -> Option<(u8, u8, u32, usize)> {
    let [high, middle, low, kind, flags, stream @ ..] = *bytes.first_chunk::<FRAME_HEAD>()?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    Some((kind, flags, u32::from_be_bytes(stream) & 0x7fff_ffff, length))
}

/// The part of a block that HEADERS carries.
fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8], Corrupt> {
    let mut part = payload;
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, rest) = part.split_first().ok_or(Corrupt)?;
        (padding, part) = (usize::from(*length), rest);
    }
    if flags & PRIORITY != 0 {
        part = part.get(5..).ok_or(Corrupt)?;
    }
    part.len().checked_sub(padding).map(|length| &part[..length]).ok_or(Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// What `h2` gets of what comes in pieces of so many bytes, and the streams that are faulty.
    fn passed(bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<u32>) {
        let faults = Faults::default();
        let mut inlet = Inlet::new(BytesMut::new());
        let mut got = Vec::new();
        for new in bytes.chunks(piece) {
            let passed = if inlet.is_empty() { inlet.pass(new) } else { 0 };
            got.extend_from_slice(&new[..passed]);
            inlet.raw().extend_from_slice(&new[passed..]);
            loop {
                let ready = inlet.ready(&faults);
                if ready.is_empty() {
                    break;
                }
                got.extend_from_slice(&ready.split());
            }
        }
        (got, faults.take().iter().map(|fault| fault.stream).collect())
    }

    #[test]
    fn blocks_are_replaced_and_the_rest_passes_however_it_is_cut() {
        let full = b"\x00\x07:method\x03GET\x00\x07:scheme\x04http\x00\x05:path\x01/";
        let padded = [&[2, 0, 0, 0, 1, 9][..], &[0x82, 0x86, 0x84], &[0, 0]].concat();
        let data = of(0, 0, 1, &[7; 100]);
        let sent = [
            PREFACE.to_vec(),
            of(4, 0, 0, &[]),
            of(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &padded),
            data.clone(),
            of(HEADERS, END_STREAM, 3, &[0x82, 0x86]),
            of(CONTINUATION, END_HEADERS, 3, &[0x84]),
            of(HEADERS, END_HEADERS, 5, b"\x82\x86\x84\x00\x01X\x00"),
            data.clone(),
            of(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01x\x01y"),
        ]
        .concat();
        let expected = [
            PREFACE.to_vec(),
            of(4, 0, 0, &[]),
            of(HEADERS, END_HEADERS, 1, full),
            data.clone(),
            of(HEADERS, END_HEADERS | END_STREAM, 3, full),
            of(HEADERS, END_HEADERS, 5, &[0x82, 0x86, 0x84]),
            data,
            of(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01x\x01y"),
        ]
        .concat();
        for piece in [1, 2, 3, 7, 50, sent.len()] {
            assert_eq!(passed(&sent, piece), (expected.clone(), vec![5]), "in pieces of {piece}");
        }
    }

    #[test]
    fn large_blocks_are_cut_into_frames() {
        let mut block = vec![0x82, 0x86, 0x84];
        super::super::hpack::encode(b"x", &[b'v'; 40_000], &mut block);
        let mut parts = block.chunks(10_000);
        let mut sent = [PREFACE.to_vec(), of(HEADERS, 0, 1, parts.next().unwrap())].concat();
        parts.for_each(|part| sent.extend(of(CONTINUATION, 0, 1, part)));
        sent.extend(of(CONTINUATION, END_HEADERS, 1, &[]));
        let (got, _) = passed(&sent, 1000);
        let mut rest = &got[PREFACE.len()..];
        let mut lengths = Vec::new();
        while let Some((kind, flags, _, length)) = frame(rest) {
            lengths.push((kind, flags, length));
            rest = &rest[FRAME_HEAD + length..];
        }
        assert_eq!(
            lengths.iter().map(|(kind, flags, _)| (*kind, *flags)).collect::<Vec<_>>(),
            [(1, 0), (9, 0), (9, 4)]
        );
        assert!(lengths.iter().all(|(.., length)| *length <= FRAME_BYTES));
    }

    #[test]
    fn what_cannot_be_followed_ends_the_connection() {
        let headers = |flags| of(HEADERS, flags, 1, &[0x82]);
        for sent in [
            of(CONTINUATION, END_HEADERS, 1, &[]),
            [headers(0), of(0, 0, 1, &[])].concat(),
            [headers(0), headers(0)].concat(),
            [headers(0), of(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            [headers(0), of(CONTINUATION, 0, 1, &[]).repeat(limits::H2_HEAD_FRAMES)].concat(),
            [headers(0), of(CONTINUATION, 0, 1, &[0; FRAME_BYTES]).repeat(20)].concat(),
            of(HEADERS, END_HEADERS | PADDED, 1, &[5, 0]),
            of(HEADERS, END_HEADERS, 1, &[0xff]),
            of(HEADERS, END_HEADERS, 1, &[0; FRAME_BYTES + 1]),
        ] {
            let (got, _) = passed(&[PREFACE, &sent, &sent].concat(), 100);
            assert_eq!(got, [PREFACE, CORRUPT].concat());
        }
    }
}
