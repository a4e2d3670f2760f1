//! Snapshots on the wire: from the records of the `policy` crate to messages and back.
//!
//! Reading is strict: a snapshot that is not understood in every part is refused as a whole, because a reader that
//! guesses would allow what the writer forbade. The reader then stays on its last good one.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ::policy::{
    Action, DirectionRules, EndpointPolicy, HeaderMatch, HttpRule, IdentityLabels, Origin, Pattern, Peers,
    PolicyKind, PortRange, Ports, Protocol, Rule, Ruleset, Snapshot, SnapshotError, SnapshotParts,
};

use crate::policy as wire;

/// What `Snapshot.format` is now.
pub const FORMAT: u32 = 1;

/// Why a message is no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Written by a newer program.
    #[error("format is {0}, only {FORMAT} is understood: upgrade this program")]
    Format(u32),
    /// A field has no value.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has a value it cannot have.
    #[error("{field} cannot be {value}")]
    Invalid {
        /// Name of the field in the message.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// The parts do not fit together.
    #[error(transparent)]
    Parts(#[from] SnapshotError),
}

fn invalid(field: &'static str, value: impl ToString) -> Error {
    Error::Invalid { field, value: value.to_string() }
}

impl From<&Snapshot> for wire::Snapshot {
    fn from(snapshot: &Snapshot) -> Self {
        let identities = snapshot.identities.iter().map(|(&identity, own)| wire::IdentityLabels {
            identity,
            namespace: own.namespace.clone(),
            labels: own.labels.clone().into_iter().collect(),
        });
        let mut addresses: Vec<_> = snapshot.addresses.iter().collect();
        addresses.sort_unstable();
        let addresses = addresses
            .into_iter()
            .map(|(&address, &identity)| wire::AddressIdentity { address: address_bytes(address), identity });
        let endpoints = snapshot.endpoints.iter().map(|endpoint| wire::EndpointPolicy {
            namespace: endpoint.namespace.clone(),
            name: endpoint.name.clone(),
            node: endpoint.node.clone(),
            addresses: endpoint.addresses.iter().copied().map(address_bytes).collect(),
            identity: endpoint.identity,
            labels: endpoint.labels.clone().into_iter().collect(),
            // Past the end of every list if it were ever too large, and so refused by the reader.
            ruleset: u32::try_from(endpoint.ruleset).unwrap_or(u32::MAX),
        });
        Self {
            format: FORMAT,
            number: snapshot.number,
            node: snapshot.node.clone(),
            identities: identities.collect(),
            addresses: addresses.collect(),
            endpoints: endpoints.collect(),
            rulesets: snapshot.rulesets.iter().map(|ruleset| ruleset.as_ref().into()).collect(),
            pod_networks: snapshot.pod_networks.iter().map(ToString::to_string).collect(),
            node_addresses: snapshot.node_addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<wire::Snapshot> for Snapshot {
    type Error = Error;

    fn try_from(message: wire::Snapshot) -> Result<Self, Error> {
        if message.format != FORMAT {
            return Err(Error::Format(message.format));
        }
        let mut addresses = HashMap::with_capacity(message.addresses.len());
        for entry in message.addresses {
            addresses.insert(read_address("addresses.address", &entry.address)?, entry.identity);
        }
        let identities = message.identities.into_iter().map(|own| {
            (
                own.identity,
                IdentityLabels { namespace: own.namespace, labels: own.labels.into_iter().collect() },
            )
        });
        let rulesets = message.rulesets.into_iter().map(|ruleset| ruleset.try_into().map(Arc::new));
        Ok(Self::from_parts(SnapshotParts {
            number: message.number,
            node: message.node,
            pod_networks: read_texts("pod_networks", &message.pod_networks)?,
            node_addresses: read_texts("node_addresses", &message.node_addresses)?,
            identities: identities.collect(),
            addresses,
            endpoints: message.endpoints.into_iter().map(read_endpoint).collect::<Result<_, _>>()?,
            rulesets: rulesets.collect::<Result<_, Error>>()?,
        })?)
    }
}

fn read_endpoint(message: wire::EndpointPolicy) -> Result<EndpointPolicy, Error> {
    let addresses = message.addresses.iter().map(|bytes| read_address("endpoints.addresses", bytes));
    Ok(EndpointPolicy {
        addresses: addresses.collect::<Result<_, _>>()?,
        namespace: message.namespace,
        name: message.name,
        node: message.node,
        identity: message.identity,
        labels: message.labels.into_iter().collect(),
        ruleset: usize::try_from(message.ruleset)
            .map_err(|_| invalid("endpoints.ruleset", message.ruleset))?,
    })
}

/// 4 or 16 bytes, network order.
fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn read_address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Error> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address
        .map(|address| address.to_canonical())
        .map_err(|_| invalid(field, format!("{} bytes long", bytes.len())))
}

fn read_texts<T: std::str::FromStr>(field: &'static str, texts: &[String]) -> Result<Vec<T>, Error> {
    texts.iter().map(|text| text.parse().map_err(|_| invalid(field, text))).collect()
}

impl From<&Ruleset> for wire::Ruleset {
    fn from(ruleset: &Ruleset) -> Self {
        let direction = |rules: &DirectionRules| {
            let (enforced, rules) = (rules.enforced, rules.rules.iter().map(Into::into).collect());
            Some(wire::DirectionRules { enforced, rules })
        };
        Self { ingress: direction(&ruleset.ingress), egress: direction(&ruleset.egress) }
    }
}

impl TryFrom<wire::Ruleset> for Ruleset {
    type Error = Error;

    fn try_from(message: wire::Ruleset) -> Result<Self, Error> {
        // A direction that is missing must not be read as one that is not enforced.
        let direction = |message: Option<wire::DirectionRules>, field| {
            let message = message.ok_or(Error::Missing(field))?;
            let rules = message.rules.into_iter().map(TryInto::try_into).collect::<Result<_, Error>>()?;
            Ok::<_, Error>(DirectionRules { enforced: message.enforced, rules })
        };
        Ok(Self {
            ingress: direction(message.ingress, "rulesets.ingress")?,
            egress: direction(message.egress, "rulesets.egress")?,
        })
    }
}

impl From<&Rule> for wire::Rule {
    fn from(rule: &Rule) -> Self {
        let (any_peer, identities) = match &rule.peers {
            Peers::Any => (true, Vec::new()),
            Peers::Identities(identities) => (false, identities.iter().copied().collect()),
        };
        let (any_port, ports) = match &rule.ports {
            Ports::Any => (true, Vec::new()),
            Ports::Ranges(ranges) => (false, ranges.iter().map(Into::into).collect()),
        };
        let http =
            rule.http.as_ref().map(|rules| wire::HttpRules { rules: rules.iter().map(Into::into).collect() });
        let deny = rule.action == Action::Deny;
        Self { origin: Some((&rule.origin).into()), deny, any_peer, identities, any_port, ports, http }
    }
}

impl TryFrom<wire::Rule> for Rule {
    type Error = Error;

    fn try_from(message: wire::Rule) -> Result<Self, Error> {
        if message.any_peer && !message.identities.is_empty() {
            return Err(invalid("rules.identities", "filled beside any_peer"));
        }
        if message.any_port && !message.ports.is_empty() {
            return Err(invalid("rules.ports", "filled beside any_port"));
        }
        if message.deny && message.http.is_some() {
            return Err(invalid("rules.http", "filled in a deny"));
        }
        let peers = match message.any_peer {
            true => Peers::Any,
            false => Peers::Identities(message.identities.into_iter().collect::<BTreeSet<_>>()),
        };
        let ports = match message.any_port {
            true => Ports::Any,
            false => {
                Ports::Ranges(message.ports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
            }
        };
        let http = message.http.map(|http| http.rules.into_iter().map(TryInto::try_into).collect());
        Ok(Self {
            origin: message.origin.ok_or(Error::Missing("rules.origin"))?.try_into()?,
            action: if message.deny { Action::Deny } else { Action::Allow },
            peers,
            ports,
            http: http.transpose()?,
        })
    }
}

impl From<&PortRange> for wire::PortRange {
    fn from(range: &PortRange) -> Self {
        let protocol = range.protocol.map_or(0, |protocol| protocol.number().into());
        Self { protocol, first: range.first.into(), last: range.last.into() }
    }
}

impl TryFrom<wire::PortRange> for PortRange {
    type Error = Error;

    fn try_from(message: wire::PortRange) -> Result<Self, Error> {
        let protocol = match message.protocol {
            0 => None,
            number => Some(u8::try_from(number).map_err(|_| invalid("ports.protocol", number))?),
        };
        let first = u16::try_from(message.first).map_err(|_| invalid("ports.first", message.first))?;
        let last = u16::try_from(message.last).map_err(|_| invalid("ports.last", message.last))?;
        if last < first {
            return Err(invalid("ports.last", last));
        }
        Ok(Self { protocol: protocol.map(Protocol::from_number), first, last })
    }
}

impl From<&HttpRule> for wire::HttpRule {
    fn from(rule: &HttpRule) -> Self {
        let source = |pattern: &Option<Pattern>| pattern.as_ref().map(|pattern| pattern.source().to_owned());
        let headers = rule.headers.iter().map(|header| wire::HeaderMatch {
            name: header.name.as_str().to_owned(),
            value: header.value.clone(),
        });
        Self {
            index: rule.index,
            method: source(&rule.method),
            path: source(&rule.path),
            host: source(&rule.host),
            headers: headers.collect(),
        }
    }
}

impl TryFrom<wire::HttpRule> for HttpRule {
    type Error = Error;

    fn try_from(message: wire::HttpRule) -> Result<Self, Error> {
        let pattern = |field, source: Option<String>| {
            let pattern = source.map(|source| Pattern::new(&source));
            pattern.transpose().map_err(|error| invalid(field, error))
        };
        let header = |header: wire::HeaderMatch| {
            let name = header.name.parse().map_err(|_| invalid("http.headers.name", &header.name))?;
            Ok::<_, Error>(HeaderMatch { name, value: header.value })
        };
        Ok(Self {
            index: message.index,
            method: pattern("http.method", message.method)?,
            path: pattern("http.path", message.path)?,
            host: pattern("http.host", message.host)?,
            headers: message.headers.into_iter().map(header).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Origin> for wire::Origin {
    fn from(origin: &Origin) -> Self {
        let number = |index: Option<u32>| index.and_then(|index| i32::try_from(index).ok()).unwrap_or(-1);
        Self {
            kind: origin.kind.to_owned(),
            namespace: origin.namespace.to_string(),
            name: origin.name.to_string(),
            rule: number(origin.rule),
            http_rule: number(origin.http_rule),
            deny: origin.deny,
        }
    }
}

impl TryFrom<wire::Origin> for Origin {
    type Error = Error;

    fn try_from(message: wire::Origin) -> Result<Self, Error> {
        let kind = match message.kind.as_str() {
            "" => "",
            kind => PolicyKind::from_name(kind).ok_or_else(|| invalid("origin.kind", kind))?.name(),
        };
        Ok(Self {
            kind,
            namespace: message.namespace.into(),
            name: message.name.into(),
            rule: u32::try_from(message.rule).ok(),
            http_rule: u32::try_from(message.http_rule).ok(),
            deny: message.deny,
        })
    }
}
