//! Builds the eBPF programs for the bpf target and leaves the object where `src/programs.rs` includes it.
//!
//! The target has no prebuilt `core`, and building one is an unstable feature of cargo: `RUSTC_BOOTSTRAP` allows it on
//! the pinned stable toolchain, for this one build. bpf-linker makes the object from the bitcode.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Where `make tools` puts bpf-linker, below the home folder.
const TOOLS: &str = ".cache/selvage/tools/bin";
const LINKER: &str = "bpf-linker";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../programs");
    println!("cargo:rerun-if-changed=../layout");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let target_dir = PathBuf::from(variable("OUT_DIR")?).join("bpf");
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.to_str() {
        Some("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let mut linker_flag = OsString::from("-Clinker=");
    linker_flag.push(find_linker()?);
    // Cargo's separator between encoded flags.
    let separator = "\x1f";
    let mut flags = linker_flag;
    for flag in ["-Clink-arg=--btf", "-Cdebuginfo=2"] {
        flags.push(separator);
        flags.push(flag);
    }
    let status = Command::new(variable("CARGO")?)
        .args(["build", "--package", "programs", "--bin", "programs", "--release", "-Zbuild-std=core"])
        .args(["--target", target, "--manifest-path", "../programs/Cargo.toml", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("RUSTC_BOOTSTRAP", "1")
        // What the outer cargo set for its own compiler, clippy's wrapper among it, is not for this build.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .status()
        .map_err(|error| format!("cargo could not be started to build the eBPF programs: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the eBPF programs could not be built ({status}), see above; `make tools` installs what it takes \
             (component rust-src of the toolchain, and bpf-linker)"
        ));
    }
    let object = target_dir.join(target).join("release/programs");
    println!("cargo:rustc-env=SELVAGE_EBPF_OBJECT={}", object.display());
    Ok(())
}

/// bpf-linker on the search path, or where `make tools` puts it.
fn find_linker() -> Result<PathBuf, String> {
    println!("cargo:rerun-if-env-changed=PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("HOME").unwrap_or_default();
    env::split_paths(&path)
        .chain([Path::new(&home).join(TOOLS)])
        .map(|folder| folder.join(LINKER))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("{LINKER} is neither on the search path nor in ~/{TOOLS}: run `make tools`"))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: this is a build script of cargo"))
}
