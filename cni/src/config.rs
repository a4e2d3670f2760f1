//! The network configuration that comes on stdin.

use std::path::{Path, PathBuf};

use rscni_types::types::{CNIResult, Cmd, Dns, GcAttachment, NetConf};
use rscni_types::version::{PluginInfo, SpecVersion};
use serde_json::Value;

use crate::error::CniError;

/// Where the agent listens unless the configuration says otherwise.
const DEFAULT_AGENT_SOCKET: &str = "/run/selvage/agent.sock";
/// The agent's state folder unless the configuration says otherwise.
const DEFAULT_STATE_DIR: &str = "/var/lib/selvage";
/// Our two keys.
const AGENT_SOCKET: &str = "agentSocket";
const STATE_DIR: &str = "stateDir";
/// The only `ipam.type`: the agent hands out the addresses, so nothing is executed and the rest of `ipam` is ignored.
const IPAM_TYPE: &str = "mesh-ipam";
/// Keys that the specification reserves for itself.
const RESERVED_PREFIX: &str = "cni.dev/";
/// What GC is to keep, as the specification calls it.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The same, as its reference library called it first. It sends both.
const ATTACHMENTS: &str = "cni.dev/attachments";

/// Capabilities that would change what is made. Ignoring them would break a promise that the runtime made to the pod.
const REFUSED_CAPABILITIES: [&str; 6] = ["bandwidth", "ips", "ipRanges", "mac", "infinibandGUID", "deviceID"];

/// What VERSION answers.
pub(crate) fn plugin_info() -> PluginInfo {
    let versions = [(0, 3, 1), (0, 4, 0), (1, 0, 0), (1, 1, 0)];
    let versions = versions.map(|(major, minor, patch)| SpecVersion::new(major, minor, patch));
    PluginInfo::new(SpecVersion::CURRENT, versions.into())
}

/// What this plugin takes from the configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) network: String,
    pub(crate) agent_socket: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) dns: Option<Dns>,
    pub(crate) prev_result: Option<CNIResult>,
}

impl Config {
    /// Reads and judges `json` for `command`. `version` becomes the configuration's as soon as it is known. Only ADD and CHECK
    /// refuse keys that they do not know: a DEL must not fail because a configuration was edited meanwhile.
    pub(crate) fn read(json: &[u8], command: Cmd, version: &mut SpecVersion) -> Result<Self, CniError> {
        let raw: NetConf = serde_json::from_slice(json).map_err(CniError::Decode)?;
        let declared = raw.version()?;
        if declared.is_supported() {
            *version = declared;
        }
        plugin_info().negotiate(&raw, command)?;
        raw.validate_name()?;
        if matches!(command, Cmd::Add | Cmd::Check) {
            refuse_unsupported(&raw, command)?;
        }
        Ok(Self {
            network: raw.name.clone(),
            agent_socket: path(&raw, AGENT_SOCKET, DEFAULT_AGENT_SOCKET)?,
            state_dir: path(&raw, STATE_DIR, DEFAULT_STATE_DIR)?,
            dns: raw.dns,
            prev_result: raw.prev_result,
        })
    }

    /// What GC is to keep, of the configuration `json`: all that either key names. Without both it
    /// is not known what to keep.
    pub(crate) fn valid_attachments(json: &[u8]) -> Result<Vec<GcAttachment>, CniError> {
        let raw: NetConf = serde_json::from_slice(json).map_err(CniError::Decode)?;
        let other = match raw.custom.get(ATTACHMENTS) {
            None | Some(Value::Null) => None,
            Some(list) => Some(serde_json::from_value(list.clone()).map_err(CniError::Decode)?),
        };
        if raw.valid_attachments.is_none() && other.is_none() {
            return Err(CniError::Config(format!(
                "GC needs {VALID_ATTACHMENTS}, the attachments to keep; without it nothing is released"
            )));
        }
        Ok([raw.valid_attachments, other].into_iter().flatten().flatten().collect())
    }
}

