//! What a request costs: through the proxy with three path rules in force, through a bare relay in its place, and without
//! any L7 policy, in turn.

use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;

use super::clients::{self, Run};
use super::figures::{Figures, Table};
use super::place::Relay;
use super::{NODE, NS, PROXY, ROUNDS, usage};
use crate::command::{self, Background, eventually};

/// Length of each answer's body.
const ANSWER_BYTES: usize = 1024;
/// What is asked for: the last of the three rules allows it.
const ALLOWED: &str = "/static/answer";
/// What no rule allows, and the server does not have.
const FORBIDDEN: &str = "/other";
/// How long the server may take to listen, and a policy to be in force.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Limit on one `curl`.
const CURL_LIMIT: Duration = Duration::from_secs(5);

/// Version of HTTP, and the ports that the server and the bench's policy have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Kept-alive connections.
    Http1,
    /// With prior knowledge.
    Http2,
}

impl Version {
    /// The port with L7 rules.
    const fn judged_port(self) -> u16 {
        match self {
            Self::Http1 => 8081,
            Self::Http2 => 8083,
        }
    }

    /// The port without.
    const fn direct_port(self) -> u16 {
        self.judged_port() + 1
    }

    fn title(self) -> String {
        let (name, client, connections) = match self {
            Self::Http1 => ("HTTP/1.1 keep-alive GET", "wrk", clients::IN_FLIGHT),
            Self::Http2 => ("HTTP/2 GET, prior knowledge", "h2load", clients::HTTP2_CONNECTIONS),
        };
        let (in_flight, seconds) = (clients::IN_FLIGHT, clients::RUN_SECONDS);
        format!(
            "{name}, {ANSWER_BYTES} byte answer, same node: {client}, {connections} connections, {in_flight} requests \
             in flight, {ROUNDS} rounds of {seconds} s"
        )
    }
}

/// One way from the client to the server.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    /// What a forbidden request gets on it: shows that it is this way.
    forbidden_status: u16,
}

const PROXIED: Way = Way { name: "mesh-proxy, three path rules", forbidden_status: 403 };
const RELAYED: Way = Way { name: "bare TCP relay in its place", forbidden_status: 404 };
const DIRECT: Way = Way { name: "no L7 policy", forbidden_status: 404 };

/// A run, and what the program in the middle took for each request.
#[derive(Clone, Copy, Debug)]
struct Sample {
    run: Run,
    cpu_us: Option<f64>,
}

/// Measures one version.
///
/// # Errors
/// If anything cannot be set up or measured, or a request did not go the way it should.
pub fn measure(lab: &Lab, version: Version) -> Result<Table> {
    let folder = super::scratch(lab, "http")?;
    let _nginx = start_server(lab, &folder)?;
    let client = Client { lab, server: lab.pod_address(NS, "server")?, version, folder: &folder };
    let (mut proxied, mut relayed, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let worker = lab.worker_pid(NODE, PROXY)?;
        proxied.push(client.sample(PROXIED, version.judged_port(), Some(worker))?);
        ensure!(lab.worker_pid(NODE, PROXY)? == worker, "the proxy's worker died under the load");
        direct.push(client.sample(DIRECT, version.direct_port(), None)?);
        let relay = Relay::start(lab)?;
        relayed.push(client.sample(RELAYED, version.judged_port(), Some(relay.pid()))?);
        relay.stop()?;
    }
    table(version, &[(PROXIED, proxied), (RELAYED, relayed), (DIRECT, direct)])
}

