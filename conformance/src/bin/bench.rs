//! `make bench`: figures next to what they are to be compared with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use conformance::bench::{self, Part};

/// Measures Selvage in a lab of two nodes, side by side with its peers, and prints raw figures and ratios.
#[derive(Debug, Parser)]
struct Options {
    /// Measure only this; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<Part>,
    #[command(subcommand)]
    command: Option<Helper>,
}

#[derive(Debug, Subcommand)]
enum Helper {
    /// Relays TCP in the proxy's place until standard input ends.
    #[command(hide = true)]
    Relay {
        /// Where the datapath's maps are pinned.
        #[arg(long)]
        pin_dir: PathBuf,
        /// Where the proxy's master hands over its listeners.
        #[arg(long)]
        handover: PathBuf,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.command {
        Some(Helper::Relay { pin_dir, handover }) => bench::relay::run(&pin_dir, &handover),
        None if options.only.is_empty() => bench::run(&Part::ALL),
        None => bench::run(&options.only),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
