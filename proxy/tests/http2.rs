//! HTTP/2 frame by frame, with `h2` as client and server.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use common::{FRONTEND, PATIENCE, Rig, frames, shop_policy_with};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use proxy::limits::{self, Timeouts};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;

type Stream = (Request<RecvStream>, SendResponse<Bytes>);

/// A server whose requests the test answers itself.
async fn origin() -> (SocketAddr, mpsc::UnboundedReceiver<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok(stream)) = connection.accept().await {
                    let _ = sender.send(stream);
                }
            });
        }
    });
    (address, requests)
}

async fn client(rig: &Rig) -> SendRequest<Bytes> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(FRONTEND.into(), 0)).unwrap();
    let stream = socket.connect(rig.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn open(origin: SocketAddr, timeouts: Timeouts) -> Rig {
    let mut rig = Rig::with(origin, 8080, timeouts);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/open.*" }]))));
    rig
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://api{path}")).body(()).unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[tokio::test]
async fn nothing_is_added_and_trailers_pass_both_ways() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let mut client = client(&rig).await;
    let mut request = Request::put("http://Api.example:80/open/%41?b=c").body(()).unwrap();
    request.headers_mut().append("x-a", "1".parse().unwrap());
    request.headers_mut().append("x-a", "2".parse().unwrap());
    let sent_headers = request.headers().clone();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data("abc".into(), false).unwrap();
    body.send_trailers(HeaderMap::from_iter([("x-up".parse().unwrap(), "u".parse().unwrap())])).unwrap();

    let (request, mut respond) = within(requests.recv()).await.unwrap();
    assert_eq!(
        (request.method(), request.uri().to_string().as_str()),
        (&Method::PUT, "http://Api.example:80/open/%41?b=c")
    );
    assert_eq!(request.headers(), &sent_headers);
    let mut upload = request.into_body();
    assert_eq!(within(upload.data()).await.unwrap().unwrap(), "abc");
    assert_eq!(within(upload.trailers()).await.unwrap().unwrap()["x-up"], "u");
    respond
        .send_informational(Response::builder().status(103).header("link", "</a>").body(()).unwrap())
        .unwrap();
    let mut reply = respond
        .send_response(Response::builder().status(299).header("x-b", "3").body(()).unwrap(), false)
        .unwrap();
    reply.send_data("def".into(), false).unwrap();
    reply.send_trailers(HeaderMap::from_iter([("x-down".parse().unwrap(), "d".parse().unwrap())])).unwrap();

    let mut response = response;
    let interim = within(poll_fn(|context| response.poll_informational(context))).await.unwrap().unwrap();
    assert_eq!(
        (interim.status(), &interim.headers()["link"]),
        (103.try_into().unwrap(), &"</a>".parse::<http::HeaderValue>().unwrap())
    );
    let response = within(response).await.unwrap();
    let expected = HeaderMap::from_iter([("x-b".parse().unwrap(), "3".parse().unwrap())]);
    assert_eq!((response.status().as_u16(), response.headers()), (299, &expected));
    let mut download = response.into_body();
    assert_eq!(within(download.data()).await.unwrap().unwrap(), "def");
    assert_eq!(within(download.trailers()).await.unwrap().unwrap()["x-down"], "d");
    let record = rig.record();
    assert_eq!((record.status, record.reason, &record.host[..]), (299, "forwarded", &b"Api.example:80"[..]));
}

/// RFC 9113 section 8.2.3: clients split Cookie into one field for each cookie.
#[tokio::test]
async fn cookies_are_judged_as_one_list_and_forwarded_as_they_came() {
    let (address, mut requests) = origin().await;
    let mut rig = Rig::new(address, 8080);
    rig.apply(
        2,
        Some(shop_policy_with(json!([
            { "path": "/list", "headers": ["Cookie: a=1; b=2"] },
            { "path": "/comma", "headers": ["Cookie: a=1,b=2"] },
        ]))),
    );
    let mut client = client(&rig).await;
    for (path, cookies, passes) in [
        ("/list", &["a=1", "b=2"][..], true),
        ("/list", &["a=1; b=2"], true),
        ("/list", &["a=1"], false),
        ("/list", &["b=2", "a=1"], false),
        ("/comma", &["a=1", "b=2"], false),
        ("/comma", &["a=1,b=2"], true),
    ] {
        let mut request = get(path);
        for cookie in cookies {
            request.headers_mut().append("cookie", cookie.parse().unwrap());
        }
        let (response, _) = client.send_request(request, true).unwrap();
        if passes {
            let (request, mut respond) = within(requests.recv()).await.unwrap();
            let got: Vec<_> = request.headers().get_all("cookie").iter().collect();
            assert_eq!(got, cookies);
            respond.send_response(Response::new(()), true).unwrap();
        }
        let status = within(response).await.unwrap().status().as_u16();
        assert_eq!(status, if passes { 200 } else { 403 }, "{path} with {cookies:?}");
    }
}

#[tokio::test]
async fn trailers_that_would_change_a_judged_head_are_not_passed_on() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let mut client = client(&rig).await;
    let request = Request::put("http://api.example/open").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data("abc".into(), false).unwrap();
    body.send_trailers(HeaderMap::from_iter([("authorization".parse().unwrap(), "x".parse().unwrap())]))
        .unwrap();
    let (request, _respond) = within(requests.recv()).await.unwrap();
    let mut upload = request.into_body();
    let mut last = within(upload.data()).await;
    while let Some(Ok(_)) = last {
        last = within(upload.data()).await;
    }
    assert!(
        matches!(last, Some(Err(_))),
        "the server must see a broken request, not one that looks complete"
    );
    assert_eq!(within(response).await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
}

#[tokio::test]
async fn refusals_are_403_and_leave_the_connection() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let mut client = client(&rig).await;
    let (response, _) = client.send_request(get("/closed"), true).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (403, &"text/plain".parse::<http::HeaderValue>().unwrap())
    );
    assert_eq!(within(response.into_body().data()).await.unwrap().unwrap(), "Access denied\r\n");
    // Also when the client is still sending: it may go on, and no reset overtakes the answer.
    let (response, mut body) = client.send_request(get("/closed"), false).unwrap();
    assert_eq!(within(response).await.unwrap().status().as_u16(), 403);
    for _ in 0..40 {
        body.reserve_capacity(16_384);
        let room = within(poll_fn(|context| body.poll_capacity(context))).await.unwrap().unwrap();
        body.send_data(vec![0; room].into(), false).unwrap();
    }
    let reset = tokio::time::timeout(Duration::from_millis(50), poll_fn(|context| body.poll_reset(context)));
    assert!(reset.await.is_err(), "the upload is reset");
    body.send_data(Bytes::new(), true).unwrap();
    assert!(requests.try_recv().is_err());

    let (response, _) = client.send_request(get("/open"), true).unwrap();
    let (_, mut respond) = within(requests.recv()).await.unwrap();
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(within(response).await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let mut client = client(&rig).await;
    let host = |hosts: &[&str]| {
        let mut request = get("/open");
        for host in hosts {
            request.headers_mut().append("host", host.parse().unwrap());
        }
        request
    };
    let connect = Request::builder().method("CONNECT").uri("api:80").body(()).unwrap();
    for (request, status) in [
        (host(&["other"]), 400),
        (host(&["api", "api"]), 400),
        (get("/open/..%2f"), 403),
        (get("/closed/../open"), 403),
        (get("/%6fpen"), 403),
        (get("/../open"), 400),
        (get("/open%zz"), 400),
        (Request::get("http://user@api/open").body(()).unwrap(), 400),
        (connect, 405),
    ] {
        let name = format!("{request:?}");
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(within(response).await.unwrap().status().as_u16(), status, "{name}");
        assert!(!rig.record().allowed);
    }
    assert!(requests.try_recv().is_err());
    let (_response, _) = client.send_request(host(&["API"]), true).unwrap();
    within(requests.recv()).await.unwrap();
    let unusual = "/open/@scope%2fname//;x?q=\u{e9}";
    let (_response, _) = client.send_request(get(unusual), true).unwrap();
    let (request, _) = within(requests.recv()).await.unwrap();
    assert_eq!(request.uri().path_and_query().unwrap().as_str(), unusual);
}

