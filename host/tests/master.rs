//! A real master and real workers: this test program is started again as each of them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use host::descriptors::{self, DescriptorsError};
use host::master::{self, Capability, MasterConfig, WorkerSide, run_master};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use nix::unistd::Pid;

const SOCKET: &str = "HOST_TEST_SOCKET";
const WORKER_MODE: &str = "HOST_TEST_WORKER";
const WORKER_USER: &str = "HOST_TEST_USER";
/// A master with it opens its descriptors once and never again.
const ONCE: &str = "HOST_TEST_ONCE";
const STRANGER: &str = "HOST_TEST_STRANGER";
const ARGUMENTS: [&str; 3] = ["--exact", "program", "--nocapture"];
/// Bound of every wait for something that should take milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

static OPENED: AtomicBool = AtomicBool::new(false);

/// Not a test of its own: what this program does when it is started as a master, a worker or a stranger.
#[test]
fn program() {
    if WorkerSide::is_worker() {
        worker();
    } else if let Some(path) = std::env::var_os(STRANGER) {
        let socket = UnixStream::connect(path).unwrap();
        assert!(matches!(descriptors::receive(&socket), Err(DescriptorsError::Closed)));
    } else if let Some(path) = std::env::var_os(SOCKET) {
        let config = MasterConfig {
            name: "test-master",
            handover_socket: path.into(),
            worker_args: ARGUMENTS.map(Into::into).into(),
            worker_user: std::env::var(WORKER_USER).ok().map(|user| user.parse().unwrap()),
            worker_capabilities: vec![Capability::NetRaw],
            drain_limit: Duration::from_secs(10),
        };
        run_master(config, open).unwrap();
    }
}

