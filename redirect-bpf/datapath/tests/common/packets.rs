//! Crafted packets. Checksums are left out: the programs read none.

use std::net::Ipv4Addr;

use super::{ICMP, SCTP, TCP, UDP};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const SYN_ACK: u8 = SYN | ACK;

pub(crate) const ETHERNET: usize = 14;

/// An IPv4 packet without link layer.
pub(crate) fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// An Ethernet frame around a packet.
pub(crate) fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

pub(crate) fn tcp_segment(from_port: u16, to_port: u16, flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[0..2].copy_from_slice(&from_port.to_be_bytes());
    segment[2..4].copy_from_slice(&to_port.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment
}

fn datagram(from_port: u16, to_port: u16) -> Vec<u8> {
    let mut datagram = vec![0; 8];
    datagram[0..2].copy_from_slice(&from_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&to_port.to_be_bytes());
    datagram[5] = 8;
    datagram
}

/// A TCP segment without link layer, as the tunnel delivers it.
pub(crate) fn bare_tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    ipv4(TCP, from.0, to.0, &tcp_segment(from.1, to.1, flags))
}

pub(crate) fn bare_udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    ipv4(UDP, from.0, to.0, &datagram(from.1, to.1))
}

pub(crate) fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    frame(0x0800, &bare_tcp(from, to, flags))
}

/// A segment from the midst of a connection with a few bytes in it.
pub(crate) fn tcp_with_data(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut segment = tcp_segment(from.1, to.1, ACK);
    segment.extend(b"GET /");
    frame(0x0800, &ipv4(TCP, from.0, to.0, &segment))
}

pub(crate) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    frame(0x0800, &bare_udp(from, to))
}

pub(crate) fn sctp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    frame(0x0800, &ipv4(SCTP, from.0, to.0, &datagram(from.1, to.1)))
}

pub(crate) fn other(protocol: u8, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    frame(0x0800, &ipv4(protocol, from, to, &[0; 8]))
}

/// An echo request (8) or reply (0), or any ICMP message without a quoted packet.
pub(crate) fn icmp(kind: u8, identifier: u16, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    frame(0x0800, &ipv4(ICMP, from, to, &message))
}

/// "Fragmentation needed" about a packet (without link layer), without link layer itself.
pub(crate) fn bare_frag_needed(from: Ipv4Addr, to: Ipv4Addr, about: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0, 0x05, 0x14];
    message.extend(&about[..28]);
    ipv4(ICMP, from, to, &message)
}

pub(crate) fn frag_needed(from: Ipv4Addr, to: Ipv4Addr, about: &[u8]) -> Vec<u8> {
    frame(0x0800, &bare_frag_needed(from, to, about))
}

pub(crate) fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 0x02, 0, 0, 0, 0, 2];
    packet.extend(sender.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    frame(0x0806, &packet)
}
