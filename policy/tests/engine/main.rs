//! The engine against tables of what Cilium and Kubernetes do, published bypasses, and an evaluator of its own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod common;
mod empty_vs_absent;
mod example;
mod generate;
mod network_policy;
mod oracle;
mod overlap;
mod published_cases;
mod refused;
mod selectors;
mod snapshot;
