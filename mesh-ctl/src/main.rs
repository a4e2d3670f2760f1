//! `mesh-ctl`: parses, runs, says what went wrong, and exits with the code for it.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_ctl::cli::Cli;
use mesh_ctl::{commands, error};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The supervisor's words are its log. For all other commands they would stand in the way of the answer.
    let level = if commands::is_supervisor(&cli) { api::log::DEFAULT } else { "off" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // A log that cannot be written (a full disk) is lost; the subscriber's report of that panics.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let code = failure.exit_code();
            if code != error::DONE {
                eprintln!("mesh-ctl: {failure}");
            }
            ExitCode::from(code)
        }
    }
}
