//! Reads the headers of a packet, in two loads: Ethernet and IPv4 together, then the transport header. (One load a
//! field would cost about 30 ns a packet more.)

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use layout::{Event, Reason};

use crate::fragments;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Length of an IPv4 header without options; others are refused.
pub(crate) const IPV4: usize = 20;
/// Length of an ICMP header.
pub(crate) const ICMP_HEADER: usize = 8;

/// EtherTypes as they stand in a frame.
pub(crate) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];

/// EtherTypes of VLAN tags (802.1Q, 802.1ad), as they stand in a frame.
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
/// The number of the VLAN in a tag; 0 in one that carries a priority only.
const VLAN_NUMBER: u32 = 0xfff;

/// First byte of an IPv4 header without options.
const VERSION_4_NO_OPTIONS: u8 = 0x45;
/// "More fragments" and the fragment offset (in units of 8 bytes), in the flags field.
const FRAGMENT_BITS: u16 = 0x3fff;
const FRAGMENT_OFFSET: u16 = 0x1fff;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// How much of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Piece {
    /// All of it.
    Whole,
    /// The first of several, with the transport header.
    First,
    /// One behind the first.
    Later,
}

/// What the programs know about a packet; addresses and ports as they stand in it (network order).
pub(crate) struct Packet {
    /// Offset of the IPv4 header.
    pub(crate) l3: usize,
    pub(crate) source: u32,
    pub(crate) destination: u32,
    /// For ICMP echo and timestamp: the identifier, in both; 0 for a protocol without ports.
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    /// There are bytes behind the transport header.
    pub(crate) has_payload: bool,
    pub(crate) icmp_type: u8,
    pub(crate) icmp_code: u8,
    pub(crate) piece: Piece,
    /// Bytes of the transport header; of a fragment only.
    pub(crate) header_length: u8,
    /// Of a fragment, as it stands in it.
    pub(crate) identification: u16,
    pub(crate) trail: Trail,
}

/// What was found out on the way to the verdict, for the event that reports it.
pub(crate) struct Trail {
    pub(crate) source_identity: u32,
    pub(crate) destination_identity: u32,
    pub(crate) egress_origin: u32,
    pub(crate) ingress_origin: u32,
    /// The direction that refused, or 0.
    pub(crate) refused_by: u8,
}

/// Ethernet and IPv4 header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    addresses: [u8; 12],
    pub(crate) ethertype: [u8; 2],
    pub(crate) ip: [u8; IPV4],
}

impl Frame {
    /// Reads the headers of a frame. A frame too short for them that is not IPv4 reads as zeros but for its EtherType.
    #[inline(always)]
    pub(crate) fn load(ctx: &TcContext) -> Result<Self, Reason> {
        if let Ok(frame) = ctx.load::<Self>(0) {
            return Ok(frame);
        }
        let ethertype: [u8; 2] = ctx.load(ETHERNET - 2).map_err(|_| Reason::Malformed)?;
        if ethertype == ETHERTYPE_IPV4 {
            return Err(Reason::Malformed);
        }
        Ok(Self { addresses: [0; 12], ethertype, ip: [0; IPV4] })
    }

    /// Whether a tag stands in the frame itself. The kernel has taken the first one out on the way
    /// in.
    #[inline(always)]
    pub(crate) fn holds_tag(&self) -> bool {
        matches!(self.ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN)
    }

    /// Whether it has a tag, in the frame or beside it.
    #[inline(always)]
    pub(crate) fn is_tagged(&self, ctx: &TcContext) -> bool {
        skb(ctx).vlan_present != 0 || self.holds_tag()
    }
}

impl Packet {
    pub(crate) const fn new() -> Self {
        Self {
            l3: 0,
            source: 0,
            destination: 0,
            source_port: 0,
            destination_port: 0,
            protocol: 0,
            tcp_flags: 0,
            has_payload: false,
            icmp_type: 0,
            icmp_code: 0,
            piece: Piece::Whole,
            header_length: 0,
            identification: 0,
            trail: Trail {
                source_identity: 0,
                destination_identity: 0,
                egress_origin: Event::NOT_JUDGED,
                ingress_origin: Event::NOT_JUDGED,
                refused_by: 0,
            },
        }
    }

    /// Takes in an IPv4 header and reads the transport header behind it. On an error the fields read so far are
    /// filled, so that the refusal can be reported with them.
    #[inline(always)]
    pub(crate) fn read(&mut self, ctx: &TcContext, l3: usize, ip: &[u8; IPV4]) -> Result<(), Reason> {
        self.l3 = l3;
        self.read_addresses(ip);
        if ip[0] != VERSION_4_NO_OPTIONS {
            return Err(Reason::Malformed);
        }
        if is_fragment(ip) {
            self.identification = u16::from_ne_bytes([ip[4], ip[5]]);
            let offset = (u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT_OFFSET) * 8;
            if offset != 0 {
                return self.read_later(offset);
            }
            self.piece = Piece::First;
        }
        let transport_length = match self.protocol {
            TCP => self.read_tcp(ctx),
            UDP | SCTP => self.read_ports(ctx),
            ICMP => self.read_icmp(ctx),
            _ => Ok(0),
        };
        let transport_length = transport_length.map_err(|reason| self.unreadable(reason))?;
        // 0 is a segment-offload packet of more than 64 KiB; without offload the receiver drops it.
        let total_length = u16::from_be_bytes([ip[2], ip[3]]);
        let headers = IPV4 + transport_length;
        if total_length != 0 && usize::from(total_length) < headers {
            return Err(self.unreadable(Reason::Malformed));
        }
        if self.piece == Piece::First && self.is_icmp_error() {
            return Err(Reason::Fragment);
        }
        self.header_length = transport_length as u8;
        self.has_payload = usize::from(total_length) != headers;
        Ok(())
    }

