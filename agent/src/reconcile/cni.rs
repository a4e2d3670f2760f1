//! Pods that come and go: what the plugin asks for.

use std::net::IpAddr;
use std::time::Duration;

use policy::Problem;
use tokio::sync::oneshot;
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::Reconciler;
use crate::config::is_object_name;
use crate::ipam::IpamError;
use crate::journal::{Allocation, AttachmentKey, JournalError, Veth};
use crate::names;
use crate::node::{NodeError, delete_device};
use crate::source::{Announcement, PodName, Source};

/// How long an attachment waits for its Pod object to appear in the source. Runtimes create sandboxes because of it, so
/// it is there or on its way; without it the pod starts closed and opens when it appears.
const POD_OBJECT_LIMIT: Duration = Duration::from_secs(2);
/// Next hop of every pod: link-local, so it is in nobody's range (RFC 3927).
const GATEWAY: &str = "169.254.1.1";
/// Longest container ID: runtimes use 64 hex digits; the file name of a note must hold it.
const MAX_CONTAINER_ID: usize = 200;
/// Longest name of a network: it is written with each allocation. Configurations have a word or
/// two.
const MAX_NETWORK: usize = 255;
/// The kernel's limit on names of devices.
const MAX_INTERFACE: usize = 15;

/// Why the plugin does not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The agent does not know its own node yet.
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// A field cannot be.
    #[error("{field} cannot be {value:?}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Attach without Allocate.
    #[error("no address is allocated to {0}: allocate first")]
    Unknown(AttachmentKey),
    /// The host side of the veth is missing or another one.
    #[error("device {device}: {problem}")]
    Device {
        /// Its name.
        device: String,
        /// What is wrong.
        problem: String,
    },
    /// Two attachments have the same device name.
    #[error("device name {0} belongs to another attachment: use another container ID")]
    NameTaken(String),
    /// No address.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// It could not be recorded.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The node's network could not be looked at.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The programs could not be attached.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The kernel does not take the policy.
    #[error("policy could not be put in force for {0} in time: see mesh-ctl status")]
    NotInForce(IpAddr),
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, CniError>>;

/// What is asked for with an address.
#[derive(Debug)]
pub struct AllocateRequest {
    /// Whose.
    pub key: AttachmentKey,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The pod, empty if the runtime did not say.
    pub pod: PodName,
    /// Its uid, likewise.
    pub pod_uid: String,
    /// Name of the network in the plugin's configuration.
    pub network: String,
}

/// What an attachment gets.
#[derive(Debug)]
pub struct Allocated {
    /// Its address.
    pub address: IpAddr,
    /// The pod's next hop.
    pub gateway: &'static str,
    /// MTU of both ends of the veth.
    pub mtu: u32,
    /// Name of the host side.
    pub host_interface: String,
}

/// A veth that was built.
#[derive(Debug)]
pub struct AttachRequest {
    /// Whose.
    pub key: AttachmentKey,
    /// The veth.
    pub veth: Veth,
}

/// An attachment that waits for its policy.
pub(super) struct Waiter {
    address: IpAddr,
    veth: Veth,
    pub(super) deadline: Instant,
    reply: Reply<u64>,
}

