//! The verdict on each request of one connection.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;
use policy::{
    DirectionDecision, Flow, IdentityId, Protocol, Readings, RequestHead, RequestPolicy, Scope,
    TargetProblem, Verdict, identity,
};

use crate::policies::Policies;
use crate::refusal::Refusal;

/// Judges the requests of one connection by the snapshot in force. What the snapshot says about the connection is
/// looked up once for each snapshot; a request then decides without allocation or lock.
#[derive(Debug)]
pub struct Gate {
    policies: Arc<Policies>,
    client: SocketAddr,
    destination: SocketAddr,
    known: RefCell<Option<Known>>,
}

/// What one snapshot says about the connection.
#[derive(Debug)]
struct Known {
    epoch: u64,
    number: u64,
    policy: RequestPolicy,
    source_identity: IdentityId,
    destination_identity: IdentityId,
    node_address: Option<IpAddr>,
}

/// What a request is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its target as it came.
    pub target: &'a str,
    /// Its authority.
    pub host: &'a str,
    /// Its headers, those that are forwarded.
    pub headers: &'a HeaderMap,
}

/// The verdict on a request, and what its record says about it.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// None: allowed.
    pub refusal: Option<Refusal>,
    /// The client's policy, if it is judged here.
    pub egress: Option<DirectionDecision>,
    /// The server's policy, if it is judged here.
    pub ingress: Option<DirectionDecision>,
    /// Number of the snapshot; 0: none.
    pub snapshot: u64,
    /// Identity of the client's address.
    pub source_identity: IdentityId,
    /// Identity of the destination's address.
    pub destination_identity: IdentityId,
}

/// With what address the server is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own.
    Client,
    /// The node's: towards the world, which could not answer a pod, and for a pod that calls itself, which drops
    /// packets from its own address.
    Node(IpAddr),
}

impl Judgement {
    fn refused(refusal: Refusal) -> Self {
        Self { refusal: Some(refusal), ..Self::default() }
    }
}

impl Known {
    fn judgement(&self, refusal: Option<Refusal>) -> Judgement {
        Judgement {
            refusal,
            snapshot: self.number,
            source_identity: self.source_identity,
            destination_identity: self.destination_identity,
            ..Judgement::default()
        }
    }
}

impl Gate {
    /// For the connection from `client` to `destination`.
    pub fn new(policies: Arc<Policies>, client: SocketAddr, destination: SocketAddr) -> Self {
        Self { policies, client, destination, known: RefCell::new(None) }
    }

    /// Judges a request. A malformed target is a refusal too.
    pub fn judge(&self, subject: &Subject<'_>) -> Judgement {
        self.with(|known| {
            let Some(known) = known else { return Judgement::refused(Refusal::NoSnapshot) };
            let target = match Readings::of(subject.target) {
                Ok(target) => target,
                Err(TargetProblem::TooManyReadings) => {
                    return known.judgement(Some(Refusal::TooManyReadings));
                }
                Err(problem) => return known.judgement(Some(Refusal::Malformed(problem.text()))),
            };
            let Subject { method, host, headers, .. } = *subject;
            let decision = known.policy.decide(&RequestHead { method, target: &target, host, headers });
            let refusal = (decision.verdict != Verdict::Allowed).then_some(Refusal::Denied);
            Judgement { egress: decision.egress, ingress: decision.ingress, ..known.judgement(refusal) }
        })
    }

    /// For what is refused without being judged.
    pub fn refuse(&self, refusal: Refusal) -> Judgement {
        self.with(|known| match known {
            Some(known) => known.judgement(Some(refusal)),
            None => Judgement::refused(refusal),
        })
    }

    /// Whether the connection as a whole is forbidden now, whatever it carries.
    pub fn connection_denied(&self) -> bool {
        self.with(|known| known.is_some_and(|known| known.policy.connection().verdict == Verdict::Denied))
    }

    /// With what address to connect to the server. None: the node's is needed and not known.
    pub fn upstream_source(&self) -> Option<Source> {
        self.with(|known| {
            let known = known?;
            let to_itself = self.client.ip() == self.destination.ip();
            if known.destination_identity == identity::WORLD || to_itself {
                return known.node_address.map(Source::Node);
            }
            Some(Source::Client)
        })
    }

    /// Whether the destination is this node itself, which the proxy never serves: a loop.
    pub fn is_loop(&self) -> bool {
        let address = self.destination.ip();
        address.is_loopback()
            || address.is_unspecified()
            || self.policies.current().is_some_and(|snapshot| snapshot.node_addresses.contains(&address))
    }

    fn with<T>(&self, use_it: impl FnOnce(Option<&Known>) -> T) -> T {
        let epoch = self.policies.epoch();
        let mut known = self.known.borrow_mut();
        if known.as_ref().is_none_or(|known| known.epoch != epoch) {
            *known = self.look_up(epoch);
        }
        use_it(known.as_ref())
    }

    /// The epoch is read before the snapshot: if another is installed in between, the next request looks again.
    fn look_up(&self, epoch: u64) -> Option<Known> {
        let snapshot = self.policies.current()?;
        let flow = Flow {
            source: self.client.ip(),
            destination: self.destination.ip(),
            protocol: Protocol::Tcp,
            port: self.destination.port(),
        };
        let same_family = |address: &&IpAddr| address.is_ipv4() == flow.destination.is_ipv4();
        Some(Known {
            epoch,
            number: snapshot.number,
            policy: snapshot.request_policy(&flow, Scope::ThisNode),
            source_identity: snapshot.identity_of(flow.source),
            destination_identity: snapshot.identity_of(flow.destination),
            node_address: snapshot.node_addresses.iter().find(same_family).copied(),
        })
    }
}
