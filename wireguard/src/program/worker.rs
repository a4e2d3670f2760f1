//! The unprivileged half: carries packets with the master's descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use host::master::{Command, Descriptors, WorkerError, WorkerSide};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, setrlimit};

use super::{Config, PRIVATE_KEY, TUN, UDP};
use crate::control::Control;
use crate::device::{self, Device, DeviceError};
use crate::keys::{self, KeyError};
use crate::tunnel::Tunnel;

/// Longest wait for the worker before this one: longer than its master gives it to stop.
const TURN_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks whether it has ended.
const TURN_RETRY: Duration = Duration::from_millis(1);

/// Why a worker ended other than on demand.
#[derive(Debug, thiserror::Error)]
pub enum WorkerFailed {
    /// Not started by a master, or the master's message is not right.
    #[error(transparent)]
    Start(#[from] WorkerError),
    /// The master is of another version.
    #[error("the master sent no descriptor named {0:?}")]
    Missing(&'static str),
    /// The key did not arrive.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The process could not be protected.
    #[error("cannot keep the key out of core dumps: {0}")]
    Protect(#[source] nix::Error),
    /// No runtime.
    #[error("cannot set up the worker: {0}")]
    Runtime(#[source] std::io::Error),
    /// The descriptors do not work.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Runs a worker of [`super::run_master`] until it is told to stop or its master is gone.
///
/// # Errors
/// See [`WorkerFailed`].
pub fn run(config: &Config) -> Result<(), WorkerFailed> {
    protect_memory().map_err(WorkerFailed::Protect)?;
    let (mut descriptors, mut side) = WorkerSide::from_env()?;
    let tun = take(&mut descriptors, TUN)?;
    let udp = take(&mut descriptors, UDP)?;
    let key = File::from(take(&mut descriptors, PRIVATE_KEY)?);
    let secret = keys::unseal(&key)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerFailed::Runtime)?;
    let carry = async {
        let device = Device::new(tun, udp).map_err(DeviceError::Descriptors)?;
        if device.port() != config.port {
            let (wanted, port) = (config.port, device.port());
            tracing::warn!(
                wanted,
                port,
                "the port of a running tunnel does not change: restart the whole program"
            );
        }
        side.ready();
        tokio::select! {
            () = turn(&key) => {}
            command = told_to_stop(&mut side) => {
                tracing::info!(?command, "stopping before the start");
                return Ok(());
            }
        }
        let tunnel = Tunnel::new(secret, Instant::now());
        let report = device::report(&tunnel, device.port());
        let control = Control::start(config.agent_socket(), config.peers_file(), report);
        let stop = async {
            let command = told_to_stop(&mut side).await;
            tracing::info!(?command, "stopping");
        };
        device.run(tunnel, control, stop).await
    };
    let result = runtime.block_on(carry);
    // A file of peers that is being written must not delay the end; it is written whole or not at all.
    runtime.shutdown_background();
    Ok(result?)
}

/// Waits for the end, and shows the master meanwhile that this worker's loop turns: it is one
/// branch of that loop.
async fn told_to_stop(side: &mut WorkerSide) -> Command {
    loop {
        match side.next().await {
            Command::ShowLife => side.alive(),
            command => return command,
        }
    }
}

/// Waits until no other worker has these descriptors: in a hand-over the old one stops only after this one is ready, and two that
/// read together would share out each other's handshakes. Packets wait in the kernel's queues meanwhile.
///
/// A record lock on the memory file that all workers get; it belongs to the process and ends with it, however it ends.
async fn turn(key: &File) {
    let deadline = Instant::now() + TURN_LIMIT;
    let lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    while let Err(error) = fcntl(key, FcntlArg::F_SETLK(&lock)) {
        if Instant::now() >= deadline {
            tracing::warn!(%error, "the worker before this one has not ended: not waiting any longer");
            return;
        }
        tokio::time::sleep(TURN_RETRY).await;
    }
}

fn take(descriptors: &mut Descriptors, name: &'static str) -> Result<OwnedFd, WorkerFailed> {
    let at = descriptors.iter().position(|(found, _)| found == name).ok_or(WorkerFailed::Missing(name))?;
    Ok(descriptors.swap_remove(at).1)
}

/// No core dump, and no other process of the same user looks into this one: both would show the key.
fn protect_memory() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(false)
}
