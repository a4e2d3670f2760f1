//! Request heads: parsed strictly, judged, and forwarded byte for byte as they came.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::{Header, Status};
use policy::{Head, HttpVersion, RequestBody};

use super::body::Framing;
use super::fields::{Edits, Hop, Sender, tokens};
use super::scan::Plausible;
use crate::gate::Subject;
use crate::limits;
use crate::refusal::Refusal;

/// A request head that can be read in one way only.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// What is forwarded: as it came, but for fields of this connection only.
    pub(crate) forwarded: Bytes,
    method: Bytes,
    /// As it came: judged. An absolute one has an authority before its path.
    target: Bytes,
    path: Bytes,
    host: Bytes,
    /// The forwarded fields, for policy.
    headers: HeaderMap,
    /// Where the body ends; never [`Framing::UntilClose`].
    pub(crate) framing: Framing,
    /// The client goes on after this request.
    pub(crate) keep_alive: bool,
    /// HTTP/1.0.
    pub(crate) is_http10: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// The client offers to go on with another protocol, and the offer is forwarded.
    pub(crate) offers_upgrade: bool,
}

impl Plausible for RequestHead {
    const TAKES_BARE_LF: bool = false;

    fn plausible(bytes: &[u8]) -> bool {
        let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        !matches!(request.parse_with_uninit_headers(bytes, &mut fields), Err(error) if error != httparse::Error::TooManyHeaders)
    }
}

/// The fields that decide how a request is forwarded, beside those that every version has.
#[derive(Default)]
struct Special<'a> {
    upgrade: Option<&'a [u8]>,
    te: Option<&'a [u8]>,
    /// Keep-Alive, Proxy-Connection or HTTP2-Settings.
    connection_only: bool,
}

impl RequestHead {
    /// Parses a complete head, from the method to the empty line.
    pub(crate) fn parse(raw: Bytes) -> Result<Self, Refusal> {
        let mut fields = [const { MaybeUninit::uninit() }; limits::HEAD_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(&raw, &mut fields) {
            Ok(Status::Complete(length)) if length == raw.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
            _ => return Err(Refusal::Malformed("Invalid request head")),
        }
        let invalid = Refusal::Malformed("Invalid request line");
        let (Some(method), Some(text), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(invalid);
        };
        let fields = &*request.headers;
        let is_http10 = minor == 0;
        let mut head =
            Head::new(if is_http10 { HttpVersion::Http10 } else { HttpVersion::Http11 }, method, text);
        let special = Special::find(fields, &mut head)?;
        let admitted = head.admit()?;
        let framing = match admitted.body {
            RequestBody::Length(length) => Framing::Length(length),
            RequestBody::Chunked => Framing::Chunked,
        };
        let hop = Hop::parse(fields, Sender::Client)?;
        let offers_upgrade = special.is_websocket_offer(&hop, framing, is_http10);
        let (edits, headers) = split(&raw, fields, &special, &hop, offers_upgrade)?;
        Ok(Self {
            method: raw.slice_ref(method.as_bytes()),
            target: raw.slice_ref(text.as_bytes()),
            path: part(&raw, admitted.path),
            host: part(&raw, admitted.host),
            forwarded: edits.apply(raw.clone()),
            headers,
            framing,
            keep_alive: if is_http10 { hop.keep_alive && !hop.close } else { !hop.close },
            is_http10,
            expects_continue: admitted.expects_continue,
            offers_upgrade,
        })
    }

    /// What policy looks at.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            method: text(&self.method),
            target: text(&self.target),
            host: text(&self.host),
            headers: &self.headers,
        }
    }

    /// Method, path and host, for the record.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        [&self.method, &self.path, &self.host]
    }

    /// `HTTP/1.0` or `HTTP/1.1`.
    pub(crate) fn protocol(&self) -> &'static str {
        if self.is_http10 { "HTTP/1.0" } else { "HTTP/1.1" }
    }

    /// Whether the response has no body whatever its fields say.
    pub(crate) fn is_head(&self) -> bool {
        &self.method[..] == b"HEAD"
    }
}

