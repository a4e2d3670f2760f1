//! A cluster of network namespaces that runs the real programs, needs no Kubernetes, and reads the same manifests.
//!
//! A node is a namespace with `mesh-agent`, `mesh-wireguard` and `mesh-proxy` in it; a pod is a namespace attached to its node by
//! `mesh-cni`, with its containers' commands as processes in it. [`OUTSIDE`] is a namespace too: the world, and the router
//! between the nodes; what two nodes send each other passes through it.
//!
//! ```text
//!  node-1                       outside (192.0.2.1)                    node-2
//!  10.1.0.0/16  uplink 172.31.1.2 -- node-1 172.31.1.1 | 172.31.2.1 node-2 -- 172.31.2.2 uplink  10.2.0.0/16
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`lab`] | start, change, use and remove a lab |
//! | [`folder`] | where a lab keeps what, and how things are named |
//! | [`manifest`], [`store`] | manifests as users write them; the folder that stands for the API server |
//! | [`pod`] | what a lab runs of a Pod |
//! | [`supervisor`] | the process that keeps a lab as its manifests say |
//! | [`topology`] | namespaces and links |

pub mod error;
pub mod folder;
mod inside;
pub mod lab;
pub mod manifest;
pub mod pod;
pub mod process;
pub mod program;
mod ready;
mod record;
pub mod store;
pub mod supervisor;
mod teardown;
pub mod topology;

pub use error::LabError;
pub use lab::{Lab, LabOptions};
pub use manifest::{Object, ObjectKey};
pub use pod::{Phase, PodRecord};
pub use program::Program;
pub use store::Change;
pub use supervisor::supervise;
pub use topology::OUTSIDE;
