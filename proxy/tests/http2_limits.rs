//! What a client or server of HTTP/2 can take of the proxy's time and memory, frame by frame.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use common::frames::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, Pump,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, read_frame,
};
use common::{Client, FRONTEND, OTHER, Origin, PATIENCE, Rig, shop_policy_with};
use h2::Reason;
use proxy::limits::{self, Timeouts};
use serde_json::json;

/// What a head may take here: a test that keeps to it must do so on a busy machine too.
const HEAD: Duration = Duration::from_secs(1);

fn quick() -> Timeouts {
    Timeouts { head: HEAD, tick: Duration::from_millis(20), ..Timeouts::default() }
}

fn open(server: SocketAddr, timeouts: Timeouts) -> Rig {
    let mut rig = Rig::with(server, 8080, timeouts);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/open.*" }]))));
    rig
}

/// A server that does with the first frames of each connection, and then with each head, what the test says.
fn origin(on_head: impl Fn(&mut common::Peer, u32) + Send + Sync + 'static) -> Origin {
    Origin::new(move |mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frame(SETTINGS, 0, 0, &[]));
        while let Ok(frame) = read_frame(&mut peer.stream) {
            match frame.kind {
                HEADERS => {
                    peer.note(format!("[head {}]", frame.stream).as_bytes());
                    on_head(&mut peer, frame.stream);
                }
                DATA => peer.note(&frame.payload),
                SETTINGS if frame.flags & ACK == 0 => peer.send(frames::frame(SETTINGS, ACK, 0, &[])),
                _ => {}
            }
        }
    })
}

/// A server that answers each head at once.
fn polite() -> Origin {
    origin(|peer, stream| peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, frames::OK)))
}

/// A server whose responses never end.
fn endless() -> Origin {
    Origin::new(|mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frame(SETTINGS, 0, 0, &[]));
        let mut pump = Pump::new(peer.stream);
        pump.share = i64::MAX;
        pump.run(|stream| frame(HEADERS, END_HEADERS, stream, frames::OK));
    })
}

/// With preface and settings sent: those heads that it gets name no others.
fn client(rig: &Rig) -> Client {
    client_from(rig, FRONTEND)
}

fn client_from(rig: &Rig, pod: Ipv4Addr) -> Client {
    let mut client = rig.client(pod);
    client.send(PREFACE).send(frames::setting(frames::HEADER_TABLE_SIZE, 0));
    client
}

/// The next frame that is of this kind.
fn next(client: &mut Client, kind: u8) -> Frame {
    loop {
        let frame = read_frame(&mut client.0).expect("a frame");
        if frame.kind == kind {
            return frame;
        }
    }
}

fn code(frame: &Frame) -> Reason {
    u32::from_be_bytes(*frame.payload.last_chunk().unwrap()).into()
}

/// What the head of a response to a stream says, or with what code the stream was reset.
fn outcome(client: &mut Client, stream: u32) -> Result<Vec<u8>, Reason> {
    loop {
        let frame = read_frame(&mut client.0).expect("a frame");
        match frame.kind {
            HEADERS if frame.stream == stream => return Ok(frame.payload),
            RST_STREAM if frame.stream == stream => return Err(code(&frame)),
            _ => {}
        }
    }
}

