//! A steady load: half of the requests of each protocol on new connections, half on kept-alive ones. No request is ever sent
//! twice, so that each one that is lost is seen.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, TE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections kept for another request, of each protocol.
const KEPT_MAX: usize = 16;
/// Failures that are reported one by one.
const FAILURES_MAX: usize = 100;
/// What is asked over HTTP.
const HTTP_PATH: &str = "/api/v1/products/7";
/// What is asked over gRPC.
const GRPC_PATH: &str = "/com.example.OrderService/Create";
/// A message of no bytes: not compressed, length 0.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// What to send where.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// HTTP/1.1 server.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// gRPC server.
    #[arg(long, value_name = "ADDRESS:PORT")]
    grpc: Option<SocketAddr>,
    /// Requests a second, of all kinds together.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// A kind of request.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http { server: SocketAddr, kept: bool },
    Grpc { server: SocketAddr, kept: bool },
}

/// Connections that wait for their next request.
#[derive(Default)]
struct Kept {
    http: Vec<http1::SendRequest<Empty<Bytes>>>,
    grpc: Vec<http2::SendRequest<Full<Bytes>>>,
}

/// When a request was answered, since the begin, or why it was not.
type Outcome = (Duration, Result<(), String>);

impl Load {
    /// Prints the report. Succeeds if no request failed.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let kinds = self.kinds();
        ensure!(!kinds.is_empty(), "nothing to ask: give --http ADDRESS:PORT or --grpc ADDRESS:PORT");
        let (kept, begin) = (Rc::new(RefCell::new(Kept::default())), Instant::now());
        let length = Duration::from_secs(self.seconds.into());
        let mut tick = tokio::time::interval(Duration::from_secs(1) / self.rate);
        let mut running = tokio::task::JoinSet::new();
        let mut outcomes: Vec<Outcome> = Vec::new();
        for kind in kinds.iter().cycle() {
            tick.tick().await;
            if begin.elapsed() >= length {
                break;
            }
            let (kind, kept) = (*kind, kept.clone());
            running.spawn_local(async move {
                let result = match tokio::time::timeout(PATIENCE, ask(kind, &kept)).await {
                    Ok(result) => result.map_err(|error| format!("{kind}: {error:#}")),
                    Err(_) => Err(format!("{kind}: time-out")),
                };
                (begin.elapsed(), result)
            });
            while let Some(outcome) = running.try_join_next() {
                outcomes.push(outcome?);
            }
        }
        let end = begin.elapsed();
        while let Some(outcome) = running.join_next().await {
            outcomes.push(outcome?);
        }
        Ok(report(&mut outcomes, end))
    }

    fn kinds(&self) -> Vec<Kind> {
        let http = self.http.map(|server| [false, true].map(|kept| Kind::Http { server, kept }));
        let grpc = self.grpc.map(|server| [false, true].map(|kept| Kind::Grpc { server, kept }));
        http.into_iter().chain(grpc).flatten().collect()
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, kept) = match self {
            Self::Http { kept, .. } => ("HTTP", kept),
            Self::Grpc { kept, .. } => ("gRPC", kept),
        };
        write!(f, "{protocol} on a {} connection", if *kept { "kept-alive" } else { "new" })
    }
}

