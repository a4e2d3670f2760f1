//! Which address belongs to whom, on disk before anybody is told.
//!
//! An append-only file of JSON lines, synced after each; a kill at any byte leaves at most a cut-off last line, which was
//! never acted upon and is dropped. Rewritten whole (crash-safely) at the start and when it has grown.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

mod contents;

use crate::clock::Clock;

use contents::Line;
pub use contents::{Allocation, AttachmentKey, Contents, Veth};

/// Lines beyond what is live before the file is rewritten: some hundred kilobytes.
const MAX_DEAD_LINES: usize = 4096;

/// Why an address could not be recorded; nobody may be told of it then.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file could not be opened, read or written.
    #[error("journal {}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file could not be rewritten.
    #[error("journal: {0}")]
    Rewrite(#[from] host::file::FileError),
    /// An entry could not be put into words.
    #[error("journal: {0}")]
    Json(#[from] serde_json::Error),
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// None until it could be rewritten: the next line is written with the whole file.
    file: Option<File>,
    clock: Clock,
    contents: Contents,
    dead_lines: usize,
}

impl Journal {
    /// Opens the journal, or makes an empty one. Returns what in it could not be read, for people.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Vec<String>), JournalError> {
        let failed =
            |source| JournalError::Io { action: "tell the time for it", path: path.to_owned(), source };
        Self::open_at(path, Clock::open().map_err(failed)?)
    }

    fn open_at(path: &Path, clock: Clock) -> Result<(Self, Vec<String>), JournalError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(JournalError::Io { action: "read it", path: path.to_owned(), source }),
        };
        let (contents, problems) = Contents::parse(&bytes, &clock.now());
        // On a full disk what pods have goes on; only new addresses cannot be given.
        let file = rewrite(path, &contents)
            .map_err(|error| tracing::warn!(%error, "the journal is as the agent before left it"))
            .ok();
        Ok((Self { path: path.to_owned(), file, clock, contents, dead_lines: 0 }, problems))
    }

    /// What time it is for [`Self::release`] and [`Self::released`].
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Addresses that are free, and when each was given back, in milliseconds of [`Clock::now_ms`]. Before the machine
    /// started is as it started: other nodes remember connections for a while.
    pub fn released(&self) -> impl Iterator<Item = (IpAddr, Option<u64>)> {
        self.contents.released.iter().map(|(&address, at)| (address, self.clock.in_this_boot(at).or(Some(0))))
    }

    /// What it says.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Records an allocation, new or changed; it keeps its number, or gets the next. Durable when this returns.
    ///
    /// # Errors
    /// It is not recorded.
    pub fn allocate(&mut self, allocation: Allocation) -> Result<(), JournalError> {
        let number = self.contents.number(&allocation.key);
        self.append(Line::Allocated(Allocation { number, ..allocation }))
    }

    /// Records that an address is free since now. Durable when this returns.
    ///
    /// # Errors
    /// It is not recorded.
    pub fn release(&mut self, address: IpAddr) -> Result<(), JournalError> {
        self.append(Line::released(address, self.clock.now()))
    }

    fn append(&mut self, line: Line) -> Result<(), JournalError> {
        let mut file = match self.file.take().filter(|_| self.dead_lines <= MAX_DEAD_LINES) {
            Some(file) => file,
            None => {
                let file = rewrite(&self.path, &self.contents)?;
                self.dead_lines = 0;
                file
            }
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        // After an error a line may be there in part, and the file is rewritten before another is
        // added.
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        written.map_err(|source| JournalError::Io {
            action: "write to it",
            path: self.path.clone(),
            source,
        })?;
        self.file = Some(file);
        self.contents.apply(line, &self.clock.now());
        self.dead_lines += 1;
        Ok(())
    }
}