fn wait(what: &str, until: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !until() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a head begins with this status: with the index of one that is in the static table, or a literal.
fn is_status(head: &[u8], status: &str) -> bool {
    // Says that there is no other table.
    let head = head.strip_prefix(&[0x20]).unwrap_or(head);
    let index = ["200", "204", "206", "304", "400", "404", "500"].iter().position(|known| *known == status);
    match index {
        Some(index) => head[0] == 0x88 + index as u8,
        None => head[1..].starts_with(&huffman_digits(status)),
    }
}

/// Length and code of three digits: "0", "1", "2" have five bits each (00000, 00001, 00010), "3" to "9" six (011001 on).
fn huffman_digits(digits: &str) -> Vec<u8> {
    let (mut bits, mut length) = (0u32, 0);
    for digit in digits.bytes().map(|byte| u32::from(byte - b'0')) {
        let (code, width) = if digit < 3 { (digit, 5) } else { (0b01_1001 + digit - 3, 6) };
        bits = bits << width | code;
        length += width;
    }
    let padding = (8 - length % 8) % 8;
    bits = bits << padding | ((1 << padding) - 1);
    let bytes = ((length + padding) / 8) as usize;
    [&[0x80 | bytes as u8], &bits.to_be_bytes()[4 - bytes..]].concat()
}

/// gRPC channels are opened long before their first call.
#[test]
fn a_connection_without_a_request_may_be_idle_and_is_then_told_to_go() {
    let server = polite();
    let idle = Duration::from_millis(800);
    let rig = open(server.address, Timeouts { head: Duration::from_millis(100), idle, ..quick() });
    let begun = Instant::now();
    let mut silent = client(&rig);
    let goaway = next(&mut silent, GOAWAY);
    assert_eq!(code(&goaway), Reason::NO_ERROR);
    assert!(begun.elapsed() > idle / 2, "after {:?}", begun.elapsed());
    silent.expect_clean_end();
    assert_eq!(rig.counters.timed_out.get(), 1);
}

#[test]
fn after_a_request_a_connection_may_be_idle_for_longer() {
    let server = polite();
    let rig = open(server.address, quick());
    let mut client = client(&rig);
    for stream in [1, 3] {
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/open")));
        assert!(is_status(&outcome(&mut client, stream).unwrap(), "200"));
        std::thread::sleep(HEAD * 3 / 2);
    }
    assert_eq!(rig.counters.timed_out.get(), 0);
}

#[test]
fn a_header_block_that_does_not_end_is_cut_off() {
    let server = origin(|_, _| {});
    let rig = open(server.address, quick());
    let drips: [(&str, Vec<u8>, Vec<u8>); 3] = [
        (
            "a frame that does not end",
            frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0; 16_000])[..20].to_vec(),
            vec![0],
        ),
        ("a block that does not end", frame(HEADERS, END_STREAM, 3, &[0x82]), Vec::new()),
        ("empty continuations", frame(HEADERS, END_STREAM, 3, &[0x82]), frame(CONTINUATION, 0, 3, &[])),
    ];
    for (count, (name, first, more)) in drips.into_iter().enumerate() {
        // A request is under way, so it is not for want of one.
        let mut client = client(&rig);
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/open")));
        wait("the request", || server.seen().matches("[head 1]").count() == count + 1);
        client.send(&first);
        let begun = Instant::now();
        let mut reader = client.0.try_clone().unwrap();
        reader.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ended = loop {
            let _ = client.0.write_all(&more);
            match reader.read(&mut [0; 1024]) {
                Ok(0) => break "cleanly",
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break "with a reset",
            }
            assert!(begun.elapsed() < PATIENCE, "{name}: still open");
        };
        println!("{name}: ended {ended} after {:?}", begun.elapsed());
        // h2 itself counts continuations, and says so at once.
        assert!(begun.elapsed() > HEAD / 2 || !more.is_empty(), "{name}");
    }
    assert!(rig.counters.timed_out.get() >= 2);
}

#[test]
fn an_upload_whose_frames_arrive_in_parts_is_none_of_these() {
    let server = origin(|_, _| {});
    let rig = open(server.address, quick());
    let mut client = client(&rig);
    client.send(frame(HEADERS, END_HEADERS, 1, &frames::post("/open")));
    let mut left_over = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < 2 * HEAD {
        // Each part ends within the head of a frame.
        left_over.extend(frame(DATA, 0, 1, b"12345"));
        left_over.extend(&frame(DATA, 0, 1, b"67890"));
        let later = left_over.split_off(left_over.len() - 11);
        client.send(&left_over);
        left_over = later;
        std::thread::sleep(Duration::from_millis(10));
    }
    left_over.extend(frame(DATA, END_STREAM, 1, b"end"));
    client.send(&left_over);
    server.wait_for("end");
    assert_eq!(rig.counters.timed_out.get(), 0);
}

#[test]
fn a_client_whose_socket_takes_nothing_is_cut_off() {
    let server = endless();
    let rig = open(server.address, Timeouts { stall: Duration::from_millis(500), ..quick() });
    let mut client = rig.client(FRONTEND);
    client.send(PREFACE).send(frames::all_windows_open());
    for stream in 0..128 {
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * stream + 1, &frames::get("/open")));
    }
    wait("the end", || rig.counters.timed_out.get() > 0);
    let end = loop {
        if let Err(error) = client.0.read_exact(&mut [0; 1024]) {
            break error.kind();
        }
    };
    assert_eq!(end, std::io::ErrorKind::ConnectionReset, "the connection ends, not only streams of it");
}

