//! `mesh-wireguard`: see [`wireguard::program`].

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use host::master::WorkerSide;
use tracing_subscriber::EnvFilter;
use wireguard::program::{Options, run_master, run_worker};

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(api::log::DEFAULT));
    let terminal = std::io::stderr().is_terminal();
    // A log that cannot be written (a full disk) is lost; the subscriber's report of that panics.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .log_internal_errors(false)
        .init();
    let options = Options::parse();
    let print = options.print_config;
    let config = options.resolve()?;
    if print {
        print!("{}", toml::to_string(&config).context("printing the configuration")?);
        return Ok(());
    }
    if WorkerSide::is_worker() { Ok(run_worker(&config)?) } else { Ok(run_master(&config)?) }
}
