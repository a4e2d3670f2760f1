//! What the proxy has not yet taken over must not be sent to it: it would be judged by older rules.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use policy::{EndpointPolicy, IdentityId, Ruleset, Snapshot, SnapshotParts};
use prost::Message as _;

/// What a proxy judges requests by.
#[derive(Clone, Debug)]
pub(super) enum Judge {
    /// Nothing yet: it refuses everything.
    Nothing,
    /// This.
    Snapshot(Arc<Snapshot>),
    /// Something of which only the number is known.
    Unknown,
}

impl Judge {
    /// By the snapshot that the proxy last stored: what a worker judges by that runs, or starts, without the agent.
    pub(super) fn stored(path: &Path) -> Self {
        let Ok(bytes) = std::fs::read(path) else { return Self::Nothing };
        let message = api::policy::Snapshot::decode(bytes.as_slice()).ok();
        match message.and_then(|message| Snapshot::try_from(message).ok()) {
            Some(snapshot) => Self::Snapshot(Arc::new(snapshot)),
            // The proxy refuses it likewise.
            None => Self::Nothing,
        }
    }

    /// Whether it judges requests to and from this pod by these very rules.
    ///
    /// `moved`: whom it takes addresses for, and who they are now. Where a rule tells the two apart, it would judge
    /// one by what is granted to the other.
    fn agrees(&self, moved: &Moved, endpoint: &EndpointPolicy, ruleset: &Ruleset) -> bool {
        let mut rules = ruleset.ingress.rules.iter().chain(&ruleset.egress.rules);
        if rules.any(|rule| moved.iter().any(|&(a, b)| rule.peers.contains(a) != rule.peers.contains(b))) {
            return false;
        }
        match self {
            Self::Nothing => true,
            Self::Unknown => false,
            Self::Snapshot(snapshot) => endpoint.addresses.iter().all(|&address| {
                let known = snapshot.endpoint_at(address);
                known.and_then(|known| snapshot.ruleset_of(known)).is_some_and(|known| **known == *ruleset)
            }),
        }
    }
}

/// Identities of addresses: (as the judge has it, as the snapshot has it), where they differ.
type Moved = BTreeSet<(IdentityId, IdentityId)>;

fn moved(judge: &Judge, snapshot: &Arc<Snapshot>) -> Moved {
    match judge {
        Judge::Snapshot(known) if !Arc::ptr_eq(known, snapshot) && known.addresses != snapshot.addresses => {
            let addresses = known.addresses.keys().chain(snapshot.addresses.keys());
            let both = addresses.map(|&address| (known.identity_of(address), snapshot.identity_of(address)));
            both.filter(|(a, b)| a != b).collect()
        }
        _ => Moved::new(),
    }
}

/// The snapshot as the kernel may enforce it now: L7 rules that not every judge has are left out, so that what only they
/// allow is denied. Also the pods concerned, as "namespace/name"; if there are none, it is the snapshot itself.
pub(super) fn enforceable(snapshot: &Arc<Snapshot>, judges: &[Judge]) -> (Arc<Snapshot>, Vec<String>) {
    let judges: Vec<(&Judge, Moved)> = judges.iter().map(|judge| (judge, moved(judge, snapshot))).collect();
    let mut concerned = Vec::new();
    let mut parts: Option<SnapshotParts> = None;
    for (index, endpoint) in snapshot.endpoints.iter().enumerate() {
        let Some(ruleset) = snapshot.ruleset_of(endpoint).filter(|_| endpoint.node == snapshot.node) else {
            continue;
        };
        if !judges_requests(ruleset)
            || judges.iter().all(|(judge, moved)| judge.agrees(moved, endpoint, ruleset))
        {
            continue;
        }
        concerned.push(format!("{}/{}", endpoint.namespace, endpoint.name));
        let parts = parts.get_or_insert_with(|| SnapshotParts::clone(snapshot));
        parts.rulesets.push(Arc::new(without_requests(ruleset)));
        parts.endpoints[index].ruleset = parts.rulesets.len() - 1;
    }
    match parts.map(Snapshot::from_parts) {
        None => (Arc::clone(snapshot), concerned),
        // Cannot fail, since only ruleset numbers differ; if it did, nothing would be allowed.
        Some(stripped) => (Arc::new(stripped.unwrap_or_default()), concerned),
    }
}

