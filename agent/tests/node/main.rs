//! The real program on a node of its own. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod fixture;
mod lifecycle;
mod streams;
