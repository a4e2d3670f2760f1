//! What stands on the link between the nodes while pods and nodes talk across it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;

use super::{Judge, NAMESPACE};
use crate::capture::Capture;
use crate::command;
use crate::shop::HTTP_PORT;

/// Sent in a body: must be seen on the pod's own veth and nowhere between the nodes.
const MARKER: &str = "selvage-marker-5f1c9a7e";
/// Limit on one client.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn show(lab: &Lab, judge: &mut Judge) -> Result<()> {
    println!("\nThe link between the nodes, while a marker crosses it in a body:\n");
    let folder = tempfile::tempdir()?;
    let link =
        Capture::start(|program| lab.outside_command(program), "node-2", &folder.path().join("link.pcap"))?;
    let veth = lab.pod_host_interface(NAMESPACE, "api-server-2")?;
    let pod = Capture::start(
        |program| lab.node_command("node-2", program),
        &veth,
        &folder.path().join("pod.pcap"),
    )?;

    let other = lab.pod_address(NAMESPACE, "api-server-2")?;
    post_marker(lab, other)?;
    // No policy selects this one; the API server's would refuse a node.
    let open = lab.pod_address(NAMESPACE, "frontend-2")?;
    let from_host = ping(lab, Place::Node("node-1"), open)?;
    let to_node = ping(lab, Place::Pod("frontend"), lab.node_address("node-2")?)?;

    let (link, pod) = (link.finish()?, pod.finish()?);
    for (protocol, frames) in link.by_protocol() {
        println!("  {frames:>6} frames  {protocol}");
    }
    let on_link = judge.expect(!link.contain(MARKER.as_bytes()));
    println!("  marker on the link: {} ({on_link})", found(link.contain(MARKER.as_bytes())));
    let on_veth = judge.expect(pod.contain(MARKER.as_bytes()));
    println!("  marker on the pod's own veth: {} ({on_veth})", found(pod.contain(MARKER.as_bytes())));
    println!(
        "  host to remote pod: {}; pod to remote node: {}",
        judge.expect(from_host),
        judge.expect(to_node)
    );
    println!(
        "  frames in clear: {} ({})",
        link.in_clear(),
        judge.expect(link.in_clear() == 0 && !link.is_empty())
    );
    Ok(())
}

fn found(is: bool) -> &'static str {
    if is { "found" } else { "not found" }
}

fn post_marker(lab: &Lab, server: IpAddr) -> Result<()> {
    let mut curl = lab.pod_command(NAMESPACE, "frontend", "curl");
    curl.args(["-sS", "-f", "-m", "5", "-H", "Content-Type: application/json", "--data-binary", MARKER]);
    curl.arg(format!("http://{server}:{HTTP_PORT}/api/v1/orders"));
    let sent = command::run(&mut curl, LIMIT).context("send the marker")?;
    ensure!(sent.status.success(), "the marker was not sent: {}", sent.stderr);
    Ok(())
}

/// Where a ping starts.
enum Place {
    Pod(&'static str),
    Node(&'static str),
}

/// Whether `target` answers a TCP connection: a reset is an answer too, since only who hears can refuse.
fn ping(lab: &Lab, place: Place, target: IpAddr) -> Result<bool> {
    let mut curl = match place {
        Place::Pod(pod) => lab.pod_command(NAMESPACE, pod, "curl"),
        Place::Node(node) => lab.node_command(node, "curl"),
    };
    curl.args(["-sS", "-m", "3", "-o", "/dev/null", &format!("http://{target}:9/")]);
    /// `curl`: could not connect, because it was refused.
    const REFUSED: i32 = 7;
    Ok(matches!(command::run(&mut curl, LIMIT)?.status.code(), Some(0 | REFUSED)))
}
