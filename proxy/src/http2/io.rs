//! A socket for `h2`.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Socket;
use crate::thread::Live;

/// Reads what was read before, then the socket. The socket is closed when the last owner lets go of it; traffic either
/// way puts the connection's deadline off.
pub(super) struct SharedStream {
    socket: Socket,
    live: Rc<Live>,
    early: BytesMut,
}

impl SharedStream {
    pub(super) fn new(socket: Socket, live: Rc<Live>, early: BytesMut) -> Self {
        Self { socket, live, early }
    }

    fn with<T>(&mut self, use_it: impl FnOnce(Pin<&mut TcpStream>) -> T) -> T {
        use_it(Pin::new(&mut *self.socket.borrow_mut()))
    }
}

impl AsyncRead for SharedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
}

impl AsyncWrite for SharedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.with(|socket| socket.poll_write(context, bytes));
        if written.is_ready() {
            self.live.touch();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.with(|socket| socket.poll_write_vectored(context, parts));
        if written.is_ready() {
            self.live.touch();
        }
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
