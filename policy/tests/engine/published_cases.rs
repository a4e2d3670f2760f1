//! Published NetworkPolicy cases with the reachability that their simulator expects, if they lie beside the project.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use policy::{
    Flow, Identities, Labels, NamedPort, Pod, PolicyKind, PolicyObject, Protocol, Verdict, World, compile,
};
use serde_json::Value;

/// Where the cases are: `SELVAGE_TESTDATA`, or beside the checkout.
fn folder() -> PathBuf {
    std::env::var_os("SELVAGE_TESTDATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata"))
}

fn cases() -> Result<Vec<Value>, String> {
    let file = folder().join("netpol-cases.json.gz");
    let output =
        Command::new("gzip").arg("-dc").arg(&file).output().map_err(|error| format!("gzip: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{}: {error}", file.display()))
}

/// The pods and namespaces of a step; the actions of the steps before change them.
struct Cluster {
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<Pod>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self { namespaces: BTreeMap::new(), pods: Vec::new() };
        for (namespace, i) in ["x", "y", "z"].into_iter().zip([0u8, 3, 6]) {
            cluster.namespaces.insert(namespace.into(), [("ns".to_owned(), namespace.to_owned())].into());
            for (name, j) in ["a", "b", "c"].into_iter().zip(1u8..) {
                let i = i + j;
                let labels = [("pod".to_owned(), name.to_owned())].into();
                cluster.add(namespace, name, labels, [192, 168, 240 + i % 2, 10 + i]);
            }
        }
        cluster
    }

    fn add(&mut self, namespace: &str, name: &str, labels: Labels, address: [u8; 4]) {
        let mut named_ports = Vec::new();
        for port in [80, 81] {
            for protocol in Protocol::WITH_PORTS {
                let name = format!("serve-{port}-{}", protocol.to_string().to_lowercase());
                named_ports.push(NamedPort { name, protocol, port });
            }
        }
        self.pods.push(Pod {
            namespace: namespace.into(),
            name: name.into(),
            labels,
            addresses: vec![address.into()],
            node: "node".into(),
            named_ports,
            ..Pod::default()
        });
    }

    fn apply(&mut self, action: &Value) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let labels = |value: &Value| -> Labels { serde_json::from_value(value.clone()).unwrap() };
        let Some((verb, what)) = action.as_object().unwrap().iter().find(|(_, what)| !what.is_null()) else {
            return;
        };
        let namespace = || text(&what["Namespace"]);
        let named =
            |pod: &Pod| pod.namespace == namespace() && what["Pod"].as_str() == Some(pod.name.as_str());
        match verb.as_str() {
            // The policies in force are given with each step.
            "CreatePolicy" | "UpdatePolicy" | "DeletePolicy" | "ReadNetworkPolicies" => {}
            "CreateNamespace" | "SetNamespaceLabels" => {
                self.namespaces.insert(namespace(), labels(&what["Labels"]));
            }
            "DeleteNamespace" => {
                self.namespaces.remove(&namespace());
                self.pods.retain(|pod| pod.namespace != namespace());
            }
            "CreatePod" => {
                // The simulator gives all of them one address; without ipBlock it does not matter which.
                let last = 99 + u8::try_from(self.pods.len()).unwrap();
                self.add(&namespace(), &text(&what["Pod"]), labels(&what["Labels"]), [192, 168, 242, last]);
            }
            "SetPodLabels" => {
                self.pods
                    .iter_mut()
                    .filter(|pod| named(pod))
                    .for_each(|pod| pod.labels = labels(&what["Labels"]));
            }
            "DeletePod" => self.pods.retain(|pod| !named(pod)),
            other => panic!("unknown action {other}"),
        }
    }

    fn world(&self, policies: &Value) -> World {
        let policies = policies.as_array().into_iter().flatten().map(|manifest| PolicyObject {
            kind: PolicyKind::NetworkPolicy,
            namespace: manifest["metadata"]["namespace"].as_str().unwrap().into(),
            name: manifest["metadata"]["name"].as_str().unwrap().into(),
            manifest: manifest.clone(),
        });
        World {
            this_node: "node".into(),
            pod_networks: vec!["192.168.240.0/20".parse().unwrap()],
            namespaces: self.namespaces.clone(),
            pods: self.pods.clone(),
            nodes: Vec::new(),
            policies: policies.collect(),
        }
    }

    fn address(&self, name: &str) -> std::net::IpAddr {
        let (namespace, name) = name.split_once('/').unwrap();
        let mut pods = self.pods.iter();
        pods.find(|pod| pod.namespace == namespace && pod.name == name).unwrap().addresses[0]
    }
}

/// Rows of a step that come out otherwise than expected, and how many there are.
fn wrong_rows(cluster: &Cluster, step: &Value) -> (Vec<String>, usize) {
    let (snapshot, problems) = compile(&cluster.world(&step["Policies"]), &mut Identities::default(), 1);
    assert!(problems.is_empty(), "{problems:?}");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for row in step["Rows"].as_array().unwrap() {
        let text = |field: &str| row[field].as_str().unwrap();
        // A pod always reaches itself; the simulator says otherwise.
        if text("From") == text("To") {
            continue;
        }
        count += 1;
        let flow = Flow {
            source: cluster.address(text("From")),
            destination: cluster.address(text("To")),
            protocol: Protocol::parse(text("Proto")).unwrap(),
            port: row["Port"].as_u64().unwrap().try_into().unwrap(),
        };
        let decision = snapshot.decide_connection(&flow);
        let word = |verdict| if verdict == Verdict::Allowed { "allowed" } else { "blocked" };
        let got = [
            word(decision.ingress.unwrap().verdict),
            word(decision.egress.unwrap().verdict),
            word(decision.verdict),
        ];
        if got != [text("Ingress"), text("Egress"), text("Both")] {
            wrong.push(format!("{row}: {got:?}"));
        }
    }
    (wrong, count)
}

#[test]
fn published_network_policy_cases() {
    let cases = match cases() {
        Ok(cases) => cases,
        Err(reason) => {
            assert!(
                std::env::var_os("MESH_REQUIRE_ALL").is_none(),
                "published NetworkPolicy cases: {reason}"
            );
            eprintln!("skipped: published NetworkPolicy cases: {reason}");
            return;
        }
    };
    let (mut rows, mut ran, mut with_blocks) = (0, 0, 0);
    for case in &cases {
        if case["Steps"].to_string().contains("\"ipBlock\":{") {
            with_blocks += 1;
            continue;
        }
        let mut cluster = Cluster::new();
        for step in case["Steps"].as_array().unwrap() {
            step["Actions"].as_array().into_iter().flatten().for_each(|action| cluster.apply(action));
            let (wrong, count) = wrong_rows(&cluster, step);
            assert!(wrong.is_empty(), "{}: {wrong:#?}", case["Description"]);
            rows += count;
        }
        ran += 1;
    }
    eprintln!(
        "{ran} of {} published cases with {rows} rows; skipped: {with_blocks} with ipBlock",
        cases.len()
    );
    assert_eq!(ran + with_blocks, cases.len());
    assert!(rows > 0);
}
