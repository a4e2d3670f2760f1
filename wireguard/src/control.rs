//! The agent's side of the tunnel: its stream of peer sets in, reports out, and the last good set on disk.
//!
//! A stream that breaks, and an agent that is not there, change nothing: the peers in force stay.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::agent::tunnel_client::TunnelClient;
use api::agent::{PeerSet, TunnelReport};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::transport::Channel;

/// First wait before the next attempt to reach the agent, so that a restarted one is found at once.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait: what the agent's return may cost.
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// A stream that lived this long was a sound one.
const SOUND: Duration = Duration::from_secs(5);
/// Peer sets that wait to be put in force; the loop takes one in microseconds.
const PENDING_SETS: usize = 4;
/// Largest file of peers that is read: 5,000 peers take less than a megabyte.
const MAX_FILE: u64 = 16 << 20;
/// Mode of the file of peers.
const MODE: u32 = 0o600;

/// The loop's ends of the channels to the agent and to the disk.
#[derive(Debug)]
pub struct Control {
    /// Sets to put in force.
    pub sets: mpsc::Receiver<PeerSet>,
    /// What the agent is told, now and at each change.
    pub report: watch::Sender<TunnelReport>,
    /// What is stored at each change.
    pub in_force: watch::Sender<PeerSet>,
}

impl Control {
    /// Starts to talk to the agent at `socket` and to store what is in force in `file`, until the tokio runtime ends. The first of
    /// `sets` is the one in `file`, so that the tunnel works before there is an agent.
    pub fn start(socket: PathBuf, file: PathBuf, report: TunnelReport) -> Self {
        file.parent().map(host::file::remove_left_over);
        let (sets_sender, sets) = mpsc::channel(PENDING_SETS);
        if let Some(stored) = load(&file) {
            tracing::info!(number = stored.number, peers = stored.peers.len(), "stored peers");
            // The channel is empty, and its other end in this function.
            let _ = sets_sender.try_send(stored);
        }
        let (report, reports) = watch::channel(report);
        let (in_force, stored) = watch::channel(PeerSet::default());
        tokio::spawn(follow(socket, reports, sets_sender));
        tokio::spawn(keep_stored(file, stored));
        Self { sets, report, in_force }
    }
}

async fn follow(socket: PathBuf, reports: watch::Receiver<TunnelReport>, sets: mpsc::Sender<PeerSet>) {
    let channel = api::connect::channel(&socket);
    let mut retry = FIRST_RETRY;
    loop {
        let start = tokio::time::Instant::now();
        let mut any = false;
        let ended = stream(channel.clone(), &reports, &sets, &mut any).await;
        if sets.is_closed() {
            return;
        }
        if any || retry == FIRST_RETRY {
            let reason =
                ended.err().map_or_else(|| "it ended".to_owned(), |status| status.message().to_owned());
            tracing::warn!(socket = %socket.display(), reason, "no stream from the agent: peers stay as they are");
        }
        if start.elapsed() >= SOUND {
            retry = FIRST_RETRY;
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LONGEST_RETRY);
    }
}

async fn stream(
    channel: Channel,
    reports: &watch::Receiver<TunnelReport>,
    sets: &mpsc::Sender<PeerSet>,
    any: &mut bool,
) -> Result<(), tonic::Status> {
    let mut client = TunnelClient::new(channel);
    let mut inbound = client.peers(WatchStream::new(reports.clone())).await?.into_inner();
    while let Some(set) = inbound.message().await? {
        if !std::mem::replace(any, true) {
            tracing::info!(number = set.number, peers = set.peers.len(), "the agent sends peers");
        }
        if sets.send(set).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn keep_stored(file: PathBuf, mut in_force: watch::Receiver<PeerSet>) {
    while in_force.changed().await.is_ok() {
        let content = in_force.borrow_and_update().encode_to_vec();
        let path = file.clone();
        // Off the loop's thread: syncing a disk takes as long as the disk likes.
        let written = tokio::task::spawn_blocking(move || host::file::write(&path, &content, MODE)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the peers in force are not stored: after a restart the tunnel waits for the agent");
        }
    }
}

/// The peers that were last in force; `None` if none were, or the file is not legible (logged).
fn load(file: &Path) -> Option<PeerSet> {
    let mut content = Vec::new();
    let read = File::open(file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut content));
    if let Err(error) = read {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(path = %file.display(), %error, "stored peers not read: waiting for the agent");
        }
        return None;
    }
    PeerSet::decode(content.as_slice())
        .inspect_err(|error| {
            tracing::warn!(path = %file.display(), %error, "stored peers not legible: waiting for the agent");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_set_in_force_is_stored_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("peers.pb");
        assert_eq!(load(&file), None);
        let control = Control::start(folder.path().join("no.sock"), file.clone(), TunnelReport::default());
        let peer = api::agent::Peer { node: "node-2".to_owned(), ..api::agent::Peer::default() };
        for set in [
            PeerSet { number: 7, peers: vec![peer], no_other_node: false },
            PeerSet { number: 8, peers: Vec::new(), no_other_node: true },
        ] {
            control.in_force.send(set.clone()).unwrap();
            let mut stored = None;
            for _ in 0..500 {
                stored = load(&file).filter(|stored| stored.number == set.number);
                if stored.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(stored, Some(set));
        }
    }

    #[test]
    fn a_file_of_an_earlier_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("peers.pb");
        // Number 7, one peer "node-2": before `no_other_node`.
        host::file::write(&file, b"\x08\x07\x12\x08\x0a\x06node-2", 0o600).unwrap();
        let peer = api::agent::Peer { node: "node-2".to_owned(), ..api::agent::Peer::default() };
        assert_eq!(load(&file), Some(PeerSet { number: 7, peers: vec![peer], no_other_node: false }));
    }

    #[test]
    fn an_illegible_file_is_no_set() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("peers.pb");
        host::file::write(&file, &[0xff; 100], 0o600).unwrap();
        assert_eq!(load(&file), None);
    }
}
