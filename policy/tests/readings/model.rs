//! Servers' normalisers, written without regard to the product's: each a list of steps on text, in
//! any order.

/// One step that some server takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// nginx, Go, Tomcat, FastAPI: every escape once.
    DecodeAll,
    /// Envoy, RFC 3986: what never needed an escape.
    DecodeUnreserved,
    /// Tomcat's and Jetty's pass-through of `%2F`.
    DecodeAllButSlashes,
    /// Envoy's UNESCAPE.
    DecodeSlashes,
    /// Decoders that take overlong UTF-8.
    DecodeOverlong,
    /// RFC 3986, with empty segments.
    RemoveDotSegments,
    /// Go's path.Clean; node's path.posix.normalize is the same but for a slash at the end.
    Clean,
    /// Browsers, `new URL()`: encoded dots are dots, a backslash is a slash.
    Whatwg,
    /// nginx's merge_slashes.
    MergeSlashes,
    /// IIS, Java on Windows.
    Backslashes,
    /// Tomcat, Spring: of every segment.
    Parameters,
    /// Python's urlparse: of the last one.
    LastParameters,
    /// Fastify: a semicolon begins the query.
    SemicolonQuery,
    /// Python's urlsplit, `new URL(target, base)`.
    Authority,
}

const STEPS: [Step; 14] = [
    Step::DecodeAll,
    Step::DecodeUnreserved,
    Step::DecodeAllButSlashes,
    Step::DecodeSlashes,
    Step::DecodeOverlong,
    Step::RemoveDotSegments,
    Step::Clean,
    Step::Whatwg,
    Step::MergeSlashes,
    Step::Backslashes,
    Step::Parameters,
    Step::LastParameters,
    Step::SemicolonQuery,
    Step::Authority,
];

const PIECES: [&str; 30] = [
    "/", "/", "/", "a", "b", "admin", "public", "..", ".", "../", "./", "//", "%2e", "%2E%2e", "%2f", "%5C",
    "\\", ";", ";x=1", "%3b", "%61", "%252e", "%252f", "%25", "%20", "%C0%AF", "%c0%ae", "%40", "\u{e9}",
    "/..;/",
];

/// A small generator of its own: the same targets in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    pub(crate) fn target(&mut self) -> String {
        let mut target = String::from("/");
        for _ in 0..=self.below(9) {
            target.push_str(PIECES[self.below(PIECES.len())]);
        }
        if self.below(4) == 0 {
            target.push_str("?x=/../%2e;");
        }
        target
    }

    pub(crate) fn server(&mut self) -> Vec<Step> {
        (0..=self.below(5)).map(|_| STEPS[self.below(STEPS.len())]).collect()
    }
}

/// What the server sees; None: it refuses the request.
pub(crate) fn serve(server: &[Step], target: &str) -> Option<String> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut path = path.to_owned();
    for step in server {
        path = apply(*step, &path)?;
    }
    Some(path + query)
}

fn apply(step: Step, path: &str) -> Option<String> {
    let any = |_: u8| true;
    Some(match step {
        Step::DecodeAll => decode(path, any),
        Step::DecodeUnreserved => {
            decode(path, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        }
        Step::DecodeAllButSlashes => decode(path, |byte| byte != b'/' && byte != b'\\'),
        Step::DecodeSlashes => decode(path, |byte| byte == b'/' || byte == b'\\'),
        Step::DecodeOverlong => {
            let mut text = path.to_owned();
            for (escape, character) in [("%c0%af", "/"), ("%c0%ae", ".")] {
                for escape in [escape.to_owned(), escape.to_uppercase()] {
                    text = text.replace(&escape, character);
                }
            }
            text
        }
        Step::RemoveDotSegments => remove_dot_segments(path)?,
        Step::Clean => {
            let clean = remove_dot_segments(&merge(path))?;
            let dotted = path.ends_with("/.") || path.ends_with("/..");
            if dotted && clean.len() > 1 { clean.trim_end_matches('/').to_owned() } else { clean }
        }
        Step::Whatwg => {
            let text = path.replace('\\', "/");
            let segments = text.split('/').map(|segment| {
                match segment.replace("%2e", ".").replace("%2E", ".").as_str() {
                    dots @ ("." | "..") => dots.to_owned(),
                    _ => segment.to_owned(),
                }
            });
            remove_dot_segments(&segments.collect::<Vec<_>>().join("/"))?
        }
        Step::MergeSlashes => merge(path),
        Step::Backslashes => path.replace('\\', "/"),
        Step::Parameters => {
            let names = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
            names.collect::<Vec<_>>().join("/")
        }
        Step::LastParameters => {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            format!("{folder}/{}", name.split(';').next().unwrap_or_default())
        }
        Step::SemicolonQuery => path.split(';').next().unwrap_or_default().to_owned(),
        Step::Authority => match path.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]).to_owned(),
            None => path.to_owned(),
        },
    })
}

/// Escapes that are not taken, and those that are not UTF-8 together, stay.
fn decode(path: &str, takes: impl Fn(u8) -> bool) -> String {
    let mut out: Vec<u8> = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = byte.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|&byte| byte < 0x80 && takes(byte)) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(out).unwrap()
}

fn merge(path: &str) -> String {
    let mut text = path.to_owned();
    while text.contains("//") {
        text = text.replace("//", "/");
    }
    text
}

/// The loop of RFC 3986 section 5.2.4, to the letter. None: it would climb above the root.
fn remove_dot_segments(path: &str) -> Option<String> {
    let mut input = path.to_owned();
    let mut output = String::new();
    while !input.is_empty() {
        if input.starts_with("/./") || input == "/." {
            input.replace_range(..input.len().min(3), "/");
        } else if input.starts_with("/../") || input == "/.." {
            input.replace_range(..input.len().min(4), "/");
            output.truncate(output.rfind('/')?);
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input.replace_range(..end, "");
        }
    }
    Some(output)
}

/// One spelling for what is the same to every server: characters that need an escape are escaped,
/// in capitals.
pub(crate) fn canonical(text: &str) -> String {
    let (path, query) = text.split_at(text.find('?').unwrap_or(text.len()));
    let mut out = String::new();
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        let escape = rest.get(..3).filter(|e| e[0] == b'%' && e[1..].iter().all(u8::is_ascii_hexdigit));
        if let Some(escape) = escape {
            out.extend(escape.iter().map(|byte| char::from(byte.to_ascii_uppercase())));
            rest = &rest[3..];
            continue;
        }
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/\\".contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        rest = after;
    }
    out + query
}
