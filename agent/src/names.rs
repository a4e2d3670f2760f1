//! Names that the agent gives: devices and files of its state folder.

use std::path::PathBuf;

pub use api::names::{HOST_PREFIX, is_host_interface};

use crate::config::Config;
use crate::journal::AttachmentKey;

/// Name of the host side of the veth of an attachment.
pub fn host_interface(key: &AttachmentKey) -> String {
    api::names::host_interface(&key.container_id, &key.interface)
}

/// The journal of addresses.
pub fn journal(config: &Config) -> PathBuf {
    config.state_dir.join("journal")
}

/// Identities and their numbers.
pub fn identities(config: &Config) -> PathBuf {
    config.state_dir.join("identities.json")
}

/// The number of the next snapshot.
pub fn numbers(config: &Config) -> PathBuf {
    config.state_dir.join("numbers.json")
}

/// Keys of the other nodes.
pub fn known_nodes(config: &Config) -> PathBuf {
    config.state_dir.join("nodes.json")
}

/// Which manifests of the folder source were ever taken.
pub fn taken_manifests(config: &Config) -> PathBuf {
    config.state_dir.join("manifests.json")
}

/// Held by the one agent of the state folder.
pub fn lock(config: &Config) -> PathBuf {
    config.state_dir.join("agent.lock")
}

/// Notes of the plugin: releases that it could not tell.
pub fn release_notes(config: &Config) -> PathBuf {
    config.state_dir.join("cni/pending")
}

/// The snapshot that the proxy last took over, written by it.
pub fn proxy_snapshot(config: &Config) -> PathBuf {
    config.state_dir.join("proxy/snapshot.pb")
}

/// Name of the device with this number, if the device exists.
pub fn device_name(index: u32) -> Option<String> {
    // One that is not there is an empty name as well as an error here.
    let name = nix::net::if_::if_indextoname(index).ok()?.to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}
