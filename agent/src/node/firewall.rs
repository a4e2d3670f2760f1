//! The one nftables table: masquerade towards the world, no connection tracking for what the datapath tracks itself, and
//! nothing in clear to other nodes' pods, also while somebody has removed the routes.

use std::fmt::Write as _;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use layout::mark;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NodeNetwork;
use crate::names::HOST_PREFIX;

/// The table; everything in it is ours.
const TABLE: &str = "inet selvage";
/// Its name without the family.
pub(super) const TABLE_NAME: &str = "selvage";
/// `nft` answers within milliseconds; behind a very large ruleset of others within seconds. Changes of policy wait as long.
const NFT_LIMIT: Duration = Duration::from_secs(5);

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

/// The table as it was last put in place.
#[derive(Debug, Default)]
pub(super) struct Firewall {
    /// The script, and how `nft` lists what came of it.
    applied: Option<(String, String)>,
}

impl NodeNetwork {
    /// Puts the table in place, whatever is in it, in one transaction. Whether it was not there, or a different one.
    pub(super) async fn ensure_firewall(&mut self) -> Result<bool, FirewallError> {
        let script = self.script();
        if let Some((known, listing)) = &self.firewall.applied
            && *known == script
            && list().await?.as_ref() == Some(listing)
        {
            return Ok(false);
        }
        self.firewall.applied = None;
        nft(&["-f", "-"], &script).await?.map_err(FirewallError::Refused)?;
        let vanished = || FirewallError::Refused("the table vanished at once".to_owned());
        let listing = list().await?.ok_or_else(vanished)?;
        self.firewall.applied = Some((script, listing));
        Ok(true)
    }

    /// Whether the table is missing, or another one than was last put in place.
    pub(super) async fn has_lost_firewall(&self) -> Result<bool, FirewallError> {
        let Some((script, listing)) = &self.firewall.applied else { return Ok(true) };
        Ok(*script != self.script() || list().await?.as_ref() != Some(listing))
    }

    fn script(&self) -> String {
        let pod_network = self.config.pod_network;
        let ranges = set(self.pod_sources());
        // Not the whole pod network: an address that no node owns may be a service's, which
        // netfilter translates.
        let pods = set(self.pod_sources().into_iter().chain(self.pods_elsewhere()));
        // What is in the pod network is spared with it.
        let nodes = self.peers.iter().flat_map(|peer| &peer.addresses).chain([&self.address]);
        let nodes = nodes.filter(|address| address.is_ipv4() && !pod_network.contains(*address));
        let spared = set(nodes.map(|&address| IpNet::from(address)).chain([pod_network]));
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
        let _ = writeln!(text, "    {} ip daddr {{ {pods} }} notrack", mark(mark::JUDGED));
        let _ = writeln!(text, "  }}");
        let _ = writeln!(text, "  chain untracked_out {{");
        let _ = writeln!(text, "    type filter hook output priority raw; policy accept;");
        let _ = writeln!(text, "    {} ip saddr {{ {pods} }} notrack", mark(mark::FROM_PROXY));
        let _ = writeln!(text, "  }}");
        text.push_str(&self.never_in_clear(&ranges));
        text.push_str("}\n");
        text
    }

    /// Where pods of other nodes send from.
    fn pods_elsewhere(&self) -> impl Iterator<Item = IpNet> {
        let ranges = self.peers.iter().flat_map(|peer| peer.pod_ranges.iter().copied());
        ranges.filter(|net| net.addr().is_ipv4())
    }

    /// Routes say the same, but routes are many people's: while somebody has flushed them, these rules still stand.
    fn never_in_clear(&self, own: &str) -> String {
        let v4 = |net: &IpNet| net.addr().is_ipv4();
        let pods = set(self.pods_elsewhere());
        let nodes = self.peers.iter().flat_map(|peer| &peer.addresses).map(|&address| IpNet::from(address));
        let nodes = set(nodes.filter(v4));
        let mut text = String::new();
        if !self.config.encryption {
            return text;
        }
        // Through the tunnel, or to a pod of this node, whose address may be in what is another node's range by now.
        let elsewhere = format!("oifname != \"{}\" oifname != \"{HOST_PREFIX}*\"", self.config.tunnel_device);
        let _ = writeln!(text, "  chain never_in_clear {{");
        let _ = writeln!(text, "    type filter hook postrouting priority filter; policy accept;");
        if !pods.is_empty() {
            // A range that is written too large must not cut nodes off from each other: their tunnels end there.
            let nodes = if nodes.is_empty() { String::new() } else { format!(" ip daddr != {{ {nodes} }}") };
            let _ = writeln!(text, "    {elsewhere} ip daddr {{ {pods} }}{nodes} drop");
        }
        if !nodes.is_empty() {
            let _ = writeln!(text, "    {elsewhere} ip saddr {{ {own} }} ip daddr {{ {nodes} }} drop");
        }
        let _ = writeln!(text, "  }}");
        text
    }
}

/// The elements of a set: it may name nothing twice, also not in part.
fn set(nets: impl IntoIterator<Item = IpNet>) -> String {
    let nets = IpNet::aggregate(&nets.into_iter().collect());
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Removes the table if it is there.
pub(super) async fn remove() -> Result<(), FirewallError> {
    let script = format!("add table {TABLE}\ndelete table {TABLE}\n");
    nft(&["-f", "-"], &script).await?.map(drop).map_err(FirewallError::Refused)
}

/// How `nft` lists the table; none if it is not there.
async fn list() -> Result<Option<String>, FirewallError> {
    let arguments = ["-n", "list", "table"].into_iter().chain(TABLE.split(' '));
    Ok(nft(&arguments.collect::<Vec<_>>(), "").await?.ok())
}

/// What `nft` printed, or why it refused.
async fn nft(arguments: &[&str], script: &str) -> Result<Result<String, String>, FirewallError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
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
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

#[cfg(test)]
mod tests {
    use super::super::{network_of_a_test, peer_of_a_test};

    #[tokio::test]
    async fn sets_name_nothing_twice_and_a_range_that_is_too_large_does_not_cut_nodes_off() {
        let peers = [
            ([10, 99, 0, 2], "10.0.0.0/9"),
            ([172, 31, 3, 2], "10.2.0.0/16"),
            ([172, 31, 3, 2], "10.2.0.0/16"),
        ];
        let peers = peers.map(|(address, range)| peer_of_a_test(address, range));
        let mut network = network_of_a_test(&[], peers.to_vec());
        network.strays = vec!["10.5.0.7".parse().unwrap()];
        let script = network.script();
        for rule in [
            "ip saddr { 10.1.0.0/16, 10.5.0.7/32 } ip daddr != { 10.0.0.0/8, 172.31.3.2/32 } masquerade",
            "meta mark & 0xf00 == 0x300 ip daddr { 10.0.0.0/9 } notrack",
            "ip daddr { 10.0.0.0/9 } ip daddr != { 10.99.0.2/32, 172.31.3.2/32 } drop",
            "ip saddr { 10.1.0.0/16, 10.5.0.7/32 } ip daddr { 10.99.0.2/32, 172.31.3.2/32 } drop",
        ] {
            assert!(script.contains(rule), "{rule}\n{script}");
        }
        let plain = network_of_a_test(&["--encryption", "false"], peers.to_vec());
        assert!(!plain.script().contains("drop"));
        assert!(!network_of_a_test(&[], Vec::new()).script().contains("drop"));
    }
}