/// RFC 9113 section 8.1.1: what is wrong with one request is no other's affair. All of them are
/// answered and recorded as HTTP/1 does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_head_is_answered_and_recorded_and_costs_the_others_nothing() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let mut client = rig.client(FRONTEND);
    client.send(frames::PREFACE).send(frames::frame(frames::SETTINGS, 0, 0, &[]));
    let head = |stream, block: &[u8]| {
        frames::frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, stream, block)
    };
    client.send(head(1, &frames::get("/open/first")));
    let (_, mut first) = within(requests.recv()).await.unwrap();
    let with = |name: &str, value: &str| [frames::get("/open"), frames::field(name, value)].concat();
    let mut stream = 1;
    for block in [
        with("X-Upper", "a"),
        with("x y", "a"),
        with("x", "a\0b"),
        with("x", "a\nb"),
        with(":unknown", "a"),
        with(":path", "/open"),
        with("connection", "close"),
        with("transfer-encoding", "chunked"),
        with("content-length", "x"),
        with("content-length", "5"),
        frames::get("/open#a"),
        frames::get("/open a"),
        [vec![0x82, 0x86], frames::field(":path", "/open"), frames::field(":authority", "a b")].concat(),
    ] {
        stream += 2;
        client.send(head(stream, &block));
        loop {
            let got = frames::read_frame(&mut client.0).expect("an answer");
            match got.kind {
                frames::HEADERS if got.stream == stream => break,
                frames::RST_STREAM | frames::GOAWAY => panic!("{got:?} for {block:?}"),
                _ => {}
            }
        }
        let record = rig.record();
        assert_eq!((record.reason, record.status, record.allowed), ("bad_request", 400, false), "{block:?}");
        assert_eq!(&record.method[..], b"GET");
        assert!(record.path.starts_with(b"/open"), "{record:?}");
    }
    // What comes after them is good still, and so is what came before.
    client.send(head(stream + 2, &frames::get("/open/last")));
    let (request, mut last) = within(requests.recv()).await.unwrap();
    assert_eq!(request.uri().path(), "/open/last");
    last.send_response(Response::new(()), true).unwrap();
    first.send_response(Response::new(()), true).unwrap();
    assert_eq!((rig.record().reason, rig.record().reason), ("forwarded", "forwarded"));
}

