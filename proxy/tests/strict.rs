//! What could be read in two ways is refused, and never reaches the server; what is merely unusual passes.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{FRONTEND, GET, OK, Origin, Rig, field, shop_policy_with};
use proxy::limits;
use serde_json::json;

/// Everything is allowed, so that only malformedness refuses.
fn rig(origin: &Origin) -> Rig {
    let mut rig = Rig::new(origin.address, 8080);
    rig.apply(2, Some(shop_policy_with(json!([{}]))));
    rig
}

/// Sent as one piece; after each of them another request follows, as if it had been smuggled.
fn refused(cases: &[(&str, Vec<u8>)]) {
    for (name, bytes) in cases {
        let origin = Origin::polite();
        let rig = rig(&origin);
        let mut client = rig.client(FRONTEND);
        client.send(bytes);
        let (head, _) = client.response();
        assert!(head.starts_with("HTTP/1.1 4"), "{name}: {head}");
        assert!(!head.starts_with("HTTP/1.1 403 "), "{name}: {head}");
        assert_eq!(field(&head, "connection"), Some("close"), "{name}: {head}");
        client.expect_clean_end();
        assert_eq!(origin.seen(), "", "{name}");
        let record = rig.record();
        assert_eq!(record.status / 100, 4, "{name}: {record:?}");
        // Only a body can be bad after policy has allowed the head.
        assert!(!record.allowed || record.ingress.is_some(), "{name}: {record:?}");
    }
}

