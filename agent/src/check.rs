//! Manifests that are not in force yet, read and judged as this agent would read and judge them.

use std::collections::BTreeSet;

use policy::{Identities, PolicyKind, PolicyObject, Problem, World};
use serde_json::Value;

use crate::source::{Records, add_manifest};

/// A manifest, and where it comes from.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// For messages: its file.
    pub from: String,
    /// One object as YAML or JSON.
    pub text: String,
}

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File of the manifest.
    pub from: String,
    /// Object, field, and what to do.
    pub problem: Problem,
    /// "namespace/name" of the pods that the object would isolate for its problem.
    pub denies: Vec<String>,
    /// It can be put in force and does what it says, which is probably not what was meant.
    pub is_warning: bool,
}

/// What is wrong with `new`, were it put in force beside `present`.
pub fn check(present: &[Manifest], new: &[Manifest]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut records = Records::default();
    for manifest in present {
        // What is wrong with them is in force already, and the agents say it.
        let _ = add_manifest(&manifest.text, &mut records);
    }
    let mut policies: Vec<(&str, PolicyObject)> = Vec::new();
    for manifest in new {
        let mut own = Records::default();
        let _ = add_manifest(&manifest.text, &mut own);
        let added =
            own.policies.into_values().map(|policy| (manifest.from.as_str(), PolicyObject::clone(&policy)));
        policies.extend(added);
        if let Err(problem) = add_manifest(&manifest.text, &mut records) {
            findings.push(Finding {
                from: manifest.from.clone(),
                problem,
                denies: Vec::new(),
                is_warning: false,
            });
        }
    }
    let mut world = world(&records);
    for (from, policy) in policies {
        findings.extend(check_policy(from, &policy, &records, &mut world));
    }
    findings
}

fn check_policy(from: &str, policy: &PolicyObject, records: &Records, world: &mut World) -> Vec<Finding> {
    let (selected, problems) = select(world, policy);
    let is_sound = problems.is_empty();
    let found = problems.into_iter().map(|problem| (problem, selected.clone(), false));
    let mut found: Vec<_> = found.collect();
    if is_sound {
        let title = title(policy);
        let warnings = warnings(policy, records, &selected);
        let warning = |message| Problem { location: title.clone(), message };
        found.extend(warnings.into_iter().map(|message| (warning(message), Vec::new(), true)));
    }
    let finding =
        |(problem, denies, is_warning)| Finding { from: from.to_owned(), problem, denies, is_warning };
    found.into_iter().map(finding).collect()
}

/// What is legal and most likely a slip of the pen.
fn warnings(policy: &PolicyObject, records: &Records, selected: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    let spaces: BTreeSet<&str> = records
        .namespaces
        .keys()
        .map(String::as_str)
        .chain(records.pods.keys().map(|pod| pod.namespace.as_str()))
        .collect();
    let ports: BTreeSet<String> = records
        .pods
        .values()
        .flat_map(|pod| pod.named_ports.iter().map(|port| port.name.to_ascii_lowercase()))
        .collect();
    if !policy.namespace.is_empty() && !spaces.contains(policy.namespace.as_str()) {
        warnings.push(format!("metadata.namespace: there is no namespace {:?}", policy.namespace));
    } else if selected.is_empty() && policy.kind != PolicyKind::CiliumClusterwideNetworkPolicy {
        warnings.push("it selects no pod that there is now".to_owned());
    }
    let mut mentioned = Mentioned::default();
    mentioned.find(&policy.manifest["spec"]);
    mentioned.find(&policy.manifest["specs"]);
    let unknown = mentioned.namespaces.iter().filter(|name| !spaces.contains(name.as_str()));
    warnings
        .extend(unknown.map(|name| format!("a selector wants the namespace {name:?}, which there is not")));
    let unknown = mentioned.ports.iter().filter(|name| !ports.contains(&name.to_ascii_lowercase()));
    warnings.extend(unknown.map(|name| format!("no pod has a port that is called {name:?}")));
    warnings
}

/// Names of other objects in a spec.
#[derive(Default)]
struct Mentioned {
    namespaces: BTreeSet<String>,
    ports: BTreeSet<String>,
}