#[test]
fn what_no_request_can_be_found_in_is_recorded() {
    let origin = common::Origin::polite();
    let rig = Rig::new(origin.address, 8080);
    let mut client = rig.client(FRONTEND);
    client.send(frames::PREFACE).send(frames::frame(frames::SETTINGS, 0, 0, &[]));
    client.send(frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &[0xff, 0xff]));
    let record = rig.record();
    assert_eq!((record.protocol, record.reason, record.status), ("HTTP/2", "bad_request", 0));
}

#[tokio::test]
async fn reset_codes_pass() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let mut client = client(&rig).await;
    // Before the response, and within it.
    let (response, _) = client.send_request(get("/open/1"), true).unwrap();
    within(requests.recv()).await.unwrap().1.send_reset(Reason::ENHANCE_YOUR_CALM);
    assert_eq!(within(response).await.unwrap_err().reason(), Some(Reason::ENHANCE_YOUR_CALM));
    let (response, _) = client.send_request(get("/open/2"), true).unwrap();
    let mut reply = within(requests.recv()).await.unwrap().1.send_response(Response::new(()), false).unwrap();
    let mut download = within(response).await.unwrap().into_body();
    reply.send_reset(Reason::INADEQUATE_SECURITY);
    assert_eq!(
        within(download.data()).await.unwrap().unwrap_err().reason(),
        Some(Reason::INADEQUATE_SECURITY)
    );
    // From the client.
    let (response, mut upload) = client.send_request(get("/open/3"), false).unwrap();
    let (request, _respond) = within(requests.recv()).await.unwrap();
    upload.send_reset(Reason::CANCEL);
    assert_eq!(within(request.into_body().data()).await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    drop(response);
}

