//! What peers that do not read can make the proxy keep in memory.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use common::frames::{
    self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PREFACE, Pump, SETTINGS, frame, read_frame,
};
use common::{FRONTEND, Origin, Rig, shop_policy_with};
use proxy::limits;
use serde_json::json;
use socket2::{Domain, Socket, Type};

const CONNECTIONS: usize = 100;
const STREAMS: u32 = 128;
/// kB that a connection with all its streams open may cost: a window of 512 KiB, some 5 for each stream (without optimisation),
/// and what the allocator leaves over.
const LIMIT: usize = 2048;

/// With as little room in the kernel as there can be.
fn small_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket
}

fn small_listener() -> TcpListener {
    let socket = small_socket();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

fn connect(rig: &Rig) -> std::net::TcpStream {
    let socket = small_socket();
    socket.bind(&SocketAddr::new(FRONTEND.into(), 0).into()).unwrap();
    socket.connect(&rig.address.into()).unwrap();
    socket.into()
}

fn open(server: SocketAddr) -> Rig {
    let mut rig = Rig::new(server, 8080);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/open" }]))));
    rig
}

/// Resident memory of this process in kB: the proxy's, since its peers here keep next to nothing.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Once it grows no more.
fn settled() -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut most, mut since) = (resident(), Instant::now());
    while since.elapsed() < Duration::from_secs(2) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        if resident() > most + 256 {
            (most, since) = (resident(), Instant::now());
        }
    }
    most
}

fn heads(head: &[u8], flags: u8) -> Vec<u8> {
    heads_of(STREAMS, head, flags)
}

fn heads_of(streams: u32, head: &[u8], flags: u8) -> Vec<u8> {
    (0..streams).flat_map(|stream| frame(HEADERS, END_HEADERS | flags, 2 * stream + 1, head)).collect()
}

/// Of clients that let the server send all it can and read nothing; kB for each.
fn downloads(piece: usize) -> usize {
    let origin = Origin::new(move |mut peer| {
        peer.send(frame(SETTINGS, 0, 0, &[]));
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        let mut pump = Pump::new(peer.stream);
        pump.piece = piece;
        pump.run(|stream| frame(HEADERS, END_HEADERS, stream, frames::OK));
    });
    let rig = open(origin.address);
    let before = settled();
    let _clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut client = connect(&rig);
            client.write_all(PREFACE).unwrap();
            client.write_all(&frames::all_windows_open()).unwrap();
            client.write_all(&heads(&frames::get("/open"), END_STREAM)).unwrap();
            client
        })
        .collect();
    (settled() - before) / CONNECTIONS
}

/// Of servers that let their clients send all they can and read nothing; kB for each.
fn uploads(piece: usize) -> usize {
    let origin = Origin::on(small_listener(), |mut peer| {
        peer.send(frames::all_windows_open());
        std::thread::sleep(Duration::from_secs(120));
    });
    let rig = open(origin.address);
    let before = settled();
    let _clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut client = connect(&rig);
            client.write_all(PREFACE).unwrap();
            client.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
            client.write_all(&heads(&frames::post("/open"), 0)).unwrap();
            let mut pump = Pump::new(client.try_clone().unwrap());
            pump.piece = piece;
            (0..STREAMS).for_each(|stream| pump.open(2 * stream + 1));
            std::thread::spawn(|| pump.run(|_| Vec::new()));
            client
        })
        .collect();
    (settled() - before) / CONNECTIONS
}

/// A head with these fields and one of some 60 kB, which is in no table.
fn large_head(stream: u32, fields: &[u8], flags: u8) -> Vec<u8> {
    const VALUE: usize = 60_000;
    // Its length is a number of RFC 7541 section 5.1 with a prefix of seven bits.
    let rest = VALUE - 127;
    let length = [127, (rest & 127 | 128) as u8, (rest >> 7 & 127 | 128) as u8, (rest >> 14) as u8];
    let block = [fields, &[0, 1, b'x'], &length, &[b'v'; VALUE]].concat();
    let parts: Vec<_> = block.chunks(16_384).collect();
    let part = |(index, part): (usize, &&[u8])| {
        let ends = if index + 1 == parts.len() { END_HEADERS } else { 0 };
        if index == 0 {
            frame(HEADERS, flags | ends, stream, part)
        } else {
            frame(CONTINUATION, ends, stream, part)
        }
    };
    parts.iter().enumerate().flat_map(part).collect()
}

