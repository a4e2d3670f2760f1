//! `mesh-ctl endpoints`: pods with their addresses, labels and whether policy is enforced.

use std::collections::BTreeMap;

use api::agent::{Endpoint, EndpointsRequest};
use serde_json::{Value, json};

use crate::cli::Scope;
use crate::error::{CtlError, DONE, UNREACHABLE};
use crate::table::Table;
use crate::target;

/// 0, or 3 if an agent did not answer.
pub(super) async fn run(scope: &Scope) -> Result<u8, CtlError> {
    // Each agent lists the whole cluster; on its own pods it knows best.
    let mut endpoints: BTreeMap<(String, String), Endpoint> = BTreeMap::new();
    let answers = super::ask_all(scope, async |target| {
        target::answer(&target, target.control().endpoints(EndpointsRequest {})).await
    });
    let (lists, is_partial) = super::answered(answers.await?)?;
    for list in lists {
        for endpoint in list.endpoints {
            if scope.node.as_ref().is_some_and(|node| *node != endpoint.node) {
                continue;
            }
            let key = (endpoint.namespace.clone(), endpoint.name.clone());
            if endpoint.local || !endpoints.contains_key(&key) {
                endpoints.insert(key, endpoint);
            }
        }
    }
    let endpoints: Vec<_> = endpoints.into_values().collect();
    super::print(scope, || Value::Array(endpoints.iter().map(json).collect()), || table(&endpoints))?;
    Ok(if is_partial { UNREACHABLE } else { DONE })
}

fn json(endpoint: &Endpoint) -> Value {
    // Sorted, so that two answers can be compared.
    let labels: BTreeMap<_, _> = endpoint.labels.iter().collect();
    json!({
        "namespace": endpoint.namespace,
        "name": endpoint.name,
        "node": endpoint.node,
        "addresses": endpoint.addresses,
        "labels": labels,
        "identity": endpoint.identity,
        "policy": {"ingress": endpoint.ingress_enforced, "egress": endpoint.egress_enforced},
    })
}

fn table(endpoints: &[Endpoint]) -> String {
    let mut table =
        Table::new(&["NAMESPACE", "NAME", "NODE", "ADDRESSES", "INGRESS", "EGRESS", "IDENTITY", "LABELS"]);
    let enforced = |is: bool| if is { "enforced" } else { "" }.to_owned();
    for endpoint in endpoints {
        let mut labels: Vec<_> =
            endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort();
        table.row([
            endpoint.namespace.clone(),
            endpoint.name.clone(),
            endpoint.node.clone(),
            endpoint.addresses.join(","),
            enforced(endpoint.ingress_enforced),
            enforced(endpoint.egress_enforced),
            endpoint.identity.to_string(),
            labels.join(","),
        ]);
    }
    table.to_string()
}
