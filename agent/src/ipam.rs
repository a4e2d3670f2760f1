//! Which address is next: never used ones first, then the one that was given back the longest time ago, and none within a
//! minute of its release. So the connections, caches and records of the pod before it have ended.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// An address rests this long after its release, in milliseconds of [`crate::clock::Clock`]: longer than TIME_WAIT (60 s) lets a peer's stack
/// confuse an old connection with a new one.
pub const REST_MS: u64 = 60_000;

/// Addresses of one node that are used at most. A larger range is used up to here: more would only cost memory.
const MAX_POOL: u32 = 1 << 16;

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// All are in use or resting.
    #[error(
        "pod range {range} has no free address: of its {size} {used} are in use and {resting} were released less than a minute \
         ago; delete pods of this node, or give its Node object a larger spec.podCIDR"
    )]
    Full {
        /// Where they come from.
        range: Ipv4Net,
        /// How many of them pods can have.
        size: u32,
        /// In use.
        used: usize,
        /// Not yet to be used again.
        resting: usize,
    },
    /// The range cannot be a pool.
    #[error("pod range {0}: an IPv4 range of /29 or larger is needed")]
    Range(IpNet),
}

/// The addresses of this node's pod range.
#[derive(Debug)]
pub struct Pool {
    range: Ipv4Net,
    used: HashSet<Ipv4Addr>,
    /// Since when an address that was in use is free; none: so long that it need not rest.
    released: BTreeMap<Ipv4Addr, Option<u64>>,
    /// The same, the longest time ago first.
    order: BTreeSet<(Option<u64>, Ipv4Addr)>,
    /// Everything before it has been used.
    never_used: u32,
    end: u32,
}

impl Pool {
    /// A pool of which `used` are in use and `released` were, until the given times (milliseconds since the machine
    /// started; none: before that).
    ///
    /// # Errors
    /// [`IpamError::Range`].
    pub fn new(
        range: IpNet,
        used: impl IntoIterator<Item = IpAddr>,
        released: impl IntoIterator<Item = (IpAddr, Option<u64>)>,
    ) -> Result<Self, IpamError> {
        let v4 = usable(range)?;
        let first = u32::from(v4.network());
        // The network's and the broadcast address are no host's; the first host address is the node's to use.
        let last = u32::from(v4.broadcast()).min(first.saturating_add(MAX_POOL));
        let mut pool = Self {
            range: v4,
            used: used.into_iter().filter_map(only_v4).collect(),
            released: BTreeMap::new(),
            order: BTreeSet::new(),
            never_used: first + 2,
            end: last,
        };
        for (address, at_ms) in released {
            if let Some(address) = only_v4(address).filter(|a| pool.contains(*a) && !pool.used.contains(a)) {
                pool.rest(address, at_ms);
            }
        }
        Ok(pool)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        (u32::from(self.range.network()) + 2..self.end).contains(&u32::from(address))
    }

    fn rest(&mut self, address: Ipv4Addr, at_ms: Option<u64>) {
        if let Some(before) = self.released.insert(address, at_ms) {
            self.order.remove(&(before, address));
        }
        self.order.insert((at_ms, address));
    }

    /// Takes the next address.
    ///
    /// # Errors
    /// [`IpamError::Full`].
    pub fn take(&mut self, now_ms: u64) -> Result<IpAddr, IpamError> {
        let address = self.next(now_ms)?;
        if let Some(at_ms) = self.released.remove(&address) {
            self.order.remove(&(at_ms, address));
        }
        self.used.insert(address);
        Ok(IpAddr::V4(address))
    }

    /// Whether [`Self::take`] would succeed.
    ///
    /// # Errors
    /// As it.
    pub fn can_take(&mut self, now_ms: u64) -> Result<(), IpamError> {
        self.next(now_ms).map(drop)
    }

    fn next(&mut self, now_ms: u64) -> Result<Ipv4Addr, IpamError> {
        while self.never_used < self.end {
            let address = Ipv4Addr::from(self.never_used);
            if !self.released.contains_key(&address) && !self.used.contains(&address) {
                return Ok(address);
            }
            self.never_used += 1;
        }
        let rested = |at_ms: Option<u64>| at_ms.is_none_or(|at| at.saturating_add(REST_MS) <= now_ms);
        match self.order.first() {
            Some((at_ms, address)) if rested(*at_ms) => Ok(*address),
            _ => Err(IpamError::Full {
                range: self.range,
                size: self.end - u32::from(self.range.network()) - 2,
                used: self.used.len(),
                resting: self.order.len(),
            }),
        }
    }

    /// Gives an address back.
    pub fn give_back(&mut self, address: IpAddr, now_ms: u64) {
        let Some(address) = only_v4(address) else { return };
        if self.used.remove(&address) && self.contains(address) {
            self.rest(address, Some(now_ms));
        }
    }

