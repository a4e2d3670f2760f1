//! HTTP/1 through a real proxy thread: verdicts, transparency, ends.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Client, FRONTEND, GET, OK, OTHER, Origin, Rig, field, shop_policy_with};
use policy::Verdict;
use proxy::limits::Timeouts;
use serde_json::json;

const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-length: 15\r\ncontent-type: text/plain\r\n\r\nAccess denied\r\n";

#[test]
fn allowed_requests_pass_and_denied_ones_never_reach_the_server() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("DELETE /api/v1/products/7 HTTP/1.1\r\nHost: api\r\n\r\n").expect(DENIED);
    assert_eq!(origin.connections(), 0, "a denied client does not touch the server");
    let record = rig.record();
    assert_eq!((record.status, record.allowed, record.reason), (403, false, "policy_denied"));
    assert!(record.ingress.is_some_and(|decision| decision.verdict == Verdict::Denied));

    // The connection stays open, also after a refused body.
    client.send(GET).expect(OK);
    let record = rig.record();
    assert_eq!(
        (record.status, record.reason, &record.path[..]),
        (200, "forwarded", &b"/api/v1/products/7"[..])
    );
    let origin_of = record.ingress.unwrap().origin;
    assert_eq!((&*origin_of.name, origin_of.rule, origin_of.http_rule), ("api-l7-policy", Some(0), Some(0)));
    client.send("POST /api/v1/orders HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nsecret").expect(DENIED);
    client
        .send("POST /api/v1/orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        .expect(OK);
    client.send(GET).expect(OK);
    assert!(!origin.seen().contains("secret"));
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_connection_that_policy_denies_is_reset() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(OTHER);
    client.expect_reset();
    assert_eq!(origin.connections(), 0);
}

#[test]
fn without_a_snapshot_nothing_is_allowed() {
    let origin = Origin::polite();
    let rig = Rig::empty(origin.address, 8080, Timeouts::default());
    rig.client(FRONTEND).send(GET).expect(DENIED);
    assert_eq!(rig.record().reason, "no_snapshot");
}

#[test]
fn heads_pass_byte_for_byte() {
    let request = "GET /api/v1/products/%41?a=b%20c&& HTTP/1.1\r\nhOsT: Api.Example:8080\r\nX-MiXed:   v\r\nx-mixed: w\r\nAccept:\r\n\
                   Cookie: a=1; b=2\r\nCONNECTION: keep-alive\r\nX-\u{fc}: y\r\n\r\n"
        .replace("X-\u{fc}", "X-U");
    let response = "HTTP/1.1 299 Very Fine Indeed\r\nDATE: yesterday\r\nx-A: 1\r\nX-a:  2\r\nKeep-Alive: timeout=5\r\ncontent-LENGTH: 3\r\n\r\nabc";
    let origin = Origin::new(move |mut peer| {
        peer.head();
        peer.send(response);
    });
    let rig = Rig::new(origin.address, 8080);
    rig.client(FRONTEND).send(&request).expect(response);
    assert_eq!(origin.seen(), request);
}

#[test]
fn fields_of_one_connection_do_not_pass_and_do_not_count() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client
        .send("GET /healthz HTTP/1.1\r\nHost: a\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Connection: x\r\nConnection: x-hop, keep-alive\r\nX-End: 2\r\n\r\n")
        .expect(OK);
    assert_eq!(
        origin.seen(),
        "GET /healthz HTTP/1.1\r\nHost: a\r\nX-End: 2\r\nConnection: keep-alive\r\n\r\n"
    );
    // A header that a rule asks for is not there for the server, so it is not there for the rule.
    client
        .send("POST /api/v1/orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: content-type\r\nContent-Length: 0\r\n\r\n")
        .expect(DENIED);
}

