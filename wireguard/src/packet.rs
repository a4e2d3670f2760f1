//! The few header fields that cryptokey routing looks at.

use std::net::IpAddr;

/// Shortest IPv4 header (RFC 791).
pub(crate) const IPV4_HEADER: usize = 20;
/// The IPv6 header (RFC 8200).
pub(crate) const IPV6_HEADER: usize = 40;

/// Destination address of an IP packet; `None` if it is neither a whole IPv4 nor a whole IPv6 header.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER => Some(octets::<4>(packet, 16)?.into()),
        6 if packet.len() >= IPV6_HEADER => Some(octets::<16>(packet, 24)?.into()),
        _ => None,
    }
}

/// Messages of WireGuard whose sender gives them an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first of a handshake (WireGuard paper, 5.4.2).
    Initiation,
    /// The second (5.4.3).
    Response,
}

/// Kind of a message of a handshake, and its sender's index; `None` for all others.
pub(crate) fn kind(message: &[u8]) -> Option<(Kind, u32)> {
    let kind = match message.first()? {
        1 => Kind::Initiation,
        2 => Kind::Response,
        _ => return None,
    };
    Some((kind, u32::from_le_bytes(octets(message, 4)?)))
}

/// Message counter of a data message (WireGuard paper, 5.4.6).
pub(crate) fn counter(data_message: &[u8]) -> Option<u64> {
    octets(data_message, 8).map(u64::from_le_bytes)
}

fn octets<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let mut v4 = [0u8; 20];
        v4[0] = 0x45;
        v4[16..].copy_from_slice(&[10, 2, 0, 7]);
        assert_eq!(destination(&v4), Some("10.2.0.7".parse().unwrap()));
        assert_eq!(destination(&v4[..19]), None);
        let mut v6 = [0u8; 40];
        v6[0] = 0x60;
        v6[39] = 1;
        assert_eq!(destination(&v6), Some("::1".parse().unwrap()));
        assert_eq!(destination(&v6[..39]), None);
        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&[0x50; 64]), None);
    }
}
