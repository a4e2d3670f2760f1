//! One request and its response, both ways at once.

use std::cell::Cell;
use std::convert::Infallible;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;

use super::body::Body;
use super::normal::Fault;
use super::reply::ReplyBody;
use super::response::{Asked, ResponseHead};
use super::scan::Scanner;
use super::{Current, Forward, note};
use crate::io::{read_more, until_speaks_or_closes, write_all, write_both};
use crate::limits;
use crate::live::Phase;
use crate::refusal::Refusal;
use crate::session::{End, Session};

/// A request that is allowed, on its way.
pub(super) struct Exchange<'a, 'r, C> {
    pub(super) session: &'a Session<C>,
    pub(super) current: &'a Current<'r>,
    pub(super) client: &'a mut TcpStream,
    pub(super) upstream: &'a mut TcpStream,
    pub(super) inbox: &'a mut BytesMut,
    pub(super) forward: Forward,
    /// The upstream connection has served a request before.
    pub(super) is_reused: bool,
}

/// How it went.
pub(super) struct Outcome {
    /// True: the connections are good for another request. False: they end as `end` says.
    /// A refusal: no byte of a response was sent, and this is to be the answer.
    pub(super) result: Result<bool, Refusal>,
    pub(super) end: End,
    pub(super) client_ended: bool,
}

/// What both directions of an exchange tell each other.
#[derive(Default)]
struct Progress {
    request_done: Cell<bool>,
    request_done_now: Notify,
    /// Bytes of the response, not only of interim ones, may have been sent: too late for an answer
    /// of ours.
    response_begun: Cell<bool>,
    client_ended: Cell<bool>,
}

/// Why an exchange cannot go on.
enum Broken {
    /// The client sent something that must not be forwarded.
    Malformed(Refusal),
    /// The client is gone, or does not take the response.
    Client,
    /// The server closed before the first byte of its response.
    NoResponse,
    /// The server's response ended too early.
    CutOff,
    /// It cannot be read.
    Invalid(Fault),
}

/// How a response ended.
enum Response {
    /// Complete. True: the server goes on.
    Complete(bool),
    /// Both sides have left HTTP; what the server has already sent of the new protocol.
    Switched(BytesMut),
}

impl<C> Exchange<'_, '_, C> {
    pub(super) async fn run(self, body: Body, client_ended: bool) -> Outcome {
        let Self { session, current, client, upstream, inbox, forward, is_reused } = self;
        let progress = Progress::default();
        progress.client_ended.set(client_ended);
        let result = {
            let (mut from_client, to_client) = client.split();
            let (from_upstream, mut to_upstream) = upstream.split();
            let request = Request { session, current, inbox: &mut *inbox, body, progress: &progress };
            let response = Reply { session, current, forward: &forward, progress: &progress };
            let mut both = Both { from_client: &mut from_client, to_upstream: &mut to_upstream };
            exchange(request, response, &mut both, &forward, from_upstream, to_client).await
        };
        let client_ended = progress.client_ended.get();
        let outcome = |result, end| Outcome { result, end, client_ended };
        match result {
            Ok(Response::Complete(server_goes_on)) => {
                note(current, |record| record.reason = "forwarded");
                let request_done = progress.request_done.get();
                let goes_on = server_goes_on && forward.keep_alive && request_done;
                let nothing_unread = request_done && inbox.is_empty();
                outcome(Ok(goes_on), if nothing_unread || goes_on { End::Clean } else { End::Answered })
            }
            Ok(Response::Switched(early)) => {
                let end = tunnel(session, client, upstream, inbox, early).await;
                if end == End::Clean {
                    note(current, |record| record.reason = "forwarded");
                }
                outcome(Ok(false), end)
            }
            Err(broken) => {
                let consequence = broken.consequence(progress.response_begun.get(), is_reused);
                let Consequence { reason, detail, answer, end } = consequence;
                note(current, |record| (record.reason, record.detail) = (reason, detail));
                outcome(answer.map_or(Ok(false), Err), end)
            }
        }
    }
}

