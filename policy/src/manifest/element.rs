//! One element of `ingress`, `ingressDeny`, `egress` or `egressDeny` of Cilium's policies.

use serde::Deserialize;
use serde_json::Value;

use super::ports::CiliumPort;
use super::reader::{Reader, Unsupported};
use super::selector::{Dialect, Selector};
use super::{PeersSpec, PortList, PortsSpec, RuleSpec, http_rule};
use crate::{Action, Direction, identity};

/// As many ports as Cilium allows in one element of `toPorts`.
const MAX_PORTS: usize = 40;

const USE_ENDPOINTS: &str =
    "select pods with `fromEndpoints`/`toEndpoints`, or use `fromEntities`/`toEntities`";

const UNSUPPORTED: &[Unsupported] = &[
    ("fromCIDR", USE_ENDPOINTS),
    ("fromCIDRSet", USE_ENDPOINTS),
    ("fromGroups", USE_ENDPOINTS),
    ("fromNodes", USE_ENDPOINTS),
    ("fromRequires", "add its labels to each selector"),
    ("toCIDR", USE_ENDPOINTS),
    ("toCIDRSet", USE_ENDPOINTS),
    ("toFQDNs", "use `toEntities: [world]` with `toPorts`"),
    ("toGroups", USE_ENDPOINTS),
    ("toNodes", USE_ENDPOINTS),
    ("toRequires", "add its labels to each selector"),
    ("toServices", "select the pods of the service with `toEndpoints`"),
    ("icmps", "allow the peer without `toPorts`, that includes ICMP"),
    ("authentication", "remove it: traffic between nodes is encrypted anyway"),
];

const UNSUPPORTED_PORTS: &[Unsupported] = &[
    ("serverNames", "remove it and restrict the peers"),
    ("terminatingTLS", "TLS passes unopened: remove it"),
    ("originatingTLS", "TLS passes unopened: remove it"),
    ("listener", "remove it"),
];

