use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use layout::{ConnectionEntry, Endpoint, RuleKey, endpoint_flag, limits, maps as names};
use policy::{EndpointPolicy, Ruleset, Snapshot};

use super::origins::Origins;
use super::ruleset::{CLOSED_RULESET, lower};
use crate::{Error, Maps, Rule};

/// A pod whose veth exists on this node: what the datapath must know of it beside policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// One of its addresses.
    pub address: IpAddr,
    /// Index of the host side of its veth.
    pub ifindex: u32,
    /// Ethernet address of the pod's side.
    pub mac: [u8; 6],
    /// Has bandwidth limits.
    pub shaped: bool,
    /// Id that the node's network namespace has for the pod's.
    pub netns: Option<u32>,
}

/// What the maps hold, as far as policy is concerned. One process keeps it; after a restart [`Installed::adopt`].
#[derive(Clone, Debug, Default)]
pub struct Installed {
    rulesets: HashMap<Arc<Ruleset>, Lowered>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
    identities: HashMap<IpAddr, u32>,
    /// Rules of an earlier process, whose rulesets are not known.
    foreign: Vec<(u32, RuleKey)>,
    last_ruleset: u32,
    last_generation: u32,
}

/// A ruleset in the trie.
#[derive(Clone, Debug)]
struct Lowered {
    number: u32,
    rules: Arc<[Rule]>,
}

/// The steps from one state of the maps to the next; each is safe to be the last one done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Addresses that are nobody's any more.
    pub withdraw: Vec<IpAddr>,
    /// Addresses that are new or somebody else's.
    pub announce: Vec<(IpAddr, u32)>,
    /// Rules of new rulesets; nothing points to them yet.
    pub add: Vec<Rule>,
    /// Endpoints that are new or whose policy, identity or attachment changed: their generation is new.
    pub endpoints: Vec<(IpAddr, Endpoint)>,
    /// Endpoints that are gone.
    pub remove_endpoints: Vec<IpAddr>,
    /// Rules that nothing points to any more.
    pub remove: Vec<(u32, RuleKey)>,
    /// Endpoints that are closed because a map is full.
    pub no_room: Vec<(IpAddr, FullMap)>,
    /// How many addresses stay unknown because there are more than [`limits::IDENTITIES`].
    pub unknown: usize,
}

/// Which map has no room for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullMap {
    /// [`limits::ENDPOINTS`]: nothing goes in or out.
    Endpoints,
    /// [`limits::RULES`]: it has no rules that allow anything.
    Rules,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.withdraw.is_empty()
            && self.announce.is_empty()
            && self.add.is_empty()
            && self.endpoints.is_empty()
            && self.remove_endpoints.is_empty()
            && self.remove.is_empty()
    }

    /// Whether endpoints were closed for want of room while others' rules were removed: the same snapshot planned again
    /// may have room for them now.
    pub fn made_room(&self) -> bool {
        !self.no_room.is_empty() && !self.remove.is_empty()
    }

    /// Carries it out. Who an address is comes first: nothing is granted to an identity before it has left the
    /// addresses that lost it.
    ///
    /// # Errors
    /// The first refusal of the kernel, with the steps before it done: read the maps again with [`Installed::read`].
    pub fn apply(&self, maps: &mut Maps) -> Result<(), Error> {
        // Left set by an error, or a death on the way: the mixture stays, until a plan is carried out to its end.
        maps.set_swapping(true)?;
        self.write(maps)?;
        maps.set_swapping(false)
    }

    fn write(&self, maps: &mut Maps) -> Result<(), Error> {
        for &address in &self.withdraw {
            maps.remove_identity(address)?;
        }
        for &(address, identity) in &self.announce {
            maps.put_identity(address, identity)?;
        }
        for &address in &self.remove_endpoints {
            maps.remove_endpoint(address)?;
        }
        for rule in &self.add {
            maps.put_rule(rule)?;
        }
        for (address, endpoint) in &self.endpoints {
            maps.put_endpoint(*address, endpoint)?;
        }
        for (prefix_len, key) in &self.remove {
            maps.remove_rule(*prefix_len, key)?;
        }
        Ok(())
    }
}

