//! From environment and stdin to what is printed (CNI specification 1.1.0).

use std::ffi::OsString;
use std::io::Read;

use rscni_types::error::Error as ProtocolError;
use rscni_types::legacy;
use rscni_types::types::{CNI_COMMAND, CNIResult, CNIResultWithVersion, Cmd, ErrorResult};
use rscni_types::version::SpecVersion;

use crate::agent::Agent;
use crate::config::{Config, plugin_info};
use crate::error::CniError;
use crate::request::Environment;
use crate::{add, check, del, gc};

/// Longest configuration in bytes. The largest part is `prevResult`, a few kilobytes.
const MAX_CONFIG: u64 = 1 << 20;

/// What the process prints, and how it exits.
#[derive(Debug, Default)]
pub struct Output {
    /// Result or error as JSON; empty for a successful DEL, CHECK, GC and STATUS.
    pub stdout: String,
    /// For people, on stderr.
    pub warnings: Vec<String>,
    /// Exit code 0, else 1.
    pub success: bool,
}

/// Answers the runtime. `variable` reads the environment.
pub fn answer(variable: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Output {
    let mut version = SpecVersion::CURRENT;
    let mut warnings = Vec::new();
    match dispatch(&Environment(variable), stdin, &mut version, &mut warnings) {
        Ok(stdout) => Output { stdout, warnings, success: true },
        Err(error) => {
            // The only public way to an error result with the message in `msg`.
            let wire = ProtocolError::Custom(error.code(), error.to_string(), String::new());
            let stdout = serde_json::to_string(&ErrorResult::new(version, &wire)).unwrap_or_default();
            Output { stdout, warnings, success: false }
        }
    }
}

fn dispatch(
    environment: &Environment<impl Fn(&str) -> Option<OsString>>,
    stdin: impl Read,
    version: &mut SpecVersion,
    warnings: &mut Vec<String>,
) -> Result<String, CniError> {
    let Some(command) = environment.get(CNI_COMMAND)? else {
        // Started by hand: the reference library's plugins say who they are, and succeed.
        warnings.push(format!("version {}; CNI versions 0.3.1 to 1.1.0", env!("CARGO_PKG_VERSION")));
        return Ok(String::new());
    };
    let command: Cmd = command.parse().map_err(|_| {
        CniError::Environment(format!("{CNI_COMMAND}={command:?} is not a command of CNI 1.1.0"))
    })?;
    let runtime = || {
        let action = "cannot set up the runtime";
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        built.map_err(|source| CniError::System { action, source })
    };
    match command {
        Cmd::Version => print(&plugin_info()),
        Cmd::Add | Cmd::Del | Cmd::Check => {
            let target = environment.target(command)?;
            let config = Config::read(&read(stdin)?, command, version)?;
            match command {
                Cmd::Add => {
                    print_result(*version, runtime()?.block_on(add::add(&target, &config, warnings))?)
                }
                Cmd::Check => runtime()?.block_on(check::check(&target, &config)).map(|()| String::new()),
                _ => runtime()?.block_on(del::del(&target, &config, warnings)).map(|()| String::new()),
            }
        }
        Cmd::Status => {
            let config = Config::read(&read(stdin)?, command, version)?;
            let ask = async { Agent::new(&config.agent_socket).ready().await };
            runtime()?.block_on(ask).map(|()| String::new())
        }
        Cmd::Gc => {
            let json = read(stdin)?;
            let config = Config::read(&json, command, version)?;
            let valid = Config::valid_attachments(&json)?;
            runtime()?.block_on(gc::gc(&config, &valid, warnings)).map(|()| String::new())
        }
    }
}

fn read(stdin: impl Read) -> Result<Vec<u8>, CniError> {
    let mut json = Vec::new();
    stdin.take(MAX_CONFIG + 1).read_to_end(&mut json).map_err(CniError::Stdin)?;
    if json.len() as u64 > MAX_CONFIG {
        return Err(CniError::Config(format!("the configuration on stdin has more than {MAX_CONFIG} bytes")));
    }
    Ok(json)
}

/// In the layout of the configuration's version.
fn print_result(version: SpecVersion, result: CNIResult) -> Result<String, CniError> {
    if version.is_legacy() {
        print(&legacy::CNIResult::new(version, result))
    } else {
        print(&CNIResultWithVersion::new(version, result))
    }
}

fn print(value: &impl serde::Serialize) -> Result<String, CniError> {
    serde_json::to_string(value).map_err(CniError::Decode)
}
