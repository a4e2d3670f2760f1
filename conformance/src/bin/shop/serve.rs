//! A server that answers every request with whom it saw and what was asked, and writes a line of it to its log.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Pause of the accept loop when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// The service whose methods all succeed.
const SERVICE: &str = "/com.example.OrderService/";
/// gRPC status "unimplemented".
const UNIMPLEMENTED: &str = "12";
/// A message of no bytes: not compressed, length 0.
const EMPTY_MESSAGE: &[u8] = &[0; 5];
/// Path ending of a response that streams a line every [`TICK`] for `?seconds=N`.
const STREAM: &str = "/stream";
/// Time between two lines of a streamed response.
const TICK: Duration = Duration::from_millis(100);

/// Which servers to run.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Port of the HTTP/1.1 server.
    #[arg(long)]
    http: Option<u16>,
    /// Port of the gRPC server.
    #[arg(long)]
    grpc: Option<u16>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Serve {
    /// Runs until it is killed.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        ensure!(
            self.http.is_some() || self.grpc.is_some(),
            "nothing to serve: give --http PORT or --grpc PORT"
        );
        let (http, grpc) = (self.http.map(listen).transpose()?, self.grpc.map(listen).transpose()?);
        tokio::join!(
            async {
                if let Some(listener) = http {
                    accept(&listener, http_connection).await
                }
            },
            async {
                if let Some(listener) = grpc {
                    accept(&listener, grpc_connection).await
                }
            },
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket
        .bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("bind port {port}"))?;
    Ok(socket.listen(BACKLOG)?)
}

async fn accept<F: Future<Output = ()> + 'static>(
    listener: &TcpListener,
    serve: fn(TcpStream, SocketAddr) -> F,
) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                // Only latency suffers without it.
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(serve(stream, client));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The access log: one line for each request, when its head is complete.
fn log(client: SocketAddr, request: &Request<Incoming>) {
    let path = request.uri().path_and_query().map_or("*", hyper::http::uri::PathAndQuery::as_str);
    // A log that cannot be written must not end the server that is being watched.
    let _ = writeln!(std::io::stdout(), "{client} {} {path}", request.method());
}

async fn http_connection(stream: TcpStream, client: SocketAddr) {
    let service = service_fn(move |request| http_request(client, request));
    // How a connection ended is the client's to tell.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn http_request(
    client: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    log(client, &request);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    if uri.path().ends_with(STREAM) {
        let seconds = uri.query().and_then(|query| query.strip_prefix("seconds="));
        return Ok(Response::new(ticks(seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(1))));
    }
    let body_bytes = count(request.into_body()).await?;
    let answer = serde_json::json!({
        "method": method.as_str(),
        "path": uri.to_string(),
        "client": client.to_string(),
        "body_bytes": body_bytes,
    });
    let mut response = Response::new(Full::from(answer.to_string()).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn count(mut body: Incoming) -> Result<usize, hyper::Error> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

/// One line every [`TICK`], for so many seconds.
fn ticks(seconds: u64) -> Body {
    let lines =
        usize::try_from(seconds * 1000 / u64::try_from(TICK.as_millis()).unwrap_or(1)).unwrap_or(usize::MAX);
    let ticks = IntervalStream::new(tokio::time::interval(TICK)).take(lines);
    StreamBody::new(ticks.map(|_| Ok(Frame::data(Bytes::from_static(b"tick\n"))))).boxed_unsync()
}

async fn grpc_connection(stream: TcpStream, client: SocketAddr) {
    let service = service_fn(move |request| grpc_request(client, request));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
}

async fn grpc_request(
    client: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    log(client, &request);
    let is_known = request.uri().path().starts_with(SERVICE);
    count(request.into_body()).await?;
    let mut response = Response::new(if is_known { message() } else { Empty::new().boxed_unsync() });
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if !is_known {
        headers.insert("grpc-status", HeaderValue::from_static(UNIMPLEMENTED));
    }
    Ok(response)
}

/// An empty message, and in the trailers the status "ok".
fn message() -> Body {
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    Full::from(EMPTY_MESSAGE).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync()
}
