//! A new peer set as an additive diff: what is new is there before what is gone leaves.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use boringtun::x25519::PublicKey;
use ipnet::IpNet;

use super::{PEER_IDS, Tunnel};
use crate::allowed_ips::AllowedIps;
use crate::peer::{Peer, PeerId};
use crate::peers::{MAX_PEERS, PeerConfig, PeerSet, Problem, Refused};
use crate::tunnel::Sink;

/// Why an entry with our own key is refused.
const OWN_KEY: &str =
    "is this node's own: a packet to that peer would come back; give each node its own private key";

/// Why an entry with a point of small order as its key is refused (RFC 7748, section 6.1).
const NO_SECRET: &str = "is no key: its secret with any other is known to everybody, who could then speak as that node; give it a new private key";

/// A peer's claim to a prefix; the smallest wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Claim<'p> {
    yields: bool,
    of_another_node: bool,
    of_another_key: bool,
    node: &'p str,
    prefix: IpNet,
    peer: PeerId,
}

impl Tunnel {
    /// Puts `set` in force. New peers, and those that moved, are shaken hands with at once; sessions of the others go on.
    ///
    /// A refused entry ([`Tunnel::problems`] says why) never removes anything: the peer that it names stays as it is. An empty set
    /// is not read as "remove everything", unless it says so ([`PeerSet::no_other_node`]).
    pub fn update_peers(&mut self, set: PeerSet, now: Instant, sink: &mut impl Sink) {
        self.apply(set, now, sink, |_| {});
    }

    /// `after_step` sees the tunnel after each step that changes where packets go.
    fn apply(
        &mut self,
        mut set: PeerSet,
        now: Instant,
        sink: &mut impl Sink,
        mut after_step: impl FnMut(&Self),
    ) {
        self.changed = true;
        let is_silence = set.peers.is_empty() && set.refused.is_empty() && !set.no_other_node;
        if is_silence && !self.peers.is_empty() {
            let message = format!("is empty: the {} peers in force stay", self.peers.len());
            self.problems = vec![Problem { location: format!("peer set {}", set.number), message }];
            return;
        }
        self.refuse_impossible(&mut set);
        self.number = set.number;
        self.no_other_node = set.no_other_node;

        let mut wanted = HashSet::new();
        for config in set.peers {
            wanted.insert(self.add_or_update(config, now, sink));
            after_step(self);
        }
        let kept: HashSet<PeerId> = self.named_by(&set.refused).difference(&wanted).copied().collect();
        wanted.extend(kept.iter().copied());

        self.problems = set.refused.into_iter().map(|refused| refused.problem).collect();
        self.allowed = self.route(&wanted, &kept);
        after_step(self);
        self.remove_others(&wanted);
        after_step(self);
        let addresses = |peer: &Peer| [peer.configured.ip(), peer.endpoint.ip()];
        self.underlay = self.peers.values().flat_map(addresses).collect();
        for problem in &self.problems {
            tracing::warn!(problem.location, problem.message, "refused a part of the peer set");
        }
    }

    /// Moves entries that cannot be in force together, or at all, to the refused ones.
    fn refuse_impossible(&self, set: &mut PeerSet) {
        let mut owner: HashMap<PublicKey, String> = HashMap::new();
        for config in &set.peers {
            let in_force = self.by_key.get(&config.public_key).and_then(|id| self.peers.get(id));
            // Of two nodes with one key the one that has it stays, or else the first: a newcomer takes nobody's place.
            let has_it = in_force.is_some_and(|peer| peer.node == config.node);
            if has_it || !owner.contains_key(&config.public_key) {
                owner.insert(config.public_key, config.node.clone());
            }
        }
        let mut seen = HashSet::new();
        let mut accepted = Vec::with_capacity(set.peers.len());
        for config in std::mem::take(&mut set.peers) {
            let duplicate = owner.get(&config.public_key).filter(|node| **node != config.node);
            let reason = if config.public_key == self.public {
                Some(("publicKey", OWN_KEY.to_owned()))
            } else if let Some(node) = duplicate {
                Some(("publicKey", format!("is also that of {node}: give each node its own private key")))
            } else if !seen.insert(config.public_key) {
                Some(("publicKey", "is listed twice for this node".to_owned()))
            } else if !self.shares_a_secret_with(&config.public_key) {
                Some(("publicKey", NO_SECRET.to_owned()))
            } else if accepted.len() >= MAX_PEERS {
                Some(("node", format!("is beyond the limit of {MAX_PEERS} peers")))
            } else {
                None
            };
            match reason {
                None => accepted.push(config),
                Some((field, message)) => set.refused.push(Refused {
                    problem: Problem::of(&config.node, field, message),
                    // Its own key names no peer, and that of another node only the other, which has an entry.
                    public_key: None,
                    node: config.node,
                }),
            }
        }
        set.peers = accepted;
    }

