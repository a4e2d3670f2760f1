//! Network devices.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::error::deleted;
use super::{Netlink, NetlinkError};
use crate::netns::NetNs;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network device as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number, unique in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address; `None` for devices without one (TUN).
    pub mac: Option<Mac>,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Kind as `ip -d link` shows it ("veth", "tun"); `None` for hardware.
    pub kind: Option<String>,
    /// Number of the other end, in its own namespace (veth).
    pub peer: Option<u32>,
    /// Id that the asker's namespace has for the one of the other end; the kernel gives it one at
    /// the first question. `None` if that is the same namespace.
    pub peer_namespace: Option<u32>,
}

/// A pair of veth devices to be made.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Address of this end; `None`: the kernel chooses.
    pub mac: Option<Mac>,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Address of the other end.
    pub peer_mac: Option<Mac>,
    /// Where the other end is born; `None`: beside this one.
    pub peer_namespace: Option<&'a NetNs>,
    /// MTU of both ends.
    pub mtu: u32,
}

/// What to change of a device; `None` leaves it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// Administratively up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Name.
    pub name: Option<String>,
}

impl Netlink {
    /// All devices.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let found = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).await;
        Ok(found.map_err(NetlinkError::refused("list", "links"))?.iter().filter_map(link).collect())
    }

    /// The device `name`.
    ///
    /// # Errors
    /// The kernel refused; that there is none is `Ok(None)`.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(message, name.to_owned()).await
    }

    /// The device with number `index`.
    ///
    /// # Errors
    /// The kernel refused; that there is none is `Ok(None)`.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message, format!("number {index}")).await
    }

    async fn get_link(&self, message: LinkMessage, object: String) -> Result<Option<Link>, NetlinkError> {
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(found) => Ok(found.iter().find_map(link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(NetlinkError::refused("look up", format!("link {object}"))(error)),
        }
    }

    /// Makes a veth pair in one step: the other end is born in its namespace with its name, address and MTU.
    ///
    /// # Errors
    /// The kernel refused; a name that is taken (either) is [`NetlinkError::is_exists`].
    pub async fn create_veth(&self, pair: &VethPair<'_>) -> Result<(), NetlinkError> {
        let mut peer = end(pair.peer_name, pair.peer_mac, pair.mtu);
        if let Some(namespace) = pair.peer_namespace {
            peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        }
        let mut message = end(pair.name, pair.mac, pair.mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let object = || format!("veth pair {} and {}", pair.name, pair.peer_name);
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .await
            .map_err(|error| NetlinkError::refused("create", object())(error))
    }

    /// Deletes the device `name` (and the other end of a veth). Returns whether it existed.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn delete_link(&self, name: &str) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        deleted(self.change(RouteNetlinkMessage::DelLink(message), 0).await)
            .map_err(NetlinkError::refused("delete", format!("link {name}")))
    }

    /// Deletes the device with number `index`. Returns whether it existed.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn delete_link_by_index(&self, index: u32) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        deleted(self.change(RouteNetlinkMessage::DelLink(message), 0).await)
            .map_err(NetlinkError::refused("delete", format!("link number {index}")))
    }

    /// Changes the device with number `index`.
    ///
    /// # Errors
    /// The kernel refused (then possibly a part of it is done), or there is no such device.
    pub async fn change_link(&self, index: u32, change: &LinkChange) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        let attributes = &mut message.attributes;
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(change.name.clone().map(LinkAttribute::IfName));
        let object = || format!("link number {index} to {change:?}");
        self.change(RouteNetlinkMessage::SetLink(message), 0)
            .await
            .map_err(|error| NetlinkError::refused("change", object())(error))
    }

    /// Sets the device with number `index` up.
    ///
    /// # Errors
    /// As [`Netlink::change_link`].
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        self.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).await
    }

    /// Sets the loopback device up.
    ///
    /// # Errors
    /// As [`Netlink::change_link`].
    pub async fn set_loopback_up(&self) -> Result<(), NetlinkError> {
        /// The kernel numbers the loopback device 1 in every namespace.
        const LOOPBACK: u32 = 1;
        self.set_up(LOOPBACK).await
    }
}

fn end(name: &str, mac: Option<Mac>, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message
}

fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        kind: None,
        peer: None,
        peer_namespace: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => link.peer_namespace = u32::try_from(*id).ok(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
