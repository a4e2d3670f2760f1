//! A steady load without retries, while something is done to the programs under it.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::command::Background;
use crate::shop;

/// What a load saw; `shop load` prints it.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Requests begun.
    pub sent: u64,
    /// Requests answered as they should be.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// Longest time between two answers, milliseconds.
    pub longest_gap_ms: f64,
}

/// A failed request.
#[derive(Debug, Deserialize)]
pub struct Failure {
    /// Milliseconds since the load began.
    pub at_ms: f64,
    /// The client's words.
    pub kind: String,
}

/// What a load sends where. A protocol without a server is not used.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// HTTP/1.1 server: half the requests on new connections, half on kept-alive ones.
    pub http: Option<IpAddr>,
    /// gRPC server, the same.
    pub grpc: Option<IpAddr>,
    /// Requests a second.
    pub rate: u32,
    /// How long.
    pub seconds: u32,
}

/// A running load.
#[derive(Debug)]
pub struct Load(Background, u32);

/// Starts `shop load` where `in_pod` puts it.
///
/// # Errors
/// If it cannot be started.
pub fn start(in_pod: impl FnOnce(&str) -> Command, plan: Plan) -> Result<Load> {
    let mut command = in_pod(&shop::program()?);
    command.args(["load", "--rate", &plan.rate.to_string(), "--seconds", &plan.seconds.to_string()]);
    if let Some(server) = plan.http {
        command.args(["--http", &format!("{server}:{}", shop::HTTP_PORT)]);
    }
    if let Some(server) = plan.grpc {
        command.args(["--grpc", &format!("{server}:{}", shop::GRPC_PORT)]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start shop load")?;
    Ok(Load(Background(child), plan.seconds))
}

impl Load {
    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time or prints no report.
    pub fn finish(mut self) -> Result<Report> {
        let limit = Duration::from_secs(u64::from(self.1) + 15);
        let stdout = self.0.0.stdout.take().context("no stdout")?;
        let printed = std::thread::spawn(move || std::io::read_to_string(stdout));
        crate::command::wait(&mut self.0.0, limit)?;
        let printed = printed.join().map_err(|_| anyhow::anyhow!("the reader ended badly"))??;
        serde_json::from_str(&printed).with_context(|| format!("`shop load` printed {printed:?}"))
    }
}
