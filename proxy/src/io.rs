//! Reading and writing with limits.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::poll;
use std::pin::pin;
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits;
use crate::upstream;

/// Writes everything. Only a peer that does not take it at once costs a timer.
pub(crate) async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    stall: Duration,
) -> io::Result<()> {
    let mut write = pin!(writer.write_all(bytes));
    match poll!(&mut write) {
        Poll::Ready(done) => done,
        Poll::Pending => tokio::time::timeout(stall, write).await.map_err(|_| io::ErrorKind::TimedOut)?,
    }
}

/// Writes both parts, in one packet if they fit.
pub(crate) async fn write_both(
    writer: &mut (impl AsyncWrite + Unpin),
    first: &[u8],
    second: &[u8],
    stall: Duration,
) -> io::Result<()> {
    if second.is_empty() {
        return write_all(writer, first, stall).await;
    }
    let mut both = Buf::chain(first, second);
    let mut write = pin!(writer.write_all_buf(&mut both));
    match poll!(&mut write) {
        Poll::Ready(done) => done,
        Poll::Pending => tokio::time::timeout(stall, write).await.map_err(|_| io::ErrorKind::TimedOut)?,
    }
}

/// Reads what is there, at most about `room` bytes. 0: the peer has ended its side.
pub(crate) async fn read_more(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    room: usize,
) -> io::Result<usize> {
    if buffer.capacity() - buffer.len() < room / 2 {
        buffer.reserve(room);
    }
    reader.read_buf(buffer).await
}

/// Until the peer ends its side, fails, or sends something although it has nothing to say.
pub(crate) async fn until_speaks_or_closes(reader: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    // Whatever comes out of it, the connection has no use any more.
    let _ = reader.read(&mut byte).await;
}

/// Closes after a last answer: ends our side, then takes what the client still sends, so that
/// unread bytes do not turn the close into a reset that overtakes the answer. Until `limit` has
/// passed, or nothing has come for `pause`.
pub(crate) async fn close_after_answer(mut stream: TcpStream, limit: Duration, pause: Duration) {
    upstream::end_cleanly(&stream);
    let discard = async {
        stream.shutdown().await?;
        let mut scratch = BytesMut::with_capacity(limits::RELAY_BYTES);
        loop {
            scratch.clear();
            let read = read_more(&mut stream, &mut scratch, limits::RELAY_BYTES);
            if tokio::time::timeout(pause, read).await.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
                return io::Result::Ok(());
            }
        }
    };
    // Nobody is left to be told.
    let _ = tokio::time::timeout(limit, discard).await;
}

/// Ends our side towards a server that has had everything, then waits until the server ends its own: only then is the
/// client's port free towards it.
pub(crate) async fn until_server_ends(stream: &mut TcpStream, limit: Duration) {
    let ends = async {
        stream.shutdown().await?;
        let mut scratch = BytesMut::with_capacity(limits::HEAD_READ_BYTES);
        while read_more(stream, &mut scratch, limits::HEAD_READ_BYTES).await? > 0 {
            scratch.clear();
        }
        io::Result::Ok(())
    };
    // A server that goes on after the limit goes on with the kernel.
    let _ = tokio::time::timeout(limit, ends).await;
}
