//! Every limit of the proxy, each with its reason. Hitting one refuses or ends something, and is counted.

use std::time::Duration;

/// Connections waiting to be accepted, per listener. The kernel caps it at `net.core.somaxconn` (4096 by default);
/// a killed worker's queue of some 100 ms at 10,000 connections a second fits.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Connections that one thread serves at a time: two descriptors and some 10 kB each, so 200 MB for a thread that is
/// full. One more is reset at once, which its client sees; waiting in the queue would look like a dead server.
pub const CONNECTIONS_PER_THREAD: usize = 20_000;

/// How many of a thread's connections one client may have: a pod that opens all it can must leave room for the others
/// of its node, and a gateway that carries most of the node's traffic must still fit.
pub const fn client_share(connections: usize) -> usize {
    connections - connections / 4
}

/// Descriptors of a worker that are not for connections: listeners, runtimes, files, the agent.
pub const OTHER_DESCRIPTORS: u64 = 1024;

/// Bytes of a request or response head. Envoy's default is 60 KiB, nginx's 4 x 8 KiB.
pub const HEAD_BYTES: usize = 64 * 1024;

/// Fields of a head. Envoy's default is 100; nginx counts only their bytes. 64 bytes each, if the
/// head is full.
pub const HEAD_FIELDS: usize = 1000;

/// Fields that `Connection` may name: each is compared with every field of the head. Real heads name one or two.
pub const CONNECTION_OPTIONS: usize = 16;

/// Empty lines in front of a request line that are skipped, as RFC 9112 section 2.2 asks for (at least one).
pub const LEADING_EMPTY_LINES: usize = 4;

/// Bytes of chunk extensions of one body, all chunks together: nobody uses them, floods do.
pub const CHUNK_EXTENSION_BYTES: usize = 16 * 1024;

/// Bytes of a trailer section.
pub const TRAILER_BYTES: usize = 16 * 1024;

/// Read from one side before it is written to the other; also what is read ahead of a client that pipelines.
pub const RELAY_BYTES: usize = 16 * 1024;

/// What is read at once while a head is awaited: most heads fit.
pub const HEAD_READ_BYTES: usize = 4 * 1024;

/// Body bytes of a refused request that are read and thrown away to keep its connection; a longer body closes it.
pub const DISCARD_BYTES: u64 = 256 * 1024;

/// Size of an HTTP/2 header list that `h2` takes, decoded; it counts 32 bytes more for each field
/// (RFC 9113 section 6.5.2). More than our own limits, so that what is above these has an answer
/// and a record of ours.
pub const H2_HEADER_LIST_BYTES: u32 = 2 * (HEAD_BYTES + 32 * HEAD_FIELDS) as u32;

/// Frames that a header block may be in: the largest fills twelve, and empty ones are a flood
/// (CVE-2024-27316).
pub const H2_HEAD_FRAMES: usize = 64;

/// What a stream takes in memory beside its head and its body: its place in `h2`, twice, and the
/// state of its relay. No number of streams is a limit of its own: Envoy's default was none for
/// long, and a client that keeps to one lets further calls hang.
pub const H2_STREAM_COST_BYTES: usize = 8 * 1024;

/// Flow-control window of an HTTP/2 stream, in each direction: what one stream may have in memory, since its sender is
/// given a byte back only when the receiver's socket has taken it. 5 Gbit/s at 0.2 ms. Half of it costs 1.4 times the CPU
/// for each byte of a large body, twice as much saves a fifth (measured without optimisation).
pub const H2_STREAM_WINDOW_BYTES: u32 = 128 * 1024;

/// The same for all streams of a connection: three whose receivers take nothing do not hold up the others.
pub const H2_CONNECTION_WINDOW_BYTES: u32 = 4 * H2_STREAM_WINDOW_BYTES;

/// What is read of a socket in one turn: it is accounted for, and sent on, before more comes.
pub const H2_TURN_BYTES: usize = H2_CONNECTION_WINDOW_BYTES as usize / 2;

/// Bytes of a stream that `h2` may have and the socket has not taken.
pub const H2_SEND_BUFFER_BYTES: usize = H2_STREAM_WINDOW_BYTES as usize;

/// Pieces that these bytes may be in: each costs some 300 bytes of its own. Smaller ones are put together meanwhile.
pub const H2_SEND_PIECES: usize = 16;

