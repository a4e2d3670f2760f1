//! Finds the end of a head, and refuses at once what can never become one.

use crate::limits;
use crate::refusal::Refusal;

/// Looks for the empty line that ends a head, over as many reads as it takes, each byte once.
///
/// RFC 9112 section 2.2 lets a recipient take a bare LF as a line end. Others do not, and then do not agree on where a
/// request ends: refused here. In a response it is noted, and put right before anything goes on.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// Looked at so far.
    position: usize,
    /// Where the current line begins.
    line_start: usize,
    /// Size at which an incomplete head is checked again. Doubles, so that a client that drips costs no more.
    next_check: usize,
    has_bare_lf: bool,
}

/// Whether incomplete bytes can still become a head; for requests and responses.
pub(crate) trait Plausible {
    /// Whether a bare LF ends a line.
    const TAKES_BARE_LF: bool;

    /// False: they cannot.
    fn plausible(bytes: &[u8]) -> bool;
}

impl Scanner {
    /// The length of the head, with its empty line, once it is complete. `bytes` begin with the head.
    pub(crate) fn scan<P: Plausible>(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = bytes[self.position..].iter().position(|&byte| byte == b'\n') {
            let line_feed = self.position + offset;
            let is_bare = line_feed == self.line_start || bytes[line_feed - 1] != b'\r';
            if is_bare && !P::TAKES_BARE_LF {
                return Err(Refusal::Malformed("Bare LF"));
            }
            self.has_bare_lf |= is_bare;
            self.position = line_feed + 1;
            let line_end = if is_bare { line_feed } else { line_feed - 1 };
            if line_end == self.line_start {
                return if self.position > limits::HEAD_BYTES {
                    Err(Refusal::HeadTooLarge)
                } else {
                    Ok(Some(self.position))
                };
            }
            self.line_start = self.position;
        }
        self.position = bytes.len();
        if bytes.len() > limits::HEAD_BYTES {
            return Err(Refusal::HeadTooLarge);
        }
        if bytes.len() > self.next_check {
            self.next_check = 2 * bytes.len();
            if !P::plausible(bytes) {
                return Err(Refusal::Malformed("Not HTTP"));
            }
        }
        Ok(None)
    }

    /// Whether a line ended with a bare LF.
    pub(crate) fn has_bare_lf(&self) -> bool {
        self.has_bare_lf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Anything;
    struct AnyLine;

    impl Plausible for AnyLine {
        const TAKES_BARE_LF: bool = true;

        fn plausible(_: &[u8]) -> bool {
            true
        }
    }

    impl Plausible for Anything {
        const TAKES_BARE_LF: bool = false;

        fn plausible(_: &[u8]) -> bool {
            true
        }
    }

    fn scan(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        Scanner::default().scan::<Anything>(bytes)
    }

    #[test]
    fn finds_the_empty_line() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody\r\n\r\n"), Ok(Some(24)));
        assert_eq!(scan(b"GET / HTTP/1.1\r\nA: b\r\n\r"), Ok(None));
        assert_eq!(scan(b""), Ok(None));
    }

    #[test]
    fn gives_the_same_answer_byte_by_byte() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\nrest";
        let mut scanner = Scanner::default();
        let ends: Vec<usize> =
            (0..=head.len()).filter_map(|n| scanner.scan::<Anything>(&head[..n]).unwrap()).collect();
        assert_eq!(ends.first(), Some(&32));
    }

    #[test]
    fn refuses_bare_line_feeds_wherever_they_are() {
        for bytes in
            [&b"\n"[..], b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nA: b\n\r\n", b"GET / HTTP/1.1\r\nA:\n\nGET"]
        {
            assert_eq!(scan(bytes), Err(Refusal::Malformed("Bare LF")), "{bytes:?}");
        }
    }

    #[test]
    fn takes_and_notes_bare_line_feeds_of_a_server() {
        for (bytes, length, bare) in [
            (&b"HTTP/1.1 200 OK\nA: b\n\nx"[..], 22, true),
            (b"HTTP/1.1 200 OK\r\nA: b\n\r\nx", 24, true),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n\nx", 24, true),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nx", 25, false),
        ] {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.scan::<AnyLine>(bytes), Ok(Some(length)), "{bytes:?}");
            assert_eq!(scanner.has_bare_lf(), bare, "{bytes:?}");
        }
    }

    #[test]
    fn refuses_heads_over_the_limit() {
        let mut head = b"GET / HTTP/1.1\r\nA: ".to_vec();
        head.resize(limits::HEAD_BYTES + 1, b'a');
        assert_eq!(scan(&head), Err(Refusal::HeadTooLarge));
        head.truncate(limits::HEAD_BYTES - 4);
        head.extend(b"\r\n\r\n");
        assert_eq!(scan(&head), Ok(Some(limits::HEAD_BYTES)));
    }
}
