//! Neighbours: which Ethernet address an IP address has.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::address::family;
use super::error::deleted;
use super::{Mac, Netlink, NetlinkError};

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Number of the device.
    pub device: u32,
    /// IP address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Set by hand, never asked for.
    pub permanent: bool,
}

impl Netlink {
    /// Sets a permanent entry.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn ensure_neighbour(&self, device: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = message(device, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let object = format!("neighbour {address} at {mac} on link number {device}");
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            .await
            .map_err(NetlinkError::refused("add", object))
    }

    /// Deletes the entry. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn delete_neighbour(&self, device: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        deleted(self.change(RouteNetlinkMessage::DelNeighbour(message(device, address)), 0).await)
            .map_err(NetlinkError::refused("delete", format!("neighbour {address} on link number {device}")))
    }

    /// All entries that have an Ethernet address.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let found = self.list(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())).await;
        Ok(found.map_err(NetlinkError::refused("list", "neighbours"))?.iter().filter_map(neighbour).collect())
    }
}

fn message(device: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = device;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    message
}

fn neighbour(message: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found))
            }
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour {
        device: message.header.ifindex,
        address: address?,
        mac: mac?,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
