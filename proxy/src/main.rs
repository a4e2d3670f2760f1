//! `mesh-proxy`: the master, or its worker if it was started by one.

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use host::master::WorkerSide;
use proxy::config::CommandLine;
use proxy::process;
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let arguments = std::env::args_os().skip(1).collect();
    let command_line = CommandLine::parse();
    let print_config = command_line.print_config;
    let config = command_line.resolve()?;
    if print_config {
        print!("{}", toml::to_string(&config).context("cannot print the options")?);
        return Ok(());
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(api::log::DEFAULT));
    let colours = std::io::stderr().is_terminal();
    // A log that cannot be written (a full disk) is lost; the subscriber's report of that panics.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .log_internal_errors(false)
        .init();
    if WorkerSide::is_worker() {
        process::run_as_worker(&config)
    } else {
        process::run_as_master(&config, arguments)
    }
}
