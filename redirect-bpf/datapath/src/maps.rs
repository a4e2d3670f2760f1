use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use ipnet::IpNet;
use layout::{
    Addr, Config, ConnectionEntry, ConnectionKey, Endpoint, Reason, RuleKey, RuleValue, config_flag, limits,
    range_bits, verdict,
};

use crate::Error;
use crate::layout_check::{CONFIG, CONNECTIONS, COUNTERS, ENDPOINTS, IDENTITIES, RANGES, RULES, Shape};

/// The pinned maps that policy and the pods of the node are written to, and counters and flows are read from.
///
/// Every call is one or more system calls; nothing is cached. Writers are meant to be one process (the agent), readers
/// any number.
pub struct Maps {
    config: Array<MapData, Config>,
    endpoints: HashMap<MapData, Addr, Endpoint>,
    identities: HashMap<MapData, Addr, u32>,
    ranges: LpmTrie<MapData, Addr, u32>,
    rules: LpmTrie<MapData, RuleKey, RuleValue>,
    connections: HashMap<MapData, ConnectionKey, ConnectionEntry>,
    counters: PerCpuArray<MapData, u64>,
}

/// A lowered rule as the trie holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Leading bits of the key that must match; one of those that [`RuleKey`] names.
    pub prefix_len: u32,
    /// Whom and what it is about. Bits behind the prefix should be zero.
    pub key: RuleKey,
    /// One of [`verdict`].
    pub verdict: u8,
    /// Number of the origin (policy and rule); 0 is the implicit default.
    pub origin: u32,
}

/// A reading of all counters, summed over the processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<Reason, u64>);

impl Counters {
    /// How often it happened since the maps were made.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }

