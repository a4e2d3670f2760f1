//! Notices what anybody changes in links, addresses, routes, rules, neighbours and nftables.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::NetlinkError;

/// Groups of linux/rtnetlink.h: links, neighbours, IPv4 addresses, IPv4 routes, IPv4 rules.
const ROUTE_GROUPS: [u32; 5] = [1, 3, 5, 7, 8];
/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFTABLES_GROUP: u32 = 7;
/// Bytes of `nlmsghdr`, of `nfgenmsg` and of `nlattr`.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// The table is attribute 1 of every message about a table or what is in it.
const TABLE_ATTRIBUTE: u16 = 1;
/// Type of the message that ends a transaction. It has no table.
const NEW_GENERATION: u8 = 15;

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A route.
    Route {
        /// Table that it is in.
        table: u32,
        /// Who made it.
        protocol: u8,
        /// Number of its device.
        device: Option<u32>,
        /// It is gone.
        deleted: bool,
    },
    /// A rule.
    Rule {
        /// Who made it.
        protocol: u8,
        /// It is gone.
        deleted: bool,
    },
    /// A device.
    Link {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
        /// It was up and is down now.
        set_down: bool,
        /// It is gone.
        deleted: bool,
    },
    /// An IPv4 address of this namespace.
    Address,
    /// A neighbour.
    Neighbour {
        /// Number of its device.
        device: u32,
        /// Its address.
        address: Option<IpAddr>,
        /// Set by hand.
        permanent: bool,
        /// It is gone.
        deleted: bool,
    },
    /// A table of nftables, or something in it.
    Firewall {
        /// Its name.
        table: String,
    },
    /// Anything: there was more than the socket has room for.
    Missed,
}

/// Two sockets that the kernel tells of changes.
pub struct Watch {
    routes: TokioSocket,
    firewall: TokioSocket,
}

impl Watch {
    /// Begins to listen in the namespace of the calling thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// A socket could not be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        let routes = listen(NETLINK_ROUTE, &ROUTE_GROUPS).map_err(NetlinkError::Open)?;
        let firewall = listen(NETLINK_NETFILTER, &[NFTABLES_GROUP]).map_err(NetlinkError::Open)?;
        Ok(Self { routes, firewall })
    }

    /// Waits for the next datagram of either socket. Safe to cancel.
    ///
    /// # Errors
    /// A socket could not be read.
    pub async fn next(&mut self) -> io::Result<Vec<Change>> {
        tokio::select! {
            read = self.routes.recv_from_full() => changes(read, route_change),
            read = self.firewall.recv_from_full() => changes(read, firewall_change),
        }
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    for &group in groups {
        socket.socket_mut().add_membership(group)?;
    }
    Ok(socket)
}

fn changes(
    read: io::Result<(Vec<u8>, SocketAddr)>,
    change: fn(&[u8]) -> Option<Change>,
) -> io::Result<Vec<Change>> {
    match read {
        // Port 0 is the kernel; what another process sends says nothing.
        Ok((bytes, sender)) if sender.port_number() == 0 => Ok(messages(&bytes).filter_map(change).collect()),
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(vec![Change::Missed]),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The messages of a datagram, each with its header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = bytes.first_chunk::<4>().map(|length| u32::from_ne_bytes(*length) as usize)?;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn route_change(message: &[u8]) -> Option<Change> {
    let NetlinkPayload::InnerMessage(message) = NetlinkMessage::deserialize(message).ok()?.payload else {
        return None;
    };
    use RouteNetlinkMessage as M;
    Some(match message {
        M::NewRoute(message) => route(&message, false),
        M::DelRoute(message) => route(&message, true),
        M::NewRule(message) => rule(&message, false),
        M::DelRule(message) => rule(&message, true),
        M::NewLink(message) => link(&message, false),
        M::DelLink(message) => link(&message, true),
        M::NewAddress(_) | M::DelAddress(_) => Change::Address,
        M::NewNeighbour(message) => neighbour(&message, false),
        M::DelNeighbour(message) => neighbour(&message, true),
        _ => return None,
    })
}

fn route(message: &RouteMessage, deleted: bool) -> Change {
    let (mut table, mut device) = (u32::from(message.header.table), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    Change::Route { table, protocol: message.header.protocol.into(), device, deleted }
}

fn rule(message: &RuleMessage, deleted: bool) -> Change {
    let protocol = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Protocol(protocol) => Some((*protocol).into()),
        _ => None,
    });
    Change::Rule { protocol: protocol.unwrap_or(0), deleted }
}

fn link(message: &LinkMessage, deleted: bool) -> Change {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let header = &message.header;
    // Of a new device all flags count as changed.
    let changed = header.change_mask.contains(LinkFlags::Up) && header.change_mask.bits() != u32::MAX;
    let set_down = changed && !header.flags.contains(LinkFlags::Up);
    Change::Link { index: header.index, name: name.unwrap_or_default(), set_down, deleted }
}

fn neighbour(message: &NeighbourMessage, deleted: bool) -> Change {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let permanent = message.header.state == NeighbourState::Permanent;
    Change::Neighbour { device: message.header.ifindex, address, permanent, deleted }
}

fn firewall_change(message: &[u8]) -> Option<Change> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if kind.to_le_bytes()[0] == NEW_GENERATION {
        return None;
    }
    let mut attributes = message.get(HEADER + FAMILY_HEADER..)?;
    while let Some((head, rest)) = attributes.split_first_chunk::<ATTRIBUTE_HEADER>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(..length.checked_sub(ATTRIBUTE_HEADER)?)?;
        if u16::from_ne_bytes([head[2], head[3]]) == TABLE_ATTRIBUTE {
            let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(Change::Firewall { table: String::from_utf8_lossy(name).into_owned() });
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}
