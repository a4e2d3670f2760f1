//! A running example shop, and the small clients that tests send into it.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use conformance::command::{self, Finished};
use conformance::shop;
use lab::{Lab, LabOptions};

/// The namespace of the shop.
pub(crate) const NS: &str = "production";

/// A lab with the shop in it, two nodes, its policy in force; `None` (and a word why) where no lab can run.
pub(crate) fn shop() -> Option<Lab> {
    lab_of(LabOptions { manifests: Some(shop::manifests()), ..LabOptions::default() })
}

/// A lab as asked, under a name of its own.
pub(crate) fn lab_of(options: LabOptions) -> Option<Lab> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !conformance::skip::lab_can_run() {
        return None;
    }
    let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    Some(Lab::up(LabOptions { name, nodes: 2, ..options }).unwrap())
}

/// Runs a Python program in a pod; it gets `arguments` in `sys.argv`.
pub(crate) fn python(lab: &Lab, pod: &str, program: &str, arguments: &[&str]) -> Finished {
    let mut python = lab.pod_command(NS, pod, "python3");
    python.args(["-c", program]).args(arguments);
    command::run(&mut python, Duration::from_secs(60)).unwrap()
}

/// `curl` in a pod: status code, 0 if none came.
pub(crate) fn curl(lab: &Lab, pod: &str, arguments: &[&str]) -> u16 {
    curl_of(lab.pod_command(NS, pod, "curl"), arguments)
}

/// `curl` where `command` runs it.
pub(crate) fn curl_of(mut command: Command, arguments: &[&str]) -> u16 {
    command.args(["-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}"]).args(arguments);
    command::run(&mut command, Duration::from_secs(10)).unwrap().stdout.trim().parse().unwrap()
}

/// The URL of a path on a server pod.
pub(crate) fn url(lab: &Lab, server: &str, path: &str) -> String {
    format!("http://{}:{}{path}", lab.pod_address(NS, server).unwrap(), shop::HTTP_PORT)
}

/// What the server wrote into its access log.
pub(crate) fn access_log(lab: &Lab, server: &str) -> String {
    std::fs::read_to_string(lab.pod_log(NS, server)).unwrap()
}