impl<S: Source> Reconciler<S> {
    pub(super) async fn allocate(&mut self, request: AllocateRequest) -> Result<Allocated, CniError> {
        check_key(&request.key)?;
        check_pod(&request.pod)?;
        check_network(&request.network)?;
        // A release that could not be told concerns the attachment of this name before this one.
        self.honour_release_notes().await;
        let Some(network) = &self.network else { return Err(self.not_ready()) };
        let mtu = network.mtu;
        let known = self.journal.contents().allocations.get(&request.key).cloned();
        let allocation = match &known {
            Some(known) => {
                let described = self.described(&request)?;
                Allocation { address: known.address, number: known.number, veth: known.veth, ..described }
            }
            None => {
                let described = self.described(&request)?;
                Allocation { address: self.take_address()?, ..described }
            }
        };
        let (address, host_interface) = (allocation.address, allocation.host_interface.clone());
        let is_new = known.is_none();
        if known.as_ref() != Some(&allocation) {
            if let Err(error) = block_in_place(|| self.journal.allocate(allocation)) {
                if let Some(pool) = self.pool.as_mut().filter(|_| is_new) {
                    pool.untake(address);
                }
                return Err(error.into());
            }
            self.dirty = true;
            tracing::info!(key = %request.key, pod = %request.pod, %address, "allocated");
        }
        self.gone.add_begins(&request.key, Instant::now());
        self.announce_pod(&request.pod);
        Ok(Allocated { address, gateway: GATEWAY, mtu, host_interface })
    }

    pub(super) fn not_ready(&self) -> CniError {
        let name = &self.config.node_name;
        CniError::NotReady(match self.problems.node.first() {
            Some(Problem { location, message }) => format!("{location}: {message}"),
            None => format!("no Node object {name:?} in the source yet"),
        })
    }

    fn take_address(&mut self) -> Result<IpAddr, CniError> {
        match &mut self.pool {
            Some(pool) => Ok(pool.take(self.journal.clock().now_ms())?),
            None => Err(self.not_ready()),
        }
    }

    /// The allocation as it is asked for, its address still missing.
    fn described(&self, request: &AllocateRequest) -> Result<Allocation, CniError> {
        let host_interface = names::host_interface(&request.key);
        let mut others = self.journal.contents().allocations.values();
        if others.any(|other| other.host_interface == host_interface && other.key != request.key) {
            return Err(CniError::NameTaken(host_interface));
        }
        Ok(Allocation {
            key: request.key.clone(),
            address: IpAddr::from([0; 4]),
            host_interface,
            netns: request.netns.clone(),
            pod_namespace: request.pod.namespace.clone(),
            pod_name: request.pod.name.clone(),
            pod_uid: request.pod_uid.clone(),
            network: request.network.clone(),
            number: 0,
            veth: None,
        })
    }

