//! Manifests are checked before any of them is applied, by what the agents would say of them.

use std::collections::HashSet;

use agent::check::{Finding, Manifest, check};
use lab::Object;

use crate::error::CtlError;

/// Pods that a message names; the others are counted.
const NAMED: usize = 3;

/// Refuses what has a problem, and warns of what is probably not meant.
///
/// # Errors
/// The problems of all manifests, unless they are allowed.
pub(super) fn refuse_problems(
    present: &[Object],
    new: &[(String, Object)],
    allow_problems: bool,
) -> Result<(), CtlError> {
    let keys: HashSet<_> = new.iter().map(|(_, object)| &object.key).collect();
    let present = present.iter().filter(|object| !keys.contains(&object.key));
    let present: Vec<_> = present.map(|object| manifest("", object)).collect();
    let new: Vec<_> = new.iter().map(|(from, object)| manifest(from, object)).collect();
    let (warnings, problems): (Vec<_>, Vec<_>) =
        check(&present, &new).into_iter().partition(|finding| finding.is_warning);
    for warning in &warnings {
        eprintln!("mesh-ctl: warning: {}", line(warning));
    }
    let lines: Vec<_> = problems.iter().map(line).collect();
    match (lines.as_slice(), allow_problems) {
        ([], _) => Ok(()),
        (lines, true) => {
            lines.iter().for_each(|line| eprintln!("mesh-ctl: warning: {line}"));
            Ok(())
        }
        (lines, false) => {
            let plural = if lines.len() == 1 { "" } else { "s" };
            Err(CtlError::Refused(format!(
                "nothing is applied, there {} {} problem{plural}:\n  {}\ncorrect the manifest, or apply it as it is with \
                 --allow-problems",
                if lines.len() == 1 { "is" } else { "are" },
                lines.len(),
                lines.join("\n  ")
            )))
        }
    }
}

fn manifest(from: &str, object: &Object) -> Manifest {
    Manifest { from: from.to_owned(), text: object.to_yaml() }
}

fn line(finding: &Finding) -> String {
    let mut text = format!("{}: {}: {}", finding.from, finding.problem.location, finding.problem.message);
    if !finding.denies.is_empty() {
        let named: Vec<_> = finding.denies.iter().take(NAMED).map(String::as_str).collect();
        let dots = if finding.denies.len() > NAMED { ", ..." } else { "" };
        let pods = if finding.denies.len() == 1 { "pod" } else { "pods" };
        text += &format!("; it would isolate {} {pods} ({}{dots})", finding.denies.len(), named.join(", "));
    }
    text
}
