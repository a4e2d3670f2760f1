//! One unary gRPC call by tonic.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// What to call.
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Server.
    #[arg(long, value_name = "ADDRESS:PORT")]
    grpc: SocketAddr,
    /// Patience for the connection and for the answer.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    timeout_s: u64,
    /// The method.
    #[arg(value_name = "SERVICE/METHOD")]
    method: String,
}

impl Call {
    /// Prints `{"grpc_status": N or null, "client_port": N, "error": "..."}`. Succeeds if the status is 0.
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let client_port = Arc::new(AtomicU16::new(0));
        let patience = Duration::from_secs(self.timeout_s);
        let outcome = tokio::time::timeout(patience, self.call(client_port.clone())).await;
        let (status, error) = match outcome {
            Ok(Ok(code)) => (Some(code as i32), String::new()),
            Ok(Err(error)) => (None, format!("{error:#}")),
            Err(_) => (None, "time-out".to_owned()),
        };
        let client_port = client_port.load(Ordering::Relaxed);
        let status_json = status.map_or(Value::Null, |status| json!(status));
        println!("{}", json!({"grpc_status": status_json, "client_port": client_port, "error": error}));
        Ok(if status == Some(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn call(&self, client_port: Arc<AtomicU16>) -> Result<Code> {
        let channel = self.connect(client_port).await.context("connect")?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let path = format!("/{}", self.method.trim_start_matches('/')).parse().context("SERVICE/METHOD")?;
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        match client.unary(tonic::Request::new(()), path, codec).await {
            Ok(_) => Ok(Code::Ok),
            Err(status) if is_from_server(&status) => Ok(status.code()),
            Err(status) => Err(anyhow::anyhow!("{}", describe(&status))),
        }
    }

    async fn connect(&self, client_port: Arc<AtomicU16>) -> Result<Channel> {
        let server = self.grpc;
        let connector = tower::service_fn(move |_: Uri| {
            let client_port = client_port.clone();
            async move {
                let stream = TcpStream::connect(server).await?;
                stream.set_nodelay(true)?;
                client_port.store(stream.local_addr()?.port(), Ordering::Relaxed);
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        Ok(Endpoint::try_from(format!("http://{server}"))?.connect_with_connector(connector).await?)
    }
}

/// tonic makes up a status of its own for a connection that broke, and gives the reason as its source.
fn is_from_server(status: &Status) -> bool {
    status.source().is_none()
}

fn describe(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    words
}
