//! One client cannot take the places of all others.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use common::{Client, FRONTEND, GET, OTHER, Origin, PATIENCE, Rig};
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
