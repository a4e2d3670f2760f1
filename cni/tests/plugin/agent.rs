//! An agent that keeps its journal in memory and can be told to fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::cni_server::{Cni, CniServer};
use api::agent::control_server::{Control, ControlServer};
use api::agent::{
    AllocateRequest, AllocateResponse, AttachRequest, AttachResponse, Attachment, EndpointsRequest,
    EndpointsResponse, ExplainRequest, ExplainResponse, PoliciesRequest, PoliciesResponse, ReleaseRequest,
    ReleaseResponse, StatusRequest, StatusResponse,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// Container ID and interface.
pub(crate) type Key = (String, String);

/// What the agent knows and was asked.
#[derive(Default)]
pub(crate) struct Journal {
    /// Attachment -> last number of its address.
    pub(crate) allocations: BTreeMap<Key, u8>,
    /// Attached, in order.
    pub(crate) attached: Vec<AttachRequest>,
    pub(crate) allocated: Vec<AllocateRequest>,
    pub(crate) releases: usize,
    pub(crate) refuse_allocate: bool,
    pub(crate) refuse_attach: bool,
    pub(crate) refuse_release: bool,
    next: u8,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Journal>>);

/// A running agent. It stops, and its socket goes, when dropped.
pub(crate) struct Agent {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Agent {
    /// Listens at `socket`, with what an agent before it knew.
    pub(crate) fn start(socket: &Path, journal: Arc<Mutex<Journal>>) -> Self {
        let _ = std::fs::remove_file(socket);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = Service(journal);
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder()
                .add_service(CniServer::new(service.clone()))
                .add_service(ControlServer::new(service));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { runtime: Some(runtime) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

fn key(attachment: Option<Attachment>) -> Key {
    let attachment = attachment.unwrap();
    (attachment.container_id, attachment.interface)
}

pub(crate) fn host_interface((container, interface): &Key) -> String {
    api::names::host_interface(container, interface)
}

#[tonic::async_trait]
impl Cni for Service {
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let request = request.into_inner();
        let mut journal = self.0.lock().unwrap();
        journal.allocated.push(request.clone());
        if journal.refuse_allocate {
            return Err(Status::resource_exhausted("the pod range 10.1.0.0/24 is used up"));
        }
        let key = key(request.attachment);
        let next = journal.next + 1;
        let number = *journal.allocations.entry(key.clone()).or_insert(next);
        journal.next = journal.next.max(number);
        Ok(Response::new(AllocateResponse {
            address: format!("10.1.0.{number}"),
            gateway: "169.254.1.1".to_owned(),
            mtu: 1420,
            host_interface: host_interface(&key),
        }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let mut journal = self.0.lock().unwrap();
        if journal.refuse_attach {
            return Err(Status::internal("from_pod cannot be attached"));
        }
        journal.attached.push(request.into_inner());
        Ok(Response::new(AttachResponse { snapshot: 1 }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let mut journal = self.0.lock().unwrap();
        journal.releases += 1;
        if journal.refuse_release {
            return Err(Status::internal("the journal cannot be written"));
        }
        let existed = journal.allocations.remove(&key(request.into_inner().attachment)).is_some();
        Ok(Response::new(ReleaseResponse { existed }))
    }
}

#[tonic::async_trait]
impl Control for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse::default()))
    }

    async fn endpoints(&self, _: Request<EndpointsRequest>) -> Result<Response<EndpointsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn policies(&self, _: Request<PoliciesRequest>) -> Result<Response<PoliciesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
