//! `Cni`: for the plugin.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use api::agent::{
    AllocateRequest, AllocateResponse, AttachRequest, AttachResponse, Attachment, AttachmentsRequest,
    AttachmentsResponse, CheckRequest, CheckResponse, Problem, ReadyRequest, ReadyResponse, ReleaseRequest,
    ReleaseResponse,
};
use tokio::sync::oneshot;
use tokio::task::block_in_place;
use tonic::{Request, Response, Status};

use super::Shared;
use super::control::problem;
use crate::journal::{AttachmentKey, Veth};
use crate::reconcile::{self, CniError, Reply};
use crate::source::PodName;

/// Written and removed by each STATUS; hidden, so that no other reader of the folder takes it for
/// its own.
const PROBE: &str = ".probe";
/// As much as the journal of some hundred pods, which is rewritten whole at times.
const PROBE_BYTES: usize = 64 << 10;

pub(super) struct Service(pub(super) Arc<Shared>);

impl Service {
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> reconcile::Request) -> Result<T, Status> {
        let stopping = || Status::unavailable("the agent is stopping");
        let (reply, answer) = oneshot::channel();
        self.0.handle.requests.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?.map_err(|error| status(&error))
    }
}

fn status(error: &CniError) -> Status {
    let message = error.to_string();
    match error {
        CniError::NotReady(_) => Status::unavailable(message),
        CniError::Invalid { .. } => Status::invalid_argument(message),
        CniError::Unknown(_) | CniError::Device { .. } | CniError::NameTaken(_) => {
            Status::failed_precondition(message)
        }
        CniError::Ipam(_) => Status::resource_exhausted(message),
        CniError::Journal(_) | CniError::Node(_) | CniError::Datapath(_) | CniError::NotInForce(_) => {
            Status::internal(message)
        }
    }
}

fn key(attachment: Option<Attachment>) -> Result<AttachmentKey, Status> {
    let attachment = attachment.ok_or_else(|| Status::invalid_argument("attachment is missing"))?;
    Ok(AttachmentKey { container_id: attachment.container_id, interface: attachment.interface })
}

fn mac(field: &'static str, bytes: &[u8]) -> Result<[u8; 6], Status> {
    let wrong =
        |_| Status::invalid_argument(format!("{field}: {} bytes, an Ethernet address has 6", bytes.len()));
    bytes.try_into().map_err(wrong)
}

#[tonic::async_trait]
impl api::agent::cni_server::Cni for Service {
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let request = request.into_inner();
        let request = reconcile::AllocateRequest {
            key: key(request.attachment)?,
            netns: request.netns,
            pod: PodName { namespace: request.pod_namespace, name: request.pod_name },
            pod_uid: request.pod_uid,
            network: request.network,
        };
        let allocated = self.ask(|reply| reconcile::Request::Allocate(request, reply)).await?;
        Ok(Response::new(AllocateResponse {
            address: allocated.address.to_string(),
            gateway: allocated.gateway.to_owned(),
            mtu: allocated.mtu,
            host_interface: allocated.host_interface,
        }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let request = request.into_inner();
        if request.host_ifindex == 0 {
            return Err(Status::invalid_argument("host_ifindex: 0 is no device"));
        }
        mac("host_mac", &request.host_mac)?;
        let veth = Veth { host_ifindex: request.host_ifindex, pod_mac: mac("pod_mac", &request.pod_mac)? };
        let request = reconcile::AttachRequest { key: key(request.attachment)?, veth };
        let snapshot = self.ask(|reply| reconcile::Request::Attach(request, reply)).await?;
        Ok(Response::new(AttachResponse { snapshot }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let key = key(request.into_inner().attachment)?;
        let existed = self.ask(|reply| reconcile::Request::Release(key, reply)).await?;
        Ok(Response::new(ReleaseResponse { existed }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let address = |text: &String| {
            text.parse().map_err(|_| Status::invalid_argument(format!("addresses: {text:?}")))
        };
        let veth = Veth { host_ifindex: request.host_ifindex, pod_mac: mac("pod_mac", &request.pod_mac)? };
        let request = reconcile::CheckRequest {
            key: key(request.attachment)?,
            veth,
            addresses: request.addresses.iter().map(address).collect::<Result<_, _>>()?,
        };
        let lost = self.ask(|reply| reconcile::Request::Check(request, reply)).await?;
        Ok(Response::new(CheckResponse { lost }))
    }

    async fn ready(&self, _: Request<ReadyRequest>) -> Result<Response<ReadyResponse>, Status> {
        let readiness = self.0.handle.view.borrow().readiness.clone();
        let mut refused: Vec<Problem> = readiness.refused.iter().map(problem).collect();
        if let Err(error) = block_in_place(|| probe(&self.0.config.state_dir)) {
            let r#where = format!("state folder {}", self.0.config.state_dir.display());
            refused.push(Problem { r#where, message: format!("cannot be written: {error}") });
        }
        Ok(Response::new(ReadyResponse { refused, lost: readiness.lost.iter().map(problem).collect() }))
    }

    async fn attachments(
        &self,
        request: Request<AttachmentsRequest>,
    ) -> Result<Response<AttachmentsResponse>, Status> {
        let network = request.into_inner().network;
        let keys = self.ask(|reply| reconcile::Request::Attachments(network, reply)).await?;
        let attachments = keys
            .into_iter()
            .map(|key| Attachment { container_id: key.container_id, interface: key.interface })
            .collect();
        Ok(Response::new(AttachmentsResponse { attachments }))
    }
}

/// Whether a file of the state folder can be written: an ADD writes several. Not synced: a full or
/// read-only file system says so at once.
fn probe(state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(PROBE);
    let written = fs::write(&path, [0; PROBE_BYTES]);
    match fs::remove_file(&path) {
        // Another STATUS at the same time.
        Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
        _ => written,
    }
}
