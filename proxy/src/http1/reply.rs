//! Where the body of a response ends, found while its bytes pass. What can be read in one way only
//! is put right on its way: strict clients refuse padded chunk sizes and bare LF, others do not,
//! and all agree on what goes out here.

use bytes::{Bytes, BytesMut};

use super::body::{Framing, MAX_SIZE_DIGITS};
use super::normal::{self, Fault};
use crate::limits;

/// The body of a response under way.
#[derive(Debug)]
pub(super) struct ReplyBody(State);

#[derive(Debug)]
enum State {
    Length(u64),
    UntilClose,
    Chunked(Chunks),
}

/// What becomes of the bytes that were looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// So many of them, from the first on, belong to the body.
    pub(super) taken: usize,
    /// What goes on instead of them; None: they do, as they came.
    pub(super) instead: Option<BytesMut>,
}

impl Passed {
    /// What goes on of `looked_at`.
    pub(super) fn bytes<'a>(&'a self, looked_at: &'a [u8]) -> &'a [u8] {
        self.instead.as_deref().unwrap_or(&looked_at[..self.taken])
    }
}

impl ReplyBody {
    /// A body that begins now.
    pub(super) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(length) => State::Length(length),
            Framing::UntilClose => State::UntilClose,
            Framing::Chunked => State::Chunked(Chunks::default()),
        })
    }

    /// Whether it has ended. One that lasts until the connection closes never has.
    pub(super) fn is_done(&self) -> bool {
        match &self.0 {
            State::Length(left) => *left == 0,
            State::UntilClose => false,
            State::Chunked(chunks) => chunks.at == At::Done,
        }
    }

    /// Looks at what has come.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Passed, Fault> {
        match &mut self.0 {
            State::UntilClose => Ok(Passed { taken: bytes.len(), instead: None }),
            State::Length(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                Ok(Passed { taken, instead: None })
            }
            State::Chunked(chunks) => chunks.advance(bytes),
        }
    }

    /// The server has ended its side. Gives what is left to send if nothing is missing: after the
    /// last chunk only an empty line can be.
    pub(super) fn end(&mut self) -> Option<Bytes> {
        match &mut self.0 {
            State::UntilClose => Some(Bytes::new()),
            State::Length(_) => None,
            State::Chunked(chunks) => chunks.end(),
        }
    }
}

/// Place within a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    SizeStart,
    Size,
    /// After space behind a size.
    Padding,
    Extension,
    /// After the CR of a size line.
    SizeEnd,
    Data,
    /// After the data of a chunk.
    DataEnd,
    DataEndLf,
    /// After the line of the last chunk.
    Trailers,
    /// After the CR of the empty line that ends a body without trailers.
    LastLf,
    /// Within trailers, which pass when they are complete.
    TrailerLines,
    Done,
}

/// What becomes of one byte.
enum Fate {
    Passes,
    LeftOut,
    /// A bare LF.
    LineEnd,
    /// With it the trailers are complete.
    Trailers(Bytes),
}

#[derive(Debug)]
struct Chunks {
    at: At,
    /// Size of the chunk, while it is read; then what is left of it.
    size: u64,
    /// Digits of the size so far, zeros too.
    digits: u32,
    /// Of the line of this chunk.
    extension_bytes: usize,
    trailers: Vec<u8>,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::SizeStart, size: 0, digits: 0, extension_bytes: 0, trailers: Vec::new() }
    }
}

const INVALID: Fault = "Invalid chunked body";

/// Fields that frame a message or say what its connection is for: some clients would merge them
/// into the head.
const NO_TRAILERS: [&str; 5] = ["content-length", "transfer-encoding", "connection", "upgrade", "trailer"];

