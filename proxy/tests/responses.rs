//! What servers really send: passed if it cannot be misread, in one reading only; and a 502 that
//! says so if it can.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{FRONTEND, GET, OK, Origin, Rig, field};

const HEAD: &str = "HEAD /api/v1/products/7 HTTP/1.1\r\nHost: api\r\n\r\n";
const HTTP10: &str = "GET /api/v1/products/7 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";

/// Answers each connection's first request with this and ends, further ones with [`OK`].
fn server(response: &'static [u8], ends: bool) -> Origin {
    Origin::new(move |mut peer| {
        peer.head();
        peer.send(response);
        while !ends && peer.head().is_some() {
            peer.send(OK);
        }
    })
}

/// What a client gets, all of it, and how its connection ends. The server ends after its response.
fn got(request: &str, response: &'static [u8]) -> String {
    let origin = server(response, true);
    let rig = Rig::new(origin.address, 8080);
    match rig.client(FRONTEND).send(request).rest() {
        Ok(got) => got,
        Err(error) => format!("{error}"),
    }
}

/// That this arrives, the client's connection ends with it, and the record says that all went well.
fn ends_after(request: &str, response: &'static [u8], expected: &str) {
    let origin = server(response, false);
    let rig = Rig::new(origin.address, 8080);
    let got = rig.client(FRONTEND).send(request).rest();
    assert_eq!(got.expect("a clean end"), expected, "{:?}", String::from_utf8_lossy(response));
    assert_eq!(rig.record().reason, "forwarded");
}

/// That this arrives, and a next request on the same connections is answered.
fn goes_on_after(request: &str, response: &'static [u8], expected: &str) {
    let origin = server(response, false);
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send(request).expect(expected).send(GET).expect(OK);
    assert_eq!(origin.connections(), 1);
    assert_eq!((rig.record().reason, rig.record().reason), ("forwarded", "forwarded"));
}

