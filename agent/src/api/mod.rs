//! The API: three unix sockets, each for one kind of caller, and the services on them. docs/ARCHITECTURE.md says who may
//! talk to which.

mod cni;
mod control;
mod explain;
mod listen;
mod observer;
mod proxy;
mod tunnel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::agent::cni_server::CniServer;
use api::agent::control_server::ControlServer;
use api::agent::proxy_server::ProxyServer;
use api::agent::tunnel_server::TunnelServer;
use api::observer::observer_server::ObserverServer;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::Config;
use crate::flows::Flows;
use crate::reconcile::{ConnectionId, Handle};

#[cfg(test)]
pub(crate) use self::explain::explain;
pub use self::listen::ListenError;

/// Snapshots of a large cluster: as large as the proxy takes them.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Why the API ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket could not be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A server broke.
    #[error("API: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What the services share.
struct Shared {
    config: Config,
    handle: Handle,
    flows: Arc<Flows>,
    /// To read counters; the task has its own.
    maps: datapath::Maps,
    connections: AtomicU64,
}

impl Shared {
    /// A number for a new stream; later ones have larger numbers.
    fn next_connection(&self) -> ConnectionId {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}

/// Serves until a server breaks.
///
/// # Errors
/// A socket cannot be made, or a server breaks.
pub async fn serve(
    config: &Config,
    handle: Handle,
    flows: Arc<Flows>,
    maps: datapath::Maps,
) -> Result<(), ServeError> {
    let shared =
        Arc::new(Shared { config: config.clone(), handle, flows, maps, connections: AtomicU64::new(0) });
    let agent = listen::bind(&config.agent_socket(), None)?;
    let proxy = listen::bind(&config.proxy_socket(), Some(config.proxy_uid))?;
    let tunnel = listen::bind(&config.tunnel_socket(), Some(config.tunnel_uid))?;
    let agent = Server::builder()
        .add_service(CniServer::new(cni::Service(Arc::clone(&shared))))
        .add_service(ControlServer::new(control::Service(Arc::clone(&shared))))
        .add_service(ObserverServer::new(observer::Service(Arc::clone(&shared))))
        .serve_with_incoming(UnixListenerStream::new(agent));
    let proxies =
        ProxyServer::new(proxy::Service(Arc::clone(&shared))).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let proxy = Server::builder().add_service(proxies).serve_with_incoming(UnixListenerStream::new(proxy));
    let tunnel = Server::builder()
        .add_service(TunnelServer::new(tunnel::Service(shared)))
        .serve_with_incoming(UnixListenerStream::new(tunnel));
    tokio::try_join!(agent, proxy, tunnel)?;
    Ok(())
}
