//! Where the body of a request ends (RFC 9112 sections 6 and 7), found while its bytes pass through
//! unchanged.

use crate::limits;
use crate::refusal::{Refusal, is_refused_trailer};

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes; 0: there is none.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// At the end of the connection; responses only.
    UntilClose,
}

/// The body of a request under way. Strict: what two parsers could read in two ways is an error.
#[derive(Debug)]
pub(crate) struct Body(State);

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(Chunked),
}

impl Body {
    /// A body that begins now.
    pub(crate) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(length) => State::Length(length),
            // No request has it (RFC 9112 section 6.3): without a length it has no body.
            Framing::UntilClose => State::Length(0),
            Framing::Chunked => State::Chunked(Chunked::default()),
        })
    }

    /// Whether it has ended.
    pub(crate) fn is_done(&self) -> bool {
        match &self.0 {
            State::Length(left) => *left == 0,
            State::Chunked(chunked) => matches!(chunked.at, At::Done),
        }
    }

    /// How many of these bytes, from the first on, belong to it.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match &mut self.0 {
            State::Length(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                Ok(taken)
            }
            State::Chunked(chunked) => chunked.advance(bytes),
        }
    }
}

/// Place within a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    SizeStart,
    Size,
    Extension,
    /// After the CR of a size line.
    SizeEnd,
    Data,
    /// After the data of a chunk.
    DataEnd,
    DataEndLf,
    /// Before the first byte of a trailer line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// After the CR of the last empty line.
    LastLf,
    Done,
}

/// A chunked body under way.
#[derive(Debug)]
struct Chunked {
    at: At,
    /// Size of the chunk, while it is read; then what is left of it.
    size: u64,
    /// Digits of the size so far, zeros too.
    digits: u32,
    extension_bytes: usize,
    trailer_bytes: usize,
    /// Start of the name of a trailer field, lower case; longer names are none of those that are refused.
    name: [u8; LONGEST_REFUSED_TRAILER],
    name_length: usize,
}

/// As many as 64 bits have.
pub(super) const MAX_SIZE_DIGITS: u32 = 16;

const LONGEST_REFUSED_TRAILER: usize = 18;

impl Default for Chunked {
    fn default() -> Self {
        Self {
            at: At::SizeStart,
            size: 0,
            digits: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            name: [0; LONGEST_REFUSED_TRAILER],
            name_length: 0,
        }
    }
}

