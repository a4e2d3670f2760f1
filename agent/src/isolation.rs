//! Behind a default deny stands a policy that isolates the pod: which?

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::agent::{DirectionVerdict, ExplainRequest, ExplainResponse, Problem};
use policy::{Direction, DirectionRules, Identities, Origin, PolicyObject, World};

use crate::check::title;
use crate::reconcile::View;
use crate::source::{PodName, Records};

/// Policies that a reason names; the others are counted.
const NAMED: usize = 3;
/// Policies that are looked at for one flow: each takes some microseconds, and flows wait behind
/// it. `explain` looks at all.
const FLOW_POLICIES: usize = 500;

/// What was found for flows, while the same snapshot is in force.
#[derive(Default)]
pub(crate) struct Isolators {
    number: u64,
    known: HashMap<(PodName, Direction), Vec<Origin>>,
}

impl Isolators {
    /// The policies that isolate a pod in this direction; none if there are too many to look at.
    pub(crate) fn of(&mut self, view: &View, pod: PodName, direction: Direction) -> &[Origin] {
        if self.number != view.snapshot.number {
            (self.number, self.known) = (view.snapshot.number, HashMap::new());
        }
        self.known.entry((pod, direction)).or_insert_with_key(|(pod, direction)| {
            let Some(records) = &view.records else { return Vec::new() };
            if records.policies.len() > FLOW_POLICIES {
                return Vec::new();
            }
            isolating(records, pod, *direction).into_iter().map(|policy| policy.origin).collect()
        })
    }
}

/// Names the policies behind a default deny in the reasons of the answer.
pub(crate) fn name(view: &View, request: &ExplainRequest, answer: &mut ExplainResponse) {
    let Some(records) = &view.records else { return };
    let source = PodName::new(&request.from_namespace, &request.from_pod);
    let destination = PodName::new(&request.to_namespace, &request.to_pod);
    let ends = [
        (Direction::Egress, &mut answer.egress, (&source, &destination)),
        (Direction::Ingress, &mut answer.ingress, (&destination, &source)),
    ];
    let mut first = None;
    for (direction, verdict, (pod, peer)) in ends {
        let Some(verdict) = verdict else { continue };
        if verdict.verdict != policy::Verdict::Denied.name() || !is_default(verdict) {
            continue;
        }
        let policies = isolating(records, pod, direction);
        if policies.is_empty() {
            continue;
        }
        verdict.reason = reason(view, records, &policies, direction, (pod, peer));
        verdict.isolated_by = policies.iter().map(|policy| (&policy.origin).into()).collect();
        first = first.or_else(|| Some(format!("{direction}: {}", verdict.reason)));
    }
    if let Some(first) = first {
        answer.reason = first;
    }
}

fn is_default(verdict: &DirectionVerdict) -> bool {
    verdict.policy.as_ref().is_none_or(|origin| origin.kind.is_empty())
}

/// A policy that isolates a pod.
struct Isolating {
    origin: Origin,
    title: String,
    rules: usize,
}

/// The policies that isolate the pod in this direction: those that, if alone, would.
fn isolating(records: &Records, name: &PodName, direction: Direction) -> Vec<Isolating> {
    let Some(pod) = records.pods.get(name) else { return Vec::new() };
    let mut world =
        World { namespaces: records.namespaces.clone(), pods: vec![(**pod).clone()], ..World::default() };
    let may_select =
        |policy: &&PolicyObject| policy.namespace.is_empty() || policy.namespace == name.namespace;
    let policies = records.policies.values().map(|policy| &**policy).filter(may_select);
    let isolating = policies.filter_map(|policy| {
        world.policies = vec![policy.clone()];
        let (snapshot, _) = policy::compile(&world, &mut Identities::default(), 1);
        let endpoint = snapshot.endpoint_named(&name.namespace, &name.name)?;
        let rules = snapshot.ruleset_of(endpoint)?.direction(direction);
        isolates(rules).then(|| Isolating {
            origin: Origin::policy(policy.kind, &policy.namespace, &policy.name),
            title: title(policy),
            rules: written_rules(policy, direction),
        })
    });
    isolating.collect()
}

/// Rules that allow, as they are written: one whose peers do not exist is a rule, too.
fn written_rules(policy: &PolicyObject, direction: Direction) -> usize {
    let specs = policy.manifest["specs"].as_array().into_iter().flatten();
    let lists = specs.chain([&policy.manifest["spec"]]).map(|spec| &spec[direction.to_string()]);
    lists.filter_map(|rules| rules.as_array()).map(Vec::len).sum()
}

/// Rules that only deny leave all else as it is; the engine says so with a rule of no policy.
fn isolates(rules: &DirectionRules) -> bool {
    rules.enforced && rules.rules.iter().all(|rule| !rule.origin.is_default())
}

