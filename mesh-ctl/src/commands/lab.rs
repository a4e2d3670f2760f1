//! `mesh-ctl lab`: clusters of network namespaces that run the real programs.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use lab::{Change, Lab, LabOptions, Object, ObjectKey, Phase, manifest};
use serde_json::{Value, json};

use crate::cli::{LabCommand, LabName, Scope};
use crate::error::{CtlError, DONE};
use crate::table::Table;
use crate::target::namespaced;

/// Name of the lab if none is given.
const DEFAULT_NAME: &str = "selvage";
/// Longest wait for pods after a change.
const PODS_LIMIT: Duration = Duration::from_secs(15);

pub(super) fn run(scope: &Scope, command: LabCommand) -> Result<u8, CtlError> {
    match command {
        LabCommand::Up { name, nodes, manifests, encryption, timeout } => {
            let (name, ready_limit) = (name_of(scope, name), Duration::from_secs(timeout));
            up(scope, LabOptions { name, nodes, manifests, encryption, ready_limit, ..LabOptions::default() })
        }
        LabCommand::Apply { name, file } => {
            let lab = Lab::open(&name_of(scope, name))?;
            changed(scope, &lab, lab.apply(read(&file)?)?)
        }
        LabCommand::Delete { name, file } => {
            let lab = Lab::open(&name_of(scope, name))?;
            let keys: Vec<_> = read(&file)?.into_iter().map(|object| object.key).collect();
            changed(scope, &lab, lab.delete(&keys)?)
        }
        LabCommand::Exec { name, pod, command } => {
            let lab = Lab::open(&name_of(scope, name))?;
            let (namespace, pod) = namespaced(&pod);
            lab.pod(&namespace, &pod)?;
            become_it(|program| lab.pod_command(&namespace, &pod, program), &command)
        }
        LabCommand::NodeExec { name, target, command } => {
            let lab = Lab::open(&name_of(scope, name))?;
            lab.node_address(&target)?;
            become_it(|program| lab.node_command(&target, program), &command)
        }
        LabCommand::Outside { name, command } => {
            let lab = Lab::open(&name_of(scope, name))?;
            become_it(|program| lab.outside_command(program), &command)
        }
        LabCommand::Ls => ls(scope),
        LabCommand::Down { name } => {
            Lab::open(&name_of(scope, name))?.down()?;
            Ok(DONE)
        }
        LabCommand::Supervise { name } => {
            lab::supervise(&name_of(scope, name))?;
            Ok(DONE)
        }
    }
}

fn name_of(scope: &Scope, name: LabName) -> String {
    name.name.or_else(|| scope.lab.clone()).unwrap_or_else(|| DEFAULT_NAME.to_owned())
}

fn up(scope: &Scope, options: LabOptions) -> Result<u8, CtlError> {
    let started = Instant::now();
    let lab = Lab::up(options)?;
    let (name, nodes, pods) = (lab.name().to_owned(), lab.nodes()?, lab.pods()?.len());
    let folder = lab.folder().path().display().to_string();
    lab.keep()?;
    if pods > 0 {
        eprintln!(
            "note: images are ignored in a lab; a container's `command` runs as a process of this machine, without one it just waits"
        );
    }
    let seconds = started.elapsed().as_secs_f32();
    let json = || json!({"name": name, "nodes": nodes, "pods": pods, "folder": folder});
    let table = || {
        format!(
            "lab {name} is ready after {seconds:.1} s: {} nodes, {pods} pods, files in {folder}\n",
            nodes.len()
        )
    };
    super::print(scope, json, table)?;
    Ok(DONE)
}

fn read(files: &[PathBuf]) -> Result<Vec<Object>, CtlError> {
    let mut objects = Vec::new();
    for file in files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            objects.extend(manifest::parse(&text, "standard input")?);
        } else {
            objects.extend(manifest::read(file)?);
        }
    }
    Ok(objects)
}

/// Says what was changed, then waits for the pods it concerns.
fn changed(scope: &Scope, lab: &Lab, changes: Vec<(ObjectKey, Change)>) -> Result<u8, CtlError> {
    let json = || {
        let change = |(key, change): &(ObjectKey, Change)| json!({"kind": key.kind, "namespace": key.namespace, "name": key.name, "change": change.to_string()});
        Value::Array(changes.iter().map(change).collect())
    };
    let table = || changes.iter().map(|(key, change)| format!("{key} {change}\n")).collect();
    super::print(scope, json, table)?;
    std::io::stdout().flush()?;
    let concerns_pods =
        |(key, change): &(ObjectKey, Change)| key.kind == "Pod" && *change != Change::Unchanged;
    if changes.iter().any(concerns_pods) {
        lab.wait_for_pods(PODS_LIMIT)?;
    }
    Ok(DONE)
}

/// Becomes the command: its terminal, signals and exit code are this process's.
fn become_it(
    place: impl FnOnce(&OsString) -> std::process::Command,
    command: &[OsString],
) -> Result<u8, CtlError> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| CtlError::Usage("a command is missing".to_owned()))?;
    let error = place(program).args(arguments).exec();
    Err(CtlError::Refused(format!("cannot run nsenter: {error}")))
}

fn ls(scope: &Scope) -> Result<u8, CtlError> {
    let labs = Lab::all()?;
    let mut table = Table::new(&["LAB", "STATE", "AGE", "NODES", "PODS"]);
    let mut list = Vec::new();
    for lab in &labs {
        // One that is just going down is shown as far as it is still there.
        let (nodes, pods) = (lab.nodes().unwrap_or_default(), lab.pods().unwrap_or_default());
        let running = pods.iter().filter(|pod| pod.phase == Phase::Running).count();
        let state = if lab.is_supervised() { "running" } else { "without supervisor" };
        let age = lab.started().ok().and_then(|started| SystemTime::now().duration_since(started).ok());
        let age = age.unwrap_or_default().as_secs();
        table.row([
            lab.name(),
            state,
            &format!("{age} s"),
            &nodes.join(","),
            &format!("{running}/{}", pods.len()),
        ]);
        let pods = pods.iter().map(|pod| {
            json!({
                "namespace": pod.namespace, "name": pod.name, "node": pod.node, "address": pod.address,
                "phase": pod.phase, "message": pod.message,
            })
        });
        let pods: Vec<_> = pods.collect();
        let folder = lab.folder().path().display().to_string();
        list.push(json!({"name": lab.name(), "state": state, "age_s": age, "nodes": nodes, "pods": pods, "folder": folder}));
    }
    super::print(scope, || Value::Array(list), || table.to_string())?;
    Ok(DONE)
}
