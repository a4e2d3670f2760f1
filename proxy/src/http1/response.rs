//! Response heads.

use std::mem::MaybeUninit;

use bytes::Bytes;
use httparse::{Header, Status};
use policy::content_length;

use super::body::Framing;
use super::fields::{Edits, Hop, Sender, tokens};
use super::normal::{self, Fault};
use super::scan::Plausible;
use crate::limits;

/// A response head that can be read in one way only.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// What is forwarded: as it came, but for fields of this connection only and for what strict
    /// parsers refuse.
    pub(crate) forwarded: Bytes,
    /// Status code.
    pub(crate) status: u16,
    /// Where the body ends.
    pub(crate) framing: Framing,
    /// The server goes on after this response.
    pub(crate) keep_alive: bool,
}

/// What of its request a response depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// It was HEAD: no body.
    pub(crate) is_head: bool,
    /// It was HTTP/1.0.
    pub(crate) is_http10: bool,
    /// The connection is to end with this response, whatever the server says.
    pub(crate) close_after: bool,
}

impl Plausible for ResponseHead {
    const TAKES_BARE_LF: bool = true;

    fn plausible(bytes: &[u8]) -> bool {
        let begin = &bytes[..bytes.len().min(5)];
        begin.eq_ignore_ascii_case(&b"HTTP/"[..begin.len()])
    }
}

impl ResponseHead {
    /// Parses a complete head, from the version to the empty line.
    pub(crate) fn parse(raw: Bytes, has_bare_lf: bool, asked: Asked) -> Result<Self, Fault> {
        let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
        if !has_bare_lf && let Some(response) = strictly(&raw, &mut fields) {
            return Self::of(&raw, &response, asked);
        }
        let normal = normal::head(&raw)?;
        let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
        let response = strictly(&normal, &mut fields).ok_or("Invalid head, or too many fields")?;
        Self::of(&normal, &response, asked)
    }

    fn of(raw: &Bytes, response: &httparse::Response<'_, '_>, asked: Asked) -> Result<Self, Fault> {
        let (Some(minor), Some(status)) = (response.version, response.code) else {
            return Err("Invalid status line");
        };
        if status < 100 {
            return Err("Invalid status line");
        }
        let fields = &*response.headers;
        let hop = Hop::parse(fields, Sender::Server).map_err(|_| "Connection names too many fields")?;
        let described = Described::find(fields)?;
        let has_body = !(asked.is_head || status < 200 || status == 204 || status == 304);
        let framing = if has_body { described.framing() } else { Framing::Length(0) };
        let is_final = status >= 200;
        let close = is_final && (asked.close_after || (has_body && described.is_faulty(minor, asked)));
        let persists = if minor == 0 { hop.keep_alive } else { true };
        let keep_alive = persists && !hop.close && !close && framing != Framing::UntilClose;
        let mut edits = Edits::default();
        described.put_right(&mut edits, raw, fields, has_body || asked.is_head || status == 304);
        if has_body && minor == 0 && described.coding == Coding::Chunked {
            edits.say_http11();
        }
        connection_edits(&mut edits, raw, fields, &hop, close);
        Ok(Self { forwarded: edits.apply(raw.clone()), status, framing, keep_alive })
    }

    /// Not the last response to its request.
    pub(crate) fn is_informational(&self) -> bool {
        self.status < 200 && !self.switches_protocols()
    }

    /// What follows is not HTTP any more.
    pub(crate) fn switches_protocols(&self) -> bool {
        self.status == 101
    }
}

/// None: not a head that all parsers read alike.
fn strictly<'h, 'b>(
    raw: &'b [u8],
    fields: &'h mut [MaybeUninit<Header<'b>>],
) -> Option<httparse::Response<'h, 'b>> {
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, raw, fields);
    matches!(parsed, Ok(Status::Complete(length)) if length == raw.len()).then_some(response)
}

/// What Transfer-Encoding says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Coding {
    /// Nothing, or `identity`.
    #[default]
    None,
    /// `chunked`, perhaps over a compression.
    Chunked,
    /// A compression that lasts until the connection closes.
    ToTheEnd,
}

/// What the fields of a response say about its body.
#[derive(Debug, Default)]
struct Described {
    length: Option<u64>,
    coding: Coding,
    /// The same length more than once.
    repeats_length: bool,
    /// Compressed before it is cut into chunks.
    is_compressed: bool,
    /// `identity`, `chunked` more than once, or a list with an empty element.
    odd_coding: bool,
}

