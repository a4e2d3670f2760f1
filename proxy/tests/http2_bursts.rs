//! HTTP/2 in lively use, frame by frame: many small messages at once, many streams that are cancelled, a server that is slow to
//! answer. None of it is an attack, and none of it may cost the other streams of the connection anything.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::frames::{
    self, ACK, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PREFACE, Pump, RST_STREAM, SETTINGS, frame,
    read_frame,
};
use common::{Client, FRONTEND, Origin, PATIENCE, Peer, Rig, shop_policy_with};
use h2::Reason;
use proxy::limits::{self, Timeouts};
use serde_json::json;
use socket2::{Domain, Socket, Type};

fn open(server: SocketAddr, timeouts: Timeouts) -> Rig {
    let mut rig = Rig::with(server, 8080, timeouts);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/open" }]))));
    rig
}

/// A server that does with each frame what the test says; its windows are all open.
fn origin(on_frame: impl Fn(&mut Peer, &Frame) + Send + Sync + 'static) -> Origin {
    Origin::new(move |mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frames::all_windows_open());
        while let Ok(got) = read_frame(&mut peer.stream) {
            if got.kind == SETTINGS && got.flags & ACK == 0 {
                peer.send(frame(SETTINGS, ACK, 0, &[]));
            }
            on_frame(&mut peer, &got);
        }
    })
}

/// A server that begins its response to each request and goes on after a reset, which crosses that; the response to stream 1 comes
/// when its request has ended.
fn origin_of_long_streams() -> Origin {
    origin(|peer, got| match got.kind {
        HEADERS if got.stream == 1 => peer.note(b"[first]"),
        HEADERS => peer.send(frame(HEADERS, END_HEADERS, got.stream, frames::OK)),
        RST_STREAM => {
            peer.note(b"[reset]");
            peer.send(frame(DATA, 0, got.stream, b"x"));
        }
        DATA if got.stream == 1 => peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, frames::OK)),
        _ => {}
    })
}

fn client(rig: &Rig) -> Client {
    let mut client = rig.client(FRONTEND);
    client.send(PREFACE).send(frames::all_windows_open());
    client
}

/// With a request under way on stream 1.
fn client_of_long_streams(rig: &Rig, server: &Origin) -> Client {
    let mut client = client(rig);
    client.send(frame(HEADERS, END_HEADERS, 1, &frames::post("/open")));
    server.wait_for("[first]");
    client
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/open"))
}

/// The next frame of which this holds.
fn next(client: &mut Client, what: &str, is: impl Fn(&Frame) -> bool) -> Frame {
    loop {
        let got = read_frame(&mut client.0).expect(what);
        if is(&got) {
            return got;
        }
    }
}

/// Requests on `streams`, each of which has a response that has begun.
fn begin(client: &mut Client, streams: impl Iterator<Item = u32> + Clone) {
    client.send(streams.clone().flat_map(get).collect::<Vec<_>>());
    for _ in streams {
        next(client, "a head", |got| got.kind == HEADERS);
    }
}

fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &u32::from(Reason::CANCEL).to_be_bytes())
}

