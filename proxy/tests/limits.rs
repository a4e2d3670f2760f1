//! Time-outs and the hand-over.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{FRONTEND, GET, OK, Origin, Rig, field};
use proxy::limits::Timeouts;

fn quick() -> Timeouts {
    Timeouts { tick: Duration::from_millis(20), ..Timeouts::default() }
}

#[test]
fn a_head_that_drips_is_cut_off() {
    let origin = Origin::polite();
    let rig = Rig::with(origin.address, 8080, Timeouts { head: Duration::from_millis(200), ..quick() });
    let mut client = rig.client(FRONTEND);
    let begun = Instant::now();
    let mut sent = 0;
    for byte in GET.bytes().cycle().filter(|byte| *byte != b'\r' && *byte != b'\n') {
        if std::io::Write::write_all(&mut client.0, &[byte]).is_err() {
            break;
        }
        sent += 1;
        assert!(begun.elapsed() < common::PATIENCE, "still open after {sent} bytes");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begun.elapsed() > Duration::from_millis(150));
    assert_eq!(rig.counters.timed_out.get(), 1);
}

#[test]
fn a_listener_that_was_closed_under_it_ends_the_thread() {
    let origin = Origin::polite();
    let mut rig = Rig::with(origin.address, 8080, quick());
    // On a listener the same as what `ss --kill` does to it.
    socket2::SockRef::from(&rig.listener).shutdown(std::net::Shutdown::Both).unwrap();
    let thread = rig.thread.take().unwrap();
    let begun = Instant::now();
    while !thread.is_finished() {
        assert!(begun.elapsed() < common::PATIENCE, "it waits for what never comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        thread.join().is_err(),
        "with an error, so that the worker ends and the master replaces the listener"
    );
}

#[test]
fn an_idle_connection_ends_cleanly() {
    let origin = Origin::polite();
    let rig = Rig::with(origin.address, 8080, Timeouts { idle: Duration::from_millis(200), ..quick() });
    rig.client(FRONTEND).expect_clean_end();
    let mut client = rig.client(FRONTEND);
    client.send(GET).expect(OK).expect_clean_end();
    assert_eq!(rig.counters.timed_out.get(), 2);
}

#[test]
fn a_quiet_exchange_is_reset_and_one_that_moves_is_not() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
        for _ in 0..10 {
            peer.send("x");
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = peer.until_end();
    });
    let rig = Rig::with(origin.address, 8080, Timeouts { quiet: Duration::from_millis(250), ..quick() });
    let mut client = rig.client(FRONTEND);
    client.send(GET).expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nxxxxxxxxxx").expect_reset();
    assert_eq!(rig.record().reason, "timed_out");
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_the_server_not_drained() {
    const LENGTH: usize = 200_000_000;
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let origin = Origin::new(move |mut peer| {
        peer.head();
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        let block = vec![0; 65536];
        while let Ok(length) = std::io::Write::write(&mut peer.stream, &block) {
            count.fetch_add(length, Ordering::SeqCst);
        }
    });
    let rig = Rig::with(origin.address, 8080, Timeouts { stall: Duration::from_millis(300), ..quick() });
    let mut client = rig.client(FRONTEND);
    client.send(GET);
    let record = rig.record();
    assert_eq!((record.reason, record.status), ("client_gone", 200));
    assert!(written.load(Ordering::SeqCst) < LENGTH / 2, "{written:?} bytes were read from the server");
}

#[test]
fn a_client_that_leaves_before_the_answer_is_noticed_whatever_it_asked_for() {
    for upgrade in ["", "Connection: Upgrade\r\nUpgrade: websocket\r\n"] {
        let origin = Origin::new(|mut peer| {
            peer.head();
            let _ = peer.until_end();
            peer.note(b"[gone]");
        });
        let rig = Rig::new(origin.address, 8080);
        let mut client = rig.client(FRONTEND);
        client.send(format!("GET /socket HTTP/1.1\r\nHost: api\r\n{upgrade}\r\n"));
        origin.wait_for("GET /socket");
        drop(client);
        origin.wait_for("[gone]");
    }
}

