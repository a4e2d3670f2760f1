use std::sync::Arc;

use http::HeaderMap;

use super::connection::{ConnectionDecision, DirectionDecision, Flow, Verdict};
use crate::{Direction, EndpointPolicy, HttpRule, IdentityId, Protocol, Readings, Rule, Ruleset, Snapshot};

/// Whose verdicts count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Only those of pods of this node: what its proxy enforces.
    ThisNode,
    /// Both ends, wherever they run: what the client will see.
    Cluster,
}

/// The head of a request, as it is judged.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its target, in every form in which a server may see it: all of them must be allowed.
    pub target: &'a Readings<'a>,
    /// Its authority; case counts, and so does a port.
    pub host: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// The verdict on a request: [`Verdict::Allowed`] or [`Verdict::Denied`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestDecision {
    /// What follows from both.
    pub verdict: Verdict,
    /// Of the source; None if it is not judged here. Names the rule of `rules.http` that allowed.
    pub egress: Option<DirectionDecision>,
    /// Of the destination; likewise.
    pub ingress: Option<DirectionDecision>,
}

/// What the requests of one connection are judged by, on one snapshot. Cheap to clone; deciding neither allocates
/// nor locks.
#[derive(Clone, Debug)]
pub struct RequestPolicy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connection: ConnectionDecision,
    egress: Option<Side>,
    ingress: Option<Side>,
}

/// One end that judges.
#[derive(Debug)]
struct Side {
    decision: DirectionDecision,
    direction: Direction,
    ruleset: Arc<Ruleset>,
    /// Indices of the rules whose `http` decides; empty unless the decision is a redirect.
    rules: Vec<usize>,
}

impl Snapshot {
    /// What the requests on this flow are judged by: made once for each connection and snapshot.
    ///
    /// With [`Scope::ThisNode`] a flow of which neither end is a pod of this node denies everything: whoever brought
    /// it to the proxy knew of a pod that this snapshot does not know.
    pub fn request_policy(&self, flow: &Flow, scope: Scope) -> RequestPolicy {
        let mut connection = self.decide_connection(flow);
        let judged_here = |endpoint: &&EndpointPolicy| scope == Scope::Cluster || endpoint.node == self.node;
        let source = self.endpoint_at(flow.source).filter(judged_here);
        let destination = self.endpoint_at(flow.destination).filter(judged_here);
        connection.egress = connection.egress.filter(|_| source.is_some());
        connection.ingress = connection.ingress.filter(|_| destination.is_some());
        connection.verdict = match (&connection.egress, &connection.ingress) {
            (None, None) if scope == Scope::ThisNode => Verdict::Denied,
            (egress, ingress) => [egress, ingress]
                .into_iter()
                .flatten()
                .fold(Verdict::Allowed, |verdict, decision| verdict.and(decision.verdict)),
        };
        let side = |endpoint: Option<&EndpointPolicy>,
                    direction,
                    peer,
                    decision: &Option<DirectionDecision>| {
            let endpoint = endpoint?;
            let ruleset = Arc::clone(self.ruleset_of(endpoint)?);
            Some(Side::new(ruleset, direction, self.peer_identity(endpoint, peer), flow, decision.clone()?))
        };
        let egress = side(source, Direction::Egress, flow.destination, &connection.egress);
        let ingress = side(destination, Direction::Ingress, flow.source, &connection.ingress);
        RequestPolicy(Arc::new(Inner { connection, egress, ingress }))
    }
}

impl RequestPolicy {
    /// The verdict on one request. Both ends are asked, so that a record can name both.
    pub fn decide(&self, request: &RequestHead<'_>) -> RequestDecision {
        let egress = self.0.egress.as_ref().map(|side| side.decide(request));
        let ingress = self.0.ingress.as_ref().map(|side| side.decide(request));
        let all_allow =
            [&egress, &ingress].into_iter().flatten().all(|decision| decision.verdict == Verdict::Allowed);
        let allowed = all_allow && self.0.connection.verdict != Verdict::Denied;
        let verdict = if allowed { Verdict::Allowed } else { Verdict::Denied };
        RequestDecision { verdict, egress, ingress }
    }

    /// The reading that makes the verdict a denial; None if it is allowed, or denied whatever its
    /// target.
    pub fn denied_reading<'a>(&self, request: &'a RequestHead<'_>) -> Option<&'a str> {
        [&self.0.egress, &self.0.ingress].into_iter().flatten().find_map(|side| side.denied_reading(request))
    }

    /// The verdict on the connection itself, with only the ends that are judged here.
    pub fn connection(&self) -> &ConnectionDecision {
        &self.0.connection
    }
}

impl Side {
    fn new(
        ruleset: Arc<Ruleset>,
        direction: Direction,
        peer: IdentityId,
        flow: &Flow,
        decision: DirectionDecision,
    ) -> Self {
        let judges = decision.verdict == Verdict::Redirected && flow.protocol == Protocol::Tcp;
        let all = ruleset.direction(direction).rules.iter().enumerate();
        let rules = all
            .filter(|(_, rule)| judges && rule.http.is_some() && rule.matches(peer, flow.protocol, flow.port))
            .map(|(index, _)| index)
            .collect();
        Self { decision, direction, ruleset, rules }
    }

    fn decide(&self, request: &RequestHead<'_>) -> DirectionDecision {
        if self.decision.verdict != Verdict::Redirected {
            return self.decision.clone();
        }
        let mut readings = request.target.iter();
        let as_it_came = readings.next().and_then(|path| self.allows(request, path));
        match as_it_came.filter(|_| readings.all(|path| self.allows(request, path).is_some())) {
            Some((rule, http)) => {
                let origin = rule.origin.with_http_rule(http.index);
                DirectionDecision { verdict: Verdict::Allowed, origin, enforced: true }
            }
            None => DirectionDecision { verdict: Verdict::Denied, ..self.decision.clone() },
        }
    }

    /// The rule that allows the request if its target is read as `path`.
    fn allows(&self, request: &RequestHead<'_>, path: &str) -> Option<(&Rule, &HttpRule)> {
        let rules = &self.ruleset.direction(self.direction).rules;
        self.rules.iter().filter_map(|&index| rules.get(index)).find_map(|rule| {
            let found = rule.http.iter().flatten().find(|http| http.matches(request, path))?;
            Some((rule, found))
        })
    }

    fn denied_reading<'a>(&self, request: &'a RequestHead<'_>) -> Option<&'a str> {
        let judges = self.decision.verdict == Verdict::Redirected;
        request.target.iter().find(|path| judges && self.allows(request, path).is_none())
    }
}
