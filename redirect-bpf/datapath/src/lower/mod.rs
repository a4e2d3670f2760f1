//! From a policy snapshot to the contents of the maps.
//!
//! The engine decides, the lowering tabulates: [`lower`] asks [`policy::DirectionRules::decide`] once for each stretch of
//! ports on which the answer cannot change, and writes the answers down as prefixes. [`Installed`] compares snapshots
//! and plans the swap: rules of a ruleset never change in place, an endpoint is pointed at another one.

mod origins;
mod plan;
mod ports;
mod ruleset;

pub use origins::Origins;
pub use plan::{Attached, FullMap, Installed, Plan};
pub use ruleset::{CLOSED_RULESET, lower};

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
