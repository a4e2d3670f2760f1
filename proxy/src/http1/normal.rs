//! Response heads and trailers that strict parsers refuse and that can be read in one way only,
//! brought into the form that all parsers agree on. RFC 9112 has a rule for each: bare LF (2.2),
//! bare CR (2.2), folded lines (5.2), space before the colon (5.1). Requests have no such tolerance
//! here.

use bytes::{BufMut, Bytes, BytesMut};

use super::body::is_token_byte;

/// Why a response cannot be put right.
pub(super) type Fault = &'static str;

/// A response head, from the version to the empty line.
pub(super) fn head(raw: &[u8]) -> Result<Bytes, Fault> {
    let mut lines = lines(raw);
    let mut out = BytesMut::with_capacity(raw.len() + 64);
    status_line(lines.next().unwrap_or_default(), &mut out)?;
    fields(lines, |_| true, &mut out)?;
    out.put_slice(b"\r\n");
    Ok(out.freeze())
}

/// A trailer section with its empty line, without the fields that `passes` says no to.
pub(super) fn trailers(raw: &[u8], passes: fn(&[u8]) -> bool) -> Result<Bytes, Fault> {
    let mut out = BytesMut::with_capacity(raw.len() + 64);
    fields(lines(raw), passes, &mut out)?;
    out.put_slice(b"\r\n");
    Ok(out.freeze())
}

/// Lines without their ends, up to the first empty one.
fn lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
}

/// Spaces between its parts are one; a later version than 1.1 is 1.1, the highest that both ends
/// know here.
fn status_line(line: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
    let (version, rest) = line.split_at_checked(8).ok_or("Not an HTTP response")?;
    let (name, number) = version.split_at(5);
    let minor = match number {
        b"1.0" => b'0',
        [b'1'..=b'9', b'.', b'0'..=b'9'] => b'1',
        _ => return Err("Not an HTTP response"),
    };
    if !name.eq_ignore_ascii_case(b"HTTP/") || !rest.first().is_some_and(|byte| is_space(*byte)) {
        return Err("Not an HTTP response");
    }
    let rest = rest.trim_ascii_start();
    let (status, reason) = rest.split_at_checked(3).ok_or("Invalid status line")?;
    if !status.iter().all(u8::is_ascii_digit) || !reason.first().is_none_or(|byte| is_space(*byte)) {
        return Err("Invalid status line");
    }
    out.put_slice(b"HTTP/1.");
    out.put_u8(minor);
    out.put_u8(b' ');
    out.put_slice(status);
    out.put_u8(b' ');
    text(reason.trim_ascii(), out)?;
    out.put_slice(b"\r\n");
    Ok(())
}

fn fields<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
    passes: fn(&[u8]) -> bool,
    out: &mut BytesMut,
) -> Result<(), Fault> {
    // Whether there is a field that a folded line goes on with, and whether it passes.
    let mut current = None;
    for line in lines {
        if line.first().is_some_and(|byte| is_space(*byte)) {
            let passes = current.ok_or("A line begins with space where a field should")?;
            let more = line.trim_ascii();
            if passes && !more.is_empty() {
                out.truncate(out.len() - 2);
                out.put_u8(b' ');
                text(more, out)?;
                out.put_slice(b"\r\n");
            }
            continue;
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or("A field without a colon")?;
        let name = line[..colon].trim_ascii_end();
        if name.is_empty() || !name.iter().all(|&byte| is_token_byte(byte)) {
            return Err("Invalid field name");
        }
        let value = &line[colon + 1..];
        if frames(name) && value.iter().any(|&byte| is_control(byte)) {
            return Err("Control character in Content-Length or Transfer-Encoding");
        }
        let passes = passes(name);
        current = Some(passes);
        if passes {
            out.put_slice(name);
            out.put_u8(b':');
            text(value, out)?;
            out.put_slice(b"\r\n");
        }
    }
    Ok(())
}

/// A control character may hide these from others.
fn frames(name: &[u8]) -> bool {
    [&b"content-length"[..], b"transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own))
}

/// Control characters but tab become spaces, as RFC 9110 section 5.5 says.
fn text(value: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
    if value.contains(&0) {
        return Err("NUL in a head");
    }
    out.extend(value.iter().map(|&byte| if is_control(byte) { b' ' } else { byte }));
    Ok(())
}

fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}