    fn shares_a_secret_with(&self, key: &PublicKey) -> bool {
        // Those in force have been asked before.
        self.by_key.contains_key(key) || self.secret.diffie_hellman(key).was_contributory()
    }

    fn add_or_update(&mut self, config: PeerConfig, now: Instant, sink: &mut impl Sink) -> PeerId {
        if let Some(id) = self.by_key.get(&config.public_key).copied()
            && let Some(peer) = self.peers.get_mut(&id)
        {
            if peer.update(config) {
                peer.start_handshake(now, &mut self.scratch, sink);
            }
            return id;
        }
        let id = self.free_id();
        tracing::info!(node = config.node, endpoint = %config.endpoint, "peer added");
        self.by_key.insert(config.public_key, id);
        let mut peer = Peer::new(config, self.secret.clone(), id, self.admitted.clone(), now);
        peer.start_handshake(now, &mut self.scratch, sink);
        self.peers.insert(id, peer);
        id
    }

    /// Ends because there are far fewer peers than numbers.
    fn free_id(&mut self) -> PeerId {
        loop {
            self.last_id = (self.last_id + 1) % PEER_IDS;
            if !self.peers.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Peers in force that a refused entry is about.
    fn named_by(&self, refused: &[Refused]) -> HashSet<PeerId> {
        let nodes: HashSet<&str> = refused.iter().map(|refused| refused.node.as_str()).collect();
        let keys: HashSet<PublicKey> = refused.iter().filter_map(|refused| refused.public_key).collect();
        let named = |peer: &Peer| nodes.contains(peer.node.as_str()) || keys.contains(&peer.public_key);
        self.peers.iter().filter(|(_, peer)| named(peer)).map(|(id, _)| *id).collect()
    }

    /// The table of allowed IPs of the wanted peers. Of two that claim one prefix in one set the one that has it keeps it, also with
    /// another key; a peer that is only kept yields to all others.
    fn route(&mut self, wanted: &HashSet<PeerId>, kept: &HashSet<PeerId>) -> AllowedIps {
        let mut claims = Vec::new();
        for (id, peer) in self.peers.iter().filter(|(id, _)| wanted.contains(id)) {
            for prefix in &peer.allowed_ips {
                let holder = self.allowed.holder(*prefix);
                let node = holder.and_then(|holder| self.peers.get(&holder)).map(|holder| &holder.node);
                claims.push(Claim {
                    yields: kept.contains(id),
                    of_another_node: node != Some(&peer.node),
                    of_another_key: holder != Some(*id),
                    node: &peer.node,
                    prefix: *prefix,
                    peer: *id,
                });
            }
        }
        claims.sort_unstable();
        let mut table = AllowedIps::default();
        for Claim { node, prefix, peer, .. } in claims {
            if let Err(holder) = table.claim(prefix, peer) {
                let holder = self.peers.get(&holder).map_or("?", |peer| peer.node.as_str());
                let message = format!("{prefix} belongs to {holder} already, which keeps it");
                self.problems.push(Problem::of(node, "allowedIPs", message));
            }
        }
        table
    }

    fn remove_others(&mut self, wanted: &HashSet<PeerId>) {
        self.peers.retain(|id, peer| {
            let stays = wanted.contains(id);
            if !stays {
                tracing::info!(node = peer.node, endpoint = %peer.endpoint, "peer removed");
                self.by_key.remove(&peer.public_key);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{IpAddr, SocketAddr};

    use boringtun::x25519::StaticSecret;
    use proptest::prelude::*;

    use super::*;

    struct Nowhere;

    impl Sink for Nowhere {
        fn to_network(&mut self, _: &[u8], _: SocketAddr) {}
        fn to_host(&mut self, _: &[u8]) {}
    }

    /// Nested in each other, beside each other, and with the same first address.
    const PREFIXES: [&str; 10] = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.0/24",
        "10.1.0.0/32",
        "10.1.2.0/24",
        "10.1.2.128/25",
        "10.2.0.0/16",
        "192.0.2.1/32",
        "fd00::/16",
        "fd00:1::/32",
    ];
    const NODES: u8 = 4;

    /// What one node's entry says; nodes have two keys each.
    #[derive(Debug, Clone)]
    struct Entry {
        second_key: bool,
        legible: bool,
        prefixes: BTreeSet<IpNet>,
    }

    /// A table without any idea of tries, peers or diffs: who has which prefix.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct Oracle {
        claims: BTreeMap<String, BTreeSet<IpNet>>,
        holders: BTreeMap<IpNet, String>,
    }

    impl Oracle {
        fn apply(&self, set: &BTreeMap<String, Entry>) -> Self {
            if set.is_empty() {
                return self.clone();
            }
            let mut next = Self::default();
            let (legible, others): (Vec<_>, Vec<_>) = set.iter().partition(|(_, entry)| entry.legible);
            let kept = others.iter().filter_map(|(node, _)| self.claims.get_key_value(*node));
            let firm: BTreeMap<_, _> = legible.iter().map(|(node, entry)| (*node, &entry.prefixes)).collect();
            let yielding: BTreeMap<_, _> = kept.collect();
            for claims in [&firm, &yielding] {
                let before = next.holders.clone();
                for (node, prefixes) in claims {
                    next.claims.insert((*node).clone(), (*prefixes).clone());
                    for prefix in *prefixes {
                        let has_it = self.holders.get(prefix) == Some(node);
                        if !before.contains_key(prefix) && (has_it || !next.holders.contains_key(prefix)) {
                            next.holders.insert(*prefix, (*node).clone());
                        }
                    }
                }
            }
            next
        }

        fn node_of(&self, address: IpAddr) -> Option<&str> {
            let around = self.holders.iter().filter(|(prefix, _)| prefix.contains(&address));
            around.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, node)| node.as_str())
        }
    }

    fn probes() -> Vec<IpAddr> {
        let prefixes = PREFIXES.iter().map(|prefix| prefix.parse::<IpNet>().unwrap());
        prefixes.flat_map(|prefix| [prefix.network(), prefix.broadcast()]).collect()
    }

    fn node_of(tunnel: &Tunnel, address: IpAddr) -> Option<&str> {
        let peer = tunnel.allowed.peer_of(address)?;
        Some(tunnel.peers.get(&peer).map_or("nobody", |peer| &peer.node))
    }

    fn wanted(number: u64, entries: &BTreeMap<String, Entry>) -> PeerSet {
        let mut set = PeerSet { number, ..PeerSet::default() };
        for (index, (node, entry)) in (0u8..).zip(entries) {
            // The index is not the node's number, and does not matter.
            let seed = node.as_bytes()[node.len() - 1] * 2 + u8::from(entry.second_key);
            let public_key = PublicKey::from(&StaticSecret::from([seed; 32]));
            if entry.legible {
                set.peers.push(PeerConfig {
                    node: node.clone(),
                    public_key,
                    endpoint: SocketAddr::from(([192, 0, 2, index], 51820)),
                    allowed_ips: entry.prefixes.iter().copied().collect(),
                });
            } else {
                let problem = Problem::of(node, "endpoint", "nonsense".to_owned());
                set.refused.push(Refused { node: node.clone(), public_key: None, problem });
            }
        }
        set
    }

    fn entries() -> impl Strategy<Value = BTreeMap<String, Entry>> {
        let prefixes = prop::sample::subsequence(&PREFIXES[..], 0..=5)
            .prop_map(|prefixes| prefixes.into_iter().map(|prefix| prefix.parse().unwrap()).collect());
        let entry = (any::<bool>(), prop::bool::weighted(0.9), prefixes)
            .prop_map(|(second_key, legible, prefixes)| Entry { second_key, legible, prefixes });
        prop::collection::btree_map((0..NODES).prop_map(|node| format!("node-{node}")), entry, 0..=4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// After each set every address belongs to whom it belongs to by the set (and by who had it, where two claim the same),
        /// and on the way there no address that has a peer before and after is without one.
        #[test]
        fn a_table_is_that_of_its_set_and_has_no_gap_on_the_way(
            sets in prop::collection::vec(entries(), 1..8),
        ) {
            let now = Instant::now();
            let mut tunnel = Tunnel::new(StaticSecret::from([7; 32]), now);
            let mut oracle = Oracle::default();
            for (number, entries) in (1..).zip(&sets) {
                let next = oracle.apply(entries);
                let mut wrong = Vec::new();
                tunnel.apply(wanted(number, entries), now, &mut Nowhere, |tunnel| {
                    for address in probes() {
                        let (before, after) = (oracle.node_of(address), next.node_of(address));
                        let found = node_of(tunnel, address);
                        if found != before && found != after {
                            wrong.push(format!("{address}: {before:?} -> {found:?} -> {after:?}"));
                        }
                    }
                });
                prop_assert!(wrong.is_empty(), "set {number}: {wrong:#?}");
                for address in probes() {
                    prop_assert_eq!(node_of(&tunnel, address), next.node_of(address), "{} set {}", address, number);
                }
                oracle = next;
            }
        }
    }
}
