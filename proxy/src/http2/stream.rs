//! One stream: a request, judged, and its response.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};

use super::Connection;
use super::relay::{Broken, relay};
use crate::gate::{Judgement, Subject};
use crate::record::Running;
use crate::refusal::{Refusal, is_refused_trailer};
use crate::target;
use crate::upstream::Connect;

/// Serves one stream to its end.
pub(super) async fn serve<C: Connect>(
    connection: &Connection<'_, C>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let session = connection.session;
    let head = Head::new(parts);
    let judgement = match &head.invalid {
        Some(refusal) => session.gate.refuse(*refusal),
        None => session.gate.judge(&head.subject()),
    };
    let refusal = judgement.refusal;
    let record = session.record("HTTP/2", head.texts(), judgement);
    let running = Running::new(&session.thread.common.records, record);
    let mut stream = Stream { connection, head, running, respond, to_client: None };
    match refusal {
        Some(refusal) => stream.refuse(refusal),
        None => {
            session.counters().forwarded.add();
            stream.forward(body).await;
        }
    }
}

/// A request head in the words of policy.
struct Head {
    parts: Parts,
    host: String,
    is_grpc: bool,
    invalid: Option<Refusal>,
}

impl Head {
    fn new(parts: Parts) -> Self {
        let host = host(&parts);
        let is_grpc = parts.headers.get(CONTENT_TYPE).is_some_and(is_grpc);
        let invalid = match &host {
            _ if parts.method == Method::CONNECT => Some(Refusal::Connect),
            Err(refusal) => Some(*refusal),
            Ok(_) => None,
        };
        Self { parts, host: host.unwrap_or_default(), is_grpc, invalid }
    }

    fn target(&self) -> &str {
        self.parts.uri.path_and_query().map_or("", |target| target.as_str())
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            method: self.parts.method.as_str(),
            target: self.target(),
            host: &self.host,
            headers: &self.parts.headers,
        }
    }

    fn texts(&self) -> [&[u8]; 3] {
        [self.parts.method.as_str(), self.target(), &self.host].map(str::as_bytes)
    }

    /// What is sent on: as it came. `h2` takes a request without authority only as one that was HTTP/1 before.
    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() = self.parts.headers.clone();
        *request.version_mut() =
            if self.parts.uri.authority().is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
        request
    }
}

/// `:authority`, or Host without it (RFC 9113 section 8.3.1); both must say the same.
fn host(parts: &Parts) -> Result<String, Refusal> {
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Refusal::Malformed("Repeated field"));
    }
    let field = match field.map(HeaderValue::to_str) {
        Some(Err(_)) => return Err(Refusal::Malformed("Invalid Host")),
        Some(Ok(host)) => Some(host),
        None => None,
    };
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    let host = match (authority, field) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Refusal::Malformed("Authority and Host differ"));
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err(Refusal::Malformed("No authority")),
    };
    if target::is_host(host) { Ok(host.to_owned()) } else { Err(Refusal::Malformed("Invalid authority")) }
}

/// `application/grpc`, alone or with `+proto` and the like, or parameters.
fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest =
        content_type.as_bytes().get(..16).filter(|start| start.eq_ignore_ascii_case(b"application/grpc"));
    rest.is_some() && matches!(content_type.as_bytes().get(16), None | Some(b'+' | b';' | b' '))
}

struct Stream<'a, 'b, C> {
    connection: &'b Connection<'a, C>,
    head: Head,
    running: Running<'b>,
    respond: SendResponse<Bytes>,
    /// Once the response has begun.
    to_client: Option<SendStream<Bytes>>,
}

/// What ends a stream before its response is complete.
enum Early {
    /// By the client.
    Cancelled,
    /// By a new snapshot.
    Forbidden(Box<Judgement>),
    /// Not forwarded after all.
    Refused(Refusal),
    /// By the server; the code is passed on.
    Reset(Reason),
    /// The client does not take the response.
    Stalled,
}

