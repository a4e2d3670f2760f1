//! Parts that all flow records have: ends, times, policies.

use std::net::IpAddr;

use api::flow::{Endpoint, Ip, IpVersion, Policy};
use policy::{Direction, IdentityId, Origin, Snapshot, identity};
use prost_types::Timestamp;

/// Label under which a policy's rule stands in a flow: Hubble has no field for it.
const RULE_LABEL: &str = "selvage.dev/rule";
/// Name of what refuses where no rule allows. It has no kind, since no policy object says so.
const DEFAULT_DENY: &str = "default deny";

/// An end of a flow. `judged` is the identity that it had when it was judged, which the snapshot may have changed since.
pub(super) fn endpoint(snapshot: &Snapshot, address: IpAddr, judged: IdentityId) -> Endpoint {
    let pod = snapshot.endpoint_at(address);
    let identity = if judged == 0 { snapshot.identity_of(address) } else { judged };
    let labels = match (identity::reserved_name(identity), snapshot.identities.get(&identity), pod) {
        (Some(name), ..) => vec![format!("reserved:{name}")],
        (None, Some(own), _) => {
            own.labels.iter().map(|(name, value)| format!("k8s:{name}={value}")).collect()
        }
        (None, None, Some(pod)) => {
            pod.labels.iter().map(|(name, value)| format!("k8s:{name}={value}")).collect()
        }
        (None, None, None) => Vec::new(),
    };
    Endpoint {
        id: 0,
        identity,
        namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
        labels,
        pod_name: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
    }
}

pub(super) fn ip(source: IpAddr, destination: IpAddr) -> Ip {
    let version = if source.is_ipv4() { IpVersion::IPv4 } else { IpVersion::IPv6 };
    Ip {
        source: source.to_string(),
        destination: destination.to_string(),
        ip_version: version.into(),
        encrypted: false,
    }
}

/// Nanoseconds since 1970.
pub(super) fn timestamp(nanoseconds: u64) -> Timestamp {
    /// In a second.
    const NANOSECONDS: u64 = 1_000_000_000;
    Timestamp {
        seconds: i64::try_from(nanoseconds / NANOSECONDS).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanoseconds % NANOSECONDS).unwrap_or(0),
    }
}

/// Policies that decided a direction, in the form of `*_allowed_by` and `*_denied_by`. That no policy restricts a pod is
/// nobody's decision and gives none.
pub(super) fn policies(origin: &Origin, direction: Direction, allowed: bool) -> Vec<Policy> {
    if origin.is_default() {
        let refused = Policy { name: DEFAULT_DENY.to_owned(), ..Policy::default() };
        return if allowed { Vec::new() } else { vec![refused] };
    }
    let described = origin.describe(direction);
    let rule = described.strip_prefix(&origin.to_string()).map(str::trim_start).unwrap_or("");
    let label = (!rule.is_empty()).then(|| format!("{RULE_LABEL}={rule}"));
    vec![Policy {
        name: origin.name.to_string(),
        namespace: origin.namespace.to_string(),
        labels: label.into_iter().collect(),
        revision: 0,
        kind: origin.kind.to_owned(),
    }]
}

#[cfg(test)]
mod tests {
    use policy::PolicyKind;

    use super::*;

    #[test]
    fn a_policy_is_named_with_its_rule() {
        let mut origin = Origin::policy(PolicyKind::CiliumNetworkPolicy, "production", "api");
        assert_eq!(policies(&origin, Direction::Ingress, true)[0].labels, [""; 0]);
        origin.rule = Some(0);
        let found = &policies(&origin.with_http_rule(1), Direction::Ingress, true)[0];
        assert_eq!(found.labels, ["selvage.dev/rule=ingress[0].http[1]"]);
        assert_eq!(
            (found.kind.as_str(), found.namespace.as_str(), found.name.as_str()),
            ("CiliumNetworkPolicy", "production", "api")
        );
        origin.deny = true;
        assert_eq!(policies(&origin, Direction::Egress, false)[0].labels, ["selvage.dev/rule=egressDeny[0]"]);
    }

    #[test]
    fn the_default_is_named_only_when_it_denies() {
        assert_eq!(policies(&Origin::default(), Direction::Ingress, true), []);
        let denied = &policies(&Origin::default(), Direction::Ingress, false)[0];
        assert_eq!((denied.kind.as_str(), denied.name.as_str()), ("", "default deny"));
    }

    #[test]
    fn times_are_split_at_the_second() {
        let time = timestamp(1_700_000_000_123_456_789);
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_456_789));
    }
}
