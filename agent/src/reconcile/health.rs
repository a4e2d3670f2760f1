//! Whether all that this node needs is there and answers: its programs, its disk, the other nodes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use policy::Problem;
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::Reconciler;
use crate::source::Source;

/// How long a program may be away before that is a problem: a restart and a hand-over take less.
const AWAY: Duration = Duration::from_secs(3);
/// Longest silence of a peer that owes an answer. WireGuard answers a packet after 10 s at the
/// latest, with a keepalive if there is nothing else to send.
const SILENCE: Duration = Duration::from_secs(12);
/// How long another node may take to announce its key.
const ANNOUNCEMENT: Duration = Duration::from_secs(10);
/// What is written to see whether the disk takes it: as much as one block of a file system.
const PROBE: [u8; 4096] = [0x5a; 4096];

/// What is missing, and since when.
#[derive(Default)]
pub(super) struct Health {
    missing: BTreeMap<Missing, Instant>,
    state_folder: Option<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Missing {
    Program(&'static str),
    Announcement(String),
}

impl Missing {
    const fn limit(&self) -> Duration {
        match self {
            Self::Program(_) => AWAY,
            Self::Announcement(_) => ANNOUNCEMENT,
        }
    }

    fn problem(&self) -> Problem {
        match self {
            Self::Program(name) => Problem {
                location: (*name).to_owned(),
                message: format!(
                    "it is not connected to mesh-agent, {}: start it, or see its log for why it does not connect",
                    match *name {
                        PROXY => "and connections with rules on requests get no answer while it does not run",
                        _ => "and nothing passes between the nodes while it does not run",
                    }
                ),
            },
            Self::Announcement(node) => Problem {
                location: format!("tunnel to {node}"),
                message: "the node announces no key, and nothing passes to it: check that mesh-agent and mesh-wireguard run \
                          there, or delete the Node object"
                    .to_owned(),
            },
        }
    }
}

const PROXY: &str = "mesh-proxy";
const TUNNEL: &str = "mesh-wireguard";

impl Health {
    /// Looks whether the state folder takes what is written.
    pub(super) fn look_at_disk(&mut self, state: &Path) {
        self.state_folder = block_in_place(|| probe(state)).err().map(|error| Problem {
            location: format!("state folder {}", state.display()),
            message: format!(
                "nothing can be stored in it: {error}; traffic goes on, new pods and changes of policy wait: free space, or make \
                 the folder writable"
            ),
        });
    }

    /// When something will be away for too long.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let ends = self.missing.iter().map(|(what, since)| *since + what.limit());
        ends.filter(|end| *end > now).min()
    }
}

impl<S: Source> Reconciler<S> {
    /// What is wrong with programs, disk and other nodes now.
    pub(super) fn unhealthy(&mut self, now: Instant) -> Vec<Problem> {
        let missing = self.missing();
        self.health.missing.retain(|what, _| missing.contains(what));
        for what in missing {
            self.health.missing.entry(what).or_insert(now);
        }
        let missing = self.health.missing.iter();
        let missing = missing.filter(|(what, since)| now.duration_since(**since) >= what.limit());
        let mut problems: Vec<Problem> = missing.map(|(what, _)| what.problem()).collect();
        problems.extend(self.health.state_folder.clone());
        problems.extend(self.silent_peers());
        problems
    }

    fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        if self.proxies.is_empty() {
            missing.push(Missing::Program(PROXY));
        }
        if !self.config.encryption {
            return missing;
        }
        if self.tunnel.is_none() {
            missing.push(Missing::Program(TUNNEL));
        }
        let nodes = self.records.iter().flat_map(|records| records.nodes.keys());
        let silent = nodes
            .filter(|name| **name != self.config.node_name && !self.known_nodes.status().contains_key(*name));
        missing.extend(silent.cloned().map(Missing::Announcement));
        missing
    }

    fn silent_peers(&self) -> Vec<Problem> {
        let Some((_, report)) = &self.tunnel else { return Vec::new() };
        let sets = self.peer_sets.borrow();
        let endpoint = |node: &str| {
            let peers = sets.iter().flat_map(|set| &set.peers);
            peers
                .filter(|peer| peer.node == node)
                .map(|peer| peer.endpoint.clone())
                .next()
                .unwrap_or_default()
        };
        let silent = report.peers.iter().filter_map(|peer| {
            let silence = Duration::from_millis(peer.silent_ms?);
            (silence >= SILENCE).then(|| Problem {
                location: format!("tunnel to {}", peer.node),
                message: format!(
                    "nothing was heard of {} for {} s, and handshakes or packets wait for an answer: check the way between the \
                     nodes (UDP), and that mesh-wireguard runs on {}",
                    endpoint(&peer.node),
                    silence.as_secs(),
                    peer.node
                ),
            })
        });
        silent.collect()
    }
}

/// Writes a file that has no name, so that no kill leaves it behind.
fn probe(folder: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).mode(0o600).custom_flags(OFlag::O_TMPFILE.bits()).open(folder);
    let mut file = match opened {
        // The file system knows no such files.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => return Ok(()),
        opened => opened?,
    };
    file.write_all(&PROBE)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_that_takes_nothing_is_a_problem_and_a_good_one_stays_empty() {
        let folder = tempfile::tempdir().unwrap();
        let mut health = Health::default();
        health.look_at_disk(folder.path());
        assert_eq!(health.state_folder, None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        health.look_at_disk(&folder.path().join("gone"));
        assert!(health.state_folder.unwrap().message.contains("No such file"));
        assert!(probe(Path::new("/proc/version")).is_err(), "not a folder");
    }
}
