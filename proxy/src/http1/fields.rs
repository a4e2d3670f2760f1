//! Fields that are about one connection only (RFC 9110 section 7.6.1), and which lines of a head they touch.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::limits;
use crate::refusal::Refusal;

/// What `Connection` fields say, and what follows for the other fields.
#[derive(Debug, Default)]
pub(crate) struct Hop {
    /// `close`.
    pub(crate) close: bool,
    /// `keep-alive`.
    pub(crate) keep_alive: bool,
    /// `upgrade`.
    pub(crate) upgrade: bool,
    /// `te`.
    te: bool,
    /// Other fields that are named: for this connection only.
    named: Vec<String>,
    /// A server names a field that every recipient needs. It stays, and its name goes.
    names_others: bool,
}

/// Who sent a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// Fields that every recipient needs: a sender that names one of them wants to hide it from the next.
const NEVER_NAMED: [&str; 6] =
    ["host", "content-length", "transfer-encoding", "expect", "trailer", "authorization"];

impl Hop {
    /// Reads all `Connection` fields of a head.
    pub(crate) fn parse(fields: &[httparse::Header<'_>], sender: Sender) -> Result<Self, Refusal> {
        let mut hop = Self::default();
        for field in fields.iter().filter(|field| field.name.eq_ignore_ascii_case("connection")) {
            for option in tokens(field.value) {
                hop.option(option, sender)?;
            }
        }
        Ok(hop)
    }

    fn option(&mut self, option: &[u8], sender: Sender) -> Result<(), Refusal> {
        let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("close") => self.close = true,
            () if is("keep-alive") => self.keep_alive = true,
            () if is("upgrade") => self.upgrade = true,
            () if is("te") => self.te = true,
            () if sender == Sender::Server && !names_a_field(option) => self.names_others = true,
            () if NEVER_NAMED.iter().any(|name| is(name)) => {
                return Err(Refusal::Malformed("Connection names a field that is not its own"));
            }
            () if self.named.len() == limits::CONNECTION_OPTIONS => return Err(Refusal::HeadTooLarge),
            () => {
                let name =
                    std::str::from_utf8(option).map_err(|_| Refusal::Malformed("Invalid Connection"))?;
                self.named.push(name.to_ascii_lowercase());
            }
        }
        Ok(())
    }

    /// Whether a field of this name is named as one for this connection only.
    pub(crate) fn names(&self, field: &str) -> bool {
        self.named.iter().any(|name| field.eq_ignore_ascii_case(name))
    }

    /// What is left of `Connection` when named fields are taken out and, perhaps, an upgrade or TE too.
    pub(crate) fn rest(&self, upgrade: bool, te: bool) -> Option<String> {
        let options = [
            (self.close, "close"),
            (self.keep_alive, "keep-alive"),
            (self.upgrade && upgrade, "upgrade"),
            (self.te && te, "TE"),
        ];
        let kept: Vec<&str> = options.iter().filter(|(kept, _)| *kept).map(|(_, option)| *option).collect();
        (!kept.is_empty()).then(|| format!("Connection: {}\r\n", kept.join(", ")))
    }

    /// Whether it names fields.
    pub(crate) fn has_named(&self) -> bool {
        !self.named.is_empty() || self.names_others
    }
}

/// Whether an option is the name of a field that may be taken out.
fn names_a_field(option: &[u8]) -> bool {
    option.is_ascii() && !NEVER_NAMED.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
}

/// Elements of a comma-separated list; empty ones are skipped (RFC 9110 section 5.6.1.2).
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Changes to a head on its way: lines left out, and lines put in at its end.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    left_out: Vec<Range<usize>>,
    put_in: String,
    is_now_http11: bool,
}

impl Edits {
    /// Leaves out the line of this field.
    pub(crate) fn leave_out(&mut self, head: &[u8], field: &httparse::Header<'_>) {
        self.left_out.push(line_of(head, field));
    }

    /// Puts a line in, with its CRLF, before the empty line.
    pub(crate) fn put_in(&mut self, line: Option<String>) {
        self.put_in.push_str(line.as_deref().unwrap_or_default());
    }

    /// Makes the status line of a response one of HTTP/1.1.
    pub(crate) fn say_http11(&mut self) {
        self.is_now_http11 = true;
    }

    /// The head with these changes.
    pub(crate) fn apply(mut self, head: Bytes) -> Bytes {
        if self.left_out.is_empty() && self.put_in.is_empty() && !self.is_now_http11 {
            return head;
        }
        self.left_out.sort_unstable_by_key(|line| line.start);
        let mut edited = BytesMut::with_capacity(head.len() + 64);
        let mut position = 0;
        for line in &self.left_out {
            edited.put_slice(&head[position..line.start]);
            position = line.end;
        }
        let empty_line = head.len() - 2;
        edited.put_slice(&head[position..empty_line]);
        edited.put_slice(self.put_in.as_bytes());
        edited.put_slice(&head[empty_line..]);
        if self.is_now_http11 {
            edited[..HTTP11.len()].copy_from_slice(HTTP11);
        }
        edited.freeze()
    }
}

/// As long as any other version.
const HTTP11: &[u8] = b"HTTP/1.1";

/// Where the line of a field stands in the head that it was parsed from.
fn line_of(head: &[u8], field: &httparse::Header<'_>) -> Range<usize> {
    let start = field.name.as_ptr() as usize - head.as_ptr() as usize;
    let end =
        head[start..].iter().position(|&byte| byte == b'\n').map_or(head.len(), |offset| start + offset + 1);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_leave_out_lines_and_put_one_in() {
        let head =
            Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\nX-Hop: 1\r\nConnection: x-hop, close\r\n\r\n");
        let mut fields = [httparse::EMPTY_HEADER; 4];
        let mut request = httparse::Request::new(&mut fields);
        request.parse(&head).unwrap();
        let hop = Hop::parse(request.headers, Sender::Client).unwrap();
        assert!(hop.close && hop.names("X-HOP") && !hop.names("Host"));
        let mut edits = Edits::default();
        edits.leave_out(&head, &request.headers[1]);
        edits.leave_out(&head, &request.headers[2]);
        edits.put_in(hop.rest(false, false));
        assert_eq!(edits.apply(head.clone()), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(Edits::default().apply(head.clone()), head);
    }

    #[test]
    fn refuses_connection_options_that_hide_what_everybody_needs() {
        let field = |value: &'static str| [httparse::Header { name: "connection", value: value.as_bytes() }];
        for value in ["Host", "close, content-length", "Transfer-Encoding"] {
            assert!(Hop::parse(&field(value), Sender::Client).is_err(), "{value}");
            let hop = Hop::parse(&field(value), Sender::Server).unwrap();
            assert!(hop.has_named() && !hop.names(value), "{value}");
        }
        let hop = Hop::parse(&field("keep-alive, , X-Auth"), Sender::Client);
        assert!(hop.is_ok_and(|hop| hop.names("x-auth")));
    }

    #[test]
    fn bounds_the_options() {
        let parse = |count: usize| {
            let value = "x,".repeat(count);
            let field = httparse::Header { name: "connection", value: value.as_bytes() };
            Hop::parse(&[field], Sender::Client).map(|_| ())
        };
        assert_eq!(parse(limits::CONNECTION_OPTIONS), Ok(()));
        assert_eq!(parse(limits::CONNECTION_OPTIONS + 1), Err(Refusal::HeadTooLarge));
    }
}
