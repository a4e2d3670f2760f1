//! `mesh-ctl observe`: what was forwarded, refused and proxied, and why; all nodes in one stream, ordered by time.

use std::io::Write as _;
use std::time::Duration;

use api::flow::{FlowFilter, Verdict};
use api::observer::{GetFlowsRequest, GetFlowsResponse};
use tokio::sync::mpsc;

use crate::cli::{Observe, Output, Scope};
use crate::error::{CtlError, DONE};
use crate::target::{self, ANSWER_LIMIT, Target, namespaced};
use crate::{compact, hubble_json};

/// Flows shown without `--last`.
const LAST_DEFAULT: u32 = 20;
/// While following, flows wait this long for older ones of other nodes.
const REORDER: Duration = Duration::from_millis(100);
/// Flows that wait to be written; an agent whose flows find no room waits.
const QUEUE: usize = 1024;

pub(super) async fn run(scope: &Scope, command: Observe) -> Result<u8, CtlError> {
    let request = request(&command)?;
    let targets = target::choose(scope)?;
    let is_json = scope.output == Output::Json;
    if command.follow {
        return follow(targets, request, is_json).await;
    }
    let (mut flows, mut answered, mut last) = (Vec::new(), false, None);
    for target in targets {
        match collect(&target, request.clone()).await {
            Ok(found) => {
                flows.extend(found);
                answered = true;
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) if !answered => return Err(error),
        Some(error) => eprintln!("mesh-ctl: {error}"),
        None => {}
    }
    sort(&mut flows);
    let wanted = usize::try_from(request.number).unwrap_or(usize::MAX);
    write(&flows[flows.len().saturating_sub(wanted)..], is_json)?;
    Ok(DONE)
}

fn request(command: &Observe) -> Result<GetFlowsRequest, CtlError> {
    let last = command.last.unwrap_or(if command.follow { 0 } else { LAST_DEFAULT });
    Ok(GetFlowsRequest {
        number: last.into(),
        follow: command.follow,
        whitelist: filters(command)?,
        ..GetFlowsRequest::default()
    })
}

/// Any of them must match, with all of its fields; none: everything matches.
fn filters(command: &Observe) -> Result<Vec<FlowFilter>, CtlError> {
    let verdict = command.verdict.iter().map(|name| verdict(name)).collect::<Result<Vec<_>, _>>()?;
    let pod = |name: &String| match (name.contains('/'), &command.namespace) {
        (false, Some(namespace)) => format!("{namespace}/{name}"),
        _ => {
            let (namespace, name) = namespaced(name);
            format!("{namespace}/{name}")
        }
    };
    let (from, to) = (command.from_pod.as_ref().map(pod), command.to_pod.as_ref().map(pod));
    let filter = |source_pod: Option<String>, destination_pod: Option<String>| FlowFilter {
        source_pod: source_pod.into_iter().collect(),
        destination_pod: destination_pod.into_iter().collect(),
        verdict: verdict.clone(),
        ..FlowFilter::default()
    };
    let Some(namespace) = &command.namespace else {
        let is_all = from.is_none() && to.is_none() && verdict.is_empty();
        return Ok(if is_all { Vec::new() } else { vec![filter(from, to)] });
    };
    let prefix = format!("{namespace}/");
    let fits = |pod: &Option<String>| pod.as_ref().is_none_or(|pod| pod.starts_with(&prefix));
    let narrowed = |pod: &Option<String>| Some(pod.clone().unwrap_or_else(|| prefix.clone()));
    let mut filters = Vec::new();
    if fits(&from) {
        filters.push(filter(narrowed(&from), to.clone()));
    }
    if fits(&to) {
        filters.push(filter(from.clone(), narrowed(&to)));
    }
    if filters.is_empty() {
        return Err(CtlError::Usage(format!("neither pod is in --namespace {namespace}: no flow can match")));
    }
    Ok(filters)
}

fn verdict(name: &str) -> Result<i32, CtlError> {
    let upper = name.to_uppercase();
    let number = Verdict::from_str_name(&upper).filter(|verdict| *verdict != Verdict::Unknown).map(i32::from);
    number.ok_or_else(|| {
        CtlError::Usage(format!("--verdict {name}: use forwarded, dropped, redirected, error or audit"))
    })
}

async fn collect(target: &Target, request: GetFlowsRequest) -> Result<Vec<GetFlowsResponse>, CtlError> {
    let mut stream = target::answer(target, target.observer().get_flows(request)).await?;
    let mut flows = Vec::new();
    let all = async {
        while let Some(flow) = stream.message().await? {
            flows.push(flow);
        }
        Ok(())
    };
    match tokio::time::timeout(ANSWER_LIMIT, all).await {
        Ok(Ok(())) => Ok(flows),
        Ok(Err(status)) => Err(CtlError::from_status(&target.name(), &status)),
        Err(_) => {
            Err(CtlError::Unreachable(format!("{} did not answer within {ANSWER_LIMIT:?}", target.name())))
        }
    }
}

/// Until it is interrupted, or no agent is left.
async fn follow(targets: Vec<Target>, request: GetFlowsRequest, is_json: bool) -> Result<u8, CtlError> {
    let (sender, mut flows) = mpsc::channel(QUEUE);
    for target in targets {
        let (sender, request) = (sender.clone(), request.clone());
        tokio::spawn(async move {
            let end = forward(&target, request, &sender).await;
            // Whoever no longer listens need not be told.
            let _ = sender.send(Err(end)).await;
        });
    }
    drop(sender);
    let mut last = None;
    // `ripe` have waited for a whole interval, `fresh` came since.
    let (mut ripe, mut fresh) = (Vec::new(), Vec::new());
    let mut tick = tokio::time::interval(REORDER);
    loop {
        tokio::select! {
            flow = flows.recv() => match flow {
                Some(Ok(flow)) => fresh.push(flow),
                Some(Err(error)) => {
                    eprintln!("mesh-ctl: {error}");
                    last = Some(error);
                }
                None => break,
            },
            _ = tick.tick() => {
                write(&due(&mut ripe, &mut fresh), is_json)?;
            }
        }
    }
    ripe.append(&mut fresh);
    sort(&mut ripe);
    write(&ripe, is_json)?;
    last.map_or(Ok(DONE), Err)
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

/// Passes flows on until the agent ends the stream; says why.
async fn forward(
    target: &Target,
    request: GetFlowsRequest,
    sender: &mpsc::Sender<Result<GetFlowsResponse, CtlError>>,
) -> CtlError {
    let who = target.name();
    let mut stream = match target::answer(target, target.observer().get_flows(request)).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    loop {
        match stream.message().await {
            Ok(Some(flow)) => {
                if sender.send(Ok(flow)).await.is_err() {
                    return CtlError::Unreachable(String::new());
                }
            }
            Ok(None) => return CtlError::Unreachable(format!("{who} ended the stream of flows")),
            Err(status) => return CtlError::from_status(&who, &status),
        }
    }
}

fn time(response: &GetFlowsResponse) -> (i64, i32) {
    response.time.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

fn sort(flows: &mut [GetFlowsResponse]) {
    flows.sort_by_key(time);
}

fn write(flows: &[GetFlowsResponse], is_json: bool) -> Result<(), CtlError> {
    let mut out = std::io::stdout().lock();
    for flow in flows {
        match is_json {
            true => writeln!(out, "{}", hubble_json::response(flow))?,
            false => writeln!(out, "{}", compact::line(flow))?,
        }
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Observe {
        Observe {
            namespace: None,
            verdict: Vec::new(),
            from_pod: None,
            to_pod: None,
            follow: false,
            last: None,
        }
    }

    fn pods(command: &Observe) -> Vec<(String, String)> {
        let filters = filters(command).unwrap();
        filters.iter().map(|filter| (filter.source_pod.join(","), filter.destination_pod.join(","))).collect()
    }

    #[test]
    fn a_namespace_is_on_either_side_and_a_pod_on_its_own() {
        assert!(pods(&command()).is_empty());
        let mut asked = Observe { namespace: Some("a".into()), ..command() };
        assert_eq!(pods(&asked), [("a/".into(), String::new()), (String::new(), "a/".into())]);
        asked.from_pod = Some("b/x".into());
        assert_eq!(pods(&asked), [("b/x".into(), "a/".into())]);
        asked.to_pod = Some("c/y".into());
        assert!(filters(&asked).is_err());
        asked.from_pod = Some("x".into());
        assert_eq!(pods(&asked), [("a/x".into(), "c/y".into())]);
    }

    #[test]
    fn verdicts_are_read_in_any_case_and_nonsense_is_bad_usage() {
        let mut asked = Observe { verdict: vec!["dropped".into(), "FORWARDED".into()], ..command() };
        assert_eq!(filters(&asked).unwrap()[0].verdict, [2, 1]);
        asked.verdict = vec!["maybe".into()];
        assert_eq!(filters(&asked).unwrap_err().exit_code(), crate::error::USAGE);
    }

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
