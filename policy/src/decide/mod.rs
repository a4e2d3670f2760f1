//! Verdicts on a snapshot: connections (L3/L4) and requests (L7).

mod connection;
mod request;

pub use connection::{ConnectionDecision, DirectionDecision, Flow, Verdict};
pub use request::{RequestDecision, RequestHead, RequestPolicy, Scope};
