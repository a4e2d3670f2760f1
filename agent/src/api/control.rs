//! `Control`: what `mesh-ctl` asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::agent::{
    Counter, Endpoint, EndpointsRequest, EndpointsResponse, ExplainRequest, ExplainResponse, PoliciesRequest,
    PoliciesResponse, Policy, Problem, Program, StatusRequest, StatusResponse,
};
use policy::{Identities, PolicyObject, World};
use tonic::{Request, Response, Status};

use super::{Shared, explain};
use crate::reconcile::View;
use crate::source::Records;

/// Policies of one answer for which the selected pods are worked out: it takes a compilation each. More of them are
/// listed without; asking for one by name always gives its pods.
const MAX_SELECTIONS: usize = 200;

pub(super) struct Service(pub(super) Arc<Shared>);

impl Service {
    fn view(&self) -> Arc<View> {
        self.0.handle.view.borrow().clone()
    }
}

#[tonic::async_trait]
impl api::agent::control_server::Control for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let view = self.view();
        let mut problems: Vec<Problem> = view.problems.iter().map(problem).collect();
        problems.extend(view.tunnel.iter().flat_map(|tunnel| tunnel.problems.clone()));
        let counters = match self.0.maps.counters() {
            Ok(counters) => {
                counters.iter().map(|(reason, value)| (reason.name().to_owned(), value)).collect()
            }
            Err(error) => {
                problems.push(Problem { r#where: "counters".to_owned(), message: error.to_string() });
                Vec::new()
            }
        };
        let of_tunnel = view.tunnel.iter().flat_map(|tunnel| &tunnel.counters);
        let of_tunnel = of_tunnel.map(|counter| (counter.name.clone(), counter.value));
        let counters = counters.into_iter().chain(of_tunnel).filter(|(_, value)| *value > 0);
        Ok(Response::new(StatusResponse {
            node: self.0.config.node_name.clone(),
            programs: programs(&view),
            snapshot: view.compiled,
            snapshot_enforced: view.snapshot.number,
            snapshot_proxy: view.proxies.iter().map(|proxy| proxy.number).min().unwrap_or(0),
            problems,
            counters: counters.map(|(name, value)| Counter { name, value }).collect(),
            peers: view.tunnel.iter().flat_map(|tunnel| tunnel.peers.clone()).collect(),
            encrypted: self.0.config.encryption,
            endpoints: u32::try_from(view.attached.len()).unwrap_or(u32::MAX),
        }))
    }

    async fn endpoints(&self, _: Request<EndpointsRequest>) -> Result<Response<EndpointsResponse>, Status> {
        Ok(Response::new(EndpointsResponse { endpoints: endpoints(&self.view(), &self.0.config.node_name) }))
    }

    async fn policies(
        &self,
        request: Request<PoliciesRequest>,
    ) -> Result<Response<PoliciesResponse>, Status> {
        let request = request.into_inner();
        let view = self.view();
        let answer = tokio::task::block_in_place(|| policies(&view, &request));
        Ok(Response::new(PoliciesResponse { policies: answer }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        explain::explain(&self.view().snapshot, &request.into_inner()).map(Response::new)
    }
}

pub(super) fn problem(problem: &policy::Problem) -> Problem {
    Problem { r#where: problem.location.clone(), message: problem.message.clone() }
}

fn programs(view: &View) -> Vec<Program> {
    let program = |name: &str, state: &str, pid, version: &str| Program {
        name: name.to_owned(),
        state: state.to_owned(),
        pid,
        version: version.to_owned(),
    };
    let mut programs = vec![program("mesh-agent", "running", std::process::id(), env!("CARGO_PKG_VERSION"))];
    let state = |hung: bool| if hung { "hung" } else { "connected" };
    let proxies =
        view.proxies.iter().map(|proxy| program("mesh-proxy", state(proxy.hung), proxy.pid, &proxy.version));
    programs.extend(proxies);
    if view.proxies.is_empty() {
        programs.push(program("mesh-proxy", "not connected", 0, ""));
    }
    programs.push(match &view.tunnel {
        Some(tunnel) => program("mesh-wireguard", state(view.tunnel_hung), tunnel.pid, &tunnel.version),
        None => program("mesh-wireguard", "not connected", 0, ""),
    });
    programs
}

fn endpoints(view: &View, this_node: &str) -> Vec<Endpoint> {
    let snapshot = &view.snapshot;
    let mut known = BTreeSet::new();
    let mut endpoints: Vec<Endpoint> = snapshot
        .endpoints
        .iter()
        .map(|endpoint| {
            let ruleset = snapshot.ruleset_of(endpoint);
            known.extend(endpoint.addresses.iter().copied());
            Endpoint {
                namespace: endpoint.namespace.clone(),
                name: endpoint.name.clone(),
                node: endpoint.node.clone(),
                addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
                labels: endpoint.labels.clone().into_iter().collect(),
                identity: endpoint.identity,
                ingress_enforced: ruleset.is_none_or(|ruleset| ruleset.ingress.enforced),
                egress_enforced: ruleset.is_none_or(|ruleset| ruleset.egress.enforced),
                local: view.attached.iter().any(|pod| endpoint.addresses.contains(&pod.address)),
            }
        })
        .collect();
    // Attached before their Pod object was seen: closed.
    endpoints.extend(view.attached.iter().filter(|pod| !known.contains(&pod.address)).map(|pod| Endpoint {
        namespace: pod.name.namespace.clone(),
        name: pod.name.name.clone(),
        node: this_node.to_owned(),
        addresses: vec![pod.address.to_string()],
        labels: Default::default(),
        identity: policy::identity::UNKNOWN,
        ingress_enforced: true,
        egress_enforced: true,
        local: true,
    }));
    endpoints
}

fn policies(view: &View, request: &PoliciesRequest) -> Vec<Policy> {
    let Some(records) = &view.records else { return Vec::new() };
    let asked = records.policies.values().filter(|policy| {
        (request.namespace.is_empty() || policy.namespace == request.namespace)
            && (request.name.is_empty() || policy.name == request.name)
    });
    let asked: Vec<&Arc<PolicyObject>> = asked.collect();
    let mut world = (asked.len() <= MAX_SELECTIONS).then(|| World {
        this_node: view.snapshot.node.clone(),
        namespaces: records.namespaces.clone(),
        pods: records.pods.values().map(|pod| (**pod).clone()).collect(),
        ..World::default()
    });
    let mut by_policy = problems_by_policy(view, records);
    asked
        .into_iter()
        .map(|policy| Policy {
            kind: policy.kind.name().to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            selects: world.as_mut().map(|world| selected(world, policy)).unwrap_or_default(),
            problems: by_policy.remove(&title(policy)).unwrap_or_default(),
            manifest: policy.manifest.to_string(),
        })
        .collect()
}

/// "Kind namespace/name", as the engine's problems begin.
fn title(policy: &PolicyObject) -> String {
    policy::Origin::policy(policy.kind, &policy.namespace, &policy.name).to_string()
}

fn problems_by_policy(view: &View, records: &Records) -> BTreeMap<String, Vec<Problem>> {
    let titles: BTreeSet<String> = records.policies.values().map(|policy| title(policy)).collect();
    let mut by_policy: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
    for found in &view.problems {
        let head = found.location.split(':').next().unwrap_or("");
        if titles.contains(head) {
            by_policy.entry(head.to_owned()).or_default().push(problem(found));
        }
    }
    by_policy
}

/// The pods that the policy, if it were the only one, would put under rules. The engine alone knows how to select.
fn selected(world: &mut World, policy: &PolicyObject) -> Vec<String> {
    world.policies = vec![policy.clone()];
    let (snapshot, _) = policy::compile(world, &mut Identities::default(), 1);
    let touched = snapshot.endpoints.iter().filter(|endpoint| {
        let ruleset = snapshot.ruleset_of(endpoint);
        ruleset.is_some_and(|ruleset| {
            [&ruleset.ingress, &ruleset.egress].iter().any(|d| d.enforced || !d.rules.is_empty())
        })
    });
    touched.map(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.name)).collect()
}