/// A shorter piece is copied out of the buffer of some 16 KiB that it was read into, and that it would keep in memory.
pub const H2_COPY_BELOW_BYTES: usize = 4 * 1024;

/// Bytes of the requests under way on an HTTP/2 connection without their bodies: 2,000 of them with
/// heads of 8 KiB (nginx: 128 with 32 KiB; Envoy: 1024 with 60 KiB, but no room for all
/// connections).
pub const H2_HEADS_BYTES: usize = 32 * 1024 * 1024;

/// Bytes of an HTTP/2 connection in memory: heads, and one window for each direction.
pub const H2_CONNECTION_BYTES: usize = H2_HEADS_BYTES + 2 * H2_CONNECTION_WINDOW_BYTES as usize;

/// What a field of a head costs beside its name and value: its place in a table, two allocations.
pub const FIELD_COST_BYTES: usize = 128;

/// Interim responses that are passed on for one request: no flow control holds them back. Real ones have one or two.
pub const H2_INTERIM_RESPONSES: usize = 16;

/// Bytes of requests and responses of HTTP/2 that a worker has in memory, in equal parts for its threads. Beside it stand
/// the connections themselves. Peers that read need next to none of it: at 10 Gbit/s it is what passes in 0.2 s.
pub const BUFFERED_BYTES: usize = 256 * 1024 * 1024;

/// The least that a thread has of it, so that large machines have more: 16 connections with all that they may have.
pub const BUFFERED_BYTES_PER_THREAD: usize = 32 * 1024 * 1024;

/// What each of so many threads has of it.
pub fn buffered_bytes(threads: usize) -> usize {
    (BUFFERED_BYTES / threads.max(1)).max(BUFFERED_BYTES_PER_THREAD)
}

/// How many of a thread's bytes one client may have, if the others have left it that much. One that has them all, all of them
/// stuck, leaves the others what they need, new requests included.
pub const fn buffered_share(bytes: usize) -> usize {
    bytes / 2
}

/// How many of a thread's or a client's bytes there may be when a request begins; the rest is for those under way.
pub const fn buffered_for_new(bytes: usize) -> usize {
    bytes - bytes / 4
}

/// What DATA frames of less than 256 bytes may lack of that while they wait in `h2` for their stream's relay, all streams
/// together: 33,000 frames of one byte, some 5 MB until the relays' next turn, or what two streams' windows hold in messages of
/// gRPC. `h2` ends the connection beyond it; its default is 1,000 frames for our window, which one read of the socket gives.
pub const H2_SMALL_FRAMES_BUDGET: usize = 8 * 1024 * 1024;

/// A stream that lived this long before its client cancelled it is no part of a flood.
pub const H2_YOUNG_STREAM: Duration = Duration::from_secs(1);

/// Streams that were reset and are remembered for a while, since frames of the other side may have
/// crossed the reset: some 500 bytes each. A frame of a stream that is forgotten counts as an error
/// of that side, and ends the connection in the end.
pub const H2_RESET_STREAMS: usize = 4096;

/// Streams that a client may open and reset before they were looked at (CVE-2023-44487): what one
/// turn reads has room for hardly more, and each counts as cancelled too. The h2 crate's default of
/// 20 is less than one burst of gRPC deadlines.
pub const H2_PENDING_RESETS: usize = 2 * H2_CANCELLED_STREAMS as usize;

/// Streams that we reset because of a client's errors before its connection is closed
/// (CVE-2025-8671); the h2 crate's default. A correct client causes none.
pub const H2_LOCAL_ERROR_RESETS: usize = 1024;

/// Young streams cancelled by the client in excess of those that ended well, and of those that time
/// forgives, before its connection is closed. Each has cost the server a request. Envoy looks after
/// 500; calls with short deadlines to a server that is slow for some seconds are more than that.
pub const H2_CANCELLED_STREAMS: u32 = 2048;

/// How many of them a second of time forgives: 1 % of a core.
pub const H2_CANCELLED_STREAMS_PER_SECOND: u32 = 256;

/// Streams cancelled, whatever their age, since the server's socket took something: what it was not
/// sent of them stays in memory.
pub const H2_STUCK_STREAMS: u32 = 256;

