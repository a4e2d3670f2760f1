//! Response heads.

use std::mem::MaybeUninit;

use bytes::Bytes;
use httparse::{Header, Status};

use super::body::Framing;
use super::fields::{Edits, Hop, tokens};
use super::head::content_length;
use super::scan::Plausible;
use crate::limits;
use crate::refusal::Refusal;

/// A response head that can be read in one way only.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// What is forwarded: as it came, but for fields of this connection only.
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
    /// The connection is to end with this response, whatever the server says.
    pub(crate) close_after: bool,
}

impl Plausible for ResponseHead {
    fn plausible(bytes: &[u8]) -> bool {
        let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut response, bytes, &mut fields)
            .is_ok()
    }
}

impl ResponseHead {
    /// Parses a complete head, from the version to the empty line.
    pub(crate) fn parse(raw: Bytes, asked: Asked) -> Result<Self, Refusal> {
        let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            &raw,
            &mut fields,
        );
        if !matches!(parsed, Ok(Status::Complete(length)) if length == raw.len()) {
            return Err(Refusal::BadGateway);
        }
        let (Some(minor), Some(status)) = (response.version, response.code) else {
            return Err(Refusal::BadGateway);
        };
        let fields = &*response.headers;
        let hop = Hop::parse(fields).map_err(|_| Refusal::BadGateway)?;
        let framing = framing(fields, status, asked)?;
        let persists = if minor == 0 { hop.keep_alive } else { true };
        let keep_alive = persists && !hop.close && !asked.close_after && framing != Framing::UntilClose;
        let is_final = status >= 200;
        let edits = edits(&raw, fields, &hop, is_final && asked.close_after);
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

/// RFC 9112 section 6.3. A response that frames itself in two ways is refused, as a client might take the other.
fn framing(fields: &[Header<'_>], status: u16, asked: Asked) -> Result<Framing, Refusal> {
    let mut length = None;
    let mut codings = Vec::new();
    for field in fields {
        if field.name.eq_ignore_ascii_case("content-length") {
            let value = content_length(field.value).ok_or(Refusal::BadGateway)?;
            if length.replace(value).is_some_and(|other| other != value) {
                return Err(Refusal::BadGateway);
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            codings.extend(tokens(field.value));
        }
    }
    if asked.is_head || status < 200 || status == 204 || status == 304 {
        return Ok(Framing::Length(0));
    }
    match (length, &codings[..]) {
        (Some(length), []) => Ok(Framing::Length(length)),
        (None, []) => Ok(Framing::UntilClose),
        (None, [.., last]) if last.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, _) => Ok(Framing::UntilClose),
        (Some(_), _) => Err(Refusal::BadGateway),
    }
}

/// `Keep-Alive` stays: both connections live and end together, so what the server says of its own holds for ours.
fn edits(raw: &Bytes, fields: &[Header<'_>], hop: &Hop, close: bool) -> Edits {
    let mut edits = Edits::default();
    if !close && !hop.has_named() {
        return edits;
    }
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("connection") || (close && is("keep-alive")) || hop.names(field.name) {
            edits.leave_out(raw, field);
        }
    }
    edits.put_in(if close { Some("Connection: close\r\n".to_owned()) } else { hop.rest(true, true) });
    edits
}
