//! HTTP/2 with prior knowledge (RFC 9113 section 3.3), gRPC with it: one upstream connection for each of a client's,
//! one upstream stream for each of its streams.
//!
//! Built on `h2` itself and not on hyper's layer above it, because that adds fields of its own (`date`,
//! `content-length`) and keeps reset codes and interim responses to itself.

mod blocks;
mod exchange;
mod io;
mod piece;
mod relay;
mod stream;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::BytesMut;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use h2::Reason;
use h2::client::{self, SendRequest};
use h2::server;
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, watch};

use crate::buffers::Account;
use crate::limits;
use crate::live::{Interrupt, Phase};
use crate::session::{End, Session};
use crate::thread::Drain;
use crate::upstream::Connect;
use io::SharedStream;
use piece::Piece;

/// What a client with prior knowledge sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket that is still at hand, for its options, while `h2` reads and writes it.
type Socket = Rc<RefCell<TcpStream>>;

/// Serves a connection whose first bytes, in `inbox`, begin with the preface.
pub(crate) async fn serve<C: Connect>(session: &Session<C>, client: TcpStream, inbox: BytesMut) {
    session.live.enter(Phase::Opening);
    let socket = Rc::new(RefCell::new(client));
    let connection = Connection::new(session);
    let end = connection.run(SharedStream::client(socket.clone(), session.live.clone(), inbox)).await;
    if end != End::Reset {
        let upstream = connection.upstream_socket.take();
        drop(connection);
        let alone = |socket: Socket| Rc::into_inner(socket).map(RefCell::into_inner);
        if let Some(client) = alone(socket) {
            session.end_both(client, upstream.and_then(alone)).await;
        }
    }
}

/// One client's connection and the one to its server.
struct Connection<'a, C> {
    session: &'a Session<C>,
    /// What it has in memory, of both directions.
    account: Rc<Account>,
    upstream: OnceCell<SendRequest<Piece>>,
    /// So that a server which does not answer costs the streams that wait for it one time-out, not one each.
    failed_dials: Cell<u32>,
    upstream_socket: RefCell<Option<Socket>>,
    /// Moves bytes between the upstream socket and the upstream streams.
    driver: RefCell<Option<client::Connection<SharedStream, Piece>>>,
    /// No more streams on this connection: the server wants none, or somebody else serves new ones.
    goes_away: Cell<bool>,
    /// Streams that the client has cancelled, less those that ended well.
    cancelled: Cell<u32>,
}

impl<'a, C: Connect> Connection<'a, C> {
    fn new(session: &'a Session<C>) -> Self {
        Self {
            session,
            account: session.thread.buffers(session.client.ip()),
            upstream: OnceCell::new(),
            failed_dials: Cell::new(0),
            upstream_socket: RefCell::new(None),
            driver: RefCell::new(None),
            goes_away: Cell::new(false),
            cancelled: Cell::new(0),
        }
    }

    fn ended_by(&self, interrupt: Interrupt) -> End {
        self.session.count(interrupt);
        if self.session.may_end_cleanly(interrupt) { End::Clean } else { End::Reset }
    }

