//! `mesh-ctl lab`: clusters of network namespaces that run the real programs.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use lab::{Change, Lab, LabOptions, Object, ObjectKey, Phase, manifest};
use serde_json::{Value, json};

use super::check::refuse_problems;
use super::in_force;
use crate::cli::{LabCommand, LabName, Scope};
use crate::error::{CtlError, DONE};
use crate::suggest;
use crate::table::Table;
use crate::target::namespaced;

/// Name of the lab if none is given.
const DEFAULT_NAME: &str = "selvage";
/// For messages: where manifests come from that stand in no file.
const STANDARD_INPUT: &str = "standard input";
/// Longest wait for pods after a change.
const PODS_LIMIT: Duration = Duration::from_secs(15);

pub(super) fn run(scope: &Scope, command: LabCommand) -> Result<u8, CtlError> {
    match command {
        LabCommand::Up { name, nodes, manifests, encryption, timeout, allow_problems } => {
            needs_root()?;
            if let Some(path) = &manifests {
                refuse_problems(&[], &manifest::read_files(path)?, allow_problems)?;
            }
            let (name, ready_limit) = (name_of(scope, name), Duration::from_secs(timeout));
            up(scope, LabOptions { name, nodes, manifests, encryption, ready_limit, ..LabOptions::default() })
        }
        LabCommand::Apply { name, file, allow_problems, no_wait } => {
            let lab = Lab::open(&name_of(scope, name))?;
            let new = read(&file)?;
            refuse_problems(&lab.objects()?, &new, allow_problems)?;
            let (nodes, started) = (lab.nodes()?, Instant::now());
            let changes = lab.apply(new.into_iter().map(|(_, object)| object).collect())?;
            changed(scope, &lab, &changes, (!no_wait).then_some((nodes, started)))
        }
        LabCommand::Delete { name, file, no_wait } => {
            let lab = Lab::open(&name_of(scope, name))?;
            let keys: Vec<_> = read(&file)?.into_iter().map(|(_, object)| object.key).collect();
            let (nodes, started) = (lab.nodes()?, Instant::now());
            let changes = lab.delete(&keys)?;
            changed(scope, &lab, &changes, (!no_wait).then_some((nodes, started)))
        }
        LabCommand::Exec { name, pod, command } => {
            let lab = Lab::open(&name_of(scope, name))?;
            let (namespace, pod) = namespaced(&pod);
            running(&lab, &namespace, &pod)?;
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
            needs_root()?;
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

/// The objects of all files, each with the file it stands in.
fn read(files: &[PathBuf]) -> Result<Vec<(String, Object)>, CtlError> {
    let mut objects = Vec::new();
    for file in files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            let found = manifest::parse(&text, STANDARD_INPUT)?;
            if found.is_empty() {
                return Err(CtlError::Usage(format!("{STANDARD_INPUT}: there is no object in it")));
            }
            objects.extend(found.into_iter().map(|object| (STANDARD_INPUT.to_owned(), object)));
        } else {
            objects.extend(manifest::read_files(file)?);
        }
    }
    Ok(objects)
}

/// Says what was changed, then waits for the pods it concerns, and until it is in force on these
/// nodes.
fn changed(
    scope: &Scope,
    lab: &Lab,
    changes: &[(ObjectKey, Change)],
    wait: Option<(Vec<String>, Instant)>,
) -> Result<u8, CtlError> {
    let json = || {
        let change = |(key, change): &(ObjectKey, Change)| json!({"kind": key.kind, "namespace": key.namespace, "name": key.name, "change": change.to_string()});
        Value::Array(changes.iter().map(change).collect())
    };
    let table = || changes.iter().map(|(key, change)| format!("{key} {change}\n")).collect();
    super::print(scope, json, table)?;
    std::io::stdout().flush()?;
    let Some((nodes, started)) = wait else { return Ok(DONE) };
    let concerns_pods =
        |(key, change): &(ObjectKey, Change)| key.kind == "Pod" && *change != Change::Unchanged;
    if changes.iter().any(concerns_pods) {
        lab.wait_for_pods(PODS_LIMIT)?;
    }
    super::wait_for(in_force::wait(lab, changes, &nodes, started))
}

fn needs_root() -> Result<(), CtlError> {
    let own = std::fs::metadata("/proc/self")?;
    if std::os::unix::fs::MetadataExt::uid(&own) == 0 { Ok(()) } else { Err(CtlError::needs_root()) }
}

/// The pod, if it runs.
fn running(lab: &Lab, namespace: &str, pod: &str) -> Result<(), CtlError> {
    let known: Vec<_> = lab.pods()?.into_iter().map(|pod| (pod.namespace, pod.name)).collect();
    if !known.iter().any(|(own, name)| own == namespace && name == pod) {
        return Err(CtlError::NotFound(suggest::no_pod(namespace, pod, &known)));
    }
    lab.pod(namespace, pod)?;
    Ok(())
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
