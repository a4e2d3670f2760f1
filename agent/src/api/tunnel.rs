//! `Tunnel`: peers to the tunnel, its key and state from it.

use std::pin::Pin;
use std::sync::Arc;

use api::agent::{PeerSet, TunnelReport};
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::reconcile::{self, TunnelNews};

pub(super) struct Service(pub(super) Arc<Shared>);

type Peers = Pin<Box<dyn Stream<Item = Result<PeerSet, Status>> + Send>>;

#[tonic::async_trait]
impl api::agent::tunnel_server::Tunnel for Service {
    type PeersStream = Peers;

    async fn peers(&self, request: Request<Streaming<TunnelReport>>) -> Result<Response<Peers>, Status> {
        let id = self.0.next_connection();
        let requests = self.0.handle.requests.clone();
        let mut reports = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                // If the task is gone, so is the agent.
                let _ = requests.send(reconcile::Request::Tunnel(id, TunnelNews::Report(report))).await;
            }
            let _ = requests.send(reconcile::Request::Tunnel(id, TunnelNews::Gone)).await;
        });
        let sets = WatchStream::new(self.0.handle.peers.clone());
        let sets = sets.filter_map(|set| async move { set.map(|set| Ok((*set).clone())) });
        Ok(Response::new(Box::pin(sets)))
    }
}
