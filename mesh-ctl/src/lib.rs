//! The command line: look, explain, test.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | what can be typed |
//! | [`target`] | which agents are asked |
//! | [`commands`] | one module for each command |
//! | [`table`], [`compact`], [`hubble_json`] | how answers are written |
//! | [`error`] | exit codes |

pub mod cli;
pub mod commands;
pub mod compact;
pub mod error;
pub mod hubble_json;
pub mod table;
pub mod target;
