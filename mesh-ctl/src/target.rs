//! Which agents a command asks.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::agent::control_client::ControlClient;
use api::observer::observer_client::ObserverClient;
use lab::Lab;
use tonic::transport::Channel;

use crate::cli::Scope;
use crate::error::CtlError;

/// The agent of this machine.
const LOCAL_SOCKET: &str = "/run/selvage/agent.sock";
/// Longest wait for an answer. An agent answers in milliseconds; one that does not is as good as gone.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for a change to be in force: longer than the agent's own limit for it.
pub const IN_FORCE_LIMIT: Duration = Duration::from_secs(12);

/// An agent to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Node of the lab; `None` for an agent that is known by its socket only.
    pub node: Option<String>,
    /// Its socket.
    pub socket: PathBuf,
}

impl Target {
    /// For messages: "node-1", or the socket.
    pub fn name(&self) -> String {
        self.node.clone().unwrap_or_else(|| format!("the agent at {}", self.socket.display()))
    }

    fn channel(&self) -> Channel {
        api::connect::channel(&self.socket)
    }

    /// Its control service.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Its flows.
    pub fn observer(&self) -> ObserverClient<Channel> {
        ObserverClient::new(self.channel()).max_decoding_message_size(MESSAGE_MAX)
    }
}

/// Largest answer: a list of ten thousand policies with their manifests.
const MESSAGE_MAX: usize = 256 << 20;

/// Waits for an agent's answer, no longer than [`ANSWER_LIMIT`].
///
/// # Errors
/// The agent is not there, too slow, or refuses.
pub async fn answer<T>(
    target: &Target,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CtlError> {
    answer_within(ANSWER_LIMIT, target, call).await
}

/// Waits for an agent's answer, no longer than `limit`.
///
/// # Errors
/// As [`answer`].
pub async fn answer_within<T>(
    limit: Duration,
    target: &Target,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CtlError> {
    let who = target.name();
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CtlError::from_status(&who, &status)),
        Err(_) => Err(CtlError::Unreachable(format!("{who} did not answer within {limit:?}"))),
    }
}

/// The agents that `scope` means; at least one.
///
/// # Errors
/// If it means none, it is not clear which, or only root may ask them.
pub fn choose(scope: &Scope) -> Result<Vec<Target>, CtlError> {
    let targets = find(scope)?;
    let is_closed = |target: &Target| {
        UnixStream::connect(&target.socket).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    if targets.iter().any(is_closed) {
        return Err(CtlError::needs_root());
    }
    Ok(targets)
}

fn find(scope: &Scope) -> Result<Vec<Target>, CtlError> {
    if let Some(socket) = &scope.socket {
        return Ok(vec![Target { node: None, socket: socket.clone() }]);
    }
    if let Some(name) = &scope.lab {
        return nodes_of(&Lab::open(name)?, scope.node.as_deref());
    }
    if scope.node.is_none() && Path::new(LOCAL_SOCKET).exists() {
        return Ok(vec![Target { node: None, socket: PathBuf::from(LOCAL_SOCKET) }]);
    }
    let labs = Lab::all()?;
    match labs.as_slice() {
        [only] => nodes_of(only, scope.node.as_deref()),
        [] => {
            Err(CtlError::Unreachable(format!("there is no agent at {LOCAL_SOCKET}, and no lab runs here")))
        }
        several => {
            let names: Vec<_> = several.iter().map(Lab::name).collect();
            Err(CtlError::Usage(format!(
                "several labs run here ({}): choose one with --lab",
                names.join(", ")
            )))
        }
    }
}

fn nodes_of(lab: &Lab, only: Option<&str>) -> Result<Vec<Target>, CtlError> {
    if let Some(node) = only {
        // Says which nodes there are, should this be none of them.
        lab.node_address(node)?;
    }
    let nodes = lab.nodes()?.into_iter().filter(|node| only.is_none_or(|only| only == node));
    Ok(nodes.map(|node| Target { socket: lab.agent_socket(&node), node: Some(node) }).collect())
}

/// `NAMESPACE/NAME`; the namespace `default` for a bare name.
pub fn namespaced(name: &str) -> (String, String) {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    (namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_in_the_default_namespace() {
        assert_eq!(namespaced("a/b"), ("a".to_owned(), "b".to_owned()));
        assert_eq!(namespaced("b"), ("default".to_owned(), "b".to_owned()));
    }

    #[test]
    fn a_socket_is_taken_as_it_is_and_an_unknown_lab_is_not_reachable() {
        let socket = Scope { socket: Some("/nowhere".into()), ..Scope::default() };
        assert_eq!(choose(&socket).unwrap()[0].name(), "the agent at /nowhere");
        let lab = Scope { lab: Some("no-such-lab".to_owned()), ..Scope::default() };
        assert_eq!(choose(&lab).unwrap_err().exit_code(), crate::error::UNREACHABLE);
        let lab = Scope { lab: Some("No Lab".to_owned()), ..Scope::default() };
        assert_eq!(choose(&lab).unwrap_err().exit_code(), crate::error::USAGE);
    }
}
