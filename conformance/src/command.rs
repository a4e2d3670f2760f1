//! Other programs, run with a limit on their time.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(5);

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it printed, lossily decoded.
    pub stdout: String,
    /// Everything it complained of.
    pub stderr: String,
}

/// Runs `command` to its end; killed and an error after `limit`.
///
/// # Errors
/// If it cannot be started or does not end in time.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("start {command:?}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, limit).with_context(|| format!("{command:?}"))?;
    let text = |reader: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    Ok(Finished { status, stdout: text(stdout), stderr: text(stderr) })
}

fn collect(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still what the program printed.
            let _ = pipe.by_ref().read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for `child`; kills it and fails after `limit`.
///
/// # Errors
/// If it does not end in time.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {limit:?}");
        }
        std::thread::sleep(POLL);
    }
}

/// Asks `child` to end with `signal` and waits for it.
///
/// # Errors
/// If it does not end within 5 s; it is killed then.
pub fn stop(child: &mut Child, signal: Signal) -> Result<ExitStatus> {
    kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
    wait(child, Duration::from_secs(5))
}

/// Kills a process of a lab, as a crash would.
///
/// # Errors
/// If there is no such process.
pub fn kill_now(pid: u32) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?)
}

/// A child that does not outlive its owner.
#[derive(Debug)]
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries `attempt` until it gives something or `limit` has passed.
///
/// # Errors
/// The last error, if it never did.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => {
                return Err(error.context(format!("not within {limit:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
