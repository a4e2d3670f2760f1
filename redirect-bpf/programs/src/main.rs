//! The eBPF programs of a node. They decide, for each packet to or from a pod, whether it goes straight on, to the
//! proxy, or nowhere.
//!
//! | program | hook | file |
//! |---|---|---|
//! | `from_pod` | tcx ingress, host side of a pod's veth | `from_pod.rs` |
//! | `to_pod` | tcx egress, host side of a pod's veth | `to_pod.rs` |
//! | `from_tunnel` | tcx ingress, the TUN of the tunnel | `from_tunnel.rs` |
//! | `from_uplink` | tcx ingress, the uplink | `from_uplink.rs` |
//! | `to_uplink` | tcx egress, the uplink | `to_uplink.rs` |
//! | `pick_listener` | sk_lookup, the node's network namespace | `pick_listener.rs` |
//!
//! A packet's way through the files: `packet` reads the headers, `ends` says who its two ends are,
//! `decide` applies the rules in their order (with `connections` for the table, `sockets` for the
//! node's sockets, `judge` for policy, `icmp` for errors, `fragments` for what comes in pieces),
//! `actions` turns the answer into what the kernel shall do, `report` counts and tells. Every
//! refusal is an `Err(Reason)` that ends in a program's `ON_ERROR`.
//!
//! On any other target than bpf this is an empty program, so that the workspace can be checked as a whole.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "helpers of the kernel, map values and packet fields are raw pointers here"
    )
)]

#[cfg(target_arch = "bpf")]
mod actions;
#[cfg(target_arch = "bpf")]
mod connections;
#[cfg(target_arch = "bpf")]
mod decide;
#[cfg(target_arch = "bpf")]
mod ends;
#[cfg(target_arch = "bpf")]
mod fragments;
#[cfg(target_arch = "bpf")]
mod from_pod;
#[cfg(target_arch = "bpf")]
mod from_tunnel;
#[cfg(target_arch = "bpf")]
mod from_uplink;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod judge;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod pick_listener;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod sockets;
#[cfg(target_arch = "bpf")]
mod to_pod;
#[cfg(target_arch = "bpf")]
mod to_uplink;

/// Never reached: the verifier refuses a program in which it could be.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel offers most helpers to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
