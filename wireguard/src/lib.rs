//! The encryption data path of a node: IP packets of a TUN device to and from UDP, with WireGuard (Donenfeld, "WireGuard: Next
//! Generation Kernel Network Tunnel"), by boringtun.
//!
//! | module | what |
//! |---|---|
//! | [`tunnel`] | the protocol without I/O: peers, cryptokey routing, sessions, timers |
//! | [`peers`] | a set of peers, and its checks |
//! | [`keys`] | the node's key pair: file, and the way to the worker |
//! | [`device`] | the loop between TUN, UDP and [`tunnel`] |
//! | [`control`] | the agent's stream of peer sets, and the last good one on disk |
//! | [`program`] | `mesh-wireguard`: master and worker |
//!
//! Datagrams are not padded to 16 bytes as the paper has it: boringtun does not, every implementation accepts that, and so a packet of
//! the TUN's MTU never outgrows the path. What padding would hide, the last four bits of a packet's length, shows on the wire.

mod allowed_ips;
pub mod control;
pub mod device;
pub mod keys;
mod packet;
mod peer;
pub mod peers;
pub mod program;
pub mod tunnel;