/// What follows when an exchange cannot go on.
struct Consequence {
    /// For the record.
    reason: &'static str,
    detail: &'static str,
    /// If there can be one.
    answer: Option<Refusal>,
    end: End,
}

impl Broken {
    fn consequence(self, response_begun: bool, is_reused: bool) -> Consequence {
        let refusal = match self {
            Self::Client => {
                return Consequence { reason: "client_gone", detail: "", answer: None, end: End::Reset };
            }
            // As if the client had met the server's close itself: it knows that its request may not have arrived.
            Self::NoResponse if is_reused => {
                let reason = Refusal::BadGateway.reason();
                return Consequence { reason, detail: "", answer: None, end: End::Clean };
            }
            Self::Malformed(refusal) => refusal,
            Self::NoResponse | Self::CutOff => Refusal::BadGateway,
            Self::Invalid(fault) => Refusal::BadResponse(fault),
        };
        let (reason, detail) = (refusal.reason(), refusal.detail());
        Consequence { reason, detail, answer: (!response_begun).then_some(refusal), end: End::Reset }
    }
}

struct Both<'a, 'b> {
    from_client: &'a mut ReadHalf<'b>,
    to_upstream: &'a mut WriteHalf<'b>,
}

async fn exchange<C>(
    request: Request<'_, '_, C>,
    reply: Reply<'_, '_, C>,
    ends: &mut Both<'_, '_>,
    forward: &Forward,
    mut from_upstream: ReadHalf<'_>,
    mut to_client: WriteHalf<'_>,
) -> Result<Response, Broken> {
    let progress = reply.progress;
    let sending = request.send(forward, ends.from_client, ends.to_upstream);
    tokio::pin!(sending);
    let response = tokio::select! {
        biased;
        broken = &mut sending => return Err(broken_of(broken)),
        response = reply.relay(&mut from_upstream, &mut to_client) => response?,
    };
    // A server may answer before it has the whole request. If both go on afterwards, the rest of it must get through.
    let goes_on = matches!(response, Response::Complete(true)) && forward.keep_alive;
    while goes_on && !progress.request_done.get() {
        tokio::select! {
            biased;
            broken = &mut sending => return Err(broken_of(broken)),
            () = progress.request_done_now.notified() => {}
            () = until_speaks_or_closes(&mut from_upstream) => break,
        }
    }
    Ok(response)
}

fn broken_of(result: Result<Infallible, Broken>) -> Broken {
    match result {
        Err(broken) => broken,
        Ok(never) => match never {},
    }
}

/// From the client to the server.
struct Request<'a, 'r, C> {
    session: &'a Session<C>,
    current: &'a Current<'r>,
    inbox: &'a mut BytesMut,
    body: Body,
    progress: &'a Progress,
}

impl<C> Request<'_, '_, C> {
    /// Sends head and body, then watches the client. Ends only if the exchange cannot go on.
    async fn send(
        mut self,
        forward: &Forward,
        from_client: &mut ReadHalf<'_>,
        to_upstream: &mut WriteHalf<'_>,
    ) -> Result<Infallible, Broken> {
        let stall = self.session.timeouts().stall;
        // What came with the head is checked before the head is sent: most malformed bodies never reach a server.
        let mut ready = self.body.advance(self.inbox).map_err(Broken::Malformed)?;
        let mut written = write_both(to_upstream, &forward.head, &self.inbox[..ready], stall).await;
        // One that the server does not take may have taken a part.
        if !written.as_ref().is_err_and(is_gone) {
            self.session.counters().forwarded.add();
            note(self.current, |record| record.sent = true);
        }
        loop {
            let _ = self.inbox.split_to(ready);
            if written.is_err() {
                // The server does not take the rest; perhaps it has answered already. Its side tells.
                return std::future::pending().await;
            }
            if self.body.is_done() {
                break;
            }
            self.session.phase(Phase::Exchange);
            match read_more(from_client, self.inbox, limits::RELAY_BYTES).await {
                Ok(0) | Err(_) => return Err(Broken::Client),
                Ok(_) => {}
            }
            ready = self.body.advance(self.inbox).map_err(Broken::Malformed)?;
            written = write_all(to_upstream, &self.inbox[..ready], stall).await;
        }
        self.progress.request_done.set(true);
        self.progress.request_done_now.notify_one();
        self.watch_client(forward, from_client, to_upstream).await
    }

