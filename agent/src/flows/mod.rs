//! What happened to connections and requests, as Hubble's flow records: the last few thousand, and a live stream.

mod convert;
mod event;
mod filter;
mod request;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::agent::RequestRecord;
use api::flow::Flow;
use datapath::Events;
use datapath::lower::Origins;
use policy::Direction;
use tokio::sync::broadcast;

use crate::isolation::Isolators;
use crate::reconcile::{Handle, View};
use crate::source::PodName;

pub use self::filter::{FilterError, Filters};

/// Flows that are kept: as many as Hubble keeps.
pub const KEPT: usize = 4095;
/// Flows that a follower may be behind before it loses some: what the ring holds, a second under load.
const BEHIND: usize = 4096;
/// Events that are taken before others get a turn.
const BURST: usize = 256;

/// The flows of this node.
pub struct Flows {
    node_name: String,
    kept: Mutex<VecDeque<Arc<Flow>>>,
    live: broadcast::Sender<Arc<Flow>>,
    isolators: Mutex<Isolators>,
}

impl Flows {
    /// None yet.
    pub fn new(node_name: &str) -> Self {
        let (live, _) = broadcast::channel(BEHIND);
        let kept = Mutex::new(VecDeque::with_capacity(KEPT));
        Self { node_name: node_name.to_owned(), kept, live, isolators: Mutex::default() }
    }

    /// What is kept, oldest first, and a stream of everything that comes after: none is missing, none is there twice.
    pub fn follow(&self) -> (Vec<Arc<Flow>>, broadcast::Receiver<Arc<Flow>>) {
        let kept = self.lock();
        (kept.iter().cloned().collect(), self.live.subscribe())
    }

    /// Adds a request that ended.
    pub fn add_request(&self, view: &View, record: RequestRecord) {
        self.add(request::flow(&view.snapshot, &self.node_name, record));
    }

    /// Adds what the datapath reports, for ever.
    ///
    /// # Errors
    /// Events cannot be waited for.
    pub async fn add_events(&self, mut events: Events, handle: &Handle) -> Result<(), datapath::Error> {
        loop {
            let first = events.next().await?;
            self.add_burst(first, &mut events, handle);
            tokio::task::yield_now().await;
        }
    }

    /// The first event and what waits behind it, up to [`BURST`], with one look at the state.
    fn add_burst(&self, first: layout::Event, events: &mut Events, handle: &Handle) {
        let clock = event::Clock::now();
        let view = handle.view.borrow().clone();
        let origins: MutexGuard<'_, Origins> = handle.origins.lock().unwrap_or_else(PoisonError::into_inner);
        let others = std::iter::from_fn(|| events.try_next()).take(BURST);
        for event in std::iter::once(first).chain(others) {
            let mut flow = event::flow(&view.snapshot, &origins, &self.node_name, &clock, &event);
            self.name_isolating(&view, &mut flow);
            self.add(flow);
        }
    }

    /// Behind a default deny of a pod stand the policies that isolate it.
    fn name_isolating(&self, view: &View, flow: &mut Flow) {
        let sides = [
            (Direction::Egress, &mut flow.egress_denied_by, &flow.source),
            (Direction::Ingress, &mut flow.ingress_denied_by, &flow.destination),
        ];
        for (direction, denied_by, pod) in sides {
            let is_default = denied_by.first().is_some_and(|policy| policy.kind.is_empty());
            let Some(pod) = pod.as_ref().filter(|pod| is_default && !pod.pod_name.is_empty()) else {
                continue;
            };
            let mut isolators = self.isolators.lock().unwrap_or_else(PoisonError::into_inner);
            let found = isolators.of(view, PodName::new(&pod.namespace, &pod.pod_name), direction);
            denied_by.extend(found.iter().flat_map(|origin| convert::policies(origin, direction, false)));
        }
    }

    fn add(&self, flow: Flow) {
        let flow = Arc::new(flow);
        let mut kept = self.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&flow));
        // Nobody follows: fine. Under the lock, so that a new follower sees it exactly once.
        let _ = self.live.send(flow);
    }

    /// A panic of another holder leaves whole flows behind.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Flow>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: u32) -> Flow {
        Flow { policy_match_type: number, ..Flow::default() }
    }

    #[tokio::test]
    async fn a_follower_sees_each_flow_once() {
        let flows = Flows::new("n");
        for number in 0..3 {
            flows.add(numbered(number));
        }
        let (kept, mut live) = flows.follow();
        flows.add(numbered(3));
        assert_eq!(kept.iter().map(|flow| flow.policy_match_type).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(live.recv().await.unwrap().policy_match_type, 3);
        assert!(live.try_recv().is_err());
    }

    #[test]
    fn only_the_newest_are_kept() {
        let flows = Flows::new("n");
        for number in 0..KEPT as u32 + 2 {
            flows.add(numbered(number));
        }
        let kept = flows.follow().0;
        assert_eq!((kept.len(), kept[0].policy_match_type), (KEPT, 2));
    }
}
