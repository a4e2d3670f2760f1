//! One module for each command. Each asks, then writes its whole answer at once (`observe`: line by line).

mod check;
mod endpoints;
mod explain;
mod follow;
mod in_force;
mod lab;
mod observe;
mod policy;
mod status;

use std::io::Write as _;
use std::time::Duration;

use api::agent::EndpointsRequest;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::{Cli, Command, LabCommand, Output, Scope};
use crate::error::CtlError;
use crate::suggest;
use crate::target::{self, Target};

/// How long the other agents are waited for once one has answered. They answer in milliseconds.
const OTHERS: Duration = Duration::from_millis(300);

/// Runs a command. Returns the exit code.
///
/// # Errors
/// Why it could not be done.
pub fn run(cli: Cli) -> Result<u8, CtlError> {
    let scope = cli.scope;
    match cli.command {
        Command::Lab(command) => lab::run(&scope, command),
        Command::Status { counters } => wait_for(status::run(&scope, counters)),
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

/// An agent, and its answer or why there is none.
type Answer<T> = (Target, Result<T, CtlError>);

/// What all agents answer, asked at once.
async fn ask_all<T, F: Future<Output = Result<T, CtlError>>>(
    scope: &Scope,
    ask: impl Fn(Target) -> F,
) -> Result<Vec<Answer<T>>, CtlError> {
    let targets = target::choose(scope)?;
    let answers = join_all(targets.iter().map(|target| ask(target.clone()))).await;
    Ok(targets.into_iter().zip(answers).collect())
}

/// The answers that there are; whether one is missing, which is said. None at all is an error.
fn answered<T>(answers: Vec<Answer<T>>) -> Result<(Vec<T>, bool), CtlError> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (target, answer) in answers {
        match answer {
            Ok(answer) => found.push(answer),
            Err(error @ CtlError::Unreachable(_)) => missing.push((target, error)),
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() {
        let lonely = || CtlError::Unreachable("the lab has no node".to_owned());
        return Err(missing.into_iter().next().map_or_else(lonely, |(_, error)| error));
    }
    for (target, error) in &missing {
        eprintln!("mesh-ctl: warning: the answer is without {}: {error}", target.name());
    }
    Ok((found, !missing.is_empty()))
}

/// The first answer to `ask` that any of the agents gives; every agent knows the whole cluster.
/// Names those that give none.
async fn first_answer<T, F: Future<Output = Result<T, CtlError>>>(
    scope: &Scope,
    ask: impl Fn(Target) -> F,
) -> Result<T, CtlError> {
    let targets = target::choose(scope)?;
    let ask = &ask;
    let mut asked: FuturesUnordered<_> =
        targets.iter().map(|target| async move { (target, ask(target.clone()).await) }).collect();
    let mut silent: Vec<&Target> = targets.iter().collect();
    let (mut first, mut last) = (None, None);
    let mut end = Instant::now() + 2 * target::ANSWER_LIMIT;
    while let Ok(Some((target, answer))) = tokio::time::timeout_at(end, asked.next()).await {
        match answer {
            Err(error @ CtlError::Unreachable(_)) => last = Some(error),
            answer => {
                silent.retain(|other| *other != target);
                if first.is_none() {
                    (first, end) = (Some(answer), Instant::now() + OTHERS);
                }
            }
        }
    }
    let none = || Err(last.unwrap_or_else(|| CtlError::Unreachable("the lab has no node".to_owned())));
    let first = first.unwrap_or_else(none)?;
    for target in silent {
        eprintln!("mesh-ctl: warning: {} does not answer; the answer is that of another node", target.name());
    }
    Ok(first)
}

/// What the pods of the cluster are called, for a message about one that does not exist.
async fn pod_names(scope: &Scope) -> Vec<(String, String)> {
    let known = first_answer(scope, async |target| {
        target::answer(&target, target.control().endpoints(EndpointsRequest {})).await
    });
    known.await.map(|answer| suggest::names(&answer.endpoints)).unwrap_or_default()
}
