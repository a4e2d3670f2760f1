//! Linux, safely wrapped: what the programs of a node need of the kernel, without `unsafe` for the caller.
//!
//! | module | what |
//! |---|---|
//! | [`descriptors`] | named file descriptors over a unix socket |
//! | [`master`] | a master that owns descriptors, its worker, and the hand-over to a successor |
//! | [`netns`] | network namespaces: open, create, run a closure inside |
//! | [`netlink`] | links, addresses, routes, rules, neighbours |
//! | [`tun`] | a persistent TUN device |
//! | [`udp`] | fragments of UDP datagrams |
//! | [`sysctl`] | kernel settings, in any network namespace |
//! | [`file`] | files that survive a crash |
//! | [`mount`] | the bpf file system |
//! | [`process`] | the calling process |

pub mod descriptors;
pub mod file;
pub mod master;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod sysctl;
pub mod tun;
pub mod udp;
