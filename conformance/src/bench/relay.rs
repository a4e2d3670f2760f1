//! A bare TCP relay in the proxy's place: the same steering, the same transparent upstream connection with the client's own
//! address and port, and between the two nothing but copying. What the proxy costs more than this is what judging costs.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use datapath::Listeners;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What the relay prints when it is in the proxy's place.
pub const READY: &str = "ready";
/// Queue of connections not accepted yet; the kernel's own limit by default.
const BACKLOG: i32 = 4096;
/// Bytes that are copied at once, each way.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;

/// Takes the place of the proxy whose master listens on `handover`, in the listener slots of `pin_dir`, until standard
/// input ends; then gives it back.
///
/// # Errors
/// If there is no such proxy, or its place cannot be taken or given back.
pub fn run(pin_dir: &Path, handover: &Path) -> Result<()> {
    let displaced = listeners_of(handover)?;
    let mut slots = Listeners::open(pin_dir)?;
    for (slot, _) in &displaced {
        // One thread for each of the proxy's.
        let listener = listen().context("listen")?;
        slots.set(*slot, &listener)?;
        std::thread::Builder::new().name(format!("relay-{slot}")).spawn(move || serve(listener))?;
    }
    println!("{READY}");
    let waited = io::stdin().read_to_end(&mut Vec::new());
    for (slot, listener) in &displaced {
        slots.set(*slot, listener)?;
    }
    waited.context("wait for the end of standard input").map(drop)
}

/// The proxy's listeners and their slots. Its master gives them to whoever may succeed it, and goes on when that one
/// leaves without a word.
fn listeners_of(handover: &Path) -> Result<Vec<(u32, OwnedFd)>> {
    let master =
        UnixStream::connect(handover).with_context(|| format!("connect to {}", handover.display()))?;
    let mut found = Vec::new();
    for (name, descriptor) in host::descriptors::receive(&master)? {
        if let Some(slot) = slot_of(&name) {
            found.push((slot, descriptor));
        }
    }
    ensure!(!found.is_empty(), "the proxy's master has no listeners");
    Ok(found)
}

/// `listener-3` is in slot 3.
fn slot_of(name: &str) -> Option<u32> {
    name.strip_prefix("listener-")?.parse().ok()
}

fn listen() -> io::Result<StdListener> {
    let socket = transparent()?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket that may have any address, and whose packets the datapath knows as judged.
fn transparent() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(layout::mark::FROM_PROXY)?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Relays until the process ends.
fn serve(listener: StdListener) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (client, address) = listener.accept().await?;
            tokio::spawn(async move {
                if let Err(error) = relay(client, address).await {
                    eprintln!("relay: {address}: {error}");
                }
            });
        }
    })
}

async fn relay(mut client: TcpStream, address: SocketAddr) -> io::Result<()> {
    let socket = transparent()?;
    socket.bind(&address.into())?;
    let mut server = TcpSocket::from_std_stream(socket.into()).connect(client.local_addr()?).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    match tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES).await
    {
        // How load generators end.
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        other => other.map(drop),
    }
}
