//! `mesh-ctl observe`: what was forwarded, refused and proxied, and why; all nodes in one stream, ordered by time.

use std::io::Write as _;

use api::flow::{FlowFilter, Verdict};
use api::observer::{GetFlowsRequest, GetFlowsResponse};

use crate::cli::{Observe, Output, Scope};
use crate::error::{CtlError, DONE, UNREACHABLE};
use crate::target::{self, ANSWER_LIMIT, Target, namespaced};
use crate::{compact, hubble_json, suggest};

/// Flows shown without `--last`.
const LAST_DEFAULT: u32 = 20;

pub(super) async fn run(scope: &Scope, command: Observe) -> Result<u8, CtlError> {
    let request = request(&command)?;
    let is_json = scope.output == Output::Json;
    if command.follow {
        return super::follow::run(target::choose(scope)?, request, is_json).await;
    }
    let answers = super::ask_all(scope, async |target| collect(&target, request.clone()).await);
    let (answers, is_partial) = super::answered(answers.await?)?;
    let mut flows: Vec<_> = answers.into_iter().flatten().collect();
    sort(&mut flows);
    let wanted = usize::try_from(request.number).unwrap_or(usize::MAX);
    write(&flows[flows.len().saturating_sub(wanted)..], is_json)?;
    if flows.is_empty() {
        nothing(scope, &command).await?;
    }
    Ok(if is_partial { UNREACHABLE } else { DONE })
}

/// No flow is an answer, too, unless the pod or the namespace that was asked for does not exist.
async fn nothing(scope: &Scope, command: &Observe) -> Result<(), CtlError> {
    let known = super::pod_names(scope).await;
    let asked = [&command.from_pod, &command.to_pod].into_iter().flatten();
    let mut missing: Vec<String> = asked
        .map(|name| pod(command, name))
        .filter(|(namespace, name)| !known.iter().any(|(own, pod)| own == namespace && pod.starts_with(name)))
        .map(|(namespace, name)| suggest::no_pod(&namespace, &name, &known))
        .collect();
    let namespace = command.namespace.as_ref().filter(|_| missing.is_empty());
    missing.extend(namespace.and_then(|namespace| suggest::empty_namespace(namespace, &known)));
    match missing.as_slice() {
        [] => Ok(()),
        missing => Err(CtlError::NotFound(format!("no event matches; {}", missing.join("\n")))),
    }
}

/// Namespace and name that `--from-pod` or `--to-pod` means.
fn pod(command: &Observe, name: &str) -> (String, String) {
    match (name.contains('/'), &command.namespace) {
        (false, Some(namespace)) => (namespace.clone(), name.to_owned()),
        _ => namespaced(name),
    }
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
    let pod = |name: &String| {
        let (namespace, name) = pod(command, name);
        format!("{namespace}/{name}")
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
    let upper = match name.to_uppercase().as_str() {
        // What `explain` prints.
        "ALLOWED" | "ALLOW" => "FORWARDED".to_owned(),
        "DENIED" | "DENY" | "DROP" => "DROPPED".to_owned(),
        other => other.to_owned(),
    };
    let number = Verdict::from_str_name(&upper).filter(|verdict| *verdict != Verdict::Unknown).map(i32::from);
    number.ok_or_else(|| {
        CtlError::Usage(format!(
            "--verdict {name}: use forwarded (or allowed), dropped (or denied), redirected, error or audit"
        ))
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

pub(super) fn time(response: &GetFlowsResponse) -> (i64, i32) {
    response.time.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

pub(super) fn sort(flows: &mut [GetFlowsResponse]) {
    flows.sort_by_key(time);
}

pub(super) fn write(flows: &[GetFlowsResponse], is_json: bool) -> Result<(), CtlError> {
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
}
