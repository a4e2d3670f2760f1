//! Frees the entries of dead processes. A worker outlives its master by a moment, a pod's process may fork and leave children
//! behind: they all become the supervisor's, so that a lab that is gone is gone from the process table too.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Longest wait at the end for children that were killed.
const LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked for them.
const POLL: Duration = Duration::from_millis(5);

/// Makes orphans below the calling process its children.
pub(super) fn adopt_orphans() {
    if let Err(errno) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!(%errno, "orphans will be init's to reap");
    }
}

/// Reaps dead children that nobody waits for.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    /// Dead at the last look. Whoever waits for a child takes it at once; what is still there at the next look is an orphan.
    suspects: BTreeSet<i32>,
}

impl Reaper {
    /// To be called about once a second.
    pub(super) fn look(&mut self) {
        let dead = dead_children();
        for pid in self.suspects.intersection(&dead) {
            // Taken meanwhile: just as well.
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        self.suspects = dead;
    }
}

fn dead_children() -> BTreeSet<i32> {
    let mut dead = BTreeSet::new();
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return dead };
    for thread in threads.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        dead.extend(
            children
                .split_ascii_whitespace()
                .filter(|pid| is_dead(pid))
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    dead
}

fn is_dead(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('Z'))
}

/// Reaps all children, which have been killed; at the end of the process.
pub(super) fn reap_all() {
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(POLL),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_dead_child_is_reaped_at_the_second_look_and_a_living_one_is_not() {
        let _children = crate::process::CHILDREN.lock().unwrap();
        let mut living = Command::new("sleep").arg("60").spawn().unwrap();
        let mut dead = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(dead.id()).unwrap();
        let started = Instant::now();
        while !dead_children().contains(&pid) {
            assert!(started.elapsed() < LIMIT, "`true` does not end");
            std::thread::sleep(POLL);
        }
        let mut reaper = Reaper::default();
        reaper.look();
        assert!(dead_children().contains(&pid), "its owner was not given the time to take it");
        reaper.look();
        assert!(!dead_children().contains(&pid));
        assert!(dead.wait().is_err(), "somebody else took it");
        assert!(living.try_wait().unwrap().is_none());
        living.kill().unwrap();
        living.wait().unwrap();
    }
}
