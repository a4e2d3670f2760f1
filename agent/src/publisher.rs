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
    while let Some(announcement) = waiting.recv().await {
        while let Err(error) = source.publish(&announcement).await {
            tracing::warn!(%error, ?announcement, "not announced yet");
            problem.send_replace(Some(error.to_string()));
            tokio::time::sleep(RETRY).await;
        }
        problem.send_replace(None);
    }
}
