//! What of a request's head is refused before any rule is asked (RFC 9110, 9112, 9113): the same
//! for both versions of HTTP and for `explain`.

/// A version of HTTP, as far as heads differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0: Host may be missing, and there is no Transfer-Encoding.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2: the authority stands beside the target.
    Http2,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadProblem {
    /// Malformed or ambiguous, and in what.
    Malformed(&'static str),
    /// `Expect` with something else than `100-continue` (RFC 9110 section 10.1.1).
    Expectation,
    /// CONNECT: a tunnel could not be judged.
    Connect,
}

impl HeadProblem {
    /// Status code and reason phrase.
    pub const fn status(self) -> (u16, &'static str) {
        match self {
            Self::Malformed(_) => (400, "Bad Request"),
            Self::Expectation => (417, "Expectation Failed"),
            Self::Connect => (405, "Method Not Allowed"),
        }
    }

    /// In words, for the client too.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Malformed(what) => what,
            Self::Expectation => "Unknown expectation",
            Self::Connect => "CONNECT is not forwarded",
        }
    }
}

/// The parts of a head that decide how it is read.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    version: HttpVersion,
    method: &'a str,
    target: &'a str,
    /// `:authority` of HTTP/2.
    authority: Option<&'a str>,
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    coding: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
}

/// How long the body of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// So many bytes; without Content-Length none, but in HTTP/2, where the stream says it.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// A head that can be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted<'a> {
    /// Path and query, as they came; `*` for the server as a whole.
    pub path: &'a str,
    /// Its authority; empty: it has none.
    pub host: &'a str,
    /// Its body.
    pub body: RequestBody,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

impl<'a> Head<'a> {
    /// Without fields yet.
    pub const fn new(version: HttpVersion, method: &'a str, target: &'a str) -> Self {
        Self {
            version,
            method,
            target,
            authority: None,
            host: None,
            length: None,
            coding: None,
            expect: None,
        }
    }

    /// With `:authority`.
    pub const fn with_authority(mut self, authority: Option<&'a str>) -> Self {
        self.authority = authority;
        self
    }

    /// Looks at one field; each that counts may be there once.
    pub fn field(&mut self, name: &str, value: &'a [u8]) -> Result<(), HeadProblem> {
        let place = match name.len() {
            4 if name.eq_ignore_ascii_case("host") => &mut self.host,
            6 if name.eq_ignore_ascii_case("expect") => &mut self.expect,
            14 if name.eq_ignore_ascii_case("content-length") => &mut self.length,
            17 if name.eq_ignore_ascii_case("transfer-encoding") => &mut self.coding,
            _ => return Ok(()),
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(HeadProblem::Malformed("Repeated field")),
        }
    }