#[test]
fn bodies_stream_both_ways_with_trailers() {
    let (got, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::new(move |mut peer| {
        peer.head();
        peer.exactly(8);
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nfirst\r\n");
        wait.lock().unwrap().recv().unwrap();
        peer.exactly(8);
        peer.exactly("0\r\nX-Up: 1\r\n\r\n".len());
        peer.send("6;ext=1\r\nsecond\r\n0\r\nX-Sum: 2\r\n\r\n");
        peer.head();
        peer.send(OK);
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    client.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nfirst\r\n");
    got.send(()).unwrap();
    client.send("3\r\ndef\r\n0\r\nX-Up: 1\r\n\r\n");
    client.expect("6;ext=1\r\nsecond\r\n0\r\nX-Sum: 2\r\n\r\n");
    client.send(GET).expect(OK);
}

#[test]
fn large_bodies_pass_unchanged_with_backpressure() {
    const LENGTH: usize = 20_000_000;
    let origin = Origin::new(|mut peer| {
        peer.head();
        let body = peer.exactly(LENGTH);
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        peer.send(body);
    });
    let rig = Rig::new(origin.address, 8080);
    let client = rig.client(FRONTEND);
    let body: Vec<u8> = (0..LENGTH).map(|i| (i * 7 % 251) as u8).collect();
    let mut writer = Client(client.0.try_clone().unwrap());
    let mut reader = client;
    let sent = body.clone();
    let sending = std::thread::spawn(move || {
        writer.send(format!("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n"));
        writer.send(sent);
    });
    common::read_head(&mut reader.0).unwrap();
    let mut got = vec![0; LENGTH];
    std::io::Read::read_exact(&mut reader.0, &mut got).unwrap();
    assert!(got == body);
    sending.join().unwrap();
}

#[test]
fn interim_responses_pass_in_order() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
        peer.exactly(3);
        peer.send(OK);
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    client.expect("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc").expect(OK);
    assert_eq!(rig.record().status, 200);
}

#[test]
fn responses_without_a_body_have_none() {
    let origin = Origin::new(|mut peer| {
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n",
            OK,
        ] {
            peer.head();
            peer.send(response);
        }
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("HEAD /api/v1/products HTTP/1.1\r\nHost: a\r\n\r\n");
    client.expect("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
    client.send(GET).expect("HTTP/1.1 204 No Content\r\n\r\n");
    client.send(GET).expect("HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n");
    client.send(GET).expect(OK);
}

#[test]
fn a_response_that_lasts_until_the_close_ends_cleanly_and_one_that_breaks_off_does_not() {
    let origin = Origin::new(|mut peer| {
        let head = peer.head().unwrap();
        if head.contains("whole") {
            peer.send("HTTP/1.0 200 OK\r\n\r\nall of it");
        } else {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart");
        }
    });
    let rig = Rig::new(origin.address, 8080);
    let get = |what: &str| format!("GET /api/v1/products/{what} HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(rig.client(FRONTEND).send(get("whole")).rest().unwrap(), "HTTP/1.0 200 OK\r\n\r\nall of it");
    assert_eq!(rig.record().reason, "forwarded");
    rig.client(FRONTEND).send(get("cut")).expect_reset();
    assert_eq!(rig.record().reason, "upstream_gone");
}

#[test]
fn pipelined_requests_are_judged_one_by_one() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send(format!("{GET}DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n{GET}"));
    client.expect(OK).expect(DENIED).expect(OK);
    client.end().expect_clean_end();
    assert!(!origin.seen().contains("DELETE"));
}

#[test]
fn a_half_closed_client_gets_its_response_and_the_server_sees_the_end() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        assert_eq!(peer.until_end().unwrap(), b"");
        peer.send(OK);
    });
    let rig = Rig::new(origin.address, 8080);
    rig.client(FRONTEND).send(GET).end().expect(OK).expect_clean_end();
}

#[test]
fn close_is_mirrored() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        // The proxy ends its side although this server has not.
        peer.until_end().unwrap();
        peer.send("ended");
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client
        .send(GET)
        .expect("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        .expect_clean_end();

    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client
        .send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect(OK)
        .expect_clean_end();
    let mut client = rig.client(FRONTEND);
    client.send("GET /healthz HTTP/1.0\r\n\r\n").expect(OK).expect_clean_end();
}

#[test]
fn a_server_that_goes_away_is_seen_as_itself() {
    // Between two requests: a clean end.
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send(OK);
    });
    let rig = Rig::new(origin.address, 8080);
    rig.client(FRONTEND).send(GET).expect(OK).expect_clean_end();

    // After it got a second request and before it answered: closed, no 502 that a client would not retry.
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send(OK);
        peer.head();
    });
    let rig = Rig::new(origin.address, 8080);
    rig.client(FRONTEND).send(GET).expect(OK).send(GET).expect_clean_end();
    assert_eq!((rig.record().reason, rig.record().reason), ("forwarded", "upstream_gone"));

    // Before it answered at all.
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.reset();
    });
    let rig = Rig::new(origin.address, 8080);
    let (head, _) = rig.client(FRONTEND).send(GET).response();
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
}

#[test]
fn a_closed_port_is_a_503() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::new(closed, 8080);
    let (head, _) = rig.client(FRONTEND).send(GET).response();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let record = rig.record();
    assert_eq!((record.status, record.reason, record.allowed), (503, "upstream_unreachable", true));
}

#[test]
fn an_early_response_reaches_a_client_that_still_sends() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
        std::thread::sleep(Duration::from_millis(300));
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc");
    let (head, body) = client.response();
    assert!(head.starts_with("HTTP/1.1 413 ") && body == "no", "{head}");
    client.expect_clean_end();
}