fn judges_requests(ruleset: &Ruleset) -> bool {
    ruleset.ingress.rules.iter().chain(&ruleset.egress.rules).any(|rule| rule.http.is_some())
}

fn without_requests(ruleset: &Ruleset) -> Ruleset {
    let mut ruleset = ruleset.clone();
    ruleset.ingress.rules.retain(|rule| rule.http.is_none());
    ruleset.egress.rules.retain(|rule| rule.http.is_none());
    ruleset
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use policy::{Flow, Identities, Pod, PolicyKind, PolicyObject, Protocol, Verdict, World};

    use super::*;

    const CLIENT: [u8; 4] = [10, 1, 0, 2];
    const SERVER: [u8; 4] = [10, 1, 0, 3];

    fn snapshot(path: Option<&str>) -> Arc<Snapshot> {
        let pod = |name: &str, address: [u8; 4]| Pod {
            namespace: "ns".into(),
            name: name.into(),
            node: "n".into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            addresses: vec![IpAddr::from(address)],
            ..Pod::default()
        };
        let mut ports = serde_json::json!({"ports": [{"port": "80", "protocol": "TCP"}]});
        if let Some(path) = path {
            ports["rules"] = serde_json::json!({"http": [{"path": path}]});
        }
        let manifest = serde_json::json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": "server"}},
                "ingress": [
                    {"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": [ports]},
                    {"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "81", "protocol": "TCP"}]}]},
                ],
            },
        });
        let policy = PolicyObject {
            kind: PolicyKind::CiliumNetworkPolicy,
            namespace: "ns".into(),
            name: "p".into(),
            manifest,
        };
        let world = World {
            this_node: "n".into(),
            pods: vec![pod("client", CLIENT), pod("server", SERVER)],
            policies: vec![policy],
            ..World::default()
        };
        let (snapshot, problems) = policy::compile(&world, &mut Identities::default(), 1);
        assert_eq!(problems, []);
        Arc::new(snapshot)
    }

    fn verdict(snapshot: &Snapshot, port: u16) -> Verdict {
        let flow = Flow { source: CLIENT.into(), destination: SERVER.into(), protocol: Protocol::Tcp, port };
        snapshot.decide_connection(&flow).verdict
    }

    #[test]
    fn rules_that_a_judge_has_not_deny_and_others_stay() {
        let (new, old) = (snapshot(Some("/new")), snapshot(Some("/old")));
        for judges in [vec![Judge::Snapshot(Arc::clone(&old))], vec![Judge::Unknown, Judge::Nothing]] {
            let (enforceable, concerned) = enforceable(&new, &judges);
            assert_eq!(concerned, ["ns/server"]);
            assert_eq!(
                (verdict(&enforceable, 80), verdict(&enforceable, 81)),
                (Verdict::Denied, Verdict::Allowed)
            );
        }
    }

    #[test]
    fn nothing_changes_when_every_judge_agrees_or_refuses_everything() {
        let new = snapshot(Some("/new"));
        for judges in [vec![], vec![Judge::Nothing], vec![Judge::Snapshot(snapshot(Some("/new")))]] {
            let (enforceable, concerned) = enforceable(&new, &judges);
            assert!(Arc::ptr_eq(&enforceable, &new) && concerned.is_empty());
            assert_eq!(verdict(&enforceable, 80), Verdict::Redirected);
        }
    }

    #[test]
    fn a_judge_that_takes_a_client_for_another_is_not_asked() {
        let new = snapshot(Some("/new"));
        // The same rules, but the client's address was another pod's when the judge heard of it.
        let mut parts = SnapshotParts::clone(&new);
        parts.addresses.insert(IpAddr::from(CLIENT), policy::identity::WORLD);
        let old = Judge::Snapshot(Arc::new(Snapshot::from_parts(parts).unwrap()));
        let (enforceable, concerned) = enforceable(&new, &[old]);
        assert_eq!((verdict(&enforceable, 80), concerned.len()), (Verdict::Denied, 1));
        assert_eq!(verdict(&enforceable, 81), Verdict::Allowed);
    }

    #[test]
    fn a_pod_without_request_rules_needs_no_judge() {
        let new = snapshot(None);
        let (enforceable, concerned) = enforceable(&new, &[Judge::Unknown]);
        assert_eq!((verdict(&enforceable, 80), concerned.len()), (Verdict::Allowed, 0));
    }
}
