//! An agent that answers what it was told to, and remembers what it was asked.

use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use api::agent::control_server::{Control, ControlServer};
use api::agent::{
    Endpoint, EndpointsRequest, EndpointsResponse, ExplainRequest, ExplainResponse, InForceRequest,
    InForceResponse, PoliciesRequest, PoliciesResponse, Policy, StatusRequest, StatusResponse,
};
use api::flow::Flow;
use api::observer::get_flows_response::ResponseTypes;
use api::observer::observer_server::{Observer, ObserverServer};
use api::observer::{GetFlowsRequest, GetFlowsResponse};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, async_trait};

/// What it answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    pub(crate) status: StatusResponse,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) explain: ExplainResponse,
    /// Whether `explain` knows the pods of `endpoints` only, and not every pod.
    pub(crate) is_strict: bool,
    pub(crate) flows: Vec<GetFlowsResponse>,
}

/// A running one.
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    asked: Arc<Mutex<String>>,
    _folder: Option<tempfile::TempDir>,
    _runtime: Option<tokio::runtime::Runtime>,
}

impl Agent {
    pub(crate) fn start(answers: Answers) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        Self { _folder: Some(folder), ..Self::start_at(socket, answers) }
    }

    /// On a socket that is another's, or that a dead one left.
    pub(crate) fn start_at(socket: PathBuf, answers: Answers) -> Self {
        let _ = std::fs::remove_file(&socket);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked = Arc::new(Mutex::new(String::new()));
        let service = Service { answers, asked: asked.clone() };
        let listener = runtime.block_on(async { UnixListener::bind(&socket) }).unwrap();
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(ControlServer::new(service.clone()))
                .add_service(ObserverServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { socket, asked, _folder: None, _runtime: Some(runtime) }
    }

    /// A socket that nobody listens on.
    pub(crate) fn nowhere() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            socket: folder.path().join("agent.sock"),
            asked: Arc::default(),
            _folder: Some(folder),
            _runtime: None,
        }
    }

    /// The last request.
    pub(crate) fn asked(&self) -> String {
        self.asked.lock().unwrap().clone()
    }
}

/// A response that carries a flow of this second.
pub(crate) fn flow_at(seconds: i64, flow: Flow) -> GetFlowsResponse {
    GetFlowsResponse {
        node_name: "node-1".into(),
        time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        response_types: Some(ResponseTypes::Flow(flow)),
    }
}

#[derive(Clone)]
struct Service {
    answers: Answers,
    asked: Arc<Mutex<String>>,
}

impl Service {
    fn note<T: Debug>(&self, request: &Request<T>) {
        *self.asked.lock().unwrap() = format!("{:?}", request.get_ref());
    }
}

#[async_trait]
impl Control for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.answers.status.clone()))
    }

    async fn endpoints(&self, _: Request<EndpointsRequest>) -> Result<Response<EndpointsResponse>, Status> {
        Ok(Response::new(EndpointsResponse { endpoints: self.answers.endpoints.clone() }))
    }

    async fn policies(
        &self,
        request: Request<PoliciesRequest>,
    ) -> Result<Response<PoliciesResponse>, Status> {
        self.note(&request);
        Ok(Response::new(PoliciesResponse { policies: self.answers.policies.clone() }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.note(&request);
        let asked = request.into_inner();
        let ends = [(asked.from_namespace, asked.from_pod), (asked.to_namespace, asked.to_pod)];
        let is_known = |(namespace, name): &(String, String)| {
            self.answers.endpoints.iter().any(|pod| pod.namespace == *namespace && pod.name == *name)
        };
        if self.answers.is_strict && !ends.iter().all(is_known) {
            return Err(Status::not_found("from: no such pod"));
        }
        Ok(Response::new(self.answers.explain.clone()))
    }

    async fn in_force(&self, _: Request<InForceRequest>) -> Result<Response<InForceResponse>, Status> {
        Ok(Response::new(InForceResponse { snapshot: 1 }))
    }
}

#[async_trait]
impl Observer for Service {
    type GetFlowsStream = Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        self.note(&request);
        let flows: Vec<_> = self.answers.flows.iter().cloned().map(Ok).collect();
        let flows = tokio_stream::iter(flows);
        if !request.get_ref().follow {
            return Ok(Response::new(Box::pin(flows)));
        }
        Ok(Response::new(Box::pin(flows.chain(tokio_stream::pending()))))
    }
}
