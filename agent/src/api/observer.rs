//! `Observer`: flows, as Hubble serves them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use api::flow::{Flow, LostEvent};
use api::observer::get_flows_response::ResponseTypes;
use api::observer::{GetFlowsRequest, GetFlowsResponse};
use futures::{Stream, StreamExt, stream};
use prost_types::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::Shared;
use crate::flows::Filters;

pub(super) struct Service(pub(super) Arc<Shared>);

type Responses = Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl api::observer::observer_server::Observer for Service {
    type GetFlowsStream = Responses;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Responses>, Status> {
        let request = request.into_inner();
        let filters = Filters::new(&request.whitelist, &request.blacklist);
        let filters = filters.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (kept, live) = self.0.flows.follow();
        let node = self.0.config.node_name.clone();
        let past = select(kept, &request, &filters).into_iter();
        let past = stream::iter(past.map({
            let node = node.clone();
            move |flow| Ok(response(&node, &flow))
        }));
        if !request.follow {
            return Ok(Response::new(Box::pin(past)));
        }
        let until = request.until;
        let following = stream::unfold((live, node, filters), move |(mut live, node, filters)| async move {
            let answer = loop {
                match live.recv().await {
                    Ok(flow) if is_after(&flow, until.as_ref()) => return None,
                    Ok(flow) if filters.accept(&flow) => break response(&node, &flow),
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => break lost(&node, count),
                    Err(RecvError::Closed) => return None,
                }
            };
            Some((Ok(answer), (live, node, filters)))
        });
        Ok(Response::new(Box::pin(past.chain(following))))
    }
}

/// The part of what is kept that was asked for, oldest first. Without a number: everything, or nothing for a follower,
/// unless it named a time.
fn select(kept: Vec<Arc<Flow>>, request: &GetFlowsRequest, filters: &Filters) -> VecDeque<Arc<Flow>> {
    let limit = match (request.number, request.follow, request.since.is_some()) {
        (0, true, false) => 0,
        (0, ..) => usize::MAX,
        (number, ..) => usize::try_from(number).unwrap_or(usize::MAX),
    };
    let mut selected = VecDeque::new();
    for flow in kept {
        let in_time = !is_before(&flow, request.since.as_ref()) && !is_after(&flow, request.until.as_ref());
        if limit == 0 || !in_time || !filters.accept(&flow) {
            continue;
        }
        if selected.len() >= limit {
            if request.first {
                break;
            }
            selected.pop_front();
        }
        selected.push_back(flow);
    }
    selected
}

fn is_before(flow: &Flow, time: Option<&Timestamp>) -> bool {
    let key = |time: &Timestamp| (time.seconds, time.nanos);
    matches!((&flow.time, time), (Some(own), Some(time)) if key(own) < key(time))
}

fn is_after(flow: &Flow, time: Option<&Timestamp>) -> bool {
    let key = |time: &Timestamp| (time.seconds, time.nanos);
    matches!((&flow.time, time), (Some(own), Some(time)) if key(own) > key(time))
}

fn response(node: &str, flow: &Flow) -> GetFlowsResponse {
    GetFlowsResponse {
        node_name: node.to_owned(),
        time: flow.time,
        response_types: Some(ResponseTypes::Flow(flow.clone())),
    }
}

fn lost(node: &str, count: u64) -> GetFlowsResponse {
    let lost = LostEvent { num_events_lost: count, ..LostEvent::default() };
    GetFlowsResponse {
        node_name: node.to_owned(),
        time: None,
        response_types: Some(ResponseTypes::LostEvents(lost)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(change: impl Fn(&mut GetFlowsRequest)) -> Vec<i64> {
        let flow =
            |seconds| Arc::new(Flow { time: Some(Timestamp { seconds, nanos: 0 }), ..Flow::default() });
        let mut request = GetFlowsRequest::default();
        change(&mut request);
        let selected = select((1..=5).map(flow).collect(), &request, &Filters::default());
        selected.iter().map(|flow| flow.time.unwrap().seconds).collect()
    }

    #[test]
    fn numbers_and_times_select() {
        assert_eq!(selected(|_| {}), [1, 2, 3, 4, 5]);
        assert_eq!(selected(|request| request.number = 2), [4, 5]);
        assert_eq!(selected(|request| (request.number, request.first) = (2, true)), [1, 2]);
        assert_eq!(selected(|request| request.follow = true), [0; 0]);
        assert_eq!(selected(|request| (request.follow, request.number) = (true, 1)), [5]);
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        assert_eq!(selected(|request| (request.since, request.until) = (at(2), at(4))), [2, 3, 4]);
    }
}