fn rewrite(path: &Path, contents: &Contents) -> Result<File, JournalError> {
    let mut text = Vec::new();
    for line in contents.lines() {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    host::file::write(path, &text, 0o600)?;
    let opened = OpenOptions::new().append(true).mode(0o600).open(path);
    opened.map_err(|source| JournalError::Io { action: "open it", path: path.to_owned(), source })
}

#[cfg(test)]
pub(crate) fn allocation(container: &str, address: &str) -> Allocation {
    Allocation {
        key: AttachmentKey { container_id: container.to_owned(), interface: "eth0".to_owned() },
        address: address.parse().unwrap(),
        host_interface: format!("sv{container}"),
        netns: "/run/netns/x".to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: container.to_owned(),
        pod_uid: String::new(),
        network: "pods".to_owned(),
        number: 0,
        veth: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn clock() -> Clock {
        Clock::open().unwrap()
    }

    /// A journal with a little of everything, and its contents after each line.
    fn history(path: &Path) -> Vec<Contents> {
        let (mut journal, _) = Journal::open(path).unwrap();
        let mut states = vec![journal.contents().clone()];
        let attached = Veth { host_ifindex: 7, pod_mac: [1, 2, 3, 4, 5, 6] };
        let steps: [&dyn Fn(&mut Journal); 6] = [
            &|j| j.allocate(allocation("a", "10.1.0.2")).unwrap(),
            &|j| j.allocate(allocation("b", "10.1.0.3")).unwrap(),
            &|j| j.allocate(Allocation { veth: Some(attached), ..allocation("a", "10.1.0.2") }).unwrap(),
            &|j| j.release(ip("10.1.0.2")).unwrap(),
            &|j| j.allocate(allocation("c", "10.1.0.2")).unwrap(),
            &|j| j.release(ip("10.1.0.3")).unwrap(),
        ];
        for step in steps {
            step(&mut journal);
            states.push(journal.contents().clone());
        }
        states
    }

    #[test]
    fn truncated_at_every_byte_it_is_what_the_whole_lines_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let states = history(&path);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 6);
        for length in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let (mut journal, problems) = Journal::open(&path).unwrap();
            let whole = bytes[..length].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(*journal.contents(), states[whole], "after {length} bytes");
            let cut_off = length > 0 && bytes[length - 1] != b'\n';
            assert_eq!(problems.len(), usize::from(cut_off), "after {length} bytes: {problems:?}");
            // What is added next is not glued to the rest of the broken line.
            journal.allocate(allocation("z", "10.1.0.99")).unwrap();
            let (again, problems) = Journal::open(&path).unwrap();
            assert_eq!((again.contents(), problems.len()), (journal.contents(), 0), "after {length} bytes");
        }
    }

    #[test]
    fn a_line_that_makes_no_sense_is_reported_and_the_others_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let states = history(&path);
        let mut bytes = b"{\"allocated\":{}}\n\xff\xfe\n{\"unknown\":1}\n".to_vec();
        bytes.extend(std::fs::read(&path).unwrap());
        std::fs::write(&path, &bytes).unwrap();
        let (journal, problems) = Journal::open(&path).unwrap();
        assert_eq!(Some(journal.contents()), states.last());
        assert_eq!(problems.len(), 3);
    }

    #[test]
    fn it_is_rewritten_when_it_has_grown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for _ in 0..5 {
            journal.release(ip("10.1.0.2")).unwrap();
        }
        journal.dead_lines = MAX_DEAD_LINES + 1;
        journal.release(ip("10.1.0.2")).unwrap();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!(lines, 2, "one for what was live, one for what came after");
        assert_eq!(Journal::open(&path).unwrap().0.contents(), journal.contents());
    }

    #[test]
    fn a_release_is_timed_by_a_clock_that_nobody_sets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let before = clock().now_ms();
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.release(ip("10.1.0.2")).unwrap();
        let after = clock().now_ms();
        let is_now = |journal: &Journal| {
            let released: Vec<_> = journal.released().collect();
            matches!(released[..], [(address, Some(at))] if address == ip("10.1.0.2") && (before..=after).contains(&at))
        };
        assert!(is_now(&journal));
        assert!(is_now(&Journal::open(&path).unwrap().0), "after a restart of the agent");
        let (journal, _) = Journal::open_at(&path, Clock::of_boot("the next")).unwrap();
        assert_eq!(
            journal.released().collect::<Vec<_>>(),
            [(ip("10.1.0.2"), Some(0))],
            "after one of the machine"
        );
    }

    #[test]
    fn a_journal_of_before_is_read_and_its_releases_count_from_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        // As versions without boot time wrote it; one was released in the future, by a clock that was set back since.
        let old = concat!(
            r#"{"released":{"address":"10.1.0.9","at_ms":99999999999999}}"#,
            "\n",
            r#"{"released":{"address":"10.1.0.8","at_ms":1}}"#,
            "\n",
            r#"{"allocated":{"containerId":"a","interface":"eth0","address":"10.1.0.2","hostInterface":"sva","netns":"/n","podNamespace":"default","podName":"a","podUid":"u"}}"#,
            "\n",
        );
        std::fs::write(&path, old).unwrap();
        let before = clock().now_ms();
        let (mut journal, problems) = Journal::open(&path).unwrap();
        assert_eq!(problems, [""; 0]);
        let released: Vec<_> = journal.released().collect();
        assert!(
            released.len() == 2 && released.iter().all(|(_, at)| at.is_some_and(|at| at >= before)),
            "{released:?}"
        );
        assert_eq!(journal.contents().allocations.len(), 1);
        // Not again at each start.
        let (again, _) = Journal::open(&path).unwrap();
        assert_eq!(again.contents(), journal.contents());
        journal.allocate(allocation("b", "10.1.0.3")).unwrap();
        let numbers: Vec<_> = journal.contents().allocations.values().map(|a| a.number).collect();
        assert_eq!(numbers, [0, 1]);
    }

    #[test]
    fn a_later_allocation_has_a_higher_number_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        for (container, address) in [("z", "10.1.0.2"), ("a", "10.1.0.3"), ("z", "10.1.0.2")] {
            journal.allocate(allocation(container, address)).unwrap();
        }
        for journal in [&journal, &Journal::open(&path).unwrap().0] {
            let numbers: Vec<_> =
                journal.contents().allocations.values().map(|a| (a.pod_name.as_str(), a.number)).collect();
            assert_eq!(numbers, [("a", 2), ("z", 1)]);
        }
    }
}
