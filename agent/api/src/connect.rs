//! Client side of a unix socket: one lazily connected, reconnecting channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long a connection attempt to the agent's socket may take. A unix connect is immediate unless the agent's
/// accept queue is full, and then waiting longer helps nobody.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A channel to the agent that listens on `socket`. Connects at the first call and again after a loss.
pub fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    Endpoint::from_static("http://agent").connect_timeout(CONNECT_TIMEOUT).connect_with_connector_lazy(
        tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }),
    )
}
