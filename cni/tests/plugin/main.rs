//! The plugin as a runtime sees it: a real process, real namespaces, and an agent of the test.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod agent;
mod attach;
mod node;
mod protocol;
