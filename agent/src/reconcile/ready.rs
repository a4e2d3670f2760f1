//! STATUS: whether pods can be attached, as far as this task knows.

use policy::Problem;

use super::Reconciler;
use crate::source::Source;

/// Whether pods can be attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why none can.
    pub refused: Vec<Problem>,
    /// What of the datapath is missing and could not be made again: pods that are attached may be
    /// cut off.
    pub lost: Vec<Problem>,
}

impl<S: Source> Reconciler<S> {
    /// Says what an ADD would meet now: the same answers, in the same words.
    pub(super) fn readiness(&mut self) -> Readiness {
        let now_ms = self.journal.clock().now_ms();
        let full = self.pool.as_mut().map(|pool| pool.can_take(now_ms));
        let refusal = match full {
            _ if self.network.is_none() => Some(self.not_ready().to_string()),
            None => Some("its pod range is not in use yet".to_owned()),
            Some(Err(full)) => Some(full.to_string()),
            Some(Ok(())) => None,
        };
        let mut refused: Vec<Problem> = refusal.iter().map(|message| self.node_problem(message)).collect();
        // An attachment is answered when its policy is in force.
        refused.extend(self.problems.retry.iter().cloned());
        Readiness { refused, lost: self.keeping.lost.clone() }
    }
}
