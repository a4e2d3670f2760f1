//! Ports of both policy languages.

use serde::Deserialize;
use serde_json::Value;

use super::{PortName, PortSpec};
use crate::Protocol;

/// A port of Cilium's `toPorts`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CiliumPort {
    port: String,
    end_port: Option<i64>,
    protocol: Option<String>,
}

/// A port of a NetworkPolicy.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetworkPolicyPort {
    port: Option<Value>,
    end_port: Option<i64>,
    protocol: Option<String>,
}

impl CiliumPort {
    /// The port it stands for, or the field that is wrong and why.
    pub(super) fn resolve(&self) -> Result<PortSpec, (&'static str, String)> {
        let protocol = match self.protocol.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None | Some("" | "ANY") => None,
            Some(name) => Some(with_ports(name, "TCP, UDP, SCTP or ANY")?),
        };
        // Zero is how Go writes "absent".
        let end = self.end_port.filter(|&end| end != 0);
        // Go's parser, which the manifests were written for, takes no sign.
        let port = match self.port.parse::<u16>() {
            Ok(_) if self.port.starts_with('+') => return Err(("port", "a number has no sign".into())),
            Ok(0) if end.is_none() => PortName::Numbers { first: 0, last: u16::MAX },
            Ok(0) => return Err(("endPort", "port 0 is every port already: remove `endPort`".into())),
            Ok(first) => PortName::Numbers { first, last: last_port(first, end)? },
            Err(_) if end.is_some() => {
                return Err(("endPort", "needs a number in `port`, not a name".into()));
            }
            Err(_) => PortName::Named(port_name(&self.port)?),
        };
        Ok(PortSpec { protocol, port })
    }

    /// Whether requests can be judged on it: TCP, said so, and a port.
    pub(super) fn takes_http(&self) -> Result<(), (&'static str, String)> {
        if !self.protocol.as_deref().is_some_and(|protocol| protocol.eq_ignore_ascii_case("TCP")) {
            return Err(("protocol", "`rules.http` needs `protocol: TCP`".into()));
        }
        if self.port.parse() == Ok(0u16) {
            return Err(("port", "`rules.http` needs a port other than 0".into()));
        }
        Ok(())
    }
}

impl NetworkPolicyPort {
    /// The port it stands for, or the field that is wrong and why.
    pub(super) fn resolve(&self) -> Result<PortSpec, (&'static str, String)> {
        let protocol = match self.protocol.as_deref() {
            None => Protocol::Tcp,
            Some(name) => with_ports(name, "TCP, UDP or SCTP")?,
        };
        let port = match (&self.port, self.end_port) {
            (None, None) => PortName::Numbers { first: 0, last: u16::MAX },
            (None, Some(_)) => return Err(("endPort", "needs `port`, the first of the range".into())),
            (Some(Value::String(_)), Some(_)) => {
                return Err(("endPort", "needs a number in `port`, not a name".into()));
            }
            (Some(Value::String(name)), None) => PortName::Named(port_name(name)?),
            (Some(number), end) => {
                let first = number.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|&n| n > 0);
                let first = first.ok_or(("port", "must be 1 to 65535 or the name of a port".to_owned()))?;
                PortName::Numbers { first, last: last_port(first, end)? }
            }
        };
        Ok(PortSpec { protocol: Some(protocol), port })
    }
}

fn with_ports(name: &str, choice: &str) -> Result<Protocol, (&'static str, String)> {
    match name {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(("protocol", format!("`{name}` is not supported: write {choice}"))),
    }
}

fn last_port(first: u16, end: Option<i64>) -> Result<u16, (&'static str, String)> {
    let Some(end) = end else { return Ok(first) };
    let last = u16::try_from(end).ok().filter(|&last| last >= first);
    last.ok_or_else(|| ("endPort", format!("must be {first} (`port`) to 65535, not {end}")))
}

/// RFC 6335 section 5.1: 1 to 15 letters, digits and single inner hyphens, at least one letter.
fn port_name(name: &str) -> Result<String, (&'static str, String)> {
    let fits = (1..=15).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && name.chars().any(|c| c.is_ascii_alphabetic())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if fits {
        return Ok(name.to_ascii_lowercase());
    }
    Err(("port", format!("`{name}` is neither a port number (0 to 65535) nor the name of a port")))
}
