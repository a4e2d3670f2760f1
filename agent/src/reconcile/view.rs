//! What others may see of the agent's state: replaced whole after every change, read without a lock held.

use std::net::IpAddr;
use std::sync::Arc;

use api::agent::TunnelReport;
use policy::{Problem, Snapshot};

use super::Readiness;
use crate::source::{PodName, Records};

/// The agent's state at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The snapshot in force in the kernel; the empty one before the first.
    pub snapshot: Arc<Snapshot>,
    /// Number of the newest snapshot that was compiled.
    pub compiled: u64,
    /// What the source says; none before the first reading.
    pub records: Option<Arc<Records>>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Connected proxies: one, two during a hand-over.
    pub proxies: Vec<ProxyState>,
    /// What the tunnel said last, while it is connected.
    pub tunnel: Option<TunnelReport>,
    /// It is connected and silent.
    pub tunnel_hung: bool,
    /// Whether pods can be attached.
    pub readiness: Readiness,
    /// Pods attached here.
    pub attached: Vec<AttachedPod>,
}

/// A connected proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyState {
    /// Snapshot that it judges by.
    pub number: u64,
    /// Process.
    pub pid: u32,
    /// Of the program.
    pub version: String,
    /// Why it refused the last snapshot; empty if it did not.
    pub error: String,
    /// It is connected and silent.
    pub hung: bool,
}

/// A pod with a veth on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedPod {
    /// What the runtime called it.
    pub name: PodName,
    /// Its address.
    pub address: IpAddr,
}
