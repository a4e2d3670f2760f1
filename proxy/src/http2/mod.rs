//! HTTP/2 with prior knowledge (RFC 9113 section 3.3), gRPC with it: one upstream connection for each of a client's,
//! one upstream stream for each of its streams.
//!
//! Built on `h2` itself and not on hyper's layer above it, because that adds fields of its own (`date`,
//! `content-length`) and keeps reset codes and interim responses to itself.

mod cancels;
mod exchange;
mod frames;
mod heads;
mod hpack;
mod inlet;
mod intake;
mod io;
mod piece;
mod relay;
mod slots;
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
use crate::record::Running;
use crate::refusal::Refusal;
use crate::session::{End, Session};
use crate::thread::Drain;
use crate::upstream::Connect;
use cancels::Cancels;
use intake::Intake;
use io::SharedStream;
use piece::Piece;
use slots::Slots;

/// What a client with prior knowledge sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket that is still at hand, for its options, while `h2` reads and writes it.
type Socket = Rc<RefCell<TcpStream>>;

/// Serves a connection whose first bytes, in `inbox`, begin with the preface.
pub(crate) async fn serve<C: Connect>(session: &Session<C>, client: TcpStream, inbox: BytesMut) {
    session.live.enter(Phase::Idle);
    let socket = Rc::new(RefCell::new(client));
    let connection = Connection::new(session);
    let io = SharedStream::client(socket.clone(), session.live.clone(), inbox, connection.intake.clone());
    let end = connection.run(io).await;
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
    /// Streams that are open on it.
    slots: Slots,
    /// The server wants no more.
    server_goes_away: Rc<Cell<bool>>,
    /// Moves bytes between the upstream socket and the upstream streams.
    driver: RefCell<Option<client::Connection<SharedStream, Piece>>>,
    /// No more streams on this connection: the server wants none, or somebody else serves new ones.
    goes_away: Cell<bool>,
    cancels: Cancels,
    intake: Rc<Intake>,
}

impl<'a, C: Connect> Connection<'a, C> {
    fn new(session: &'a Session<C>) -> Self {
        Self {
            session,
            account: session.thread.buffers(session.client.ip()),
            upstream: OnceCell::new(),
            failed_dials: Cell::new(0),
            upstream_socket: RefCell::new(None),
            slots: Slots::default(),
            server_goes_away: Rc::default(),
            driver: RefCell::new(None),
            goes_away: Cell::new(false),
            cancels: Cancels::new(),
            intake: Rc::default(),
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
                // Streams that the server has finished have all of it; the others learn of the end
                // where it cuts them off.
                () = self.drive_upstream() => self.goes_away.set(true),
                accepted = self.intake.next(&mut server) => match accepted {
                    Some(Ok((request, respond))) => {
                        self.session.live.enter(Phase::Exchange);
                        streams.borrow().push(stream::serve(self, request, respond));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, client = %self.session.client, "HTTP/2 connection broke");
                        if error.is_go_away() && !error.is_remote() {
                            self.note_broken();
                        }
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
            if self.cancels.are_a_flood() {
                self.cancels.forget();
                self.session.counters().too_many_cancelled.add();
                server.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
        };
        self.streams_ended(&streams);
        end
    }

    /// Records that the client has sent what no request could be found in.
    fn note_broken(&self) {
        let refusal = Refusal::Malformed("Broken HTTP/2 frames");
        let record = self.session.record("HTTP/2", [&[]; 3], self.session.gate.refuse(refusal));
        let mut running = Running::new(&self.session.thread.common.records, record);
        self.session.note_refusal(&mut running, refusal);
        running.note(|record| record.status = 0);
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

    /// Moves what the upstream connection carries, until the server wants no more streams on it, or
    /// it has ended.
    async fn drive_upstream(&self) {
        poll_fn(|context| {
            let mut driver = self.driver.borrow_mut();
            let Some(connection) = &mut *driver else { return Poll::Pending };
            if let Poll::Ready(ended) = Pin::new(connection).poll(context) {
                *driver = None;
                if let Err(error) = ended {
                    let destination = self.session.destination;
                    tracing::debug!(%error, %destination, "the upstream connection broke");
                }
                return Poll::Ready(());
            }
            if self.server_goes_away.get() && !self.goes_away.get() { Poll::Ready(()) } else { Poll::Pending }
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
        let io =
            SharedStream::server(socket.clone(), self.session.live.clone(), self.server_goes_away.clone());
        let (sender, driver) = client_builder().handshake(io).await.ok()?;
        self.upstream_socket.replace(Some(socket));
        self.driver.replace(Some(driver));
        Some(sender)
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
