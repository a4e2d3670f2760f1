//! What a name that does not exist may have been meant to be.

use std::collections::BTreeSet;
use std::fmt::Display;

use api::agent::Endpoint;

/// Least likeness of a name that is offered: one wrong letter of four.
const ALIKE: f64 = 0.7;

/// `; did you mean production?`; nothing if no name is like it.
pub fn did_you_mean<'a>(asked: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    offer(nearest(asked, known.into_iter().map(|name| (name, name))))
}

fn offer(name: Option<impl Display>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// What belongs to the name that is most like `asked`.
fn nearest<'a, T>(asked: &str, known: impl Iterator<Item = (&'a str, T)>) -> Option<T> {
    let alike = known.map(|(name, what)| (strsim::jaro_winkler(asked, name), what));
    let best = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, what)| what)
}

/// Says whether the namespace or the pod of `namespace/name` is missing from `known`, and which
/// known name may be meant.
pub fn no_pod(namespace: &str, name: &str, known: &[(String, String)]) -> String {
    let namespaces: BTreeSet<&str> = known.iter().map(|(namespace, _)| namespace.as_str()).collect();
    let wrong = no_namespace(namespace, &namespaces);
    let meant = match &wrong {
        Some(_) => nearest(namespace, namespaces.iter().map(|name| (*name, *name))),
        None => Some(namespace),
    };
    // In the namespace that is meant; else the same name in any.
    let beside = known.iter().filter(|(own, _)| Some(own.as_str()) == meant);
    let found = nearest(name, beside.map(|pod| (pod.1.as_str(), pod)));
    let found = found.or_else(|| known.iter().find(|(_, own)| own == name));
    let wrong = wrong.map(|wrong| format!(": {wrong}")).unwrap_or_default();
    format!(
        "no pod {namespace}/{name}{wrong}{}",
        offer(found.map(|(namespace, name)| format!("{namespace}/{name}")))
    )
}

/// The message for a namespace that is not in `known`.
fn no_namespace(asked: &str, known: &BTreeSet<&str>) -> Option<String> {
    (!known.contains(asked)).then(|| format!("there is no namespace {asked:?}"))
}

/// Why nothing is in this namespace, unless something is.
pub fn empty_namespace(asked: &str, known: &[(String, String)]) -> Option<String> {
    let namespaces: BTreeSet<&str> = known.iter().map(|(namespace, _)| namespace.as_str()).collect();
    let wrong = no_namespace(asked, &namespaces)?;
    Some(wrong + &did_you_mean(asked, namespaces))
}

/// Namespace and name of each endpoint.
pub fn names(endpoints: &[Endpoint]) -> Vec<(String, String)> {
    endpoints.iter().map(|endpoint| (endpoint.namespace.clone(), endpoint.name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<(String, String)> {
        let pods = [("production", "frontend"), ("production", "api-server-1"), ("shop", "cart")];
        pods.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).to_vec()
    }

    #[test]
    fn the_nearest_name_is_offered_and_none_that_is_far() {
        let no = |namespace, name| no_pod(namespace, name, &known());
        assert_eq!(
            no("production", "fronted"),
            "no pod production/fronted; did you mean production/frontend?"
        );
        assert_eq!(
            no("default", "cart"),
            "no pod default/cart: there is no namespace \"default\"; did you mean shop/cart?"
        );
        assert_eq!(no("shop", "frontend"), "no pod shop/frontend; did you mean production/frontend?");
        assert_eq!(no("shop", "zzz"), "no pod shop/zzz");
        assert_eq!(
            no("prodcution", "frontend"),
            "no pod prodcution/frontend: there is no namespace \"prodcution\"; did you mean production/frontend?"
        );
        assert_eq!(no_pod("a", "b", &[]), "no pod a/b: there is no namespace \"a\"");
        let empty = |asked| empty_namespace(asked, &known());
        assert_eq!(empty("prod").unwrap(), "there is no namespace \"prod\"; did you mean production?");
        assert_eq!(empty("shop"), None);
    }
}
