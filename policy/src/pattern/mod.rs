//! Regular expressions of `rules.http`: RE2's syntax, full match, linear time, compiled once.

mod class;
mod re2;

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use regex::bytes::{Regex, RegexBuilder};

/// Longest source text in bytes. Longer than any path; an alternation of more names belongs into several rules.
const MAX_SOURCE: usize = 4096;

/// Largest compiled program in bytes. 50 times what Envoy accepts by default, and 10,000 distinct patterns of
/// ordinary size (2 to 10 KiB) still fit into 100 MiB; `\pL{1000}` does not.
const MAX_PROGRAM: usize = 512 * 1024;

/// Largest lazily built state table of one pattern and thread, in bytes; when full it starts anew (slower, not wrong).
const MAX_STATES: usize = 256 * 1024;

/// A regular expression that must match the whole text. Equal if its source is.
#[derive(Clone)]
pub struct Pattern(Arc<Compiled>);

struct Compiled {
    source: String,
    matcher: Matcher,
}

/// Most patterns that people write need no automaton.
enum Matcher {
    Exact(String),
    /// Followed by anything but a line end.
    Prefix(String),
    Regex(Regex),
}

/// Deepest nesting of a translated pattern: a group of the source becomes up to four levels.
const MAX_NESTING: u32 = 500;

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a regular expression, or too large a one.
    #[error("not a valid regular expression (RE2 syntax): {0}")]
    Invalid(String),
    /// Longer than [`MAX_SOURCE`].
    #[error("the regular expression has {0} bytes, at most {MAX_SOURCE} are allowed: split the rule")]
    TooLong(usize),
}

impl Pattern {
    /// The pattern with this source: compiled, or the one that already was.
    pub fn new(source: &str) -> Result<Self, PatternError> {
        static KNOWN: OnceLock<Mutex<HashMap<String, Weak<Compiled>>>> = OnceLock::new();
        let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = known.get(source).and_then(Weak::upgrade) {
            return Ok(Self(compiled));
        }
        let compiled = Arc::new(Compiled { source: source.to_owned(), matcher: Matcher::new(source)? });
        if known.len() == known.capacity() {
            known.retain(|_, weak| weak.strong_count() > 0);
        }
        known.insert(source.to_owned(), Arc::downgrade(&compiled));
        Ok(Self(compiled))
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match &self.0.matcher {
            Matcher::Exact(exact) => text == exact,
            Matcher::Prefix(prefix) => {
                text.strip_prefix(prefix.as_str()).is_some_and(|rest| !rest.contains('\n'))
            }
            Matcher::Regex(regex) => regex.is_match(text.as_bytes()),
        }
    }
}

impl Matcher {
    fn new(source: &str) -> Result<Self, PatternError> {
        if source.len() > MAX_SOURCE {
            return Err(PatternError::TooLong(source.len()));
        }
        if let Some(exact) = literal(source) {
            return Ok(Self::Exact(exact));
        }
        if let Some(prefix) = source.strip_suffix(".*").and_then(literal) {
            return Ok(Self::Prefix(prefix));
        }
        let translated = re2::translate(source).map_err(PatternError::Invalid)?;
        build(&format!(r"\A(?:{translated})\z")).map(Self::Regex)
    }
}

fn build(source: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(source)
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_STATES)
        .nest_limit(MAX_NESTING)
        .build()
        .map_err(|error| PatternError::Invalid(error.to_string()))
}

/// The one text that `source` matches, if that can be seen at a glance.
fn literal(source: &str) -> Option<String> {
    let mut text = String::with_capacity(source.len());
    let mut characters = source.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped) if escaped.is_ascii_punctuation() => text.push(escaped),
                _ => return None,
            },
            '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' => return None,
            plain => text.push(plain),
        }
    }
    Some(text)
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.source == other.0.source
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.source.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_text_must_match() {
        for (source, text, expected) in [
            ("/public", "/public", true),
            ("/public", "/public?x=1", false),
            ("/public", "/public/", false),
            ("/public$", "/public", true),
            ("^/public", "/public", true),
            ("/public.*", "/public?x=1", true),
            ("/public.*", "/public/a\nb", false),
            ("/public.*", "/Public", false),
            (r"/com\.example\.Orders/.*", "/com.example.Orders/Create", true),
            (r"/com\.example\.Orders/.*", "/comXexample.Orders/Create", false),
            ("/com.example.Orders/.*", "/comXexample.Orders/Create", true),
            ("GET|POST", "GET", true),
            ("GET|POST", "POST", true),
            ("GET|POST", "XPOST", false),
            ("GET|POST", "GETX", false),
            ("a|b$", "ab", false),
            ("(?i)get", "GET", true),
            ("/a\\", "/a\\", false),
            (".*", "", true),
            ("/[0-9]+", "/12", true),
            ("/[0-9]+", "/12a", false),
            // RE2's dialect; the whole of it is compared with RE2 itself in `tests/re2.rs`.
            (r"/item\?id=\d+", "/item?id=\u{663}", false),
            (r"/\w{1,16}", "/caf\u{e9}", false),
            (r"[\w-]{2}", "a-", true),
            ("/users/{id}", "/users/{id}", true),
            (r"/\Qa.b\E/.*", "/a.b/x", true),
            (r"/\Qa.b\E/.*", "/axb/x", false),
            ("[a-z&&[^b]]", "b]", true),
            ("[a-z&&[^b]]", "a", false),
            ("[a[bc]]", "b]", true),
        ] {
            let got = Pattern::new(source).is_ok_and(|pattern| pattern.matches(text));
            assert_eq!(got, expected, "{source} on {text:?}");
        }
    }

    /// The short cuts must say exactly what the automaton says.
    #[test]
    fn short_cuts_equal_the_automaton() {
        let texts = [
            "", "/", "/a", "/a.b", "/axb", "/a.bc", "/a.b\n", "a b", "/a{2}", "/aa", "-", "/a-b", "<", "/a/b",
        ];
        for source in
            ["/a", r"/a\.b", r"/a\.b.*", "/a.*", ".*", r"\-", "/a-b", "a b", r"\<", r"/a\/b", r"/a\{2\}"]
        {
            let regex = re2::translate(source).map(|text| Regex::new(&format!(r"\A(?:{text})\z")).unwrap());
            for text in texts {
                let by_regex = regex.as_ref().is_ok_and(|regex| regex.is_match(text.as_bytes()));
                let ours = Pattern::new(source).is_ok_and(|pattern| pattern.matches(text));
                assert_eq!(ours, by_regex, "{source} on {text:?}");
            }
        }
    }

    #[test]
    fn escaping_the_anchors_is_no_pattern() {
        for source in [
            "a)|(b",
            "a)|(?:b",
            "(",
            "[",
            "a{2,1}",
            r"\pL{1000}",
            "(?x)a # )",
            "(a{100}){11}",
            "a++",
            "a{1001}",
        ] {
            assert!(Pattern::new(source).is_err(), "{source}");
        }
        let long = "a".repeat(MAX_SOURCE + 1);
        assert_eq!(Pattern::new(&long).err(), Some(PatternError::TooLong(MAX_SOURCE + 1)));
    }

    #[test]
    fn equal_sources_share_one_program() {
        let (a, b) = (Pattern::new("/x[0-9]").unwrap(), Pattern::new("/x[0-9]").unwrap());
        assert!(Arc::ptr_eq(&a.0, &b.0));
    }
}
