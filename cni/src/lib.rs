//! `mesh-cni`: attaches a pod to its node, as a plugin of the Container Network Interface, versions 0.3.1 to 1.1.0.
//!
//! The agent hands out the address and attaches the programs; the plugin makes what is inside the pod and the pair of devices.
//! It keeps nothing itself. ADD is a list of numbered [`step`]s, and may be killed at each of them: a DEL cleans up.
//!
//! The messages of the protocol are those of the crate `rscni-types`. Its companion `rscni-plugin`, which would also read the
//! environment and print, is not used: it names missing variables and unsupported keys in `details`, where the specification
//! wants them in `msg`; it reports errors under its own version instead of the configuration's; and it reads without a limit.

mod add;
mod agent;
mod check;
mod config;
mod del;
mod error;
mod gc;
mod note;
mod pod;
mod protocol;
mod request;
pub mod step;

pub use error::CniError;
pub use protocol::{Output, answer};