    /// A fragment behind the first: what it belongs to is known from that one alone.
    #[inline(always)]
    fn read_later(&mut self, offset: u16) -> Result<(), Reason> {
        self.piece = Piece::Later;
        if !fragments::recall(self) {
            return Err(Reason::FragmentWithoutFirst);
        }
        if offset < u16::from(self.header_length) {
            return Err(Reason::FragmentHidesHeader);
        }
        // From the midst of a connection, if it is one's.
        self.tcp_flags = ACK;
        self.has_payload = true;
        Ok(())
    }

    /// Why a transport header that ends too early is refused.
    #[inline(always)]
    fn unreadable(&self, reason: Reason) -> Reason {
        match (self.piece, reason) {
            (Piece::First, Reason::Malformed) => Reason::FragmentHidesHeader,
            (_, reason) => reason,
        }
    }

    /// Addresses and protocol, which stand at the same place whatever the rest of the header is.
    #[inline(always)]
    pub(crate) fn read_addresses(&mut self, ip: &[u8; IPV4]) {
        self.protocol = ip[9];
        self.source = u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]);
        self.destination = u32::from_ne_bytes([ip[16], ip[17], ip[18], ip[19]]);
    }

    #[inline(always)]
    fn read_tcp(&mut self, ctx: &TcContext) -> Result<usize, Reason> {
        let header: [u8; 20] = ctx.load(self.l3 + IPV4).map_err(|_| Reason::Malformed)?;
        self.source_port = u16::from_ne_bytes([header[0], header[1]]);
        self.destination_port = u16::from_ne_bytes([header[2], header[3]]);
        self.tcp_flags = header[13];
        let length = usize::from(header[12] >> 4) * 4;
        if length < header.len() { Err(Reason::Malformed) } else { Ok(length) }
    }

    #[inline(always)]
    fn read_ports(&mut self, ctx: &TcContext) -> Result<usize, Reason> {
        let header: [u8; 8] = ctx.load(self.l3 + IPV4).map_err(|_| Reason::Malformed)?;
        self.source_port = u16::from_ne_bytes([header[0], header[1]]);
        self.destination_port = u16::from_ne_bytes([header[2], header[3]]);
        Ok(header.len())
    }

    #[inline(always)]
    fn read_icmp(&mut self, ctx: &TcContext) -> Result<usize, Reason> {
        let header: [u8; ICMP_HEADER] = ctx.load(self.l3 + IPV4).map_err(|_| Reason::Malformed)?;
        self.icmp_type = header[0];
        self.icmp_code = header[1];
        if self.is_icmp_query() {
            let identifier = u16::from_ne_bytes([header[4], header[5]]);
            (self.source_port, self.destination_port) =
                if self.is_icmp_reply() { (0, identifier) } else { (identifier, 0) };
        } else if !self.is_icmp_error() {
            // Redirects, router discovery and the like change a host's routing: never between pods.
            return Err(Reason::IcmpUnrelated);
        }
        Ok(ICMP_HEADER)
    }

    /// Echo or timestamp, request or reply.
    #[inline(always)]
    fn is_icmp_query(&self) -> bool {
        matches!(self.icmp_type, 0 | 8 | 13 | 14)
    }

    /// An ICMP message about another packet: unreachable, time exceeded, parameter problem.
    #[inline(always)]
    pub(crate) fn is_icmp_error(&self) -> bool {
        self.protocol == ICMP && matches!(self.icmp_type, 3 | 11 | 12)
    }

    /// A message that answers another by its kind, and so never opens a flow.
    #[inline(always)]
    pub(crate) fn is_icmp_reply(&self) -> bool {
        self.protocol == ICMP && matches!(self.icmp_type, 0 | 14)
    }

    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        self.protocol == TCP
    }

    /// What a listener takes for a SYN: neither FIN, RST nor ACK beside it.
    #[inline(always)]
    pub(crate) fn is_pure_syn(&self) -> bool {
        self.is_tcp() && self.tcp_flags & (FIN | SYN | RST | ACK) == SYN
    }

    /// A segment of a connection that is already there: ACK without SYN.
    #[inline(always)]
    pub(crate) fn is_midstream(&self) -> bool {
        self.is_tcp() && self.tcp_flags & (SYN | ACK) == ACK
    }

    #[inline(always)]
    pub(crate) fn is_reset(&self) -> bool {
        self.is_tcp() && self.tcp_flags & RST != 0
    }
}

#[inline(always)]
pub(crate) fn is_fragment(ip: &[u8; IPV4]) -> bool {
    u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT_BITS != 0
}

/// Whether the frame is one of a VLAN, so that a device of that VLAN takes it, or no device does.
#[inline(always)]
pub(crate) fn is_of_vlan(ctx: &TcContext) -> bool {
    skb(ctx).vlan_present != 0 && skb(ctx).vlan_tci & VLAN_NUMBER != 0
}

/// Fields of the socket buffer that aya has no accessors for.
#[inline(always)]
pub(crate) fn skb(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel passes a valid context that lives as long as the program runs; the verifier checks each
    // field that is read through it.
    unsafe { &*ctx.as_ptr().cast() }
}
