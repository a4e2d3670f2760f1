//! `mesh-agent`: reads its options, takes the state folder, runs.

use agent::config::{Cli, Config};
use agent::{lock_state, node, run};
use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

/// Threads: one for the task that owns the state and may be busy compiling or writing, one for everybody else.
const THREADS: usize = 2;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let config = Config::load(&cli)?;
    if cli.print_config {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("SELVAGE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(::api::log::DEFAULT));
    // A log that cannot be written (a full disk) is lost; the subscriber's report of that panics.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    // On one of the runtime's threads, so that it may block there.
    let work = async move { runtime_main(cli.cleanup, config).await };
    runtime.block_on(runtime.spawn(work)).context("the agent panicked")?
}

async fn runtime_main(cleanup: bool, config: Config) -> anyhow::Result<()> {
    let lock = lock_state(&config)?;
    if cleanup {
        node::cleanup(&config).await?;
        return Ok(());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = Box::pin(run(&config, &lock));
    tokio::select! {
        ended = running => ended?,
        _ = terminate.recv() => tracing::info!("asked to end; what is in force stays in force"),
        _ = interrupt.recv() => tracing::info!("asked to end; what is in force stays in force"),
    }
    Ok(())
}
