//! Everything that is wrong, gathered from where it is known; and its lines in the log.

use std::collections::BTreeMap;
use std::time::Duration;

use policy::Problem;
use tokio::time::Instant;

/// Lines at once. A node has a handful of problems when something breaks; hundreds of policies may
/// be wrong together.
const BURST: u32 = 20;
/// Pause for one more line. With it a problem that comes and goes writes no more than this for
/// hours.
const PAUSE: Duration = Duration::from_secs(3);
/// How often it is said how many had no line.
const SUM_PAUSE: Duration = Duration::from_secs(60);
/// A problem has ended once it is away for so long: one that is tried again each second is away for
/// a moment each time.
const ENDED: Duration = Duration::from_secs(2);

/// Problems by where they come from, replaced there.
#[derive(Default)]
pub(super) struct Problems {
    /// Found at the start.
    pub(super) start: Vec<Problem>,
    pub(super) compile: Vec<Problem>,
    /// Of this node's network and its ways to the others.
    pub(super) node: Vec<Problem>,
    /// Something that is being tried again.
    pub(super) retry: Vec<Problem>,
    pub(super) kernel: Vec<Problem>,
}

/// Writes one WARN when a problem appears and one INFO when it has ended.
pub(super) struct ProblemLog {
    known: BTreeMap<Key, Known>,
    /// Lines that may be written now.
    lines: u32,
    refilled: Instant,
    /// Problems that had no line since that was said last.
    untold: usize,
    summed_up: Option<Instant>,
}

/// Where, and the message without its digits: a duration that grows makes no new problem.
type Key = (String, String);

struct Known {
    /// As it was told.
    problem: Problem,
    is_told: bool,
    away_since: Option<Instant>,
}

impl ProblemLog {
    pub(super) fn new(now: Instant) -> Self {
        Self { known: BTreeMap::new(), lines: BURST, refilled: now, untold: 0, summed_up: None }
    }

    /// Takes over what is wrong now.
    pub(super) fn follow(&mut self, problems: &[Problem], now: Instant) {
        self.refill(now);
        for known in self.known.values_mut() {
            known.away_since.get_or_insert(now);
        }
        for problem in problems {
            let known = self.known.entry(key(problem));
            let known = known.or_insert_with(|| {
                let is_told = self.lines > 0;
                if is_told {
                    self.lines -= 1;
                    tracing::warn!(location = problem.location, why = problem.message, "problem");
                } else {
                    self.untold += 1;
                }
                Known { problem: problem.clone(), is_told, away_since: None }
            });
            known.away_since = None;
        }
        let may_sum_up = self.summed_up.is_none_or(|at| now.duration_since(at) >= SUM_PAUSE);
        if self.untold > 0 && may_sum_up {
            tracing::warn!(untold = self.untold, "more problems: `mesh-ctl status` lists all of them");
            (self.untold, self.summed_up) = (0, Some(now));
        }
        self.end(now);
    }

    fn end(&mut self, now: Instant) {
        let lines = &mut self.lines;
        self.known.retain(|_, known| {
            let has_ended = known.away_since.is_some_and(|since| now.duration_since(since) >= ENDED);
            if has_ended && known.is_told && *lines > 0 {
                *lines -= 1;
                let Problem { location, message: why } = &known.problem;
                tracing::info!(location, why, "problem has ended");
            }
            !has_ended
        });
    }

    fn refill(&mut self, now: Instant) {
        let due = now.duration_since(self.refilled).as_millis() / PAUSE.as_millis();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        if due > 0 {
            self.lines = self.lines.saturating_add(due).min(BURST);
            self.refilled = now;
        }
    }

    /// When a problem that is away will have ended.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.away_since).min().map(|since| since + ENDED)
    }
}

fn key(problem: &Problem) -> Key {
    let message = problem.message.chars().filter(|c| !c.is_ascii_digit()).collect();
    (problem.location.clone(), message)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;

    /// Collects lines as `LEVEL text location`.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    struct Text<'a>(&'a mut String);

    impl Visit for Text<'_> {
        fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
            self.0.push_str(&format!(" {value:?}"));
        }
    }

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = event.metadata().level().to_string();
            event.record(&mut Text(&mut line));
            self.0.lock().unwrap().push(line);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    fn problem(location: &str, message: &str) -> Problem {
        Problem { location: location.into(), message: message.into() }
    }

    fn logged(work: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), work);
        std::mem::take(&mut *lines.0.lock().unwrap())
    }

    #[test]
    fn a_problem_is_told_once_when_it_appears_and_once_when_it_has_ended() {
        let start = Instant::now();
        let lines = logged(|| {
            let mut log = ProblemLog::new(start);
            for second in 0..60 {
                // Its age grows, and it is away for a moment each second: it is tried again.
                let silent = [problem("tunnel", &format!("silent for {second} s"))];
                log.follow(&silent, start + Duration::from_secs(second));
                log.follow(&[], start + Duration::from_secs(second) + Duration::from_millis(100));
            }
            log.follow(&[], start + Duration::from_secs(70));
            log.follow(&[], start + Duration::from_secs(80));
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("WARN") && lines[0].contains("silent for 0 s"), "{lines:?}");
        assert!(lines[1].starts_with("INFO") && lines[1].contains("tunnel"), "{lines:?}");
    }

    #[test]
    fn a_thousand_problems_and_one_that_comes_and_goes_write_few_lines() {
        let start = Instant::now();
        let many: Vec<_> =
            (0..1000).map(|i| problem(&format!("NetworkPolicy a/p{i}"), "spec is wrong")).collect();
        let lines = logged(|| ProblemLog::new(start).follow(&many, start));
        assert_eq!(lines.len(), BURST as usize + 1);
        assert!(lines.last().unwrap().contains("980"), "{:?}", lines.last());

        let lines = logged(|| {
            let mut log = ProblemLog::new(start);
            for round in 0..200 {
                let now = start + Duration::from_secs(3 * round);
                log.follow(&[problem("proxy", "gone")], now);
                log.follow(&[], now + Duration::from_millis(10));
                log.follow(&[], now + Duration::from_millis(2500));
            }
        });
        assert!(lines.len() <= BURST as usize + 200 + 11, "{}", lines.len());
    }
}
