//! Processes: known by pid *and* start time, found by the network namespace that they are in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long a killed process may take to be gone. The kernel frees sockets and maps first.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a process that was asked to end may take: longer than the supervisor needs to kill and reap what runs in its lab.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(5);
/// A process that was about to enter a namespace when it was emptied is found this much later.
const LATECOMER: Duration = Duration::from_millis(30);

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number.
    pub pid: u32,
    /// Start time in clock ticks since boot, as `/proc/PID/stat` has it.
    pub started: u64,
}

impl ProcessId {
    /// The running process `pid`.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses, and may contain anything.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        // Field 22, of which `state` is the third.
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    /// Whether it still runs (a zombie does not).
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Asks it to end with SIGTERM and waits; kills it if it does not. Returns whether it is gone.
    pub fn end(self) -> bool {
        let started = Instant::now();
        if self.is_alive() {
            signal(self.pid, Signal::SIGTERM);
        }
        while self.is_alive() && started.elapsed() < END_LIMIT {
            std::thread::sleep(POLL);
        }
        self.kill()
    }

    /// Kills it with SIGKILL and waits. Returns whether it is gone.
    pub fn kill(self) -> bool {
        let started = Instant::now();
        while self.is_alive() {
            if started.elapsed() > KILL_LIMIT {
                return false;
            }
            signal(self.pid, Signal::SIGKILL);
            std::thread::sleep(POLL);
        }
        true
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may be gone already, and that is what was wanted.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Device and inode of a namespace.
type NamespaceId = (u64, u64);

fn namespace_id(path: &Path) -> Option<NamespaceId> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Network namespaces of a lab, as sets of processes. They stay open, since the number of one that has ended is given to the
/// next, which may be anybody's.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(BTreeMap<NamespaceId, File>);

impl Namespaces {
    /// Those bound to `files`. A file to which none is bound stands for nothing, and the machine's own is never among them.
    pub(crate) fn at(files: &[PathBuf]) -> Self {
        let own = ["/proc/self/ns/net", "/proc/1/ns/net"].map(|path| namespace_id(Path::new(path)));
        let namespace_device = own[0].map(|(device, _)| device);
        let open = |path: &PathBuf| {
            let file = File::open(path).ok()?;
            let metadata = file.metadata().ok()?;
            Some(((metadata.dev(), metadata.ino()), file))
        };
        let mut found: BTreeMap<_, _> = files.iter().filter_map(open).collect();
        found.retain(|id, _| Some(id.0) == namespace_device && !own.contains(&Some(*id)));
        Self(found)
    }

    /// Pids of all processes inside.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            namespace_id(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|id| self.0.contains_key(&id))
        })
        .collect()
    }

    /// Kills everything inside until nothing is left. Returns the pids that would not go.
    pub(crate) fn kill_all(&self) -> Vec<u32> {
        let started = Instant::now();
        let mut empty = 0;
        loop {
            let inside = self.processes();
            if inside.is_empty() {
                empty += 1;
                if empty == 2 {
                    return inside;
                }
                std::thread::sleep(LATECOMER);
                continue;
            }
            empty = 0;
            if started.elapsed() > KILL_LIMIT {
                return inside;
            }
            for pid in inside {
                signal(pid, Signal::SIGKILL);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Held by tests that have children, since one of them reaps all it finds.
#[cfg(test)]
pub(crate) static CHILDREN: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_alive_until_killed_and_never_mistaken() {
        let _children = CHILDREN.lock().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        let other = ProcessId { started: id.started + 1, ..id };
        assert!(!other.is_alive());
        assert!(other.kill(), "another process of that number is gone already");
        assert!(id.is_alive(), "and this one was not touched");
        assert!(id.kill());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn the_own_namespace_is_never_emptied() {
        let files = ["/proc/self/ns/net", "/proc/1/ns/net", "/etc/passwd", "/nowhere"].map(PathBuf::from);
        assert!(Namespaces::at(&files).0.is_empty());
        assert!(Namespaces::at(&files).processes().is_empty());
    }
}
