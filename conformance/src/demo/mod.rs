//! What `make demo` shows, part by part. Each part prints what it saw and says whether that is what it must be.

mod cases;
mod encryption;
mod independence;
mod table;

use std::time::Instant;

use anyhow::{Context as _, Result};
use lab::{Lab, LabOptions};

pub use cases::{Case, NAMESPACE, SERVERS, cases};

use crate::shop;

/// Name of the demo's lab.
const LAB: &str = "demo";

/// Counts what was not as expected, and says it where it happens.
#[derive(Debug, Default)]
pub struct Judge {
    wrong: u32,
}

impl Judge {
    /// Notes one expectation; returns the words for it.
    pub fn expect(&mut self, holds: bool) -> &'static str {
        if holds {
            "ok"
        } else {
            self.wrong += 1;
            "WRONG"
        }
    }
}

/// Runs the whole demo; `Ok(true)` if everything was as expected.
///
/// # Errors
/// If the lab cannot be started or a client not be run. The lab is taken down in any case.
pub fn run() -> Result<bool> {
    let started = Instant::now();
    println!("Starting a lab of two nodes and an outside world ...");
    let lab = Lab::up(LabOptions {
        name: LAB.to_owned(),
        nodes: 2,
        manifests: Some(shop::manifests()),
        ..Default::default()
    })
    .context("the lab did not start")?;
    println!("  ready after {:.1} s\n", started.elapsed().as_secs_f32());
    let mut judge = Judge::default();
    let shown = show(&lab, &mut judge);
    lab.down().context("the lab did not go down cleanly")?;
    shown?;
    println!("\nThe demo took {:.0} s and left nothing behind.", started.elapsed().as_secs_f32());
    if judge.wrong > 0 {
        println!("{} things were not as expected.", judge.wrong);
    }
    println!("\n{NEXT}");
    Ok(judge.wrong == 0)
}

fn show(lab: &Lab, judge: &mut Judge) -> Result<()> {
    table::show(lab, judge)?;
    encryption::show(lab, judge)?;
    independence::show(lab, judge)
}

const NEXT: &str = "\
What to type next:
  target/release/mesh-ctl lab up --manifests examples/shop     a lab of your own to play with
  target/release/mesh-ctl status                               its programs
  target/release/mesh-ctl lab exec production/frontend -- curl -i http://ADDRESS:8080/healthz
  target/release/mesh-ctl endpoints                            the pods and their addresses
  target/release/mesh-ctl observe --follow                     each verdict as it is taken, with policy and rule
  target/release/mesh-ctl explain --from production/frontend --to production/api-server-2 --port 8080 --method DELETE --path /
  target/release/mesh-ctl lab down                             and it is gone";
