//! One client cannot take the places of all others, nor can two take all the memory.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use common::frames::{self, END_HEADERS, END_STREAM, HEADERS, PREFACE, Pump, SETTINGS, frame, read_frame};
use common::{Client, FRONTEND, GET, GRPC_CLIENT, OTHER, Origin, PATIENCE, Rig};
use proxy::limits::Timeouts;

/// Without a snapshot every client is answered, with a refusal, and keeps its connection.
fn answered(rig: &Rig, pod: Ipv4Addr) -> Client {
    let mut client = rig.client(pod);
    let (head, _) = client.send(GET).response();
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    client
}

#[test]
fn a_client_that_opens_all_it_can_leaves_room_for_others() {
    let origin = Origin::polite();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::bounded(listener, origin.address, 8080, Timeouts::default(), 4);
    let mut greedy: Vec<_> = (0..3).map(|_| answered(&rig, FRONTEND)).collect();
    rig.client(FRONTEND).expect_reset();
    assert_eq!(rig.counters.connections_over_limit.get(), 1);
    drop(answered(&rig, OTHER));

    // A place that it gives back is its own again.
    greedy.pop().unwrap().end().expect_clean_end();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut again = rig.client(FRONTEND);
        let _ = again.0.write_all(GET.as_bytes());
        if common::read_head(&mut again.0).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the place is never free again");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn two_clients_that_have_all_they_can_in_memory_leave_room_for_a_third() {
    let endless = Origin::new(|mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frame(SETTINGS, 0, 0, &[]));
        let mut pump = Pump::new(peer.stream);
        pump.share = i64::MAX;
        pump.run(|stream| frame(HEADERS, END_HEADERS, stream, frames::OK));
    });
    let rig = Rig::buffering(endless.address, 8 * 1024 * 1024, "/open");
    let get = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/open"));
    let mut held = Vec::new();
    for pod in [FRONTEND, OTHER] {
        let refused_before = rig.counters.buffers_full.get();
        let deadline = Instant::now() + PATIENCE;
        // Each has streams that it gives no room to.
        while rig.counters.buffers_full.get() == refused_before {
            let mut client = rig.client(pod);
            client.send(PREFACE).send(frames::setting(frames::INITIAL_WINDOW, 0));
            client.send((0..4).flat_map(|number| get(2 * number + 1)).collect::<Vec<_>>());
            held.push(client);
            assert!(Instant::now() < deadline, "{} connections are not too much", held.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let mut third = rig.client(GRPC_CLIENT);
    third.send(PREFACE).send(frame(SETTINGS, 0, 0, &[])).send(get(1));
    let first = loop {
        let got = read_frame(&mut third.0).expect("a frame");
        if got.stream == 1 {
            break got;
        }
    };
    assert_eq!(first.kind, HEADERS, "{first:?}");
}
