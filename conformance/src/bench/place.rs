//! Who is in the proxy's place on node-1: the proxy itself, or the bare relay.

use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;

use super::{NODE, relay};
use crate::command::{self, Background};

/// How long the relay may take to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// A relay in the proxy's place. The proxy is back in it when this is dropped.
#[derive(Debug)]
pub struct Relay {
    process: Background,
    stdin: Option<ChildStdin>,
}

impl Relay {
    /// Puts a relay into the place of the proxy on the first node.
    ///
    /// # Errors
    /// If it does not get there.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut command = lab.node_command(NODE, std::env::current_exe()?);
        command.arg("relay").arg("--pin-dir").arg(lab.folder().node_pins(NODE));
        command.arg("--handover").arg(lab.folder().run(NODE).join("proxy-master.sock"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Background(command.spawn().context("start the relay")?);
        let stdin = process.0.stdin.take();
        let mut line = String::new();
        let stdout = process.0.stdout.take().context("the relay has no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == relay::READY, "the relay did not get into the proxy's place");
        Ok(Self { process, stdin })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Gives the place back to the proxy.
    ///
    /// # Errors
    /// If it could not.
    pub fn stop(mut self) -> Result<()> {
        self.stdin = None;
        let status = command::wait(&mut self.process.0, LEAVE_LIMIT)?;
        ensure!(status.success(), "the relay ended with {status}");
        Ok(())
    }
}
