//! What a reviewer should never have to say: layers, file lengths, names, and that the pages name files that exist.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how they fail")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest file before it needs a second job taken out of it.
const FILE_LINES_MAX: usize = 600;
/// `main.rs` parses, wires, runs and exits.
const MAIN_LINES_MAX: usize = 150;

/// Layer of each crate: dependencies only go to a lower one.
const LAYERS: [(&str, u32); 13] = [
    ("layout", 0),
    ("policy", 0),
    ("programs", 1),
    ("api", 1),
    ("host", 1),
    ("datapath", 1),
    ("agent", 2),
    ("cni", 2),
    ("proxy", 2),
    ("wireguard", 2),
    ("lab", 3),
    ("mesh-ctl", 4),
    ("conformance", 4),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files() -> Vec<PathBuf> {
    let listing = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root()).output().unwrap();
    let files: Vec<PathBuf> = String::from_utf8(listing.stdout)
        .unwrap()
        .lines()
        .map(|line| root().join(line))
        .filter(|f| f.exists())
        .collect();
    assert!(files.len() > 20, "git lists {} Rust files", files.len());
    files
}

/// Our own crates: name -> (folder, names of the dependencies that are ours and not for tests only).
fn crates() -> BTreeMap<String, (PathBuf, Vec<String>)> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let folder = PathBuf::from(text(&package["manifest_path"])).parent().unwrap().to_owned();
            let ours = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dependency| dependency["path"].is_string() && dependency["kind"] != "dev")
                .map(|dependency| text(&dependency["name"]))
                .collect();
            (text(&package["name"]), (folder, ours))
        })
        .collect()
}

#[test]
fn dependencies_point_down() {
    let layers = BTreeMap::from(LAYERS);
    for (name, (_, dependencies)) in crates() {
        let layer =
            layers.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no layer: add it to LAYERS"));
        for dependency in dependencies {
            assert!(layers[dependency.as_str()] < *layer, "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn folder_is_named_as_its_crate() {
    for (name, (folder, _)) in crates() {
        assert_eq!(folder.file_name().unwrap().to_str().unwrap(), name);
    }
}

#[test]
fn files_have_one_job() {
    for file in rust_files() {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        let max = if file.ends_with("src/main.rs") { MAIN_LINES_MAX } else { FILE_LINES_MAX };
        assert!(lines <= max, "{} has {lines} lines, at most {max}", file.display());
    }
}

#[test]
fn unsafe_code_stays_behind_its_fence() {
    let fence = ["host/", "redirect-bpf/", "conformance/tests/tidy.rs"];
    for file in rust_files() {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        let found = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or("");
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(!found || fence.iter().any(|allowed| name.starts_with(allowed)), "unsafe code in {name}");
    }
}

#[test]
fn pages_name_files_that_exist() {
    for page in ["README.md", "docs/ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let endings = [".rs", ".md", ".sh", ".proto", ".yaml", ".toml"];
            let is_file = word.contains('/') && endings.iter().any(|ending| word.ends_with(ending));
            if is_file && !word.starts_with('/') && !word.contains(['*', '<', ' ']) {
                assert!(root().join(word).exists(), "{page} names {word}, which does not exist");
            }
        }
    }
}
