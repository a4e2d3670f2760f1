//! One stream: a request, judged, and its response.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use policy::HttpVersion;

use super::Connection;
use super::exchange::{Early, exchange};
use super::heads::Fault;
use super::piece::Piece;
use crate::buffers::Held;
use crate::gate::{Judgement, Subject};
use crate::limits;
use crate::live::Wait;
use crate::record::Running;
use crate::refusal::Refusal;
use crate::upstream::Connect;

/// Serves one stream to its end.
pub(super) async fn serve<C: Connect>(
    connection: &Connection<'_, C>,
    request: Request<RecvStream>,
    respond: SendResponse<Piece>,
) {
    let (parts, mut body) = request.into_parts();
    let session = connection.session;
    let head = Head::new(parts, connection.intake.fault(respond.stream_id().as_u32()));
    let held = connection.account.hold_new(head.cost());
    let judgement = match head.invalid.or(held.is_none().then_some(Refusal::NoRoom)) {
        Some(refusal) => session.gate.refuse(refusal),
        None => session.gate.judge(&head.subject()),
    };
    let refusal = judgement.refusal;
    let record = session.record("HTTP/2", head.texts(), judgement);
    let running = Running::new(&session.thread.common.records, record);
    let mut stream =
        Stream { connection, head, running, respond, to_client: None, complete: false, _held: held };
    match refusal {
        Some(refusal) => {
            stream.hear_out(&mut body).await;
            stream.refuse(refusal);
        }
        None => stream.forward(&mut body).await,
    }
    let Stream { running, complete, respond: _respond, to_client: _to_client, .. } = stream;
    drop(running);
    if complete {
        discard(&mut body).await;
    }
}

/// Takes what the client still sends of a request that has had its whole response. Without this
/// `h2` resets the stream, and some clients forget a response that a reset follows (curl before
/// 7.89).
async fn discard(body: &mut RecvStream) {
    if !body.is_end_stream() {
        let _ = tokio::time::timeout(limits::H2_DISCARD_TIME, take_rest(body)).await;
    }
}

async fn take_rest(body: &mut RecvStream) {
    let taken = body.flow_control().used_capacity();
    let _ = body.flow_control().release_capacity(taken);
    let mut left = limits::H2_DISCARD_BYTES;
    while let Some(Ok(chunk)) = body.data().await {
        // Fails only when the stream is over, which the next turn tells.
        let _ = body.flow_control().release_capacity(chunk.len());
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
    let _ = body.trailers().await;
}

/// A request head in the words of policy.
pub(super) struct Head {
    parts: Parts,
    host: String,
    is_grpc: bool,
    invalid: Option<Refusal>,
    /// Of a malformed one, of which `parts` say nothing.
    texts: Option<[Bytes; 3]>,
}

impl Head {
    fn new(parts: Parts, fault: Option<Fault>) -> Self {
        if let Some(Fault { refusal, texts, is_grpc, .. }) = fault {
            return Self { parts, host: String::new(), is_grpc, invalid: Some(refusal), texts: Some(texts) };
        }
        let host = host(&parts);
        let is_grpc = parts.headers.get(CONTENT_TYPE).is_some_and(is_grpc);
        let invalid = match &host {
            _ if is_too_large(&parts) => Some(Refusal::HeadTooLarge),
            Err(refusal) => Some(*refusal),
            Ok(_) => None,
        };
        Self { parts, host: host.unwrap_or_default(), is_grpc, invalid, texts: None }
    }

    /// What it and its stream take in memory.
    fn cost(&self) -> usize {
        limits::H2_STREAM_COST_BYTES + cost(&self.parts.headers) + length_of(&self.parts.uri)
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
        if let Some([method, target, host]) = &self.texts {
            return [method, target, host];
        }
        [self.parts.method.as_str(), self.target(), &self.host].map(str::as_bytes)
    }

    /// What is sent on: as it came. `h2` takes a request without authority only as one that was HTTP/1 before.
    pub(super) fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() = self.parts.headers.clone();
        *request.version_mut() =
            if self.parts.uri.authority().is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
        request
    }
}

/// `:authority`, or Host without it.
fn host(parts: &Parts) -> Result<String, Refusal> {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    let mut head =
        policy::Head::new(HttpVersion::Http2, parts.method.as_str(), target).with_authority(authority);
    for (name, value) in &parts.headers {
        head.field(name.as_str(), value.as_bytes())?;
    }
    Ok(head.admit()?.host.to_owned())
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
    respond: SendResponse<Piece>,
    /// Once the response has begun.
    to_client: Option<SendStream<Piece>>,
    /// The client has been given a whole response.
    complete: bool,
    /// The room in memory of its head.
    _held: Option<Held>,
}