#[tokio::test]
async fn a_new_snapshot_resets_a_running_response() {
    let (address, mut requests) = origin().await;
    let mut rig = open(address, Timeouts::default());
    let mut client = client(&rig).await;
    let (response, _) = client.send_request(get("/open/a"), true).unwrap();
    let (other, _) = client.send_request(get("/open/b"), true).unwrap();
    let (waiting, _) = client.send_request(get("/open/ac"), true).unwrap();
    let mut reply = within(requests.recv()).await.unwrap().1.send_response(Response::new(()), false).unwrap();
    let mut other_reply = within(requests.recv()).await.unwrap().1;
    let (_request, _respond) = within(requests.recv()).await.unwrap();
    let mut download = within(response).await.unwrap().into_body();
    rig.apply(3, Some(shop_policy_with(json!([{ "path": "/open/b" }]))));
    assert!(within(download.data()).await.unwrap().unwrap_err().is_reset());
    assert!(within(poll_fn(|context| reply.poll_reset(context))).await.is_ok(), "the server is told");
    assert_eq!(
        within(waiting).await.unwrap().status().as_u16(),
        403,
        "a response that has not begun is a refusal"
    );
    other_reply.send_response(Response::new(()), true).unwrap();
    assert_eq!(within(other).await.unwrap().status().as_u16(), 200);
    assert_eq!(rig.counters.ended_by_policy.get(), 2);
}

#[tokio::test]
async fn a_slow_reader_holds_the_server_back_and_then_loses_its_stream() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts { stall: Duration::from_millis(500), ..Timeouts::default() });
    let mut client = client(&rig).await;
    let (response, _) = client.send_request(get("/open"), true).unwrap();
    let mut reply = within(requests.recv()).await.unwrap().1.send_response(Response::new(()), false).unwrap();
    let _unread = within(response).await.unwrap().into_body();
    let mut sent = 0;
    let reset = within(poll_fn(|context| {
        loop {
            if let std::task::Poll::Ready(reset) = reply.poll_reset(context) {
                return std::task::Poll::Ready(reset.unwrap());
            }
            reply.reserve_capacity(65536);
            match std::task::ready!(reply.poll_capacity(context)) {
                Some(Ok(room)) => {
                    sent += room;
                    reply.send_data(vec![0; room].into(), false).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }))
    .await;
    assert_eq!(reset, Reason::CANCEL);
    assert!(sent < 2 * limits::H2_STREAM_WINDOW_BYTES as usize, "{sent} bytes were taken from the server");
    assert_eq!(rig.record().reason, "timed_out");
}

#[tokio::test]
async fn a_client_that_only_cancels_is_sent_away() {
    let (address, mut requests) = origin().await;
    let rig = open(address, Timeouts::default());
    let client = client(&rig).await;
    let mut held = Vec::new();
    let sent_away = loop {
        let mut client = match within(client.clone().ready()).await {
            Ok(client) => client,
            Err(error) => break error,
        };
        let Ok((_response, mut stream)) = client.send_request(get("/open"), false) else { continue };
        // Each has become a request of the server before it is cancelled.
        tokio::select! {
            request = within(requests.recv()) => held.push(request.unwrap()),
            _ = poll_fn(|context| stream.poll_reset(context)) => continue,
        }
        stream.send_reset(Reason::CANCEL);
        assert!(
            held.len() <= 2 * limits::H2_CANCELLED_STREAMS as usize,
            "{} requests reached the server",
            held.len()
        );
    };
    assert_eq!(sent_away.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{sent_away:?}");
    assert_eq!(rig.counters.too_many_cancelled.get(), 1);
}
