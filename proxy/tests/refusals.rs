//! How a request ends that the proxy answers itself, or that finds its server gone: what the client
//! reads, and what the record says.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Client, FRONTEND, GET, OK, Origin, Rig, field};
use proxy::limits::{self, Timeouts};
use proxy::record::Outcome;

const BODY: &str = "Access denied\r\n";

fn denied(connection: &str) -> String {
    format!("HTTP/1.1 403 Forbidden\r\ncontent-length: 15\r\ncontent-type: text/plain\r\n{connection}\r\n")
}

#[test]
fn a_refusal_says_what_becomes_of_the_connection_in_the_words_of_the_client() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let (keep, close) = (denied("connection: keep-alive\r\n") + BODY, denied("connection: close\r\n") + BODY);
    // `ab -k` waits for the end of the connection if it is not told that there is none.
    let mut client = rig.client(FRONTEND);
    for _ in 0..3 {
        client.send("GET /x HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: a\r\n\r\n").expect(&keep);
    }
    client.send("GET /x HTTP/1.0\r\n\r\n").expect(&close).expect_clean_end();
    let mut client = rig.client(FRONTEND);
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect(&close).expect_clean_end();
    let mut client = rig.client(FRONTEND);
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").expect(denied("")).send(GET).expect(OK);
    client
        .send("HEAD /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        .expect(denied("connection: keep-alive\r\n"));
    // Whether the body follows is not known.
    client
        .send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        .expect(&close)
        .expect_clean_end();
    // A head that cannot be read as a whole tells its method.
    let mut client = rig.client(FRONTEND);
    let answer = client.send("HEAD /x HTTP/1.1\r\n\r\n").rest().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

/// Sends a refused body, reads nothing meanwhile, like many clients.
fn upload(rig: &Rig, head: &str, body: &[u8]) -> String {
    let mut client = rig.client(FRONTEND);
    client.send(head);
    client.0.write_all(body).expect("the body is taken to its end");
    let (head, body) = client.response();
    assert_eq!(body, BODY);
    head
}

#[test]
fn a_client_that_reads_its_answer_only_after_its_whole_body_gets_it() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    // More than any buffer between the two holds.
    let body = vec![b'x'; 24 * 1024 * 1024];
    let length = format!("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = upload(&rig, &length, &body);
    assert_eq!(field(&answer, "connection"), Some("close"), "one that is told stops sending");
    let chunked = "PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = format!("{:x}\r\n{}\r\n0\r\n\r\n", body.len(), "x".repeat(body.len()));
    assert!(upload(&rig, chunked, chunks.as_bytes()).starts_with("HTTP/1.1 403 "));
    let malformed = "PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
    let mut client = rig.client(FRONTEND);
    client.send(malformed).send(&body);
    assert!(client.response().0.starts_with("HTTP/1.1 400 "));
    // One that fits is read, and the connection goes on.
    let mut client = rig.client(FRONTEND);
    let short = format!("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", limits::DISCARD_BYTES);
    client.send(short).send(&body[..limits::DISCARD_BYTES as usize]).expect(denied("") + BODY);
    client.send("PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    client.expect(denied("") + BODY).send(GET).expect(OK);
    assert!(!origin.seen().contains("/x"));
}

#[test]
fn a_client_that_never_stops_sending_is_ended() {
    let origin = Origin::polite();
    let limit = Duration::from_millis(300);
    let rig = Rig::with(origin.address, 8080, Timeouts { leave: limit, ..Timeouts::default() });
    let mut client = rig.client(FRONTEND);
    client.send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n");
    let begun = Instant::now();
    while client.0.write_all(&[b'x'; 4096]).is_ok() {
        assert!(begun.elapsed() < common::PATIENCE, "still read");
    }
    assert!(begun.elapsed() >= limit);
    // And one that sends nothing more, before that.
    let pause = Timeouts { leave_pause: limit, ..Timeouts::default() };
    let rig = Rig::with(origin.address, 8080, pause);
    let mut client = rig.client(FRONTEND);
    client.send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\nx");
    client.expect(denied("connection: close\r\n") + BODY).expect_clean_end();
    std::thread::sleep(2 * limit);
    let _ = client.0.write_all(b"x");
    std::thread::sleep(limit / 3);
    client.0.write_all(b"x").expect_err("the connection is gone");
}

#[test]
fn curl_reads_the_status_of_a_refused_upload() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let body = vec![b'x'; 3 * 1024 * 1024];
    for options in [&[][..], &["-H", "Expect:"], &["-H", "Transfer-Encoding: chunked"], &["--http1.0"]] {
        let url = format!("http://{}/x", rig.address);
        let mut curl = Command::new("curl")
            .args(["-sS", "-m", "10", "--interface", &FRONTEND.to_string(), "-o", "/dev/null"])
            .args(["-w", "%{http_code}", "--data-binary", "@-"])
            .args(options)
            .arg(&url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        curl.stdin.take().unwrap().write_all(&body).unwrap();
        let output = curl.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "403", "{options:?}");
        assert!(output.status.success(), "{options:?}: {}", output.status);
    }
}

/// What was decided, and what happened.
#[test]
fn records_say_what_happened() {
    let origin = Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let ended = |rig: &Rig| {
        let record = rig.record();
        (record.allowed, record.sent, record.outcome(), record.status, record.reason)
    };
    rig.client(FRONTEND).send(GET).expect(OK);
    assert_eq!(ended(&rig), (true, true, Outcome::Forwarded, 200, "forwarded"));
    rig.client(FRONTEND).send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").response();
    assert_eq!(ended(&rig), (false, false, Outcome::Refused, 403, "policy_denied"));
    // Allowed by its head, refused for its body: before the server sees any of it, and after.
    let chunked = "PUT /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    rig.client(FRONTEND).send(format!("{chunked}zz\r\n")).response();
    assert_eq!(ended(&rig), (true, false, Outcome::Refused, 400, "bad_request"));
    let mut client = rig.client(FRONTEND);
    client.send(format!("{chunked}1\r\na\r\n"));
    let silent = Origin::new(|mut peer| {
        peer.head();
        let _ = peer.until_end();
    });
    let quiet = Rig::new(silent.address, 8080);
    let mut client = quiet.client(FRONTEND);
    client.send(format!("{chunked}1\r\na\r\n"));
    silent.wait_for("\r\n\r\n");
    client.send("zz\r\n").response();
    assert_eq!(ended(&quiet), (true, true, Outcome::Refused, 400, "bad_request"));
    // The client goes: its own doing.
    let mut client = quiet.client(FRONTEND);
    client.send(GET);
    silent.wait_for("GET");
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(ended(&quiet), (true, true, Outcome::Forwarded, 0, "client_gone"));
    // The server does not take it, or gives no answer.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::new(closed, 8080);
    rig.client(FRONTEND).send(GET).response();
    assert_eq!(ended(&rig), (true, false, Outcome::Failed, 503, "upstream_unreachable"));
    let mute = Origin::new(|mut peer| drop(peer.head()));
    let rig = Rig::new(mute.address, 8080);
    rig.client(FRONTEND).send(GET).response();
    assert_eq!(ended(&rig), (true, true, Outcome::Failed, 502, "upstream_gone"));
}

#[test]
fn the_record_of_a_malformed_request_names_it_and_why() {
    let origin = Origin::polite();
    for (request, [method, path, host], detail) in [
        ("GET /a HTTP/1.1\r\nHost: b\r\nHost: c\r\n\r\n", ["GET", "/a", "b"], "Repeated field"),
        ("PUT /a?b HTTP/1.1\nHost: c\n\n", ["PUT", "/a?b", "c"], "Bare LF"),
        ("GET /a b HTTP/1.1\r\nHost: c\r\n\r\n", ["GET", "/a b", "c"], "Invalid request head"),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", ["GET", "ftp://a/", "a"], "http"),
        ("\x16\x03\x01\x02 \x01", ["", "", ""], "Not HTTP"),
    ] {
        let rig = Rig::new(origin.address, 8080);
        let (head, _) = rig.client(FRONTEND).send(request).response();
        assert!(head.starts_with("HTTP/1.1 400 "), "{request:?}: {head}");
        let record = rig.record();
        assert_eq!((record.status, record.reason, record.outcome()), (400, "bad_request", Outcome::Refused));
        assert_eq!([&record.method[..], &record.path, &record.host], [method, path, host].map(str::as_bytes));
        assert!(record.detail.contains(detail), "{request:?}: {}", record.detail);
    }
}

/// The thread finds the end of the server and the next request in one turn: it has sent none of
/// that request.
fn at_once(origin: &Origin, rig: &Rig, client: &mut Client, request: &str, end_server: impl FnOnce()) {
    let hold = rig.hold.clone();
    let held = hold.lock().unwrap();
    let before = rig.sources.lock().unwrap().len();
    let mut other = rig.client(FRONTEND);
    other.send(GET);
    while rig.sources.lock().unwrap().len() == before {
        std::thread::sleep(Duration::from_millis(1));
    }
    end_server();
    client.send(request);
    std::thread::sleep(Duration::from_millis(20));
    drop(held);
    let _ = origin;
}

#[test]
fn a_request_that_meets_a_server_that_has_ended_reaches_it_by_another_connection() {
    // Ends its first connection when it is told to, with and without a word.
    for word in ["", "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"] {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let told = std::sync::Mutex::new(Some(told));
        let origin = Origin::new(move |mut peer| {
            let first = told.lock().unwrap().take();
            while peer.head().is_some() {
                peer.send(OK);
                if let Some(told) = &first {
                    told.recv().unwrap();
                    return peer.send(word);
                }
            }
        });
        let rig = Rig::new(origin.address, 8080);
        let mut client = rig.client(FRONTEND);
        client.send(GET).expect(OK);
        let post = "PUT /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        at_once(&origin, &rig, &mut client, post, || {
            tell.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        });
        client.expect(OK).send(GET).expect(OK);
        assert_eq!(origin.connections(), 3, "the first, the other client's, and another");
        for _ in 0..4 {
            assert_eq!(rig.record().outcome(), Outcome::Forwarded);
        }
    }
}