impl<C: Connect> Stream<'_, '_, C> {
    async fn forward(&mut self, body: RecvStream) {
        let result = tokio::select! {
            biased;
            judgement = self.connection.forbidden(&self.head) => Err(Early::Forbidden(Box::new(judgement))),
            result = exchange(self.connection, &self.head, &mut self.running, &mut self.respond, &mut self.to_client, body) => result,
        };
        match result {
            Ok(()) => {
                self.connection.note_completed();
                self.running.note(|record| record.reason = "forwarded");
            }
            Err(Early::Cancelled) => {
                self.connection.note_cancelled();
                self.running.note(|record| record.reason = "client_gone");
            }
            Err(Early::Forbidden(judgement)) => {
                self.connection.session.counters().ended_by_policy.add();
                self.running.note(|record| {
                    record.judged(*judgement);
                    record.reason = "policy_changed";
                });
                self.cut_off();
            }
            Err(Early::Refused(refusal)) => self.refuse(refusal),
            Err(Early::Reset(reason)) => {
                self.running.note(|record| record.reason = "upstream_reset");
                self.reset(reason);
            }
            Err(Early::Stalled) => {
                self.connection.session.counters().timed_out.add();
                self.running.note(|record| record.reason = "timed_out");
                self.reset(Reason::CANCEL);
            }
        }
    }

    /// Ends a stream that policy forbids now: with a refusal if the response has not begun, with a status if the
    /// client speaks gRPC, else with a reset.
    fn cut_off(&mut self) {
        let Some(to_client) = &mut self.to_client else { return self.answer(Refusal::Denied) };
        let status = Refusal::Denied.grpc_status();
        if self.head.is_grpc && to_client.send_trailers(grpc_fields(Refusal::Denied)).is_ok() {
            self.running.note(|record| record.grpc_status = status.cast_signed());
        } else {
            self.reset(Reason::CANCEL);
        }
    }

    fn reset(&mut self, reason: Reason) {
        match &mut self.to_client {
            Some(to_client) => to_client.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.connection.session.note_refusal(&mut self.running, refusal);
        self.answer(refusal);
    }

    /// gRPC clients are told in their own words, in a response that is all trailers.
    fn answer(&mut self, refusal: Refusal) {
        let (status, _) = refusal.status();
        let sent = if self.head.is_grpc {
            let grpc_status = refusal.grpc_status().cast_signed();
            self.running.note(|record| (record.status, record.grpc_status) = (200, grpc_status));
            let mut response = Response::new(());
            *response.headers_mut() = grpc_fields(refusal);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            self.respond.send_response(response, true).map(|_| ())
        } else {
            self.running.note(|record| record.status = status);
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            let text = format!("{}\r\n", refusal.message());
            let has_body = self.head.parts.method != Method::HEAD;
            self.respond
                .send_response(response, !has_body)
                .and_then(|mut body| if has_body { body.send_data(text.into(), true) } else { Ok(()) })
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the client did not wait for its refusal");
        }
    }
}

/// The fields that end a gRPC call.
fn grpc_fields(refusal: Refusal) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(3);
    fields.insert("grpc-status", HeaderValue::from(refusal.grpc_status()));
    fields.insert("grpc-message", HeaderValue::from_static(refusal.message()));
    fields
}

