//! Requests to the task, and what proxies and tunnels report.

use std::sync::Arc;

use api::agent::{SnapshotAck, TunnelReport};
use policy::Snapshot;

use super::judges::Judge;
use super::silence::Voice;
use super::view::ProxyState;
use super::{AllocateRequest, Allocated, AttachRequest, CheckRequest, Reconciler, Reply};
use crate::journal::AttachmentKey;
use crate::names;
use crate::source::{Announcement, NodeStatus, Source};

/// Snapshots that are kept for a late acknowledgement. A proxy is at most one behind while it works.
const KEPT_SNAPSHOTS: usize = 8;

/// Tells one connection of a program from the next.
pub type ConnectionId = u64;

/// What the task can be asked.
pub enum Request {
    /// An address.
    Allocate(AllocateRequest, Reply<Allocated>),
    /// Policy on a veth; answered with the number of the snapshot in force.
    Attach(AttachRequest, Reply<u64>),
    /// The end of both; answered with whether there was one.
    Release(AttachmentKey, Reply<bool>),
    /// What an attachment has lost.
    Check(CheckRequest, Reply<Vec<String>>),
    /// The attachments of the network with this name.
    Attachments(String, Reply<Vec<AttachmentKey>>),
    /// Of a proxy.
    Proxy(ConnectionId, ProxyNews),
    /// Of a tunnel.
    Tunnel(ConnectionId, TunnelNews),
    /// Look at everything now that is looked at from time to time.
    Look,
}

/// What a proxy says.
pub enum ProxyNews {
    /// It judges by this.
    Ack(SnapshotAck),
    /// It is gone.
    Gone,
}

/// What a tunnel says.
pub enum TunnelNews {
    /// Its state.
    Report(TunnelReport),
    /// It is gone.
    Gone,
}

/// A connected proxy.
pub(super) struct Proxy {
    pub(super) number: u64,
    pub(super) judge: Judge,
    pub(super) state: ProxyState,
    pub(super) voice: Voice,
}

impl<S: Source> Reconciler<S> {
    pub(super) async fn handle(&mut self, request: Request) {
        match request {
            Request::Allocate(request, reply) => {
                let answer = self.allocate(request).await;
                let _ = reply.send(answer);
            }
            Request::Attach(request, reply) => self.attach(request, reply).await,
            Request::Release(key, reply) => {
                let answer = self.release(&key).await;
                let _ = reply.send(answer);
            }
            Request::Look => self.tick().await,
            Request::Check(request, reply) => {
                let answer = self.check(request).await;
                let _ = reply.send(answer);
            }
            Request::Attachments(network, reply) => {
                let _ = reply.send(self.attachments(&network));
            }
            Request::Proxy(id, ProxyNews::Ack(ack)) => self.proxy_ack(id, ack),
            Request::Proxy(id, ProxyNews::Gone) => {
                if let Some(gone) = self.proxies.remove(&id) {
                    tracing::info!(pid = gone.state.pid, "a proxy is gone");
                    // One that could not store its snapshot is followed by one that judges by an older one.
                    self.last_judge = if gone.state.error.is_empty() { gone.judge } else { Judge::Unknown };
                    self.stale = true;
                }
            }
            Request::Tunnel(id, TunnelNews::Report(report)) => self.tunnel_report(id, report),
            Request::Tunnel(id, TunnelNews::Gone) => {
                self.tunnel.take_if(|(connected, _)| *connected == id);
            }
        }
    }

    fn proxy_ack(&mut self, id: ConnectionId, ack: SnapshotAck) {
        let voice = Voice::of_proxy(&ack);
        if let Some(proxy) = self.proxies.get_mut(&id)
            && (proxy.number, &proxy.state.error) == (ack.number, &ack.error)
        {
            // It only shows that it lives.
            proxy.voice = voice;
            return;
        }
        if ack.slots > 0 && ack.slots != self.slots {
            self.slots = ack.slots;
            self.write_config();
        }
        let (pid, version, error) = (ack.pid, ack.version, ack.error);
        let state = ProxyState { number: ack.number, pid, version, error, hung: false };
        // Nothing new, however long ago it was sent.
        let before = self.proxies.get(&id).filter(|proxy| proxy.number == ack.number);
        let judge = before.map_or_else(|| self.judge_of(ack.number), |proxy| proxy.judge.clone());
        if self.proxies.insert(id, Proxy { number: ack.number, judge, state, voice }).is_none() {
            tracing::info!(pid, number = ack.number, "a proxy is connected");
        }
        // Rules that were left out for its sake may be complete now.
        self.stale = true;
    }

    fn judge_of(&self, number: u64) -> Judge {
        if number == 0 {
            return Judge::Nothing;
        }
        let known = self.sent.iter().find(|snapshot| snapshot.number == number);
        match (known, &self.last_judge) {
            (Some(known), _) => Judge::Snapshot(Arc::clone(known)),
            (None, Judge::Snapshot(last)) if last.number == number => self.last_judge.clone(),
            // Of an agent before this one, and newer than what was on the disk when this one started.
            _ => match Judge::stored(&names::proxy_snapshot(&self.config)) {
                Judge::Snapshot(stored) if stored.number == number => Judge::Snapshot(stored),
                _ => Judge::Unknown,
            },
        }
    }

    /// Everything that judges requests now.
    pub(super) fn judges(&self) -> Vec<Judge> {
        if self.proxies.is_empty() {
            return vec![self.last_judge.clone()];
        }
        self.proxies.values().map(|proxy| proxy.judge.clone()).collect()
    }

    pub(super) fn remember_sent(&mut self, snapshot: &Arc<Snapshot>) {
        if self.sent.len() >= KEPT_SNAPSHOTS {
            self.sent.remove(0);
        }
        self.sent.push(Arc::clone(snapshot));
    }

    fn tunnel_report(&mut self, id: ConnectionId, report: TunnelReport) {
        // Of two tunnels during a hand-over, the later one is the one that stays.
        if self.tunnel.as_ref().is_some_and(|(connected, _)| *connected > id) {
            return;
        }
        self.tunnel_voice = Voice::of_tunnel(&report);
        self.tunnel = Some((id, report));
        self.announce_node();
    }

    /// Tells the others this node's key, once it is known.
    pub(super) fn announce_node(&mut self) {
        let (Some((_, report)), Some(network)) = (&self.tunnel, &self.network) else { return };
        let Some(public_key) = super::peers::encode_key(&report.public_key) else { return };
        let port = u16::try_from(report.listen_port).ok().filter(|port| *port != 0);
        let status = NodeStatus {
            public_key,
            endpoint: (network.address, port.unwrap_or(self.config.tunnel_port)).into(),
            address: network.address,
            pod_ranges: network.pod_ranges.clone(),
        };
        if self.announced.as_ref() != Some(&status) {
            self.publisher.announce(Announcement::Node(self.config.node_name.clone(), status.clone()));
            self.announced = Some(status);
        }
    }
}
