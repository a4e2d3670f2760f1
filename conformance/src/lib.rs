//! Runs the real programs in a lab and judges them by what others see: servers' logs, captures, counters.
//!
//! The demo, the tests in `tests/` and the benchmarks share these pieces. Nothing here decides what is right: each
//! expectation stands beside the request that it belongs to.

pub mod bench;
pub mod capture;
pub mod command;
pub mod demo;
pub mod flows;
pub mod load;
pub mod request;
pub mod shop;
pub mod skip;