/// Replaces a listener that does not listen any more, unless this master is told that it cannot.
fn open(held: &mut master::Descriptors) -> std::io::Result<()> {
    held.retain(|(_, socket)| getsockopt(socket, sockopt::AcceptConn).unwrap());
    if !held.is_empty() {
        return Ok(());
    }
    if std::env::var_os(ONCE).is_some() && OPENED.swap(true, Ordering::SeqCst) {
        return Err(std::io::ErrorKind::StorageFull.into());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let path = PathBuf::from(std::env::var_os(SOCKET).unwrap()).with_extension("port");
    host::file::write(&path, port.to_string().as_bytes(), 0o600).unwrap();
    held.push(("listener".to_owned(), listener.into()));
    Ok(())
}

/// Serves connections: one line in, one line out that says who serves.
fn worker() {
    let mode = std::env::var(WORKER_MODE).unwrap_or_default();
    assert_ne!(mode, "dies");
    let (received, mut side) = WorkerSide::from_env().unwrap();
    assert!(matches!(WorkerSide::from_env(), Err(master::WorkerError::Taken)));
    if mode == "never ready" {
        std::thread::sleep(Duration::from_secs(60));
    }
    let (name, listener) = received.into_iter().next().unwrap();
    assert_eq!(name, "listener");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut connections = tokio::task::JoinSet::new();
        side.ready();
        loop {
            tokio::select! {
                accepted = listener.accept() => { connections.spawn(serve(accepted.unwrap().0, listener.as_raw_fd())); }
                command = side.next() => match command {
                    master::Command::ShowLife => side.alive(),
                    command => {
                        assert_eq!(command, master::Command::Drain);
                        break;
                    }
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    });
}

async fn serve(mut connection: tokio::net::TcpStream, listener: std::os::fd::RawFd) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut byte = [0];
    if connection.read_exact(&mut byte).await.is_ok() {
        if byte == *BREAK {
            // Of the socket itself, whoever holds a descriptor of it: a listener that never accepts again.
            shutdown(listener, Shutdown::Read).unwrap();
            std::process::exit(1);
        }
        if byte == *HANG {
            std::thread::sleep(Duration::from_secs(60));
        }
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let answer = format!(
            "{} uid={} groups={} caps={} nnp={} name={}\n",
            std::process::id(),
            field("Uid:").replace('\t', ","),
            field("Groups:"),
            field("CapEff:"),
            field("NoNewPrivs:"),
            field("Name:"),
        );
        connection.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// To a worker: break the listener and die.
const BREAK: &[u8; 1] = b"!";
/// To a worker: hang in its event loop.
const HANG: &[u8; 1] = b"h";

/// Bytes of a unix socket's path, without the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// A master that the test started; killed at the end.
struct Master {
    process: Child,
    socket: PathBuf,
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Master {
    fn start(folder: &Path, variables: &[(&str, &str)]) -> Self {
        Self::start_with(Command::new(std::env::current_exe().unwrap()), folder, variables)
    }

    fn start_with(mut command: Command, folder: &Path, variables: &[(&str, &str)]) -> Self {
        let socket = folder.join("master.sock");
        let process = command
            .args(ARGUMENTS)
            .env(SOCKET, &socket)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, socket }
    }

    fn address(&self) -> SocketAddr {
        let path = self.socket.with_extension("port");
        let port = wait_for(|| fs::read_to_string(&path).ok()?.parse().ok());
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Another address than this, once there is one.
    fn address_after(&self, known: SocketAddr) -> SocketAddr {
        wait_for(|| Some(self.address()).filter(|now| *now != known))
    }

    fn published_worker(&self) -> Option<u32> {
        fs::read_to_string(format!("{}.worker", self.socket.display())).ok()?.trim().parse().ok()
    }

    fn signal(&self, signal: Signal) {
        send_signal(self.process.id(), signal);
    }

    fn wait(&mut self) -> ExitStatus {
        let process = &mut self.process;
        wait_for(|| process.try_wait().unwrap())
    }

    fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

fn send_signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

fn wait_for<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn exists(pid: u32) -> bool {
    // A dead child that its (dead) parent's heir has not reaped yet is a zombie: no threads, no descriptors.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// No thread of it accepts any more.
fn is_stopped(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
        fs::read_to_string(task.unwrap().path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
    })
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    connection
}

fn answer(mut connection: TcpStream) -> std::io::Result<String> {
    connection.write_all(b"?")?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    if line.ends_with('\n') { Ok(line) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// Asks through a new connection which worker serves.
fn serving(address: SocketAddr) -> u32 {
    answer(connect(address)).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_killed_worker_is_replaced_and_queued_connections_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let master = Master::start(folder.path(), &[]);
    let address = master.address();
    let first = serving(address);
    assert_eq!(wait_for(|| master.published_worker()), first);

    send_signal(first, Signal::SIGSTOP);
    wait_for(|| is_stopped(first).then_some(()));
    let queued: Vec<TcpStream> = (0..20).map(|_| connect(address)).collect();
    send_signal(first, Signal::SIGKILL);
    let start = Instant::now();
    let mut second = first;
    for connection in queued {
        second = answer(connection).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_ne!(second, first);
    }
    println!("20 queued connections were served {:?} after the kill", start.elapsed());
    assert_eq!(serving(address), second);
    assert_eq!(wait_for(|| master.published_worker().filter(|pid| *pid != first)), second);
}

#[test]
fn a_worker_that_is_stopped_and_one_that_hangs_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let master = Master::start(folder.path(), &[]);
    let address = master.address();
    let stopped = serving(address);
    let start = Instant::now();
    send_signal(stopped, Signal::SIGSTOP);
    wait_for(|| is_stopped(stopped).then_some(()));
    let hanging = serving(address);
    assert_ne!(hanging, stopped);
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?} is too short to call a worker hung",
        start.elapsed()
    );
    println!("a stopped worker's queue was served {:?} after the stop", start.elapsed());

    connect(address).write_all(HANG).unwrap();
    // Not asked through a connection: the hanging one may accept it before it is killed.
    let third = wait_for(|| master.published_worker().filter(|pid| *pid != hanging && *pid != stopped));
    assert_eq!(serving(address), third);
    assert!(!exists(hanging), "two workers on one listener");
}

#[test]
fn a_master_that_was_stopped_itself_takes_no_worker_for_hung() {
    let folder = tempfile::tempdir().unwrap();
    let master = Master::start(folder.path(), &[]);
    let address = master.address();
    let worker = serving(address);
    // The worker is stopped as well for a part of it, as when a machine is suspended.
    master.signal(Signal::SIGSTOP);
    send_signal(worker, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(4500));
    master.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(500));
    send_signal(worker, Signal::SIGCONT);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(serving(address), worker);
}

#[test]
fn a_descriptor_that_is_dead_is_replaced_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let master = Master::start(folder.path(), &[]);
    let mut address = master.address();
    for _ in 0..3 {
        let worker = serving(address);
        connect(address).write_all(BREAK).unwrap();
        address = master.address_after(address);
        let next = serving(address);
        assert_ne!(next, worker);
        send_signal(next, Signal::SIGKILL);
        wait_for(|| (!exists(next)).then_some(()));
        assert_ne!(serving(address), next);
        assert_eq!(master.address(), address, "the same listener");
    }
}

#[test]
fn what_cannot_be_replaced_is_tried_again_and_a_successor_can_do_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[(ONCE, "")]);
    let address = master.address();
    let worker = serving(address);
    connect(address).write_all(BREAK).unwrap();
    wait_for(|| (!exists(worker)).then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    assert!(master.is_running());
    assert_eq!(children(master.process.id()), [0; 0], "no worker without what it needs");
    let successor = Master::start(folder.path(), &[]);
    let address = successor.address_after(address);
    assert!(master.wait().success(), "it gives way");
    assert!(children(successor.process.id()).contains(&serving(address)));
}

#[test]
fn a_hand_over_under_connections_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let address = master.address();
    serving(address);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut served = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    serving(address);
                    served += 1;
                }
                served
            })
        })
        .collect();
    for _ in 0..3 {
        // A worker may serve before its pid is written down.
        let before = wait_for(|| master.published_worker());
        let successor = Master::start(folder.path(), &[]);
        assert!(master.wait().success(), "a predecessor that gave way exits 0");
        assert!(!exists(before));
        master = successor;
        wait_for(|| master.published_worker().filter(|pid| *pid != before));
    }
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    let served: u32 = clients.into_iter().map(|client| client.join().expect("a connection was lost")).sum();
    println!("{served} connections during 3 hand-overs");
    assert!(served > 100);
    assert!(children(master.process.id()).contains(&serving(address)));
    assert!(master.is_running());
}

