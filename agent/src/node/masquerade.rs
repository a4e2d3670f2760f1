//! The one nftables table: masquerade towards the world, and no connection tracking for what the datapath tracks itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use layout::mark;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The table; everything in it is ours.
const TABLE: &str = "inet selvage";
/// `nft` answers within milliseconds; behind a very large ruleset of others within seconds.
const NFT_LIMIT: Duration = Duration::from_secs(10);

/// Why the firewall table is not in place.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program could not be run.
    #[error("cannot run nft (Debian package nftables): {0}")]
    Run(#[source] io::Error),
    /// It did not answer.
    #[error("nft did not end within {NFT_LIMIT:?}")]
    Slow,
    /// It refused the rules.
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// Puts the table in place, whatever was in it, in one transaction.
pub(super) async fn apply(
    pod_network: IpNet,
    own_ranges: &[IpNet],
    nodes: &[IpAddr],
) -> Result<(), FirewallError> {
    nft(&script(pod_network, own_ranges, nodes)).await
}

/// Removes the table if it is there.
pub(super) async fn remove() -> Result<(), FirewallError> {
    nft(&format!("add table {TABLE}\ndelete table {TABLE}\n")).await
}

fn script(pod_network: IpNet, own_ranges: &[IpNet], nodes: &[IpAddr]) -> String {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let ranges = list(&mut own_ranges.iter().map(ToString::to_string));
    // A set may name nothing twice.
    let nodes: BTreeSet<_> = nodes.iter().filter(|node| !pod_network.contains(*node)).collect();
    let spared =
        list(&mut std::iter::once(pod_network.to_string()).chain(nodes.iter().map(ToString::to_string)));
    let mark = |value: u32| format!("meta mark & {:#x} == {value:#x}", mark::MASK);
    let mut text = format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    // Towards the world a pod speaks as its node.
    let _ = writeln!(text, "  chain to_world {{");
    let _ = writeln!(text, "    type nat hook postrouting priority srcnat; policy accept;");
    let _ = writeln!(text, "    ip saddr {{ {ranges} }} ip daddr != {{ {spared} }} masquerade");
    let _ = writeln!(text, "  }}");
    // What the datapath judged and keeps an entry of. Otherwise rules such as "ct state invalid drop", which see only
    // one half of such a connection, break it.
    let _ = writeln!(text, "  chain untracked_in {{");
    let _ = writeln!(text, "    type filter hook prerouting priority raw; policy accept;");
    let _ = writeln!(text, "    {} notrack", mark(mark::TO_PROXY));
    let _ = writeln!(text, "    {} ip daddr {pod_network} notrack", mark(mark::JUDGED));
    let _ = writeln!(text, "  }}");
    let _ = writeln!(text, "  chain untracked_out {{");
    let _ = writeln!(text, "    type filter hook output priority raw; policy accept;");
    let _ = writeln!(text, "    {} ip saddr {pod_network} notrack", mark(mark::FROM_PROXY));
    let _ = writeln!(text, "  }}\n}}");
    text
}

async fn nft(script: &str) -> Result<(), FirewallError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(FirewallError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // That it ended early shows in its exit status.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = tokio::time::timeout(NFT_LIMIT, child.wait_with_output()).await;
    let output = output.map_err(|_| FirewallError::Slow)?.map_err(FirewallError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(FirewallError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
