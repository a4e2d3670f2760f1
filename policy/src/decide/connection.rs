use std::fmt;
use std::net::IpAddr;

use crate::{
    Action, Direction, DirectionRules, EndpointPolicy, IdentityId, Origin, Protocol, Rule, Snapshot, identity,
};

/// A connection, or a first packet, by what policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub source: IpAddr,
    /// To whom, after services are resolved.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
}

/// Yes, no, or "each request decides".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Passes straight through.
    Allowed,
    /// Is dropped, or refused by the proxy.
    Denied,
    /// Goes to the proxy, which judges each request.
    Redirected,
}

impl Verdict {
    /// `allowed`, `denied` or `redirected`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Redirected => "redirected",
        }
    }

    /// Both ends must agree: a denial of either denies, a redirect of either redirects.
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Denied, _) | (_, Self::Denied) => Self::Denied,
            (Self::Redirected, _) | (_, Self::Redirected) => Self::Redirected,
            (Self::Allowed, Self::Allowed) => Self::Allowed,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The verdict of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionDecision {
    /// What it is.
    pub verdict: Verdict,
    /// The rule it comes from. A refused request names the first rule whose `rules.http` had a say.
    pub origin: Origin,
    /// Whether rules had a say at all in this direction of the endpoint.
    pub enforced: bool,
}

impl DirectionDecision {
    pub(crate) fn new(verdict: Verdict, origin: &Origin, enforced: bool) -> Self {
        Self { verdict, origin: origin.clone(), enforced }
    }

    fn by_default(verdict: Verdict, enforced: bool) -> Self {
        Self { verdict, origin: Origin::default(), enforced }
    }
}

/// The verdict on a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionDecision {
    /// What follows from both.
    pub verdict: Verdict,
    /// Of the source; None if it is no pod (or none that is judged here).
    pub egress: Option<DirectionDecision>,
    /// Of the destination; likewise.
    pub ingress: Option<DirectionDecision>,
}

impl Snapshot {
    /// What both ends say, wherever they run: each is judged as its own node judges it.
    pub fn decide_connection(&self, flow: &Flow) -> ConnectionDecision {
        let (source, destination) = (self.endpoint_at(flow.source), self.endpoint_at(flow.destination));
        let to_itself = matches!((source, destination), (Some(a), Some(b)) if std::ptr::eq(a, b));
        let decide = |endpoint: &EndpointPolicy, direction, peer_address| {
            if to_itself {
                // Such packets never leave the pod: nobody could refuse them.
                return DirectionDecision::by_default(Verdict::Allowed, false);
            }
            let peer = self.peer_identity(endpoint, peer_address);
            self.decide_direction(endpoint, direction, peer, flow.protocol, flow.port)
        };
        let egress = source.map(|endpoint| decide(endpoint, Direction::Egress, flow.destination));
        let ingress = destination.map(|endpoint| decide(endpoint, Direction::Ingress, flow.source));
        let verdict = [&egress, &ingress]
            .into_iter()
            .flatten()
            .fold(Verdict::Allowed, |verdict, decision| verdict.and(decision.verdict));
        ConnectionDecision { verdict, egress, ingress }
    }

    /// What one end says about a peer.
    pub fn decide_direction(
        &self,
        endpoint: &EndpointPolicy,
        direction: Direction,
        peer: IdentityId,
        protocol: Protocol,
        port: u16,
    ) -> DirectionDecision {
        match self.ruleset_of(endpoint) {
            Some(ruleset) => ruleset.direction(direction).decide(direction, peer, protocol, port),
            None => DirectionDecision::by_default(Verdict::Denied, true),
        }
    }

    /// The identity of an address as seen from the endpoint's node: what is this node's own process for a pod here is
    /// another node's for a pod elsewhere. Another node's own processes are only known as remote ones.
    pub(super) fn peer_identity(&self, endpoint: &EndpointPolicy, peer: IpAddr) -> IdentityId {
        match self.identity_of(peer) {
            identity::HOST if endpoint.node != self.node => identity::REMOTE_NODE,
            identity => identity,
        }
    }
}

impl DirectionRules {
    /// What these rules say about a peer, protocol and destination port.
    ///
    /// A deny beats every allow; an allow that does not look at requests beats those that do, so nothing is left for
    /// the proxy to judge; what no rule allows is denied. The node's own processes always come in: they are kubelet's
    /// probes, and the node could enter the pod anyway.
    pub fn decide(
        &self,
        direction: Direction,
        peer: IdentityId,
        protocol: Protocol,
        port: u16,
    ) -> DirectionDecision {
        if !self.enforced || (direction == Direction::Ingress && peer == identity::HOST) {
            return DirectionDecision::by_default(Verdict::Allowed, self.enforced);
        }
        merge(self.rules.iter().filter(|rule| rule.matches(peer, protocol, port)))
    }
}

/// The verdict of the rules that match, in the order of their origins.
fn merge<'a>(matching: impl Iterator<Item = &'a Rule>) -> DirectionDecision {
    let (mut allow, mut redirect) = (None, None);
    for rule in matching {
        match (rule.action, &rule.http) {
            (Action::Deny, _) => return DirectionDecision::new(Verdict::Denied, &rule.origin, true),
            (Action::Allow, None) => allow = allow.or(Some(rule)),
            (Action::Allow, Some(_)) => redirect = redirect.or(Some(rule)),
        }
    }
    match (allow, redirect) {
        (Some(rule), _) => DirectionDecision::new(Verdict::Allowed, &rule.origin, true),
        (None, Some(rule)) => DirectionDecision::new(Verdict::Redirected, &rule.origin, true),
        (None, None) => DirectionDecision::by_default(Verdict::Denied, true),
    }
}
