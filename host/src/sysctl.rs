//! Kernel settings below `/proc/sys`, in the current or in another network namespace.
//!
//! Keys are written as sysctl(8) does: dots for slashes (`net.ipv4.ip_forward`), or with slashes where a device's name has a dot
//! (`net/ipv4/conf/eth0.5/rp_filter`).

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::netns::{NetNs, NetNsError};

/// Why a setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Not a key: empty, or with an empty or parent component.
    #[error("{0:?} is not the name of a kernel setting")]
    Key(String),
    /// The kernel refused, or has no such setting.
    #[error("cannot {action} kernel setting {key}: {source}")]
    Io {
        /// "read", or "write VALUE to".
        action: String,
        /// The setting.
        key: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("kernel setting {key}: {source}")]
    Namespace {
        /// The setting.
        key: String,
        /// Why not.
        source: NetNsError,
    },
}

/// The value of `key` in the namespace of the calling thread, without the line end.
///
/// # Errors
/// See [`SysctlError`].
pub fn read(key: &str) -> Result<String, SysctlError> {
    fs::read_to_string(path(key)?)
        .map(|value| value.trim_end().to_owned())
        .map_err(|source| SysctlError::Io { action: "read".to_owned(), key: key.to_owned(), source })
}

/// Sets `key` in the namespace of the calling thread.
///
/// # Errors
/// See [`SysctlError`].
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(path(key)?, value).map_err(|source| SysctlError::Io {
        action: format!("write {value:?} to"),
        key: key.to_owned(),
        source,
    })
}

/// Like [`read`], in `namespace`.
///
/// # Errors
/// See [`SysctlError`].
pub fn read_in(namespace: &NetNs, key: &str) -> Result<String, SysctlError> {
    let result = namespace.run(|| read(key));
    result.unwrap_or_else(|source| Err(SysctlError::Namespace { key: key.to_owned(), source }))
}

/// Like [`write`], in `namespace`.
///
/// # Errors
/// See [`SysctlError`].
pub fn write_in(namespace: &NetNs, key: &str, value: &str) -> Result<(), SysctlError> {
    let result = namespace.run(|| write(key, value));
    result.unwrap_or_else(|source| Err(SysctlError::Namespace { key: key.to_owned(), source }))
}

fn path(key: &str) -> Result<PathBuf, SysctlError> {
    let relative = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    if relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(SysctlError::Key(key.to_owned()));
    }
    Ok(PathBuf::from("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_paths_below_proc_sys() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), PathBuf::from("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.5/rp_filter").unwrap(),
            PathBuf::from("/proc/sys/net/ipv4/conf/eth0.5/rp_filter")
        );
        for bad in ["", "..", "net..ipv4", "net/../../etc/passwd", "/etc/passwd"] {
            assert!(matches!(path(bad), Err(SysctlError::Key(_))), "{bad}");
        }
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let error = read("net.ipv4.no_such_setting").unwrap_err();
        assert!(error.to_string().contains("net.ipv4.no_such_setting"), "{error}");
    }
}
