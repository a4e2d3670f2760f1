//! Heads of a client, before `h2` gets them. `h2` ends the whole connection for most of what can be
//! wrong with a field, and says nothing of the request; RFC 9113 section 8.1.1 asks for the end of
//! the stream only. So blocks are decoded here: a good head is passed on with every field in full,
//! a malformed one as an empty request whose fault stands beside it.

use bytes::Bytes;
use http::Method;
use http::uri::{Authority, PathAndQuery, Scheme};

use super::hpack::{Corrupt, Decoder, encode};
use crate::limits;
use crate::record::clip;
use crate::refusal::Refusal;

/// A request that is refused for its head, and what is known of it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) stream: u32,
    pub(super) refusal: Refusal,
    /// Method, path and authority.
    pub(super) texts: [Bytes; 3],
    pub(super) is_grpc: bool,
}

/// What stands for a malformed request, for `h2`: the answer is sent on its stream.
const NOTHING: &[u8] = &[0x82, 0x86, 0x84];

/// What stands for malformed trailers: a field that no message of HTTP/2 may have, for which `h2`
/// resets the stream.
const MALFORMED: &[u8] = b"\x00\x0aconnection\x05close";

/// One block, as it is decoded.
#[derive(Debug, Default)]
struct Head {
    /// In full.
    block: Vec<u8>,
    size: usize,
    problem: Option<&'static str>,
    method: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    /// A field that is none of these has come.
    fields: bool,
    content_length: Option<Vec<u8>>,
    is_grpc: bool,
}

/// Decodes the head of a request on a new stream. Gives the block for `h2`.
pub(super) fn request(
    decoder: &mut Decoder,
    block: &[u8],
    stream: u32,
    ends: bool,
) -> Result<(Vec<u8>, Option<Fault>), Corrupt> {
    let mut head = Head::default();
    decoder.decode(block, |name, value| head.field(name, value))?;
    head.check(ends);
    let refusal = match head.problem {
        _ if head.is_too_large() => Refusal::HeadTooLarge,
        Some(problem) => Refusal::Malformed(problem),
        None => return Ok((head.block, None)),
    };
    let text = |text: &Option<Vec<u8>>| text.clone().unwrap_or_default();
    let texts = [text(&head.method), text(&head.path), text(&head.authority)];
    let texts = clip([&texts[0], &texts[1], &texts[2]]);
    Ok((NOTHING.to_vec(), Some(Fault { stream, refusal, texts, is_grpc: head.is_grpc })))
}

/// Decodes trailers.
pub(super) fn trailers(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let mut head = Head { fields: true, ..Head::default() };
    decoder.decode(block, |name, value| head.field(name, value))?;
    Ok(if head.problem.is_some() || head.is_too_large() { MALFORMED.to_vec() } else { head.block })
}

impl Head {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        // As `h2` counts it: its own limit is never met.
        self.size += name.len() + value.len() + 32;
        if !self.is_too_large() {
            encode(name, value, &mut self.block);
        }
        if name.first() == Some(&b':') {
            return self.pseudo(name, value);
        }
        self.fields = true;
        match name {
            _ if !is_name(name) => self.wrong("Invalid field name"),
            _ if !value.iter().all(|byte| is_value_byte(*byte)) => self.wrong("Invalid field value"),
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
                self.wrong("Field of one connection");
            }
            b"te" if value != b"trailers" => self.wrong("TE is not trailers"),
            b"content-length" => self.content_length(value),
            b"content-type" => self.is_grpc = value.starts_with(b"application/grpc"),
            _ => {}
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) {
        if self.fields {
            self.wrong("Pseudo-header field behind others");
        }
        let known = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            _ => return self.wrong("Unknown pseudo-header field"),
        };
        if known.is_some() {
            return self.wrong("Repeated pseudo-header field");
        }
        let length = value.len().min(limits::HEAD_BYTES);
        *known = Some(value[..length].to_vec());
    }

    fn content_length(&mut self, value: &[u8]) {
        let is_number = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
        if !is_number || self.content_length.as_ref().is_some_and(|first| first != value) {
            self.wrong("Invalid Content-Length");
        }
        self.content_length = Some(value.to_vec());
    }

    /// What is wrong with the request as a whole.
    fn check(&mut self, ends: bool) {
        let Some(method) = &self.method else { return self.wrong("No method") };
        let is_connect = method == b"CONNECT";
        if Method::from_bytes(method).is_err() {
            return self.wrong("Invalid method");
        }
        if self.authority.as_ref().is_some_and(|authority| Authority::try_from(&authority[..]).is_err()) {
            return self.wrong("Invalid authority");
        }
        match (&self.scheme, &self.path) {
            (None, None) if is_connect => {}
            (Some(_), _) | (_, Some(_)) if is_connect => self.wrong("CONNECT with a scheme or path"),
            (None, _) => self.wrong("No scheme"),
            (Some(scheme), _) if scheme.is_empty() || Scheme::try_from(&scheme[..]).is_err() => {
                self.wrong("Invalid scheme")
            }
            (_, None) => self.wrong("No path"),
            (_, Some(path)) if !is_path(path) => self.wrong("Invalid request target"),
            _ => {}
        }
        let is_long = |length: &Vec<u8>| length.iter().any(|digit| *digit != b'0');
        if ends && self.content_length.as_ref().is_some_and(is_long) {
            self.wrong("Content-Length without a body");
        }
    }

    fn wrong(&mut self, problem: &'static str) {
        self.problem.get_or_insert(problem);
    }

    fn is_too_large(&self) -> bool {
        self.size > limits::H2_HEADER_LIST_BYTES as usize
    }
}

