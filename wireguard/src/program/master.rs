//! The privileged half: opens what the worker needs, and keeps it open.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use host::master::{Descriptors, MasterConfig, MasterError, run_master};
use host::netlink::{Netlink, NetlinkError};
use host::tun::TunError;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Config, PRIVATE_KEY, TUN, UDP};
use crate::keys::{self, KeyError};

/// A worker stops at once when told to: nothing has to be finished.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Buffers of the UDP socket in bytes: some milliseconds at 10 Gbit/s, while the worker's thread does something else or is
/// started again.
const UDP_BUFFER: usize = 8 << 20;
/// How long a device or port that another process holds is waited for: the worker of a master that was killed ends a moment later,
/// and the agent opens the device to make it.
const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts.
const BUSY_RETRY: Duration = Duration::from_millis(10);
/// `IN6_ADDR_GEN_MODE_NONE`.
const NO_ADDRESS: &str = "1";

/// Why the descriptors could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A folder could not be made.
    #[error("cannot {action} folder {}: {source}", path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The TUN device could not be set up.
    #[error("TUN device {device}: {source}")]
    Link {
        /// The device.
        device: String,
        /// Why.
        source: NetlinkError,
    },
    /// The thread that talks to the kernel could not be made.
    #[error("cannot set the TUN device up: {0}")]
    Thread(#[source] io::Error),
    /// No socket.
    #[error("UDP port {port}: {source} (another WireGuard on this port? choose another one with --port)")]
    Udp {
        /// The port.
        port: u16,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Runs the master until a successor has taken over, or SIGTERM.
///
/// # Errors
/// It could not start, or take over.
pub fn run(config: &Config) -> Result<(), MasterError> {
    prepare_folders(config).map_err(|error| MasterError::Open(error.into()))?;
    let master = MasterConfig {
        name: "mesh-wireguard",
        handover_socket: config.handover_socket(),
        worker_args: config.to_flags().into_iter().collect::<Vec<OsString>>(),
        worker_user: Some(config.worker_user),
        worker_capabilities: Vec::new(),
        drain_limit: DRAIN_LIMIT,
    };
    run_master(master, |held| complete(config, held))
}

/// Opens what is missing; and another device if the one that is there was deleted. Nothing is sent in clear meanwhile: the routes
/// went with the device, and what lay under them drops. The agent makes them again when it sees another device.
fn complete(config: &Config, held: &mut Descriptors) -> Result<(), SetupError> {
    held.retain(|(name, descriptor)| name != TUN || host::tun::has_device(descriptor));
    let has = |held: &Descriptors, wanted| held.iter().any(|(name, _)| name == wanted);
    if !has(held, PRIVATE_KEY) {
        let secret = keys::load_or_create(&config.private_key())?;
        held.push((PRIVATE_KEY.to_owned(), keys::seal(&secret)?));
    }
    if !has(held, TUN) {
        held.push((TUN.to_owned(), open_device(&config.device)?));
    }
    if !has(held, UDP) {
        let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        let udp = while_busy(in_use, || bind(config.port))
            .map_err(|source| SetupError::Udp { port: config.port, source })?;
        held.push((UDP.to_owned(), udp));
    }
    Ok(())
}

fn open_device(device: &str) -> Result<OwnedFd, SetupError> {
    let busy = |error: &TunError| matches!(error, TunError::Busy(_));
    let tun = while_busy(busy, || host::tun::open_or_create(device, false))?;
    set_up(device)?;
    Ok(tun)
}

/// Tries again while somebody else holds it.
fn while_busy<T, E>(busy: impl Fn(&E) -> bool, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match attempt() {
            Err(error) if busy(&error) && Instant::now() < deadline => std::thread::sleep(BUSY_RETRY),
            result => return result,
        }
    }
}

fn prepare_folders(config: &Config) -> Result<(), SetupError> {
    let key = config.private_key();
    let worker = config.worker_folder();
    for path in [config.run_dir.as_path(), key.parent().unwrap_or(&config.state_dir), &worker] {
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(folder("make", path))?;
    }
    fs::set_permissions(&worker, Permissions::from_mode(0o700))
        .map_err(folder("set the mode of", &worker))?;
    let user = Some(config.worker_user);
    chown(&worker, user, user).map_err(folder("change the owner of", &worker))
}

fn folder<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SetupError + 'a {
    move |source| SetupError::Folder { action, path: path.to_owned(), source }
}

/// Sets the device up, without an IPv6 link-local address: it would send neighbour discovery into the tunnel.
fn set_up(device: &str) -> Result<(), SetupError> {
    // Absent where the kernel has no IPv6, and then not needed.
    let _ = host::sysctl::write(&format!("net/ipv6/conf/{device}/addr_gen_mode"), NO_ADDRESS);
    let link = |source| SetupError::Link { device: device.to_owned(), source };
    let netlink = async {
        let netlink = Netlink::connect().map_err(link)?;
        match netlink.link(device).await.map_err(link)? {
            Some(found) => netlink.set_up(found.index).await.map_err(link),
            None => Err(SetupError::Thread(io::Error::from(io::ErrorKind::NotFound))),
        }
    };
    // The caller is inside the master's runtime, which must not be blocked on from within.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(SetupError::Thread)?;
            runtime.block_on(netlink)
        });
        thread.join().unwrap_or_else(|_| Err(SetupError::Thread(io::Error::other("the thread panicked"))))
    })
}

fn bind(port: u16) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Beyond the system's maximum, which root may pass; in a container that may not, the maximum has to do.
    if setsockopt(&socket, RcvBufForce, &UDP_BUFFER).is_err() {
        socket.set_recv_buffer_size(UDP_BUFFER)?;
    }
    if setsockopt(&socket, SndBufForce, &UDP_BUFFER).is_err() {
        socket.set_send_buffer_size(UDP_BUFFER)?;
    }
    host::udp::allow_fragments(&socket)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}