impl Installed {
    /// What an earlier process left in the maps. Its rulesets are used until the first plan and then replaced; no number
    /// that may still be somewhere is given out again.
    pub fn adopt(
        rules: &[Rule],
        endpoints: impl IntoIterator<Item = (IpAddr, Endpoint)>,
        identities: impl IntoIterator<Item = (IpAddr, u32)>,
        connections: impl IntoIterator<Item = ConnectionEntry>,
    ) -> Self {
        let endpoints: BTreeMap<_, _> = endpoints.into_iter().collect();
        let of_rules = rules.iter().map(|rule| u32::from_be_bytes(rule.key.ruleset));
        let of_endpoints = endpoints.values().map(|endpoint| endpoint.ruleset);
        let of_connections =
            connections.into_iter().flat_map(|entry| [entry.a_generation, entry.b_generation]);
        let generations = endpoints.values().map(|endpoint| endpoint.generation).chain(of_connections);
        Self {
            last_ruleset: of_rules.chain(of_endpoints).max().unwrap_or(CLOSED_RULESET),
            last_generation: generations.max().unwrap_or(0),
            foreign: rules.iter().map(|rule| (rule.prefix_len, rule.key)).collect(),
            rulesets: HashMap::new(),
            identities: identities.into_iter().collect(),
            endpoints,
        }
    }