impl Mentioned {
    fn find(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.find(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.field(name, value);
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, name: &str, value: &Value) {
        let is_namespace =
            name.ends_with("io.kubernetes.pod.namespace") || name == "kubernetes.io/metadata.name";
        match value.as_str() {
            Some(text) if is_namespace => {
                self.namespaces.insert(text.to_owned());
            }
            Some(text) if name == "port" && !text.chars().all(|c| c.is_ascii_digit()) => {
                self.ports.insert(text.to_owned());
            }
            _ => self.find(value),
        }
    }
}

/// All pods of the records, and no policy.
pub(crate) fn world(records: &Records) -> World {
    World {
        namespaces: records.namespaces.clone(),
        pods: records.pods.values().map(|pod| (**pod).clone()).collect(),
        ..World::default()
    }
}

/// The pods that the policy, if it were the only one, would put under rules, and what is wrong with
/// it. The engine alone knows how to select.
pub(crate) fn select(world: &mut World, policy: &PolicyObject) -> (Vec<String>, Vec<Problem>) {
    world.policies = vec![policy.clone()];
    let (snapshot, mut problems) = policy::compile(world, &mut Identities::default(), 1);
    let title = title(policy);
    problems.retain(|problem| problem.location.split(':').next() == Some(title.as_str()));
    let touched = snapshot.endpoints.iter().filter(|endpoint| {
        let ruleset = snapshot.ruleset_of(endpoint);
        ruleset.is_some_and(|ruleset| {
            [&ruleset.ingress, &ruleset.egress].iter().any(|d| d.enforced || !d.rules.is_empty())
        })
    });
    (touched.map(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.name)).collect(), problems)
}

/// "Kind namespace/name", as the engine's problems begin.
pub(crate) fn title(policy: &PolicyObject) -> String {
    policy::Origin::policy(policy.kind, &policy.namespace, &policy.name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Manifest {
        Manifest { from: "x.yaml".into(), text: text.into() }
    }

    fn pods() -> Vec<Manifest> {
        ["a", "b"]
            .map(|name| {
                manifest(&format!(
                    "kind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
                     spec: {{containers: [{{ports: [{{name: http, containerPort: 80}}]}}]}}\n"
                ))
            })
            .to_vec()
    }

    fn policy(namespace: &str, spec: &str) -> Manifest {
        manifest(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
        ))
    }

    fn findings(new: Manifest) -> Vec<Finding> {
        check(&pods(), &[new])
    }

    #[test]
    fn a_typo_is_found_with_its_field_its_value_and_the_pods_that_it_would_deny() {
        let found = findings(policy("shop", "{podSelector: {matchLabels: {app: a, canary: true}}}"));
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert!(
            finding.problem.location.starts_with("NetworkPolicy shop/p: spec.podSelector"),
            "{finding:?}"
        );
        assert!(finding.problem.message.contains("true"), "{finding:?}");
        assert_eq!((finding.denies.len(), finding.is_warning), (2, false), "{finding:?}");
        let broken = findings(manifest("kind: Pod\nmetadata: {name: c, labels: {x: 1}}\nspec: {}"));
        assert!(
            broken[0].problem.message.contains("labels") || broken[0].problem.location.contains('c'),
            "{broken:?}"
        );
    }

    #[test]
    fn what_is_right_is_not_found_and_what_matches_nothing_is_a_warning() {
        let right = "{podSelector: {matchLabels: {app: a}}, ingress: [{ports: [{port: http}]}]}";
        assert_eq!(findings(policy("shop", right)), []);
        for (policy, word) in [
            (policy("sohp", right), "\"sohp\""),
            (policy("shop", "{podSelector: {matchLabels: {app: z}}}"), "no pod"),
            (policy("shop", &right.replace("http", "htpp")), "\"htpp\""),
            (
                policy(
                    "shop",
                    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: \
                     {kubernetes.io/metadata.name: nowhere}}}]}]}",
                ),
                "\"nowhere\"",
            ),
        ] {
            let found = findings(policy);
            assert!(found.len() == 1 && found[0].is_warning, "{found:?}");
            assert!(found[0].problem.message.contains(word), "{found:?}");
        }
    }
}