    /// Undoes a [`Pool::take`] that nobody was told of.
    pub fn untake(&mut self, address: IpAddr) {
        // As if it had been released long ago: it is the next one.
        if let Some(address) = only_v4(address).filter(|address| self.used.remove(address)) {
            self.rest(address, None);
        }
    }
}

/// A range as it can be a pool.
///
/// # Errors
/// [`IpamError::Range`].
pub fn usable(range: IpNet) -> Result<Ipv4Net, IpamError> {
    match range.trunc() {
        IpNet::V4(v4) if v4.prefix_len() <= 29 => Ok(v4),
        _ => Err(IpamError::Range(range)),
    }
}

fn only_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address.to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pool(range: &str) -> Pool {
        Pool::new(range.parse().unwrap(), [], []).unwrap()
    }

    #[test]
    fn never_used_ones_come_first_without_the_reserved_ones() {
        let mut pool = pool("10.1.0.0/29");
        let all: Vec<_> = (0..5).map(|_| pool.take(0).unwrap().to_string()).collect();
        assert_eq!(all, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(
            pool.take(0),
            Err(IpamError::Full { range: "10.1.0.0/29".parse().unwrap(), size: 5, used: 5, resting: 0 })
        );
    }

    #[test]
    fn the_least_recently_used_is_next_and_none_within_a_minute() {
        let mut pool = pool("10.1.0.0/29");
        for _ in 0..5 {
            pool.take(0).unwrap();
        }
        pool.give_back(ip("10.1.0.5"), 1_000);
        pool.give_back(ip("10.1.0.3"), 2_000);
        assert!(pool.take(1_000 + REST_MS - 1).is_err());
        assert_eq!(pool.take(1_000 + REST_MS), Ok(ip("10.1.0.5")));
        assert!(pool.take(1_000 + REST_MS).is_err());
        assert_eq!(pool.take(2_000 + REST_MS), Ok(ip("10.1.0.3")));
    }

    #[test]
    fn a_full_range_is_named_with_its_size_and_what_to_do_and_asking_takes_nothing() {
        let mut pool = pool("10.1.0.0/29");
        for _ in 0..5 {
            assert_eq!(pool.can_take(0), Ok(()));
            pool.take(0).unwrap();
        }
        pool.give_back(ip("10.1.0.5"), 1_000);
        let message = pool.can_take(1_000).unwrap_err().to_string();
        for words in ["10.1.0.0/29", "of its 5 4 are in use and 1", "delete pods", "spec.podCIDR"] {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(pool.take(1_000).unwrap_err().to_string(), message);
        assert_eq!(pool.can_take(1_000 + REST_MS), Ok(()));
        assert_eq!(pool.take(1_000 + REST_MS), Ok(ip("10.1.0.5")));
    }

    #[test]
    fn a_used_up_address_is_not_preferred_to_a_fresh_one() {
        let mut pool = pool("10.1.0.0/29");
        let first = pool.take(0).unwrap();
        pool.give_back(first, 0);
        assert_eq!(pool.take(REST_MS * 10), Ok(ip("10.1.0.3")));
    }

    #[test]
    fn releases_survive_a_restart_of_the_agent_and_end_with_one_of_the_machine() {
        let range = "10.1.0.0/29".parse().unwrap();
        let used = ["10.1.0.2", "10.1.0.3", "10.1.0.4"].map(ip);
        let released = [(ip("10.1.0.5"), Some(5_000)), (ip("10.1.0.6"), None), (ip("192.0.2.1"), None)];
        let mut pool = Pool::new(range, used, released).unwrap();
        // Though the machine has not run for a minute yet.
        assert_eq!(pool.take(10_000), Ok(ip("10.1.0.6")));
        assert!(pool.take(5_000 + REST_MS - 1).is_err());
        assert_eq!(pool.take(5_000 + REST_MS), Ok(ip("10.1.0.5")));
    }

    #[test]
    fn giving_back_twice_or_what_is_not_ours_changes_nothing() {
        let mut pool = pool("10.1.0.0/29");
        pool.give_back(ip("10.1.0.4"), 5);
        pool.give_back(ip("192.0.2.1"), 5);
        assert!(pool.order.is_empty());
        let address = pool.take(0).unwrap();
        pool.give_back(address, 10);
        pool.give_back(address, 20);
        assert_eq!(pool.order.len(), 1);
    }

    #[test]
    fn an_untaken_address_is_the_next() {
        let mut pool = pool("10.1.0.0/29");
        let address = pool.take(0).unwrap();
        pool.untake(address);
        // Also in the first minute of the machine.
        let rest: Vec<_> = (0..5).map(|_| pool.take(1).unwrap()).collect();
        assert!(rest.contains(&address));
    }

    #[test]
    fn a_large_range_is_bounded_and_a_tiny_one_refused() {
        let pool = pool("10.0.0.0/8");
        assert_eq!(pool.end - pool.never_used, MAX_POOL - 2);
        assert!(Pool::new("10.1.0.0/30".parse().unwrap(), [], []).is_err());
        assert!(Pool::new("fd00::/64".parse().unwrap(), [], []).is_err());
    }
}
