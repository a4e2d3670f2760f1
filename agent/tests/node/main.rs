//! The real program on a node of its own. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod changes;
mod fixture;
mod lifecycle;
mod problems;
mod repair;
mod streams;
mod verbs;
