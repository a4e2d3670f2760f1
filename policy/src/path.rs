//! The form in which paths are judged.

use std::borrow::Cow;

/// Why a target is refused (400): servers disagree about what such a path means, so no verdict on it would hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathProblem {
    /// Does not begin with a slash (and is not `*`).
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// `#` in a request target (RFC 9112 section 3.2 has none).
    #[error("the target has a fragment")]
    Fragment,
    /// A control byte, a space or, in the path, a byte above 0x7e; raw or encoded.
    #[error("the target has a control byte, a space or a raw byte above 0x7e")]
    ControlByte,
    /// A raw `\`, which some servers take for `/`.
    #[error("the path has a backslash")]
    Backslash,
    /// `%5C`, likewise.
    #[error("the path has an encoded backslash")]
    EncodedBackslash,
    /// `%2F`, which some servers take for `/`.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// `%` without two hexadecimal digits.
    #[error("the path has a `%` without two hexadecimal digits")]
    BadEscape,
    /// Escapes that are not UTF-8, overlong forms among them.
    #[error("the escapes of the path are not UTF-8")]
    NotUtf8,
    /// `..` above the root.
    #[error("the path climbs above its root")]
    ClimbsOut,
    /// `..;x` and the like: a dot segment to some servers, a name to others.
    #[error("the path has a dot segment with a parameter")]
    DotSegmentParameter,
    /// `//` in front: to some servers the beginning of an authority, so that `//a/b` is `/b` on host `a`.
    #[error("the path begins with two slashes")]
    LeadingSlashes,
    /// `..` next to an empty segment: it removes the empty one for some servers, the one before for others.
    /// Empty too is one that is all parameter, `/a/;x/../b`, to servers that cut parameters off first.
    #[error("the path has a dot segment next to an empty one")]
    EmptySegment,
}

/// The RFC 3986 normal form of a request target (path and query), in which rules see it: escaped unreserved characters
/// decoded, other escapes in upper case, dot segments removed, repeated slashes merged. The query stays as it came,
/// and so does `*`. What is forwarded is always the target as it came.
///
/// Err for whatever servers are known to read in more than one way.
pub fn judged_path(target: &str) -> Result<Cow<'_, str>, PathProblem> {
    if target == "*" {
        return Ok(Cow::Borrowed(target));
    }
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(PathProblem::ControlByte);
    }
    if target.contains('#') {
        return Err(PathProblem::Fragment);
    }
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    if !path.starts_with('/') {
        return Err(PathProblem::NotAbsolute);
    }
    if path.starts_with("//") {
        return Err(PathProblem::LeadingSlashes);
    }
    if path.contains('\\') {
        return Err(PathProblem::Backslash);
    }
    if !path.is_ascii() {
        return Err(PathProblem::ControlByte);
    }
    let decoded = decode_unreserved(path)?;
    if !decoded.contains("//") && !decoded.contains("/.") {
        return Ok(match decoded {
            Cow::Borrowed(_) => Cow::Borrowed(target),
            Cow::Owned(path) => Cow::Owned(path + query),
        });
    }
    let mut normal = remove_dot_segments(&decoded)?;
    normal.push_str(query);
    Ok(Cow::Owned(normal))
}

/// Section 6.2.2.1 and 6.2.2.2, and refuses escapes of what means something in a path.
fn decode_unreserved(path: &str) -> Result<Cow<'_, str>, PathProblem> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let mut normal = String::with_capacity(path.len());
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        normal.push_str(&rest[..at]);
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let digits = rest.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|d| d.is_ascii_hexdigit()));
        let digits = digits.ok_or(PathProblem::BadEscape)?;
        let byte = u8::from_str_radix(digits, 16).map_err(|_| PathProblem::BadEscape)?;
        match byte {
            b'/' => return Err(PathProblem::EncodedSlash),
            b'\\' => return Err(PathProblem::EncodedBackslash),
            0..=0x1f | 0x7f => return Err(PathProblem::ControlByte),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                normal.push(char::from(byte))
            }
            _ => {
                normal.push('%');
                normal.push_str(&digits.to_ascii_uppercase());
            }
        }
        bytes.push(byte);
        rest = &rest[at + 3..];
    }
    normal.push_str(rest);
    bytes.extend_from_slice(rest.as_bytes());
    // Whether the path as a whole is text: an overlong `%C0%AF` is a slash to some.
    std::str::from_utf8(&bytes).map_err(|_| PathProblem::NotUtf8)?;
    Ok(Cow::Owned(normal))
}

/// Section 5.2.4, with empty segments merged.
fn remove_dot_segments(path: &str) -> Result<String, PathProblem> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if segments.contains(&"..") && segments.iter().any(|segment| is_all_parameter(segment)) {
        return Err(PathProblem::EmptySegment);
    }
    // Empty segments kept: what a server sees that does not merge slashes.
    let mut plain: Vec<&str> = Vec::with_capacity(segments.len());
    let mut merged: Vec<&str> = Vec::with_capacity(segments.len());
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        match *segment {
            "." => {}
            ".." => {
                if plain.pop().is_none() || merged.pop().is_none() {
                    return Err(PathProblem::ClimbsOut);
                }
            }
            "" if last => {}
            "" => plain.push(""),
            name if has_dot_parameter(name) => return Err(PathProblem::DotSegmentParameter),
            name => {
                plain.push(name);
                merged.push(name);
            }
        }
    }
    if plain.iter().filter(|segment| !segment.is_empty()).ne(&merged) {
        return Err(PathProblem::EmptySegment);
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &merged {
        normal.push('/');
        normal.push_str(segment);
    }
    if merged.is_empty() || matches!(segments.last(), Some(&("" | "." | ".."))) {
        normal.push('/');
    }
    Ok(normal)
}

