//! Addresses of devices.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::error::deleted;
use super::{Netlink, NetlinkError};

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Netlink {
    /// Gives the device with number `index` the address `address` (the host bits are the address, the length its prefix).
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn ensure_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::NewAddress(message(index, address)), NLM_F_CREATE | NLM_F_REPLACE)
            .await
            .map_err(NetlinkError::refused("add", format!("address {address} on link number {index}")))
    }

    /// Takes the address away. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn delete_address(&self, index: u32, address: IpNet) -> Result<bool, NetlinkError> {
        deleted(self.change(RouteNetlinkMessage::DelAddress(message(index, address)), 0).await)
            .map_err(NetlinkError::refused("delete", format!("address {address} on link number {index}")))
    }

    /// All addresses: (number of the device, address with prefix length).
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let found = self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await;
        Ok(found.map_err(NetlinkError::refused("list", "addresses"))?.iter().filter_map(address).collect())
    }
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

/// `IFA_LOCAL` is the address; on IPv6, where it is absent, `IFA_ADDRESS` is.
fn address(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    Some((message.header.index, IpNet::new(address?, message.header.prefix_len).ok()?))
}
