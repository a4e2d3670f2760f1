//! TCP throughput: pod to pod on one node beside plain veth routing, and across nodes beside Debian's `wireguard-go`.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use host::netns::NetNs;
use ipnet::Ipv4Net;
use lab::Lab;

use super::clients;
use super::figures::{Figures, Table};
use super::namespace::{End, Namespace, link, mtu_of};
use super::wireguard_go::WireguardGo;
use super::{NS, ROUNDS};
use crate::command::{Background, eventually};

/// How long a server may take to listen, and a tunnel to have its first handshake.
const START_LIMIT: Duration = Duration::from_secs(5);

/// Pod to pod on one node, next to three namespaces with a router in the middle.
///
/// # Errors
/// If anything cannot be set up or measured.
pub fn one_node(lab: &Lab) -> Result<Table> {
    let mtu = pod_mtu(lab)?;
    let plain = Routed::new(mtu)?;
    let ours = Path::between_pods(lab, "server")?;
    let peer = plain.path()?;
    compare(
        format!("TCP throughput on one node, MTU {mtu}, {}", how()),
        ("pod to pod, L4 policy in force", &ours),
        ("plain veth routing", &peer),
    )
}

/// Pod to pod across nodes, next to `wireguard-go` between two namespaces.
///
/// # Errors
/// If anything cannot be set up or measured.
pub fn across_nodes(lab: &Lab) -> Result<Table> {
    let mtu = pod_mtu(lab)?;
    let tunnel = WireguardGo::new(mtu, &super::scratch(lab, "wireguard-go")?)?;
    let ours = Path::between_pods(lab, "far-server")?;
    let peer = tunnel.path()?;
    compare(
        format!("TCP throughput across nodes, encrypted, MTU {mtu}, {}", how()),
        ("pod to pod on another node, L4 policy in force", &ours),
        ("wireguard-go, namespace to namespace", &peer),
    )
}

fn how() -> String {
    format!("iperf3, one stream, {ROUNDS} rounds of {} s", clients::RUN_SECONDS)
}

fn pod_mtu(lab: &Lab) -> Result<u32> {
    mtu_of(&NetNs::open(&lab.folder().pod_namespace(NS, "client"))?, "eth0")
}

/// Measures both in turn, so that what disturbs the machine disturbs both.
fn compare(title: String, ours: (&str, &Path<'_>), peer: (&str, &Path<'_>)) -> Result<Table> {
    let (mut our_runs, mut peer_runs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        our_runs.push(ours.1.measure().context(ours.0.to_owned())?);
        peer_runs.push(peer.1.measure().context(peer.0.to_owned())?);
    }
    let our_figures = Figures::new(our_runs).context("no runs")?;
    let peer_figures = Figures::new(peer_runs).context("no runs")?;
    let mut table = Table::new(title, &["", "Gbit/s", "ratio"]);
    table.row([ours.0.to_owned(), our_figures.spread(2), our_figures.times(&peer_figures)]);
    table.row([peer.0.to_owned(), peer_figures.spread(2), "1".to_owned()]);
    Ok(table)
}

impl WireguardGo {
    fn path(&self) -> Result<Path<'_>> {
        let (client, server, address) = self.ends();
        Path::new(|program| client.command(program), server.command("iperf3"), address.to_string())
    }
}

/// A client's place, and a running server.
struct Path<'a> {
    client: Box<dyn Fn(&str) -> Command + 'a>,
    address: String,
    _server: Background,
}

impl<'a> Path<'a> {
    /// Starts the server; `server` is the program `iperf3` at its place.
    fn new(client: impl Fn(&str) -> Command + 'a, mut server: Command, address: String) -> Result<Self> {
        server.args(["-s"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Background(server.spawn().context("start the iperf3 server")?);
        let path = Self { client: Box::new(client), address, _server: server };
        eventually(START_LIMIT, || path.reach())?;
        Ok(path)
    }

    fn between_pods(lab: &'a Lab, server: &str) -> Result<Self> {
        let address = lab.pod_address(NS, server)?.to_string();
        Self::new(
            |program| lab.pod_command(NS, "client", program),
            lab.pod_command(NS, server, "iperf3"),
            address,
        )
    }

    /// A run of 1 kB: whether the server is there.
    fn reach(&self) -> Result<()> {
        let mut iperf3 = (self.client)("iperf3");
        iperf3.args(["-c", &self.address, "-n", "1K", "--connect-timeout", "500"]);
        let finished = crate::command::run(&mut iperf3, START_LIMIT)?;
        anyhow::ensure!(finished.status.success(), "iperf3 to {}: {}", self.address, finished.stderr.trim());
        Ok(())
    }

    fn measure(&self) -> Result<f64> {
        clients::iperf3((self.client)("iperf3"), &self.address)
    }
}

/// Client, router and server, each in a namespace, with veths between.
struct Routed {
    client: Namespace,
    _router: Namespace,
    server: Namespace,
}

impl Routed {
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
    const TO_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
    const TO_SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);

    fn new(mtu: u32) -> Result<Self> {
        let (client, router, server) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        host::sysctl::write_in(router.netns(), "net.ipv4.ip_forward", "1")?;
        let legs = [
            (&client, Self::CLIENT, "to-client", Self::TO_CLIENT),
            (&server, Self::SERVER, "to-server", Self::TO_SERVER),
        ];
        for (namespace, address, router_device, router_address) in legs {
            let end = End { namespace, device: "eth0", address };
            link(end, End { namespace: &router, device: router_device, address: router_address }, mtu)?;
            namespace.route(Ipv4Net::default(), router_address, "eth0")?;
        }
        Ok(Self { client, _router: router, server })
    }

    fn path(&self) -> Result<Path<'_>> {
        Path::new(
            |program| self.client.command(program),
            self.server.command("iperf3"),
            Self::SERVER.to_string(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_with_can_be_reached() {
        if !crate::skip::lab_can_run() {
            return;
        }
        let (mtu, plain) = (1_420, Routed::new(1_420).unwrap());
        assert_eq!(mtu_of(plain.client.netns(), "eth0").unwrap(), mtu);
        plain.path().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tunnel = WireguardGo::new(mtu, folder.path()).unwrap();
        tunnel.path().unwrap();
        let socket = tunnel.control_socket();
        assert!(socket.exists(), "{}", socket.display());
        drop(tunnel);
        assert!(!socket.exists(), "{} is left", socket.display());
    }
}