/// Of one client that reads nothing, where each of its requests is answered with as many heads; kB.
fn heads_down(count: usize, status: &'static [u8], flags: u8) -> usize {
    let origin = Origin::new(move |mut peer| {
        peer.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        peer.send(frame(SETTINGS, 0, 0, &[]));
        while let Ok(got) = read_frame(&mut peer.stream) {
            let answers = if got.kind == HEADERS { count } else { 0 };
            (0..answers).for_each(|_| peer.send(large_head(got.stream, status, flags)));
        }
    });
    let rig = open(origin.address);
    let before = settled();
    let mut client = connect(&rig);
    client.write_all(PREFACE).unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    client.write_all(&heads(&frames::get("/open"), END_STREAM)).unwrap();
    settled() - before
}

/// Of one server that reads nothing, to whose client something is done after the preface; kB.
fn heads_up(send: impl FnOnce(&mut std::net::TcpStream)) -> usize {
    let origin = Origin::on(small_listener(), |mut peer| {
        peer.send(frames::all_windows_open());
        std::thread::sleep(Duration::from_secs(120));
    });
    let rig = open(origin.address);
    let before = settled();
    let mut client = connect(&rig);
    client.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    client.write_all(PREFACE).unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    send(&mut client);
    settled() - before
}

/// Requests that end with large trailers, more than a connection may have.
fn send_trailers(client: &mut std::net::TcpStream) {
    const MANY: u32 = 1000;
    client.write_all(&heads_of(MANY, &frames::post("/open"), 0)).unwrap();
    for stream in 0..MANY {
        // Perhaps the connection is ended before.
        let _ = client.write_all(&large_head(2 * stream + 1, &[], END_STREAM));
    }
}

/// Does `measure`, the work of the test of this name, alone in a process of its own: what one test has freed is no room for
/// the next.
fn alone(test: &str, measure: impl FnOnce()) {
    const ALONE: &str = "MESH_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return measure();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "no test has the name {test}: {text}");
    // The figures; what else it says would be counted as results of tests.
    text.lines().filter(|line| line.contains(" kB")).for_each(|line| println!("{line}"));
}

/// One connection has [`limits::H2_CONNECTION_BYTES`], and what its sockets gave in one turn.
fn check_heads(measured: usize, what: &str, limit: usize) {
    println!("{measured} kB of {what}");
    assert!(measured < limit, "{measured} kB");
}

fn check(measured: usize, what: &str, piece: usize) {
    println!("{measured} kB for each {what} that does not read, in pieces of {piece}");
    assert!(measured < LIMIT, "{measured} kB");
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount() {
    alone("a_client_that_does_not_read_costs_a_bounded_amount", || {
        check(downloads(16_384), "client", 16_384)
    });
}

#[test]
fn a_server_that_does_not_read_costs_a_bounded_amount() {
    alone("a_server_that_does_not_read_costs_a_bounded_amount", || check(uploads(16_384), "server", 16_384));
}

#[test]
fn small_pieces_cost_no_more() {
    alone("small_pieces_cost_no_more", || check(downloads(1), "client", 1));
}

#[test]
fn response_heads_for_a_client_that_does_not_read_are_bounded() {
    alone("response_heads_for_a_client_that_does_not_read_are_bounded", || {
        check_heads(heads_down(1, frames::OK, END_STREAM), "response heads", 4096)
    });
}

#[test]
fn interim_heads_for_a_client_that_does_not_read_are_bounded() {
    alone("interim_heads_for_a_client_that_does_not_read_are_bounded", || {
        check_heads(heads_down(limits::H2_INTERIM_RESPONSES, b"\x08\x03103", 0), "interim heads", 8192)
    });
}

#[test]
fn trailers_for_a_server_that_does_not_read_are_bounded() {
    alone("trailers_for_a_server_that_does_not_read_are_bounded", || {
        check_heads(heads_up(send_trailers), "trailers", limits::H2_CONNECTION_BYTES / 1024 + 8192)
    });
}
