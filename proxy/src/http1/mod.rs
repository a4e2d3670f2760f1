//! HTTP/1.0 and 1.1: one request after the other, from the client's connection to its own one upstream.
//!
//! The proxy reads just enough to know where each message ends, refuses what could be read in two ways, and passes
//! everything else on byte for byte. So what the server receives is what was judged, fields keep their case and order,
//! and `100 Continue`, `103 Early Hints`, reason phrases, trailers and half-closed connections are the server's and the
//! client's business.
//!
//! A client is held to the letter of the protocol. A server is not: what it sends is put right
//! where it can be read in one way only ([`normal`], [`reply`]), so that a client reads the same as
//! the proxy, and refused where it cannot.

mod body;
mod exchange;
mod fields;
mod glimpse;
mod head;
mod normal;
mod reply;
mod response;
mod scan;

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use crate::gate::Judgement;
use crate::io::{self as own_io, close_after_answer, read_more, until_speaks_or_closes};
use crate::limits;
use crate::live::{Interrupt, Phase};
use crate::record::{Record, Running};
use crate::refusal::Refusal;
use crate::session::{End, Session};
use crate::upstream::Connect;
use body::Body;
use exchange::Exchange;
use head::RequestHead;
use scan::Scanner;

/// Serves a connection whose first bytes, in `inbox`, are not the HTTP/2 preface.
pub(crate) async fn serve<C: Connect>(session: &Session<C>, client: TcpStream, inbox: BytesMut) {
    let mut connection = Connection { session, client, upstream: None, inbox, client_ended: false };
    let current = RefCell::new(None);
    let end = tokio::select! {
        biased;
        interrupt = session.interrupted() => ended_by(session, interrupt, &current),
        () = forbidden(session, &current) => ended_by(session, Interrupt::Forbidden, &current),
        end = connection.serve(&current) => end,
    };
    connection.close(end).await;
}

/// The request under way: its head, to judge it again, and its record. Never borrowed over an `await`.
type Current<'a> = RefCell<Option<(RequestHead, Running<'a>)>>;

struct Connection<'a, C> {
    session: &'a Session<C>,
    client: TcpStream,
    upstream: Option<TcpStream>,
    /// What was read from the client and not used yet.
    inbox: BytesMut,
    /// The client has ended its side.
    client_ended: bool,
}

/// What comes after a request.
enum Next {
    Request,
    End(End),
}

impl<'a, C: Connect> Connection<'a, C> {
    async fn serve(&mut self, current: &Current<'a>) -> End {
        loop {
            let head = match self.next_head().await {
                Ok(Some(head)) => head,
                Ok(None) => return End::Clean,
                Err(Stop::Refused(refusal, head)) => return self.refuse_last(refusal, &head).await,
                Err(Stop::Gone) => return End::Reset,
            };
            let next = self.request(head, current).await;
            current.take();
            if let Next::End(end) = next {
                return end;
            }
        }
    }