/// A token without upper case (RFC 9113 section 8.2).
fn is_name(name: &[u8]) -> bool {
    let is_name_byte =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_name_byte)
}

fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// Whether it can be carried. A `#` is cut off by the `http` crate, with what follows: HTTP/1
/// refuses it, too.
fn is_path(path: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/?&=-_.~%:,+".contains(byte);
    path.first() == Some(&b'/') && path.iter().all(is_plain)
        || !path.contains(&b'#') && PathAndQuery::try_from(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "b")];

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        fields.iter().for_each(|(name, value)| encode(name.as_bytes(), value.as_bytes(), &mut block));
        block
    }

    fn refusal(fields: &[(&str, &str)], ends: bool) -> Option<Refusal> {
        let (passed, fault) = request(&mut Decoder::new(), &block(fields), 1, ends).unwrap();
        assert_eq!(passed, if fault.is_some() { NOTHING.to_vec() } else { block(fields) });
        fault.map(|fault| fault.refusal)
    }

    #[test]
    fn good_heads_pass() {
        for more in [
            &[][..],
            &[("x-a", "\u{e9} \t"), ("te", "trailers"), ("content-length", "3"), ("content-length", "3")],
            &[("cookie", "a=1"), ("cookie", "b=2")],
        ] {
            assert_eq!(refusal(&[&GOOD, more].concat(), false), None, "{more:?}");
        }
        assert_eq!(refusal(&[(":method", "CONNECT"), (":authority", "a:1")], false), None);
        assert_eq!(refusal(&[&GOOD[..], &[("content-length", "00")]].concat(), true), None);
    }

    #[test]
    fn malformed_heads_are_refused_with_what_is_known_of_them() {
        for more in [
            ("X-A", "b"),
            ("x a", "b"),
            ("", "b"),
            ("x-a", "b\0"),
            ("x-a", "b\r\nc: d"),
            (":path", "/b"),
            (":method", "GET"),
            (":new", "b"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("content-length", "x"),
            ("content-length", ""),
            ("content-length", "+1"),
        ] {
            let fields = [&GOOD[..], &[more]].concat();
            assert!(matches!(refusal(&fields, false), Some(Refusal::Malformed(_))), "{more:?}");
            let (_, fault) = request(&mut Decoder::new(), &block(&fields), 1, false).unwrap();
            assert_eq!(
                fault.unwrap().texts.map(|text| text.to_vec()),
                [&b"POST"[..], b"/a", b"b"],
                "{more:?}"
            );
            let passed = trailers(&mut Decoder::new(), &block(&[more])).unwrap();
            assert_eq!(passed, MALFORMED, "{more:?} in trailers");
        }
        for (left_out, _) in &GOOD[..3] {
            let fields: Vec<_> = GOOD.into_iter().filter(|(name, _)| name != left_out).collect();
            assert!(matches!(refusal(&fields, false), Some(Refusal::Malformed(_))), "no {left_out}");
        }
        for (name, value) in [
            (":path", ""),
            (":path", "a"),
            (":path", "/#"),
            (":path", "/ "),
            (":method", "A B"),
            (":authority", "a b"),
            (":scheme", ""),
        ] {
            let fields: Vec<_> =
                GOOD.into_iter().map(|(own, good)| (own, if own == name { value } else { good })).collect();
            assert!(matches!(refusal(&fields, false), Some(Refusal::Malformed(_))), "{name} {value:?}");
        }
        let late = [&[("x-a", "b")][..], &GOOD].concat();
        assert!(matches!(refusal(&late, false), Some(Refusal::Malformed(_))));
        assert!(refusal(&[&GOOD[..], &[("content-length", "3")]].concat(), true).is_some());
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let value = "v".repeat(4000);
        let mut bomb = block(&GOOD);
        let at = bomb.len();
        encode(b"x", value.as_bytes(), &mut bomb);
        bomb[at] = 0x40;
        bomb.extend([0xbe; 12_000]);
        let mut head = Head::default();
        Decoder::new().decode(&bomb, |name, value| head.field(name, value)).unwrap();
        assert!(head.block.len() <= limits::H2_HEADER_LIST_BYTES as usize);
        let (passed, fault) = request(&mut Decoder::new(), &bomb, 1, true).unwrap();
        assert_eq!((passed.len(), fault.unwrap().refusal), (NOTHING.len(), Refusal::HeadTooLarge));
    }
}
