//! Resident memory of each program, idle with the example shop, and what an idle proxied connection takes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use host::netns::NetNs;
use lab::Lab;

use super::figures::Table;
use super::place::Relay;
use super::relay::BUFFER_BYTES;
use super::usage::{self, Memory};
use super::{NODE, PROXY};
use crate::shop;

/// Idle connections that are opened.
const CONNECTIONS: usize = 1_000;
/// Time in which nothing happens before memory is read.
const SETTLE: Duration = Duration::from_secs(1);
/// How long one request may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The shop's namespace, and who asks whom in it: both on the first node, where the rules for HTTP are in force.
const SHOP: (&str, &str, &str) = ("production", "frontend", "api-server-1");
/// An allowed request.
const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n";
/// Longest answer that is waited for.
const ANSWER_BYTES_MAX: usize = 4096;

/// Each program as it is now.
///
/// # Errors
/// If one does not run.
pub fn idle(lab: &Lab) -> Result<Table> {
    std::thread::sleep(SETTLE);
    let programs = [
        ("mesh-agent", lab.program_pid(NODE, "mesh-agent")?),
        ("mesh-proxy master", lab.program_pid(NODE, PROXY)?),
        ("mesh-proxy worker", lab.worker_pid(NODE, PROXY)?),
        ("mesh-wireguard master", lab.program_pid(NODE, "mesh-wireguard")?),
        ("mesh-wireguard worker", lab.worker_pid(NODE, "mesh-wireguard")?),
    ];
    let mut table = Table::new(
        format!("Resident memory on {NODE}, idle, with the example shop (2 nodes), KiB"),
        &["", "Rss", "Pss", "anonymous"],
    );
    let mut sum = Memory { rss: 0, pss: 0, anonymous: 0 };
    for (name, pid) in programs {
        let memory = usage::memory(pid).context(name)?;
        sum.rss += memory.rss;
        sum.pss += memory.pss;
        sum.anonymous += memory.anonymous;
        table.row(row(name, memory));
    }
    table.row(row("all", sum));
    Ok(table)
}

fn row(name: &str, memory: Memory) -> [String; 4] {
    [name.to_owned(), memory.rss.to_string(), memory.pss.to_string(), memory.anonymous.to_string()]
}

/// What idle connections add to the worker, and to the bare relay in its place.
///
/// # Errors
/// If they cannot be opened.
pub fn per_connection(lab: &Lab) -> Result<Table> {
    let title =
        format!("Memory for each of {CONNECTIONS} idle proxied connections, one request answered on each");
    let mut table = Table::new(title, &["", "KiB"]);
    let worker = lab.worker_pid(NODE, PROXY)?;
    table.row(["mesh-proxy worker".to_owned(), format!("{:.1}", added(lab, worker)?)]);
    ensure!(lab.worker_pid(NODE, PROXY)? == worker, "the proxy's worker died under the connections");
    let relay = Relay::start(lab)?;
    let name = format!("bare TCP relay in its place, two buffers of {} KiB", BUFFER_BYTES / 1024);
    table.row([name, format!("{:.1}", added(lab, relay.pid())?)]);
    relay.stop()?;
    Ok(table)
}

/// KiB of anonymous memory that each connection adds to a process.
fn added(lab: &Lab, pid: u32) -> Result<f64> {
    let (namespace, client, server) = SHOP;
    let server = SocketAddr::new(lab.pod_address(namespace, server)?, shop::HTTP_PORT);
    let place = NetNs::open(&lab.folder().pod_namespace(namespace, client))?;
    let before = usage::memory(pid)?.anonymous;
    let open = || (0..CONNECTIONS).map(|_| asked(server)).collect::<Result<Vec<_>>>();
    let connections = place.run(open)??;
    std::thread::sleep(SETTLE);
    let after = usage::memory(pid)?.anonymous;
    drop(connections);
    Ok(after.saturating_sub(before) as f64 / CONNECTIONS as f64)
}

/// A connection on which one request was answered.
fn asked(server: SocketAddr) -> Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&server, ANSWER_LIMIT).context("connect to the shop")?;
    connection.set_read_timeout(Some(ANSWER_LIMIT))?;
    connection.write_all(REQUEST)?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    let length = connection.read(&mut answer).context("wait for the shop's answer")?;
    let answer = answer.get(..length).unwrap_or_default();
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the shop answered {:?}", String::from_utf8_lossy(answer));
    Ok(connection)
}