#[test]
fn new_requests_are_refused_when_too_much_is_in_memory() {
    let server = endless();
    let rig = Rig::buffering(server.address, 8 * 1024 * 1024, "/open");
    let get = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/open"));
    let mut held = Vec::new();
    let begun = Instant::now();
    // Each has a stream that it gives no room to.
    while rig.counters.buffers_full.get() == 0 {
        let mut client = rig.client(FRONTEND);
        client.send(PREFACE).send(frames::setting(frames::INITIAL_WINDOW, 0));
        client.send((0..4).flat_map(|stream| get(2 * stream + 1)).collect::<Vec<_>>());
        held.push(client);
        assert!(begun.elapsed() < PATIENCE, "{} connections are not too much", held.len());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Half of it for one client, and a window for each.
    assert!((5..=40).contains(&held.len()), "{}", held.len());
    let mut late = client(&rig);
    late.send(get(1));
    assert_eq!(outcome(&mut late, 1), Err(Reason::REFUSED_STREAM));
    // Others have room still.
    let mut other = client_from(&rig, OTHER);
    other.send(get(1));
    assert!(is_status(&outcome(&mut other, 1).unwrap(), "200"));

    drop(held);
    let mut stream = 3;
    loop {
        late.send(get(stream));
        match outcome(&mut late, stream) {
            Ok(head) => break assert!(is_status(&head, "200")),
            Err(reason) => assert_eq!(reason, Reason::REFUSED_STREAM),
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "the room is never given back");
        std::thread::sleep(Duration::from_millis(20));
        stream += 2;
    }
}

#[test]
fn heads_have_limits_too() {
    let server = polite();
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    let many = [frames::get("/open"), frames::field("x", "y").repeat(limits::HEAD_FIELDS + 1)].concat();
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &many));
    assert!(is_status(&outcome(&mut client, 1).unwrap(), "431"));

    let value = "v".repeat(120);
    let large = [frames::get("/open"), frames::field("x", &value).repeat(500)].concat();
    client.send(head(3, &large));
    assert!(is_status(&outcome(&mut client, 3).unwrap(), "200"));
    // As many bytes as HTTP/1 takes.
    let too_large = [frames::get("/open"), frames::field("x", &value).repeat(600)].concat();
    client.send(head(5, &too_large));
    assert!(is_status(&outcome(&mut client, 5).unwrap(), "431"));
    let reasons: Vec<_> = (0..3).map(|_| rig.record().reason).collect();
    assert_eq!(reasons, ["head_too_large", "forwarded", "head_too_large"]);
}

/// HEADERS, and CONTINUATION if it needs it, of a request without a body.
fn head(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut parts = block.chunks(16_384).peekable();
    let mut frames = Vec::new();
    let (mut kind, mut flags) = (HEADERS, END_STREAM);
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
        frames.extend(frame(kind, flags | last, stream, part));
        (kind, flags) = (CONTINUATION, 0);
    }
    frames
}

#[test]
fn the_heads_of_a_connection_have_a_limit_of_bytes_and_what_is_above_it_is_refused_and_recorded() {
    let server = origin(|_, _| {});
    let rig = Rig::buffering(server.address, 8 * 1024 * 1024, "/open");
    let mut client = client(&rig);
    let large = [frames::get("/open"), frames::field("x", &"v".repeat(120)).repeat(100)].concat();
    let cost = 100 * (limits::FIELD_COST_BYTES + 121) + limits::H2_STREAM_COST_BYTES;
    // Of what a client may have, new requests may have three quarters.
    let most = limits::buffered_for_new(limits::buffered_share(8 * 1024 * 1024)) / cost;
    let mut stream = 1;
    let refused = loop {
        client.send(head(stream, &large));
        if rig.counters.buffers_full.get() > 0 {
            break outcome(&mut client, stream);
        }
        assert!((stream as usize) < 4 * most, "all heads are kept");
        let is_passed = || server.seen().matches("[head ").count() > stream as usize / 2;
        wait("the head", || is_passed() || rig.counters.buffers_full.get() > 0);
        stream += 2;
    };
    assert_eq!(refused.unwrap_err(), Reason::REFUSED_STREAM);
    assert!((stream as usize / 2).abs_diff(most) <= most / 2, "{} of {most}", stream / 2);
    assert_eq!(rig.record().reason, "buffers_full");
}

