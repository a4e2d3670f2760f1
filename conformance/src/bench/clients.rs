//! The load generators, and what they say of a run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::command;

/// Length of one run, seconds.
pub const RUN_SECONDS: u32 = 3;
/// Requests in flight at once, over connections or over streams.
pub const IN_FLIGHT: u32 = 16;
/// Connections of an HTTP/2 run; each carries its share of the streams.
pub const HTTP2_CONNECTIONS: u32 = 4;
/// Limit on one run of a client: some start-up and some waiting for the last answer.
const LIMIT: Duration = Duration::from_secs(RUN_SECONDS as u64 + 10);

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Requests answered with success.
    pub requests: u64,
    /// The same by the second.
    pub per_second: f64,
    /// Half of the requests took less, microseconds.
    pub median_us: f64,
}

/// Runs `wrk` with kept-alive HTTP/1.1 connections, where `wrk` puts it.
///
/// # Errors
/// If it fails, or any request did.
pub fn wrk(mut wrk: Command, url: &str) -> Result<Run> {
    wrk.args(["-t1", &format!("-c{IN_FLIGHT}"), &format!("-d{RUN_SECONDS}s"), "--latency", url]);
    let finished = command::run(&mut wrk, LIMIT)?;
    ensure!(finished.status.success(), "wrk: {} {}", finished.stdout, finished.stderr);
    parse_wrk(&finished.stdout).with_context(|| format!("wrk printed {}", finished.stdout))
}

fn parse_wrk(text: &str) -> Result<Run> {
    for complaint in ["Socket errors", "Non-2xx"] {
        ensure!(!text.contains(complaint), "some requests failed");
    }
    let lines = || text.lines().map(str::trim);
    let requests = lines().find_map(|line| line.split_once(" requests in ")?.0.parse().ok());
    let per_second = lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let median = lines().find_map(|line| microseconds(line.strip_prefix("50%")?.trim()));
    Ok(Run {
        requests: requests.filter(|requests| *requests > 0).context("no requests")?,
        per_second: per_second.context("no rate")?,
        median_us: median.context("no median")?,
    })
}

/// A duration as `wrk` prints it: `182.65us`, `1.41ms`, `2.00s`.
fn microseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Some(number.parse::<f64>().ok()? * factor);
        }
    }
    None
}

/// Runs `h2load` over HTTP/2 with prior knowledge; `folder` is for its log of requests.
///
/// # Errors
/// If it fails, or any request did.
pub fn h2load(mut h2load: Command, url: &str, folder: &Path) -> Result<Run> {
    let log = folder.join("h2load.log");
    // It appends.
    let _ = std::fs::remove_file(&log);
    let streams = IN_FLIGHT / HTTP2_CONNECTIONS;
    h2load.args([
        "-t1",
        &format!("-c{HTTP2_CONNECTIONS}"),
        &format!("-m{streams}"),
        &format!("-D{RUN_SECONDS}"),
    ]);
    h2load.arg(format!("--log-file={}", log.display())).arg(url);
    let finished = command::run(&mut h2load, LIMIT)?;
    ensure!(finished.status.success(), "h2load: {} {}", finished.stdout, finished.stderr);
    let log = std::fs::read_to_string(&log).context("h2load wrote no log")?;
    parse_h2load(&finished.stdout, &log).with_context(|| format!("h2load printed {}", finished.stdout))
}

fn parse_h2load(text: &str, log: &str) -> Result<Run> {
    let count = |name: &str| -> Option<u64> {
        let counts = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
        counts.split(", ").find_map(|count| count.strip_suffix(name)?.trim().parse().ok())
    };
    let (done, succeeded) = (count(" done").context("no count")?, count(" succeeded").context("no count")?);
    // It counts any answer as a success; the log has the status.
    let mut latencies = Vec::new();
    for line in log.lines() {
        let mut fields = line.split_ascii_whitespace().skip(1);
        ensure!(fields.next() == Some("200"), "some requests failed: {line}");
        latencies.push(fields.next().context("no latency")?.parse::<u64>()?);
    }
    ensure!(done > 0 && done == succeeded && !latencies.is_empty(), "some requests failed");
    latencies.sort_unstable();
    let median = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
    Ok(Run { requests: done, per_second: done as f64 / f64::from(RUN_SECONDS), median_us: median as f64 })
}

/// Runs `iperf3` against the server at `address`: Gbit/s that arrived.
///
/// # Errors
/// If it fails.
pub fn iperf3(mut iperf3: Command, address: &str) -> Result<f64> {
    iperf3.args(["-c", address, "-t", &RUN_SECONDS.to_string(), "-J", "--connect-timeout", "2000"]);
    let finished = command::run(&mut iperf3, LIMIT)?;
    let report: serde_json::Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("iperf3: {} {}", finished.stdout, finished.stderr))?;
    let received = &report["end"]["sum_received"]["bits_per_second"];
    let bits = received.as_f64().filter(|bits| *bits > 0.0);
    Ok(bits.with_context(|| format!("iperf3: {}", report["error"]))? / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 1s test @ http://127.0.0.1:18081/file
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   182.65us   44.85us   1.41ms   92.58%
    Req/Sec    87.51k     5.26k   91.80k    90.00%
  Latency Distribution
     50%  179.00us
     75%  189.00us
  86901 requests in 1.00s, 104.75MB read
Requests/sec:  86871.03
Transfer/sec:    104.72MB
";

    #[test]
    fn wrk_is_understood() {
        let run = parse_wrk(WRK).unwrap();
        assert_eq!(run, Run { requests: 86_901, per_second: 86_871.03, median_us: 179.0 });
        assert_eq!(microseconds("1.41ms"), Some(1_410.0));
        assert_eq!(microseconds("2.00s"), Some(2_000_000.0));
    }

    #[test]
    fn refused_requests_are_no_figure() {
        let refused = format!("{WRK}  Non-2xx or 3xx responses: 93321\n");
        assert!(parse_wrk(&refused).is_err());
        let broken = format!("{WRK}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(parse_wrk(&broken).is_err());
    }

    const H2LOAD: &str = "finished in 3.00s, 2.00 req/s, 51.53MB/s
requests: 6 total, 7 started, 6 done, 6 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 6 2xx, 0 3xx, 0 4xx, 0 5xx
";

    #[test]
    fn h2load_is_understood() {
        let run = parse_h2load(H2LOAD, "1\t200\t30\n2\t200\t10\n3\t200\t20\n").unwrap();
        assert_eq!(run, Run { requests: 6, per_second: 2.0, median_us: 20.0 });
        assert!(parse_h2load(H2LOAD, "1\t200\t30\n2\t403\t10\n").is_err());
    }
}
