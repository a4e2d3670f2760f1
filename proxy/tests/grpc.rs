//! gRPC with a real client and server (tonic), through a real proxy thread.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use api::agent::proxy_client::ProxyClient;
use api::agent::proxy_server::{Proxy, ProxyServer};
use api::agent::{RequestRecord, RequestsSummary, SnapshotAck};
use api::observer::GetFlowsRequest;
use api::observer::observer_client::ObserverClient;
use common::{GRPC_CLIENT, PATIENCE, Rig, shop_policy, shop_policy_with};
use proxy::limits::Timeouts;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

/// Answers each acknowledgement with a snapshot of its number; `error` ends the call with that message.
struct Service {
    client: Arc<std::sync::Mutex<Vec<String>>>,
    cancelled: Arc<AtomicUsize>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Proxy for Service {
    type SnapshotsStream = Pin<Box<dyn Stream<Item = Result<api::policy::Snapshot, Status>> + Send>>;

    async fn snapshots(
        &self,
        request: Request<Streaming<SnapshotAck>>,
    ) -> Result<Response<Self::SnapshotsStream>, Status> {
        for key in ["x-custom", "te", "user-agent"] {
            let value = request.metadata().get(key).and_then(|value| value.to_str().ok());
            self.client.lock().unwrap().push(format!("{key}: {}", value.unwrap_or("-")));
        }
        let guard = CountDrop(self.cancelled.clone());
        let answers = request.into_inner().map(move |ack| {
            let _alive = &guard;
            let ack = ack?;
            if ack.error.is_empty() {
                return Ok(api::policy::Snapshot { number: ack.number, ..Default::default() });
            }
            let mut status = Status::new(Code::DataLoss, ack.error);
            status.metadata_mut().insert("x-trailer", "t".parse().unwrap());
            Err(status)
        });
        let mut response = Response::new(Box::pin(answers) as Self::SnapshotsStream);
        response.metadata_mut().insert("x-header", "h".parse().unwrap());
        Ok(response)
    }

    async fn requests(
        &self,
        request: Request<Streaming<RequestRecord>>,
    ) -> Result<Response<RequestsSummary>, Status> {
        let mut records = request.into_inner();
        let mut summary = RequestsSummary::default();
        while let Some(record) = records.message().await? {
            summary.records += 1 + record.path.len() as u64;
        }
        Ok(Response::new(summary))
    }
}

struct Shop {
    rig: Rig,
    channel: Channel,
    seen: Arc<std::sync::Mutex<Vec<String>>>,
    cancelled: Arc<AtomicUsize>,
}

async fn shop() -> Shop {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, cancelled) = (Arc::default(), Arc::<AtomicUsize>::default());
    let service = Service { client: Arc::clone(&seen), cancelled: cancelled.clone() };
    let server = Server::builder().add_service(ProxyServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let quick = Timeouts { drain_idle: Duration::from_millis(300), ..Timeouts::default() };
    let rig = Rig::with(address, 9090, quick);
    let channel = channel(rig.address).await;
    Shop { rig, channel, seen, cancelled }
}

async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.local_address(Some(GRPC_CLIENT.into())).connect().await.unwrap()
}

fn ack(number: u64) -> SnapshotAck {
    SnapshotAck { number, ..SnapshotAck::default() }
}

#[tokio::test]
async fn both_sides_stream_at_once_and_metadata_and_trailers_pass() {
    let shop = shop().await;
    let mut client = ProxyClient::new(shop.channel);
    let (acks, receiver) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("x-custom", "c".parse().unwrap());
    let response = client.snapshots(request).await.unwrap();
    assert_eq!(response.metadata().get("x-header").unwrap(), "h");
    let mut snapshots = response.into_inner();
    for number in 1..20 {
        acks.send(ack(number)).await.unwrap();
        assert_eq!(snapshots.message().await.unwrap().unwrap().number, number);
    }
    acks.send(SnapshotAck { error: "lost".to_owned(), ..ack(0) }).await.unwrap();
    let status = snapshots.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "lost"));
    assert_eq!(status.metadata().get("x-trailer").unwrap(), "t");
    let seen = shop.seen.lock().unwrap().clone();
    assert_eq!(seen[..2], ["x-custom: c", "te: trailers"], "{seen:?}");
    let record = shop.rig.record();
    assert_eq!((record.status, record.grpc_status, record.reason), (200, 15, "forwarded"));
    assert_eq!((&record.path[..], record.protocol), (&b"/selvage.agent.v1.Proxy/Snapshots"[..], "HTTP/2"));
}

#[tokio::test]
async fn a_denied_call_is_told_so_in_grpc() {
    let shop = shop().await;
    let mut observer = ObserverClient::new(shop.channel.clone());
    let status = observer.get_flows(GetFlowsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "Access denied"));
    let record = shop.rig.record();
    assert_eq!((record.status, record.grpc_status, record.reason), (200, 7, "policy_denied"));
    // The connection goes on.
    let summary = ProxyClient::new(shop.channel).requests(tokio_stream::empty()).await.unwrap();
    assert_eq!(summary.into_inner().records, 0);
}