/// A piece of the head, or a text that does not stand in it.
fn part(raw: &Bytes, piece: &str) -> Bytes {
    let (start, own) = (raw.as_ptr() as usize, piece.as_ptr() as usize);
    if piece.is_empty() || own < start || own >= start + raw.len() {
        return Bytes::copy_from_slice(piece.as_bytes());
    }
    raw.slice_ref(piece.as_bytes())
}

/// Only pieces that were found to be UTF-8 get here.
fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl<'a> Special<'a> {
    /// Shows every field to `head`, too.
    fn find(fields: &[Header<'a>], head: &mut Head<'a>) -> Result<Self, Refusal> {
        let mut special = Self::default();
        for field in fields {
            let place = match field.name.len() {
                2 if field.name.eq_ignore_ascii_case("te") => &mut special.te,
                7 if field.name.eq_ignore_ascii_case("upgrade") => &mut special.upgrade,
                10 if field.name.eq_ignore_ascii_case("keep-alive") => {
                    special.connection_only = true;
                    continue;
                }
                16 if field.name.eq_ignore_ascii_case("proxy-connection") => {
                    special.connection_only = true;
                    continue;
                }
                14 if field.name.eq_ignore_ascii_case("http2-settings") => {
                    special.connection_only = true;
                    continue;
                }
                _ => {
                    head.field(field.name, field.value)?;
                    continue;
                }
            };
            if place.replace(field.value).is_some() {
                return Err(Refusal::Malformed("Repeated field"));
            }
        }
        Ok(special)
    }

    /// Only WebSocket, like Cilium. What follows a switch to HTTP/2 would be requests that nobody judges, so the offer
    /// of any other protocol is not forwarded, as RFC 9110 section 7.8 lets a server ignore it.
    fn is_websocket_offer(&self, hop: &Hop, framing: Framing, is_http10: bool) -> bool {
        let is_websocket = self.upgrade.is_some_and(|value| {
            let mut protocols = tokens(value);
            protocols.next().is_some_and(|first| first.eq_ignore_ascii_case(b"websocket"))
                && protocols.next().is_none()
        });
        is_websocket && hop.upgrade && framing == Framing::Length(0) && !is_http10
    }

    fn is_te_trailers(&self) -> bool {
        self.te.is_some_and(|value| value.eq_ignore_ascii_case(b"trailers"))
    }
}

/// What is changed on the way, and the fields that are left: those are judged.
fn split(
    raw: &Bytes,
    fields: &[Header<'_>],
    special: &Special<'_>,
    hop: &Hop,
    offers_upgrade: bool,
) -> Result<(Edits, HeaderMap), Refusal> {
    let te_stays = special.te.is_none() || special.is_te_trailers();
    let upgrade_stays = offers_upgrade || (special.upgrade.is_none() && !hop.upgrade);
    let unchanged = te_stays && upgrade_stays && !special.connection_only && !hop.has_named();
    let mut edits = Edits::default();
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let leaves = !unchanged
            && (is("connection")
                || is("keep-alive")
                || is("proxy-connection")
                || is("http2-settings")
                || (is("upgrade") && !offers_upgrade)
                || (is("te") && !te_stays)
                || hop.names(field.name));
        if leaves {
            edits.leave_out(raw, field);
            continue;
        }
        let invalid = Refusal::Malformed("Invalid field");
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| invalid)?;
        let value = HeaderValue::from_maybe_shared(raw.slice_ref(field.value)).map_err(|_| invalid)?;
        headers.try_append(name, value).map_err(|_| Refusal::HeadTooLarge)?;
    }
    if !unchanged {
        edits.put_in(hop.rest(offers_upgrade, special.is_te_trailers()));
    }
    Ok((edits, headers))
}