fn table(version: Version, ways: &[(Way, Vec<Sample>)]) -> Result<Table> {
    let mut table = Table::new(
        version.title(),
        &["", "requests/s", "median latency, us", "CPU/request, us", "CPU ratio"],
    );
    let cpu_of = |samples: &[Sample]| Figures::new(samples.iter().filter_map(|sample| sample.cpu_us));
    let relay =
        ways.iter().find(|(way, _)| way.name == RELAYED.name).and_then(|(_, samples)| cpu_of(samples));
    for (way, samples) in ways {
        let per_second =
            Figures::new(samples.iter().map(|sample| sample.run.per_second)).context("no runs")?;
        let median = Figures::new(samples.iter().map(|sample| sample.run.median_us)).context("no runs")?;
        let cpu = cpu_of(samples);
        let ratio = cpu.as_ref().zip(relay.as_ref()).map(|(cpu, relay)| cpu.times(relay));
        let cpu = cpu.map_or_else(|| "-".to_owned(), |cpu| cpu.spread(1));
        table.row([
            way.name.to_owned(),
            per_second.spread(0),
            median.spread(0),
            cpu,
            ratio.unwrap_or_default(),
        ]);
    }
    Ok(table)
}

/// The client pod, and whom it asks.
struct Client<'a> {
    lab: &'a Lab,
    server: IpAddr,
    version: Version,
    folder: &'a Path,
}

impl Client<'_> {
    /// One run over `way`; `middle` is the process whose CPU time counts.
    fn sample(&self, way: Way, port: u16, middle: Option<u32>) -> Result<Sample> {
        let goes_this_way = || {
            let (allowed, forbidden) = (self.status(port, ALLOWED)?, self.status(port, FORBIDDEN)?);
            let expected = (200, way.forbidden_status);
            ensure!(
                (allowed, forbidden) == expected,
                "{}: status {allowed} and {forbidden}, not {expected:?}",
                way.name
            );
            Ok(())
        };
        eventually(START_LIMIT, goes_this_way)?;
        let before = middle.map(usage::cpu_time).transpose()?;
        let run = self.load(&self.url(port, ALLOWED)).context(way.name)?;
        let after = middle.map(usage::cpu_time).transpose()?;
        let used = after.zip(before).map(|(after, before)| after.saturating_sub(before));
        // A middle that does nothing is not in the middle.
        ensure!(used.is_none_or(|used| !used.is_zero()), "{} used no CPU time", way.name);
        Ok(Sample { run, cpu_us: used.map(|used| used.as_secs_f64() * 1e6 / run.requests as f64) })
    }

    fn load(&self, url: &str) -> Result<Run> {
        let place = |program: &str| self.lab.pod_command(NS, "client", program);
        match self.version {
            Version::Http1 => clients::wrk(place("wrk"), url),
            Version::Http2 => clients::h2load(place("h2load"), url, self.folder),
        }
    }

    fn url(&self, port: u16, path: &str) -> String {
        format!("http://{}:{port}{path}", self.server)
    }

    fn status(&self, port: u16, path: &str) -> Result<u16> {
        let mut curl = self.lab.pod_command(NS, "client", "curl");
        curl.args(["-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}"]);
        if self.version == Version::Http2 {
            curl.arg("--http2-prior-knowledge");
        }
        let finished = command::run(curl.arg(self.url(port, path)), CURL_LIMIT)?;
        finished.stdout.trim().parse().with_context(|| format!("curl printed {:?}", finished.stdout))
    }
}

/// nginx in the server's pod, in one process.
fn start_server(lab: &Lab, folder: &Path) -> Result<Background> {
    let answer = folder.join(ALLOWED.trim_start_matches('/'));
    std::fs::create_dir_all(answer.parent().context("the answer has no folder")?)?;
    std::fs::write(&answer, vec![b'x'; ANSWER_BYTES])?;
    let config = folder.join("nginx.conf");
    std::fs::write(&config, server_config(folder))?;
    let mut nginx = lab.pod_command(NS, "server", "nginx");
    nginx.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Background(nginx.spawn().context("start nginx")?))
}

fn server_config(folder: &Path) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {folder}/{name};\n"))
        .concat();
    let listen: String = [Version::Http1, Version::Http2]
        .iter()
        .flat_map(|version| [version.judged_port(), version.direct_port()].map(|port| (port, *version)))
        .map(|(port, version)| {
            format!("    listen {port}{};\n", if version == Version::Http2 { " http2" } else { "" })
        })
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n{temporary}  server {{\n{listen}    root {folder};\n  }}\n}}\n"
    )
}