fn report(outcomes: &mut [Outcome], end: Duration) -> ExitCode {
    outcomes.sort_by_key(|(at, _)| *at);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut longest_gap = Duration::ZERO;
    let mut last = Duration::ZERO;
    // The end counts as an answer: a server that never came back has a gap too.
    let answers = outcomes.iter().filter(|(_, result)| result.is_ok()).map(|(at, _)| *at);
    for at in answers.chain([end]) {
        longest_gap = longest_gap.max(at.saturating_sub(last));
        last = last.max(at);
    }
    let failed = outcomes.iter().filter_map(|(at, result)| Some((at, result.as_ref().err()?)));
    let failures: Vec<_> =
        failed.map(|(at, kind)| json!({"at_ms": milliseconds(*at), "kind": kind})).collect();
    let report = json!({
        "sent": outcomes.len(),
        "ok": outcomes.len() - failures.len(),
        "failed": failures.len(),
        "failures": failures[..failures.len().min(FAILURES_MAX)],
        "longest_gap_ms": milliseconds(longest_gap),
    });
    println!("{report}");
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn ask(kind: Kind, kept: &RefCell<Kept>) -> Result<()> {
    match kind {
        Kind::Http { server, kept: keep } => {
            let waiting = if keep { kept_http(kept) } else { None };
            let mut connection = match waiting {
                Some(connection) => connection,
                None => connect_http(server).await?,
            };
            http(&mut connection, server).await?;
            if keep && kept.borrow().http.len() < KEPT_MAX && connection.ready().await.is_ok() {
                kept.borrow_mut().http.push(connection);
            }
        }
        Kind::Grpc { server, kept: keep } => {
            let waiting = if keep { kept_grpc(kept) } else { None };
            let mut connection = match waiting {
                Some(connection) => connection,
                None => connect_grpc(server).await?,
            };
            grpc(&mut connection, server).await?;
            if keep && kept.borrow().grpc.len() < KEPT_MAX && connection.ready().await.is_ok() {
                kept.borrow_mut().grpc.push(connection);
            }
        }
    }
    Ok(())
}

/// One that the server has not closed meanwhile.
fn kept_http(kept: &RefCell<Kept>) -> Option<http1::SendRequest<Empty<Bytes>>> {
    let waiting = &mut kept.borrow_mut().http;
    waiting.retain(http1::SendRequest::is_ready);
    waiting.pop()
}

/// One that the server has not closed meanwhile.
fn kept_grpc(kept: &RefCell<Kept>) -> Option<http2::SendRequest<Full<Bytes>>> {
    let waiting = &mut kept.borrow_mut().grpc;
    waiting.retain(http2::SendRequest::is_ready);
    waiting.pop()
}

async fn connect(server: SocketAddr) -> Result<TokioIo<TcpStream>> {
    let stream = TcpStream::connect(server).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

async fn connect_http(server: SocketAddr) -> Result<http1::SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(connect(server).await?).await?;
    // Its errors reach the request that is on it.
    tokio::task::spawn_local(async move { connection.await.ok() });
    Ok(sender)
}

async fn connect_grpc(server: SocketAddr) -> Result<http2::SendRequest<Full<Bytes>>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), connect(server).await?).await?;
    tokio::task::spawn_local(async move { connection.await.ok() });
    Ok(sender)
}

async fn http(connection: &mut http1::SendRequest<Empty<Bytes>>, server: SocketAddr) -> Result<()> {
    let request = Request::get(HTTP_PATH).header(HOST, server.to_string()).body(Empty::new())?;
    let response = connection.send_request(request).await.context("request")?;
    let status = response.status();
    response.into_body().collect().await.context("response")?;
    ensure!(status == StatusCode::OK, "status {}", status.as_u16());
    Ok(())
}

async fn grpc(connection: &mut http2::SendRequest<Full<Bytes>>, server: SocketAddr) -> Result<()> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{server}{GRPC_PATH}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::from(EMPTY_MESSAGE))?;
    connection.ready().await.context("connection")?;
    let response = connection.send_request(request).await.context("request")?;
    match grpc_status(response).await?.as_deref() {
        Some("0") => Ok(()),
        Some(status) => bail!("grpc-status {status}"),
        None => bail!("no grpc-status"),
    }
}

/// From the trailers, or from the headers of a response that is nothing else.
async fn grpc_status(response: Response<Incoming>) -> Result<Option<String>> {
    let of = |headers: &hyper::HeaderMap| {
        headers.get("grpc-status").and_then(|status| status.to_str().ok()).map(str::to_owned)
    };
    let in_headers = of(response.headers());
    let body = response.into_body().collect().await.context("response")?;
    Ok(body.trailers().and_then(of).or(in_headers))
}