    /// The next head; None: there will be none, and nothing is missing.
    async fn next_head(&mut self) -> Result<Option<RequestHead>, Stop> {
        let mut scanner = Scanner::default();
        let mut empty_lines = 0;
        loop {
            while self.inbox.starts_with(b"\r\n") && empty_lines < limits::LEADING_EMPTY_LINES {
                let _ = self.inbox.split_to(2);
                empty_lines += 1;
            }
            // A lone CR may be the first half of an empty line.
            if self.inbox[..] != b"\r"[..]
                && let Some(length) = scanner
                    .scan::<RequestHead>(&self.inbox)
                    .map_err(|refusal| Stop::Refused(refusal, self.inbox.split().freeze()))?
            {
                let raw = self.inbox.split_to(length).freeze();
                return RequestHead::parse(raw.clone())
                    .map(Some)
                    .map_err(|refusal| Stop::Refused(refusal, raw));
            }
            self.session.phase(if self.inbox.is_empty() { Phase::Idle } else { Phase::Head });
            if self.client_ended {
                return if self.inbox.is_empty() { Ok(None) } else { Err(Stop::Gone) };
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Reads from the client. False: the server has closed meanwhile, between two requests.
    async fn read(&mut self) -> Result<bool, Stop> {
        if self.inbox.is_empty() {
            // An idle connection holds no buffer.
            self.inbox = BytesMut::new();
        }
        let Self { client, upstream, inbox, .. } = self;
        let reading = async {
            client.readable().await?;
            read_more(client, inbox, limits::HEAD_READ_BYTES).await
        };
        let server_closes = async {
            match upstream {
                Some(upstream) => until_speaks_or_closes(upstream).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = reading => {
                self.client_ended = read.map_err(|_| Stop::Gone)? == 0;
                Ok(true)
            }
            () = server_closes => Ok(false),
        }
    }

    async fn request(&mut self, head: RequestHead, current: &Current<'a>) -> Next {
        let session = self.session;
        session.phase(Phase::Exchange);
        let judgement = session.gate.judge(&head.subject());
        let refusal = judgement.refusal;
        let forward = Forward::of(&head);
        let mut running = Running::new(&session.thread.common.records, record(session, &head, judgement));
        if let Some(refusal) = refusal {
            session.note_refusal(&mut running, refusal);
            return self.refuse(refusal, &head, running).await;
        }
        current.replace(Some((head, running)));
        let is_first = self.upstream.is_none();
        // One that the server has ended was sent nothing of this request: another is as good.
        if self.upstream.as_ref().is_some_and(is_spent) {
            self.upstream = None;
        }
        let is_reused = self.upstream.is_some();
        if self.upstream.is_none() {
            self.upstream = session.connect().await;
        }
        let Self { client, upstream: Some(upstream), inbox, .. } = self else {
            if is_first {
                return Next::End(self.answer_last(Refusal::Unreachable, current).await);
            }
            // As if the client had met the server's close itself: it dials again, perhaps another
            // server.
            note(current, |record| record.reason = Refusal::Unreachable.reason());
            return Next::End(End::Clean);
        };
        let body = Body::new(forward.framing);
        let exchange = Exchange { session, current, client, upstream, inbox, forward, is_reused };
        let outcome = exchange.run(body, self.client_ended).await;
        self.client_ended = outcome.client_ended;
        match outcome.result {
            Ok(true) if !(self.client_ended && self.inbox.is_empty()) => Next::Request,
            Ok(_) => Next::End(outcome.end),
            Err(refusal) => Next::End(self.answer_last(refusal, current).await),
        }
    }

    /// A refusal that the client may go on after.
    async fn refuse(&mut self, refusal: Refusal, head: &RequestHead, running: Running<'_>) -> Next {
        let keeps = refusal.keeps_connection()
            && head.keep_alive
            && !head.expects_continue
            && !self.session.is_draining()
            && self.may_discard(head.framing);
        let connection = match (keeps, head.is_http10) {
            (false, _) => Some("close"),
            (true, true) => Some("keep-alive"),
            (true, false) => None,
        };
        let answer = answer(refusal, head.is_head(), connection);
        let stall = self.session.timeouts().stall;
        if own_io::write_all(&mut self.client, &answer, stall).await.is_err() {
            return Next::End(End::Reset);
        }
        drop(running);
        if keeps && self.discard(Body::new(head.framing)).await {
            Next::Request
        } else {
            Next::End(End::Answered)
        }
    }

    /// Whether a body is short enough, as far as can be told now. (A client that is told of the
    /// close stops sending.)
    fn may_discard(&self, framing: body::Framing) -> bool {
        match framing {
            body::Framing::Length(length) => length <= limits::DISCARD_BYTES,
            _ => {
                let mut body = Body::new(framing);
                body.advance(&self.inbox).is_ok() && body.is_done()
            }
        }
    }

    /// Reads a body that nobody wants, so that the next request can be found. False: not worth it.
    async fn discard(&mut self, mut body: Body) -> bool {
        let mut left = limits::DISCARD_BYTES;
        loop {
            let Ok(taken) = body.advance(&self.inbox) else { return false };
            let _ = self.inbox.split_to(taken);
            left = left.saturating_sub(taken as u64);
            if body.is_done() {
                return true;
            }
            if left == 0 || self.client_ended || !matches!(self.read().await, Ok(true)) {
                return false;
            }
        }
    }

    /// Answers what is no request.
    async fn refuse_last(&mut self, refusal: Refusal, head: &[u8]) -> End {
        let session = self.session;
        let texts = glimpse::texts(head);
        let record = session.record("HTTP/1.1", texts, session.gate.refuse(refusal));
        let mut running = Running::new(&session.thread.common.records, record);
        session.note_refusal(&mut running, refusal);
        self.write_last(refusal, texts[0] == b"HEAD").await
    }

    /// Answers a request that never got to a response.
    async fn answer_last(&mut self, refusal: Refusal, current: &Current<'_>) -> End {
        let mut is_head = false;
        if let Some((head, running)) = &mut *current.borrow_mut() {
            is_head = head.is_head();
            self.session.note_refusal(running, refusal);
        }
        self.write_last(refusal, is_head).await
    }

    async fn write_last(&mut self, refusal: Refusal, is_head: bool) -> End {
        let answer = answer(refusal, is_head, Some("close"));
        match own_io::write_all(&mut self.client, &answer, self.session.timeouts().stall).await {
            Ok(()) => End::Answered,
            Err(_) => End::Reset,
        }
    }

    async fn close(self, end: End) {
        match end {
            End::Reset => {}
            End::Clean => self.session.end_both(self.client, self.upstream).await,
            End::Answered => {
                drop(self.upstream);
                let timeouts = self.session.timeouts();
                tokio::select! {
                    biased;
                    _ = self.session.live.interrupted() => {}
                    () = close_after_answer(self.client, timeouts.leave, timeouts.leave_pause) => {}
                }
            }
        }
    }
}

/// Why there is no next head.
enum Stop {
    /// And what was read of it.
    Refused(Refusal, Bytes),
    Gone,
}

/// What of a request its exchange needs to know.
#[derive(Clone, Debug)]
struct Forward {
    head: Bytes,
    framing: body::Framing,
    keep_alive: bool,
    is_head: bool,
    is_http10: bool,
    offers_upgrade: bool,
}

impl Forward {
    fn of(head: &RequestHead) -> Self {
        Self {
            head: head.forwarded.clone(),
            framing: head.framing,
            keep_alive: head.keep_alive,
            is_head: head.is_head(),
            is_http10: head.is_http10,
            offers_upgrade: head.offers_upgrade,
        }
    }
}

/// Until a new snapshot forbids the request under way.
async fn forbidden<C: Connect>(session: &Session<C>, current: &Current<'_>) {
    let mut changes = session.thread.changes.subscribe();
    loop {
        if let Some((head, running)) = &mut *current.borrow_mut() {
            let judgement = session.gate.judge(&head.subject());
            if judgement.refusal.is_some() {
                running.note(|record| record.judged(judgement));
                return;
            }
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// How a connection ends that is ended from outside.
fn ended_by<C: Connect>(session: &Session<C>, interrupt: Interrupt, current: &Current<'_>) -> End {
    session.count(interrupt);
    note(current, |record| record.reason = interrupt.reason());
    if session.may_end_cleanly(interrupt) { End::Clean } else { End::Reset }
}

fn note(current: &Current<'_>, change: impl FnOnce(&mut Record)) {
    if let Some((_, running)) = &mut *current.borrow_mut() {
        running.note(change);
    }
}

fn record<C: Connect>(session: &Session<C>, head: &RequestHead, judgement: Judgement) -> Record {
    session.record(head.protocol(), head.parts(), judgement)
}

/// Whether the server has ended its side, or spoken although it had nothing to say. Costs no system
/// call where it has not.
fn is_spent(upstream: &TcpStream) -> bool {
    !matches!(upstream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// A whole response; `connection`: what it says of the connection.
fn answer(refusal: Refusal, is_head: bool, connection: Option<&str>) -> Vec<u8> {
    let (status, phrase) = refusal.status();
    let message = refusal.message();
    let length = message.len() + 2;
    let connection = connection.map(|option| format!("connection: {option}\r\n")).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status} {phrase}\r\ncontent-length: {length}\r\ncontent-type: text/plain\r\n{connection}\r\n"
    );
    if is_head { head.into_bytes() } else { format!("{head}{message}\r\n").into_bytes() }
}
