//! A request on its way to the server, and its response on its way back.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response};

use super::Connection;
use super::piece::Piece;
use super::relay::{Broken, Terms, Trailers, relay};
use super::slots::Slot;
use super::stream::{Head, cost};
use crate::buffers::{Account, Held};
use crate::gate::Judgement;
use crate::limits;
use crate::record::Running;
use crate::refusal::{Refusal, is_refused_trailer};
use crate::upstream::Connect;

/// What ends a stream before its response is complete.
pub(super) enum Early {
    /// By the client.
    Cancelled,
    /// By a new snapshot.
    Forbidden(Box<Judgement>),
    /// Not forwarded after all.
    Refused(Refusal),
    /// By the server; the code for the client.
    Reset(Reason),
    /// The client does not take the response, or the server not the request.
    Stalled,
    /// There is no room in memory for what is sent.
    NoRoom,
    /// The server lets no more streams be open at a time, and none ended while this one waited.
    NoSlot,
}

impl<C: Connect> Connection<'_, C> {
    /// Opens the upstream stream.
    async fn open(
        &self,
        head: &Head,
        no_body: bool,
    ) -> Result<(Slot<'_>, ResponseFuture, SendStream<Piece>), Early> {
        let sender = self.upstream().await.ok_or(Early::Refused(Refusal::Unreachable))?;
        let slot = self.slots.take(&sender, self.session.timeouts().slot).await.ok_or(Early::NoSlot)?;
        // The connection has ended, or the server wants no more on it, and of this request nothing was sent: the client may
        // send it again.
        let refused = |_| {
            self.goes_away.set(true);
            Early::Reset(Reason::REFUSED_STREAM)
        };
        let mut sender = sender.ready().await.map_err(refused)?;
        let (response, body) = sender.send_request(head.request(), no_body).map_err(|error| {
            if error.is_go_away() || error.is_io() {
                refused(error)
            } else {
                Early::Refused(Refusal::BadGateway)
            }
        })?;
        Ok((slot, response, body))
    }
}

/// Relays both, to the end of the response.
pub(super) async fn exchange<C: Connect>(
    connection: &Connection<'_, C>,
    head: &Head,
    running: &mut Running<'_>,
    respond: &mut SendResponse<Piece>,
    to_client: &mut Option<SendStream<Piece>>,
    body: &mut RecvStream,
) -> Result<(), Early> {
    let stall = connection.session.timeouts().stall;
    let terms = |is_refused| Terms { account: &connection.account, stall, is_refused };
    let no_body = body.is_end_stream();
    let (_slot, mut response, mut to_upstream) = tokio::select! {
        biased;
        _ = poll_fn(|context| respond.poll_reset(context)) => return Err(Early::Cancelled),
        opened = connection.open(head, no_body) => opened?,
    };
    connection.session.counters().forwarded.add();
    running.note(|record| record.sent = true);
    let mut upload = std::pin::pin!(async {
        if no_body { Ok(None) } else { relay(body, &mut to_upstream, terms(is_refused_trailer)).await }
    });
    let mut uploaded = None;
    let mut interim = Vec::new();
    let response = loop {
        tokio::select! {
            biased;
            result = &mut upload, if uploaded.is_none() => uploaded = Some(upload_end(result)?),
            response = poll_fn(|context| {
                poll_response(&mut response, &mut interim, &connection.account, respond, context)
            }) => break response?,
        }
    };
    let (parts, mut from_upstream) = response.into_parts();
    if parts.headers.len() > limits::HEAD_FIELDS {
        return Err(Early::Refused(Refusal::BadGateway));
    }
    let _held = connection.account.hold(cost(&parts.headers)).ok_or(Early::NoRoom)?;
    running.note(|record| {
        record.status = parts.status.as_u16();
        record.grpc_status = grpc_status(&parts.headers).unwrap_or(-1);
    });
    let ends = from_upstream.is_end_stream();
    let sent = respond.send_response(Response::from_parts(parts, ()), ends).map_err(|_| Early::Cancelled)?;
    if !ends {
        let to_client = to_client.insert(sent);
        let mut download = std::pin::pin!(relay(&mut from_upstream, to_client, terms(|_| false)));
        let trailers = loop {
            tokio::select! {
                biased;
                result = &mut upload, if uploaded.is_none() => uploaded = Some(upload_end(result)?),
                result = &mut download => break result.map_err(download_end)?,
            }
        };
        if let Some(status) = trailers.as_ref().and_then(|trailers| grpc_status(&trailers.fields)) {
            running.note(|record| record.grpc_status = status);
        }
    }
    // A server may answer before it has the whole request, and still want the rest of it.
    if uploaded.is_none() {
        // The response is complete: whatever becomes of the rest changes nothing for the client.
        let _ = upload.await;
    }
    Ok(())
}

