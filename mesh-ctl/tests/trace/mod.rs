//! Everything that a lab could leave behind, found without the lab's own code.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long something may take to vanish: other tests make and remove the same kinds of things meanwhile, and namespaces are
/// freed in the background.
const LIMIT: Duration = Duration::from_secs(20);

/// Lines that name what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    lab: String,
    found: BTreeSet<String>,
}

impl Trace {
    /// What there is now: of the whole machine links, routes, rules and namespaces; processes, mounts, pins, cgroups and files
    /// that carry the name `lab`.
    pub(crate) fn of(lab: &str) -> Self {
        let mut found = BTreeSet::new();
        for (what, arguments) in [
            ("link", ["-o", "link"].as_slice()),
            ("route", &["-4", "route", "show", "table", "all"]),
            ("rule", &["rule"]),
        ] {
            let listed = Command::new("ip").args(arguments).output().unwrap();
            // The state of a link and its counters may change.
            let name = |line: &str| {
                line.split_whitespace()
                    .take(if what == "link" { 2 } else { 20 })
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            found.extend(
                String::from_utf8_lossy(&listed.stdout).lines().map(|line| format!("{what} {}", name(line))),
            );
        }
        found.extend(names("/run/netns").map(|name| format!("namespace {name}")));
        for folder in [
            "/run/selvage-lab",
            "/sys/fs/bpf/selvage-lab",
            "/sys/fs/bpf",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/unified",
            "/run",
        ] {
            found.extend(
                names(folder).filter(|name| name.contains(lab)).map(|name| format!("file {folder}/{name}")),
            );
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(lab)).map(|line| format!("mount {line}")));
        found.extend(processes(lab));
        Self { lab: lab.to_owned(), found }
    }

    /// Waits until all that came since is gone.
    pub(crate) fn assert_same(&self) {
        let started = Instant::now();
        let mut left: Option<BTreeSet<String>> = None;
        loop {
            let now = Self::of(&self.lab).found;
            // What another test made and removes is not there at every look.
            let new = now
                .difference(&self.found)
                .filter(|item| left.as_ref().is_none_or(|left| left.contains(*item)));
            let new: BTreeSet<_> = new.cloned().collect();
            if new.is_empty() {
                return;
            }
            assert!(started.elapsed() < LIMIT, "left behind: {new:#?}");
            left = Some(new);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(Path::new(folder)).ok();
    entries.into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Other processes that were started with the lab's name in an argument.
fn processes(lab: &str) -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let pids = names("/proc").filter(|name| name.parse::<u32>().is_ok() && *name != own);
    pids.filter_map(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        command.contains(lab).then(|| format!("process {pid} {command}"))
    })
    .collect()
}

/// Pid and start of all processes in the namespaces in `folder` whose names begin with `lab`.
pub(crate) fn processes_in(folder: &str, lab: &str) -> BTreeSet<String> {
    let number = |path: String| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let namespaces = names(folder).filter(|name| name.starts_with(lab));
    let namespaces: BTreeSet<_> = namespaces.filter_map(|name| number(format!("{folder}/{name}"))).collect();
    let inside =
        |pid: &String| number(format!("/proc/{pid}/ns/net")).is_some_and(|id| namespaces.contains(&id));
    let pids = names("/proc").filter(|name| name.parse::<u32>().is_ok());
    pids.filter(inside).filter_map(|pid| Some(format!("{pid} {}", start_of(&pid)?))).collect()
}

/// Whether a process of [`processes_in`] still runs.
pub(crate) fn still_runs(process: &str) -> bool {
    process.split_once(' ').is_some_and(|(pid, start)| start_of(pid).is_some_and(|now| now == start))
}

/// Field 22 of `/proc/PID/stat`; the second one, the program's name, may have spaces in it.
fn start_of(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19).map(str::to_owned)
}