    /// The request is sent. If the client ends its side, so does ours; if it goes away, the exchange is over.
    async fn watch_client(
        self,
        forward: &Forward,
        from_client: &mut ReadHalf<'_>,
        to_upstream: &mut WriteHalf<'_>,
    ) -> Result<Infallible, Broken> {
        while !self.progress.client_ended.get() {
            if self.inbox.len() >= limits::RELAY_BYTES {
                return std::future::pending().await;
            }
            // Bytes of another protocol must not be read ahead: they belong to it only once the server agrees.
            let read = if forward.offers_upgrade {
                from_client.peek(&mut [0]).await
            } else {
                read_more(from_client, self.inbox, limits::HEAD_READ_BYTES).await
            };
            match read {
                Ok(0) => self.progress.client_ended.set(true),
                Ok(_) if forward.offers_upgrade => return std::future::pending().await,
                Ok(_) => {}
                Err(_) => return Err(Broken::Client),
            }
        }
        if self.inbox.is_empty() {
            // Fails only if the server is gone, which its side tells.
            let _ = to_upstream.shutdown().await;
        }
        std::future::pending().await
    }
}

/// From the server to the client.
struct Reply<'a, 'r, C> {
    session: &'a Session<C>,
    current: &'a Current<'r>,
    forward: &'a Forward,
    progress: &'a Progress,
}

impl<C> Reply<'_, '_, C> {
    async fn relay(
        &self,
        from_upstream: &mut ReadHalf<'_>,
        to_client: &mut WriteHalf<'_>,
    ) -> Result<Response, Broken> {
        let mut buffer = BytesMut::with_capacity(limits::RELAY_BYTES);
        let stall = self.session.timeouts().stall;
        let mut heard = false;
        loop {
            let head = self.head(from_upstream, &mut buffer, heard).await?;
            heard = true;
            if head.switches_protocols() {
                if !self.forward.offers_upgrade {
                    return Err(Broken::Invalid("The server switches to a protocol that was not offered"));
                }
                self.begin(&head);
                write_all(to_client, &head.forwarded, stall).await.map_err(|_| Broken::Client)?;
                return Ok(Response::Switched(buffer));
            }
            if !head.is_informational() {
                return self.body(head, buffer, from_upstream, to_client).await;
            }
            // HTTP/1.0 knows no interim responses (RFC 9110 section 15.2).
            if !self.forward.is_http10 {
                write_all(to_client, &head.forwarded, stall).await.map_err(|_| Broken::Client)?;
            }
        }
    }

    /// From here on an answer of ours comes too late.
    fn begin(&self, head: &ResponseHead) {
        self.progress.response_begun.set(true);
        note(self.current, |record| record.status = head.status);
    }

    /// The next head; `heard`: the server has sent an interim one before.
    async fn head(
        &self,
        from_upstream: &mut ReadHalf<'_>,
        buffer: &mut BytesMut,
        heard: bool,
    ) -> Result<ResponseHead, Broken> {
        let mut scanner = Scanner::default();
        let mut empty_lines = 0;
        loop {
            while empty_lines < limits::LEADING_EMPTY_LINES && drop_empty_line(buffer) {
                empty_lines += 1;
            }
            // A lone CR may be the first half of an empty line.
            if buffer[..] != b"\r"[..]
                && let Some(length) =
                    scanner.scan::<ResponseHead>(buffer).map_err(|error| Broken::Invalid(error.message()))?
            {
                let raw = buffer.split_to(length).freeze();
                return ResponseHead::parse(raw, scanner.has_bare_lf(), self.asked())
                    .map_err(Broken::Invalid);
            }
            match read_more(from_upstream, buffer, limits::RELAY_BYTES).await {
                Ok(0) | Err(_) if buffer.is_empty() && !heard => return Err(Broken::NoResponse),
                Ok(0) | Err(_) => return Err(Broken::CutOff),
                Ok(_) => self.session.phase(Phase::Exchange),
            }
        }
    }

