//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope as KernelScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::address::family;
use super::error::deleted;
use super::{Netlink, NetlinkError};

/// The table that everything looks into.
pub const TABLE_MAIN: u32 = 254;
/// The kernel's own table of local addresses.
pub const TABLE_LOCAL: u32 = 255;

/// `rtm_protocol` of every route made here: tells ours from others' (`ip route show proto 83`). No daemon has it in iproute2's
/// `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 83;

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Sent through a device.
    Unicast,
    /// Delivered here.
    Local,
    /// Dropped.
    Blackhole,
    /// Anything else: listed, never made.
    Other(u8),
}

/// How far away the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteScope {
    /// Behind a gateway.
    Universe,
    /// Directly on the device.
    Link,
    /// On this host.
    Host,
    /// Anything else: listed, never made.
    Other(u8),
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Which packets.
    pub destination: IpNet,
    /// In which table.
    pub table: u32,
    /// What happens to them.
    pub kind: RouteKind,
    /// The lower, the better; 0 is the best.
    pub metric: u32,
    /// Distance. IPv6 has none and shows `Universe`.
    pub scope: RouteScope,
    /// Number of the device.
    pub device: Option<u32>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Address preferred as the source of what this host sends.
    pub source: Option<IpAddr>,
    /// `rtm_protocol`: ours is [`ROUTE_PROTOCOL`].
    pub protocol: u8,
}

impl Route {
    fn new(destination: IpNet, kind: RouteKind, scope: RouteScope) -> Self {
        Self {
            destination: destination.trunc(),
            table: TABLE_MAIN,
            kind,
            metric: 0,
            scope,
            device: None,
            gateway: None,
            source: None,
            protocol: ROUTE_PROTOCOL,
        }
    }

    /// `destination dev DEVICE scope link` in the main table.
    pub fn link(destination: IpNet, device: u32) -> Self {
        Self { device: Some(device), ..Self::new(destination, RouteKind::Unicast, RouteScope::Link) }
    }

    /// `destination via GATEWAY dev DEVICE` in the main table.
    pub fn via(destination: IpNet, gateway: IpAddr, device: u32) -> Self {
        let route = Self::new(destination, RouteKind::Unicast, RouteScope::Universe);
        Self { device: Some(device), gateway: Some(gateway), ..route }
    }

    /// `blackhole destination` in the main table.
    pub fn blackhole(destination: IpNet) -> Self {
        Self::new(destination, RouteKind::Blackhole, RouteScope::Universe)
    }

    /// `local destination dev DEVICE` in the main table.
    pub fn local(destination: IpNet, device: u32) -> Self {
        Self { device: Some(device), ..Self::new(destination, RouteKind::Local, RouteScope::Host) }
    }

    /// The same in `table`.
    #[must_use]
    pub fn in_table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    /// The same with `metric`.
    #[must_use]
    pub fn with_metric(self, metric: u32) -> Self {
        Self { metric, ..self }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => write!(f, "route {}", self.destination)?,
            RouteKind::Local => write!(f, "route local {}", self.destination)?,
            RouteKind::Blackhole => write!(f, "route blackhole {}", self.destination)?,
            RouteKind::Other(kind) => write!(f, "route of type {kind} {}", self.destination)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(device) = self.device {
            write!(f, " dev number {device}")?;
        }
        write!(f, " table {} metric {}", self.table, self.metric)
    }
}

impl Netlink {
    /// Adds the route; what has the same destination, table and metric stays as it is.
    ///
    /// # Errors
    /// The kernel refused; a route that is there, through whatever device, is
    /// [`NetlinkError::is_exists`].
    pub async fn create_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_EXCL)
            .await
            .map_err(NetlinkError::refused("add", route))
    }

    /// Adds the route, or replaces the one with the same destination, table and metric.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn ensure_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_REPLACE)
            .await
            .map_err(NetlinkError::refused("add", route))
    }

    /// Deletes the route if all that `route` says fits. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn delete_route(&self, route: &Route) -> Result<bool, NetlinkError> {
        deleted(self.change(RouteNetlinkMessage::DelRoute(message(route)), 0).await)
            .map_err(NetlinkError::refused("delete", route))
    }

    /// The routes of `table`, IPv4 and IPv6. Routes with several next hops show none.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn routes(&self, table: u32) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.all_routes().await?;
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    /// The routes of all tables, likewise.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn all_routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let found = self.list(RouteNetlinkMessage::GetRoute(message)).await;
            routes.extend(found.map_err(NetlinkError::refused("list", "routes"))?.iter().filter_map(route));
        }
        Ok(routes)
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.addr());
    header.destination_prefix_length = route.destination.prefix_len();
    // Tables above 255 stand in the attribute alone.
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = match route.scope {
        RouteScope::Universe => KernelScope::Universe,
        RouteScope::Link => KernelScope::Link,
        RouteScope::Host => KernelScope::Host,
        RouteScope::Other(scope) => KernelScope::from(scope),
    };
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Other(kind) => RouteType::from(kind),
    };
    let attributes = &mut message.attributes;
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.addr())));
    }
    attributes.push(RouteAttribute::Table(route.table));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.extend(route.device.map(RouteAttribute::Oif));
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
    message
}

fn route(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = any;
    let mut route = Route {
        destination: IpNet::from(any),
        table: u32::from(header.table),
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local => RouteKind::Local,
            RouteType::BlackHole => RouteKind::Blackhole,
            kind => RouteKind::Other(u8::from(kind)),
        },
        metric: 0,
        scope: match header.scope {
            KernelScope::Universe => RouteScope::Universe,
            KernelScope::Link => RouteScope::Link,
            KernelScope::Host => RouteScope::Host,
            scope => RouteScope::Other(u8::from(scope)),
        },
        device: None,
        gateway: None,
        source: None,
        protocol: u8::from(header.protocol),
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(device) => route.device = Some(*device),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
