//! Tests of whole clusters: the real programs in a lab, judged from outside. `README.md` beside this file says where a
//! new test goes.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how they fail")]

mod fixture;

mod addresses;
mod connections;
mod encryption;
mod forwarded;
mod path_mtu;
mod plugin;
mod policy_changes;
mod requests;
mod survival;
