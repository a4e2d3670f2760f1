//! `Proxy`: snapshots to the proxy, its acknowledgements and request records from it.

use std::pin::Pin;
use std::sync::Arc;

use api::agent::{RequestRecord, RequestsSummary, SnapshotAck};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::reconcile::{self, ConnectionId, ProxyNews};

pub(super) struct Service(pub(super) Arc<Shared>);

type Snapshots = Pin<Box<dyn Stream<Item = Result<api::policy::Snapshot, Status>> + Send>>;

#[tonic::async_trait]
impl api::agent::proxy_server::Proxy for Service {
    type SnapshotsStream = Snapshots;

    async fn snapshots(
        &self,
        request: Request<Streaming<SnapshotAck>>,
    ) -> Result<Response<Snapshots>, Status> {
        let id = self.0.next_connection();
        let requests = self.0.handle.requests.clone();
        let mut acks = request.into_inner();
        // Its state first, so that what it judges by is known before it is counted as connected.
        let first = acks.message().await?.ok_or_else(|| Status::invalid_argument("no state was reported"))?;
        tell(&requests, id, ProxyNews::Ack(first)).await;
        tokio::spawn(async move {
            while let Ok(Some(ack)) = acks.message().await {
                tell(&requests, id, ProxyNews::Ack(ack)).await;
            }
            tell(&requests, id, ProxyNews::Gone).await;
        });
        // A watch skips what is outdated: a slow proxy gets the newest one next, never a backlog.
        let snapshots = WatchStream::new(self.0.handle.snapshots.clone());
        let snapshots =
            snapshots.filter_map(|snapshot| async move { snapshot.map(|snapshot| Ok((*snapshot).clone())) });
        Ok(Response::new(Box::pin(snapshots)))
    }

    async fn requests(
        &self,
        request: Request<Streaming<RequestRecord>>,
    ) -> Result<Response<RequestsSummary>, Status> {
        let mut records = request.into_inner();
        let mut summary = RequestsSummary::default();
        while let Some(record) = records.message().await? {
            let view = self.0.handle.view.borrow().clone();
            self.0.flows.add_request(&view, record);
            summary.records += 1;
        }
        Ok(Response::new(summary))
    }
}

async fn tell(requests: &mpsc::Sender<reconcile::Request>, id: ConnectionId, news: ProxyNews) {
    // If the task is gone, so is the agent.
    let _ = requests.send(reconcile::Request::Proxy(id, news)).await;
}
