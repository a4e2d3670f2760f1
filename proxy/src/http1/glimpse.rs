//! What the record of a request says that was refused before it could be read as a whole.

use super::body::is_token_byte;

/// Method, target and Host, as far as `head` has them where they belong; empty where it has not.
pub(super) fn texts(head: &[u8]) -> [&[u8]; 3] {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let Some(space) = first.iter().position(|&byte| byte == b' ') else { return Default::default() };
    let (method, rest) = first.split_at(space);
    if method.is_empty() || !method.iter().all(|&byte| is_token_byte(byte)) {
        return Default::default();
    }
    [method, target(rest.trim_ascii()), lines.find_map(host).unwrap_or_default()]
}

/// All but the version, so that a space in a target is seen.
fn target(rest: &[u8]) -> &[u8] {
    match rest.iter().rposition(|&byte| byte == b' ') {
        Some(space) if rest[space + 1..].starts_with(b"HTTP/") => rest[..space].trim_ascii_end(),
        _ => rest,
    }
}

fn host(line: &[u8]) -> Option<&[u8]> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    line[..colon].trim_ascii().eq_ignore_ascii_case(b"host").then(|| line[colon + 1..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(head: &[u8]) -> [String; 3] {
        texts(head).map(|text| String::from_utf8_lossy(text).into_owned())
    }

    #[test]
    fn finds_what_is_where_it_belongs() {
        for (head, expected) in [
            (&b"GET /a HTTP/1.1\r\nX: y\r\nhOST : b\r\n\r\n"[..], ["GET", "/a", "b"]),
            (b"\r\nGET  /a b HTTP/1.1\r\nHost: c\r\n", ["GET", "/a b", "c"]),
            (b"GET /a HTTP/1.1\nHost: b\n\n", ["GET", "/a", "b"]),
            (b"GET /a", ["GET", "/a", ""]),
            (b"GET /\r\n\r\n", ["GET", "/", ""]),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", ["", "", ""]),
            (b"\x16\x03\x01 \x02\x00", ["", "", ""]),
            (b"", ["", "", ""]),
        ] {
            assert_eq!(seen(head), expected, "{head:?}");
        }
    }
}
