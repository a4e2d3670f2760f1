//! From the newest records to the next snapshot.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use policy::{Problem, Snapshot, SnapshotParts};
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::view::{AttachedPod, ProxyState, View};
use super::{ACK_LIMIT, Pending, Reconciler, world};
use crate::source::{PodName, Source};

impl<S: Source> Reconciler<S> {
    /// Compiles what is known now, and sends the result to the proxy if it is something new.
    pub(super) fn compile(&mut self) {
        let Some(records) = self.records.clone() else { return };
        let number =
            match self.unused_number.take().map_or_else(|| block_in_place(|| self.numbers.take()), Ok) {
                Ok(number) => number,
                Err(error) => return self.retry_later("number of the next snapshot", &error),
            };
        let mut problems = Vec::new();
        let allocations = self.journal.contents().allocations.values();
        let world = world::build(&self.config, &records, self.host_addresses(), allocations, &mut problems);
        let compiled = block_in_place(|| policy::compile(&world, &mut self.identities.identities, number));
        let (snapshot, more) = compiled;
        problems.extend(more);
        if let Err(error) = block_in_place(|| self.identities.store()) {
            self.unused_number = Some(number);
            return self.retry_later("identities", &error);
        }
        self.problems.compile = problems;
        self.dirty = false;
        if same_content(&snapshot, &self.current) {
            self.unused_number = Some(number);
            self.stale = true;
            return;
        }
        let snapshot = Arc::new(snapshot);
        tracing::info!(
            number,
            pods = snapshot.endpoints.len(),
            policies = records.policies.len(),
            "compiled"
        );
        self.withdraw_before(&snapshot);
        self.remember_sent(&snapshot);
        self.snapshots.send_replace(Some(Arc::new(api::policy::Snapshot::from(&*snapshot))));
        self.pending = Some(Pending { snapshot, deadline: Instant::now() + ACK_LIMIT });
    }

    fn host_addresses(&self) -> &[IpAddr] {
        self.network.as_ref().map_or(&[], |network| &network.host_addresses)
    }

    /// Addresses that are nobody's or somebody else's now lose their identity before anybody is granted anything.
    fn withdraw_before(&mut self, next: &Snapshot) {
        let withdrawn = self.current.addresses.iter().filter(|(address, identity)| {
            let differs = next.addresses.get(*address) != Some(identity);
            differs && owner(&self.current, **address) != owner(next, **address)
        });
        let withdrawn: Vec<IpAddr> = withdrawn.map(|(address, _)| *address).collect();
        for address in withdrawn {
            if let Err(error) = self.datapath.maps.remove_identity(address) {
                // The flip removes it again, or fails and is tried again.
                tracing::error!(%address, %error, "identity not withdrawn yet");
            }
        }
    }

    /// Lets everybody see the state.
    pub(super) fn publish_view(&mut self) {
        let readiness = self.readiness();
        let now = Instant::now();
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(self.problems.start.iter().cloned());
        match &self.records {
            Some(records) => problems.extend(records.problems.iter().cloned()),
            None => problems.push(Problem {
                location: "source".to_owned(),
                message: "no manifests have been read yet; what is in force stays".to_owned(),
            }),
        }
        let by_step =
            [&self.problems.compile, &self.problems.node, &self.problems.kernel, &self.problems.retry];
        problems.extend(by_step.into_iter().flatten().cloned());
        problems.extend(
            self.publisher.problem().map(|message| Problem { location: "announcements".into(), message }),
        );
        let refused = self.proxies.values().filter(|proxy| !proxy.state.error.is_empty());
        problems.extend(refused.map(|proxy| Problem {
            location: format!("proxy, process {}", proxy.state.pid),
            message: proxy.state.error.clone(),
        }));
        problems.extend(self.hung_programs());
        let of_tunnel = self.tunnel.iter().flat_map(|(_, report)| &report.problems);
        problems.extend(
            of_tunnel.map(|problem| Problem {
                location: problem.r#where.clone(),
                message: problem.message.clone(),
            }),
        );
        problems.extend(self.unhealthy(now));
        self.problem_log.follow(&problems, now);
        let attached =
            self.journal.contents().allocations.values().filter(|allocation| allocation.veth.is_some());
        let newest = self.pending.as_ref().map_or(&self.current, |pending| &pending.snapshot);
        self.view.send_replace(Arc::new(View {
            snapshot: Arc::clone(&self.current),
            compiled: newest.number,
            records: self.records.clone(),
            problems,
            readiness,
            proxies: self
                .proxies
                .values()
                .map(|proxy| ProxyState { hung: proxy.voice.is_hung(), ..proxy.state.clone() })
                .collect(),
            tunnel: self.tunnel.as_ref().map(|(_, report)| report.clone()),
            tunnel_hung: self.tunnel_voice.is_hung(),
            attached: attached
                .map(|allocation| AttachedPod {
                    name: PodName::new(&allocation.pod_namespace, &allocation.pod_name),
                    address: allocation.address,
                })
                .collect(),
        }));
    }

    /// The names of rules; a panic of another holder leaves them as they are.
    pub(super) fn with_origins<T>(&self, work: impl FnOnce(&mut datapath::lower::Origins) -> T) -> T {
        work(&mut self.origins.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn owner(snapshot: &Snapshot, address: IpAddr) -> Option<(&str, &str)> {
    snapshot.endpoint_at(address).map(|endpoint| (endpoint.namespace.as_str(), endpoint.name.as_str()))
}

/// Whether two snapshots differ in nothing but their number.
fn same_content(a: &Snapshot, b: &Snapshot) -> bool {
    let SnapshotParts {
        number: _,
        node,
        pod_networks,
        node_addresses,
        identities,
        addresses,
        endpoints,
        rulesets,
    } = &**a;
    *node == b.node
        && *pod_networks == b.pod_networks
        && *node_addresses == b.node_addresses
        && *identities == b.identities
        && *addresses == b.addresses
        && *endpoints == b.endpoints
        && *rulesets == b.rulesets
}