    fn asked(&self) -> Asked {
        Asked {
            is_head: self.forward.is_head,
            is_http10: self.forward.is_http10,
            close_after: self.closes_after(),
        }
    }

    /// On hand-over a kept-alive connection ends with its next response, and says so: that is the one moment at which
    /// no client can have another request under way.
    fn closes_after(&self) -> bool {
        self.session.is_draining() && self.forward.keep_alive
    }

    async fn body(
        &self,
        head: ResponseHead,
        mut buffer: BytesMut,
        from_upstream: &mut ReadHalf<'_>,
        to_client: &mut WriteHalf<'_>,
    ) -> Result<Response, Broken> {
        let stall = self.session.timeouts().stall;
        let mut body = ReplyBody::new(head.framing);
        // What came with the head is checked before the head is sent: there can be an answer of
        // ours until then.
        let mut passed = body.advance(&buffer).map_err(Broken::Invalid)?;
        self.begin(&head);
        let first = passed.bytes(&buffer);
        write_both(to_client, &head.forwarded, first, stall).await.map_err(|_| Broken::Client)?;
        loop {
            let _ = buffer.split_to(passed.taken);
            if body.is_done() {
                // What follows a response belongs to no request: the server is confused.
                return Ok(Response::Complete(head.keep_alive && buffer.is_empty()));
            }
            self.session.phase(Phase::Exchange);
            match read_more(from_upstream, &mut buffer, limits::RELAY_BYTES).await {
                Ok(0) => {
                    let rest = body.end().ok_or(Broken::CutOff)?;
                    write_all(to_client, &rest, stall).await.map_err(|_| Broken::Client)?;
                    return Ok(Response::Complete(false));
                }
                Err(_) => return Err(Broken::CutOff),
                Ok(_) => {}
            }
            passed = body.advance(&buffer).map_err(Broken::Invalid)?;
            write_all(to_client, passed.bytes(&buffer), stall).await.map_err(|_| Broken::Client)?;
        }
    }
}

/// The connection was gone before anything could be written to it.
fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// An empty line in front of a status line belongs to what was before. Whether there was one.
fn drop_empty_line(buffer: &mut BytesMut) -> bool {
    let length = [&b"\r\n"[..], b"\n"].iter().find(|line| buffer.starts_with(line)).map(|line| line.len());
    length.is_some_and(|length| !buffer.split_to(length).is_empty())
}

/// After `101 Switching Protocols`: bytes both ways, each direction ending on its own.
async fn tunnel<C>(
    session: &Session<C>,
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    inbox: &mut BytesMut,
    early: BytesMut,
) -> End {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_upstream, mut to_upstream) = upstream.split();
    let up = pass(session, inbox.split(), &mut from_client, &mut to_upstream);
    let down = pass(session, early, &mut from_upstream, &mut to_client);
    match tokio::try_join!(up, down) {
        Ok(_) => End::Clean,
        Err(_) => End::Reset,
    }
}

async fn pass<C>(
    session: &Session<C>,
    mut buffer: BytesMut,
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
) -> std::io::Result<()> {
    loop {
        write_all(to, &buffer, session.timeouts().stall).await?;
        buffer.clear();
        session.phase(Phase::Exchange);
        if read_more(from, &mut buffer, limits::RELAY_BYTES).await? == 0 {
            return to.shutdown().await;
        }
    }
}
