//! What policies become: for each direction of an endpoint a list of rules over identities and port numbers.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderName, header};

use crate::{Direction, IdentityId, Origin, Pattern, Protocol, RequestHead};

/// The compiled policy of one or more endpoints. Equal ones are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ruleset {
    /// What may come in.
    pub ingress: DirectionRules,
    /// What may go out.
    pub egress: DirectionRules,
}

impl Ruleset {
    /// The rules of one direction.
    pub fn direction(&self, direction: Direction) -> &DirectionRules {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The rules of one direction.
    pub fn direction_mut(&mut self, direction: Direction) -> &mut DirectionRules {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// One direction of a ruleset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DirectionRules {
    /// Only what a rule allows passes. Otherwise everything passes and `rules` is empty.
    pub enforced: bool,
    /// Sorted by kind, namespace, name and rule of their origin: of several that say the same, the first is named.
    pub rules: Vec<Rule>,
}

/// One element of a rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The rule of the manifest.
    pub origin: Origin,
    /// What it says.
    pub action: Action,
    /// About whom.
    pub peers: Peers,
    /// About which destination ports.
    pub ports: Ports,
    /// Allow only: requests are judged, and one of these must match. An empty list matches no request.
    /// Such a rule speaks of TCP only.
    pub http: Option<Vec<HttpRule>>,
}

impl Rule {
    /// Whether it speaks of this peer, protocol and destination port.
    pub fn matches(&self, peer: IdentityId, protocol: Protocol, port: u16) -> bool {
        (self.http.is_none() || protocol == Protocol::Tcp)
            && self.peers.contains(peer)
            && self.ports.contains(protocol, port)
    }
}

/// What a rule says. A deny beats every allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peers {
    /// Everyone, also outside of the cluster.
    Any,
    /// These.
    Identities(BTreeSet<IdentityId>),
}

impl Peers {
    /// Whether `peer` is one of them.
    pub fn contains(&self, peer: IdentityId) -> bool {
        match self {
            Self::Any => true,
            Self::Identities(identities) => identities.contains(&peer),
        }
    }
}

/// What destination ports a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// Every protocol and port, ICMP too.
    Any,
    /// These. Protocols without ports are in none of them.
    Ranges(Vec<PortRange>),
}

impl Ports {
    /// Whether the port is one of them.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(protocol, port)),
        }
    }
}

/// Consecutive ports of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// None: TCP, UDP and SCTP.
    pub protocol: Option<Protocol>,
    /// First port.
    pub first: u16,
    /// Last port, itself included. 0 to 65535 is every port.
    pub last: u16,
}

impl PortRange {
    /// Whether the port lies within.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.speaks_of(protocol) && (self.first..=self.last).contains(&port)
    }

    /// Whether it is about this protocol at all.
    pub fn speaks_of(&self, protocol: Protocol) -> bool {
        match self.protocol {
            Some(own) => own == protocol,
            None => protocol.has_ports(),
        }
    }
}

/// A rule on requests. Everything that is present must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpRule {
    /// Its index in the manifest, see [`Origin::http_rule`]; gaps are rules that were refused.
    pub index: u32,
    /// The method.
    pub method: Option<Pattern>,
    /// The path with its query; each reading of it must match some rule.
    pub path: Option<Pattern>,
    /// The authority, with its port if the client sent one; case counts.
    pub host: Option<Pattern>,
    /// Headers that must be there.
    pub headers: Vec<HeaderMatch>,
}

impl HttpRule {
    /// Whether the request is what this rule describes, if its target is read as `path`.
    pub fn matches(&self, request: &RequestHead<'_>, path: &str) -> bool {
        let fits = |pattern: &Option<Pattern>, text| pattern.as_ref().is_none_or(|p| p.matches(text));
        fits(&self.method, request.method)
            && fits(&self.path, path)
            && fits(&self.host, request.host)
            && self.headers.iter().all(|header| header.matches(request.headers))
    }
}

