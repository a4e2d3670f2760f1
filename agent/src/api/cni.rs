//! `Cni`: for the plugin.

use std::sync::Arc;

use api::agent::{
    AllocateRequest, AllocateResponse, AttachRequest, AttachResponse, Attachment, ReleaseRequest,
    ReleaseResponse,
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use super::Shared;
use crate::journal::{AttachmentKey, Veth};
use crate::reconcile::{self, CniError, Reply};
use crate::source::PodName;

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
}
