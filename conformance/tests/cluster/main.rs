//! Tests of whole clusters: the real programs in a lab, judged from outside. `README.md` beside this file says where a
//! new test goes.

mod fixture;

mod connections;
mod encryption;
mod forwarded;
mod policy_changes;
mod requests;
mod survival;
