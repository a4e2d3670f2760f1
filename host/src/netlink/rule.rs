//! Policy routing rules: which packets look into which table.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::address::family;
use super::error::{added, deleted};
use super::route::ROUTE_PROTOCOL;
use super::{Netlink, NetlinkError};

/// A packet mark, compared under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FwMark {
    /// Bits that must be set as given.
    pub value: u32,
    /// Bits that count.
    pub mask: u32,
}

/// A rule that looks into a table. Packets must fit everything that is given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Rules are tried from the lowest number up.
    pub priority: u32,
    /// Mark of the packet.
    pub mark: Option<FwMark>,
    /// Source of the packet. It also says whether the rule is one for IPv6; without it, it is one for IPv4.
    pub from: Option<IpNet>,
    /// Table to look into.
    pub table: u32,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}:", self.priority)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(FwMark { value, mask }) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

impl Netlink {
    /// Adds the rule if it is not there. Returns whether it was added.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn ensure_rule(&self, rule: &Rule) -> Result<bool, NetlinkError> {
        added(self.change(RouteNetlinkMessage::NewRule(message(rule)), NLM_F_CREATE | NLM_F_EXCL).await)
            .map_err(NetlinkError::refused("add", rule))
    }

    /// Deletes the rule. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn delete_rule(&self, rule: &Rule) -> Result<bool, NetlinkError> {
        deleted(self.change(RouteNetlinkMessage::DelRule(message(rule)), 0).await)
            .map_err(NetlinkError::refused("delete", rule))
    }

    /// All rules that look into a table, IPv4 and IPv6. What [`Rule`] has no field for is not shown.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn rules(&self) -> Result<Vec<Rule>, NetlinkError> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let found = self.list(RouteNetlinkMessage::GetRule(message)).await;
            rules.extend(found.map_err(NetlinkError::refused("list", "rules"))?.iter().filter_map(rule));
        }
        Ok(rules)
    }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.from.map_or(AddressFamily::Inet, |from| family(from.addr()));
    message.header.action = RuleAction::ToTable;
    // Tables above 255 stand in the attribute alone.
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.push(RuleAttribute::Protocol(ROUTE_PROTOCOL.into()));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        attributes.push(RuleAttribute::Source(from.network()));
    }
    if let Some(FwMark { value, mask }) = rule.mark {
        attributes.push(RuleAttribute::FwMark(value));
        attributes.push(RuleAttribute::FwMask(mask));
    }
    message
}

fn rule(message: &RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(RuleMessage { header, attributes, .. }) = message else { return None };
    if header.action != RuleAction::ToTable {
        return None;
    }
    let mut rule = Rule { priority: 0, mark: None, from: None, table: u32::from(header.table) };
    let (mut value, mut mask) = (None, u32::MAX);
    for attribute in attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => value = Some(*mark),
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Source(address) => rule.from = IpNet::new(*address, header.src_len).ok(),
            _ => {}
        }
    }
    rule.mark = value.map(|value| FwMark { value, mask });
    Some(rule)
}