#[test]
fn a_request_in_flight_outlives_the_hand_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let address = master.address();
    let first = serving(address);
    let open = connect(address);
    // Whoever is asked after it has been accepted after it.
    serving(address);
    let _successor = Master::start(folder.path(), &[]);
    wait_for(|| (serving(address) != first).then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(master.is_running(), "it drains as long as a connection is open");
    assert!(answer(open).unwrap().starts_with(&format!("{first} ")));
    assert!(master.wait().success());
}

#[test]
fn a_successor_whose_worker_dies_or_that_is_killed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let address = master.address();
    let first = serving(address);

    let mut failing = Master::start(folder.path(), &[(WORKER_MODE, "dies")]);
    assert!(!failing.wait().success());
    assert_eq!(serving(address), first);

    let mut hanging = Master::start(folder.path(), &[(WORKER_MODE, "never ready")]);
    let worker = wait_for(|| children(hanging.process.id()).first().copied());
    hanging.signal(Signal::SIGKILL);
    hanging.wait();
    wait_for(|| (!exists(worker)).then_some(()));
    assert_eq!(serving(address), first);
    assert_eq!(master.published_worker(), Some(first));
    assert!(master.is_running());

    // By this way the predecessor's socket can be reached, and a successor's own name is too long for a socket.
    let long = folder
        .path()
        .join("x".repeat(SOCKET_PATH_MAX - 4 - folder.path().as_os_str().len() - "//master.sock".len()));
    std::os::unix::fs::symlink(folder.path(), &long).unwrap();
    let mut cannot_listen = Master::start(&long, &[]);
    assert!(!cannot_listen.wait().success());
    assert_eq!(serving(address), first);
    assert!(master.is_running());

    let sound = Master::start(folder.path(), &[]);
    assert!(master.wait().success(), "the next one takes over as usual");
    assert!(children(sound.process.id()).contains(&serving(address)));
}

