//! Names of devices that the agent gives and the plugin must recognise.

/// Hex digits in the name of a host side: as many as fit into the kernel's 15 bytes after the
/// prefix and keep one free.
const DIGITS: usize = 11;
/// How the names of host sides begin; nothing else on a node begins so.
pub const HOST_PREFIX: &str = "sv";

/// Name of the host side of a veth: `sv` and 11 hex digits of a hash of container ID and interface.
pub fn host_interface(container_id: &str, interface: &str) -> String {
    // FNV-1a (64 bits) stays the same in every version; the standard library's hasher does not. A
    // collision gains nothing: the agent refuses the second of two such pods.
    let bytes = container_id.bytes().chain([0]).chain(interface.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // Folded, so that the bits that are cut off count too.
    let folded = (hash ^ (hash >> 44)) & ((1 << 44) - 1);
    format!("{HOST_PREFIX}{folded:011x}")
}

/// Whether a device has a name as [`host_interface`] gives them.
pub fn is_host_interface(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX).is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interfaces_fit_the_kernel_and_differ() {
        let names = [("a", "eth0"), ("a", "eth1"), ("b", "eth0"), ("ae", "th0")]
            .map(|(container, interface)| host_interface(container, interface));
        for name in &names {
            assert!(is_host_interface(name) && name.len() < 15, "{name}");
        }
        assert_eq!(std::collections::BTreeSet::from(names.clone()).len(), names.len());
        // Never to change: pods of before an upgrade have these names.
        assert_eq!(host_interface("a", "eth0"), "sv3ec05b5da06");
        for other in ["eth0", "sv", "sv0123456789g", "svABCDEF01234", "sv0123456789ab"] {
            assert!(!is_host_interface(other), "{other}");
        }
    }
}
