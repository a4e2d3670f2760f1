//! ICMP errors, judged by the packet that they are about: without them the path MTU discovery of the proxy and of pods
//! would be a black hole, and with any that comes a stranger could end connections.

use aya_ebpf::programs::TcContext;
use layout::{Config, Reason, path};

use crate::connections::{self, Place, Standing};
use crate::decide::Fate;
use crate::ends::{End, Ends, in_pod_network};
use crate::packet::{ICMP, ICMP_HEADER, IPV4, Packet, SCTP, TCP, UDP};
use crate::report::count;
use crate::sockets::{self, Socket, Tuple};

/// IPv4 header and the first 8 bytes behind it: all that RFC 792 promises.
type Quoted = [u8; IPV4 + 8];

/// Decides an error by the entry or socket of the packet that it quotes.
#[inline(always)]
pub(crate) fn decide_error(
    ctx: &TcContext,
    packet: &Packet,
    ends: &Ends,
    config: &Config,
) -> Result<Fate, Reason> {
    let quoted = read_quoted(ctx, packet)?;
    // Who is told of an error is who sent the packet.
    if quoted.source != packet.destination {
        return Err(Reason::IcmpUnrelated);
    }
    // A pod is no router: it speaks of what was sent to it, and of nothing else.
    if in_pod_network(packet.source, config) && quoted.destination != packet.source {
        return Err(Reason::IcmpUnrelated);
    }
    let place = Place::of(&quoted);
    let ends = Ends { source: ends.destination, destination: End::of(quoted.destination, config) };
    let Some(entry) = connections::find(&place, &ends) else {
        return by_socket(ctx, &quoted);
    };
    if entry.path != path::DIRECT {
        count(Reason::IcmpToProxy);
        return Ok(Fate::Proxy);
    }
    // What changed is judged when the flow itself sends again; the error comes again too, then.
    match connections::standing(&entry, &place, &ends) {
        Standing::Changed | Standing::Another => Err(Reason::IcmpUnrelated),
        // The one told is the sender of the quoted packet: a translated flow's opener is told through the stack.
        Standing::Holds if entry.through_stack != 0 && entry.opened_by_a == place.sender_is_a => {
            Ok(Fate::Stack)
        }
        Standing::Holds => Ok(Fate::Direct),
    }
}

/// An upstream of the proxy on another port than the client's has no entry: its socket, seen from the other end.
#[inline(always)]
fn by_socket(ctx: &TcContext, quoted: &Packet) -> Result<Fate, Reason> {
    if quoted.is_tcp() && sockets::find(ctx, &Tuple::of_answer(quoted)) != Socket::None {
        count(Reason::IcmpToProxy);
        return Ok(Fate::Proxy);
    }
    Err(Reason::IcmpUnrelated)
}

/// Addresses and ports of the packet that an error quotes.
#[inline(always)]
fn read_quoted(ctx: &TcContext, packet: &Packet) -> Result<Packet, Reason> {
    let bytes: Quoted = ctx.load(packet.l3 + IPV4 + ICMP_HEADER).map_err(|_| Reason::Malformed)?;
    let (ip, transport) = bytes.split_first_chunk::<IPV4>().ok_or(Reason::Malformed)?;
    // Options or a later fragment: what follows is not the ports.
    if ip[0] != 0x45 || u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
        return Err(Reason::Malformed);
    }
    let mut quoted = Packet::new();
    quoted.read_addresses(ip);
    match quoted.protocol {
        TCP | UDP | SCTP => {
            quoted.source_port = u16::from_ne_bytes([transport[0], transport[1]]);
            quoted.destination_port = u16::from_ne_bytes([transport[2], transport[3]]);
        }
        ICMP => {
            quoted.icmp_type = transport[0];
            let identifier = u16::from_ne_bytes([transport[4], transport[5]]);
            (quoted.source_port, quoted.destination_port) =
                if quoted.is_icmp_reply() { (0, identifier) } else { (identifier, 0) };
        }
        _ => {}
    }
    Ok(quoted)
}
