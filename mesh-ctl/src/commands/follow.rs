//! `mesh-ctl observe --follow`: flows as they come, over restarts of agents, for as long as it is
//! not interrupted.

use std::time::{Duration, SystemTime};

use api::flow::LostEvent;
use api::observer::get_flows_response::ResponseTypes;
use api::observer::{GetFlowsRequest, GetFlowsResponse, NodeState, NodeStatusEvent};
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::observe::{sort, time, write};
use crate::compact;
use crate::error::CtlError;
use crate::target::{self, Target};

/// Flows wait this long for older ones of other nodes.
const REORDER: Duration = Duration::from_millis(100);
/// Flows that wait to be written; an agent whose flows find no room waits.
const QUEUE: usize = 1024;
/// Pause before an agent that is away is asked again, at first and at last. One that restarts is
/// back within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

type Sender = mpsc::Sender<Result<GetFlowsResponse, CtlError>>;

/// Until it is interrupted, or an agent refuses the request.
pub(super) async fn run(
    targets: Vec<Target>,
    request: GetFlowsRequest,
    is_json: bool,
) -> Result<u8, CtlError> {
    let (sender, mut flows) = mpsc::channel(QUEUE);
    for target in targets {
        let follower = Follower { target, request: request.clone(), sender: sender.clone(), newest: None };
        tokio::spawn(follower.run());
    }
    drop(sender);
    // `ripe` have waited for a whole interval, `fresh` came since.
    let (mut ripe, mut fresh) = (Vec::new(), Vec::new());
    let mut tick = tokio::time::interval(REORDER);
    let end = loop {
        tokio::select! {
            flow = flows.recv() => match flow {
                Some(Ok(flow)) => fresh.push(flow),
                Some(Err(error)) => break error,
                None => break CtlError::Unreachable("the lab has no node".to_owned()),
            },
            _ = tick.tick() => write_due(&due(&mut ripe, &mut fresh), is_json)?,
        }
    };
    ripe.append(&mut fresh);
    sort(&mut ripe);
    write_due(&ripe, is_json)?;
    Err(end)
}

/// News of agents are no flows: for people they stand on the standard error.
fn write_due(due: &[GetFlowsResponse], is_json: bool) -> Result<(), CtlError> {
    if is_json {
        return write(due, true);
    }
    for response in due {
        match &response.response_types {
            Some(ResponseTypes::Flow(_)) => write(std::slice::from_ref(response), false)?,
            _ => eprintln!("mesh-ctl: {}", compact::line(response)),
        }
    }
    Ok(())
}

/// What has waited long enough, and what is older than that.
fn due(ripe: &mut Vec<GetFlowsResponse>, fresh: &mut Vec<GetFlowsResponse>) -> Vec<GetFlowsResponse> {
    let newest_ripe = ripe.iter().map(time).max();
    let mut all = std::mem::take(ripe);
    all.append(fresh);
    sort(&mut all);
    let due = all.iter().take_while(|flow| newest_ripe.is_some_and(|newest| time(flow) <= newest)).count();
    *ripe = all.split_off(due);
    all
}

/// Follows one agent.
struct Follower {
    target: Target,
    request: GetFlowsRequest,
    sender: Sender,
    /// Time of the newest flow that it gave.
    newest: Option<Timestamp>,
}

impl Follower {
    async fn run(mut self) {
        // Since when events are missed, and why.
        let mut gap: Option<Timestamp> = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let end = match self.connect(gap).await {
                Ok(stream) => {
                    if let Some(first) = gap.take()
                        && self.reconnected(first).await.is_err()
                    {
                        return;
                    }
                    pause = FIRST_PAUSE;
                    self.pass_on(stream).await
                }
                Err(error) => Some(error),
            };
            match end {
                None => return,
                Some(CtlError::Unreachable(why)) if gap.is_none() => {
                    gap = Some(now());
                    let message = format!("{why}; its events are missed from now on, until it answers again");
                    if self.say(NodeState::NodeUnavailable, message).await.is_err() {
                        return;
                    }
                }
                Some(CtlError::Unreachable(_)) => {}
                // Asked again, it would refuse again.
                Some(refused) => {
                    let _ = self.sender.send(Err(refused)).await;
                    return;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn connect(&self, gap: Option<Timestamp>) -> Result<Streaming<GetFlowsResponse>, CtlError> {
        let mut request = self.request.clone();
        // An agent that only closed the stream still has what came meanwhile.
        match (gap, self.newest) {
            (Some(_), Some(newest)) => (request.number, request.since) = (0, Some(just_after(newest))),
            (Some(first), None) if request.number == 0 => request.since = Some(first),
            _ => {}
        }
        target::answer(&self.target, self.target.observer().get_flows(request)).await
    }

    /// Passes flows on until the agent ends the stream; says why. `None`: nothing reads them any
    /// more.
    async fn pass_on(&mut self, mut stream: Streaming<GetFlowsResponse>) -> Option<CtlError> {
        let who = self.target.name();
        loop {
            match stream.message().await {
                Ok(Some(flow)) => {
                    self.newest = flow.time.or(self.newest);
                    self.sender.send(Ok(flow)).await.ok()?;
                }
                Ok(None) => return Some(CtlError::Unreachable(format!("{who} ended the stream of flows"))),
                Err(status) => return Some(interrupted(&who, &status)),
            }
        }
    }

    async fn reconnected(&self, first: Timestamp) -> Result<(), ()> {
        self.say(NodeState::NodeConnected, format!("{} answers again", self.target.name())).await?;
        let lost = LostEvent { num_events_lost: 0, first: Some(first), last: Some(now()) };
        self.send(ResponseTypes::LostEvents(lost)).await
    }

    async fn say(&self, state: NodeState, message: String) -> Result<(), ()> {
        let node_names = self.target.node.iter().cloned().collect();
        let event = NodeStatusEvent { state_change: state.into(), node_names, message };
        self.send(ResponseTypes::NodeStatus(event)).await
    }

    async fn send(&self, response: ResponseTypes) -> Result<(), ()> {
        let response = GetFlowsResponse {
            response_types: Some(response),
            node_name: self.target.node.clone().unwrap_or_default(),
            time: Some(now()),
        };
        self.sender.send(Ok(response)).await.map_err(drop)
    }
}

/// A stream breaks in many ways with its agent; only what the agent itself refuses is final.
fn interrupted(who: &str, status: &tonic::Status) -> CtlError {
    use tonic::Code;
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied => {
            CtlError::from_status(who, status)
        }
        _ => CtlError::Unreachable(format!("the stream of flows of {who} broke: {}", status.message())),
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn just_after(time: Timestamp) -> Timestamp {
    let nanos = time.nanos + 1;
    match nanos {
        1_000_000_000 => Timestamp { seconds: time.seconds + 1, nanos: 0 },
        nanos => Timestamp { nanos, ..time },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_flow_of_another_node_is_still_put_in_order() {
        let at = |seconds| GetFlowsResponse {
            time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..GetFlowsResponse::default()
        };
        let (mut ripe, mut fresh) = (Vec::new(), vec![at(3)]);
        assert!(due(&mut ripe, &mut fresh).is_empty(), "the first tick only makes it ripe");
        fresh = vec![at(5), at(2)];
        let written: Vec<_> = due(&mut ripe, &mut fresh).iter().map(|flow| time(flow).0).collect();
        assert_eq!(written, [2, 3]);
        assert_eq!(ripe.len(), 1);
    }
}
