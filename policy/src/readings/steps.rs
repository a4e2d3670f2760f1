//! What servers do to a path before they look for its handler, one step each.
//!
//! A server applies some of these in an order of its own, some of them twice. Whatever it comes to
//! is found by applying all of them to all that they give.

use super::TargetProblem;

/// Adds what a server that takes this step makes of a path, if it is something else.
type Step = fn(&str, &mut Vec<String>) -> Result<(), TargetProblem>;

pub(super) const STEPS: [Step; 11] = [
    decode_unreserved,
    decode_all_but_slashes,
    decode_slashes,
    decode_overlong,
    turn_backslashes,
    merge_slashes,
    reveal_encoded_dots,
    cut_parameters_of_dots,
    cut_parameters,
    resolve_dots,
    cut_authority,
];

/// The byte that the escape at `at` stands for.
pub(super) fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    if bytes.get(at) != Some(&b'%') {
        return None;
    }
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

/// Whether any step takes this escape for something else.
pub(super) fn is_ambiguous_escape(bytes: &[u8], at: usize, byte: u8) -> bool {
    is_unreserved(byte)
        || is_delimiter(byte)
        || matches!(byte, b'/' | b'\\')
        || is_escaped_escape(bytes, at, byte)
        || overlong_at(bytes, at).is_some()
}

/// RFC 3986 section 2.3: never needs an escape, and means the same with one.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What a path may have beside that, raw: a router sees the same character both ways.
fn is_delimiter(byte: u8) -> bool {
    b"!$&'()*+,;=:@".contains(&byte)
}

/// `%252e`: after one decoding an escape again.
fn is_escaped_escape(bytes: &[u8], at: usize, byte: u8) -> bool {
    byte == b'%' && [at + 3, at + 4].iter().all(|&digit| bytes.get(digit).is_some_and(u8::is_ascii_hexdigit))
}

/// `%C0%AF`, `%E0%80%AF`: what is no UTF-8, but a slash, a backslash, a dot or a semicolon to
/// decoders that do not check; and how many bytes long. In other encodings these may be letters.
fn overlong_at(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let (high, low, length) = match (escape_at(bytes, at)?, escape_at(bytes, at + 3)?) {
        (high @ (0xc0 | 0xc1), low) => (high & 1, low, 6),
        (0xe0, high @ (0x80 | 0x81)) => (high & 1, escape_at(bytes, at + 6)?, 9),
        _ => return None,
    };
    let byte = (high << 6) | (low & 0x3f);
    (low & 0xc0 == 0x80 && matches!(byte, b'/' | b'\\' | b'.' | b';')).then_some((byte, length))
}

/// Replaces escapes; `decode` tells by what, and how many bytes are replaced.
fn replace_escapes(
    path: &str,
    found: &mut Vec<String>,
    decode: impl Fn(&[u8], usize) -> Option<(u8, usize)>,
) -> Result<(), TargetProblem> {
    let mut decoded = String::new();
    let mut done = 0;
    for (at, _) in path.match_indices('%') {
        if at < done {
            continue;
        }
        // Of an escaped escape only: the first decoding has seen it as three harmless characters.
        if escape_at(path.as_bytes(), at).is_some_and(|byte| byte < 0x20 || byte == 0x7f) {
            return Err(TargetProblem::ControlByte);
        }
        if let Some((byte, length)) = decode(path.as_bytes(), at) {
            decoded.push_str(&path[done..at]);
            decoded.push(char::from(byte));
            done = at + length;
        }
    }
    if done > 0 {
        decoded.push_str(&path[done..]);
        found.push(decoded);
    }
    Ok(())
}

fn decode_unreserved(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    replace_escapes(path, found, |bytes, at| {
        escape_at(bytes, at).filter(|&byte| is_unreserved(byte)).map(|byte| (byte, 3))
    })
}

