//! What to write instead, for the mistakes that are made most.

/// Least likeness of a field that is offered.
const ALIKE: f64 = 0.85;

/// The message of the deserializer, with what to do where that is clear.
pub(super) fn with_fix(message: String) -> String {
    match quoted(&message).or_else(|| meant(&message)) {
        Some(fix) => format!("{message}: {fix}"),
        None => message,
    }
}

/// YAML takes `true`, `8080` and `1.5` for no text; labels, names and ports of Cilium's policies
/// are texts.
fn quoted(message: &str) -> Option<String> {
    let (found, expected) = message.strip_prefix("invalid type: ")?.split_once(", expected ")?;
    if !expected.starts_with("a string") {
        return None;
    }
    let is_scalar = ["boolean ", "integer ", "floating point "].iter().any(|kind| found.starts_with(kind));
    let value = found.split('`').nth(1).filter(|_| is_scalar)?;
    Some(format!("write \"{value}\", with the quotes"))
}

fn meant(message: &str) -> Option<String> {
    let (unknown, expected) = message.strip_prefix("unknown field `")?.split_once('`')?;
    let known = expected.split('`').skip(1).step_by(2);
    let alike = known.map(|name| (strsim::jaro_winkler(unknown, name), name));
    let best = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    Some(best.map_or_else(|| "remove it".to_owned(), |(_, name)| format!("did you mean `{name}`?")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_write_is_named_where_it_is_clear() {
        for (message, fix) in [
            ("invalid type: boolean `true`, expected a string", "write \"true\", with the quotes"),
            ("invalid type: integer `8080`, expected a string", "write \"8080\", with the quotes"),
            (
                "unknown field `podSelectr`, expected one of `podSelector`, `ingress`",
                "did you mean `podSelector`?",
            ),
            ("unknown field `zzz`, expected `spec`", "remove it"),
        ] {
            assert_eq!(with_fix(message.to_owned()), format!("{message}: {fix}"));
        }
        let map = "invalid type: map, expected a string";
        assert_eq!(with_fix(map.to_owned()), map);
    }
}
