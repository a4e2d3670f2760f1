//! An agent that keeps its journal in memory and can be told to fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::cni_server::{Cni, CniServer};
use api::agent::{
    AllocateRequest, AllocateResponse, AttachRequest, AttachResponse, Attachment, AttachmentsRequest,
    AttachmentsResponse, CheckRequest, CheckResponse, ReadyRequest, ReadyResponse, ReleaseRequest,
    ReleaseResponse,
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
    /// Attachment -> name of its network.
    pub(crate) networks: BTreeMap<Key, String>,
    pub(crate) checked: Vec<CheckRequest>,
    /// What CHECK is told.
    pub(crate) lost: Vec<String>,
    /// What STATUS is told.
    pub(crate) ready: ReadyResponse,
    pub(crate) releases: usize,
    pub(crate) refuse_allocate: bool,
    pub(crate) refuse_attach: bool,
    pub(crate) refuse_release: bool,
    /// The release of this container is refused.
    pub(crate) refuse_release_of: String,
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
            let server = tonic::transport::Server::builder().add_service(CniServer::new(service));
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
        journal.networks.insert(key.clone(), request.network);
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
        let key = key(request.into_inner().attachment);
        if journal.refuse_release || journal.refuse_release_of == key.0 {
            return Err(Status::internal("the journal cannot be written"));
        }
        journal.networks.remove(&key);
        let existed = journal.allocations.remove(&key).is_some();
        Ok(Response::new(ReleaseResponse { existed }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let mut journal = self.0.lock().unwrap();
        journal.checked.push(request.into_inner());
        Ok(Response::new(CheckResponse { lost: journal.lost.clone() }))
    }

    async fn ready(&self, _: Request<ReadyRequest>) -> Result<Response<ReadyResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().ready.clone()))
    }

    async fn attachments(
        &self,
        request: Request<AttachmentsRequest>,
    ) -> Result<Response<AttachmentsResponse>, Status> {
        let network = request.into_inner().network;
        let journal = self.0.lock().unwrap();
        let of_network = journal.networks.iter().filter(|(_, of)| **of == network);
        let attachments = of_network
            .map(|((container, interface), _)| Attachment {
                container_id: container.clone(),
                interface: interface.clone(),
            })
            .collect();
        Ok(Response::new(AttachmentsResponse { attachments }))
    }
}
