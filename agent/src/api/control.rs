//! `Control`: what `mesh-ctl` asks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::agent::{
    Counter, Endpoint, EndpointsRequest, EndpointsResponse, ExplainRequest, ExplainResponse, InForceRequest,
    InForceResponse, PoliciesRequest, PoliciesResponse, Policy, Problem, Program, StatusRequest,
    StatusResponse,
};
use policy::PolicyObject;
use tonic::{Request, Response, Status};

use super::{Shared, explain};
use crate::check::{self, title};
use crate::isolation;
use crate::reconcile::View;
use crate::source::FileVersion;

/// Policies of one answer for which the selected pods are worked out: it takes a compilation each. More of them are
/// listed without; asking for one by name always gives its pods.
const MAX_SELECTIONS: usize = 200;

/// Longest wait for a change to be in force. A file is read within a second and the proxy waited
/// for one more.
const IN_FORCE_LIMIT: Duration = Duration::from_secs(10);

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
            programs: programs(&view, self.0.config.encryption),
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
        let (view, request) = (self.view(), request.into_inner());
        let mut answer = explain::explain(&view.snapshot, &request)?;
        tokio::task::block_in_place(|| isolation::name(&view, &request, &mut answer));
        Ok(Response::new(answer))
    }

    async fn in_force(&self, request: Request<InForceRequest>) -> Result<Response<InForceResponse>, Status> {
        let request = request.into_inner();
        let mut view = self.0.handle.view.clone();
        let waited = tokio::time::timeout(IN_FORCE_LIMIT, view.wait_for(|view| is_in_force(view, &request)));
        let late = || {
            Status::deadline_exceeded(format!(
                "not in force within {IN_FORCE_LIMIT:?}: see `mesh-ctl status`"
            ))
        };
        let in_force = waited.await.map_err(|_| late())?;
        let in_force = in_force.map_err(|_| Status::unavailable("the agent ends"))?;
        Ok(Response::new(InForceResponse { snapshot: in_force.snapshot.number }))
    }
}

/// Whether the files were read as they are now, and nothing that was compiled since waits for the
/// kernel.
fn is_in_force(view: &View, request: &InForceRequest) -> bool {
    let Some(records) = &view.records else { return false };
    let is_read = |file: &api::agent::FileVersion| {
        let version = FileVersion { inode: file.inode, modified: (file.modified_s, file.modified_ns) };
        records.files.get(&file.name) == Some(&version)
    };
    request.files.iter().all(is_read)
        && !request.gone.iter().any(|name| records.files.contains_key(name))
        && view.compiled == view.snapshot.number
}

pub(super) fn problem(problem: &policy::Problem) -> Problem {
    Problem { r#where: problem.location.clone(), message: problem.message.clone() }
}

fn programs(view: &View, encryption: bool) -> Vec<Program> {
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
    match &view.tunnel {
        Some(tunnel) => {
            programs.push(program("mesh-wireguard", state(view.tunnel_hung), tunnel.pid, &tunnel.version));
        }
        None if encryption => programs.push(program("mesh-wireguard", "not connected", 0, "")),
        // Without encryption no node runs it.
        None => {}
    }
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
    let mut world = (asked.len() <= MAX_SELECTIONS).then(|| check::world(records));
    let mut by_policy = isolation::problems_by_policy(view, records);
    asked
        .into_iter()
        .map(|policy| Policy {
            kind: policy.kind.name().to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            selects: world.as_mut().map(|world| check::select(world, policy).0).unwrap_or_default(),
            problems: by_policy.remove(&title(policy)).unwrap_or_default(),
            manifest: policy.manifest.to_string(),
        })
        .collect()
}
