//! The policy engine: pods, nodes and policy objects in; a numbered [`Snapshot`] and a list of [`Problem`]s out.
//!
//! The one place that decides. The proxy, the lowering to BPF maps, `mesh-ctl explain` and the tests all ask the same
//! [`Snapshot`], so they cannot disagree. Pure: no clock, no I/O, no runtime.
//!
//! Reading order: [`World`] (input), [`compile()`], [`Ruleset`] (what a policy becomes), [`Snapshot`] (the answers).
//! What is wrong or not understood denies and is listed as a [`Problem`]; it is never skipped.

mod admission;
mod compile;
mod decide;
pub mod identity;
mod manifest;
mod origin;
mod pattern;
mod protocol;
mod readings;
mod rules;
mod snapshot;
mod world;

pub use admission::{Admitted, Head, HeadProblem, HttpVersion, RequestBody, content_length};
pub use compile::{Problem, compile};
pub use decide::{
    ConnectionDecision, DirectionDecision, Flow, RequestDecision, RequestHead, RequestPolicy, Scope, Verdict,
};
pub use identity::{Identities, IdentityEntry, IdentityId, IdentityLabels};
pub use origin::Origin;
pub use pattern::{Pattern, PatternError};
pub use protocol::{Direction, Protocol};
pub use readings::{Readings, TargetProblem};
pub use rules::{Action, DirectionRules, HeaderMatch, HttpRule, Peers, PortRange, Ports, Rule, Ruleset};
pub use snapshot::{EndpointPolicy, Snapshot, SnapshotError, SnapshotParts};
pub use world::{Labels, NamedPort, Node, Pod, PolicyKind, PolicyObject, World};
