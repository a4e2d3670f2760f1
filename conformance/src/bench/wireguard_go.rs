//! Debian's `wireguard-go` between two namespaces on a veth: what our tunnel is compared with.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::Ipv4Net;
use nix::sys::signal::Signal;

use super::namespace::{End, Namespace, link};
use crate::command::{self, Background, eventually};

/// Room that encryption takes from a packet: IPv6, UDP and WireGuard, as ours.
const OVERHEAD: u32 = 80;
/// The port of both ends.
const PORT: u16 = 51820;
/// Limit on starting and on each call of `wg`.
const LIMIT: Duration = Duration::from_secs(5);

/// A namespace with one end of the tunnel.
struct Side {
    // Before the namespace: it ends first.
    daemon: Background,
    namespace: Namespace,
    device: String,
    public_key: String,
    outer: Ipv4Addr,
    inner: Ipv4Addr,
}

/// Both ends, connected.
pub(super) struct WireguardGo {
    client: Side,
    server: Side,
}

impl WireguardGo {
    /// Starts both; devices have `mtu`, the link beneath what that needs. Keys are written to `folder`.
    pub(super) fn new(mtu: u32, folder: &Path) -> Result<Self> {
        let (a, b) = (Namespace::new()?, Namespace::new()?);
        let (outer_a, outer_b) = (Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2));
        let end_a = End { namespace: &a, device: "eth0", address: outer_a };
        let end_b = End { namespace: &b, device: "eth0", address: outer_b };
        link(end_a, end_b, mtu + OVERHEAD)?;
        let client = Side::start(a, 'a', outer_a, Ipv4Addr::new(10, 79, 0, 1), mtu, folder)?;
        let server = Side::start(b, 'b', outer_b, Ipv4Addr::new(10, 79, 0, 2), mtu, folder)?;
        client.add_peer(&server)?;
        server.add_peer(&client)?;
        Ok(Self { client, server })
    }

    /// Namespace of the client, of the server, and the server's address within the tunnel.
    pub(super) fn ends(&self) -> (&Namespace, &Namespace, Ipv4Addr) {
        (&self.client.namespace, &self.server.namespace, self.server.inner)
    }

    /// Where one of them is controlled: all that it leaves in the file system.
    #[cfg(test)]
    pub(super) fn control_socket(&self) -> std::path::PathBuf {
        std::path::PathBuf::from(format!("/var/run/wireguard/{}.sock", self.client.device))
    }
}

impl Side {
    fn start(
        namespace: Namespace,
        letter: char,
        outer: Ipv4Addr,
        inner: Ipv4Addr,
        mtu: u32,
        folder: &Path,
    ) -> Result<Self> {
        // Its control socket has the device's name, in a folder that all namespaces share.
        let device = format!("svb{}{letter}", std::process::id());
        let mut daemon = namespace.command("wireguard-go");
        daemon
            .args(["--foreground", &device])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let daemon = Background(daemon.spawn().context("start wireguard-go")?);
        eventually(LIMIT, || wg(namespace.command("wg"), &["show", &device]))?;

        let private_key = wg(Command::new("wg"), &["genkey"])?;
        let key_file = folder.join(&device);
        std::fs::write(&key_file, &private_key)?;
        let port = PORT.to_string();
        let key_path = key_file.to_string_lossy();
        wg(namespace.command("wg"), &["set", &device, "listen-port", &port, "private-key", &key_path])?;
        let public_key = wg(namespace.command("wg"), &["show", &device, "public-key"])?;
        let side = Self { daemon, namespace, device, public_key: public_key.trim().to_owned(), outer, inner };
        side.namespace.set_mtu(&side.device, mtu)?;
        side.namespace.configure(&side.device, Ipv4Net::new(inner, 24)?)?;
        Ok(side)
    }

    fn add_peer(&self, peer: &Self) -> Result<()> {
        let (allowed, endpoint) = (format!("{}/32", peer.inner), format!("{}:{PORT}", peer.outer));
        let set =
            ["set", &self.device, "peer", &peer.public_key, "allowed-ips", &allowed, "endpoint", &endpoint];
        wg(self.namespace.command("wg"), &set).map(drop)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It removes its control socket when it is asked to end; killed, it would not.
        let _ = command::stop(&mut self.daemon.0, Signal::SIGTERM);
    }
}

fn wg(mut wg: Command, arguments: &[&str]) -> Result<String> {
    let finished = command::run(wg.args(arguments), LIMIT)?;
    ensure!(finished.status.success(), "wg {}: {}", arguments.join(" "), finished.stderr.trim());
    Ok(finished.stdout)
}
