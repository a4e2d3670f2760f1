//! A program of a node, kept running; and a hand-over to a new instance of it.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::Child;

use crate::error::LabError;
use crate::folder::Folder;
use crate::process::ProcessId;
use crate::program::{Program, ProgramRecord, program_command};
use crate::record;

/// Pause before the first restart; doubled for each further one.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// What has lived this long starts over with the first pause.
const STEADY: Duration = Duration::from_secs(10);
/// How often a request for a hand-over is looked for, and its progress.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time for a successor to have taken over.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(15);

/// Pauses between restarts.
#[derive(Debug)]
pub(super) struct BackOff(Duration);

impl BackOff {
    pub(super) const fn new() -> Self {
        Self(BACK_OFF_FIRST)
    }

    /// How long to wait after something that lived for `life`.
    pub(super) fn after(&mut self, life: Duration) -> Duration {
        if life >= STEADY {
            self.0 = BACK_OFF_FIRST;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(BACK_OFF_MAX);
        pause
    }
}

/// Starts `command` in a process group of its own, its output appended to `log`. It dies with the returned child.
pub(super) fn spawn(mut command: std::process::Command, log: &Path) -> Result<Child, LabError> {
    let output = OpenOptions::new().create(true).append(true).open(log).map_err(LabError::io("open", log))?;
    let errors = output.try_clone().map_err(LabError::io("open", log))?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    let program = PathBuf::from(command.get_program());
    tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(LabError::io("start", &program))
}

/// Keeps a program of a node running, for ever.
pub(super) async fn keep(lab: &Folder, node: &str, program: Program, encryption: bool) {
    let mut keeper = Keeper { lab, node, program, encryption, restarts: 0, last_end: String::new() };
    let mut back_off = BackOff::new();
    loop {
        let started = Instant::now();
        match keeper.start() {
            Ok(child) => keeper.last_end = keeper.attend(child).await,
            Err(error) => keeper.last_end = error.to_string(),
        }
        tracing::warn!(node, program = program.name(), end = keeper.last_end, "ended");
        keeper.note(None);
        tokio::time::sleep(back_off.after(started.elapsed())).await;
        keeper.restarts += 1;
    }
}

struct Keeper<'a> {
    lab: &'a Folder,
    node: &'a str,
    program: Program,
    encryption: bool,
    restarts: u32,
    last_end: String,
}

impl Keeper<'_> {
    fn start(&self) -> Result<Child, LabError> {
        let command = program_command(self.lab, self.node, self.program, self.encryption)?;
        let child = spawn(command, &self.lab.program_log(self.node, self.program.name()))?;
        self.note(Some(&child));
        Ok(child)
    }

    fn note(&self, child: Option<&Child>) {
        let record = ProgramRecord {
            program: self.program,
            process: child.and_then(Child::id).and_then(ProcessId::of),
            restarts: self.restarts,
            last_end: self.last_end.clone(),
        };
        let file = self.lab.program_record(self.node, self.program.name());
        if let Err(error) = record::write(&file, &record) {
            tracing::error!(node = self.node, program = self.program.name(), %error, "cannot note the program");
        }
    }

    /// Until the program ends; it may be replaced by successors meanwhile. Returns how it ended.
    async fn attend(&self, mut child: Child) -> String {
        let request = self.lab.upgrade_request(self.node, self.program.name());
        loop {
            tokio::select! {
                status = child.wait() => return describe(status),
                () = appears(&request) => {}
            }
            match self.hand_over(&mut child).await {
                Ok(successor) => {
                    self.note(Some(&successor));
                    let mut predecessor = std::mem::replace(&mut child, successor);
                    // It drains for as long as it needs.
                    tokio::task::spawn_local(async move { predecessor.wait().await.map(drop) });
                }
                Err(why) => {
                    tracing::error!(node = self.node, program = self.program.name(), why, "hand-over failed")
                }
            }
            if let Err(error) = host::file::remove(&request) {
                return error.to_string();
            }
        }
    }

    /// Starts a successor and waits until its worker has taken over.
    async fn hand_over(&self, predecessor: &mut Child) -> Result<Child, String> {
        let worker = self.program.worker_file().ok_or("it has no worker to hand over to")?;
        let worker = self.lab.run(self.node).join(worker);
        let command = program_command(self.lab, self.node, self.program, self.encryption)
            .map_err(|error| error.to_string())?;
        let log = self.lab.program_log(self.node, self.program.name());
        let mut successor = spawn(command, &log).map_err(|error| error.to_string())?;
        let started = Instant::now();
        while started.elapsed() < HAND_OVER_LIMIT {
            if successor.id().is_some_and(|master| is_worker_of(&worker, master)) {
                return Ok(successor);
            }
            if let Ok(Some(status)) = successor.try_wait() {
                return Err(format!("the successor ended: {status}"));
            }
            if let Ok(Some(status)) = predecessor.try_wait() {
                tracing::warn!(node = self.node, program = self.program.name(), %status, "ended before its successor was ready");
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("the successor did not take over within {HAND_OVER_LIMIT:?}"))
    }
}

/// Whether the worker that `file` names is a child of `master`.
fn is_worker_of(file: &Path, master: u32) -> bool {
    let Ok(worker) = std::fs::read_to_string(file) else { return false };
    let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", worker.trim())) else { return false };
    status
        .lines()
        .any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == master.to_string()))
}

async fn appears(file: &Path) {
    while !file.exists() {
        tokio::time::sleep(LOOK).await;
    }
}

/// How a process ended, in words.
pub(super) fn describe(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_start_over_after_a_steady_life() {
        let mut back_off = BackOff::new();
        let pauses: Vec<_> = (0..7).map(|_| back_off.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(back_off.after(STEADY).as_millis(), 200);
    }
}