    pub(super) async fn attach(&mut self, request: AttachRequest, reply: Reply<u64>) {
        match self.start_attach(request).await {
            Ok((address, veth, has_pod)) => {
                let wait = if has_pod { POD_OBJECT_LIMIT } else { Duration::ZERO };
                let deadline = Instant::now() + wait;
                self.waiters.push(Waiter { address, veth, deadline, reply });
                self.stale = true;
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    async fn start_attach(&mut self, request: AttachRequest) -> Result<(IpAddr, Veth, bool), CniError> {
        let Some(network) = &self.network else { return Err(self.not_ready()) };
        let known = self.journal.contents().allocations.get(&request.key);
        let known = known.cloned().ok_or_else(|| CniError::Unknown(request.key.clone()))?;
        let device = |problem: &str| CniError::Device {
            device: known.host_interface.clone(),
            problem: problem.into(),
        };
        let link = network.link(&known.host_interface).await?.ok_or_else(|| device("it does not exist"))?;
        if link.index != request.veth.host_ifindex {
            return Err(device(&format!("its number is {}, not {}", link.index, request.veth.host_ifindex)));
        }
        self.keeping.namespaces.extend(link.peer_namespace.map(|id| (link.index, id)));
        // Programs first: without an entry for the pod they let nothing through.
        block_in_place(|| self.datapath.attach_pod(&known.host_interface))?;
        let attached = Allocation { veth: Some(request.veth), ..known.clone() };
        if attached != known {
            block_in_place(|| self.journal.allocate(attached))?;
        }
        self.gone.forget(&request.key);
        tracing::info!(key = %request.key, address = %known.address, device = known.host_interface, "attached");
        Ok((known.address, request.veth, !known.pod_name.is_empty()))
    }

    /// Answers attachments whose policy is in force, or that have waited for their Pod object long enough.
    pub(super) fn answer_waiters(&mut self) {
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            let in_force = !self.stale && self.is_in_force(waiter.address, waiter.veth.host_ifindex);
            let known = self.current.endpoint_at(waiter.address).is_some();
            if in_force && (known || now >= waiter.deadline) {
                let _ = waiter.reply.send(Ok(self.number_in_force()));
            } else if now >= waiter.deadline && self.retry_at.is_some() {
                let _ = waiter.reply.send(Err(CniError::NotInForce(waiter.address)));
            } else if !waiter.reply.is_closed() {
                self.waiters.push(waiter);
            }
        }
    }

    /// Gives an address back and forgets the pod that had it. Whether there was one.
    pub(super) async fn release(&mut self, key: &AttachmentKey) -> Result<bool, CniError> {
        let Some(known) = self.journal.contents().allocations.get(key).cloned() else { return Ok(false) };
        // The device first: a pod that still lives would go on without its programs, with an address that is another's
        // soon. Then out of the maps, then free.
        delete_device(&known.host_interface).await?;
        self.datapath.detach(&known.host_interface)?;
        self.datapath.maps.remove_endpoint(known.address)?;
        block_in_place(|| self.journal.release(known.address))?;
        self.gone.forget(key);
        if let Some(pool) = &mut self.pool {
            pool.give_back(known.address, self.journal.clock().now_ms());
        }
        self.dirty = true;
        self.stale = true;
        for waiter in self.waiters.extract_if(.., |waiter| waiter.address == known.address) {
            let _ = waiter.reply.send(Err(CniError::Unknown(key.clone())));
        }
        if !known.pod_name.is_empty() {
            let pod = PodName::new(&known.pod_namespace, &known.pod_name);
            // A pod has two sandboxes for a while when its runtime replaces one: the other's address stays announced.
            if !self.announce_pod(&pod) {
                self.publisher.announce(Announcement::PodGone(pod, vec![known.address]));
            }
        }
        tracing::info!(%key, address = %known.address, "released");
        Ok(true)
    }
}

impl<S: Source> Reconciler<S> {
    /// The attachments that were made for a network. Those of which it is not known belong to none.
    pub(super) fn attachments(&self, network: &str) -> Result<Vec<AttachmentKey>, CniError> {
        if network.is_empty() {
            return Err(CniError::Invalid { field: "network", value: network.to_owned() });
        }
        let allocations = self.journal.contents().allocations.values();
        Ok(allocations.filter(|known| known.network == network).map(|known| known.key.clone()).collect())
    }
}

fn check_key(key: &AttachmentKey) -> Result<(), CniError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let container = &key.container_id;
    if container.is_empty() || container.len() > MAX_CONTAINER_ID || !container.bytes().all(fits) {
        return Err(CniError::Invalid { field: "container_id", value: container.clone() });
    }
    let interface = &key.interface;
    let bad = |b: u8| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0;
    if interface.is_empty() || interface.len() > MAX_INTERFACE || interface.bytes().any(bad) {
        return Err(CniError::Invalid { field: "interface", value: interface.clone() });
    }
    Ok(())
}

/// It is kept in the journal. Plugins of before do not say it.
fn check_network(network: &str) -> Result<(), CniError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if network.len() > MAX_NETWORK || !network.bytes().all(fits) {
        return Err(CniError::Invalid { field: "network", value: network.to_owned() });
    }
    Ok(())
}

/// Names become parts of file names.
fn check_pod(pod: &PodName) -> Result<(), CniError> {
    if pod.namespace.is_empty() && pod.name.is_empty() {
        return Ok(());
    }
    for (field, value) in [("pod_namespace", &pod.namespace), ("pod_name", &pod.name)] {
        if !is_object_name(value) {
            return Err(CniError::Invalid { field, value: value.clone() });
        }
    }
    Ok(())
}
