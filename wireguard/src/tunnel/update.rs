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

impl Tunnel {
    /// Puts `set` in force. New peers, and those that moved, are shaken hands with at once; sessions of the others go on.
    ///
    /// A refused entry ([`Tunnel::problems`] says why) never removes anything: the peer that it names stays as it is. An empty set
    /// is not read as "remove everything", unless it says so ([`PeerSet::no_other_node`]).
    pub fn update_peers(&mut self, mut set: PeerSet, now: Instant, sink: &mut impl Sink) {
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
        }
        let kept: HashSet<PeerId> = self.named_by(&set.refused).difference(&wanted).copied().collect();
        wanted.extend(kept.iter().copied());

        self.problems = set.refused.into_iter().map(|refused| refused.problem).collect();
        self.allowed = self.route(&wanted, &kept);
        self.remove_others(&wanted);
        self.underlay = self.peers.values().map(|peer| peer.endpoint.ip()).collect();
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

    /// The table of allowed IPs of the wanted peers. Of two that claim one prefix in one set the one that has it keeps it; a peer
    /// that is only kept yields to all others.
    fn route(&mut self, wanted: &HashSet<PeerId>, kept: &HashSet<PeerId>) -> AllowedIps {
        let mut claims: Vec<(bool, bool, &str, IpNet, PeerId)> = Vec::new();
        for (id, peer) in self.peers.iter().filter(|(id, _)| wanted.contains(id)) {
            let yields = kept.contains(id);
            for prefix in &peer.allowed_ips {
                let newcomer = self.allowed.peer_of(prefix.network()) != Some(*id);
                claims.push((yields, newcomer, &peer.node, *prefix, *id));
            }
        }
        claims.sort_unstable();
        let mut table = AllowedIps::default();
        for (_, _, node, prefix, id) in claims {
            if let Err(holder) = table.claim(prefix, id) {
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
