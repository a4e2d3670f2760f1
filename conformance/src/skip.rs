//! A test that cannot run where it is says so, loudly.

/// Why this machine cannot run a test that needs namespaces and eBPF; `None` if it can.
fn lacks() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF");
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("no /dev/net/tun");
    }
    None
}

/// Whether a test that needs a lab can run. If not, prints `skipped: reason`, which `scripts/test.sh` counts.
///
/// # Panics
/// If it cannot and `MESH_REQUIRE_ALL=1`: where everything must run, a skip is a failure.
#[expect(clippy::panic, reason = "a skip where MESH_REQUIRE_ALL is set must fail the test")]
pub fn lab_can_run() -> bool {
    match lacks() {
        None => true,
        Some(reason) if std::env::var_os("MESH_REQUIRE_ALL").is_some_and(|value| value == "1") => {
            panic!("MESH_REQUIRE_ALL=1, but this machine lacks something: {reason}")
        }
        Some(reason) => {
            println!("skipped: {reason}");
            false
        }
    }
}