    /// Once every field has been looked at.
    pub fn admit(&self) -> Result<Admitted<'a>, HeadProblem> {
        if self.method == "CONNECT" {
            return Err(HeadProblem::Connect);
        }
        if self.method.is_empty() || !self.method.bytes().all(is_token) {
            return Err(HeadProblem::Malformed("Invalid method"));
        }
        let (path, authority) = self.target()?;
        let host = self.host(authority.or(self.authority))?;
        let body = self.body()?;
        let expects_continue = match self.expect {
            None => false,
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => self.version != HttpVersion::Http10,
            Some(_) => return Err(HeadProblem::Expectation),
        };
        Ok(Admitted { path, host, body, expects_continue })
    }

    /// Path and query, and the authority of an absolute target (RFC 9112 section 3.2).
    fn target(&self) -> Result<(&'a str, Option<&'a str>), HeadProblem> {
        let target = self.target;
        if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#') {
            return Err(HeadProblem::Malformed("Invalid request target"));
        }
        if target.starts_with('/') || (target == "*" && self.method == "OPTIONS") {
            return Ok((target, None));
        }
        let absolute = target.split_once("://").filter(|_| self.version != HttpVersion::Http2);
        let (scheme, rest) = absolute.ok_or(HeadProblem::Malformed("Invalid request target"))?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(HeadProblem::Malformed("Only the http scheme is forwarded"));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || !is_host(authority) {
            return Err(HeadProblem::Malformed("Invalid authority"));
        }
        // Without a path, OPTIONS is about the server as a whole and "?query" has no path to judge:
        // clients do not send it.
        match path {
            "" if self.method != "OPTIONS" => Ok(("/", Some(authority))),
            path if path.starts_with('/') => Ok((path, Some(authority))),
            _ => Err(HeadProblem::Malformed("Absolute target without a path")),
        }
    }

    /// Host: one in HTTP/1.1, and the same as the authority, if both are there (RFC 9112 section
    /// 3.2, 9113 section 8.3.1).
    fn host(&self, authority: Option<&'a str>) -> Result<&'a str, HeadProblem> {
        let field = match self.host.map(std::str::from_utf8) {
            Some(Err(_)) => return Err(HeadProblem::Malformed("Invalid Host")),
            Some(Ok(host)) => Some(host),
            None => None,
        };
        let host = match (authority, field, self.version) {
            (Some(authority), Some(host), _) if !authority.eq_ignore_ascii_case(host) => {
                return Err(HeadProblem::Malformed("Authority and Host differ"));
            }
            (None, None, HttpVersion::Http10) => "",
            (_, None, HttpVersion::Http11) => return Err(HeadProblem::Malformed("No Host")),
            (None, None, HttpVersion::Http2) => return Err(HeadProblem::Malformed("No authority")),
            (Some(authority), _, HttpVersion::Http2) | (Some(authority), None, _) => authority,
            (_, Some(host), _) => host,
        };
        if is_host(host) { Ok(host) } else { Err(HeadProblem::Malformed("Invalid Host")) }
    }

    /// RFC 9112 section 6.3, without its tolerance: one Content-Length of digits, or chunked and
    /// nothing else.
    fn body(&self) -> Result<RequestBody, HeadProblem> {
        match (self.length, self.coding) {
            (None, None) => Ok(RequestBody::Length(0)),
            (Some(_), Some(_)) => Err(HeadProblem::Malformed("Content-Length and Transfer-Encoding")),
            (None, Some(_)) if self.version == HttpVersion::Http10 => {
                Err(HeadProblem::Malformed("Transfer-Encoding in HTTP/1.0"))
            }
            (None, Some(_)) if self.version == HttpVersion::Http2 => {
                Err(HeadProblem::Malformed("Transfer-Encoding in HTTP/2"))
            }
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(RequestBody::Chunked),
            (None, Some(_)) => Err(HeadProblem::Malformed("Unknown Transfer-Encoding")),
            (Some(length), None) => content_length(length)
                .map(RequestBody::Length)
                .ok_or(HeadProblem::Malformed("Invalid Content-Length")),
        }
    }
}

