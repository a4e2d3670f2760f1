//! The command line: look, explain, test.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | what can be typed |
//! | [`target`] | which agents are asked |
//! | [`commands`] | one module for each command |
//! | [`table`], [`compact`], [`hubble_json`] | how answers are written |
//! | [`suggest`] | names that are meant |
//! | [`error`] | exit codes |

pub mod cli;
pub mod commands;
pub mod compact;
pub mod error;
pub mod hubble_json;
pub mod suggest;
pub mod table;
pub mod target;