/// No number of streams is a limit of its own, and no client keeps to one.
#[test]
fn many_streams_at_a_time_pass() {
    const MANY: u32 = 1100;
    let server = origin(|peer, stream| {
        if stream == 2 * MANY - 1 {
            let answer = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, frames::OK);
            peer.send((0..MANY).flat_map(|number| answer(2 * number + 1)).collect::<Vec<_>>());
        }
    });
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    let settings = next(&mut client, SETTINGS);
    assert!(settings.payload.chunks(6).all(|setting| setting[..2] != [0, 3]), "{settings:?}");
    client.send((0..MANY).flat_map(|number| head(2 * number + 1, &frames::get("/open"))).collect::<Vec<_>>());
    for _ in 0..MANY {
        assert!(is_status(&next(&mut client, HEADERS).payload, "200"));
    }
}

/// A server with room for so many streams, which answers each when `ends`.
fn narrow(room: u32, ends: bool) -> Origin {
    Origin::new(move |mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frames::setting(3, room));
        while let Ok(got) = read_frame(&mut peer.stream) {
            match got.kind {
                HEADERS => peer.note(b"[head]"),
                SETTINGS if got.flags & ACK == 0 => peer.send(frame(SETTINGS, ACK, 0, &[])),
                _ => {}
            }
            if got.kind == HEADERS && ends {
                std::thread::sleep(Duration::from_millis(2));
                peer.send(frame(HEADERS, END_HEADERS | END_STREAM, got.stream, frames::OK));
            }
        }
    })
}

#[test]
fn a_burst_above_what_the_server_lets_be_open_waits_its_turn() {
    let server = narrow(10, true);
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    client.send((0..60).flat_map(|number| head(2 * number + 1, &frames::get("/open"))).collect::<Vec<_>>());
    for _ in 0..60 {
        assert!(is_status(&next(&mut client, HEADERS).payload, "200"));
    }
}

#[test]
fn a_stream_above_what_the_server_lets_be_open_is_refused_and_recorded() {
    let server = narrow(10, false);
    let slot = Duration::from_millis(200);
    let rig = open(server.address, Timeouts { slot, ..Timeouts::default() });
    let mut client = client(&rig);
    client.send(head(1, &frames::get("/open")));
    server.wait_for("[head]");
    // Its settings have come by now.
    std::thread::sleep(Duration::from_millis(50));
    client.send((1..11).flat_map(|number| head(2 * number + 1, &frames::get("/open"))).collect::<Vec<_>>());
    let reset = next(&mut client, RST_STREAM);
    assert_eq!((reset.stream, code(&reset)), (21, Reason::REFUSED_STREAM));
    assert_eq!(rig.record().reason, "upstream_streams_full");
    assert_eq!(rig.counters.upstream_streams_full.get(), 1);
    // There is room again when one ends.
    client.send(frame(RST_STREAM, 0, 3, &u32::from(Reason::CANCEL).to_be_bytes()));
    assert_eq!(rig.record().reason, "client_gone");
    client.send(head(23, &frames::get("/open")));
    wait("the next", || server.seen().matches("[head]").count() == 11);
}

#[test]
fn only_so_many_interim_responses_pass() {
    let early_hints = |count| [0x08, 0x03].into_iter().chain(*b"103").collect::<Vec<u8>>().repeat(count);
    let server = origin(move |peer, stream| {
        for _ in 0..1000 {
            peer.send(frame(HEADERS, END_HEADERS, stream, &early_hints(1)));
        }
    });
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/open")));
    let mut interim = 0;
    while !is_status(&outcome(&mut client, 1).unwrap(), "502") {
        interim += 1;
    }
    assert_eq!(interim, limits::H2_INTERIM_RESPONSES);
}

#[test]
fn what_a_goaway_promises_is_passed_on_and_nothing_more() {
    let goaway = |last: u32, reason: Reason| {
        frame(GOAWAY, 0, 0, &[last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat())
    };
    // The stream is above the last that the server has looked at.
    let server = origin(move |peer, _| peer.send(goaway(0, Reason::NO_ERROR)));
    let rig = open(server.address, Timeouts::default());
    let mut one = client(&rig);
    one.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/open")));
    assert_eq!(outcome(&mut one, 1), Err(Reason::REFUSED_STREAM));

    // It is not, and the server is gone without a response.
    let server = origin(move |peer, stream| {
        peer.send(goaway(stream, Reason::NO_ERROR));
        let _ = peer.stream.shutdown(std::net::Shutdown::Both);
    });
    let rig = open(server.address, Timeouts::default());
    let mut two = client(&rig);
    two.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/open")));
    assert!(is_status(&outcome(&mut two, 1).unwrap(), "502"));
}

/// Answers with this and ends the connection at once, in one of three ways.
fn parting(response: fn(u32) -> Vec<u8>, way: usize) -> Origin {
    origin(move |peer, stream| {
        let goaway = frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat());
        let last = if way == 0 { Vec::new() } else { goaway };
        peer.send([response(stream), last].concat());
        if way < 2 {
            let _ = peer.stream.shutdown(std::net::Shutdown::Both);
        }
    })
}

