//! Kernel settings that the datapath depends on.

use host::sysctl::SysctlError;

use super::NodeError;

/// Written at the start and whenever somebody changed them; kept when the agent ends.
const WRITTEN: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    // Else a TIME_WAIT of the proxy swallows a later direct connection on the same port.
    ("net.ipv4.tcp_early_demux", "0"),
    // Packets that are steered through the loopback device may have an address of this node as their source.
    ("net.ipv4.conf.lo.accept_local", "1"),
    // The way back of such packets is not through the loopback device.
    ("net.ipv4.conf.lo.rp_filter", "2"),
];

/// The agent refuses to start if one of these is set.
pub(super) fn check(uplink: &str) -> Result<(), NodeError> {
    let mut keys = vec!["net/ipv4/tcp_fwmark_accept".to_owned(), "net/ipv4/fwmark_reflect".to_owned()];
    for device in ["all", "default", "lo", uplink] {
        keys.push(format!("net/ipv4/conf/{device}/src_valid_mark"));
    }
    for key in keys {
        let value = host::sysctl::read(&key)?;
        if value != "0" {
            return Err(NodeError::Setting { key, value });
        }
    }
    Ok(())
}

/// Each setting, and whether it had to be written.
pub(super) fn write() -> impl Iterator<Item = (&'static str, Result<bool, SysctlError>)> {
    WRITTEN.iter().map(|&(key, value)| (key, ensure(key, value)))
}

/// Packets of a peer's own address come in through the tunnel, and answers to that address may leave through the uplink:
/// "loose" reverse path filtering, in place of a strict one that a distribution may have set for all devices. Whether it
/// had to be written.
pub(super) fn write_tunnel(device: &str) -> Result<bool, SysctlError> {
    ensure(&format!("net/ipv4/conf/{device}/rp_filter"), "2")
}

/// Only written if it differs: containers often have `/proc/sys` read-only and the right values already.
fn ensure(key: &str, value: &str) -> Result<bool, SysctlError> {
    let differs = host::sysctl::read(key)? != value;
    if differs {
        host::sysctl::write(key, value)?;
    }
    Ok(differs)
}