fn bytes(cases: &[(&'static str, &str)]) -> Vec<(&'static str, Vec<u8>)> {
    cases.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect()
}

#[test]
fn two_lengths_or_an_unknown_one_are_refused() {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n").into_bytes();
    let cases: Vec<(&str, Vec<u8>)> = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\ntransfer-encoding: identity",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding:",
        " Transfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3, 3",
        "Content-Length: +3",
        "Content-Length: -3",
        "Content-Length: 0x3",
        "Content-Length: ",
        "Content-Length: 3 3",
        "Content-Length: 18446744073709551619",
    ]
    .into_iter()
    .map(|fields| (fields, post(fields)))
    .collect();
    refused(&cases);
    refused(&bytes(&[(
        "TE in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )]));
}

#[test]
fn bad_chunks_are_refused_before_anything_is_sent() {
    let post = |body: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>)> = [
        "3;x\nyy\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "0_2e\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "2\r\r;a\r\nab\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nContent-Length: 9\r\nHost: z\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: 1\n\r\n",
    ]
    .into_iter()
    .map(|body| (body, post(body)))
    .collect();
    refused(&cases);
}

#[test]
fn bad_chunks_that_come_later_abort_the_server() {
    let origin = Origin::new(|mut peer| {
        peer.head();
        peer.exactly(8);
        assert!(peer.until_end().is_err(), "the server must not take the body for complete");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let rig = rig(&origin);
    let mut client = rig.client(FRONTEND);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    origin.wait_for("3\r\nabc\r\n");
    client.send("zz\r\n");
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[test]
fn ambiguous_hosts_targets_and_lines_are_refused() {
    refused(&bytes(&[
        ("no Host", "GET / HTTP/1.1\r\n\r\n"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("two equal Hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
        ("user in Host", "GET / HTTP/1.1\r\nHost: a@b/c\r\n\r\n"),
        ("list in Host", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        ("absolute-form, other Host", "GET http://evil/ HTTP/1.1\r\nHost: good\r\n\r\n"),
        ("https target", "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bare LF head", "GET / HTTP/1.1\nHost: a\n\n"),
        ("bare LF in one line", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        ("bare CR in value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        ("NUL in value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        ("LF LF smuggle", "GET / HTTP/1.1\r\nHost: a\r\nUseless:\n\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("NUL in target", "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("space before first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        ("folded field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
        ("empty name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
        ("HTTP/0.9", "GET /\r\n\r\n"),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        ("HTTP/2.0 on a line", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        ("broken preface", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
        ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        ("Expect: junk", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 200-foo\r\n\r\nabc"),
        ("Connection hides Host", "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n"),
        ("climbing out", "GET /../admin HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("climbing out to some", "GET /a/..;/..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("bad escape", "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("encoded NUL", "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ]));
}

/// Servers read each of these as something that the rule does not allow.
#[test]
fn a_target_is_judged_in_every_reading() {
    let origin = Origin::polite();
    let mut rig = Rig::new(origin.address, 8080);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/public/.*" }]))));
    for target in [
        "/admin/../public/x",
        "/admin/%2e%2e/public/x",
        "/%70ublic/x",
        "//public/x",
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/%252e%252e/admin",
        "/public/..;/admin",
        "/public%2f..%2fadmin",
        "/public/..\\admin",
        "http://a/public/x",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let (head, _) = rig.client(FRONTEND).send(request).response();
        assert!(head.starts_with("HTTP/1.1 403 "), "{target}: {head}");
        assert!(!rig.record().allowed, "{target}");
    }
    assert_eq!(origin.seen(), "");
    let request = "GET /public/a%2fb//c;d?e=/../.. HTTP/1.1\r\nHost: a\r\n\r\n";
    rig.client(FRONTEND).send(request).expect(OK);
    assert_eq!(origin.seen(), request);
}

#[test]
fn a_target_with_too_many_readings_is_refused_and_counted() {
    let origin = Origin::polite();
    let rig = rig(&origin);
    let target = "/a;b%2f.%2e;/%252e//\\%61;%c0%af".repeat(40);
    let (head, _) = rig.client(FRONTEND).send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).response();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(rig.record().reason, "too_many_readings");
    assert_eq!(rig.counters.too_many_readings.get(), 1);
}

#[test]
fn bytes_that_are_not_http_are_refused_at_once() {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let cases = [
        ("TLS", hello),
        ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
        ("LF", b"\n".to_vec()),
        ("redis", b"*1\r\n$4\r\n".to_vec()),
    ];
    refused(&cases);
}

#[test]
fn heads_over_the_limits_are_refused() {
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(limits::HEAD_BYTES));
    let endless = format!("GET /{}", "x".repeat(limits::HEAD_BYTES + 1));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(limits::HEAD_FIELDS));
    refused(&[("long", long.into_bytes()), ("endless", endless.into_bytes()), ("many", many.into_bytes())]);
    let origin = Origin::polite();
    let rig = rig(&origin);
    let most = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(limits::HEAD_FIELDS - 1));
    rig.client(FRONTEND).send(most).expect(OK);
}

#[test]
fn unusual_requests_pass_as_one() {
    for (name, request) in [
        (
            "chunk extension",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "trailers",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X\r\n\r\n3\r\nabc\r\n0\r\nX: 1\r\n\r\n",
        ),
        ("GET with a body", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"),
        ("absolute-form", "GET http://A:80/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        ("encoded slash", "GET /@scope%2fname HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two slashes in front", "GET //public//x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("backslash", "GET /a\\..\\admin HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("parameters", "GET /a/b;v=1/..;/c HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("encoded Latin-1", "GET /caf%E9 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("raw UTF-8", "GET /caf\u{e9}?q=\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("no Host in HTTP/1.0", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        ("empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("other method", "PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("tab and high bytes in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: \ta\t\u{e9}\r\n\r\n"),
    ] {
        let length = request.len();
        let origin = Origin::new(move |mut peer| {
            peer.exactly(length);
            peer.send(OK);
            peer.until_end().unwrap();
        });
        let rig = rig(&origin);
        let mut client = rig.client(FRONTEND);
        client.send(request).expect(OK).end().expect_clean_end();
        assert_eq!(origin.seen(), request, "{name}");
        assert_eq!(rig.record().reason, "forwarded", "{name}");
        rig.no_record();
    }
    let origin = Origin::polite();
    let rig = rig(&origin);
    rig.client(FRONTEND).send(format!("\r\n{GET}")).expect(OK);
    assert_eq!(origin.seen(), GET, "a leading empty line is skipped");
}

#[test]
fn a_request_in_single_bytes_is_read_like_one_in_one_piece() {
    let origin = Origin::polite();
    let rig = rig(&origin);
    let mut client = rig.client(FRONTEND);
    for byte in GET.bytes() {
        client.send([byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    client.expect(OK);
    assert_eq!(origin.seen(), GET);
}
