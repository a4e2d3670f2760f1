//! Cryptokey routing: which peer an address belongs to.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::peer::PeerId;

/// Longest-prefix table of all peers' allowed IPs. Built anew for each peer set and swapped as a whole, so that a prefix that moves
/// from one peer to another belongs to exactly one of them at any time.
#[derive(Default)]
pub(crate) struct AllowedIps {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
}

impl AllowedIps {
    /// Gives `prefix` to `peer`, unless it belongs to another already: then that one is returned.
    pub(crate) fn claim(&mut self, prefix: IpNet, peer: PeerId) -> Result<(), PeerId> {
        let holder = match prefix {
            IpNet::V4(prefix) => *self.v4.entry(prefix).or_insert(peer),
            IpNet::V6(prefix) => *self.v6.entry(prefix).or_insert(peer),
        };
        if holder == peer { Ok(()) } else { Err(holder) }
    }

    /// The peer that `prefix` itself belongs to, whoever has longer or shorter ones around it.
    pub(crate) fn holder(&self, prefix: IpNet) -> Option<PeerId> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(&prefix).copied(),
            IpNet::V6(prefix) => self.v6.get(&prefix).copied(),
        }
    }

    /// The peer with the longest prefix that holds `address`.
    pub(crate) fn peer_of(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, peer)| *peer),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, peer)| *peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, PeerId)]) -> AllowedIps {
        let mut table = AllowedIps::default();
        for (prefix, peer) in entries {
            table.claim(prefix.parse().unwrap(), *peer).unwrap();
        }
        table
    }

    #[test]
    fn the_longest_prefix_decides_in_both_families() {
        let table =
            table(&[("10.2.0.0/16", 2), ("10.2.7.0/24", 7), ("172.31.0.2/32", 2), ("fd00:2::/32", 3)]);
        for (address, peer) in [
            ("10.2.0.1", Some(2)),
            ("10.2.255.255", Some(2)),
            ("10.2.7.0", Some(7)),
            ("10.2.8.0", Some(2)),
            ("10.3.0.0", None),
            ("172.31.0.2", Some(2)),
            ("172.31.0.3", None),
            ("fd00:2:ffff::1", Some(3)),
            ("fd00:3::1", None),
            ("::ffff:10.2.0.1", None),
        ] {
            assert_eq!(table.peer_of(address.parse().unwrap()), peer, "{address}");
        }
    }

    #[test]
    fn a_prefix_belongs_to_one_peer() {
        let mut table = table(&[("10.2.0.0/16", 2)]);
        assert_eq!(table.claim("10.2.0.0/16".parse().unwrap(), 3), Err(2));
        assert_eq!(table.claim("10.2.0.0/16".parse().unwrap(), 2), Ok(()), "named twice by one peer");
        assert_eq!(table.peer_of("10.2.0.1".parse().unwrap()), Some(2));
    }

    #[test]
    fn a_holder_is_that_of_the_very_prefix() {
        let table = table(&[("10.2.0.0/16", 2), ("10.2.0.0/24", 7)]);
        for (prefix, peer) in [("10.2.0.0/16", Some(2)), ("10.2.0.0/24", Some(7)), ("10.2.0.0/20", None)] {
            assert_eq!(table.holder(prefix.parse().unwrap()), peer, "{prefix}");
        }
    }
}
