//! Takes a lab away, whatever state it is in: by its records, with no help from any of its programs.

use std::io;
use std::path::{Path, PathBuf};

use host::netns::NetNs;

use crate::error::LabError;
use crate::folder::{self, Folder};
use crate::pod::PodRecord;
use crate::process::{Namespaces, ProcessId};
use crate::{record, topology};

/// Removes the lab's processes, namespaces (and with them all links, routes and rules), pins and files. What is already gone
/// is no error. The calling process may be its supervisor.
///
/// # Errors
/// Everything that would not go, after all the rest has been removed.
pub(crate) fn remove(lab: &Folder) -> Result<(), LabError> {
    let mut remains = Vec::new();
    if let Ok(Some(supervisor)) = record::read::<ProcessId>(&lab.supervisor())
        && supervisor.pid != std::process::id()
        && !supervisor.end()
    {
        remains.push(format!("its supervisor, process {}", supervisor.pid));
    }
    let namespaces = namespaces(lab);
    let inside = Namespaces::at(&namespaces);
    remains.extend(inside.kill_all().iter().map(|pid| format!("process {pid}")));
    for namespace in &namespaces {
        remains.extend(NetNs::delete(namespace).err().map(|error| error.to_string()));
    }
    // One that had opened a namespace before its name was gone is inside by now.
    remains.extend(inside.kill_all().iter().map(|pid| format!("process {pid}")));
    remains.extend(remove_folder(&lab.pins()).err().map(|error| error.to_string()));
    if !remains.is_empty() {
        // The records stay, for another attempt.
        return Err(LabError::Remains { lab: lab.name().to_owned(), what: remains.join("; ") });
    }
    remove_folder(lab.path())?;
    for root in [folder::ROOT, folder::PIN_ROOT] {
        // Other labs may be in it.
        let _ = std::fs::remove_dir(root);
    }
    Ok(())
}

/// Kills everything that runs in the lab's namespaces. Returns the pids of what would not go.
pub(crate) fn kill_processes(lab: &Folder) -> Vec<u32> {
    Namespaces::at(&namespaces(lab)).kill_all()
}

/// Files of all namespaces that the records name.
fn namespaces(lab: &Folder) -> Vec<PathBuf> {
    // Pods first: what is in them may use the node's.
    let pods: Vec<PodRecord> = record::read_all(&lab.pods()).unwrap_or_default();
    let mut files: Vec<_> = pods.iter().map(|pod| lab.pod_namespace(&pod.namespace, &pod.name)).collect();
    let nodes = folder::entries(&lab.nodes()).unwrap_or_default();
    files.extend(nodes.iter().map(|node| lab.node_namespace(node)));
    files.push(lab.node_namespace(topology::OUTSIDE));
    files
}

/// Removes a folder with everything in it. Succeeds if it is not there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), LabError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LabError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