impl<C: Connect> Stream<'_, '_, C> {
    async fn forward(&mut self, body: &mut RecvStream) {
        let result = tokio::select! {
            biased;
            judgement = self.connection.forbidden(&self.head) => Err(Early::Forbidden(Box::new(judgement))),
            result = exchange(self.connection, &self.head, &mut self.running, &mut self.respond, &mut self.to_client, body) => result,
        };
        match result {
            Ok(()) => {
                self.complete = true;
                self.connection.cancels.completed();
                self.running.note(|record| record.reason = "forwarded");
            }
            Err(Early::Cancelled) => {
                // What a server that takes nothing has not been sent of it stays in memory.
                if self.connection.session.live.is_waiting(Wait::ServerTakes) {
                    self.connection.cancels.stuck();
                } else if self.running.age() < limits::H2_YOUNG_STREAM {
                    self.connection.cancels.young();
                }
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
            Err(Early::Refused(refusal)) => {
                self.hear_out(body).await;
                self.refuse(refusal);
            }
            Err(Early::NoSlot) => {
                self.connection.session.counters().upstream_streams_full.add();
                self.running.note(|record| record.reason = "upstream_streams_full");
                self.reset(Reason::REFUSED_STREAM);
            }
            Err(Early::Reset(reason)) => {
                self.running.note(|record| record.reason = "upstream_reset");
                self.reset(reason);
            }
            Err(Early::Stalled) => {
                self.connection.session.counters().timed_out.add();
                self.running.note(|record| record.reason = "timed_out");
                self.reset(Reason::INTERNAL_ERROR);
            }
            Err(Early::NoRoom) => {
                self.connection.session.counters().buffers_full.add();
                self.running.note(|record| record.reason = Refusal::NoRoom.reason());
                self.reset(Reason::ENHANCE_YOUR_CALM);
            }
        }
    }

    /// Lets a gRPC client end its request before it is refused, if it does so soon. The answer is a
    /// 200, and curl waits for ever for the end of an upload that such an answer overtakes.
    async fn hear_out(&self, body: &mut RecvStream) {
        if self.head.is_grpc && !body.is_end_stream() {
            let _ = tokio::time::timeout(limits::H2_HEAR_OUT, take_rest(body)).await;
        }
    }

    /// Ends a stream that policy forbids now: with a refusal if the response has not begun, with a status if the
    /// client speaks gRPC, else with a reset.
    fn cut_off(&mut self) {
        let Some(to_client) = &mut self.to_client else { return self.answer(Refusal::Denied) };
        let status = Refusal::Denied.grpc_status();
        if self.head.is_grpc && to_client.send_trailers(grpc_fields(Refusal::Denied)).is_ok() {
            self.complete = true;
            self.running.note(|record| record.grpc_status = status.cast_signed());
        } else {
            self.reset(Reason::INTERNAL_ERROR);
        }
    }

    /// Never with CANCEL or NO_ERROR of our own: some clients take a response that ends with them for complete.
    fn reset(&mut self, reason: Reason) {
        match &mut self.to_client {
            Some(to_client) => to_client.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.connection.session.note_refusal(&mut self.running, refusal);
        if refusal == Refusal::NoRoom {
            // An answer would take room too. Nothing has looked at the request: the client may send it again.
            self.running.note(|record| record.status = 0);
            return self.reset(Reason::REFUSED_STREAM);
        }
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
            let has_body = self.head.texts()[0] != b"HEAD";
            self.respond
                .send_response(response, !has_body)
                .and_then(|mut body| if has_body { body.send_data(Piece::own(text), true) } else { Ok(()) })
        };
        match sent {
            Ok(()) => self.complete = true,
            Err(error) => tracing::debug!(%error, "the client did not wait for its refusal"),
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
        // Subscribed in the turn in which the request was judged: no installation is missed.
        let mut changes = self.session.thread.changes.subscribe();
        while changes.changed().await.is_ok() {
            let judgement = self.session.gate.judge(&head.subject());
            if judgement.refusal.is_some() {
                return judgement;
            }
        }
        std::future::pending().await
    }
}

/// What a head takes in memory.
pub(super) fn cost(fields: &HeaderMap) -> usize {
    let cost = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + limits::FIELD_COST_BYTES
    };
    fields.iter().map(cost).sum()
}

fn length_of(uri: &Uri) -> usize {
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    authority + uri.path_and_query().map_or(0, |target| target.as_str().len())
}

/// As HTTP/1 counts it: bytes, and fields.
fn is_too_large(parts: &Parts) -> bool {
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    let fields = parts.headers.len() > limits::HEAD_FIELDS;
    fields || length_of(&parts.uri) + parts.headers.iter().map(bytes).sum::<usize>() > limits::HEAD_BYTES
}
