//! The shared L7 proxy of a node: every request to or from a pod whose policy has HTTP rules is judged here, and what
//! the server gets is exactly what was judged.
//!
//! A packet's way: the datapath steers the connection to a listener of ours ([`listener`]); a thread accepts it
//! ([`slot`]) and finds out what it speaks ([`session`]); `http1` or `http2` reads each request, [`gate`] judges it on the
//! snapshot in force ([`policies`]); the first that is allowed connects to the server as the client ([`upstream`]); each
//! request leaves one record ([`record`]) for the agent ([`agent`]).
//!
//! The server is connected to when the first request is allowed, not when the connection is accepted: a denied client
//! never touches the server, and one that meets a closed port is told so by a 503 (gRPC: status 14).

pub mod agent;
mod buffers;
pub mod config;
pub mod counters;
pub mod gate;
mod http1;
mod http2;
mod io;
pub mod limits;
pub mod listener;
mod live;
pub mod policies;
pub mod process;
pub mod pulse;
pub mod record;
pub mod refusal;
mod seldom;
pub mod session;
pub mod slot;
pub mod store;
pub mod thread;
pub mod upstream;
