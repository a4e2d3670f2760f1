//! Links, addresses, routes, rules and neighbours of a network namespace (rtnetlink(7)).
//!
//! Verbs are idempotent: `ensure_*` makes it so, `delete_*` says whether there was something to delete.

mod address;
mod error;
mod link;
mod neighbour;
mod queue;
mod route;
mod rule;
mod watch;

use std::io;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

pub use self::error::NetlinkError;
pub use self::link::{Link, LinkChange, Mac, VethPair};
pub use self::neighbour::Neighbour;
pub use self::route::{ROUTE_PROTOCOL, Route, RouteKind, RouteScope, TABLE_LOCAL, TABLE_MAIN};
pub use self::rule::{FwMark, Rule};
pub use self::watch::{Change, Watch};

use crate::netns::NetNs;

/// Longest wait for the kernel's answer. It answers at once, except behind another holder of the rtnl lock (the removal of many
/// namespaces at once keeps it for seconds).
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How often a list is asked for again when it changed while the kernel wrote it.
const MAX_INTERRUPTED_LISTS: usize = 10;

/// A connection to the kernel's routing tables of one network namespace. Closed when dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Connects in the namespace of the calling thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket could not be opened.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Connects in `namespace`: the socket is opened inside and stays there, the caller stays where it is. Needs a tokio runtime.
    ///
    /// # Errors
    /// The namespace could not be entered, or the socket not be opened.
    pub fn connect_in(namespace: &NetNs) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        let opened = namespace.run(move || {
            let _context = runtime.enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) = opened?.map_err(NetlinkError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Sends a request that changes something, and waits for its acknowledgement.
    async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for one object.
    async fn get(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, 0).await.map(|(found, _)| found)
    }

    /// Asks for a whole list, again if it changed meanwhile.
    async fn list(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..MAX_INTERRUPTED_LISTS {
            let (found, interrupted) = self.request(message.clone(), NLM_F_DUMP).await?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the list kept changing while it was read"))
    }

    /// Returns the answers, and whether the kernel says that a list is inconsistent.
    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let closed = || io::Error::new(io::ErrorKind::NotConnected, "the netlink socket is closed");
        let mut answers = handle.request(request).map_err(|_| closed())?;
        let collect = async {
            let (mut found, mut interrupted) = (Vec::new(), false);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
            }
            Ok((found, interrupted))
        };
        match tokio::time::timeout(ANSWER_LIMIT, collect).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from the kernel")),
        }
    }
}
