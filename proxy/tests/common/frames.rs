//! HTTP/2 frames by hand, for clients and servers that no library plays.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const INITIAL_WINDOW: u16 = 4;
const LARGEST_WINDOW: u32 = 0x7fff_ffff;
const DEFAULT_WINDOW: i64 = 65_535;

/// `:status: 200`.
pub(crate) const OK: &[u8] = &[0x88];

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(crate) fn setting(name: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// Settings and a window update after which the other side may send as much as it likes.
pub(crate) fn all_windows_open() -> Vec<u8> {
    let more = LARGEST_WINDOW - DEFAULT_WINDOW as u32;
    [setting(INITIAL_WINDOW, LARGEST_WINDOW), frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes())].concat()
}

/// A field with a name of HPACK's static table, or of its own, as a literal that is not indexed.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    match name {
        ":authority" => [vec![0x01], text(value)].concat(),
        ":path" => [vec![0x04], text(value)].concat(),
        _ => [vec![0x00], text(name), text(value)].concat(),
    }
}

/// The head of `GET http://api<path>`.
pub(crate) fn get(path: &str) -> Vec<u8> {
    [vec![0x82, 0x86], field(":path", path), field(":authority", "api")].concat()
}

/// The head of `POST http://api<path>`.
pub(crate) fn post(path: &str) -> Vec<u8> {
    [vec![0x83, 0x86], field(":path", path), field(":authority", "api")].concat()
}

pub(crate) fn read_frame(stream: &mut TcpStream) -> std::io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Ok(Frame { kind: head[3], flags: head[4], stream: id, payload })
}

/// Sends as much on every stream as flow control lets it, and reads what it must for that.
pub(crate) struct Pump {
    pub(crate) stream: TcpStream,
    initial: i64,
    connection: i64,
    /// Window and what is left of the share of each.
    streams: BTreeMap<u32, (i64, i64)>,
    /// Bytes of each DATA frame, at most.
    pub(crate) piece: usize,
    /// Bytes of each stream, at most: else the first ones take the whole window of the connection.
    pub(crate) share: i64,
}

impl Pump {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            initial: DEFAULT_WINDOW,
            connection: DEFAULT_WINDOW,
            streams: BTreeMap::new(),
            piece: 16_384,
            share: 131_072,
        }
    }

    pub(crate) fn open(&mut self, stream: u32) {
        self.streams.insert(stream, (self.initial, self.share));
    }

    /// Until the connection breaks. `on_headers` is asked for the frames that a head of the other side is answered with.
    pub(crate) fn run(self, on_headers: impl Fn(u32) -> Vec<u8>) {
        self.run_with(on_headers, |_| {});
    }

    /// The same, answering nothing and showing every frame.
    pub(crate) fn run_watching(self, watch: impl Fn(&Frame)) {
        self.run_with(|_| Vec::new(), watch);
    }

    fn run_with(mut self, on_headers: impl Fn(u32) -> Vec<u8>, watch: impl Fn(&Frame)) {
        loop {
            let Ok(frame) = read_frame(&mut self.stream) else { return };
            watch(&frame);
            let number = || frame.payload.last_chunk().map_or(0, |last| i64::from(u32::from_be_bytes(*last)));
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.settings(&frame.payload),
                WINDOW_UPDATE if frame.stream == 0 => self.connection += number(),
                WINDOW_UPDATE => {
                    self.streams.entry(frame.stream).and_modify(|(window, _)| *window += number());
                }
                RST_STREAM => drop(self.streams.remove(&frame.stream)),
                HEADERS => {
                    let answer = on_headers(frame.stream);
                    if !answer.is_empty() {
                        let _ = self.stream.write_all(&answer);
                        self.open(frame.stream);
                    }
                }
                _ => {}
            }
            if self.send().is_err() {
                return;
            }
        }
    }

    fn settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            if u16::from_be_bytes([setting[0], setting[1]]) == INITIAL_WINDOW {
                let initial = i64::from(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
                self.streams.values_mut().for_each(|(window, _)| *window += initial - self.initial);
                self.initial = initial;
            }
        }
        let _ = self.stream.write_all(&frame(SETTINGS, ACK, 0, &[]));
    }

    fn send(&mut self) -> std::io::Result<()> {
        for (stream, (window, share)) in &mut self.streams {
            while *window > 0 && *share > 0 && self.connection > 0 {
                let room = usize::try_from((*window).min(*share).min(self.connection)).unwrap();
                let length = self.piece.min(room);
                self.stream.write_all(&frame(DATA, 0, *stream, &vec![b'x'; length]))?;
                for room in [&mut *window, &mut *share, &mut self.connection] {
                    *room -= length as i64;
                }
            }
        }
        Ok(())
    }
}
