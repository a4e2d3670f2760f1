//! One module for each command. Each asks, then writes its whole answer at once (`observe`: line by line).

mod endpoints;
mod explain;
mod lab;
mod observe;
mod policy;
mod status;

use std::io::Write as _;

use serde_json::Value;

use crate::cli::{Cli, Command, LabCommand, Output, Scope};
use crate::error::CtlError;
use crate::target::{self, Target};

/// Runs a command. Returns the exit code.
///
/// # Errors
/// Why it could not be done.
pub fn run(cli: Cli) -> Result<u8, CtlError> {
    let scope = cli.scope;
    match cli.command {
        Command::Lab(command) => lab::run(&scope, command),
        Command::Status => wait_for(status::run(&scope)),
        Command::Endpoints => wait_for(endpoints::run(&scope)),
        Command::Policy(command) => wait_for(policy::run(&scope, command)),
        Command::Explain(command) => wait_for(explain::run(&scope, command)),
        Command::Observe(command) => wait_for(observe::run(&scope, command)),
    }
}

/// Whether the command is the lab's own process.
pub const fn is_supervisor(cli: &Cli) -> bool {
    matches!(cli.command, Command::Lab(LabCommand::Supervise { .. }))
}

fn wait_for(command: impl Future<Output = Result<u8, CtlError>>) -> Result<u8, CtlError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// Writes the answer as `scope` asks for it.
fn print(
    scope: &Scope,
    json: impl FnOnce() -> Value,
    table: impl FnOnce() -> String,
) -> Result<(), CtlError> {
    let text = match scope.output {
        Output::Json => format!("{:#}\n", json()),
        Output::Table => table(),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// The first answer to `ask` that any of the agents gives; every agent knows the whole cluster.
async fn first_answer<T, F: Future<Output = Result<T, CtlError>>>(
    scope: &Scope,
    ask: impl Fn(Target) -> F,
) -> Result<T, CtlError> {
    let mut last = None;
    for target in target::choose(scope)? {
        match ask(target).await {
            Err(error @ CtlError::Unreachable(_)) => last = Some(error),
            answered => return answered,
        }
    }
    Err(last.unwrap_or_else(|| CtlError::Unreachable("the lab has no node".to_owned())))
}
