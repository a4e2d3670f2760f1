//! A socket for `h2`.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Socket;
use super::blocks::HeaderBlocks;
use crate::limits;
use crate::live::{Live, Wait};

/// Reads what was read before, then the socket. The socket is closed when the last owner lets go of it; traffic either
/// way puts the connection's deadline off.
pub(super) struct SharedStream {
    socket: Socket,
    live: Rc<Live>,
    early: BytesMut,
    /// Bytes read since there was nothing more to read.
    turn: usize,
    /// A client's: its heads have only so much time.
    blocks: Option<HeaderBlocks>,
}

impl SharedStream {
    /// The client's, of which `early` was read before.
    pub(super) fn client(socket: Socket, live: Rc<Live>, early: BytesMut) -> Self {
        Self { socket, live, early, turn: 0, blocks: Some(HeaderBlocks::new()) }
    }

    pub(super) fn server(socket: Socket, live: Rc<Live>) -> Self {
        Self { socket, live, early: BytesMut::new(), turn: 0, blocks: None }
    }

    fn with<T>(&mut self, use_it: impl FnOnce(Pin<&mut TcpStream>) -> T) -> T {
        use_it(Pin::new(&mut *self.socket.borrow_mut()))
    }

    fn poll_read_any(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.has_remaining() {
            let length = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let read = self.with(|socket| socket.poll_read(context, buffer));
        if read.is_ready() {
            self.live.touch();
        }
        read
    }

    fn note_heads(&mut self, read: &[u8]) {
        let Some(blocks) = &mut self.blocks else { return };
        if blocks.take(read) {
            self.live.waited(Wait::Head);
        }
        if blocks.is_incomplete() {
            self.live.wait(Wait::Head);
        }
    }

    /// A peer that takes nothing has only so much time too.
    fn note_write<T>(&self, written: &Poll<T>) {
        let takes = if self.blocks.is_some() { Wait::ClientTakes } else { Wait::ServerTakes };
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
        if self.blocks.is_none() {
            // No flow control holds heads back: those for a client that takes nothing stay in the server's socket.
            ready!(self.live.poll_waited(Wait::ClientTakes, context));
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
        self.note_heads(new);
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
