//! A set of peers as the agent sends it, checked entry by entry: a bad entry fails alone.

use std::net::SocketAddr;

use boringtun::x25519::PublicKey;
use ipnet::IpNet;

/// Most peers of a node: the size up to which Kubernetes supports clusters.
pub const MAX_PEERS: usize = 5_000;
/// Most allowed IPs of a peer: a node has a few pod ranges and addresses.
pub const MAX_ALLOWED_IPS: usize = 64;
/// Longest name of a node: that of a DNS subdomain (RFC 1123).
const MAX_NODE_NAME: usize = 253;

/// One peer, wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Name of its node.
    pub node: String,
    /// Its static public key.
    pub public_key: PublicKey,
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// What it may send from, and what is sent to it. No host bits are set.
    pub allowed_ips: Vec<IpNet>,
}

/// A whole set of peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSet {
    /// The agent's number of it.
    pub number: u64,
    /// Entries that make sense by themselves.
    pub peers: Vec<PeerConfig>,
    /// Entries that do not. A peer in force that one of them names stays as it is.
    pub refused: Vec<Refused>,
    /// Without any entry: there are no peers. Otherwise an empty set is silence.
    pub no_other_node: bool,
}

/// An entry that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Name of its node.
    pub node: String,
    /// Its key, if that much was legible.
    pub public_key: Option<PublicKey>,
    /// Why.
    pub problem: Problem,
}

/// What is wrong with a peer set, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The entry and field: "peer node-2: endpoint".
    pub location: String,
    /// What is wrong, and how to repair it.
    pub message: String,
}

impl Problem {
    /// A problem of one field of a node's entry.
    pub(crate) fn of(node: &str, field: &str, message: String) -> Self {
        Self { location: format!("peer {node}: {field}"), message }
    }
}

impl From<Problem> for api::agent::Problem {
    fn from(problem: Problem) -> Self {
        Self { r#where: problem.location, message: problem.message }
    }
}

impl From<api::agent::PeerSet> for PeerSet {
    fn from(set: api::agent::PeerSet) -> Self {
        let mut parsed = Self { number: set.number, no_other_node: set.no_other_node, ..Self::default() };
        for peer in set.peers {
            match parse(&peer) {
                Ok(peer) => parsed.peers.push(peer),
                Err(problem) => parsed.refused.push(Refused {
                    public_key: public_key(&peer).ok(),
                    node: shortened(&peer.node),
                    problem,
                }),
            }
        }
        parsed
    }
}

fn parse(peer: &api::agent::Peer) -> Result<PeerConfig, Problem> {
    let problem = |field: &str, message: String| Problem::of(&shortened(&peer.node), field, message);
    if peer.node.is_empty() || peer.node.len() > MAX_NODE_NAME {
        return Err(problem("node", format!("a node's name has 1 to {MAX_NODE_NAME} bytes")));
    }
    let public_key = public_key(peer)?;
    let endpoint: SocketAddr = peer.endpoint.parse().map_err(|_| {
        problem("endpoint", format!("{:?} is not address:port, such as 192.0.2.7:51820", peer.endpoint))
    })?;
    if endpoint.port() == 0 || endpoint.ip().is_unspecified() || endpoint.ip().is_multicast() {
        return Err(problem("endpoint", format!("nothing can be sent to {endpoint}")));
    }
    if endpoint.is_ipv6() {
        return Err(problem("endpoint", format!("{endpoint}: an IPv6 underlay is not supported yet")));
    }
    if peer.allowed_ips.len() > MAX_ALLOWED_IPS {
        return Err(problem(
            "allowedIPs",
            format!("{} entries, at most {MAX_ALLOWED_IPS}", peer.allowed_ips.len()),
        ));
    }
    let allowed_ips = peer
        .allowed_ips
        .iter()
        .map(|text| allowed_ip(text).map_err(|message| problem("allowedIPs", message)))
        .collect::<Result<_, _>>()?;
    Ok(PeerConfig { node: peer.node.clone(), public_key, endpoint, allowed_ips })
}

fn allowed_ip(text: &str) -> Result<IpNet, String> {
    let prefix: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR, such as 10.2.0.0/16"))?;
    if prefix.prefix_len() == 0 {
        return Err(format!("{text}: a peer that is every address would take all traffic of this node"));
    }
    if prefix != prefix.trunc() {
        return Err(format!("{text} has host bits: {} is meant?", prefix.trunc()));
    }
    Ok(prefix)
}

fn public_key(peer: &api::agent::Peer) -> Result<PublicKey, Problem> {
    let bytes: [u8; 32] = peer.public_key.as_slice().try_into().map_err(|_| {
        let message = format!("{} bytes, a public key has 32", peer.public_key.len());
        Problem::of(&shortened(&peer.node), "publicKey", message)
    })?;
    Ok(bytes.into())
}

/// A name that fits a message, whatever came.
fn shortened(node: &str) -> String {
    if node.is_empty() { "(unnamed)".to_owned() } else { node.chars().take(MAX_NODE_NAME).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(change: impl FnOnce(&mut api::agent::Peer)) -> api::agent::Peer {
        let mut peer = api::agent::Peer {
            node: "node-2".to_owned(),
            public_key: vec![2; 32],
            endpoint: "192.0.2.2:51820".to_owned(),
            allowed_ips: vec!["10.2.0.0/16".to_owned(), "192.0.2.2/32".to_owned()],
        };
        change(&mut peer);
        peer
    }

    #[test]
    fn a_bad_entry_fails_alone_and_says_why() {
        type Change = fn(&mut api::agent::Peer);
        let cases: [(&str, &str, Change); 9] = [
            ("node", "1 to 253", |p| p.node.clear()),
            ("publicKey", "31 bytes", |p| p.public_key.truncate(31)),
            ("endpoint", "not address:port", |p| p.endpoint = "node-2:51820".to_owned()),
            ("endpoint", "nothing can be sent", |p| p.endpoint = "192.0.2.2:0".to_owned()),
            ("endpoint", "IPv6", |p| p.endpoint = "[2001:db8::1]:51820".to_owned()),
            ("allowedIPs", "not a CIDR", |p| p.allowed_ips.push("10.2.0.0".to_owned())),
            ("allowedIPs", "all traffic", |p| p.allowed_ips.push("0.0.0.0/0".to_owned())),
            ("allowedIPs", "10.3.0.0/16 is meant", |p| p.allowed_ips.push("10.3.0.1/16".to_owned())),
            ("allowedIPs", "at most", |p| p.allowed_ips = vec!["10.2.0.0/16".to_owned(); 65]),
        ];
        for (field, message, change) in cases {
            let peers = vec![peer(change), peer(|_| {})];
            let set = PeerSet::from(api::agent::PeerSet { number: 7, peers, no_other_node: false });
            assert_eq!(set.peers.len(), 1, "{field}: {message}");
            let [refused] = set.refused.as_slice() else { panic!("{field}: {message}: nothing refused") };
            assert!(refused.problem.location.ends_with(field), "{}", refused.problem.location);
            assert!(refused.problem.message.contains(message), "{}", refused.problem.message);
            assert_eq!(refused.public_key.is_some(), field != "publicKey");
        }
    }
}
