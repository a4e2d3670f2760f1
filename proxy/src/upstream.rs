//! One connection to the server for each connection of a client, with the client's own address and port if possible.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::counters::Counters;
use crate::gate::Source;
use crate::limits;

/// Linux error numbers that say "not with this port": in use, no such tuple left, privileged.
const EACCES: i32 = 13;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;

/// Where a connection comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The client's own end.
    pub client: SocketAddr,
    /// The server, as the client dialled it.
    pub destination: SocketAddr,
    /// Whose address the server is to see.
    pub source: Source,
}

/// Why the server could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket could not be made as it must be.
    #[error("cannot prepare a socket for {destination}: {error}")]
    Prepare {
        /// The server.
        destination: SocketAddr,
        /// Of the system call.
        error: io::Error,
    },
    /// Refused, unreachable, reset.
    #[error("cannot connect to {destination}: {error}")]
    Connect {
        /// The server.
        destination: SocketAddr,
        /// Of the system call.
        error: io::Error,
    },
    /// No answer in time.
    #[error("{destination} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// The server.
        destination: SocketAddr,
        /// How long it had.
        limit: Duration,
    },
    /// Every port tried is in use towards this server.
    #[error("no free port of {source_address} towards {destination} in {tries} tries")]
    NoPort {
        /// Whose ports.
        source_address: IpAddr,
        /// The server.
        destination: SocketAddr,
        /// How many were tried.
        tries: u16,
    },
}

/// Makes connections to servers. The real one is [`Transparent`]; tests connect over loopback.
pub trait Connect: 'static {
    /// Connects within `limit`.
    fn connect(
        &self,
        route: &Route,
        limit: Duration,
    ) -> impl Future<Output = Result<TcpStream, ConnectError>>;
}

/// Binds to the client's own address and port (IP_TRANSPARENT needs `CAP_NET_RAW`, a port below 1024
/// `CAP_NET_BIND_SERVICE`), with the mark that says "from the proxy".
#[derive(Debug)]
pub struct Transparent {
    counters: Arc<Counters>,
    /// Spreads the fallback ports, so that clients cannot tell which is tried first.
    spread: RandomState,
}

impl Transparent {
    /// Counts how upstream connections were made in `counters`.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { counters, spread: RandomState::new() }
    }

    async fn with_client_address(&self, route: &Route, limit: Duration) -> Result<TcpStream, ConnectError> {
        match attempt(route.client, route.destination, limit).await {
            Ok(stream) => {
                self.counters.upstream_own_port.add();
                return Ok(stream);
            }
            Err(Attempt::PortUnusable) => {}
            Err(Attempt::Failed(error)) => return Err(error),
        }
        let start = self.spread.hash_one((route.client, route.destination));
        for port in fallback_ports(start) {
            match attempt(SocketAddr::new(route.client.ip(), port), route.destination, limit).await {
                Ok(stream) => {
                    self.counters.upstream_other_port.add();
                    return Ok(stream);
                }
                Err(Attempt::PortUnusable) => {}
                Err(Attempt::Failed(error)) => return Err(error),
            }
        }
        Err(ConnectError::NoPort {
            source_address: route.client.ip(),
            destination: route.destination,
            tries: limits::FALLBACK_TRIES,
        })
    }

    async fn with_node_address(
        &self,
        node: IpAddr,
        route: &Route,
        limit: Duration,
    ) -> Result<TcpStream, ConnectError> {
        match attempt(SocketAddr::new(node, 0), route.destination, limit).await {
            Ok(stream) => {
                self.counters.upstream_node_address.add();
                Ok(stream)
            }
            Err(Attempt::PortUnusable) => {
                Err(ConnectError::NoPort { source_address: node, destination: route.destination, tries: 1 })
            }
            Err(Attempt::Failed(error)) => Err(error),
        }
    }
}

impl Connect for Transparent {
    async fn connect(&self, route: &Route, limit: Duration) -> Result<TcpStream, ConnectError> {
        match route.source {
            Source::Client => self.with_client_address(route, limit).await,
            Source::Node(node) => self.with_node_address(node, route, limit).await,
        }
    }
}

/// The ports that are tried: a walk through the whole range with a step that is prime to its length.
fn fallback_ports(start: u64) -> impl Iterator<Item = u16> {
    const STEP: u64 = 7919;
    let range = u64::from(limits::FALLBACK_PORTS);
    (0..u64::from(limits::FALLBACK_TRIES)).map(move |i| {
        let offset = (start % range + i * STEP) % range;
        limits::FALLBACK_PORT_FIRST + u16::try_from(offset).unwrap_or_default()
    })
}

enum Attempt {
    PortUnusable,
    Failed(ConnectError),
}

async fn attempt(source: SocketAddr, destination: SocketAddr, limit: Duration) -> Result<TcpStream, Attempt> {
    let socket = match prepare(source) {
        Ok(socket) => socket,
        Err(error) if is_port_unusable(&error) => return Err(Attempt::PortUnusable),
        Err(error) => return Err(Attempt::Failed(ConnectError::Prepare { destination, error })),
    };
    match tokio::time::timeout(limit, socket.connect(destination)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if is_port_unusable(&error) => Err(Attempt::PortUnusable),
        Ok(Err(error)) => Err(Attempt::Failed(ConnectError::Connect { destination, error })),
        Err(_) => Err(Attempt::Failed(ConnectError::TimedOut { destination, limit })),
    }
}

fn is_port_unusable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EACCES | EADDRINUSE | EADDRNOTAVAIL))
}

/// SO_REUSEADDR: the accepted socket of the client, and a TIME_WAIT of an earlier connection, have the same port.
fn prepare(source: SocketAddr) -> io::Result<TcpSocket> {
    let domain = Domain::for_address(source);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if domain == Domain::IPV4 {
        socket.set_ip_transparent_v4(true)?;
    } else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "IPv6 is not proxied yet"));
    }
    socket.set_mark(layout::mark::FROM_PROXY)?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// What both sockets of a connection need: no delay of small writes, and a reset instead of a clean end when the
/// process dies in the middle of an exchange.
pub(crate) fn prepare_stream(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, probes) = limits::KEEPALIVE;
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_keepalive(&keepalive)
}

/// From here on, closing the socket ends the stream cleanly.
pub(crate) fn end_cleanly(stream: &TcpStream) {
    // A socket that refuses the option is closed with a reset: the safe side.
    let _ = SockRef::from(stream).set_linger(None);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn fallback_ports_stay_in_their_range_and_do_not_repeat() {
        for start in [0, 1, 9_999, 10_000, u64::MAX] {
            let ports: HashSet<u16> = fallback_ports(start).collect();
            assert_eq!(ports.len(), usize::from(limits::FALLBACK_TRIES));
            assert!(ports.iter().all(|port| (20_000..30_000).contains(port)), "{ports:?}");
        }
    }
}