impl Chunked {
    fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut position = 0;
        while position < bytes.len() && self.at != At::Done {
            if self.at == At::Data {
                let there = bytes.len() - position;
                let taken = usize::try_from(self.size).map_or(there, |left| left.min(there));
                position += taken;
                self.size -= taken as u64;
                if self.size == 0 {
                    self.at = At::DataEnd;
                }
            } else {
                self.at = self.step(bytes[position])?;
                position += 1;
            }
        }
        Ok(position)
    }

    fn step(&mut self, byte: u8) -> Result<At, Refusal> {
        match (self.at, byte) {
            (At::SizeStart | At::Size, digit) if digit.is_ascii_hexdigit() => self.size_digit(digit),
            (At::Size | At::Extension, b'\r') => Ok(At::SizeEnd),
            (At::Size, b';') => Ok(At::Extension),
            (At::Extension, b'\t' | 0x20..=0x7e) => self.extension_byte(),
            (At::SizeEnd, b'\n') if self.size == 0 => Ok(At::TrailerStart),
            (At::SizeEnd, b'\n') => Ok(At::Data),
            (At::DataEnd, b'\r') => Ok(At::DataEndLf),
            (At::DataEndLf, b'\n') => Ok(At::SizeStart),
            (At::TrailerStart, b'\r') => Ok(At::LastLf),
            (At::LastLf, b'\n') => Ok(At::Done),
            (At::TrailerStart | At::TrailerName, byte) => self.trailer_name(byte),
            (At::TrailerValue, b'\r') => Ok(At::TrailerLf),
            (At::TrailerValue, b'\t' | 0x20..=0x7e | 0x80..) => self.trailer_byte(At::TrailerValue),
            (At::TrailerLf, b'\n') => Ok(At::TrailerStart),
            _ => Err(Refusal::Malformed("Invalid chunked body")),
        }
    }

    fn size_digit(&mut self, digit: u8) -> Result<At, Refusal> {
        self.digits = if self.at == At::SizeStart { 1 } else { self.digits + 1 };
        if self.digits > MAX_SIZE_DIGITS {
            return Err(Refusal::Malformed("Chunk too large"));
        }
        let value = char::from(digit).to_digit(16).unwrap_or_default();
        self.size = (self.size << 4) | u64::from(value);
        Ok(At::Size)
    }

    fn extension_byte(&mut self) -> Result<At, Refusal> {
        self.extension_bytes += 1;
        if self.extension_bytes > limits::CHUNK_EXTENSION_BYTES {
            return Err(Refusal::Malformed("Too many chunk extensions"));
        }
        Ok(At::Extension)
    }

    fn trailer_byte(&mut self, next: At) -> Result<At, Refusal> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > limits::TRAILER_BYTES {
            return Err(Refusal::Malformed("Trailers too large"));
        }
        Ok(next)
    }

    fn trailer_name(&mut self, byte: u8) -> Result<At, Refusal> {
        if self.at == At::TrailerStart {
            self.name_length = 0;
        }
        if byte == b':' && self.name_length > 0 {
            let name = self.name.get(..self.name_length);
            if name.is_some_and(is_refused_trailer) {
                return Err(Refusal::Malformed("Field not allowed in trailers"));
            }
            return self.trailer_byte(At::TrailerValue);
        }
        if !is_token_byte(byte) {
            return Err(Refusal::Malformed("Invalid trailer field"));
        }
        if let Some(place) = self.name.get_mut(self.name_length) {
            *place = byte.to_ascii_lowercase();
        }
        self.name_length += 1;
        self.trailer_byte(At::TrailerName)
    }
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the body in `bytes`, fed in pieces of every size; None: incomplete.
    fn length(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let fed = |piece: usize| {
            let mut body = Body::new(Framing::Chunked);
            let mut total = 0;
            for part in bytes.chunks(piece) {
                total += body.advance(part)?;
            }
            Ok(body.is_done().then_some(total))
        };
        let whole = fed(bytes.len().max(1));
        for piece in 1..bytes.len().min(8) {
            assert_eq!(fed(piece), whole, "in pieces of {piece}");
        }
        whole
    }

    #[test]
    fn finds_the_end_of_chunked_bodies() {
        assert_eq!(length(b"0\r\n\r\nGET"), Ok(Some(5)));
        assert_eq!(length(b"3\r\nabc\r\n0\r\n\r\nG"), Ok(Some(13)));
        assert_eq!(length(b"3;x=y\r\nabc\r\n00a\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"), Ok(Some(48)));
        assert_eq!(length(b"3\r\nabc\r\n0\r\n"), Ok(None));
        assert_eq!(length(b"5\r\na"), Ok(None));
    }

    #[test]
    fn refuses_what_parsers_disagree_about() {
        for body in [
            &b"0x3\r\nabc\r\n"[..],
            b"+3\r\nabc",
            b"0_2e\r\n",
            b" 3\r\nabc",
            b"3 \r\nabc",
            b"\r\nabc",
            b"3\nabc\r\n",
            b"10000000000000003\r\nabc",
            b"3;x\nyy\r\nabc",
            b"2\r\r;a\r\nab",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"0\r\n\n",
            b"0\r\n X: 1\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\n: 1\r\n\r\n",
            b"0\r\nX: \x00\r\n\r\n",
            b"0\r\nContent-Length: 9\r\n\r\n",
            b"0\r\nHOST: z\r\n\r\n",
            b"-1\r\n",
            b"3;\x00\r\nabc",
            b"g\r\n",
            b"00000000000000003\r\nabc",
        ] {
            assert!(length(body).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn bounds_extensions_and_trailers() {
        let extensions = |total: usize| {
            let chunk = [&b"1;"[..], &vec![b'x'; 1000], b"\r\na\r\n"].concat();
            length(&[chunk.repeat(total / 1000), b"0\r\n\r\n".to_vec()].concat())
        };
        assert!(extensions(16_000).unwrap().is_some());
        assert_eq!(extensions(17_000), Err(Refusal::Malformed("Too many chunk extensions")));
        let trailers = [&b"0\r\nX: "[..], &vec![b'x'; limits::TRAILER_BYTES]].concat();
        assert_eq!(length(&trailers), Err(Refusal::Malformed("Trailers too large")));
    }

    #[test]
    fn counts_lengths() {
        let mut body = Body::new(Framing::Length(5));
        assert_eq!(body.advance(b"abc"), Ok(3));
        assert!(!body.is_done());
        assert_eq!(body.advance(b"abc"), Ok(2));
        assert!(body.is_done());
        assert!(Body::new(Framing::Length(0)).is_done());
    }
}