/// What a server sends, and what its client gets.
const PUT_RIGHT: &[(&str, &str)] = &[
    (
        "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length : 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\nok",
        "HTTP/1.1 200 OK\r\nX: a\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 OK\r\nX: a,\r\n\t b\r\n c\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a, b c\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a Set-Cookie: b\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 OK\r\nX: a\x01\x7fb\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: a  b\r\nContent-Length: 2\r\n\r\nok",
    ),
    ("\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ("http/1.1 200  Fine\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\nok"),
    ("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"),
    ("HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    (
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
    ),
    (
        "HTTP/1.1 200 OK\r\nConnection: Content-Length, X-Hop\r\nX-Hop: a\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ),
    (
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 200 Tr\u{e8}s bien\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 Tr\u{e8}s bien\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "HTTP/1.1 103 Early Hints\nLink : </a>\nContent-Length: 2\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
];

#[test]
fn heads_that_can_be_read_in_one_way_are_put_right() {
    for (response, expected) in PUT_RIGHT {
        goes_on_after(GET, response.as_bytes(), expected);
    }
    goes_on_after(
        HEAD,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
}

#[test]
fn a_response_with_faulty_framing_is_the_last_one() {
    ends_after(
        GET,
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    // Chunks are of HTTP/1.1: some clients would not see them behind a status line of 1.0.
    ends_after(
        GET,
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    // A client of 1.0 may read chunks to the end of the connection.
    ends_after(
        HTTP10,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    assert_eq!(
        got(GET, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: gzip\r\n\r\nzip"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\nzip"
    );
}

#[test]
fn a_client_of_http_1_0_gets_no_interim_response() {
    goes_on_after(HTTP10, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
}

#[test]
fn chunks_that_can_be_read_in_one_way_are_put_right() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, expected) in [
        ("5  \r\nhello\r\n0   \r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        (" 5\t\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5 ;x=y\r\nhello\r\n0\r\n\r\n", "5;x=y\r\nhello\r\n0\r\n\r\n"),
        ("5;x=\u{e9}\r\nhello\r\n0\r\n\r\n", "5;x=\u{e9}\r\nhello\r\n0\r\n\r\n"),
        ("5\nhello\n0\n\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5;x\nhello\r\n0\r\n\n", "5;x\r\nhello\r\n0\r\n\r\n"),
        ("00000005\r\nhello\r\n000\r\n\r\n", "00000005\r\nhello\r\n000\r\n\r\n"),
        (
            "2\r\nok\r\n0\r\nContent-Type: a\r\nSet-Cookie: b\r\nAuthorization: c\r\nX: d\r\n\r\n",
            "2\r\nok\r\n0\r\nContent-Type: a\r\nSet-Cookie: b\r\nAuthorization: c\r\nX: d\r\n\r\n",
        ),
        (
            "2\r\nok\r\n0\r\nContent-Length: 9\r\nX : d,\n e\nTransfer-Encoding: chunked\r\n\r\n",
            "2\r\nok\r\n0\r\nX: d, e\r\n\r\n",
        ),
    ] {
        let response = [CHUNKED, body].concat().leak().as_bytes();
        goes_on_after(GET, response, &[CHUNKED, expected].concat());
    }
    // The last chunk is there, so nothing is missing.
    for (body, expected) in [
        ("2\r\nok\r\n0\r\n", "2\r\nok\r\n0\r\n\r\n"),
        ("2\r\nok\r\n0\r\n\r", "2\r\nok\r\n0\r\n\r\n"),
        ("2\r\nok\r\n0\r\nX: d\r\n", "2\r\nok\r\n0\r\nX: d\r\n\r\n"),
    ] {
        let response = [CHUNKED, body].concat().leak().as_bytes();
        assert_eq!(got(GET, response), [CHUNKED, expected].concat(), "{body:?}");
    }
    for body in ["2\r\nok\r\n", "2\r\no", "2\r\nok\r\n0", "2\r\nok\r\n0\r\nX: d"] {
        let response = [CHUNKED, body].concat().leak().as_bytes();
        assert!(got(GET, response).contains("reset"), "{body:?}");
    }
}

/// What a server sends, and what the record says of it.
const REFUSED: &[(&str, &str)] = &[
    ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "Content-Length"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nabc", "Content-Length"),
    ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab", "Content-Length"),
    ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nab", "Content-Length"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 2 2\r\n\r\nab", "Content-Length"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    ("HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", "NUL"),
    ("HTTP/1.1 200 OK\r\n X: a\r\n\r\n", "field"),
    ("HTTP/1.1 200 OK\r\n: a\r\n\r\n", "field"),
    ("HTTP/1.1 200 OK\r\nX\r\n\r\n", "field"),
    ("HTTP/1.1 200 OK\r\nX Y: a\r\n\r\n", "field"),
    ("HTTP/1.1 099 What\r\n\r\n", "status"),
    ("HTTP/1.1 20 OK\r\n\r\n", "status"),
    ("HTTP/1.1 2000 OK\r\n\r\n", "status"),
    ("220 smtp.example ESMTP\r\n", "HTTP"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "chunk"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n", "chunk"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n", "chunk"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 2\r\nok\r\n0\r\n\r\n", "chunk"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\nok\r\n0\r\n\r\n", "chunk"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n", "chunk"),
    ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "Content-Length"),
];

/// As long as nothing of the answer was sent, the client gets one that says what is wrong, and so
/// does the record.
#[test]
fn responses_that_could_be_read_in_two_ways_are_a_502() {
    for (response, why) in REFUSED {
        let origin = Origin::new(move |mut peer| {
            peer.head();
            peer.send(response);
            let _ = peer.until_end();
        });
        let rig = Rig::new(origin.address, 8080);
        let mut client = rig.client(FRONTEND);
        client.send(GET);
        if response.contains(" 100 ") {
            client.expect("HTTP/1.1 100 Continue\r\n\r\n");
        }
        let (head, _) = client.response();
        assert!(head.starts_with("HTTP/1.1 502 "), "{response:?}: {head}");
        assert_eq!(field(&head, "connection"), Some("close"), "{response:?}");
        client.expect_clean_end();
        let record = rig.record();
        assert_eq!((record.status, record.reason), (502, "upstream_invalid"), "{response:?}");
        assert!(record.detail.contains(why), "{response:?}: {}", record.detail);
    }
}

/// The head was on its way: only a reset says that the response is not complete.
#[test]
fn a_bad_chunk_after_the_first_bytes_resets_and_says_why() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        peer.exactly(3);
        peer.send("zz\r\n");
        let _ = peer.until_end();
    });
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n");
    client.expect("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").send("abc").expect_reset();
    let record = rig.record();
    assert_eq!((record.status, record.reason), (200, "upstream_invalid"));
    assert!(record.detail.contains("chunk"), "{}", record.detail);
}