    async fn run(&self, io: SharedStream) -> End {
        let mut server = tokio::select! {
            biased;
            interrupt = self.session.interrupted() => return self.ended_by(interrupt),
            server = server_builder().handshake::<_, Piece>(io) => match server {
                Ok(server) => server,
                Err(_) => return End::Reset,
            },
        };
        let streams = RefCell::new(FuturesUnordered::new());
        let mut draining = self.session.thread.draining.subscribe();
        let mut told = false;
        let end = loop {
            let is_idle = streams.borrow().is_empty();
            tokio::select! {
                biased;
                interrupt = self.session.interrupted() => {
                    let end = self.ended_by(interrupt);
                    if end == End::Clean {
                        say_goodbye(&mut server);
                    }
                    break end;
                }
                () = one_ends(&streams) => self.streams_ended(&streams),
                ended = self.drive_upstream() => match ended {
                    // As the client would see it without us: the connection broke.
                    Err(_) => break End::Reset,
                    Ok(()) => self.goes_away.set(true),
                },
                accepted = server.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        self.session.live.enter(Phase::Exchange);
                        streams.borrow().push(stream::serve(self, request, respond));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, client = %self.session.client, "HTTP/2 connection broke");
                        break End::Reset;
                    }
                    None => break End::Clean,
                },
                // Once more, for what both sides have just sent: it is counted before another connection gets its turn.
                () = one_ends(&streams) => self.streams_ended(&streams),
                () = self.may_go(&mut draining, is_idle), if !told => {
                    self.goes_away.set(true);
                }
            }
            if self.goes_away.get() && !told {
                told = true;
                server.graceful_shutdown();
            }
            if self.cancelled.get() > limits::H2_CANCELLED_STREAMS {
                self.cancelled.set(0);
                self.session.counters().too_many_cancelled.add();
                server.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
        };
        self.streams_ended(&streams);
        end
    }

    /// Takes out the streams that have ended.
    fn streams_ended(&self, streams: &RefCell<FuturesUnordered<impl Future<Output = ()>>>) {
        let mut streams = streams.borrow_mut();
        while let Some(Some(())) = streams.next().now_or_never() {}
        if streams.is_empty() {
            self.session.live.enter(Phase::Idle);
        }
    }

    /// Until a hand-over wants this connection to end: at once if it is urgent, else when no stream was open for a
    /// while. Asked anew after every stream.
    async fn may_go(&self, draining: &mut watch::Receiver<Drain>, is_idle: bool) {
        loop {
            let drain = *draining.borrow_and_update();
            let idle_long_enough = async {
                match drain {
                    Drain::Soon => {}
                    Drain::Unnoticed if is_idle => {
                        tokio::time::sleep(self.session.timeouts().drain_idle).await
                    }
                    Drain::Unnoticed | Drain::No => std::future::pending().await,
                }
            };
            tokio::select! {
                () = idle_long_enough => return,
                changed = draining.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Ends when the upstream connection does.
    async fn drive_upstream(&self) -> Result<(), h2::Error> {
        poll_fn(|context| {
            let mut driver = self.driver.borrow_mut();
            let Some(connection) = &mut *driver else { return Poll::Pending };
            let ended = std::task::ready!(Pin::new(connection).poll(context));
            *driver = None;
            Poll::Ready(ended)
        })
        .await
    }

    /// The connection to the server, made when the first request that is allowed needs it.
    async fn upstream(&self) -> Option<SendRequest<Piece>> {
        let failed = self.failed_dials.get();
        let dialled = self.upstream.get_or_try_init(|| async {
            // One that failed while this stream waited for it has failed for this stream too.
            if self.failed_dials.get() != failed {
                return Err(());
            }
            self.dial().await.ok_or_else(|| self.failed_dials.set(failed.wrapping_add(1)))
        });
        dialled.await.ok().cloned()
    }

    async fn dial(&self) -> Option<SendRequest<Piece>> {
        let socket = Rc::new(RefCell::new(self.session.connect().await?));
        let io = SharedStream::server(socket.clone(), self.session.live.clone());
        let (sender, driver) = client_builder().handshake(io).await.ok()?;
        self.upstream_socket.replace(Some(socket));
        self.driver.replace(Some(driver));
        Some(sender)
    }

    fn note_cancelled(&self) {
        self.cancelled.set(self.cancelled.get() + 1);
    }

    fn note_completed(&self) {
        self.cancelled.set(self.cancelled.get().saturating_sub(1));
    }
}

/// Until one of the streams ends.
async fn one_ends(streams: &RefCell<FuturesUnordered<impl Future<Output = ()>>>) {
    poll_fn(|context| match streams.borrow_mut().poll_next_unpin(context) {
        Poll::Ready(Some(())) => Poll::Ready(()),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    })
    .await;
}

/// Tells a client that no more is coming, so that a request which crosses this is not taken for a lost one. One that takes
/// nothing is not waited for.
fn say_goodbye(server: &mut server::Connection<SharedStream, Piece>) {
    server.abrupt_shutdown(Reason::NO_ERROR);
    let _ = poll_fn(|context| server.poll_closed(context)).now_or_never();
}

fn server_builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(limits::H2_STREAMS)
        .max_header_list_size(limits::H2_HEADER_LIST_BYTES)
        .initial_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(limits::H2_SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS)
        .max_concurrent_reset_streams(limits::H2_RESET_STREAMS)
        .data_frame_budget(limits::H2_SMALL_FRAMES_BUDGET)
        .max_local_error_reset_streams(Some(limits::H2_LOCAL_ERROR_RESETS));
    builder
}

fn client_builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .max_header_list_size(limits::H2_HEADER_LIST_BYTES)
        .initial_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(limits::H2_SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(limits::H2_RESET_STREAMS)
        .data_frame_budget(limits::H2_SMALL_FRAMES_BUDGET)
        .max_local_error_reset_streams(Some(limits::H2_LOCAL_ERROR_RESETS));
    builder
}