    /// Every reason with its count, zeros too, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.0.iter().map(|(reason, count)| (*reason, *count))
    }
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::Map`] if one is not pinned or may not be opened, [`Error::LayoutMismatch`] if it is another version's.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        fn typed<T: TryFrom<Map, Error = MapError>>(
            shape: &Shape,
            pin_dir: &Path,
            kind: fn(MapData) -> Map,
        ) -> Result<T, Error> {
            T::try_from(kind(shape.open(pin_dir)?)).map_err(|source| shape.error("open", source))
        }
        Ok(Self {
            config: typed(&CONFIG, pin_dir, Map::Array)?,
            endpoints: typed(&ENDPOINTS, pin_dir, Map::HashMap)?,
            identities: typed(&IDENTITIES, pin_dir, Map::HashMap)?,
            ranges: typed(&RANGES, pin_dir, Map::LpmTrie)?,
            rules: typed(&RULES, pin_dir, Map::LpmTrie)?,
            connections: typed(&CONNECTIONS, pin_dir, Map::LruHashMap)?,
            counters: typed(&COUNTERS, pin_dir, Map::PerCpuArray)?,
        })
    }

    /// Writes the node's configuration; in force for the next packet. `config_flag::SWAPPING` stays
    /// as it is in the map: it belongs to [`crate::lower::Plan::apply`] alone.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `slots` is no number of listeners, [`Error::Map`] if the kernel refuses.
    pub fn set_config(&mut self, config: &Config) -> Result<(), Error> {
        let swapping = self.config()?.flags & config_flag::SWAPPING;
        self.write_config(&Config { flags: config.flags & !config_flag::SWAPPING | swapping, ..*config })
    }

    /// Says whether the maps hold a mixture of two policies.
    ///
    /// # Errors
    /// As [`Self::set_config`].
    pub fn set_swapping(&mut self, swapping: bool) -> Result<(), Error> {
        let config = self.config()?;
        let flag = if swapping { config_flag::SWAPPING } else { 0 };
        self.write_config(&Config { flags: config.flags & !config_flag::SWAPPING | flag, ..config })
    }

    fn write_config(&mut self, config: &Config) -> Result<(), Error> {
        if !(1..=limits::LISTENERS).contains(&config.slots) {
            let problem = format!("{} listeners; 1 to {} are possible", config.slots, limits::LISTENERS);
            return Err(Error::Invalid { field: "slots", problem });
        }
        self.config.set(0, config, 0).map_err(|source| CONFIG.error("write", source))
    }

    /// The node's configuration; all zeros before it was first written.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn config(&self) -> Result<Config, Error> {
        self.config.get(&0, 0).map_err(|source| CONFIG.error("read", source))
    }

    /// Writes a pod of this node, new or changed, in one step: rules, identity and generation change together.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a generation or device of 0, [`Error::Full`] at `limits::ENDPOINTS`, else [`Error::Map`].
    pub fn put_endpoint(&mut self, address: IpAddr, endpoint: &Endpoint) -> Result<(), Error> {
        for (field, value) in [("generation", endpoint.generation), ("ifindex", endpoint.ifindex)] {
            if value == 0 {
                let problem = format!("0 for endpoint {address}; it stands for none");
                return Err(Error::Invalid { field, problem });
            }
        }
        let result = self.endpoints.insert(Addr::from(address), endpoint, 0);
        written(&ENDPOINTS, "put an endpoint", result)
    }

    /// Forgets a pod; whether it was there. Its connections are void from now on (see
    /// [`Self::remove_connections_of`] to free them at once).
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn remove_endpoint(&mut self, address: IpAddr) -> Result<bool, Error> {
        removed(&ENDPOINTS, "remove an endpoint", self.endpoints.remove(&Addr::from(address)))
    }

    /// The pods of this node, in the order of their addresses.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn endpoints(&self) -> Result<Vec<(IpAddr, Endpoint)>, Error> {
        let mut found: Vec<_> = collect(&ENDPOINTS, self.endpoints.iter())?;
        found.sort_by_key(|(address, _)| *address);
        Ok(found.into_iter().map(|(address, endpoint)| (address.into(), endpoint)).collect())
    }

    /// Announces who an address is, local or remote.
    ///
    /// # Errors
    /// [`Error::Invalid`] for identity 0, which is none, [`Error::Full`] at `limits::IDENTITIES`, else [`Error::Map`].
    pub fn put_identity(&mut self, address: IpAddr, identity: u32) -> Result<(), Error> {
        if identity == layout::identity::ANY {
            let problem = format!("0 for {address}; it means any peer and is nobody's");
            return Err(Error::Invalid { field: "identity", problem });
        }
        let result = self.identities.insert(Addr::from(address), identity, 0);
        written(&IDENTITIES, "put an identity", result)
    }

    /// Withdraws it; whether it was there. The address is `unknown` then, or world outside the pod network.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn remove_identity(&mut self, address: IpAddr) -> Result<bool, Error> {
        removed(&IDENTITIES, "remove an identity", self.identities.remove(&Addr::from(address)))
    }

    /// All announced identities, in the order of their addresses.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn identities(&self) -> Result<Vec<(IpAddr, u32)>, Error> {
        let mut found: Vec<_> = collect(&IDENTITIES, self.identities.iter())?;
        found.sort_unstable();
        Ok(found.into_iter().map(|(address, identity)| (address.into(), identity)).collect())
    }

    /// Makes the map of ranges hold these, each with one of [`layout::range_kind`]. What is new is
    /// there before what is old goes. Whether anything was different.
    ///
    /// # Errors
    /// [`Error::Full`] at `limits::RANGES`, else [`Error::Map`].
    pub fn set_ranges(&mut self, wanted: &BTreeMap<IpNet, u32>) -> Result<bool, Error> {
        let there = self.ranges()?;
        let mut changed = false;
        for (range, kind) in wanted.iter().filter(|(range, kind)| there.get(range) != Some(kind)) {
            written(&RANGES, "put a range", self.ranges.insert(&range_key(range), kind, 0))?;
            changed = true;
        }
        for range in there.keys().filter(|range| !wanted.contains_key(range)) {
            changed |= removed(&RANGES, "remove a range", self.ranges.remove(&range_key(range)))?;
        }
        Ok(changed)
    }

    /// All ranges with what they hold.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn ranges(&self) -> Result<BTreeMap<IpNet, u32>, Error> {
        let found = collect(&RANGES, self.ranges.iter())?;
        Ok(found.into_iter().filter_map(|(key, kind)| Some((range_of(&key)?, kind))).collect())
    }

    /// Writes one rule, new or over the one with the same prefix.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown verdict or prefix length, [`Error::Full`] at `limits::RULES`, else
    /// [`Error::Map`].
    pub fn put_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        if rule.verdict > verdict::REDIRECT {
            let problem = format!("{} is unknown (see layout::verdict)", rule.verdict);
            return Err(Error::Invalid { field: "verdict", problem });
        }
        let lengths = RuleKey::BITS_ANY_PORT..=RuleKey::BITS_EXACT;
        if rule.prefix_len != RuleKey::BITS_ANY_PROTOCOL && !lengths.contains(&rule.prefix_len) {
            let problem = format!("{} is not one that layout::RuleKey names", rule.prefix_len);
            return Err(Error::Invalid { field: "prefix_len", problem });
        }
        let value = RuleValue { verdict: rule.verdict, reserved: [0; 3], origin: rule.origin };
        written(&RULES, "put a rule", self.rules.insert(&Key::new(rule.prefix_len, rule.key), value, 0))
    }

    /// Removes the rule with exactly this prefix; whether it was there.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn remove_rule(&mut self, prefix_len: u32, key: &RuleKey) -> Result<bool, Error> {
        removed(&RULES, "remove a rule", self.rules.remove(&Key::new(prefix_len, *key)))
    }

    /// All rules, in no particular order.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn rules(&self) -> Result<Vec<Rule>, Error> {
        let found = collect(&RULES, self.rules.iter())?;
        Ok(found
            .into_iter()
            .map(|(key, value)| Rule {
                prefix_len: key.prefix_len(),
                key: key.data(),
                verdict: value.verdict,
                origin: value.origin,
            })
            .collect())
    }

    /// The live flows, in no particular order. While packets come and go the list may miss some and name some twice.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn connections(&self) -> Result<Vec<(ConnectionKey, ConnectionEntry)>, Error> {
        collect(&CONNECTIONS, self.connections.iter())
    }

    /// The entry of one flow.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn connection(&self, key: &ConnectionKey) -> Result<Option<ConnectionEntry>, Error> {
        match self.connections.get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(CONNECTIONS.error("read an entry", source)),
        }
    }

    /// Forgets all flows of an address; how many there were. For a pod that is gone.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn remove_connections_of(&mut self, address: IpAddr) -> Result<usize, Error> {
        let address = Addr::from(address);
        // Keys first: removing while walking makes the kernel start over.
        let mut keys = Vec::new();
        for key in self.connections.keys().take(CONNECTIONS.max_entries as usize) {
            let key = key.map_err(|source| CONNECTIONS.error("list", source))?;
            if key.a == address || key.b == address {
                keys.push(key);
            }
        }
        let mut count = 0;
        for key in keys {
            count += usize::from(removed(&CONNECTIONS, "remove an entry", self.connections.remove(&key))?);
        }
        Ok(count)
    }

    /// Reads all counters.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters, Error> {
        let read = |reason: &Reason| {
            let per_cpu = self.counters.get(&u32::from(*reason as u8), 0)?;
            Ok((*reason, per_cpu.iter().sum()))
        };
        let all: Result<_, MapError> = Reason::ALL.iter().map(read).collect();
        all.map(Counters).map_err(|source| COUNTERS.error("read", source))
    }
}

fn range_key(range: &IpNet) -> Key<Addr> {
    let before = if range.addr().is_ipv4() { range_bits::V4_MAPPED } else { 0 };
    Key::new(before + u32::from(range.prefix_len()), Addr::from(range.network()))
}

fn range_of(key: &Key<Addr>) -> Option<IpNet> {
    let address = IpAddr::from(key.data());
    let before = if address.is_ipv4() { range_bits::V4_MAPPED } else { 0 };
    IpNet::new(address, u8::try_from(key.prefix_len().checked_sub(before)?).ok()?).ok()
}

/// The elements of a map, at most as many as it can hold: the kernel starts over when the element at hand goes away,
/// and a busy map would never end.
fn collect<K: Pod, V>(
    shape: &Shape,
    elements: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<Vec<(K, V)>, Error> {
    let limit = shape.max_entries as usize;
    let all: Result<Vec<_>, _> = elements.take(limit).collect();
    all.map_err(|source| shape.error("list", source))
}

fn written(shape: &Shape, action: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(MapError::SyscallError(error))
            if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
        {
            Err(Error::Full { map: shape.name, action, limit: shape.max_entries })
        }
        other => other.map_err(|source| shape.error(action, source)),
    }
}

fn removed(shape: &Shape, action: &'static str, result: Result<(), MapError>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(shape.error(action, source)),
    }
}