/// With [`decode_slashes`] after it: everything.
fn decode_all_but_slashes(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    replace_escapes(path, found, |bytes, at| {
        let byte = escape_at(bytes, at)?;
        let decodes = is_unreserved(byte) || is_delimiter(byte) || is_escaped_escape(bytes, at, byte);
        decodes.then_some((byte, 3))
    })
}

fn decode_slashes(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    replace_escapes(path, found, |bytes, at| {
        escape_at(bytes, at).filter(|byte| matches!(byte, b'/' | b'\\')).map(|byte| (byte, 3))
    })
}

fn decode_overlong(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    replace_escapes(path, found, overlong_at)
}

fn turn_backslashes(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    if path.contains('\\') {
        found.push(path.replace('\\', "/"));
    }
    Ok(())
}

fn merge_slashes(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    if path.contains("//") {
        let mut merged = path.to_owned();
        let mut before = '\0';
        merged.retain(|character| {
            let again = character == '/' && before == '/';
            before = character;
            !again
        });
        found.push(merged);
    }
    Ok(())
}

/// Only where it makes a dot segment, as browsers' parsers do, which leave all other escapes.
fn reveal_encoded_dots(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    change_segments(path, found, |segment| {
        if !segment.contains('%') || segment.len() > "%2e%2e".len() {
            return None;
        }
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." => Some("."),
            ".." => Some(".."),
            _ => None,
        }
    });
    Ok(())
}

/// `..;x`: a dot segment to servers that leave the parameters of all others.
fn cut_parameters_of_dots(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    change_segments(path, found, |segment| {
        segment.split_once(';').map(|(name, _)| name).filter(|name| matches!(*name, "." | ".."))
    });
    Ok(())
}

/// `;x` of each segment, of the last one only, or as if a query began there.
fn cut_parameters(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    let Some(first) = path.find(';') else { return Ok(()) };
    change_segments(path, found, |segment| segment.split_once(';').map(|(name, _)| name));
    let last = path.rfind('/').unwrap_or(0);
    if let Some(at) = path[last..].find(';') {
        found.push(path[..last + at].to_owned());
    }
    found.push(path[..first].to_owned());
    Ok(())
}

fn change_segments<'a>(path: &'a str, found: &mut Vec<String>, change: impl Fn(&'a str) -> Option<&'a str>) {
    let mut changed = String::with_capacity(path.len());
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            changed.push('/');
        }
        changed.push_str(change(segment).unwrap_or(segment));
    }
    if changed.len() < path.len() {
        found.push(changed);
    }
}

/// RFC 3986 section 5.2.4, empty segments counting as such: servers that merge slashes before have
/// a step of their own. One that ends in a dot segment ends in a slash for some servers, and not
/// for others.
fn resolve_dots(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    if !path.contains("/.") {
        return Ok(());
    }
    let mut resolved: Vec<&str> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.split('/').skip(1) {
        ends_in_dots = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                resolved.pop().ok_or(TargetProblem::ClimbsOut)?;
            }
            name => resolved.push(name),
        }
    }
    let mut text = String::with_capacity(path.len());
    for segment in &resolved {
        text.push('/');
        text.push_str(segment);
    }
    if text.len() == path.len() {
        return Ok(());
    }
    if ends_in_dots {
        found.push(format!("{text}/"));
    }
    if !text.is_empty() {
        found.push(text);
    }
    Ok(())
}

/// `//a/b`: a URL without a scheme, so that `a` is a host and the path `/b`. Browsers' parsers skip
/// more slashes.
fn cut_authority(path: &str, found: &mut Vec<String>) -> Result<(), TargetProblem> {
    let Some(rest) = path.strip_prefix("//") else { return Ok(()) };
    for rest in [rest, rest.trim_start_matches('/')] {
        let path = &rest[rest.find('/').unwrap_or(rest.len())..];
        found.push(if path.is_empty() { "/" } else { path }.to_owned());
    }
    Ok(())
}
