//! Calls to the agent, each with a limit.

use std::error::Error as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::agent::cni_client::CniClient;
use api::agent::{
    AllocateRequest, AttachRequest, Attachment, AttachmentsRequest, CheckRequest, Problem, ReadyRequest,
    ReleaseRequest,
};
use host::netlink::Mac;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::error::CniError;
use crate::request::Target;

/// How long an ADD waits for one answer. The agent may have to wait for the proxy's acknowledgement (1 s); a runtime gives a
/// whole sandbox minutes, and a clear error is better than its own time-out.
const ADD_LIMIT: Duration = Duration::from_secs(15);
/// How long a DEL waits before it leaves a note instead.
const DEL_LIMIT: Duration = Duration::from_secs(5);
/// How long STATUS waits: runtimes ask every few seconds.
const STATUS_LIMIT: Duration = Duration::from_millis(500);
/// How long CHECK waits: the agent may be in the midst of a look at the whole node.
const CHECK_LIMIT: Duration = Duration::from_secs(15);
/// How long GC waits for the list, for the same reason.
const LIST_LIMIT: Duration = Duration::from_secs(15);

/// The longest name of a device in bytes.
const MAX_DEVICE_NAME: usize = 15;
/// The smallest MTU that IPv4 allows (RFC 791).
const MIN_MTU: u32 = 68;

/// What the agent has journalled for an attachment.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) address: IpAddr,
    pub(crate) gateway: IpAddr,
    pub(crate) mtu: u32,
    pub(crate) host_interface: String,
}

/// The agent of this node.
pub(crate) struct Agent {
    channel: Channel,
    socket: PathBuf,
}

impl Agent {
    /// Must be called inside a runtime; connects at the first call.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { channel: api::connect::channel(socket), socket: socket.to_owned() }
    }

    /// An address for the attachment; the same one if it has one already.
    pub(crate) async fn allocate(&self, target: &Target, network: &str) -> Result<Allocation, CniError> {
        let request = AllocateRequest {
            attachment: Some(attachment(target)),
            network: network.to_owned(),
            netns: target.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            pod_namespace: target.pod.namespace.clone(),
            pod_name: target.pod.name.clone(),
            pod_uid: target.pod.uid.clone(),
        };
        let mut client = CniClient::new(self.channel.clone());
        let answer = self.call("allocate an address", ADD_LIMIT, client.allocate(request)).await?;
        let address = |field, value: &str| {
            value.parse().map_err(|_| CniError::AgentAnswer { field, value: value.to_owned() })
        };
        if answer.mtu < MIN_MTU {
            return Err(CniError::AgentAnswer { field: "mtu", value: answer.mtu.to_string() });
        }
        let name = answer.host_interface;
        if name.is_empty() || name.len() > MAX_DEVICE_NAME {
            return Err(CniError::AgentAnswer { field: "host_interface", value: name });
        }
        Ok(Allocation {
            address: address("address", &answer.address)?,
            gateway: address("gateway", &answer.gateway)?,
            mtu: answer.mtu,
            host_interface: name,
        })
    }

    /// Returns when policy is enforced on the pair.
    pub(crate) async fn attach(
        &self,
        target: &Target,
        host_ifindex: u32,
        pod_mac: Mac,
        host_mac: Mac,
    ) -> Result<(), CniError> {
        let request = AttachRequest {
            attachment: Some(attachment(target)),
            host_ifindex,
            pod_mac: pod_mac.0.to_vec(),
            host_mac: host_mac.0.to_vec(),
        };
        let mut client = CniClient::new(self.channel.clone());
        self.call("attach the pod", ADD_LIMIT, client.attach(request)).await.map(drop)
    }

    /// Undoes both. Succeeds if there is nothing to undo.
    pub(crate) async fn release(&self, target: &Target) -> Result<(), CniError> {
        self.release_attachment(attachment(target)).await
    }

    /// As [`Self::release`].
    pub(crate) async fn release_attachment(&self, attachment: Attachment) -> Result<(), CniError> {
        let request = ReleaseRequest { attachment: Some(attachment) };
        let mut client = CniClient::new(self.channel.clone());
        self.call("release the pod", DEL_LIMIT, client.release(request)).await.map(drop)
    }

    /// What the attachment has lost on the agent's side.
    pub(crate) async fn check(
        &self,
        target: &Target,
        host_ifindex: u32,
        pod_mac: Option<Mac>,
        addresses: Vec<String>,
    ) -> Result<Vec<String>, CniError> {
        let pod_mac = pod_mac.map(|mac| mac.0.to_vec()).unwrap_or_default();
        let request = CheckRequest { attachment: Some(attachment(target)), host_ifindex, pod_mac, addresses };
        let mut client = CniClient::new(self.channel.clone());
        Ok(self.call("check the pod", CHECK_LIMIT, client.check(request)).await?.lost)
    }

    /// Whether ADD can be served; if not, whether pods that are attached may be cut off, too.
    pub(crate) async fn ready(&self) -> Result<(), CniError> {
        let mut client = CniClient::new(self.channel.clone());
        let asked = self.call("say whether it is ready", STATUS_LIMIT, client.ready(ReadyRequest {})).await;
        let answer = asked.map_err(|error| CniError::NotReady(error.to_string()))?;
        let refused = listed(&answer.refused);
        match (answer.lost.is_empty(), answer.refused.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Err(CniError::NotReady(refused)),
            (false, true) => Err(CniError::DatapathLost(listed(&answer.lost))),
            (false, false) => Err(CniError::DatapathLost(format!("{}; {refused}", listed(&answer.lost)))),
        }
    }

    /// The attachments that the agent knows of a network.
    pub(crate) async fn attachments(&self, network: &str) -> Result<Vec<Attachment>, CniError> {
        let request = AttachmentsRequest { network: network.to_owned() };
        let mut client = CniClient::new(self.channel.clone());
        let answer =
            self.call("list the attachments of the network", LIST_LIMIT, client.attachments(request));
        Ok(answer.await?.attachments)
    }

    async fn call<T>(
        &self,
        action: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CniError> {
        let unreachable = |reason| CniError::AgentUnreachable { socket: self.socket.clone(), reason };
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if is_local(&status) => Err(unreachable(described(&status))),
            Ok(Err(status)) if matches!(status.code(), Code::ResourceExhausted | Code::Unavailable) => {
                Err(CniError::TryAgain { action, reason: status.message().to_owned() })
            }
            Ok(Err(status)) => Err(CniError::AgentRefused { action, reason: status.message().to_owned() }),
            Err(_) => Err(unreachable(format!("no answer within {limit:?}"))),
        }
    }
}

fn attachment(target: &Target) -> Attachment {
    Attachment { container_id: target.container_id.clone(), interface: target.ifname.clone() }
}

/// Whether the status was made on this side of the socket: the agent is not there, or went away.
fn is_local(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

fn listed(problems: &[Problem]) -> String {
    let problems = problems.iter().map(|problem| format!("{}: {}", problem.r#where, problem.message));
    problems.collect::<Vec<_>>().join("; ")
}

/// The innermost cause says what happened ("No such file or directory").
fn described(status: &Status) -> String {
    let mut innermost = status.source();
    while let Some(inner) = innermost.and_then(|cause| cause.source()) {
        innermost = Some(inner);
    }
    innermost.map_or_else(|| status.message().to_owned(), ToString::to_string)
}