#[test]
fn a_killed_master_takes_its_worker_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let address = master.address();
    let worker = serving(address);
    master.signal(Signal::SIGKILL);
    master.wait();
    let start = Instant::now();
    wait_for(|| (!exists(worker)).then_some(()));
    println!("the worker was gone {:?} after its master", start.elapsed());

    let _ = fs::remove_file(master.socket.with_extension("port"));
    let next = Master::start(folder.path(), &[]);
    assert_ne!(next.address(), address, "nobody answers at the socket that is left: a fresh start");
    serving(next.address());
}

#[test]
fn sigterm_drains_then_exits_zero_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let address = master.address();
    let worker = serving(address);
    let open = connect(address);
    serving(address);
    // Neither ends by it; the drain below is still the one that SIGTERM asks for.
    send_signal(worker, Signal::SIGHUP);
    master.signal(Signal::SIGHUP);
    send_signal(worker, Signal::SIGTERM);
    master.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(100));
    assert!(master.is_running(), "it drains as long as a connection is open");
    assert!(answer(open).unwrap().starts_with(&format!("{worker} ")), "the worker did not die of the signal");
    assert!(master.wait().success());
    assert!(!exists(worker));
    assert!(!master.socket.exists());
    assert_eq!(master.published_worker(), None);
}

#[test]
fn the_worker_is_unprivileged() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut in_a_group = Command::new("setpriv");
    in_a_group.arg("--groups=4242").arg(std::env::current_exe().unwrap());
    let master = Master::start_with(in_a_group, folder.path(), &[(WORKER_USER, "65532")]);
    let answer = answer(connect(master.address())).unwrap();
    let (_, rest) = answer.trim_end().split_once(' ').unwrap();
    // Bit 13 is CAP_NET_RAW.
    assert_eq!(rest, "uid=65532,65532,65532,65532 groups= caps=0000000000002000 nnp=1 name=test-master");
}

#[test]
fn the_death_of_the_master_also_ends_an_unprivileged_worker() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[(WORKER_USER, "65532"), (WORKER_MODE, "never ready")]);
    let worker = wait_for(|| children(master.process.id()).first().copied());
    // Long enough to be asleep behind exec: only the death signal ends it, it does not look at its socket.
    wait_for(|| {
        fs::read_to_string(format!("/proc/{worker}/comm")).ok()?.starts_with("test-master").then_some(())
    });
    master.signal(Signal::SIGKILL);
    master.wait();
    wait_for(|| (!exists(worker)).then_some(()));
}

#[test]
fn another_user_gets_no_descriptors() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let first = serving(master.address());
    wait_for(|| master.socket.exists().then_some(()));
    assert_eq!(fs::metadata(&master.socket).unwrap().permissions().mode() & 0o777, 0o600);
    // As if the first fence, the file's mode, were down.
    fs::set_permissions(&master.socket, fs::Permissions::from_mode(0o666)).unwrap();
    let stranger = Command::new("/proc/self/exe")
        .args(ARGUMENTS)
        .env(STRANGER, &master.socket)
        .uid(65534)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(stranger.success());
    assert!(master.is_running());
    assert_eq!(serving(master.address()), first);
}

#[test]
fn silence_of_the_predecessor_is_an_error_not_a_second_master() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("master.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut master = Master::start(folder.path(), &[]);
    assert!(!master.wait().success());
    assert!(!path.with_extension("port").exists(), "nothing was opened");
}

#[test]
fn bytes_that_are_no_hand_over_do_not_disturb_a_master() {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::start(folder.path(), &[]);
    let first = serving(master.address());
    let socket = wait_for(|| UnixStream::connect(&master.socket).ok());
    assert_eq!(descriptors::receive(&socket).unwrap().len(), 1);
    (&socket).write_all(b"xyz").unwrap();
    let mut rest = Vec::new();
    assert_eq!((&socket).read_to_end(&mut rest).unwrap_or(0), 0);
    assert!(master.is_running());
    assert_eq!(serving(master.address()), first);
}

/// Changing users needs root.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
        assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "skipped: needs root");
    }
    root
}
