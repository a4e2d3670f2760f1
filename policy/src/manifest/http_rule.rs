//! `rules.http`.

use http::HeaderName;
use serde::Deserialize;
use serde_json::Value;

use super::reader::{Reader, Unsupported};
use crate::{HeaderMatch, HttpRule, Pattern};

const UNSUPPORTED: &[Unsupported] =
    &[("headerMatches", "write `headers` with the whole value, for example \"X-Key: true\"")];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttpRule {
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    headers: Option<Vec<String>>,
}

/// Reads one rule; None and a problem if it can match no request as it is written.
pub(super) fn read(value: &Value, index: u32, place: &str, reader: &mut Reader<'_>) -> Option<HttpRule> {
    if !reader.supported(value, place, UNSUPPORTED) {
        return None;
    }
    let raw: RawHttpRule = reader.read(value, place)?;
    let mut pattern = |field: &str, source: Option<String>| match source.filter(|source| !source.is_empty()) {
        None => Some(None),
        Some(source) => Pattern::new(&source)
            .map_err(|error| reader.problem(&format!("{place}.{field}"), error.to_string()))
            .ok()
            .map(Some),
    };
    let (method, path, host) =
        (pattern("method", raw.method)?, pattern("path", raw.path)?, pattern("host", raw.host)?);
    let mut headers = Vec::new();
    for (number, text) in raw.headers.iter().flatten().enumerate() {
        match header(text) {
            Ok(header) => headers.push(header),
            Err(message) => {
                reader.problem(&format!("{place}.headers[{number}]"), message);
                return None;
            }
        }
    }
    Some(HttpRule { index, method, path, host, headers })
}

/// `Name: value`, split at the first space as Cilium does; without one, the whole text is a name.
fn header(text: &str) -> Result<HeaderMatch, String> {
    let (name, value) = match text.split_once(' ') {
        Some((name, value)) => (name.trim_end_matches(':'), Some(value)),
        None => (text, None),
    };
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        format!(
            "`{name}` is no header's name: write \"Name: value\" (with a space), or \"Name\" for any value"
        )
    })?;
    if value.is_some_and(|value| value.trim_matches([' ', '\t']) != value) {
        return Err("no header's value begins or ends with a space: remove it".into());
    }
    Ok(HeaderMatch { name, value: value.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_split_at_the_first_space() {
        let header = |text| header(text).map(|h| (h.name.to_string(), h.value)).ok();
        let present = |name: &str| Some((name.to_owned(), None));
        let exact = |name: &str, value: &str| Some((name.to_owned(), Some(value.to_owned())));
        assert_eq!(header("X-Key: true"), exact("x-key", "true"));
        assert_eq!(header("X-Key true"), exact("x-key", "true"));
        assert_eq!(header("X-Key:: true"), exact("x-key", "true"));
        assert_eq!(
            header("Content-Type: text/html; charset=utf-8"),
            exact("content-type", "text/html; charset=utf-8")
        );
        assert_eq!(header("X-Key"), present("x-key"));
        assert_eq!(header("X-Key: "), exact("x-key", ""));
        for odd in ["X-Key:", "X-Key:true", "", " x", "X-Key:  true", "X-Key: true ", "X\u{e9}: a"] {
            assert_eq!(header(odd), None, "{odd}");
        }
    }
}