#[test]
fn what_a_client_sends_and_ends_before_the_server_agrees_to_a_tunnel_goes_through_it() {
    const AGREED: &str =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let origin = Origin::new(|mut peer| {
        peer.head();
        std::thread::sleep(Duration::from_millis(200));
        peer.send(AGREED);
        let _ = peer.until_end();
        peer.send("bye");
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("GET /socket HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    origin.wait_for("GET /socket");
    client.send("early").end();
    client.expect(AGREED).expect("bye");
    origin.wait_for("early");
}

#[test]
fn connecting_upstream_has_a_limit() {
    // A listener whose queue is full answers no further SYN.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _fill: Vec<_> = (0..4)
        .filter_map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok())
        .collect();
    let rig = Rig::with(address, 8080, Timeouts { connect: Duration::from_millis(300), ..quick() });
    let begun = Instant::now();
    let (head, _) = rig.client(FRONTEND).send(GET).response();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!((Duration::from_millis(250)..Duration::from_secs(2)).contains(&begun.elapsed()));
}

#[test]
fn hand_over_loses_nothing() {
    let origin = Origin::polite();
    let first = Rig::new(origin.address, 8080);
    let mut kept = first.client(FRONTEND);
    kept.send(GET).expect(OK);
    let mut idle = first.client(FRONTEND);
    idle.send(GET).expect(OK);

    // Load without retries: new connections, and kept ones that are opened anew only when told so.
    let stop = Arc::new(AtomicBool::new(false));
    let address = first.address;
    let load: Vec<_> = (0..4)
        .map(|worker| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let (mut requests, mut client) = (0, common::Client::connect(FRONTEND, address));
                while !stop.load(Ordering::SeqCst) {
                    let (head, body) = client.send(GET).response();
                    assert!(head.starts_with("HTTP/1.1 200 ") && body == "ok", "{head}");
                    requests += 1;
                    if worker % 2 == 0 || field(&head, "connection") == Some("close") {
                        client = common::Client::connect(FRONTEND, address);
                    }
                }
                requests
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let second = first.successor();
    first.retire.send_replace(true);
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::SeqCst);
    let requests: usize = load.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(requests > 100, "{requests}");

    // Kept-alive connections are good for one more request, which says that it is the last.
    let (head, _) = kept.send(GET).response();
    assert_eq!(field(&head, "connection"), Some("close"), "{head}");
    kept.expect_clean_end();
    assert!(
        !first.thread.as_ref().unwrap().is_finished(),
        "an idle connection is not closed under its client"
    );
    idle.end().expect_clean_end();
    let deadline = Instant::now() + common::PATIENCE;
    while !first.thread.as_ref().unwrap().is_finished() {
        assert!(Instant::now() < deadline, "the first thread does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(second.counters.accepted.get() > 0);
}

#[test]
fn a_drain_ends_at_its_limit() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nxx");
        let _ = peer.until_end();
    });
    let rig = Rig::with(origin.address, 8080, Timeouts { drain: Duration::from_millis(300), ..quick() });
    let (mut idle, mut busy) = (rig.client(FRONTEND), rig.client(FRONTEND));
    busy.send(GET).expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nxx");
    idle.send("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").response();
    rig.retire.send_replace(true);
    idle.expect_clean_end();
    busy.expect_reset();
    assert_eq!(rig.counters.drain_limit.get(), 2);
}

#[test]
fn one_connection_too_many_is_reset_at_once_and_a_free_place_is_used() {
    let origin = Origin::polite();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::bounded(listener, origin.address, 8080, quick(), 2);
    rig.apply(1, Some(common::shop_policy()));
    let (mut first, mut second) = (rig.client(FRONTEND), rig.client(FRONTEND));
    first.send(GET).expect(OK);
    second.send(GET).expect(OK);
    rig.client(FRONTEND).expect_reset();
    assert_eq!(rig.counters.connections_over_limit.get(), 1);
    first.end().expect_clean_end();
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        let mut third = rig.client(FRONTEND);
        let _ = std::io::Write::write_all(&mut third.0, GET.as_bytes());
        if common::read_head(&mut third.0).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the place is never free again");
    }
}

#[test]
fn what_is_in_the_queue_of_a_retired_listener_is_served() {
    let origin = Origin::polite();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued: Vec<_> = (0..50).map(|_| common::Client::connect(FRONTEND, address)).collect();
    let rig = Rig::on(listener, origin.address, 8080, quick());
    rig.retire.send_replace(true);
    for client in &mut queued {
        // Without a snapshot it is refused, but it is answered.
        let (head, _) = client.send(GET).response();
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    }
}
