//! The example that demo and tests run: `examples/shop/`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Port of the shop's HTTP server.
pub const HTTP_PORT: u16 = 8080;
/// Port of the shop's gRPC server.
pub const GRPC_PORT: u16 = 9090;

/// The folder of the example's manifests.
pub fn manifests() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop"))
}

/// A program of this workspace, built beside the running one.
///
/// # Errors
/// If it is not there: `make build` or `make release` makes it.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program has no folder")?;
    // Tests run from `deps/` below the folder of the programs.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let program = folder.join(name);
    ensure!(program.exists(), "{} is missing: run `make build`", program.display());
    Ok(program)
}

/// Path of the `shop` program, client and server of the example.
///
/// # Errors
/// If it was not built.
pub fn program() -> Result<String> {
    Ok(sibling("shop")?.to_string_lossy().into_owned())
}
