//! Finds the end of a head, and refuses at once what can never become one.

use crate::limits;
use crate::refusal::Refusal;

/// Looks for the empty line that ends a head, over as many reads as it takes, each byte once.
///
/// RFC 9112 section 2.2 lets a recipient take a bare LF as a line end. Others do not, and then do not agree on where a
/// request ends: refused here.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// Looked at so far.
    position: usize,
    /// Where the current line begins.
    line_start: usize,
    /// Size at which an incomplete head is checked again. Doubles, so that a client that drips costs no more.
    next_check: usize,
}

/// Whether incomplete bytes can still become a head; for requests and responses.
pub(crate) trait Plausible {
    /// False: they cannot.
    fn plausible(bytes: &[u8]) -> bool;
}

impl Scanner {
    /// The length of the head, with its empty line, once it is complete. `bytes` begin with the head.
    pub(crate) fn scan<P: Plausible>(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = bytes[self.position..].iter().position(|&byte| byte == b'\n') {
            let line_feed = self.position + offset;
            if line_feed == 0 || bytes[line_feed - 1] != b'\r' {
                return Err(Refusal::Malformed("Bare LF"));
            }
            self.position = line_feed + 1;
            if line_feed - 1 == self.line_start {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Anything;

    impl Plausible for Anything {
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
    fn refuses_heads_over_the_limit() {
        let mut head = b"GET / HTTP/1.1\r\nA: ".to_vec();
        head.resize(limits::HEAD_BYTES + 1, b'a');
        assert_eq!(scan(&head), Err(Refusal::HeadTooLarge));
        head.truncate(limits::HEAD_BYTES - 4);
        head.extend(b"\r\n\r\n");
        assert_eq!(scan(&head), Ok(Some(limits::HEAD_BYTES)));
    }
}
