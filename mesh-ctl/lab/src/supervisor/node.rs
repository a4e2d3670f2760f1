//! A node: its namespace, its link, its programs.

use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::error::LabError;
use crate::folder::Folder;
use crate::lab::LabRecord;
use crate::pod::Phase;
use crate::process::Namespaces;
use crate::{record, store, teardown, topology};

/// Pause after a failed attempt to make a node.
const RETRY: Duration = Duration::from_secs(1);

/// What the supervisor has made of a Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// Name.
    pub(crate) name: String,
    /// The N of 172.31.N.2.
    pub(crate) place: u8,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Why it is failing.
    pub(crate) message: String,
}

/// Keeps a node until `cancel`, then takes it away.
pub(super) async fn keep(lab: Folder, name: String, place: u8, record: LabRecord, cancel: CancellationToken) {
    let run = async {
        while let Err(error) = make(&lab, &name, place, &record).await {
            tracing::error!(node = name, %error, "cannot make the node");
            note(&lab, &name, place, Phase::Failing, error.to_string());
            if let Err(error) = topology::delete_node(&lab, &name).await {
                tracing::warn!(node = name, %error, "after that");
            }
            tokio::time::sleep(RETRY).await;
        }
        note(&lab, &name, place, Phase::Running, String::new());
        join_all(
            record
                .programs
                .iter()
                .map(|program| super::program::keep(&lab, &name, *program, record.encryption)),
        )
        .await;
        // A node on which nothing runs is a node all the same.
        std::future::pending::<()>().await;
    };
    if cancel.run_until_cancelled(run).await.is_none() {
        note(&lab, &name, place, Phase::Deleting, String::new());
        if let Err(error) = remove(&lab, &name).await {
            tracing::error!(node = name, %error, "cannot remove the node");
        }
    }
}

async fn make(lab: &Folder, name: &str, place: u8, of_lab: &LabRecord) -> Result<(), LabError> {
    for folder in [lab.state(name), lab.run(name)] {
        std::fs::create_dir_all(&folder).map_err(LabError::io("create", &folder))?;
    }
    let record = NodeRecord { name: name.to_owned(), place, phase: Phase::Creating, message: String::new() };
    record::write(&lab.node_record(name), &record)?;
    topology::create_node(lab, name, place).await?;
    if !of_lab.encryption
        && let Some(range) = store::pod_range(&store::read_in_part(lab)?.0, name)
    {
        topology::route_pods(lab, name, place, range).await?;
    }
    Ok(())
}

fn note(lab: &Folder, name: &str, place: u8, phase: Phase, message: String) {
    let record = NodeRecord { name: name.to_owned(), place, phase, message };
    if let Err(error) = record::write(&lab.node_record(name), &record) {
        tracing::error!(node = name, %error, "cannot note the state of the node");
    }
}

async fn remove(lab: &Folder, name: &str) -> Result<(), LabError> {
    let inside = Namespaces::at(&[lab.node_namespace(name)]);
    // Off this thread: it may wait for a process to die whose parent this is.
    let _ = tokio::task::spawn_blocking(move || inside.kill_all()).await;
    topology::delete_node(lab, name).await?;
    teardown::remove_folder(&lab.node_pins(name))?;
    teardown::remove_folder(&lab.node(name))
}