/// Digits only, at most 2^64 - 1.
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether this is `host [":" port]` of RFC 3986 section 3.2, without user information,
/// percent-encoding and the characters that some parsers end a host at. Empty is valid: a target
/// may have no authority.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("", port),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte);
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok() && !port.starts_with('+');
    host.bytes().all(is_host_byte) && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit<'a>(
        version: HttpVersion,
        method: &'a str,
        target: &'a str,
        fields: &[(&str, &'a str)],
    ) -> Result<Admitted<'a>, HeadProblem> {
        let mut head = Head::new(version, method, target);
        for (name, value) in fields {
            head.field(name, value.as_bytes())?;
        }
        head.admit()
    }

    fn parts(
        method: &'static str,
        target: &'static str,
        host: &'static str,
    ) -> Option<(&'static str, &'static str)> {
        let admitted = admit(HttpVersion::Http11, method, target, &[("Host", host)]).ok()?;
        Some((admitted.path, admitted.host))
    }

    #[test]
    fn takes_targets_apart() {
        assert_eq!(parts("GET", "/", "a"), Some(("/", "a")));
        assert_eq!(parts("GET", "//a/b?c=d%20e", ""), Some(("//a/b?c=d%20e", "")));
        assert_eq!(parts("GET", "/\u{e9}?q=\u{e9}", "a"), Some(("/\u{e9}?q=\u{e9}", "a")));
        assert_eq!(parts("OPTIONS", "*", "a"), Some(("*", "a")));
        assert_eq!(parts("GET", "http://a:80/b?c", "A:80"), Some(("/b?c", "A:80")));
        assert_eq!(parts("GET", "HTTP://a", "a"), Some(("/", "a")));
        for target in [
            "*",
            "a",
            "a:80",
            "",
            "http://",
            "http:///x",
            "https://a/",
            "http://u@a/",
            "/a#b",
            "/a b",
            "/\u{7f}",
            "http://a?x",
            "ftp://a/",
            "://a/",
            "http:/a",
        ] {
            assert_eq!(parts("GET", target, "a"), None, "{target}");
        }
        assert_eq!(parts("OPTIONS", "http://a", "a"), None);
        assert_eq!(parts("GET", "http://a/", "b"), None);
        assert_eq!(parts("", "/", "a"), None);
        assert_eq!(parts("GE T", "/", "a"), None);
    }

    #[test]
    fn knows_hosts() {
        for host in ["", "a", "a.b-c_d:8080", "10.0.0.1", "[::1]", "[2001:db8::1]:80", "a:"] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "a@b", "a/b", "a b", "a,b", "a:b", "a:+1", "a:65536", "[::1", "[x]", "[::1]x", "a\\b", "a%41",
            "a:1:2",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn versions_differ_in_what_they_need() {
        use HttpVersion::{Http2, Http10, Http11};
        let malformed = |what| Err(HeadProblem::Malformed(what));
        for (version, fields, expected) in [
            (Http10, &[][..], Ok(RequestBody::Length(0))),
            (Http11, &[], malformed("No Host")),
            (Http2, &[], malformed("No authority")),
            (Http2, &[("host", "a")], Ok(RequestBody::Length(0))),
            (Http11, &[("host", "a"), ("Host", "a")], malformed("Repeated field")),
            (Http11, &[("host", "a"), ("Content-Length", "3")], Ok(RequestBody::Length(3))),
            (Http11, &[("host", "a"), ("Content-Length", "+3")], malformed("Invalid Content-Length")),
            (Http11, &[("host", "a"), ("Transfer-Encoding", "Chunked")], Ok(RequestBody::Chunked)),
            (Http11, &[("host", "a"), ("Transfer-Encoding", "gzip")], malformed("Unknown Transfer-Encoding")),
            (Http10, &[("Transfer-Encoding", "chunked")], malformed("Transfer-Encoding in HTTP/1.0")),
            (
                Http2,
                &[("host", "a"), ("transfer-encoding", "chunked")],
                malformed("Transfer-Encoding in HTTP/2"),
            ),
            (Http11, &[("host", "a"), ("expect", "200-ok")], Err(HeadProblem::Expectation)),
            (Http2, &[("host", "a"), ("expect", "100-Continue")], Ok(RequestBody::Length(0))),
        ] {
            let got = admit(version, "POST", "/", fields).map(|admitted| admitted.body);
            assert_eq!(got, expected, "{version:?} {fields:?}");
        }
        assert_eq!(admit(Http11, "CONNECT", "a:80", &[]), Err(HeadProblem::Connect));
        let authority = |authority| Head::new(Http2, "GET", "/").with_authority(Some(authority)).admit();
        assert_eq!(authority("a").map(|admitted| admitted.host), Ok("a"));
        assert_eq!(authority("u@a"), Err(HeadProblem::Malformed("Invalid Host")));
        let absolute = admit(Http2, "GET", "http://a/", &[("host", "a")]);
        assert_eq!(absolute, Err(HeadProblem::Malformed("Invalid request target")));
    }
}
