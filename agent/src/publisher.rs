//! Announcements on their way to the source: in order, one at a time, again and again until each has succeeded.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::source::{Announcement, Source};

/// Announcements that wait while the source cannot be written: a full node of pods coming and going. What does not fit
/// is announced by the agent's regular comparison later.
const QUEUE: usize = 1024;
/// Pause after a failure. The source is a disk or a server that will not heal within less.
const RETRY: Duration = Duration::from_secs(1);

/// The queue's end for those who have something to say.
pub struct Publisher {
    queue: mpsc::Sender<Announcement>,
    problem: watch::Receiver<Option<String>>,
}

impl Publisher {
    /// Starts to publish, until the publisher is dropped.
    pub fn start<S: Source>(source: Arc<S>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (problem_sender, problem) = watch::channel(None);
        tokio::spawn(publish_all(source, waiting, problem_sender));
        Self { queue, problem }
    }

    /// Announces soon. Does not wait.
    pub fn announce(&self, announcement: Announcement) {
        if let Err(error) = self.queue.try_send(announcement) {
            tracing::warn!(%error, "too many announcements wait: this one is made later");
        }
    }

    /// Why the last attempt failed, if it did.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
}

async fn publish_all<S: Source>(
    source: Arc<S>,
    mut waiting: mpsc::Receiver<Announcement>,
    problem: watch::Sender<Option<String>>,
) {
    'next: while let Some(announcement) = waiting.recv().await {
        while let Err(error) = source.publish(&announcement).await {
            let message = format!("{announcement} is not announced: {error}; it is tried again each second");
            problem.send_replace(Some(message));
            // The others must not wait for it for ever. The agent's regular comparison brings it up again.
            if error.is_final() {
                continue 'next;
            }
            tokio::time::sleep(RETRY).await;
        }
        problem.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FolderSource, NodeStatus, PodName, PodStatus};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pod_whose_name_is_too_long_for_a_file_does_not_silence_the_node() {
        let folder = tempfile::tempdir().unwrap();
        let source = FolderSource::start(folder.path(), &folder.path().join("record"));
        let publisher = Publisher::start(Arc::new(source));
        // Kubernetes takes 253 bytes, and a namespace's name stands in front of them.
        let pod = PodName::new("default", &"a".repeat(253));
        let status = PodStatus { addresses: Vec::new(), node: "node-1".into(), uid: String::new() };
        publisher.announce(Announcement::Pod(pod, status));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while publisher.problem().is_none_or(|problem| !problem.contains("too long")) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", publisher.problem());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = NodeStatus {
            public_key: "key".into(),
            endpoint: "172.31.1.2:51820".parse().unwrap(),
            address: "172.31.1.2".parse().unwrap(),
            pod_ranges: Vec::new(),
        };
        publisher.announce(Announcement::Node("node-1".into(), status));
        while !folder.path().join("status/nodes/node-1.json").exists() {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", publisher.problem());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
