//! One direction of a stream: data as fast as the other side takes it, then trailers.
//!
//! The sender is given room for as many bytes as the receiver's socket has taken: so what is in memory is never more than the
//! windows that the sender was given at first, whatever windows the receiver gives and however little it reads.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::piece::{Piece, Transit};
use super::stream::cost;
use crate::buffers::{Account, Held};
use crate::limits;

/// Why a direction ended early.
#[derive(Debug)]
pub(super) enum Broken {
    /// The sending side reset the stream, or its connection broke.
    Source(h2::Error),
    /// The receiving side did.
    Sink,
    /// The receiving side takes nothing.
    Stalled,
    /// The trailers have a field that must not be passed on.
    Trailers,
    /// There is no room in memory for what the sending side sends.
    NoRoom,
}

/// How a direction is relayed.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    /// Whose memory it takes.
    pub(super) account: &'a Rc<Account>,
    /// How long the receiver may take nothing.
    pub(super) stall: Duration,
    /// Which fields trailers must not have.
    pub(super) is_refused: fn(&[u8]) -> bool,
}

/// Trailers that were sent on.
pub(super) struct Trailers {
    pub(super) fields: HeaderMap,
    /// Their room in memory; nobody says when the socket has taken them.
    _held: Held,
}

/// Moves everything from one side to the other, and gives the trailers that went with it. Returns when the receiver's
/// socket has taken it all.
pub(super) async fn relay(
    from: &mut RecvStream,
    to: &mut SendStream<Piece>,
    terms: Terms<'_>,
) -> Result<Option<Trailers>, Broken> {
    let mut relay =
        Relay { from, to, terms, transit: Rc::default(), waiting: None, read_all: false, ended: false };
    relay.advance_until(|relay| relay.read_all && relay.waiting.is_none()).await?;
    let trailers = if relay.ended { None } else { relay.end().await? };
    relay.advance_until(|relay| relay.transit.pieces() == 0).await?;
    Ok(trailers)
}

struct Relay<'a> {
    from: &'a mut RecvStream,
    to: &'a mut SendStream<Piece>,
    terms: Terms<'a>,
    transit: Rc<Transit>,
    /// What was read and the receiver has no room for; never empty.
    waiting: Option<(BytesMut, Held)>,
    /// There is no more data to read.
    read_all: bool,
    /// The last piece was marked as such.
    ended: bool,
}

impl Relay<'_> {
    /// Only a receiver that does not take everything at once costs a timer. (A socket that takes nothing is the connection's
    /// affair.)
    async fn advance_until(&mut self, is_done: fn(&Self) -> bool) -> Result<(), Broken> {
        let mut timer = None;
        poll_fn(|context| {
            let moved = self.advance(context)?;
            if is_done(self) {
                return Poll::Ready(Ok(()));
            }
            if moved || self.waiting.is_none() {
                timer = None;
            }
            if self.waiting.is_none() {
                return Poll::Pending;
            }
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.terms.stall)));
            timer.as_mut().poll(context).map(|()| Err(Broken::Stalled))
        })
        .await
    }

    /// Moves what can be moved now. Whether the receiver took some of it.
    fn advance(&mut self, context: &mut Context<'_>) -> Result<bool, Broken> {
        let gone = self.transit.take_gone(context.waker());
        if gone > 0 {
            // Fails only when the stream is over, which its next poll tells.
            let _ = self.from.flow_control().release_capacity(gone);
        }
        if self.to.poll_reset(context).is_ready() {
            return Err(Broken::Sink);
        }
        let mut moved = self.send_waiting(context)? || gone > 0;
        while !self.read_all {
            match self.from.poll_data(context) {
                Poll::Ready(Some(Ok(chunk))) => moved |= self.take(chunk, context)?,
                Poll::Ready(Some(Err(error))) => return Err(Broken::Source(error)),
                Poll::Ready(None) => self.read_all = true,
                Poll::Pending => break,
            }
        }
        Ok(moved)
    }

    /// Whether the receiver took some of what waited.
    fn send_waiting(&mut self, context: &mut Context<'_>) -> Result<bool, Broken> {
        let mut moved = false;
        while let Some((mut bytes, mut held)) = self.waiting.take() {
            let room = self.room(bytes.len(), context)?;
            let (piece, its) = (bytes.split_to(room), held.split(room));
            let is_rest = bytes.is_empty();
            if !is_rest {
                self.waiting = Some((bytes, held));
            }
            if room == 0 {
                break;
            }
            self.send(piece.freeze(), its, is_rest)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Sends what was read, or puts it to what waits. Whether some of it was sent.
    fn take(&mut self, mut chunk: Bytes, context: &mut Context<'_>) -> Result<bool, Broken> {
        let mut held = self.terms.account.hold(chunk.len()).ok_or(Broken::NoRoom)?;
        if let Some((bytes, all)) = &mut self.waiting {
            bytes.extend_from_slice(&chunk);
            all.join(held);
            return Ok(false);
        }
        let mut moved = false;
        while !chunk.is_empty() {
            let room = self.room(chunk.len(), context)?;
            if room == 0 {
                self.waiting = Some((BytesMut::from(&chunk[..]), held));
                break;
            }
            let (piece, its) = (chunk.split_to(room), held.split(room));
            self.send(piece, its, chunk.is_empty())?;
            moved = true;
        }
        Ok(moved)
    }

    /// How many of `wanted` bytes can be sent now. If it is none, the context is woken when that may have changed.
    fn room(&mut self, wanted: usize, context: &mut Context<'_>) -> Result<usize, Broken> {
        if self.transit.pieces() >= limits::H2_SEND_PIECES {
            return Ok(0);
        }
        let wanted = wanted.min(limits::RELAY_BYTES);
        self.to.reserve_capacity(wanted);
        if self.to.capacity() > 0 {
            return Ok(self.to.capacity().min(wanted));
        }
        loop {
            match self.to.poll_capacity(context) {
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Ready(Some(Ok(room))) => return Ok(room.min(wanted)),
                Poll::Ready(Some(Err(_)) | None) => return Err(Broken::Sink),
                Poll::Pending => return Ok(0),
            }
        }
    }

    /// `is_rest`: all that was read goes with it.
    fn send(&mut self, bytes: Bytes, held: Held, is_rest: bool) -> Result<(), Broken> {
        let is_short = bytes.len() < limits::H2_COPY_BELOW_BYTES;
        let bytes = if is_short { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.ended = is_rest && self.from.is_end_stream();
        self.read_all |= self.ended;
        let piece = Piece::new(bytes, held, &self.transit);
        self.to.send_data(piece, self.ended).map_err(|_| Broken::Sink)
    }

    /// Ends the stream as its sender has, after the last of its data.
    async fn end(&mut self) -> Result<Option<Trailers>, Broken> {
        let trailers = poll_fn(|context| self.from.poll_trailers(context)).await.map_err(Broken::Source)?;
        let Some(fields) = trailers else {
            self.to.send_data(Piece::own(Bytes::new()), true).map_err(|_| Broken::Sink)?;
            return Ok(None);
        };
        let is_refused = self.terms.is_refused;
        if fields.keys().any(|name| is_refused(name.as_str().as_bytes())) {
            return Err(Broken::Trailers);
        }
        let held = self.terms.account.hold(cost(&fields)).ok_or(Broken::NoRoom)?;
        self.to.send_trailers(fields.clone()).map_err(|_| Broken::Sink)?;
        Ok(Some(Trailers { fields, _held: held }))
    }
}
