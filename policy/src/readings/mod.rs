//! What servers make of a request target.
//!
//! Servers disagree: `/public/../admin` is one handler to some and another to others, and so are
//! `//`, `%2F`, `;x` and a backslash. A target is therefore judged in every reading that a server
//! could come to, and forwarded as it came.

mod steps;

use std::collections::HashSet;
use std::fmt;

use steps::STEPS;

/// Most readings of one target. Spellings that servers meet have up to 20; one with every kind of
/// ambiguity at once has a few hundred. Each is matched against the rules, so this bounds the work
/// of a request.
const MAX_READINGS: usize = 512;

/// Most bytes of all readings of one target together: a long target has room for fewer of them.
const MAX_READING_BYTES: usize = 256 * 1024;

/// Why a target is malformed (400): no verdict on it would hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetProblem {
    /// Neither a path, nor `*`, nor an absolute target.
    NotAbsolute,
    /// `#` in a request target (RFC 9112 section 3.2 has none).
    Fragment,
    /// A raw control byte or space, or an encoded control byte in the path.
    ControlByte,
    /// `%` without two hexadecimal digits in the path.
    BadEscape,
    /// `..` above the root, in at least one reading.
    ClimbsOut,
    /// More than [`MAX_READINGS`] or [`MAX_READING_BYTES`].
    TooManyReadings,
}

impl TargetProblem {
    /// In words, for the client too.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotAbsolute => "The target does not begin with a slash",
            Self::Fragment => "The target has a fragment",
            Self::ControlByte => "The target has a control byte or a space",
            Self::BadEscape => "The path has a % without two hexadecimal digits",
            Self::ClimbsOut => "The path climbs above its root",
            Self::TooManyReadings => "Servers can read the path in too many ways",
        }
    }
}

impl fmt::Display for TargetProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for TargetProblem {}

/// A request target and every other form in which a server may see it.
///
/// Not among them: escapes that have to be escapes. `/a%20b` and `/caf%C3%A9` have one reading, and
/// rules see them as they came. The query belongs to each reading as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings<'a> {
    as_it_came: &'a str,
    others: Vec<String>,
}

impl<'a> Readings<'a> {
    /// Of a target: path and query, absolute, or `*`. A target with one reading costs one look at
    /// its bytes.
    pub fn of(target: &'a str) -> Result<Self, TargetProblem> {
        if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(TargetProblem::ControlByte);
        }
        if target.contains('#') {
            return Err(TargetProblem::Fragment);
        }
        if target == "*" {
            return Ok(Self { as_it_came: target, others: Vec::new() });
        }
        let origin_form = origin_form(target).ok_or(TargetProblem::NotAbsolute)?;
        let (path, query) = origin_form.split_at(origin_form.find('?').unwrap_or(origin_form.len()));
        let path = if path.is_empty() { "/" } else { path };
        if origin_form.len() == target.len() && is_plain(path)? {
            return Ok(Self { as_it_came: target, others: Vec::new() });
        }
        let mut others = closure(path)?;
        // A server that does not know absolute targets sees the whole of it.
        others.retain(|other| origin_form.len() != target.len() || other != path);
        for other in &mut others {
            other.push_str(query);
        }
        Ok(Self { as_it_came: target, others })
    }

    /// The target itself.
    pub fn as_it_came(&self) -> &'a str {
        self.as_it_came
    }

    /// All of them, the target itself first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.as_it_came).chain(self.others.iter().map(String::as_str))
    }
}

/// Path and query, without scheme and authority of an absolute target.
fn origin_form(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return Some(target);
    }
    let (scheme, rest) = target.split_once("://")?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let path = &rest[rest.find(['/', '?']).unwrap_or(rest.len())..];
    is_scheme.then_some(path)
}

/// Whether no step changes the path. Err: malformed.
fn is_plain(path: &str) -> Result<bool, TargetProblem> {
    let bytes = path.as_bytes();
    let mut plain = true;
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            b'%' => {
                let byte = steps::escape_at(bytes, at).ok_or(TargetProblem::BadEscape)?;
                if byte < 0x20 || byte == 0x7f {
                    return Err(TargetProblem::ControlByte);
                }
                plain &= !steps::is_ambiguous_escape(bytes, at, byte);
            }
            b'\\' | b';' => plain = false,
            b'/' => plain &= !matches!(bytes.get(at + 1), Some(b'/' | b'.')) || is_name(&bytes[at + 1..]),
            _ => {}
        }
    }
    Ok(plain)
}

/// Whether a path goes on with a name, not with an empty or a dot segment.
fn is_name(rest: &[u8]) -> bool {
    let segment = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
    !matches!(segment, b"" | b"." | b"..")
}

/// The path and what follows from it by [`STEPS`], in any order and number.
fn closure(path: &str) -> Result<Vec<String>, TargetProblem> {
    is_plain(path)?;
    let mut known = HashSet::from([path.to_owned()]);
    let mut readings = vec![path.to_owned()];
    let mut found = Vec::new();
    let mut bytes = path.len();
    let mut next = 0;
    while let Some(reading) = readings.get(next) {
        next += 1;
        STEPS.iter().try_for_each(|step| step(reading, &mut found))?;
        for reading in found.drain(..) {
            if known.contains(&reading) {
                continue;
            }
            bytes += reading.len();
            if readings.len() == MAX_READINGS || bytes > MAX_READING_BYTES {
                return Err(TargetProblem::TooManyReadings);
            }
            known.insert(reading.clone());
            readings.push(reading);
        }
    }
    Ok(readings)
}