impl<C: Connect> Connection<'_, C> {
    /// Until a new snapshot forbids the request.
    async fn forbidden(&self, head: &Head) -> Judgement {
        let mut changes = self.session.thread.changes.subscribe();
        loop {
            let judgement = self.session.gate.judge(&head.subject());
            if judgement.refusal.is_some() {
                return judgement;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Opens the upstream stream.
    async fn open(&self, head: &Head, no_body: bool) -> Result<(ResponseFuture, SendStream<Bytes>), Early> {
        let sender = self.upstream().await.ok_or(Early::Refused(Refusal::Unreachable))?;
        // A server that goes away has not looked at this request: the client may send it elsewhere.
        let refused = |_| {
            self.goes_away.set(true);
            Early::Reset(Reason::REFUSED_STREAM)
        };
        let mut sender = sender.ready().await.map_err(refused)?;
        sender.send_request(head.request(), no_body).map_err(|error| {
            if error.is_go_away() || error.is_io() {
                refused(error)
            } else {
                Early::Refused(Refusal::BadGateway)
            }
        })
    }
}

async fn exchange<C: Connect>(
    connection: &Connection<'_, C>,
    head: &Head,
    running: &mut Running<'_>,
    respond: &mut SendResponse<Bytes>,
    to_client: &mut Option<SendStream<Bytes>>,
    mut body: RecvStream,
) -> Result<(), Early> {
    let stall = connection.session.timeouts().stall;
    let no_body = body.is_end_stream();
    let (mut response, mut to_upstream) = tokio::select! {
        biased;
        _ = poll_fn(|context| respond.poll_reset(context)) => return Err(Early::Cancelled),
        opened = connection.open(head, no_body) => opened?,
    };
    let mut upload = std::pin::pin!(async {
        if no_body { Ok(None) } else { relay(&mut body, &mut to_upstream, is_refused_trailer, stall).await }
    });
    let mut uploaded = false;
    let response = loop {
        tokio::select! {
            biased;
            result = &mut upload, if !uploaded => { uploaded = true; upload_end(result)?; }
            response = poll_fn(|context| poll_response(&mut response, respond, context)) => break response?,
        }
    };
    let (parts, mut from_upstream) = response.into_parts();
    running.note(|record| {
        record.status = parts.status.as_u16();
        record.grpc_status = grpc_status(&parts.headers).unwrap_or(-1);
    });
    let ends = from_upstream.is_end_stream();
    let sent = respond.send_response(Response::from_parts(parts, ()), ends).map_err(|_| Early::Cancelled)?;
    if !ends {
        let to_client = to_client.insert(sent);
        let mut download = std::pin::pin!(relay(&mut from_upstream, to_client, |_| false, stall));
        let trailers = loop {
            tokio::select! {
                biased;
                result = &mut upload, if !uploaded => { uploaded = true; upload_end(result)?; }
                result = &mut download => break result.map_err(download_end)?,
            }
        };
        if let Some(status) = trailers.as_ref().and_then(grpc_status) {
            running.note(|record| record.grpc_status = status);
        }
    }
    // A server may answer before it has the whole request, and still want the rest of it.
    if !uploaded {
        // The response is complete: whatever becomes of the rest changes nothing for the client.
        let _ = upload.await;
    }
    Ok(())
}

/// The response, after any interim ones, which are passed on; or that the client does not want it any more.
fn poll_response(
    response: &mut ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    context: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Early>> {
    if respond.poll_reset(context).is_ready() {
        return Poll::Ready(Err(Early::Cancelled));
    }
    while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
        if respond.send_informational(interim).is_err() {
            return Poll::Ready(Err(Early::Cancelled));
        }
    }
    Pin::new(response).poll(context).map_err(|error| match error.reason() {
        Some(reason) if error.is_reset() => Early::Reset(reason),
        Some(_) if error.is_go_away() => Early::Reset(Reason::REFUSED_STREAM),
        _ => Early::Refused(Refusal::BadGateway),
    })
}

/// A server that stops an upload says why on its side of the exchange, which is looked at next.
fn upload_end(result: Result<Option<HeaderMap>, Broken>) -> Result<(), Early> {
    match result {
        Ok(_) | Err(Broken::Sink) => Ok(()),
        Err(Broken::Source(_)) => Err(Early::Cancelled),
        Err(Broken::Stalled) => Err(Early::Stalled),
        Err(Broken::Trailers) => Err(Early::Reset(Reason::PROTOCOL_ERROR)),
    }
}

fn download_end(broken: Broken) -> Early {
    match broken {
        Broken::Source(reason) => Early::Reset(reason.unwrap_or(Reason::INTERNAL_ERROR)),
        Broken::Sink | Broken::Trailers => Early::Cancelled,
        Broken::Stalled => Early::Stalled,
    }
}

fn grpc_status(fields: &HeaderMap) -> Option<i32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