impl Described {
    /// A response that frames itself in two ways is refused, as a client might take the other.
    fn find(fields: &[Header<'_>]) -> Result<Self, Fault> {
        let mut found = Self::default();
        let mut codings = Vec::new();
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                found.add_length(field.value)?;
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                codings.extend(tokens(field.value));
                found.odd_coding |=
                    field.value.split(|&byte| byte == b',').any(|part| part.trim_ascii().is_empty());
            }
        }
        found.add_codings(&codings)?;
        Ok(found)
    }

    fn add_length(&mut self, value: &[u8]) -> Result<(), Fault> {
        for part in value.split(|&byte| byte == b',') {
            let length = content_length(part.trim_ascii()).ok_or("Invalid Content-Length")?;
            match self.length.replace(length) {
                None => {}
                Some(other) if other == length => self.repeats_length = true,
                Some(_) => return Err("Two values of Content-Length"),
            }
        }
        Ok(())
    }

    fn add_codings(&mut self, codings: &[&[u8]]) -> Result<(), Fault> {
        const COMPRESSIONS: [&[u8]; 5] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"];
        for coding in codings {
            let is = |name: &[u8]| coding.eq_ignore_ascii_case(name);
            self.coding = match self.coding {
                // Some frameworks say it twice and do it once.
                Coding::Chunked if is(b"chunked") => {
                    self.odd_coding = true;
                    Coding::Chunked
                }
                Coding::None | Coding::ToTheEnd if is(b"chunked") => Coding::Chunked,
                Coding::None if is(b"identity") && codings.len() == 1 => {
                    self.odd_coding = true;
                    Coding::None
                }
                Coding::None | Coding::ToTheEnd if COMPRESSIONS.iter().any(|name| is(name)) => {
                    self.is_compressed = true;
                    Coding::ToTheEnd
                }
                _ => return Err("Invalid Transfer-Encoding"),
            };
        }
        if self.odd_coding && self.is_compressed { Err("Invalid Transfer-Encoding") } else { Ok(()) }
    }

    /// RFC 9112 section 6.3, of a response that has a body.
    fn framing(&self) -> Framing {
        match (self.coding, self.length) {
            (Coding::Chunked, _) => Framing::Chunked,
            (Coding::None, Some(length)) => Framing::Length(length),
            (Coding::ToTheEnd, _) | (Coding::None, None) => Framing::UntilClose,
        }
    }

    /// Whether another party may read the end of the body in another way (RFC 9112 sections 6.1 and
    /// 6.3): nothing may follow on the connection then.
    fn is_faulty(&self, minor: u8, asked: Asked) -> bool {
        self.coding != Coding::None && (self.length.is_some() || minor == 0 || asked.is_http10)
    }

    /// What is not as all parsers expect it is said once and plainly. Without a body, a length is
    /// only that of HEAD and 304 (`may_describe`).
    fn put_right(&self, edits: &mut Edits, raw: &Bytes, fields: &[Header<'_>], may_describe: bool) {
        let bodiless_length = !may_describe && self.length.is_some_and(|length| length > 0);
        let drops_length = self.repeats_length || self.coding != Coding::None || bodiless_length;
        let drops_coding = self.odd_coding || (!may_describe && self.coding != Coding::None);
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if (drops_length && is("content-length")) || (drops_coding && is("transfer-encoding")) {
                edits.leave_out(raw, field);
            }
        }
        if !may_describe {
            return;
        }
        let (length, coding) = (self.length.filter(|_| self.repeats_length), self.coding);
        if coding == Coding::None {
            edits.put_in(length.map(|length| format!("Content-Length: {length}\r\n")));
        } else if drops_coding {
            edits.put_in(Some("Transfer-Encoding: chunked\r\n".to_owned()));
        }
    }
}

/// `Keep-Alive` stays: both connections live and end together, so what the server says of its own holds for ours.
fn connection_edits(edits: &mut Edits, raw: &Bytes, fields: &[Header<'_>], hop: &Hop, close: bool) {
    if !close && !hop.has_named() {
        return;
    }
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("connection") || (close && is("keep-alive")) || hop.names(field.name) {
            edits.leave_out(raw, field);
        }
    }
    edits.put_in(if close { Some("Connection: close\r\n".to_owned()) } else { hop.rest(true, true) });
}
