//! A change of manifests is done once every node enforces it.

use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use api::agent::{FileVersion, InForceRequest};
use futures::future::join_all;
use lab::{Change, Lab, ObjectKey, Program};

use crate::error::{CtlError, DONE, REFUSED, UNREACHABLE};
use crate::target::{IN_FORCE_LIMIT, Target, answer_within};

/// Waits until the files of these changes are in force on `nodes`, and says how long it took since
/// `started`.
pub(super) async fn wait(
    lab: &Lab,
    changes: &[(ObjectKey, Change)],
    nodes: &[String],
    started: Instant,
) -> Result<u8, CtlError> {
    let request = request(lab, changes);
    let is_node = |node: &String| {
        let is_it = |(key, _): &(ObjectKey, Change)| key.kind == "Node" && key.name == *node;
        changes.iter().any(is_it)
    };
    // A node that comes or goes is left out: it has no agent yet, or none any more.
    let nodes: Vec<_> = nodes.iter().filter(|node| !is_node(node)).collect();
    if nodes.is_empty() || !lab.runs(Program::Agent)? || changes.iter().all(|(_, change)| is_nothing(*change))
    {
        return Ok(DONE);
    }
    let targets =
        nodes.into_iter().map(|node| Target { socket: lab.agent_socket(node), node: Some(node.clone()) });
    let answers = join_all(targets.map(|target| {
        let request = request.clone();
        async move { answer_within(IN_FORCE_LIMIT, &target, target.control().in_force(request)).await }
    }));
    let (mut in_force, mut code) = (0, DONE);
    for answer in answers.await {
        match answer {
            Ok(_) => in_force += 1,
            Err(error) => {
                code = if matches!(error, CtlError::Unreachable(_)) { UNREACHABLE } else { REFUSED };
                eprintln!("mesh-ctl: warning: it is changed, but perhaps not in force: {error}");
            }
        }
    }
    let plural = if in_force == 1 { "" } else { "s" };
    eprintln!("in force on {in_force} node{plural} after {} ms", started.elapsed().as_millis());
    Ok(code)
}

fn is_nothing(change: Change) -> bool {
    matches!(change, Change::Unchanged | Change::NotFound)
}

fn request(lab: &Lab, changes: &[(ObjectKey, Change)]) -> InForceRequest {
    let mut request = InForceRequest::default();
    for (key, _) in changes {
        let name = key.file_name();
        match std::fs::metadata(lab.folder().manifests().join(&name)) {
            Ok(file) => request.files.push(FileVersion {
                name,
                inode: file.ino(),
                modified_s: file.mtime(),
                modified_ns: file.mtime_nsec(),
            }),
            Err(_) => request.gone.push(name),
        }
    }
    request
}
