//! Request targets and Host (RFC 9112 section 3).

use crate::refusal::Refusal;

/// Parts of a request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// Path and query, as they came; `*` for the server as a whole.
    pub(crate) path: &'a str,
    /// The authority of an absolute target.
    pub(crate) authority: Option<&'a str>,
}

/// Takes a target apart.
pub(crate) fn parse<'a>(method: &str, target: &'a str) -> Result<Target<'a>, Refusal> {
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#') {
        return Err(Refusal::Malformed("Invalid request target"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(Target { path: target, authority: None });
    }
    let (scheme, rest) = target.split_once("://").ok_or(Refusal::Malformed("Invalid request target"))?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(Refusal::Malformed("Only the http scheme is forwarded"));
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_host(authority) {
        return Err(Refusal::Malformed("Invalid authority"));
    }
    // Without a path, OPTIONS is about the server as a whole and "?query" has no path to judge: nobody sends these.
    match path {
        "" if method != "OPTIONS" => Ok(Target { path: "/", authority: Some(authority) }),
        path if path.starts_with('/') => Ok(Target { path, authority: Some(authority) }),
        _ => Err(Refusal::Malformed("Absolute target without a path")),
    }
}

/// Whether this is `host [":" port]` of RFC 3986 section 3.2, without user information, percent-encoding and the
/// characters that some parsers end a host at. Empty is valid: a target may have no authority.
pub(crate) fn is_host(text: &str) -> bool {
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

    #[test]
    fn takes_targets_apart() {
        let path = |path| Ok(Target { path, authority: None });
        assert_eq!(parse("GET", "/"), path("/"));
        assert_eq!(parse("GET", "//a/b?c=d%20e"), path("//a/b?c=d%20e"));
        assert_eq!(parse("GET", "/\u{e9}?q=\u{e9}"), path("/\u{e9}?q=\u{e9}"));
        assert_eq!(parse("OPTIONS", "*"), path("*"));
        assert_eq!(parse("GET", "http://a:80/b?c"), Ok(Target { path: "/b?c", authority: Some("a:80") }));
        assert_eq!(parse("GET", "HTTP://a"), Ok(Target { path: "/", authority: Some("a") }));
    }

    #[test]
    fn refuses_other_targets() {
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
            assert!(parse("GET", target).is_err(), "{target}");
        }
        assert!(parse("OPTIONS", "http://a").is_err());
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
}