    /// [`Self::adopt`] of what the maps hold now, and origins numbered beyond those in the rules.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn read(maps: &Maps) -> Result<(Self, Origins), Error> {
        let rules = maps.rules()?;
        let connections = maps.connections()?.into_iter().map(|(_, entry)| entry);
        let origins = Origins::after(rules.iter().map(|rule| rule.origin).max().unwrap_or(0));
        Ok((Self::adopt(&rules, maps.endpoints()?, maps.identities()?, connections), origins))
    }

    /// The steps that put `snapshot` in force for the attached pods, and what is installed once they are done.
    ///
    /// A pod that the snapshot does not know is closed.
    pub fn plan(&self, snapshot: &Snapshot, attached: &[Attached], origins: &mut Origins) -> (Plan, Self) {
        let mut plan = Plan::default();
        let mut next = Self {
            rulesets: HashMap::new(),
            endpoints: BTreeMap::new(),
            identities: self.with_room(&snapshot.addresses, limits::IDENTITIES as usize),
            foreign: Vec::new(),
            last_ruleset: self.last_ruleset,
            last_generation: self.last_generation,
        };
        self.plan_identities(&next, &mut plan);
        plan.unknown = snapshot.addresses.len() - next.identities.len();
        let mut room = (limits::RULES as usize).saturating_sub(self.rule_count());
        for pod in attached {
            if next.endpoints.len() >= limits::ENDPOINTS as usize {
                plan.no_room.push((pod.address, FullMap::Endpoints));
                continue;
            }
            let endpoint =
                snapshot.endpoint_at(pod.address).filter(|endpoint| endpoint.node == snapshot.node);
            let ruleset = endpoint.and_then(|endpoint| snapshot.ruleset_of(endpoint));
            let number = match ruleset {
                Some(ruleset) => self.ruleset_number(ruleset, &mut next, &mut plan, &mut room, origins),
                None => Some(CLOSED_RULESET),
            };
            if number.is_none() {
                plan.no_room.push((pod.address, FullMap::Rules));
            }
            let wanted = wanted(pod, endpoint, ruleset.map(AsRef::as_ref).zip(number));
            let old = self.endpoints.get(&pod.address).filter(|old| old.ifindex == pod.ifindex);
            let value = match old {
                Some(old) if (Endpoint { generation: 0, birth: 0, ..*old }) == wanted => *old,
                _ => {
                    next.last_generation = next.last_generation.wrapping_add(1).max(1);
                    let generation = next.last_generation;
                    let birth = old.map_or(generation, |old| old.birth);
                    let value = Endpoint { generation, birth, ..wanted };
                    plan.endpoints.push((pod.address, value));
                    value
                }
            };
            next.endpoints.insert(pod.address, value);
        }
        let gone = self.endpoints.keys().filter(|address| !next.endpoints.contains_key(address));
        plan.remove_endpoints = gone.copied().collect();
        let unused = self.rulesets.iter().filter(|(ruleset, _)| !next.rulesets.contains_key(*ruleset));
        let unused =
            unused.flat_map(|(_, lowered)| lowered.rules.iter().map(|rule| (rule.prefix_len, rule.key)));
        plan.remove = self.foreign.iter().copied().chain(unused).collect();
        // Any peer before each, wide before narrow: a packet under way that holds the old number finds what is left, which
        // must never be a wide permission without the narrow refusal above it.
        plan.remove.sort_unstable_by_key(|(length, key)| (key.ruleset, key.identity, *length));
        let in_use = next.rulesets.values().flat_map(|lowered| lowered.rules.iter().map(|rule| rule.origin));
        origins.forget(&in_use.collect::<HashSet<_>>());
        (plan, next)
    }

    /// The values of the endpoints that are installed.
    pub fn endpoints(&self) -> impl Iterator<Item = (IpAddr, &Endpoint)> {
        self.endpoints.iter().map(|(address, endpoint)| (*address, endpoint))
    }

    /// What the kernel's maps have lost of an address: its endpoint, its identity, the rules of its
    /// ruleset. Empty: nothing.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn lost_of(&self, address: IpAddr, maps: &Maps) -> Result<Vec<String>, Error> {
        let Some(endpoint) = self.endpoints.get(&address) else {
            return Ok(vec![format!("no policy is in force for {address}")]);
        };
        let mut lost = Vec::new();
        match maps.endpoints()?.into_iter().find(|(known, _)| *known == address) {
            None => lost.push(format!("map {} has no entry for {address}", names::ENDPOINTS)),
            Some((_, found)) if found != *endpoint => {
                lost.push(format!("map {} has another entry for {address}", names::ENDPOINTS));
            }
            Some(_) => {}
        }
        if let Some(identity) = self.identities.get(&address)
            && !maps.identities()?.contains(&(address, *identity))
        {
            lost.push(format!("map {} does not know {address} as identity {identity}", names::IDENTITIES));
        }
        let ruleset = self.rulesets.values().find(|lowered| lowered.number == endpoint.ruleset);
        if let Some(ruleset) = ruleset.filter(|ruleset| !ruleset.rules.is_empty()) {
            let found: HashSet<Rule> = maps.rules()?.into_iter().collect();
            let gone = ruleset.rules.iter().filter(|rule| !found.contains(rule)).count();
            if gone > 0 {
                lost.push(format!("map {} lacks {gone} of the rules of {address}", names::RULES));
            }
        }
        Ok(lost)
    }

    fn rule_count(&self) -> usize {
        self.foreign.len() + self.rulesets.values().map(|lowered| lowered.rules.len()).sum::<usize>()
    }

    /// As many addresses as the map holds. Those that are in it stay, so that a cluster which outgrows it loses nothing
    /// that works; an address that is left out is unknown, and matches no more than rules that allow every peer.
    fn with_room(&self, addresses: &HashMap<IpAddr, u32>, room: usize) -> HashMap<IpAddr, u32> {
        if addresses.len() <= room {
            return addresses.clone();
        }
        let mut by_rank: Vec<_> = addresses.iter().map(|(&address, &identity)| (address, identity)).collect();
        by_rank.sort_unstable_by_key(|(address, _)| (!self.identities.contains_key(address), *address));
        by_rank.truncate(room);
        by_rank.into_iter().collect()
    }

    fn plan_identities(&self, next: &Self, plan: &mut Plan) {
        let gone = self.identities.keys().filter(|address| !next.identities.contains_key(address));
        plan.withdraw = gone.copied().collect();
        let changed = next
            .identities
            .iter()
            .filter(|(address, identity)| self.identities.get(address) != Some(identity));
        plan.announce = changed.map(|(address, identity)| (*address, *identity)).collect();
        plan.withdraw.sort_unstable();
        plan.announce.sort_unstable();
    }

    /// The number of a ruleset: the one it has, or a new one with its rules to add. None if there is no room for them.
    fn ruleset_number(
        &self,
        ruleset: &Arc<Ruleset>,
        next: &mut Self,
        plan: &mut Plan,
        room: &mut usize,
        origins: &mut Origins,
    ) -> Option<u32> {
        if let Some(known) = next.rulesets.get(ruleset) {
            return Some(known.number);
        }
        let lowered = match self.rulesets.get(ruleset) {
            Some(installed) => installed.clone(),
            None => {
                let number = next.last_ruleset.checked_add(1)?;
                let rules: Arc<[Rule]> = lower(number, ruleset, origins).into();
                *room = room.checked_sub(rules.len())?;
                next.last_ruleset = number;
                plan.add.extend_from_slice(&rules);
                Lowered { number, rules }
            }
        };
        let number = lowered.number;
        next.rulesets.insert(Arc::clone(ruleset), lowered);
        Some(number)
    }
}

/// The endpoint's value, without its generations. Closed without a ruleset.
fn wanted(pod: &Attached, endpoint: Option<&EndpointPolicy>, ruleset: Option<(&Ruleset, u32)>) -> Endpoint {
    let (ingress, egress, number) = match ruleset {
        Some((ruleset, number)) => (ruleset.ingress.enforced, ruleset.egress.enforced, number),
        None => (true, true, CLOSED_RULESET),
    };
    let mut flags = 0;
    for (set, flag) in [
        (ingress, endpoint_flag::ENFORCE_INGRESS),
        (egress, endpoint_flag::ENFORCE_EGRESS),
        (pod.shaped, endpoint_flag::SHAPED),
    ] {
        flags |= if set { flag } else { 0 };
    }
    Endpoint {
        ifindex: pod.ifindex,
        identity: endpoint.map_or(policy::identity::UNKNOWN, |endpoint| endpoint.identity),
        generation: 0,
        birth: 0,
        ruleset: number,
        flags,
        netns: pod.netns.map_or(0, |id| id.saturating_add(1)),
        mac: pod.mac,
        reserved: [0; 2],
    }
}
