//! A socket for `h2`.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Socket;
use super::frames::Frames;
use super::inlet::Inlet;
use super::intake::Intake;
use crate::limits;
use crate::live::{Live, Wait};

/// Reads what was read before, then the socket. The socket is closed when the last owner lets go of it; traffic either
/// way puts the connection's deadline off.
pub(super) struct SharedStream {
    socket: Socket,
    live: Rc<Live>,
    /// Bytes that `h2` got since there was nothing more to read.
    turn: usize,
    frames: Frames,
    /// A client's, whose heads have only so much time; and who says when nothing is read.
    inlet: Option<(Inlet, Rc<Intake>)>,
    /// A server's: told when it wants no more streams.
    goes_away: Option<Rc<Cell<bool>>>,
}

impl SharedStream {
    /// The client's, of which `early` was read before.
    pub(super) fn client(socket: Socket, live: Rc<Live>, early: BytesMut, intake: Rc<Intake>) -> Self {
        let inlet = Inlet::new(early.clone());
        let frames = Frames::of_client();
        let mut stream =
            Self { socket, live, turn: 0, frames, inlet: Some((inlet, intake)), goes_away: None };
        stream.note_frames(&early);
        stream
    }

    /// The server's; `goes_away` is set when it wants no more streams.
    pub(super) fn server(socket: Socket, live: Rc<Live>, goes_away: Rc<Cell<bool>>) -> Self {
        Self { socket, live, turn: 0, frames: Frames::of_server(), inlet: None, goes_away: Some(goes_away) }
    }

    fn with<T>(&mut self, use_it: impl FnOnce(Pin<&mut TcpStream>) -> T) -> T {
        use_it(Pin::new(&mut *self.socket.borrow_mut()))
    }

    fn poll_read_any(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some((inlet, intake)) = &mut self.inlet {
                let ready = inlet.ready(intake.faults());
                if !ready.is_empty() {
                    let length = ready.len().min(buffer.remaining());
                    buffer.put_slice(&ready.split_to(length));
                    return Poll::Ready(Ok(()));
                }
            }
            let before = buffer.filled().len();
            ready!(self.with(|socket| socket.poll_read(context, buffer)))?;
            self.live.touch();
            let new = &buffer.filled()[before..];
            let is_end = new.is_empty();
            self.note_frames(new);
            let Some((inlet, _)) = &mut self.inlet else { return Poll::Ready(Ok(())) };
            let passed = if inlet.is_empty() { inlet.pass(new) } else { 0 };
            inlet.raw().extend_from_slice(&new[passed..]);
            buffer.set_filled(before + passed);
            if passed > 0 || is_end {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn note_frames(&mut self, read: &[u8]) {
        let completed = self.frames.take(read);
        if let Some(goes_away) = &self.goes_away {
            goes_away.set(self.frames.goes_away());
            return;
        }
        if completed {
            self.live.waited(Wait::Head);
        }
        if self.frames.is_incomplete() {
            self.live.wait(Wait::Head);
        }
    }

    /// A peer that takes nothing has only so much time too.
    fn note_write<T>(&self, written: &Poll<T>) {
        let takes = if self.inlet.is_some() { Wait::ClientTakes } else { Wait::ServerTakes };
        if written.is_ready() {
            self.live.waited(takes);
            self.live.touch();
        } else {
            self.live.wait(takes);
        }
    }
}

impl AsyncRead for SharedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.inlet.is_none() {
            // No flow control holds heads back: those for a client that takes nothing stay in the server's socket.
            ready!(self.live.poll_waited(Wait::ClientTakes, context));
        }
        if self.inlet.as_ref().is_some_and(|(_, intake)| intake.holds_back()) {
            return Poll::Pending;
        }
        if self.turn >= limits::H2_TURN_BYTES {
            self.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = self.poll_read_any(context, buffer);
        let new = &buffer.filled()[before..];
        self.turn = if read.is_ready() { self.turn + new.len() } else { 0 };
        read
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.with(|socket| socket.poll_write(context, bytes));
        self.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.with(|socket| socket.poll_write_vectored(context, parts));
        self.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| socket.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| socket.poll_shutdown(context))
    }
}
