//! One direction of a stream: data as fast as the other side takes it, then trailers.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::poll;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

/// Why a direction ended early.
#[derive(Debug)]
pub(super) enum Broken {
    /// The sending side reset the stream, or its connection broke.
    Source(Option<Reason>),
    /// The receiving side did.
    Sink,
    /// The receiving side takes nothing.
    Stalled,
    /// The trailers have a field that must not be passed on.
    Trailers,
}

/// Moves everything from one side to the other, and gives the trailers that went with it, unless they have a field that
/// `is_refused`. No more is read than the other side has room for.
pub(super) async fn relay(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    is_refused: fn(&[u8]) -> bool,
    stall: Duration,
) -> Result<Option<HeaderMap>, Broken> {
    loop {
        let next = poll_fn(|context| match to.poll_reset(context) {
            Poll::Ready(_) => Poll::Ready(Err(Broken::Sink)),
            Poll::Pending => from.poll_data(context).map(Ok),
        });
        match next.await? {
            Some(Ok(chunk)) => {
                let length = chunk.len();
                let is_last = from.is_end_stream();
                send(to, chunk, is_last, stall).await?;
                // Fails only when the stream is over, which the next poll tells.
                let _ = from.flow_control().release_capacity(length);
                if is_last {
                    return Ok(None);
                }
            }
            Some(Err(error)) => return Err(Broken::Source(error.reason())),
            None => break,
        }
    }
    let trailers = poll_fn(|context| from.poll_trailers(context)).await;
    let sink = |_| Broken::Sink;
    match trailers.map_err(|error| Broken::Source(error.reason()))? {
        Some(trailers) if trailers.keys().any(|name| is_refused(name.as_str().as_bytes())) => {
            Err(Broken::Trailers)
        }
        Some(trailers) => {
            to.send_trailers(trailers.clone()).map_err(sink)?;
            Ok(Some(trailers))
        }
        None => {
            to.send_data(Bytes::new(), true).map_err(sink)?;
            Ok(None)
        }
    }
}

async fn send(
    to: &mut SendStream<Bytes>,
    mut chunk: Bytes,
    is_last: bool,
    stall: Duration,
) -> Result<(), Broken> {
    while !chunk.is_empty() {
        to.reserve_capacity(chunk.len());
        let room = capacity(to, stall).await?.min(chunk.len());
        let piece = chunk.split_to(room);
        let ends = is_last && chunk.is_empty();
        to.send_data(piece, ends).map_err(|_| Broken::Sink)?;
        if ends {
            return Ok(());
        }
    }
    if is_last {
        to.send_data(chunk, true).map_err(|_| Broken::Sink)?;
    }
    Ok(())
}

/// Waits until the other side takes at least a byte. Only one that does not at once costs a timer.
async fn capacity(to: &mut SendStream<Bytes>, stall: Duration) -> Result<usize, Broken> {
    if to.capacity() > 0 {
        return Ok(to.capacity());
    }
    let waiting = poll_fn(|context| {
        loop {
            match std::task::ready!(to.poll_capacity(context)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => return Poll::Ready(Ok(room)),
                Some(Err(_)) | None => return Poll::Ready(Err(Broken::Sink)),
            }
        }
    });
    tokio::pin!(waiting);
    match poll!(&mut waiting) {
        Poll::Ready(room) => room,
        Poll::Pending => tokio::time::timeout(stall, waiting).await.unwrap_or(Err(Broken::Stalled)),
    }
}