const UNSUPPORTED_RULES: &[Unsupported] = &[
    ("dns", "remove it: DNS is allowed by port only"),
    ("kafka", "remove it: allowed by port only"),
    ("l7proto", "remove it: only `http` is judged"),
    ("l7", "remove it: only `http` is judged"),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawElement {
    #[serde(alias = "fromEndpoints", alias = "toEndpoints")]
    endpoints: Option<Vec<Value>>,
    #[serde(alias = "fromEntities", alias = "toEntities")]
    entities: Option<Vec<String>>,
    to_ports: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPorts {
    ports: Option<Vec<CiliumPort>>,
    rules: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRules {
    http: Option<Vec<Value>>,
}

/// What an element is part of.
pub(super) struct Context<'a> {
    /// Namespace of the policy; empty if it is cluster-wide.
    pub(super) namespace: &'a str,
    pub(super) direction: Direction,
    pub(super) action: Action,
}

impl Context<'_> {
    /// Name of the list that the element stands in.
    pub(super) const fn list(&self) -> &'static str {
        match (self.direction, self.action) {
            (Direction::Ingress, Action::Allow) => "ingress",
            (Direction::Ingress, Action::Deny) => "ingressDeny",
            (Direction::Egress, Action::Allow) => "egress",
            (Direction::Egress, Action::Deny) => "egressDeny",
        }
    }

    /// Reads one element. A bad allow gives nothing, a bad deny denies everything.
    pub(super) fn read(
        &self,
        value: &Value,
        index: u32,
        place: &str,
        reader: &mut Reader<'_>,
    ) -> Option<RuleSpec> {
        let refused = (self.action == Action::Deny).then(|| RuleSpec::deny_everything(index));
        self.try_read(value, index, place, reader).or(refused)
    }

    fn try_read(&self, value: &Value, index: u32, place: &str, reader: &mut Reader<'_>) -> Option<RuleSpec> {
        if !reader.supported(value, place, UNSUPPORTED) {
            return None;
        }
        let raw = self.raw(value, place, reader)?;
        let peers = self.peers(&raw, place, reader)?;
        let ports = match raw.to_ports.filter(|list| !list.is_empty()) {
            // Neither peers nor ports: Cilium adds no rule for it.
            None if matches!(peers, PeersSpec::Any) && raw.endpoints.is_none() && raw.entities.is_none() => {
                Vec::new()
            }
            None => vec![PortsSpec::any()],
            Some(list) => self.ports(&list, place, reader)?,
        };
        Some(RuleSpec { index, action: self.action, peers, ports })
    }

    /// The element with the fields of its own direction only.
    fn raw(&self, value: &Value, place: &str, reader: &mut Reader<'_>) -> Option<RawElement> {
        let foreign = match self.direction {
            Direction::Ingress => ["toEndpoints", "toEntities", "endpoints", "entities"],
            Direction::Egress => ["fromEndpoints", "fromEntities", "endpoints", "entities"],
        };
        if let Some(field) = foreign.into_iter().find(|field| value.get(field).is_some()) {
            reader.problem(
                &format!("{place}.{field}"),
                format!("unknown field `{field}` in `{}`", self.list()),
            );
            return None;
        }
        reader.read(value, place)
    }

    fn peers(&self, raw: &RawElement, place: &str, reader: &mut Reader<'_>) -> Option<PeersSpec> {
        let side = if self.direction == Direction::Ingress { "from" } else { "to" };
        match (&raw.endpoints, &raw.entities) {
            (None, None) => Some(PeersSpec::Any),
            (Some(selectors), None) => self.endpoints(selectors, &format!("{place}.{side}Endpoints"), reader),
            (None, Some(names)) => self.entities(names, &format!("{place}.{side}Entities"), reader),
            (Some(_), Some(_)) => {
                let message = "cannot be combined with `Endpoints` in one element: write two elements";
                reader.problem(&format!("{place}.{side}Entities"), message);
                None
            }
        }
    }

    fn endpoints(&self, list: &[Value], place: &str, reader: &mut Reader<'_>) -> Option<PeersSpec> {
        let mut selectors = Vec::with_capacity(list.len());
        let mut reserved = Vec::new();
        for (index, value) in list.iter().enumerate() {
            let place = format!("{place}[{index}]");
            let mut selector = Selector::read(value, Dialect::Cilium, &place, reader)?;
            match selector.reserved() {
                Ok(None) => {}
                Ok(Some(identities)) => {
                    reserved.extend(identities);
                    continue;
                }
                Err(message) => {
                    reader.problem(&place, message);
                    return None;
                }
            }
            if !self.namespace.is_empty() && !selector.names_namespaces() {
                selector.require_namespace(self.namespace);
            }
            selectors.push(selector);
        }
        Some(PeersSpec::Selected { selectors, reserved, every_pod: false })
    }

    fn ports(&self, list: &[Value], place: &str, reader: &mut Reader<'_>) -> Option<Vec<PortsSpec>> {
        let mut http_rules = 0;
        let mut elements = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let place = format!("{place}.toPorts[{index}]");
            elements.push(self.port_element(value, &mut http_rules, &place, reader)?);
        }
        Some(elements)
    }

    fn port_element(
        &self,
        value: &Value,
        http_rules: &mut u32,
        place: &str,
        reader: &mut Reader<'_>,
    ) -> Option<PortsSpec> {
        if !reader.supported(value, place, UNSUPPORTED_PORTS) {
            return None;
        }
        let raw: RawPorts = reader.read(value, place)?;
        let raw_ports = raw.ports.unwrap_or_default();
        if raw_ports.len() > MAX_PORTS {
            let message = format!("has {} ports, at most {MAX_PORTS} are allowed: split it", raw_ports.len());
            reader.problem(&format!("{place}.ports"), message);
            return None;
        }
        let http = self.http(raw.rules.as_ref(), http_rules, place, reader)?;
        let mut ports = Vec::with_capacity(raw_ports.len());
        for (index, raw) in raw_ports.iter().enumerate() {
            let takes_http = if http.is_some() { raw.takes_http() } else { Ok(()) };
            match takes_http.and_then(|()| raw.resolve()) {
                Ok(port) => ports.push(port),
                Err((field, message)) => {
                    reader.problem(&format!("{place}.ports[{index}].{field}"), message);
                    return None;
                }
            }
        }
        Some(PortsSpec { ports: PortList::Listed(ports), http })
    }

    /// The rules on requests; `Some(None)` if there are none to judge.
    fn http(
        &self,
        rules: Option<&Value>,
        next_index: &mut u32,
        place: &str,
        reader: &mut Reader<'_>,
    ) -> Option<Option<Vec<crate::HttpRule>>> {
        let Some(rules) = rules else { return Some(None) };
        let place = format!("{place}.rules");
        if self.action == Action::Deny {
            reader.problem(&place, "a deny cannot look at requests: allow the wanted ones instead");
            return None;
        }
        if !reader.supported(rules, &place, UNSUPPORTED_RULES) {
            return None;
        }
        let raw: RawRules = reader.read(rules, &place)?;
        let Some(list) = raw.http.filter(|list| !list.is_empty()) else { return Some(None) };
        let mut read = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            read.extend(http_rule::read(value, *next_index, &format!("{place}.http[{index}]"), reader));
            *next_index = next_index.saturating_add(1);
        }
        Some(Some(read))
    }

    fn entities(&self, names: &[String], place: &str, reader: &mut Reader<'_>) -> Option<PeersSpec> {
        let (mut reserved, mut every_pod) = (Vec::new(), false);
        let mut everyone = false;
        for (index, name) in names.iter().enumerate() {
            match name.as_str() {
                "all" => everyone = true,
                "cluster" => {
                    every_pod = true;
                    reserved.extend([identity::HOST, identity::REMOTE_NODE, identity::UNKNOWN]);
                }
                "host" => reserved.push(identity::HOST),
                "remote-node" => reserved.push(identity::REMOTE_NODE),
                "world" => reserved.push(identity::WORLD),
                // Pods that are not known yet: an address that no pod claims may be one of them,
                // and a deny has to hold.
                "init" | "unmanaged" if self.action == Action::Deny => reserved.push(identity::UNKNOWN),
                // Cilium's own endpoints, and pods before it knows them: there are none here.
                "none" | "health" | "ingress" | "init" | "unmanaged" => {}
                other => {
                    let message = format!(
                        "entity `{other}` is not supported yet: write all, cluster, host, remote-node, world or none"
                    );
                    reader.problem(&format!("{place}[{index}]"), message);
                    return None;
                }
            }
        }
        if everyone {
            return Some(PeersSpec::Any);
        }
        Some(PeersSpec::Selected { selectors: Vec::new(), reserved, every_pod })
    }
}
