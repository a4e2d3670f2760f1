//! What happened, in numbers: one counter for each outcome and for each limit that was hit.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// Counters of one worker, shared by its threads. Each is a word of its own that is only ever added to.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Name and value of each.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Connections accepted.
    accepted;
    /// Reset at once: the thread serves as many as it may, or the client has its share of them.
    connections_over_limit;
    /// `accept` failed for want of descriptors or memory.
    accept_failed;
    /// Refused: the original destination is the node itself.
    loops;
    /// An old connection was ended because its client used the same address and port again.
    replaced;
    /// Requests judged and forwarded.
    forwarded;
    /// Requests refused by policy.
    denied;
    /// Requests refused as malformed or ambiguous.
    malformed;
    /// Requests refused because servers can read their target in more ways than are judged.
    too_many_readings;
    /// Requests or connections ended because a new snapshot forbids them.
    ended_by_policy;
    /// Upstream connections with the client's own address and port.
    upstream_own_port;
    /// Upstream connections with the client's address and another port.
    upstream_other_port;
    /// Upstream connections with the node's address.
    upstream_node_address;
    /// Upstream connections that failed.
    upstream_failed;
    /// Ended by a time-out: head, idle, quiet or stall.
    timed_out;
    /// Ended by the limit of the drain.
    drain_limit;
    /// HTTP/2 connections closed because the client cancelled too many streams.
    too_many_cancelled;
    /// HTTP/2 streams refused because the server had as many open as it lets be for too long.
    upstream_streams_full;
    /// HTTP/2 streams refused or ended because the connection, the client or the thread has all the bytes in memory that it
    /// may have.
    buffers_full;
    /// Request records lost because the agent did not take them in time.
    records_lost;
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
