//! The example's server and clients: `shop serve`, `shop call`, `shop load`.
//!
//! A server that says whom it saw, a gRPC client (tonic) that says what it got, and a load without retries: none of them shares
//! any code with the programs that they are used to judge.

mod call;
mod load;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Server and clients of the example shop.
#[derive(Debug, Parser)]
#[command(name = "shop", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer HTTP and gRPC, and log each request (shop serve --http 8080 --grpc 9090).
    Serve(serve::Serve),
    /// Make one gRPC call and print its status as JSON (shop call --grpc 10.1.0.3:9090 com.example.OrderService/Create).
    Call(call::Call),
    /// Send requests at a steady rate, without retries, and print what came of them as JSON.
    Load(load::Load),
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        match arguments.command {
            Command::Serve(serve) => serve.run().await,
            Command::Call(call) => call.run().await,
            Command::Load(load) => load.run().await,
        }
    }))
}