/// `;a`, also with an encoded semicolon.
fn is_all_parameter(segment: &str) -> bool {
    segment.starts_with(';') || segment.starts_with("%3B")
}

/// `.;a`, `..;`, also with an encoded semicolon.
fn has_dot_parameter(segment: &str) -> bool {
    let rest = segment.trim_start_matches('.');
    (1..=2).contains(&(segment.len() - rest.len())) && (rest.starts_with(';') || rest.starts_with("%3B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        for (target, expected) in [
            ("/", "/"),
            ("*", "*"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a?x=/../b", "/a?x=/../b"),
            ("/a?x=%2f\\%zz", "/a?x=%2f\\%zz"),
            ("/a?", "/a?"),
            ("/a?x?y", "/a?x?y"),
            ("/a?q=\u{e9}", "/a?q=\u{e9}"),
            ("/%61dmin/x", "/admin/x"),
            ("/%61dmin?q=%61", "/admin?q=%61"),
            ("/a%20b%c3%a9", "/a%20b%C3%A9"),
            ("/%7Euser/%2d", "/~user/-"),
            ("/admin%252fx", "/admin%252fx"),
            ("/a/./b", "/a/b"),
            ("/a/../admin/x", "/admin/x"),
            ("/a/%2e%2e/admin/x", "/admin/x"),
            ("/a/%2E./admin", "/admin"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/.", "/"),
            ("/a//b", "/a/b"),
            ("/a//", "/a/"),
            ("/;session=1", "/;session=1"),
            ("/a/;session=1/./b", "/a/;session=1/b"),
            ("/a/b;v=1/../c", "/a/c"),
            ("/a/b/..//c", "/a/c"),
            ("/...", "/..."),
            ("/.hidden", "/.hidden"),
            ("/..x/.y", "/..x/.y"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/com.example.Orders/Create", "/com.example.Orders/Create"),
        ] {
            assert_eq!(judged_path(target).as_deref(), Ok(expected), "{target}");
        }
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        for (target, expected) in [
            ("", PathProblem::NotAbsolute),
            ("a", PathProblem::NotAbsolute),
            ("?x", PathProblem::NotAbsolute),
            ("http://h/", PathProblem::NotAbsolute),
            ("/a#b", PathProblem::Fragment),
            ("/a?x#b", PathProblem::Fragment),
            ("/a b", PathProblem::ControlByte),
            ("/a?x y", PathProblem::ControlByte),
            ("/a\tb", PathProblem::ControlByte),
            ("/a\u{7f}", PathProblem::ControlByte),
            ("/a\0", PathProblem::ControlByte),
            ("/\u{e9}", PathProblem::ControlByte),
            ("/a%00/x", PathProblem::ControlByte),
            ("/a%0d%0aX", PathProblem::ControlByte),
            ("/a%7F", PathProblem::ControlByte),
            ("/a\\b", PathProblem::Backslash),
            ("/a/..\\b", PathProblem::Backslash),
            ("/a%5cb", PathProblem::EncodedBackslash),
            ("/admin%2fx", PathProblem::EncodedSlash),
            ("/a/..%2Fadmin/x", PathProblem::EncodedSlash),
            ("/a%", PathProblem::BadEscape),
            ("/a%4", PathProblem::BadEscape),
            ("/a%zz", PathProblem::BadEscape),
            ("/a%+1", PathProblem::BadEscape),
            ("/a%c0%afb", PathProblem::NotUtf8),
            ("/a%ff", PathProblem::NotUtf8),
            ("/..", PathProblem::ClimbsOut),
            ("/%2e%2e/", PathProblem::ClimbsOut),
            ("/a/../../b", PathProblem::ClimbsOut),
            ("/a/..;/admin/x", PathProblem::DotSegmentParameter),
            ("/a/.;x/admin", PathProblem::DotSegmentParameter),
            ("/a/%2e%2e%3bx/admin", PathProblem::DotSegmentParameter),
            ("/public//../admin", PathProblem::EmptySegment),
            ("/a//b/../../c", PathProblem::EmptySegment),
            ("/a/;/../b", PathProblem::EmptySegment),
            ("/public/;x=1/%2e%2e/admin", PathProblem::EmptySegment),
            ("/public/%3bx/../admin", PathProblem::EmptySegment),
            ("//", PathProblem::LeadingSlashes),
            ("//public/admin", PathProblem::LeadingSlashes),
            ("//../a", PathProblem::LeadingSlashes),
        ] {
            assert_eq!(judged_path(target), Err(expected), "{target}");
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        assert!(matches!(judged_path("/api/v1/products/7?x=%2f"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn the_normal_form_is_its_own() {
        for target in ["/a/./b/%2e%2e/%7e//x/", "/%c3%a9/..", "/a//./"] {
            let once = judged_path(target).unwrap().into_owned();
            assert_eq!(judged_path(&once).as_deref(), Ok(once.as_str()));
        }
    }
}