fn refuse_unsupported(raw: &NetConf, command: Cmd) -> Result<(), CniError> {
    let unsupported = |key: &str, value: &dyn ToString, fix| {
        Err(CniError::UnsupportedKey { key: key.to_owned(), value: value.to_string(), fix })
    };
    for (key, value) in &raw.custom {
        if key != AGENT_SOCKET && key != STATE_DIR && !key.starts_with(RESERVED_PREFIX) {
            return unsupported(key, value, "remove it; mesh-cni has the keys agentSocket and stateDir");
        }
    }
    if let Some(ipam) = raw.ipam.as_ref().filter(|ipam| ipam.r#type != IPAM_TYPE) {
        return unsupported("ipam.type", &ipam.r#type, "addresses come from mesh-agent: remove ipam");
    }
    if raw.ip_masq == Some(false) {
        return unsupported("ipMasq", &false, "remove it; mesh-agent masquerades what leaves the cluster");
    }
    if let Some(runtime) = &raw.runtime_config {
        if !runtime.port_mappings.is_empty() {
            return unsupported(
                "runtimeConfig.portMappings",
                &"[...]",
                "declare the capability on portmap instead",
            );
        }
        for key in REFUSED_CAPABILITIES {
            if let Some(value) = runtime.custom.get(key) {
                let fix = "remove the capability from mesh-cni, or declare it on the plugin that has it";
                return unsupported(&format!("runtimeConfig.{key}"), value, fix);
            }
        }
    }
    if command == Cmd::Add && raw.prev_result.is_some() {
        return unsupported(
            "prevResult",
            &"{...}",
            "mesh-cni makes the interface: put it first in the list of plugins",
        );
    }
    Ok(())
}

fn path(raw: &NetConf, key: &str, default: &str) -> Result<PathBuf, CniError> {
    match raw.custom.get(key) {
        None | Some(Value::Null) => Ok(PathBuf::from(default)),
        Some(Value::String(text)) if Path::new(text).is_absolute() => Ok(PathBuf::from(text)),
        Some(other) => Err(CniError::Config(format!("{key} must be an absolute path, not {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str, command: Cmd) -> Result<Config, CniError> {
        let json = format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"mesh-cni"{extra}}}"#);
        let mut version = SpecVersion::CURRENT;
        Config::read(json.as_bytes(), command, &mut version)
    }

    #[test]
    fn users_manifests_and_reserved_keys_are_accepted() {
        for extra in [
            "",
            r#","ipam":{"type":"mesh-ipam","ipv4_pools":["10.244.0.0/16"]}"#,
            r#","cni.dev/valid-attachments":[],"args":{"x":1},"dns":{"nameservers":["10.0.0.10"]},"ipMasq":true"#,
            r#","runtimeConfig":{"dns":{"servers":["1.1.1.1"]},"aliases":["a"]},"capabilities":{"dns":true}"#,
            r#","agentSocket":null,"stateDir":null"#,
        ] {
            let config = read(extra, Cmd::Add).unwrap_or_else(|error| panic!("{extra}: {error}"));
            assert_eq!(config.agent_socket, Path::new(DEFAULT_AGENT_SOCKET));
            assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_key_and_value_except_by_del() {
        for (extra, key, value) in [
            (r#","agentSokcet":"/x""#, "agentSokcet", "/x"),
            (r#","ipam":{"type":"host-local"}"#, "ipam.type", "host-local"),
            (r#","ipMasq":false"#, "ipMasq", "false"),
            (r#","runtimeConfig":{"mac":"02:00:00:00:00:01"}"#, "runtimeConfig.mac", "02:00:00:00:00:01"),
            (
                r#","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp"}]}"#,
                "runtimeConfig.portMappings",
                "",
            ),
            (r#","prevResult":{"interfaces":[]}"#, "prevResult", ""),
        ] {
            let error = read(extra, Cmd::Add).unwrap_err();
            assert_eq!(error.code(), 2, "{error}");
            let text = error.to_string();
            assert!(text.contains(key) && text.contains(value), "{text}");
            read(extra, Cmd::Del).unwrap();
        }
    }

    #[test]
    fn what_gc_keeps_is_what_either_key_names_and_never_everything_by_mistake() {
        let kept = |extra: &str| {
            let json = format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"mesh-cni"{extra}}}"#);
            Config::valid_attachments(json.as_bytes())
                .map(|kept| kept.into_iter().map(|a| a.container_id).collect::<Vec<_>>())
        };
        let (a, b) = (r#"[{"containerID":"a","ifname":"eth0"}]"#, r#"[{"containerID":"b","ifname":"eth0"}]"#);
        for (valid, other, expected) in
            [(a, "null", vec!["a"]), ("null", b, vec!["b"]), (a, b, vec!["a", "b"]), ("[]", "null", vec![])]
        {
            let extra = format!(r#","{VALID_ATTACHMENTS}":{valid},"{ATTACHMENTS}":{other}"#);
            assert_eq!(kept(&extra).unwrap(), expected, "{extra}");
        }
        assert_eq!(kept("").unwrap_err().code(), 7);
        for null in [VALID_ATTACHMENTS, ATTACHMENTS] {
            assert_eq!(kept(&format!(r#","{null}":null"#)).unwrap_err().code(), 7);
        }
        for wrong in [r#"{}"#, r#""a""#, r#"[{"containerID":"a"}]"#, "[1]", "[null]"] {
            for key in [VALID_ATTACHMENTS, ATTACHMENTS] {
                assert_eq!(kept(&format!(r#","{key}":{wrong}"#)).unwrap_err().code(), 6, "{key} {wrong}");
            }
        }
    }

    #[test]
    fn paths_are_absolute_strings() {
        for value in ["\"relative\"", "7", "\"\""] {
            let error = read(&format!(r#","agentSocket":{value}"#), Cmd::Del).unwrap_err();
            assert_eq!(error.code(), 7);
            assert!(error.to_string().contains("agentSocket"));
        }
    }
}
