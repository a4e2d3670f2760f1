//! The node's datapath from user space: loads the eBPF programs, pins maps and links, attaches, fills the maps, reads
//! events.
//!
//! - [`Datapath`] loads the programs and attaches them; one process at a time, the agent. Dropping it detaches nothing:
//!   links and maps are pinned, and the next process adopts them.
//! - [`Maps`] reads and writes the pinned maps; any process that may open the pins, without the programs.
//! - [`Listeners`] holds the proxy's listening sockets; the proxy's master.
//! - [`lower`] turns policy snapshots into the contents of the maps.
//! - [`Events`] reads what the programs report; one reader at a time.

mod error;
mod events;
mod layout_check;
mod links;
mod listeners;
pub mod lower;
mod maps;
mod pins;
mod programs;
mod sys;

pub use error::Error;
pub use events::Events;
pub use links::{Attachment, Program};
pub use listeners::Listeners;
pub use maps::{Counters, Maps, Rule};
pub use pins::{DEFAULT_PIN_DIR, remove_pins};
pub use programs::Datapath;