fn passes_as_trailer(name: &[u8]) -> bool {
    !NO_TRAILERS.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8]) -> Result<Passed, Fault> {
        let mut position = 0;
        let mut instead: Option<BytesMut> = None;
        while position < bytes.len() && self.at != At::Done {
            let start = position;
            let fate = if self.at == At::Data {
                position += self.data(bytes.len() - position);
                Fate::Passes
            } else {
                position += 1;
                self.step(bytes[start])?
            };
            match (&mut instead, fate) {
                (None, Fate::Passes) => {}
                (Some(out), Fate::Passes) => out.extend_from_slice(&bytes[start..position]),
                (_, fate) => {
                    let out = instead.get_or_insert_with(|| BytesMut::from(&bytes[..start]));
                    match fate {
                        Fate::LineEnd => out.extend_from_slice(b"\r\n"),
                        Fate::Trailers(trailers) => out.extend_from_slice(&trailers),
                        Fate::Passes | Fate::LeftOut => {}
                    }
                }
            }
        }
        Ok(Passed { taken: position, instead })
    }

    /// How many of so many bytes are data of this chunk.
    fn data(&mut self, there: usize) -> usize {
        let taken = usize::try_from(self.size).map_or(there, |left| left.min(there));
        self.size -= taken as u64;
        if self.size == 0 {
            self.at = At::DataEnd;
        }
        taken
    }

    fn step(&mut self, byte: u8) -> Result<Fate, Fault> {
        let (next, fate) = match (self.at, byte) {
            (At::SizeStart | At::Size, digit) if digit.is_ascii_hexdigit() => {
                (self.size_digit(digit)?, Fate::Passes)
            }
            (At::SizeStart, b' ' | b'\t') => (At::SizeStart, self.left_out()?),
            (At::Size | At::Padding, b' ' | b'\t') => (At::Padding, self.left_out()?),
            (At::Size | At::Padding, b';') => (At::Extension, Fate::Passes),
            (At::Size | At::Padding | At::Extension, b'\r') => (At::SizeEnd, Fate::Passes),
            (At::Size | At::Padding | At::Extension, b'\n') => (self.after_size(), Fate::LineEnd),
            (At::SizeEnd, b'\n') => (self.after_size(), Fate::Passes),
            (At::Extension, b'\t' | 0x20..=0x7e | 0x80..) => {
                self.left_out()?;
                (At::Extension, Fate::Passes)
            }
            (At::DataEnd, b'\r') => (At::DataEndLf, Fate::Passes),
            (At::DataEnd, b'\n') => (At::SizeStart, Fate::LineEnd),
            (At::DataEndLf, b'\n') => (At::SizeStart, Fate::Passes),
            (At::Trailers, b'\r') => (At::LastLf, Fate::Passes),
            (At::Trailers, b'\n') => (At::Done, Fate::LineEnd),
            (At::LastLf, b'\n') => (At::Done, Fate::Passes),
            (At::Trailers | At::TrailerLines, byte) => self.trailer_byte(byte)?,
            _ => return Err(INVALID),
        };
        self.at = next;
        Ok(fate)
    }

    /// Counts a byte of a size line that means nothing.
    fn left_out(&mut self) -> Result<Fate, Fault> {
        self.extension_bytes += 1;
        if self.extension_bytes > limits::CHUNK_EXTENSION_BYTES {
            return Err("Too many chunk extensions");
        }
        Ok(Fate::LeftOut)
    }

    fn size_digit(&mut self, digit: u8) -> Result<At, Fault> {
        if self.at == At::SizeStart {
            (self.size, self.digits) = (0, 0);
        }
        self.digits += 1;
        if self.digits > MAX_SIZE_DIGITS {
            return Err("A chunk is too large");
        }
        let value = char::from(digit).to_digit(16).unwrap_or_default();
        self.size = (self.size << 4) | u64::from(value);
        Ok(At::Size)
    }

    fn after_size(&mut self) -> At {
        self.extension_bytes = 0;
        if self.size == 0 { At::Trailers } else { At::Data }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<(At, Fate), Fault> {
        self.trailers.push(byte);
        if self.trailers.len() > limits::TRAILER_BYTES {
            return Err("Trailers too large");
        }
        if self.trailers.ends_with(b"\n\r\n") || self.trailers.ends_with(b"\n\n") {
            return Ok((At::Done, Fate::Trailers(self.whole_trailers()?)));
        }
        Ok((At::TrailerLines, Fate::LeftOut))
    }

    fn whole_trailers(&self) -> Result<Bytes, Fault> {
        normal::trailers(&self.trailers, passes_as_trailer)
    }

    fn end(&mut self) -> Option<Bytes> {
        let rest = match self.at {
            At::Trailers => Bytes::from_static(b"\r\n"),
            At::LastLf => Bytes::from_static(b"\n"),
            At::TrailerLines if self.trailers.ends_with(b"\n") => self.whole_trailers().ok()?,
            _ => return None,
        };
        self.at = At::Done;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes out of a chunked body, fed in pieces of every size; None: it is not complete.
    fn passed(bytes: &[u8]) -> Result<Option<String>, Fault> {
        let fed = |piece: usize| {
            let mut body = ReplyBody::new(Framing::Chunked);
            let mut out = Vec::new();
            for part in bytes.chunks(piece) {
                let Passed { taken, instead } = body.advance(part)?;
                out.extend_from_slice(instead.as_deref().unwrap_or(&part[..taken]));
            }
            Ok(body.is_done().then(|| String::from_utf8_lossy(&out).into_owned()))
        };
        let whole = fed(bytes.len().max(1));
        for piece in 1..bytes.len().min(8) {
            assert_eq!(fed(piece), whole, "in pieces of {piece}");
        }
        whole
    }

    #[test]
    fn what_is_regular_passes_as_it_came() {
        let regular = b"3;x=y\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n";
        let mut body = ReplyBody::new(Framing::Chunked);
        assert_eq!(body.advance(regular), Ok(Passed { taken: regular.len(), instead: None }));
        assert!(body.is_done());
    }

    #[test]
    fn padding_line_ends_and_trailers_are_put_right_in_pieces_of_every_size() {
        let right = |bytes: &[u8]| passed(bytes).unwrap().unwrap();
        assert_eq!(right(b"3  \r\nabc\r\n 0\t\n\r\nnext"), "3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(right(b"3\nabc\n0\n\nnext"), "3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(right(b"0\r\nX : a\n b\r\nTrailer: c\r\n d\r\nY:\r\n\nnext"), "0\r\nX: a b\r\nY:\r\n\r\n");
        assert_eq!(passed(b"3\r\nabc\r\n0\r\nX: a\r\n"), Ok(None));
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        for body in [
            &b"0x3\r\nabc\r\n"[..],
            b"+3\r\nabc",
            b"3 3\r\nabc",
            b"\r\nabc",
            b"10000000000000003\r\nabc",
            b"2\r\r;a\r\nab",
            b"3\r\nabcd\r\n",
            b"0\r\n X: 1\r\n\r\n",
            b"0\r\n: 1\r\n\r\n",
            b"0\r\nX: \x00\r\n\r\n",
            b"0\r\n\rX: 1\r\n\r\n",
            b"3;\x00\r\nabc",
            b"g\r\n",
        ] {
            assert!(passed(body).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn extensions_are_bounded_for_each_chunk_and_trailers_in_all() {
        let chunk = [&b"1;"[..], &vec![b'x'; 1000], b"\r\na\r\n"].concat();
        assert!(passed(&[chunk.repeat(20), b"0\r\n\r\n".to_vec()].concat()).unwrap().is_some());
        let long = [&b"1;"[..], &vec![b'x'; limits::CHUNK_EXTENSION_BYTES + 1]].concat();
        assert_eq!(passed(&long), Err("Too many chunk extensions"));
        let trailers = [&b"0\r\nX: "[..], &vec![b'x'; limits::TRAILER_BYTES]].concat();
        assert_eq!(passed(&trailers), Err("Trailers too large"));
    }

    #[test]
    fn an_end_after_the_last_chunk_is_the_end_of_the_body() {
        let end = |bytes: &[u8]| {
            let mut body = ReplyBody::new(Framing::Chunked);
            body.advance(bytes).unwrap();
            body.end()
        };
        assert_eq!(end(b"0\r\n").as_deref(), Some(&b"\r\n"[..]));
        assert_eq!(end(b"0\r\n\r").as_deref(), Some(&b"\n"[..]));
        assert_eq!(end(b"0\r\nX: a\r\n").as_deref(), Some(&b"X: a\r\n\r\n"[..]));
        for missing in [&b"0"[..], b"0\r", b"1\r\na\r\n", b"1\r\na", b"0\r\nX: a", b""] {
            assert_eq!(end(missing), None, "{missing:?}");
        }
    }
}
