use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Addr;

/// A datagram that travels in pieces, as its pieces name it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable)]
pub struct FragmentKey {
    /// Sender.
    pub source: Addr,
    /// Receiver.
    pub destination: Addr,
    /// Identification field, network order; IPv4 uses 16 bits of it.
    pub identification: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

/// What its first piece said, which alone carries the transport header. There is none of a datagram
/// that was refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct FragmentNote {
    /// When it was seen, coarse `CLOCK_MONOTONIC` nanoseconds.
    pub seen_ns: u64,
    /// Network order; the identifier for ICMP echo.
    pub source_port: u16,
    /// Network order; the identifier for ICMP echo.
    pub destination_port: u16,
    /// Type of an ICMP message.
    pub icmp_type: u8,
    /// Bytes of the transport header; no later piece may reach into it.
    pub header_length: u8,
    /// Always zero.
    pub reserved: [u8; 2],
}
