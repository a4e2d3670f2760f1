//! The folder source: `*.yaml`, `*.yml`, `*.json` and `status/` below one folder, watched with inotify.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place};

use super::reader::Reader;
use super::status::{self, PodStatus};
use super::{Announcement, PodName, PublishError, Records, Source};

/// How long changes are collected before the folder is read: `apply` writes several files within this time, and nobody
/// notices it within the 20 ms in which a policy shall be in force.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// The folder is read this often without an event too: for file systems without inotify, overflows, mounts over it.
const RESCAN: Duration = Duration::from_secs(5);
/// A file that nobody closed is left alone for this long after a change, and one that vanished is not gone before: git, and
/// editors that keep a backup, remove a file and write it anew. Writers take milliseconds; what was written without an
/// event is read after this time.
const SETTLE: Duration = Duration::from_secs(1);
/// Longest name of a status file. The kernel takes 255 bytes, and the temporary file beside it has some more than this.
const MAX_STATUS_NAME: usize = 210;
/// Room for some hundred events; if it is too small, the kernel keeps the rest for the next read.
const EVENT_BUFFER: usize = 16 << 10;

/// Cluster state in a folder.
pub struct FolderSource {
    folder: PathBuf,
    /// Only the task has the other end, so that its death is seen.
    readings: watch::Receiver<Option<Arc<Records>>>,
    task: JoinHandle<()>,
}

impl Drop for FolderSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FolderSource {
    /// Starts to watch. Needs a tokio runtime of several threads. A folder that does not exist yet is waited for. In
    /// `record` stands which of its files were taken, for the next process.
    pub fn start(folder: &Path, record: &Path) -> Self {
        let (sender, readings) = watch::channel(None);
        let reader = Reader::new(folder).settling(SETTLE).recording(record.to_owned());
        let task = tokio::spawn(watch_folder(folder.to_owned(), reader, sender));
        Self { folder: folder.to_owned(), readings, task }
    }
}

async fn watch_folder(folder: PathBuf, mut reader: Reader, readings: watch::Sender<Option<Arc<Records>>>) {
    let mut touched = HashSet::new();
    let mut events = None;
    loop {
        // Before reading: what changes meanwhile is then an event.
        if events.is_none() {
            events = watch_folders(&folder);
        }
        if let Some(records) = block_in_place(|| reader.read(&touched)) {
            readings.send_if_modified(|known| {
                let changed = known.as_deref() != Some(&records);
                if changed {
                    *known = Some(Arc::new(records));
                }
                changed
            });
        }
        touched.clear();
        let limit = if reader.is_waiting() { SETTLE } else { RESCAN };
        if !wait_for_events(&mut events, &mut touched, limit).await {
            events = None;
        }
    }
}

type Events = EventStream<Vec<u8>>;

/// Waits for the first event and then for all that follow at once. False if the watch is broken or incomplete.
async fn wait_for_events(
    events: &mut Option<Events>,
    touched: &mut HashSet<OsString>,
    limit: Duration,
) -> bool {
    let Some(stream) = events else {
        tokio::time::sleep(limit).await;
        return false;
    };
    let Ok(first) = tokio::time::timeout(limit, stream.next()).await else {
        // The folders may have been replaced by others of the same name, which the old watches do not see.
        return false;
    };
    let mut next = first;
    let end = tokio::time::Instant::now() + DEBOUNCE;
    loop {
        match next {
            Some(Ok(event)) => {
                let lost = EventMask::IGNORED
                    | EventMask::Q_OVERFLOW
                    | EventMask::DELETE_SELF
                    | EventMask::MOVE_SELF;
                if event.mask.intersects(lost) {
                    return false;
                }
                // What was removed or moved away is not written: a file that its writer has just begun may have the name.
                if event.mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
                    touched.extend(event.name);
                }
            }
            Some(Err(_)) | None => return false,
        }
        match tokio::time::timeout_at(end, stream.next()).await {
            Ok(event) => next = event,
            Err(_) => return true,
        }
    }
}

fn watch_folders(folder: &Path) -> Option<Events> {
    let open = || -> io::Result<Events> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(folder, mask)?;
        for below in [status::NODES, status::PODS] {
            // Made by whoever publishes first; the agent does so at its start.
            let _ = std::fs::create_dir_all(folder.join(below));
            let _ = inotify.watches().add(folder.join(below), mask);
        }
        inotify.into_event_stream(vec![0; EVENT_BUFFER])
    };
    match open() {
        Ok(events) => Some(events),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "cannot watch; reading it every few seconds");
            None
        }
    }
}

impl Source for FolderSource {
    fn watch(&self) -> watch::Receiver<Option<Arc<Records>>> {
        self.readings.clone()
    }

    async fn publish(&self, announcement: &Announcement) -> Result<(), PublishError> {
        block_in_place(|| match announcement {
            Announcement::Node(name, status) => {
                self.write(status::NODES, &format!("{name}.json"), &serde_json::to_vec_pretty(status)?)
            }
            Announcement::Pod(name, status) => {
                self.write(status::PODS, &pod_file(name), &serde_json::to_vec_pretty(status)?)
            }
            Announcement::PodGone(name, addresses) => self.withdraw(name, addresses),
        })
    }
}

fn pod_file(name: &PodName) -> String {
    format!("{}_{}.json", name.namespace, name.name)
}

impl FolderSource {
    fn write(&self, folder: &str, name: &str, json: &[u8]) -> Result<(), PublishError> {
        if name.len() > MAX_STATUS_NAME {
            return Err(PublishError::TooLong { name: name.to_owned(), limit: MAX_STATUS_NAME });
        }
        let folder = self.folder.join(folder);
        let failed = |source| PublishError::Folder { path: folder.clone(), source };
        // Not into the empty place of a folder that is not mounted.
        std::fs::metadata(&self.folder).map_err(failed)?;
        std::fs::create_dir_all(&folder).map_err(failed)?;
        host::file::remove_left_over(&folder);
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|known| known == json) {
            return Ok(());
        }
        Ok(host::file::write(&path, json, 0o644)?)
    }

    fn withdraw(&self, name: &PodName, addresses: &[IpAddr]) -> Result<(), PublishError> {
        let path = self.folder.join(status::PODS).join(pod_file(name));
        let announced =
            std::fs::read(&path).ok().and_then(|json| serde_json::from_slice::<PodStatus>(&json).ok());
        if announced.is_some_and(|status| status.addresses.iter().any(|address| addresses.contains(address)))
        {
            host::file::remove(&path)?;
        }
        Ok(())
    }
}
