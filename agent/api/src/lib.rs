//! The wire between the programs of a node: protobuf messages over unix sockets, client and server.
//!
//! Nothing is decided here. Conversions between messages and the records of the `policy` crate stand in `snapshot`.

pub mod connect;
pub mod log;
pub mod names;
pub mod snapshot;

/// How often proxy and tunnel tell the agent of their state, also if nothing is new.
pub const REPEAT: std::time::Duration = std::time::Duration::from_secs(2);

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::large_futures,
        clippy::too_many_lines,
        reason = "generated"
    )]
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

/// Hubble's flow messages.
pub use generated::flow;
/// Hubble's observer service.
pub use generated::observer;
/// Messages and services of the agent.
pub use generated::selvage::agent::v1 as agent;
/// Compiled policy on the wire.
pub use generated::selvage::policy::v1 as policy;
