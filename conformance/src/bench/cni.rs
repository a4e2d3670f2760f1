//! ADD and DEL as a container runtime sees them: the whole process, from its start to its end. Ours against a node's agent,
//! with policy attached before ADD returns; beside it Debian's `ptp` with `host-local`, in a namespace that routes too.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use host::netns::NetNs;
use lab::Lab;
use serde_json::{Value, json};

use super::figures::{Figures, Table};
use super::namespace::Namespace;
use super::{NODE, NS};
use crate::shop;

/// How often each verb of each plugin is run.
const TIMES: u32 = 30;
/// Where Debian's `containernetworking-plugins` are.
const REFERENCE: &str = "/usr/lib/cni";
/// The pod that the attachments are for.
const POD: &str = "attached";
/// The version that both speak.
const CNI_VERSION: &str = "1.0.0";

/// A plugin with its configuration, in the namespace of a node.
struct Plugin {
    program: PathBuf,
    folder: PathBuf,
    config: Value,
    node: NetNs,
}

/// Wall times of one plugin, milliseconds.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    delete: Vec<f64>,
}

/// Measures both plugins in turn.
///
/// # Errors
/// If one fails.
pub fn measure(lab: &Lab) -> Result<Table> {
    let plugins = [ours(lab)?, reference(&super::scratch(lab, "cni")?)?];
    let mut times = [Times::default(), Times::default()];
    for round in 0..TIMES {
        // Who is first changes, so that a warm cache favours neither.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            let (add, delete) = plugins[which].add_and_delete(round)?;
            times[which].add.push(add);
            times[which].delete.push(delete);
        }
    }
    let [ours, reference] = times;
    let title = format!("CNI, whole process, {TIMES} times each, ms: median (min - max)");
    let mut table = Table::new(title, &["", "ADD", "DEL", "ADD ratio", "DEL ratio"]);
    let figures = |measured: Vec<f64>| Figures::new(measured).context("no runs");
    let (add, delete) = (figures(ours.add)?, figures(ours.delete)?);
    let (reference_add, reference_delete) = (figures(reference.add)?, figures(reference.delete)?);
    let ratios = [add.times(&reference_add), delete.times(&reference_delete)];
    table.row(
        ["mesh-cni, policy attached".to_owned(), add.spread(1), delete.spread(1)].into_iter().chain(ratios),
    );
    table.row([
        "ptp + host-local".to_owned(),
        reference_add.spread(1),
        reference_delete.spread(1),
        "1".into(),
        "1".into(),
    ]);
    Ok(table)
}

fn ours(lab: &Lab) -> Result<Plugin> {
    let program = shop::sibling("mesh-cni")?;
    Ok(Plugin {
        folder: program.parent().context("mesh-cni has no folder")?.to_owned(),
        program,
        config: json!({
            "cniVersion": CNI_VERSION, "name": "bench", "type": "mesh-cni",
            "agentSocket": lab.agent_socket(NODE), "stateDir": lab.state_dir(NODE),
        }),
        node: NetNs::open(&lab.folder().node_namespace(NODE))?,
    })
}

fn reference(data: &Path) -> Result<Plugin> {
    let program = Path::new(REFERENCE).join("ptp");
    ensure!(program.exists(), "{} is missing: install containernetworking-plugins", program.display());
    let node = Namespace::new()?;
    host::sysctl::write_in(node.netns(), "net.ipv4.ip_forward", "1")?;
    Ok(Plugin {
        program,
        folder: PathBuf::from(REFERENCE),
        config: json!({
            "cniVersion": CNI_VERSION, "name": "bench", "type": "ptp",
            "ipam": {"type": "host-local", "subnet": "10.76.0.0/16", "dataDir": data},
        }),
        node: node.into_netns(),
    })
}

impl Plugin {
    /// Milliseconds that ADD and DEL took for a new pod.
    fn add_and_delete(&self, round: u32) -> Result<(f64, f64)> {
        let pod = Namespace::new()?;
        let container = format!("bench{}-{round}", std::process::id());
        let added = self.run("ADD", &container, &pod.path());
        // Also what a failed ADD may have left.
        let deleted = self.run("DEL", &container, &pod.path());
        Ok((added?, deleted?))
    }

    fn run(&self, verb: &str, container: &str, pod: &Path) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", pod)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={NS};K8S_POD_NAME={POD}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let config = self.config.to_string();
        let (took, output) = self.node.run(|| -> Result<_> {
            let started = Instant::now();
            let mut child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
            child.stdin.take().context("no stdin")?.write_all(config.as_bytes())?;
            let output = child.wait_with_output()?;
            Ok((started.elapsed(), output))
        })??;
        let said = || {
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
        };
        ensure!(output.status.success(), "{} {verb}: {}", self.program.display(), said());
        Ok(milliseconds(took))
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_plugin_runs_and_forgets() {
        if !crate::skip::lab_can_run() {
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let plugin = reference(data.path()).unwrap();
        let (add, delete) = plugin.add_and_delete(0).unwrap();
        assert!(add > 0.0 && delete > 0.0);
        let leases = std::fs::read_dir(data.path().join("bench")).unwrap();
        let leases: Vec<_> = leases.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!leases.iter().any(|name| name.starts_with("10.76.")), "still leased: {leases:?}");
    }
}