#[test]
fn a_request_that_meets_a_server_that_is_gone_for_good_may_be_sent_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.try_clone().unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = own.accept().unwrap();
        drop(own);
        common::read_head(&mut stream).unwrap();
        stream.write_all(OK.as_bytes()).unwrap();
        told.recv().unwrap();
    });
    let rig = Rig::new(address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send(GET).expect(OK);
    assert_eq!(rig.record().reason, "forwarded");
    let hold = rig.hold.clone();
    let held = hold.lock().unwrap();
    let mut other = rig.client(FRONTEND);
    other.send(GET);
    while rig.sources.lock().unwrap().len() == 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(listener);
    tell.send(()).unwrap();
    server.join().unwrap();
    client.send(GET);
    std::thread::sleep(Duration::from_millis(20));
    drop(held);
    // No 503: a client sends again what it sent on a connection that was open a moment ago.
    client.expect_clean_end();
    let mut ends: Vec<_> = [rig.record(), rig.record()].map(|record| (record.status, record.sent)).into();
    ends.sort_unstable();
    assert_eq!(ends, [(0, false), (503, false)]);
}

/// A real server that ends idle connections, and a client that sends its next request at about that
/// time.
#[test]
fn requests_around_the_keepalive_timeout_of_nginx_are_answered() {
    let Some(nginx) = Nginx::start("keepalive_timeout 100ms;") else { return };
    let rig = Rig::new(nginx.address, 8080);
    let url = format!("http://{}/healthz", rig.address);
    let output = Command::new("curl")
        .args(["-sS", "-m", "10", "--interface", &FRONTEND.to_string(), "--rate", "600/m"])
        .args(["-w", "%{http_code} ", "-o", "/dev/null"])
        .args(std::iter::repeat_n(["-o", "/dev/null", url.as_str()], 9).flatten())
        .arg(&url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200 ".repeat(10));
    // One that looks: an answer or a clean end, nothing else, whenever it sends.
    let (mut client, mut answered) = (rig.client(FRONTEND), 0);
    for pause in [90, 94, 97, 98, 99, 100, 101, 102] {
        client.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
        match common::read_head(&mut client.0) {
            Ok(head) => {
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                client.expect("ok");
                answered += 1;
            }
            Err(error) => {
                let is_end =
                    error.kind() == std::io::ErrorKind::UnexpectedEof && error.to_string().is_empty();
                assert!(is_end || error.kind() == std::io::ErrorKind::ConnectionReset, "{error:?}");
                client = rig.client(FRONTEND);
            }
        }
        std::thread::sleep(Duration::from_millis(pause));
    }
    assert!(answered > 0);
}

struct Nginx {
    address: std::net::SocketAddr,
    child: std::process::Child,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// With these settings; answers every request with "ok".
    fn start(settings: &str) -> Option<Self> {
        let program = std::path::Path::new("/usr/sbin/nginx");
        if !program.exists() {
            println!("skipped: no {}", program.display());
            assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "no {}", program.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place = folder.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {place}/{kind}; "))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {place}/pid; error_log {place}/log; events {{}} \
             http {{ access_log off; {temporary} {settings} \
             server {{ listen {address}; location / {{ return 200 ok; }} }} }}"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let child = Command::new(program).args(["-e", "stderr", "-c"]).arg(&file).spawn().unwrap();
        let deadline = Instant::now() + common::PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { address, child, _folder: folder })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
