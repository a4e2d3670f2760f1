//! What peers that do not read can make the proxy keep in memory.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use common::frames::{self, END_HEADERS, END_STREAM, HEADERS, PREFACE, Pump, SETTINGS, frame};
use common::{FRONTEND, Origin, Rig, shop_policy_with};
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
    (0..STREAMS).flat_map(|stream| frame(HEADERS, END_HEADERS | flags, 2 * stream + 1, head)).collect()
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

/// Runs the test of this name again, alone in a process of its own: what one test has freed is no room for the next.
fn alone(test: &str) -> Option<String> {
    const ALONE: &str = "MESH_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

fn check(measured: usize, what: &str, piece: usize) {
    println!("{measured} kB for each {what} that does not read, in pieces of {piece}");
    assert!(measured < LIMIT, "{measured} kB");
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount() {
    match alone("a_client_that_does_not_read_costs_a_bounded_amount") {
        Some(text) => println!("{text}"),
        None => check(downloads(16_384), "client", 16_384),
    }
}

#[test]
fn a_server_that_does_not_read_costs_a_bounded_amount() {
    match alone("a_server_that_does_not_read_costs_a_bounded_amount") {
        Some(text) => println!("{text}"),
        None => check(uploads(16_384), "server", 16_384),
    }
}

#[test]
fn small_pieces_cost_no_more() {
    match alone("small_pieces_cost_no_more") {
        Some(text) => println!("{text}"),
        None => check(downloads(1), "client", 1),
    }
}