/// A header that a request must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Its name; case does not count.
    pub name: HeaderName,
    /// Its whole value, byte for byte; repeated headers count as one, joined by commas (RFC 9110
    /// section 5.3), those of Cookie by "; " (RFC 9113 section 8.2.3). None: it only has to be
    /// there.
    pub value: Option<String>,
}

impl HeaderMatch {
    /// Whether the headers have it.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.name).iter();
        let Some(first) = values.next() else { return false };
        let Some(expected) = &self.value else { return true };
        let Some(mut rest) = expected.as_bytes().strip_prefix(first.as_bytes()) else { return false };
        for value in values {
            match rest.strip_prefix(self.separator()).and_then(|rest| rest.strip_prefix(value.as_bytes())) {
                Some(shorter) => rest = shorter,
                None => return false,
            }
        }
        rest.is_empty()
    }

    /// Between the values of a repeated header. HTTP/2 clients send each cookie in a field of its
    /// own, and servers read them, and several Cookie lines of HTTP/1, as one list of cookies.
    fn separator(&self) -> &'static [u8] {
        if self.name == header::COOKIE { b"; " } else { b"," }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append("x-key", value.parse().unwrap());
        }
        map
    }

    /// CVE-2026-26308 was to look at one of several values only.
    #[test]
    fn repeated_headers_are_one_value() {
        let exact = |value: &str| HeaderMatch { name: "X-Key".parse().unwrap(), value: Some(value.into()) };
        for (expected, values, matches) in [
            ("a", &["a"][..], true),
            ("a", &["A"], false),
            ("a", &[], false),
            ("a", &["ab"], false),
            ("ab", &["a"], false),
            ("a", &["a", "b"], false),
            ("b", &["a", "b"], false),
            ("a", &["a", "a"], false),
            ("a,b", &["a", "b"], true),
            ("a,b", &["a,b"], true),
            ("a,b", &["b", "a"], false),
            ("a,b,", &["a", "b", ""], true),
            ("a,b,", &["a", "b"], false),
            ("", &[""], true),
            ("", &["a"], false),
        ] {
            assert_eq!(exact(expected).matches(&headers(values)), matches, "{expected:?} on {values:?}");
        }
        let present = HeaderMatch { name: "x-key".parse().unwrap(), value: None };
        assert!(present.matches(&headers(&[""])) && !present.matches(&headers(&[])));
    }

    #[test]
    fn repeated_cookies_are_one_list_of_cookies() {
        let exact = |value: &str| HeaderMatch { name: "Cookie".parse().unwrap(), value: Some(value.into()) };
        let cookies = |values: &[&str]| {
            HeaderMap::from_iter(values.iter().map(|value| (header::COOKIE, value.parse().unwrap())))
        };
        for (expected, values, matches) in [
            ("a=1; b=2", &["a=1", "b=2"][..], true),
            ("a=1; b=2", &["a=1; b=2"], true),
            ("a=1; b=2; c=3", &["a=1", "b=2; c=3"], true),
            ("a=1", &["a=1"], true),
            ("a=1,b=2", &["a=1,b=2"], true),
            ("a=1,b=2", &["a=1", "b=2"], false),
            ("a=1;b=2", &["a=1", "b=2"], false),
            ("a=1; b=2", &["b=2", "a=1"], false),
            ("a=1; b=2", &["a=1", "b=2", "c=3"], false),
            ("a=1; b=2", &["a=1"], false),
        ] {
            assert_eq!(exact(expected).matches(&cookies(values)), matches, "{expected:?} on {values:?}");
        }
    }

    #[test]
    fn a_rule_on_requests_speaks_of_tcp_only() {
        let rule = |http| Rule {
            origin: Origin::default(),
            action: Action::Allow,
            peers: Peers::Any,
            ports: Ports::Any,
            http,
        };
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp] {
            assert!(rule(None).matches(256, protocol, 80));
            assert_eq!(rule(Some(Vec::new())).matches(256, protocol, 80), protocol == Protocol::Tcp);
        }
    }
}
