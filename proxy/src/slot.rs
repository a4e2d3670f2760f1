//! One worker thread: accepts on its own listener until it is retired.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use crate::limits;
use crate::pulse::Pulse;
use crate::session;
use crate::thread::{Common, Thread};
use crate::upstream::Connect;

/// Serves a listener on the calling thread, with a runtime of its own, until `retire` says true and every connection
/// has ended (or the drain has taken too long). `pulse` proves meanwhile that the thread works.
///
/// Where the original destination of a connection is not its local address, `destination` tells it (tests).
///
/// # Errors
/// The runtime or the listener could not be set up, or the listener was closed by somebody else.
pub fn run<C: Connect>(
    listener: StdListener,
    connector: C,
    common: Common,
    retire: watch::Receiver<bool>,
    pulse: Pulse,
    destination: Option<SocketAddr>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        spawn_local(pulse.beat());
        let slot = Slot { thread: Thread::new(connector, common), destination };
        slot.serve(TcpListener::from_std(listener)?, retire).await
    }))
}

struct Slot<C> {
    thread: Rc<Thread<C>>,
    destination: Option<SocketAddr>,
}

impl<C: Connect> Slot<C> {
    async fn serve(&self, listener: TcpListener, mut retire: watch::Receiver<bool>) -> io::Result<()> {
        for watcher in [Watch::Deadlines, Watch::Snapshots] {
            let thread = self.thread.clone();
            spawn_local(async move {
                match watcher {
                    Watch::Deadlines => thread.watch_deadlines().await,
                    Watch::Snapshots => thread.watch_snapshots().await,
                }
            });
        }
        let retired = async {
            // An error means that whoever could retire us is gone: the same.
            let _ = retire.wait_for(|retired| *retired).await;
        };
        tokio::pin!(retired);
        loop {
            tokio::select! {
                biased;
                () = &mut retired => break,
                accepted = listener.accept() => match accepted {
                    Err(error) if listens_no_more(&error) => return Err(error),
                    accepted => self.accepted(accepted).await,
                },
            }
        }
        self.empty_queue(listener).await;
        self.thread.drain().await;
        Ok(())
    }

    /// A successor accepts from the same queue; what is in it now is served by whoever takes it first. Asks the kernel
    /// itself: the runtime knows of new connections only when it has waited. Closing our copy of the listener leaves
    /// the queue to the successor's.
    async fn empty_queue(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        loop {
            match listener.accept() {
                Ok((stream, client)) => {
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    self.accepted(stream.map(|stream| (stream, client))).await;
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(_) => return,
            }
        }
    }

    async fn accepted(&self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let counters = &self.thread.common.counters;
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_about_one_connection(&error) => return,
            Err(error) => {
                counters.accept_failed.add();
                if self.thread.warned.cannot_accept.may_say() {
                    tracing::warn!(%error, "cannot accept");
                }
                return tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        };
        counters.accepted.add();
        let Ok(local) = stream.local_addr() else { return };
        let Some(place) = self.thread.admit(client.ip()) else {
            counters.connections_over_limit.add();
            // Reset, so that the client knows at once.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
            return;
        };
        let destination = self.destination.unwrap_or(local);
        let thread = self.thread.clone();
        spawn_local(async move {
            session::serve(thread, stream, client, destination).await;
            drop(place);
        });
    }
}

enum Watch {
    Deadlines,
    Snapshots,
}

/// The listener was closed under us (accept(2)): it never accepts again, and only the master can replace it.
fn listens_no_more(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// The client went away while it was in the queue (accept(2)).
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
