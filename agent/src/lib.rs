//! The control program of a node: watches the source of truth, compiles policy, fills the datapath, hands out addresses,
//! serves the API. It is never in the way of a packet: its death changes no traffic.

pub mod config;
pub mod source;
pub mod ipam;
pub mod journal;