#[test]
fn a_complete_response_is_not_overtaken_by_the_end_of_the_connection() {
    let complete = |stream| {
        [
            frame(HEADERS, END_HEADERS, stream, frames::OK),
            frame(DATA, 0, stream, &[b'x'; 16_384]).repeat(3),
            frame(DATA, END_STREAM, stream, b"end"),
        ]
        .concat()
    };
    for way in 0..3 {
        let server = parting(complete, way);
        let rig = open(server.address, Timeouts::default());
        for _ in 0..20 {
            let mut client = client(&rig);
            client.send(head(1, &frames::get("/open")));
            let (mut end, mut told) = (None, None);
            while end.is_none() || told.is_none() {
                let got = read_frame(&mut client.0).expect("the end of the response, and a GOAWAY");
                match got.kind {
                    GOAWAY => told = Some(code_of_goaway(&got)),
                    RST_STREAM => panic!("{way}: {got:?}"),
                    _ if got.stream == 1 && got.flags & END_STREAM != 0 => end = Some(got.payload),
                    _ => {}
                }
            }
            assert_eq!((end.as_deref(), told), (Some(&b"end"[..]), Some(Reason::NO_ERROR)), "{way}");
            assert_eq!(rig.record().reason, "forwarded");
        }
    }
}

fn code_of_goaway(frame: &Frame) -> Reason {
    u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()).into()
}

#[test]
fn a_response_that_is_cut_off_is_reset() {
    let cut =
        |stream| [frame(HEADERS, END_HEADERS, stream, frames::OK), frame(DATA, 0, stream, b"half")].concat();
    for way in 0..2 {
        let server = parting(cut, way);
        let rig = open(server.address, Timeouts::default());
        let mut client = client(&rig);
        client.send(head(1, &frames::get("/open")));
        let reset = loop {
            let got = read_frame(&mut client.0).expect("a reset");
            assert!(got.stream != 1 || got.flags & END_STREAM == 0, "it looks complete");
            if got.kind == RST_STREAM {
                break got;
            }
        };
        assert_eq!((reset.stream, code(&reset)), (1, Reason::INTERNAL_ERROR));
        assert_eq!(rig.record().reason, "upstream_reset");
    }
}

/// The proxy finds the server's frames broken, and cannot say so because the server does not read.
#[test]
fn a_goaway_of_our_own_promises_nothing() {
    let server = Origin::new(|mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frames::all_windows_open());
        loop {
            let frame = read_frame(&mut peer.stream).unwrap();
            if frame.kind == HEADERS && frame.stream == 3 {
                break;
            }
        }
        // The request is here. Now nothing more is read, until the proxy has no room to write any more.
        peer.note(b"both");
        let (mut queue, mut before) = (vec![0; 16 * 1024 * 1024], 0);
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let queued = peer.stream.peek(&mut queue).unwrap();
            if queued > 1024 && queued == before {
                break;
            }
            before = queued;
        }
        peer.send(frame(WINDOW_UPDATE, 0, 0, &[0; 3]));
        std::thread::sleep(Duration::from_secs(5));
    });
    let rig = open(server.address, Timeouts::default());
    let mut client = client(&rig);
    client.send(frame(HEADERS, END_HEADERS, 1, &frames::post("/open")));
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::get("/open")));
    server.wait_for("both");
    let mut pump = Pump::new(client.0.try_clone().unwrap());
    pump.share = i64::MAX;
    pump.open(1);
    let told = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        pump.run_watching(|frame| {
            if frame.stream == 3 {
                let _ = told.0.send((frame.kind, frame.payload.clone()));
            }
        });
    });
    let (kind, payload) = told.1.recv_timeout(PATIENCE).expect("an answer");
    assert!(kind == HEADERS && is_status(&payload, "502"), "{kind} {payload:?}");
}