#[tokio::test]
async fn large_streams_pass_with_backpressure() {
    let shop = shop().await;
    const COUNT: u64 = 300;
    const LENGTH: usize = 100_000;
    let records = tokio_stream::iter(0..COUNT)
        .map(|_| RequestRecord { path: "x".repeat(LENGTH), ..RequestRecord::default() });
    let summary = ProxyClient::new(shop.channel).requests(records).await.unwrap().into_inner();
    assert_eq!(summary.records, COUNT * (LENGTH as u64 + 1));
}

#[tokio::test]
async fn many_calls_at_once_share_two_connections() {
    let shop = shop().await;
    let calls = (0..200).map(|number| {
        let mut client = ProxyClient::new(shop.channel.clone());
        async move {
            let response = client.snapshots(tokio_stream::iter([ack(number)])).await.unwrap();
            assert_eq!(response.into_inner().message().await.unwrap().unwrap().number, number);
        }
    });
    futures::future::join_all(calls).await;
    assert_eq!(shop.rig.sources.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_new_snapshot_ends_a_running_call_with_a_status_and_leaves_others() {
    let mut shop = shop().await;
    let mut client = ProxyClient::new(shop.channel);
    let (acks, receiver) = mpsc::channel(1);
    let mut snapshots = client.snapshots(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    acks.send(ack(1)).await.unwrap();
    snapshots.message().await.unwrap().unwrap();

    let mut same = shop_policy();
    same["metadata"]["name"] = json!("other-name");
    shop.rig.apply(2, Some(same));
    acks.send(ack(2)).await.unwrap();
    assert_eq!(snapshots.message().await.unwrap().unwrap().number, 2);

    let mut other = shop_policy_with(json!([{}]));
    other["spec"]["ingress"][1]["toPorts"][0]["rules"]["http"] = json!([{ "path": "/nothing" }]);
    shop.rig.apply(3, Some(other));
    let status = tokio::time::timeout(PATIENCE, snapshots.message()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "Access denied"));
    let record = shop.rig.record();
    assert_eq!((record.reason, record.grpc_status, record.snapshot), ("policy_changed", 7, 3));
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_server() {
    let shop = shop().await;
    let mut client = ProxyClient::new(shop.channel);
    let (acks, receiver) = mpsc::channel(1);
    let mut snapshots = client.snapshots(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    acks.send(ack(1)).await.unwrap();
    snapshots.message().await.unwrap().unwrap();
    assert_eq!(shop.cancelled.load(Ordering::SeqCst), 0);
    // As long as it could still send, this client would not cancel.
    drop((acks, snapshots));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    while shop.cancelled.load(Ordering::SeqCst) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the server still runs the call");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(shop.rig.record().reason, "client_gone");
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable_and_comes_back_on_the_same_connection() {
    let address = {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        closed.local_addr().unwrap()
    };
    let rig = Rig::new(address, 9090);
    let mut client = ProxyClient::new(channel(rig.address).await);
    let status = client.requests(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(rig.record().reason, "upstream_unreachable");

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let service = Service { client: Arc::default(), cancelled: Arc::default() };
    let server = Server::builder().add_service(ProxyServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    client.requests(tokio_stream::empty()).await.unwrap();
    assert_eq!(rig.counters.accepted.get(), 1);
}

#[tokio::test]
async fn hand_over_loses_no_call_and_ends_no_stream() {
    let shop = shop().await;
    let mut client = ProxyClient::new(shop.channel.clone());
    let (acks, receiver) = mpsc::channel(1);
    let mut snapshots = client.snapshots(ReceiverStream::new(receiver)).await.unwrap().into_inner();

    // One client that keeps its connection, one that opens another for each call.
    let (first, stop) = (shop.rig.address, Arc::new(AtomicBool::new(false)));
    let kept = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                client.requests(tokio_stream::empty()).await.unwrap();
                calls += 1;
            }
            calls
        }
    });
    let fresh = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                let mut client = ProxyClient::new(channel(first).await);
                client.requests(tokio_stream::empty()).await.unwrap();
                calls += 1;
            }
            calls
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = shop.rig.successor();
    shop.rig.retire.send_replace(true);
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.store(true, Ordering::SeqCst);
    assert!(kept.await.unwrap() > 20 && fresh.await.unwrap() > 20);
    assert!(second.counters.forwarded.get() > 0, "calls go through the second one now");

    // A connection with an open stream is not told to go, however quiet it is.
    let before = shop.rig.counters.forwarded.get();
    tokio::time::sleep(Duration::from_millis(500)).await;
    ProxyClient::new(shop.channel.clone()).requests(tokio_stream::empty()).await.unwrap();
    assert_eq!(shop.rig.counters.forwarded.get(), before + 1);

    // The stream that was open goes on, and the first thread with it.
    acks.send(ack(7)).await.unwrap();
    assert_eq!(snapshots.message().await.unwrap().unwrap().number, 7);
    assert!(!shop.rig.thread.as_ref().unwrap().is_finished());
    // Then its connection is idle, though kept: told to go, it does.
    drop((acks, snapshots));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !shop.rig.thread.as_ref().unwrap().is_finished() {
        assert!(tokio::time::Instant::now() < deadline, "the first thread does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