/// Bytes of a request's body that are thrown away after its answer: some clients forget an answer
/// that a reset follows. It takes no memory. Clients that look at the answer stop by themselves.
pub const H2_DISCARD_BYTES: usize = 64 * 1024 * 1024;

/// How long that is done; nginx's `lingering_time`.
pub const H2_DISCARD_TIME: Duration = Duration::from_secs(30);

/// How long a gRPC request that is refused may go on before it is answered: a call with one message
/// ends at once, and a stream is not kept waiting for its status.
pub const H2_HEAR_OUT: Duration = Duration::from_millis(200);

/// Request records waiting to be sent to the agent, some 500 bytes each, 7 kB at most. Further ones are counted and lost.
pub const RECORDS: usize = 8192;

/// Bytes of a path or host that a record keeps.
pub const RECORD_TEXT_BYTES: usize = 2048;

/// Size of a snapshot from the agent: 150,000 addresses and 10,000 policies take some 20 MB.
pub const SNAPSHOT_BYTES: usize = 128 * 1024 * 1024;

/// First port tried upstream when the client's own cannot be used; design section 6.
pub const FALLBACK_PORT_FIRST: u16 = 20_000;

/// How many such ports there are.
pub const FALLBACK_PORTS: u16 = 10_000;

/// How many are tried. A port fails only if the same client uses it towards the same server, or if a process of the
/// node listens on it: 64 in a row do not.
pub const FALLBACK_TRIES: u16 = 64;

/// Pause after `accept` failed for want of descriptors or memory: lets others finish instead of spinning.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The same warning, of one thread, is not written again for so long: clients bring about what some
/// of them say.
pub const LOG_PAUSE: Duration = Duration::from_secs(10);

/// How often a master looks whether the agent has pinned the listener map by now, and how long it does before it gives up
/// and says so: on a new node the agent is installed in the same minute.
pub const PINS_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(600));

/// First and longest pause before the agent is dialled again.
pub const AGENT_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A peer that vanished without a word is noticed after this much silence, and these probes.
pub const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(300), Duration::from_secs(30), 4);

/// How long things may take. The defaults are the product's; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a head to its last, against clients that drip; nginx's figure.
    pub head: Duration,
    /// Between two requests, or before the first. Servers have limits of their own, and theirs are mirrored.
    pub idle: Duration,
    /// An exchange in which neither side sends anything. As long as Cilium's request time-out: long polls and quiet
    /// streams are normal.
    pub quiet: Duration,
    /// A write that the peer does not take a byte of. Envoy's stream idle time-out.
    pub stall: Duration,
    /// Connecting upstream; nginx's figure. A lost SYN is sent again after 1 s, 3 s and 7 s.
    pub connect: Duration,
    /// HTTP/2: how long a request waits while the server has as many streams open as it lets be. A
    /// burst is over by then; who waits behind streams that stay is told before most deadlines.
    pub slot: Duration,
    /// Waiting for the server's end after a client has ended.
    pub linger: Duration,
    /// How long a client may go on sending that has had its last answer: a reset would take the
    /// answer with it. nginx's `lingering_time`.
    pub leave: Duration,
    /// The same without a byte: nginx's `lingering_timeout`.
    pub leave_pause: Duration,
    /// Waiting for the predecessor of a reused tuple to be gone. It has been told and has nothing to wait for.
    pub replace: Duration,
    /// From hand-over until what is still open is ended. Kept-alive connections end with their next response before.
    pub drain: Duration,
    /// On hand-over, how long an HTTP/2 connection must have had no stream before it is told to go (GOAWAY). Telling a busy
    /// one is correct by the protocol, but some clients fail a request that crosses it.
    pub drain_idle: Duration,
    /// How long before the end of a drain the busy ones are told too.
    pub drain_last: Duration,
    /// How often deadlines are looked at: one timer for a thread instead of one for each request.
    pub tick: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(60),
            idle: Duration::from_secs(3600),
            quiet: Duration::from_secs(3600),
            stall: Duration::from_secs(300),
            connect: Duration::from_secs(60),
            slot: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            leave: Duration::from_secs(30),
            leave_pause: Duration::from_secs(5),
            replace: Duration::from_secs(1),
            drain: Duration::from_secs(600),
            drain_idle: Duration::from_secs(5),
            drain_last: Duration::from_secs(30),
            tick: Duration::from_secs(1),
        }
    }
}