fn reason(
    view: &View,
    records: &Records,
    policies: &[Isolating],
    direction: Direction,
    (pod, peer): (&PodName, &PodName),
) -> String {
    let problems = problems_by_policy(view, records);
    let unread = policies.iter().find_map(|policy| Some((policy, problems.get(&policy.title)?.first()?)));
    if let Some((policy, problem)) = unread {
        let Problem { r#where, message } = problem;
        let place = r#where.strip_prefix(&policy.title).unwrap_or(r#where).trim_start_matches(": ");
        return format!(
            "denied because {} cannot be read as it was meant ({place}: {message}) and isolates {pod} for {direction} until it is \
             corrected",
            policy.title
        );
    }
    let rules: usize = policies.iter().map(|policy| policy.rules).sum();
    let named: Vec<_> = policies.iter().take(NAMED).map(|policy| policy.title.as_str()).collect();
    let more = match policies.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (isolate, their) = if policies.len() == 1 { ("isolates", "its") } else { ("isolate", "their") };
    let allows = match rules {
        0 => "it allows nothing".to_owned(),
        rules => format!("none of {their} {rules} rules allows {peer} on this port"),
    };
    format!("default deny: {}{more} {isolate} {pod} for {direction}, and {allows}", named.join(", "))
}

/// Problems of policies, by "Kind namespace/name".
pub(crate) fn problems_by_policy(view: &View, records: &Records) -> BTreeMap<String, Vec<Problem>> {
    let titles: BTreeSet<String> = records.policies.values().map(|policy| title(policy)).collect();
    let mut by_policy: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
    for found in &view.problems {
        let head = found.location.split(':').next().unwrap_or("");
        if titles.contains(head) {
            let problem = Problem { r#where: found.location.clone(), message: found.message.clone() };
            by_policy.entry(head.to_owned()).or_default().push(problem);
        }
    }
    by_policy
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use policy::{Pod, PolicyKind};
    use serde_json::json;

    use super::*;

    fn view(spec: &serde_json::Value) -> View {
        let mut records = Records::default();
        let pod = |name: &str| Pod {
            namespace: "shop".into(),
            name: name.into(),
            node: "n".into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            ..Pod::default()
        };
        for (number, name) in ["cart", "web"].into_iter().enumerate() {
            let mut pod = pod(name);
            pod.addresses = vec![std::net::IpAddr::from([10, 1, 0, number as u8 + 2])];
            records.pods.insert(PodName::new("shop", name), Arc::new(pod));
        }
        let policy = PolicyObject {
            kind: PolicyKind::NetworkPolicy,
            namespace: "shop".into(),
            name: "p".into(),
            manifest: json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec}),
        };
        records.policies.insert((policy.kind, "shop".into(), "p".into()), Arc::new(policy.clone()));
        let mut world = crate::check::world(&records);
        world.policies = vec![policy];
        world.this_node = "n".into();
        world.pod_networks = vec!["10.0.0.0/8".parse().unwrap()];
        world.nodes = vec![policy::Node {
            name: "n".into(),
            addresses: vec![],
            pod_ranges: vec!["10.1.0.0/16".parse().unwrap()],
        }];
        let (snapshot, problems) = policy::compile(&world, &mut Identities::default(), 1);
        View { snapshot: Arc::new(snapshot), records: Some(Arc::new(records)), problems, ..View::default() }
    }

    fn explained(spec: serde_json::Value) -> ExplainResponse {
        let view = view(&spec);
        let request = ExplainRequest {
            from_namespace: "shop".into(),
            from_pod: "web".into(),
            to_namespace: "shop".into(),
            to_pod: "cart".into(),
            port: 80,
            ..ExplainRequest::default()
        };
        let mut answer = crate::api::explain(&view.snapshot, &request).unwrap();
        name(&view, &request, &mut answer);
        answer
    }

    #[test]
    fn a_default_deny_names_the_policy_that_isolates_and_one_that_cannot_be_read() {
        let allows_other = json!({"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "other"}}}]}]});
        let answer = explained(allows_other);
        assert_eq!(
            answer.reason,
            "ingress: default deny: NetworkPolicy shop/p isolates shop/cart for ingress, and none of its 1 rules allows shop/web on \
             this port"
        );
        assert_eq!(answer.ingress.unwrap().isolated_by[0].name, "p");
        let unread = explained(json!({"podSelector": {"matchLabels": {"canary": true}}}));
        assert!(unread.reason.contains("NetworkPolicy shop/p cannot be read"), "{}", unread.reason);
        assert!(unread.reason.contains("true"), "{}", unread.reason);
    }
}
