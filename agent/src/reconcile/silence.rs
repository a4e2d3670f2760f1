//! Proxies and tunnels that are connected and say nothing any more. An open socket proves no life:
//! the kernel keeps it open for a process that is stopped or hangs.

use api::agent::{SnapshotAck, TunnelReport};
use policy::Problem;

use super::Reconciler;
use crate::source::Source;

/// Looks in a row, one each [`api::REPEAT`], at which a program has said nothing since the one
/// before; it is taken for hung then. Looks are counted, not time: an agent that was stopped or
/// busy itself finds what came meanwhile before the second look.
const SILENT_LOOKS: u32 = 4;

/// What was heard of a connected program.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Voice {
    /// Whether it speaks unasked.
    repeats: bool,
    silent_looks: u32,
}

impl Voice {
    pub(super) fn of_proxy(ack: &SnapshotAck) -> Self {
        Self { repeats: ack.repeats, silent_looks: 0 }
    }

    pub(super) fn of_tunnel(report: &TunnelReport) -> Self {
        Self { repeats: report.repeats, silent_looks: 0 }
    }

    pub(super) fn is_hung(self) -> bool {
        self.repeats && self.silent_looks >= SILENT_LOOKS
    }

    /// One look more without a word. Whether it has just become silent for too long.
    fn look(&mut self) -> bool {
        let before = self.is_hung();
        self.silent_looks = self.silent_looks.saturating_add(1);
        self.is_hung() && !before
    }
}

impl<S: Source> Reconciler<S> {
    /// To be called each [`api::REPEAT`].
    pub(super) fn count_silence(&mut self) {
        for proxy in self.proxies.values_mut().filter_map(|proxy| proxy.voice.look().then_some(&proxy.state))
        {
            tracing::warn!(pid = proxy.pid, "the proxy is connected and silent: it hangs");
        }
        if let Some((_, report)) = &self.tunnel
            && self.tunnel_voice.look()
        {
            tracing::warn!(pid = report.pid, "the tunnel is connected and silent: it hangs");
        }
    }

    pub(super) fn hung_programs(&self) -> Vec<Problem> {
        let hung = |name: &str, pid: u32, effect: &str| Problem {
            location: format!("{name}, process {pid}"),
            message: format!(
                "connected, but silent for {} s or more: it hangs, and {effect}. Its master replaces a worker that hangs within seconds; \
                 if this stays, restart the program",
                SILENT_LOOKS * u32::try_from(api::REPEAT.as_secs()).unwrap_or(u32::MAX)
            ),
        };
        let proxies = self.proxies.values().filter(|proxy| proxy.voice.is_hung());
        let mut problems: Vec<Problem> = proxies
            .map(|proxy| {
                hung("mesh-proxy", proxy.state.pid, "requests on ports with rules on requests wait for ever")
            })
            .collect();
        if let Some((_, report)) = self.tunnel.as_ref().filter(|_| self.tunnel_voice.is_hung()) {
            problems.push(hung("mesh-wireguard", report.pid, "no packet goes to or comes from other nodes"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_repeats_itself_can_be_silent_for_too_long_and_one_word_ends_it() {
        let ack = SnapshotAck { repeats: true, ..SnapshotAck::default() };
        let mut voice = Voice::of_proxy(&ack);
        let looks: Vec<bool> = (0..SILENT_LOOKS + 2).map(|_| voice.look()).collect();
        assert_eq!(looks.iter().filter(|new| **new).count(), 1, "said once");
        assert!(voice.is_hung());
        assert!(!Voice::of_proxy(&ack).is_hung());
        // A program of before this version speaks only when something is new.
        let mut old = Voice::of_tunnel(&TunnelReport::default());
        assert!((0..100).all(|_| !old.look()) && !old.is_hung());
    }
}
