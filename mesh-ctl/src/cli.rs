//! The command line: what can be typed, and the words of its help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Look into Selvage: what runs, what is enforced, what was refused and why.
#[derive(Debug, Parser)]
#[command(name = "mesh-ctl", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where to look.
    #[command(flatten)]
    pub scope: Scope,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done and allowed; 1 refused, failed or different from what was expected; 2 bad usage; 3 not reachable.
Without --lab and --socket the agent of this machine answers (/run/selvage/agent.sock); if there is none and exactly one lab
runs, that lab does.";

/// Which agents are asked, and how the answer is written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Where to look")]
pub struct Scope {
    /// Ask the nodes of this lab.
    #[arg(long, global = true, value_name = "NAME")]
    pub lab: Option<String>,
    /// Ask only this node of the lab.
    #[arg(long, global = true)]
    pub node: Option<String>,
    /// Ask the agent on this unix socket.
    #[arg(long, global = true, value_name = "PATH", conflicts_with_all = ["lab", "node"])]
    pub socket: Option<PathBuf>,
    /// For people, or for programs (stable).
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORM",
        help_heading = "Options"
    )]
    pub output: Output,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    #[expect(missing_docs, reason = "clap would make the help of every command six lines longer")]
    Table,
    #[expect(missing_docs, reason = "as above")]
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What is wrong, and programs, snapshots and tunnels of each node; ends with 1 if anything is
    /// wrong (mesh-ctl status).
    Status {
        /// Show what each node has counted, too.
        #[arg(long)]
        counters: bool,
    },
    /// Pods with their addresses, labels and whether policy is enforced (mesh-ctl endpoints -o json).
    Endpoints,
    /// Policies as the agent understands them.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Would this be allowed, and by what rule (mesh-ctl explain --from shop/web --to shop/api --port 8080 --path /).
    Explain(Explain),
    /// What was forwarded, refused and proxied, and why (mesh-ctl observe --verdict dropped --follow).
    Observe(Observe),
    /// Clusters of network namespaces that run the real programs; needs root.
    #[command(subcommand)]
    Lab(LabCommand),
}

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// All policies, the pods they select and their problems (mesh-ctl policy list).
    List,
    /// One policy with its manifest (mesh-ctl policy get production/api-l7-policy).
    Get {
        /// NAMESPACE/NAME; NAME alone for one that has no namespace.
        #[arg(value_name = "NS/NAME")]
        policy: String,
    },
}

/// A connection, and perhaps a request on it, that is not sent but judged.
#[derive(Debug, Args)]
pub struct Explain {
    /// Pod that connects.
    #[arg(long, value_name = "NS/POD")]
    pub from: String,
    /// Pod that it connects to.
    #[arg(long, value_name = "NS/POD")]
    pub to: String,
    /// Destination port.
    #[arg(long)]
    pub port: u16,
    /// TCP, UDP or SCTP.
    #[arg(long, default_value = "TCP")]
    pub protocol: String,
    /// Method of an HTTP request [default with --path, --host or --header: GET].
    #[arg(long)]
    pub method: Option<String>,
    /// Path of an HTTP request, with its query [default with --method, --host or --header: /].
    #[arg(long)]
    pub path: Option<String>,
    /// Host of an HTTP request.
    #[arg(long)]
    pub host: Option<String>,
    /// A header of an HTTP request; may be repeated.
    #[arg(long = "header", value_name = "K: V")]
    pub headers: Vec<String>,
    /// A gRPC call instead (--grpc com.example.OrderService/Create).
    #[arg(long, value_name = "SERVICE/METHOD", conflicts_with_all = ["method", "path"])]
    pub grpc: Option<String>,
}

/// Which flows to show.
#[derive(Debug, Args)]
pub struct Observe {
    /// Flows from or to this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Flows with this verdict (forwarded, dropped, redirected, ...); may be repeated.
    #[arg(long)]
    pub verdict: Vec<String>,
    /// Flows from pods whose name begins so.
    #[arg(long, value_name = "NS/POD")]
    pub from_pod: Option<String>,
    /// Flows to pods whose name begins so.
    #[arg(long, value_name = "NS/POD")]
    pub to_pod: Option<String>,
    /// Go on with new flows as they come.
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the newest N [default: 20; with --follow: 0].
    #[arg(long, value_name = "N")]
    pub last: Option<u32>,
}

/// What to do with labs. The lab is `--name`, which is the same as `--lab`; `selvage` without either.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Start a lab and wait until all is ready (mesh-ctl lab up --nodes 3 --manifests examples/shop).
    Up {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
        /// Number of nodes, if the manifests name none.
        #[arg(long, default_value_t = 2, value_name = "K")]
        nodes: u8,
        /// File or folder of the manifests that it starts with.
        #[arg(long, value_name = "DIR")]
        manifests: Option<PathBuf>,
        /// Whether traffic between nodes is encrypted.
        #[arg(long, default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
        encryption: bool,
        /// Seconds it may take to become ready.
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
        /// Start also with manifests that have problems.
        #[arg(long)]
        allow_problems: bool,
    },
    /// Create or change objects and wait until they are in force (mesh-ctl lab apply -f
    /// policy.yaml).
    Apply {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
        /// File, folder, or - for the standard input; may be repeated.
        #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
        file: Vec<PathBuf>,
        /// Apply also what has problems.
        #[arg(long)]
        allow_problems: bool,
        /// Do not wait until it is in force.
        #[arg(long)]
        no_wait: bool,
    },
    /// Delete the objects that manifests name (mesh-ctl lab delete -f policy.yaml).
    Delete {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
        /// File, folder, or - for the standard input; may be repeated.
        #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
        file: Vec<PathBuf>,
        /// Do not wait until they are out of force.
        #[arg(long)]
        no_wait: bool,
    },
    /// Run a command in a pod's network (mesh-ctl lab exec production/frontend -- curl -i http://10.1.0.3:8080/).
    Exec {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
        /// The pod.
        #[arg(value_name = "NS/POD")]
        pod: String,
        /// Command and arguments.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Run a command in a node's network (mesh-ctl lab node-exec node-1 -- ip route).
    NodeExec {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
        /// The node.
        #[arg(value_name = "NODE")]
        target: String,
        /// Command and arguments.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Run a command in the world around the nodes (mesh-ctl lab outside -- tcpdump -ni node-1).
    Outside {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
        /// Command and arguments.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// List the labs of this machine with their nodes and pods (mesh-ctl lab ls).
    Ls,
    /// Remove a lab with everything it made (mesh-ctl lab down).
    Down {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
    },
    /// The process that keeps a lab; started by `up`.
    #[command(hide = true)]
    Supervise {
        /// Name of the lab.
        #[command(flatten)]
        name: LabName,
    },
}

/// The lab that a command is about.
#[derive(Clone, Debug, Args)]
pub struct LabName {
    /// Name of the lab [default: selvage].
    #[arg(long, conflicts_with = "lab")]
    pub name: Option<String>,
}
