//! `mesh-wireguard`: the master owns the TUN device, the UDP socket and the key; the worker, unprivileged, carries packets.
//!
//! A successor takes the descriptors as they are: another `device`, `port` or key takes effect with a restart of the whole program.

mod config;
mod master;
mod worker;

pub use self::config::{Config, ConfigError, Options};
pub use self::master::{SetupError, run as run_master};
pub use self::worker::{WorkerFailed, run as run_worker};

/// Names of the descriptors that the master hands to workers and successors.
const TUN: &str = "tun";
const UDP: &str = "udp";
const PRIVATE_KEY: &str = "private-key";