/// The response, after any interim ones, which are passed on; or that the client does not want it any more.
fn poll_response(
    response: &mut ResponseFuture,
    interim: &mut Vec<Held>,
    account: &Rc<Account>,
    respond: &mut SendResponse<Piece>,
    context: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Early>> {
    if respond.poll_reset(context).is_ready() {
        return Poll::Ready(Err(Early::Cancelled));
    }
    while let Poll::Ready(Some(Ok(head))) = response.poll_informational(context) {
        if interim.len() >= limits::H2_INTERIM_RESPONSES || head.headers().len() > limits::HEAD_FIELDS {
            return Poll::Ready(Err(Early::Refused(Refusal::BadGateway)));
        }
        // For as long as the exchange, since nobody says when the socket has taken it.
        interim.push(account.hold(cost(head.headers())).ok_or(Early::NoRoom)?);
        if respond.send_informational(head).is_err() {
            return Poll::Ready(Err(Early::Cancelled));
        }
    }
    Pin::new(response).poll(context).map_err(|error| match promised(&error) {
        Some(reason) => Early::Reset(reason),
        None => Early::Refused(Refusal::BadGateway),
    })
}

/// What the server itself has said about a stream that has failed before its response began, and may be said to the client.
/// REFUSED_STREAM promises that nothing of the request was processed (RFC 9113 section 8.7): `h2` gives a stream a GOAWAY of
/// the other side only if it is above the last stream that the GOAWAY names, and that promises the same. What we or `h2` found
/// out ourselves promises nothing.
fn promised(error: &h2::Error) -> Option<Reason> {
    match error.reason() {
        Some(reason) if error.is_remote() && error.is_reset() => Some(reason),
        Some(_) if error.is_remote() && error.is_go_away() => Some(Reason::REFUSED_STREAM),
        _ => None,
    }
}

/// A server that stops an upload says why on its side of the exchange, which is looked at next.
fn upload_end(result: Result<Option<Trailers>, Broken>) -> Result<Option<Trailers>, Early> {
    match result {
        Ok(trailers) => Ok(trailers),
        Err(Broken::Sink) => Ok(None),
        Err(Broken::Source(_)) => Err(Early::Cancelled),
        Err(Broken::Stalled) => Err(Early::Stalled),
        Err(Broken::Trailers) => Err(Early::Reset(Reason::PROTOCOL_ERROR)),
        Err(Broken::NoRoom) => Err(Early::NoRoom),
    }
}

/// A response that has begun is processed, whatever a GOAWAY says: only the server's own reset passes.
fn download_end(broken: Broken) -> Early {
    match broken {
        Broken::Source(error) if error.is_remote() && error.is_reset() => {
            Early::Reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR))
        }
        Broken::Source(_) => Early::Reset(Reason::INTERNAL_ERROR),
        Broken::Sink | Broken::Trailers => Early::Cancelled,
        Broken::Stalled => Early::Stalled,
        Broken::NoRoom => Early::NoRoom,
    }
}

fn grpc_status(fields: &HeaderMap) -> Option<i32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
