//! Who has which address. A pod's address decides what its packets may do, so one that two claim belongs to nobody.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::{EndpointPolicy, IdentityId, Pod, Problem, World, identity};

/// Gives the endpoints their addresses and returns the identity of every known address.
///
/// A node's address is the node's, whoever else claims it. Of several pods with one address that of this node has it,
/// for here the agent itself gave it out. Otherwise all of them are closed, and the address is nobody's.
pub(super) fn assign(
    world: &World,
    pods: &[&Pod],
    endpoints: &mut [EndpointPolicy],
    closed: usize,
    problems: &mut Vec<Problem>,
) -> HashMap<IpAddr, IdentityId> {
    let mut identities = node_identities(world);
    for (address, claimants) in claims(pods) {
        if identities.contains_key(&address) {
            for &index in &claimants {
                note(problems, pods[index], address, "is a node's address; the pod is closed");
                endpoints[index].ruleset = closed;
            }
            continue;
        }
        let here: Vec<usize> =
            claimants.iter().copied().filter(|&i| pods[i].node == world.this_node).collect();
        let owner = match (claimants.as_slice(), here.as_slice()) {
            ([only], _) | (_, [only]) => Some(*only),
            _ => None,
        };
        for &index in claimants.iter().filter(|&&index| owner != Some(index)) {
            note(problems, pods[index], address, "is another pod's address, too; the pod is closed");
            endpoints[index].ruleset = closed;
        }
        // Without an owner the first one stands for all: closed, and unknown to others.
        let holder = owner.or(claimants.first().copied());
        if let Some(endpoint) = holder.and_then(|index| endpoints.get_mut(index)) {
            endpoint.addresses.push(address);
            identities.insert(address, if owner.is_some() { endpoint.identity } else { identity::UNKNOWN });
        }
    }
    identities
}

fn node_identities(world: &World) -> HashMap<IpAddr, IdentityId> {
    let mut identities = HashMap::new();
    for node in &world.nodes {
        let here = node.name == world.this_node;
        for address in &node.addresses {
            let identity = identities.entry(address.to_canonical()).or_insert(identity::REMOTE_NODE);
            if here {
                *identity = identity::HOST;
            }
        }
    }
    identities
}

/// Each address with the pods that claim it, by index.
fn claims(pods: &[&Pod]) -> BTreeMap<IpAddr, Vec<usize>> {
    let mut claims: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for (index, pod) in pods.iter().enumerate() {
        for address in &pod.addresses {
            let claimants = claims.entry(address.to_canonical()).or_default();
            if claimants.last() != Some(&index) {
                claimants.push(index);
            }
        }
    }
    claims
}

fn note(problems: &mut Vec<Problem>, pod: &Pod, address: IpAddr, message: &str) {
    let location = format!("Pod {}/{}", pod.namespace, pod.name);
    problems.push(Problem { location, message: format!("{address} {message}") });
}
