//! One request by a real client from inside a pod: `curl` for HTTP, `shop call` for gRPC.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::command::{self, Finished};
use crate::shop;

/// What a client waits for an answer before it calls it a time-out, in seconds. A dropped SYN is sent again after 1 s.
const CLIENT_PATIENCE_S: u32 = 2;
/// Limit on the client's process.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// HTTP/1.1 to the HTTP port.
    Http {
        /// Method.
        method: &'static str,
        /// Path and query.
        path: &'static str,
        /// `Content-Type`; a request that has one carries `body`.
        content_type: Option<&'static str>,
        /// Body.
        body: &'static str,
    },
    /// A unary gRPC call to the gRPC port.
    Grpc {
        /// `package.Service/Method`.
        method: &'static str,
    },
}

impl Request {
    /// A request without a body.
    pub const fn http(method: &'static str, path: &'static str) -> Self {
        Self::Http { method, path, content_type: None, body: "" }
    }

    /// The port it goes to.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Http { .. } => shop::HTTP_PORT,
            Self::Grpc { .. } => shop::GRPC_PORT,
        }
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { method, path, content_type: None, .. } => write!(f, "{method} {path}"),
            Self::Http { method, path, content_type: Some(kind), .. } => {
                write!(f, "{method} {path} ({kind})")
            }
            Self::Grpc { method } => write!(f, "gRPC {method}"),
        }
    }
}

/// What the client saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An HTTP response.
    Status(u16),
    /// A gRPC status.
    GrpcStatus(u32),
    /// Nothing came back: refused at L3/L4.
    TimedOut,
    /// Something else, in the client's words.
    Other(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::GrpcStatus(status) => write!(f, "grpc-status {status}"),
            Self::TimedOut => f.write_str("time-out"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// An answered or unanswered request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the client saw.
    pub outcome: Outcome,
    /// Body of the response.
    pub body: String,
    /// The client's own port; 0 if it never connected.
    pub client_port: u16,
}

/// Sends `request` to `server` with the client that `in_pod` starts in the right place, given the program.
///
/// # Errors
/// If the client cannot be run at all.
pub fn send(in_pod: impl FnOnce(&str) -> Command, server: IpAddr, request: &Request) -> Result<Answer> {
    match request {
        Request::Http { method, path, content_type, body } => {
            let mut curl = in_pod("curl");
            curl.args(["-s", "-S", "-X", method, "-m", &CLIENT_PATIENCE_S.to_string()]);
            curl.args(["-w", "\n%{http_code} %{local_port}"]);
            if let Some(kind) = content_type {
                curl.args(["-H", &format!("Content-Type: {kind}"), "--data-binary", body]);
            }
            curl.arg(format!("http://{server}:{}{path}", shop::HTTP_PORT));
            Ok(http_answer(&command::run(&mut curl, CLIENT_LIMIT)?))
        }
        Request::Grpc { method } => {
            let mut call = in_pod(&shop::program()?);
            call.args(["call", "--timeout-s", &CLIENT_PATIENCE_S.to_string()]);
            call.args(["--grpc", &format!("{server}:{}", shop::GRPC_PORT), method]);
            grpc_answer(&command::run(&mut call, CLIENT_LIMIT)?)
        }
    }
}

/// `curl` ends with the code 28 when its patience does.
const CURL_TIMED_OUT: i32 = 28;

fn http_answer(curl: &Finished) -> Answer {
    let (body, last) = curl.stdout.rsplit_once('\n').unwrap_or(("", &curl.stdout));
    let mut words = last.split(' ').map(|word| word.parse::<u16>().unwrap_or(0));
    let (status, client_port) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    let outcome = match curl.status.code() {
        Some(0) => Outcome::Status(status),
        Some(CURL_TIMED_OUT) => Outcome::TimedOut,
        _ => Outcome::Other(curl.stderr.trim().to_owned()),
    };
    Answer { outcome, body: body.to_owned(), client_port }
}

/// `shop call` prints one JSON object: `{"grpc_status": n | null, "client_port": n, "error": "..."}`.
fn grpc_answer(call: &Finished) -> Result<Answer> {
    let answer: serde_json::Value = serde_json::from_str(call.stdout.trim())
        .with_context(|| format!("`shop call` printed {:?} and {:?}", call.stdout, call.stderr))?;
    let number = |key: &str| answer[key].as_u64().and_then(|number| u32::try_from(number).ok());
    let outcome = match (number("grpc_status"), answer["error"].as_str()) {
        (Some(status), _) => Outcome::GrpcStatus(status),
        (None, Some("time-out")) => Outcome::TimedOut,
        (None, words) => Outcome::Other(words.unwrap_or("no status").to_owned()),
    };
    let client_port = number("client_port").and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    Ok(Answer { outcome, body: String::new(), client_port })
}
