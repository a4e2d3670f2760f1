//! `make bench`: raw figures and ratios of one run, each beside what it is to be compared with, in turn on the same machine.
//! Nothing is judged here: a figure is no test.

pub mod clients;
pub mod cni;
pub mod figures;
pub mod http;
pub mod memory;
pub mod namespace;
pub mod place;
pub mod relay;
pub mod throughput;
pub mod usage;
mod wireguard_go;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::{Lab, LabOptions};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::shop;

/// The bench's own namespace, its pods and its policy.
const MANIFEST: &str = include_str!("manifest.yaml");
/// The namespace of [`MANIFEST`].
const NS: &str = "bench";
/// The node whose programs are measured.
const NODE: &str = "node-1";
/// The program that judges requests.
const PROXY: &str = "mesh-proxy";
/// How often each thing is measured; what it is compared with is measured in between.
const ROUNDS: u32 = 3;
/// How long the bench's own pods may take.
const PODS_LIMIT: Duration = Duration::from_secs(30);

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Resident memory of each program, and of an idle proxied connection.
    Memory,
    /// CPU for each HTTP/1.1 request, next to a bare TCP relay.
    Http1,
    /// The same for HTTP/2.
    Http2,
    /// ADD and DEL, next to ptp with host-local.
    Cni,
    /// TCP throughput on one node, next to plain veth routing.
    OneNode,
    /// TCP throughput across nodes, next to wireguard-go.
    AcrossNodes,
}

impl Part {
    /// In the order of running: memory before any load, which programs do not give back at once.
    pub const ALL: [Self; 6] =
        [Self::Memory, Self::Http1, Self::Http2, Self::Cni, Self::OneNode, Self::AcrossNodes];

    fn measure(self, lab: &Lab) -> Result<String> {
        Ok(match self {
            Self::Memory => format!("{}\n{}", memory::idle(lab)?, memory::per_connection(lab)?),
            Self::Http1 => http::measure(lab, http::Version::Http1)?.to_string(),
            Self::Http2 => http::measure(lab, http::Version::Http2)?.to_string(),
            Self::Cni => cni::measure(lab)?.to_string(),
            Self::OneNode => throughput::one_node(lab)?.to_string(),
            Self::AcrossNodes => throughput::across_nodes(lab)?.to_string(),
        })
    }
}

/// Measures `parts` in a lab with the example shop and prints a table for each. One that fails does not keep the others
/// from being measured.
///
/// # Errors
/// If the lab does not start, or any part failed.
pub fn run(parts: &[Part]) -> Result<()> {
    let started = Instant::now();
    println!("{}\n", machine());
    raise_descriptor_limit()?;
    let name = format!("bench-{}", std::process::id());
    let options = LabOptions { name, nodes: 2, manifests: Some(shop::manifests()), ..LabOptions::default() };
    let lab = Lab::up(options).context("the lab did not start")?;
    let measured = measure(&lab, parts);
    lab.down().context("the lab did not go down cleanly")?;
    measured?;
    println!("Took {:.0} s; nothing is left behind.", started.elapsed().as_secs_f32());
    Ok(())
}

fn measure(lab: &Lab, parts: &[Part]) -> Result<()> {
    let (mut failed, mut prepared) = (Vec::new(), false);
    for part in parts {
        // Memory is that of the shop alone.
        if *part != Part::Memory && !prepared {
            lab.apply_yaml(MANIFEST)?;
            lab.wait_for_pods(PODS_LIMIT)?;
            prepared = true;
        }
        match part.measure(lab) {
            Ok(table) => println!("{table}"),
            Err(error) => {
                println!("{part:?} could not be measured: {error:#}\n");
                failed.push(format!("{part:?}"));
            }
        }
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// A new folder for a part's own files. It goes with the lab, which goes also if this process is killed.
fn scratch(lab: &Lab, part: &str) -> Result<PathBuf> {
    let folder = lab.folder().path().join("bench").join(part);
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Thousands of connections take more descriptors than a shell usually grants.
fn raise_descriptor_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// What the figures were measured on: they mean nothing without.
fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        Some(line.strip_prefix("model name")?.trim_start_matches([' ', '\t', ':']).to_owned())
    });
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) { "; DEBUG BUILD: not figures to compare" } else { "" };
    let model = model.unwrap_or_else(|| "unknown processor".to_owned());
    format!("Linux {}, {processors} x {model}{build}", kernel.trim())
}