#[test]
fn a_new_snapshot_ends_what_it_forbids_and_nothing_else() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
        // Ends when the proxy resets this, or tells it to go on.
        if peer.stream.read_exact_or_none() {
            peer.send("1\r\nb\r\n0\r\n\r\n");
        }
        peer.head();
        peer.send(OK);
    });
    let mut rig = Rig::new(origin.address, 8080);
    let begin = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let upload = |path: &str| format!("PUT {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (mut forbidden, mut kept) = (rig.client(FRONTEND), rig.client(FRONTEND));
    forbidden.send(GET).expect(begin);
    kept.send(upload("/upload")).expect(begin);
    rig.apply(2, Some(shop_policy_with(json!([{ "method": "PUT|GET", "path": "/upload" }]))));
    forbidden.expect_reset();
    let record = rig.record();
    assert_eq!((record.reason, record.allowed, record.snapshot), ("policy_changed", false, 2));
    kept.send("1\r\nx\r\n0\r\n\r\n").expect("1\r\nb\r\n0\r\n\r\n");
    kept.send(GET).expect(DENIED);
    assert_eq!(rig.counters.ended_by_policy.get(), 1);

    // The connection itself is forbidden.
    let nobody = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "name": "none", "namespace": "production" },
        "spec": { "endpointSelector": {}, "ingress": [{}] },
    });
    rig.apply(3, Some(nobody));
    kept.expect_reset();
}

trait ReadExactOrNone {
    fn read_exact_or_none(&mut self) -> bool;
}

impl ReadExactOrNone for std::net::TcpStream {
    /// Whether a body of "1\r\nx\r\n0\r\n\r\n" came.
    fn read_exact_or_none(&mut self) -> bool {
        std::io::Read::read_exact(self, &mut [0; 11]).is_ok()
    }
}

#[test]
fn a_websocket_is_a_tunnel_once_the_server_agrees() {
    let origin = Origin::new(|mut peer| {
        let head = peer.head().unwrap();
        if field(&head, "upgrade") != Some("websocket") {
            return peer.send(OK);
        }
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        );
        assert_eq!(peer.exactly(7), b"\x00GET /\n");
        peer.send("\x01\r\n");
        peer.until_end().unwrap();
        peer.send("bye");
    });
    let mut rig = Rig::new(origin.address, 8080);
    let offer = "GET /socket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let mut client = rig.client(FRONTEND);
    client.send(offer);
    client
        .expect("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello");
    client.send("\x00GET /\n").expect("\x01\r\n").end().expect("bye").expect_clean_end();
    let record = rig.record();
    assert_eq!((record.status, record.reason), (101, "forwarded"));

    // A tunnel that is forbidden later ends.
    let mut client = rig.client(FRONTEND);
    client.send(offer);
    client
        .expect("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello");
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/healthz" }]))));
    client.expect_reset();
}

#[test]
fn no_other_upgrade_is_offered_to_the_server() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client
        .send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
        .expect(OK);
    client
        .send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n")
        .expect(OK);
    let plain = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(origin.seen(), [plain, plain].concat());
}

#[test]
fn a_server_that_switches_protocols_unasked_is_cut_off() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n");
        peer.until_end().unwrap_err();
    });
    let rig = Rig::new(origin.address, 8080);
    let (head, _) = rig.client(FRONTEND).send(GET).response();
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
}

#[test]
fn a_client_that_goes_away_ends_the_request_upstream() {
    let (sender, ended) = mpsc::channel();
    let sender = Arc::new(Mutex::new(sender));
    let origin = Origin::new(move |mut peer| {
        peer.head();
        sender.lock().unwrap().send(peer.until_end().is_err()).unwrap();
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send(GET);
    origin.wait_for("\r\n\r\n");
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(ended.recv_timeout(common::PATIENCE).unwrap(), "the server sees a reset");
    assert_eq!(rig.record().reason, "client_gone");
}

#[test]
fn several_cookie_lines_are_judged_as_one_list_of_cookies() {
    let origin = Origin::polite();
    let mut rig = Rig::new(origin.address, 8080);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/list", "headers": ["Cookie: a=1; b=2"] }]))));
    let mut client = rig.client(FRONTEND);
    let request = |cookies: &str| format!("GET /list HTTP/1.1\r\nHost: api\r\n{cookies}\r\n");
    let both = request("Cookie: a=1\r\nCookie: b=2\r\n");
    client.send(&both).expect(OK);
    origin.wait_for(&both);
    client.send(request("Cookie: a=1\r\nCookie: c=2\r\n"));
    assert!(client.response().0.starts_with("HTTP/1.1 403 "));
}