fn wait_for_resets(server: &Origin, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while server.seen().matches("[reset]").count() < count {
        assert!(Instant::now() < deadline, "only {} resets", server.seen().matches("[reset]").count());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stream 1 goes on to its end.
fn expect_first_is_alive(client: &mut Client) {
    client.send(frame(DATA, END_STREAM, 1, b"end"));
    let head = next(client, "the response to stream 1", |got| got.stream == 1);
    assert_eq!(head.kind, HEADERS, "{head:?}");
}

/// As many as fit the window that each side has before it has read any settings.
fn burst(stream: u32) -> Vec<u8> {
    [frame(DATA, 0, stream, &[b'm'; 30]).repeat(2000), frame(DATA, END_STREAM, stream, b"end")].concat()
}

#[test]
fn a_burst_of_small_messages_goes_up() {
    let server = origin(|peer, got| match got.kind {
        HEADERS => peer.note(b"[head]"),
        DATA if got.flags & END_STREAM != 0 => {
            peer.send(frame(HEADERS, END_HEADERS | END_STREAM, got.stream, frames::OK));
        }
        _ => {}
    });
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    client.send(frame(HEADERS, END_HEADERS, 1, &frames::post("/open")));
    server.wait_for("[head]");
    client.send(burst(1));
    next(&mut client, "a response", |got| got.kind == HEADERS && got.stream == 1);
}

#[test]
fn a_burst_of_small_messages_goes_down() {
    let server = origin(|peer, got| {
        if got.kind == HEADERS {
            peer.send([frame(HEADERS, END_HEADERS, got.stream, frames::OK), burst(got.stream)].concat());
        }
    });
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    client.send(get(1));
    next(&mut client, "the end of the response", |got| got.kind == DATA && got.flags & END_STREAM != 0);
}

#[test]
fn frames_that_cross_many_resets_do_not_end_the_connection() {
    const MANY: u32 = 120;
    let server = origin_of_long_streams();
    let rig = open(server.address, Timeouts::default());
    let mut client = client_of_long_streams(&rig, &server);
    let streams = (1..=MANY).map(|number| 2 * number + 1);
    begin(&mut client, streams.clone());
    client.send(streams.flat_map(cancel).collect::<Vec<_>>());
    wait_for_resets(&server, MANY as usize);
    expect_first_is_alive(&mut client);
}

#[test]
fn long_streams_that_are_cancelled_are_no_flood() {
    const AT_ONCE: u32 = 100;
    let server = origin_of_long_streams();
    let rig = open(server.address, Timeouts::default());
    let mut client = client_of_long_streams(&rig, &server);
    let mut cancelled = 0;
    while cancelled <= 3 * AT_ONCE {
        let streams = (cancelled + 1..=cancelled + AT_ONCE).map(|number| 2 * number + 1);
        begin(&mut client, streams.clone());
        std::thread::sleep(limits::H2_YOUNG_STREAM + Duration::from_millis(100));
        for stream in streams {
            client.send(cancel(stream));
        }
        cancelled += AT_ONCE;
        wait_for_resets(&server, cancelled as usize);
    }
    expect_first_is_alive(&mut client);
    assert_eq!(rig.counters.too_many_cancelled.get(), 0);
}

/// Calls with short deadlines to a server that is slow. Some are cancelled before anybody has
/// looked at them.
#[test]
fn a_burst_of_young_streams_that_are_cancelled_costs_no_other_stream_anything() {
    const MANY: u32 = 1500;
    let server = origin_of_long_streams();
    let rig = open(server.address, Timeouts::default());
    let mut client = client_of_long_streams(&rig, &server);
    let streams = (1..=MANY).map(|number| 2 * number + 1);
    for stream in streams.clone().take(MANY as usize / 3) {
        client.send([get(stream), cancel(stream)].concat());
    }
    let burst = streams.skip(MANY as usize / 3);
    client.send(burst.flat_map(|stream| [get(stream), cancel(stream)].concat()).collect::<Vec<_>>());
    let reasons: Vec<_> = (0..MANY).map(|_| rig.record().reason).collect();
    assert!(reasons.iter().all(|reason| *reason == "client_gone"), "{reasons:?}");
    expect_first_is_alive(&mut client);
    assert_eq!(rig.counters.too_many_cancelled.get(), 0);
}

/// What the server has not been sent stays in memory, so it is a flood however long it takes.
#[test]
fn long_streams_that_are_cancelled_when_the_server_takes_nothing_are_a_flood() {
    const AT_ONCE: u32 = 100;
    let server = Origin::new(|mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frames::all_windows_open());
        while read_frame(&mut peer.stream).unwrap().kind != HEADERS {}
        peer.note(b"[first]");
        std::thread::sleep(4 * PATIENCE);
    });
    let rig = open(server.address, Timeouts::default());
    let mut client = client_of_long_streams(&rig, &server);
    let mut pump = Pump::new(client.0.try_clone().unwrap());
    pump.share = i64::MAX;
    pump.open(1);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        pump.run_watching(|_| {
            let _ = sender.send(());
        });
    });
    // Once the proxy gives no more room.
    while receiver.recv_timeout(Duration::from_secs(1)).is_ok() {}
    let mut next = 3;
    for _ in 0..=limits::H2_STUCK_STREAMS / AT_ONCE {
        let streams = (next..).step_by(2).take(AT_ONCE as usize);
        next += 2 * AT_ONCE;
        let _ = client.0.write_all(&streams.clone().flat_map(get).collect::<Vec<_>>());
        std::thread::sleep(limits::H2_YOUNG_STREAM + Duration::from_millis(100));
        let _ = client.0.write_all(&streams.flat_map(cancel).collect::<Vec<_>>());
    }
    let deadline = Instant::now() + PATIENCE;
    while rig.counters.too_many_cancelled.get() == 0 {
        assert!(Instant::now() < deadline, "they are not counted");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A listener with a full queue, where SYNs get no answer, and what fills it.
fn silent() -> (TcpListener, Vec<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        fill.push(stream);
        assert!(fill.len() < 10, "the queue is never full");
    }
    (listener, fill)
}

#[test]
fn a_server_that_does_not_answer_costs_one_time_out_and_not_one_for_each_stream() {
    const STREAMS: u32 = 12;
    let (listener, _fill) = silent();
    let connect = Duration::from_millis(500);
    let rig = open(listener.local_addr().unwrap(), Timeouts { connect, ..Timeouts::default() });
    let mut client = client(&rig);
    let begun = Instant::now();
    client.send((0..STREAMS).flat_map(|number| get(2 * number + 1)).collect::<Vec<_>>());
    for _ in 0..STREAMS {
        next(&mut client, "a refusal", |got| got.kind == HEADERS);
    }
    assert!(begun.elapsed() < connect * STREAMS / 2, "{:?}", begun.elapsed());
}
