//! What may be typed, each value still a text.

use std::path::PathBuf;

use apisix_plugin_runner::command::{RequestArgs, RunArgs, SocketArgs};
use clap::{Args, Parser, Subcommand};

/// Sends each user's requests to their own workspace: an external plugin runner
/// for Apache APISIX, with the plugins of this program.
#[derive(Debug, Parser)]
#[command(name = "kube-coders", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Subcommands,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Subcommands {
    /// Run the runner: the unix socket that the gateway calls, and the forwarder
    Run(Box<RunCommandArgs>),
    /// Send one request to a running runner and print its decision
    Call(CallCommandArgs),
    /// Say step by step how user-upstream decides about a request, and why; asks nobody unless told
    Explain(ExplainArgs),
    /// Say what is wrong or dangerous in the gateway's configuration: standalone files, objects of the Admin API,
    /// resources of the ingress controller, config.yaml
    Check(CheckArgs),
    /// Print the name of the workspace of each subject, one a line
    Name(NameArgs),
    /// Copy this program to a file or into a folder: what an init container does for a gateway that starts the runner
    Install(InstallArgs),
    /// Exit with 0 if the local runner answers
    Health(SocketArgs),
}

/// How requests get to their workspaces.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct WaysArgs {
    /// How requests get to their workspaces: forward, through the forwarder, or direct, by the gateway's own proxy with
    /// the plugin kube-coders-upstream.lua in it; a conf may say so of its route
    #[arg(long, value_name = "MODE", default_value = "forward", help_heading = "Forwarder")]
    pub(crate) upstream_mode: String,

    /// Whose certificates workspaces at https:// may show: those that the system trusts, those of a PEM file, or with
    /// none anybody's, without which no workspace at https:// is reached in direct mode
    #[arg(long, value_name = "system|FILE|none", default_value = "system", help_heading = "Forwarder")]
    pub(crate) workspace_ca: String,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RunCommandArgs {
    #[command(flatten)]
    pub(crate) runner: RunArgs,

    /// Drain in a process of its own: the process that was started ends at once when it is told to, and the process that
    /// drains waits up to 2 s for a successor. A runner that the gateway started always does
    #[arg(long, help_heading = "Limits")]
    pub(crate) drain_apart: bool,

    /// Set by the keeper of a runner: the number of the gateway's process, or 0
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) kept_for: Option<i32>,

    /// Where the forwarder listens: a loopback address and a port
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9181", help_heading = "Forwarder")]
    pub(crate) forwarder_address: String,

    #[command(flatten)]
    pub(crate) ways: WaysArgs,

    /// Requests under way and tunnels at a time; twice as many connections may be open
    #[arg(long, value_name = "COUNT", default_value = "4096", help_heading = "Forwarder")]
    pub(crate) max_forwarder_connections: String,

    /// A file with the stamps' key, at least 32 bytes [default: the socket's path with .key behind it, made at the first start]
    #[arg(long, value_name = "FILE", help_heading = "Forwarder")]
    pub(crate) stamp_key_file: Option<String>,

    /// Requests under way and tunnels of one subject at a time
    #[arg(long, value_name = "COUNT", default_value = "256", help_heading = "Forwarder")]
    pub(crate) max_subject_connections: String,

    /// How long the gateway may take for a request's head, from its first byte on
    #[arg(long, value_name = "DURATION", default_value = "10s", help_heading = "Forwarder")]
    pub(crate) head_timeout: String,

    /// How long a connection to a workspace may take, over all its addresses
    #[arg(long, value_name = "DURATION", default_value = "6s", help_heading = "Forwarder")]
    pub(crate) connect_timeout: String,

    /// How long a workspace, or the gateway, may take nothing of what is sent to it
    #[arg(long, value_name = "DURATION", default_value = "300s", help_heading = "Forwarder")]
    pub(crate) send_timeout: String,

    /// How long nothing may move while a workspace's answer is awaited
    #[arg(long, value_name = "DURATION", default_value = "300s", help_heading = "Forwarder")]
    pub(crate) read_timeout: String,

    /// Connections to workspaces that wait for their next request, in all
    #[arg(long, value_name = "COUNT", default_value = "320", help_heading = "Forwarder")]
    pub(crate) max_idle_connections: String,

    /// How long such a connection waits
    #[arg(long, value_name = "DURATION", default_value = "60s", help_heading = "Forwarder")]
    pub(crate) idle_timeout: String,

    /// Requests on one connection to a workspace
    #[arg(long, value_name = "COUNT", default_value = "1000", help_heading = "Forwarder")]
    pub(crate) max_connection_requests: String,

    /// How long a stamp is good. The gateway may read a whole upload before it sends the request on
    #[arg(long, value_name = "DURATION", default_value = "60s", help_heading = "Forwarder")]
    pub(crate) stamp_lifetime: String,

    /// Ask this name server, in place of the system's resolv.conf and hosts file; repeatable
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Names")]
    pub(crate) dns_server: Vec<String>,

    /// How long an address is good at least, whatever its TTL
    #[arg(long, value_name = "DURATION", default_value = "1s", help_heading = "Names")]
    pub(crate) dns_min_ttl: String,

    /// How long an address is good at most, whatever its TTL
    #[arg(long, value_name = "DURATION", default_value = "5m", help_heading = "Names")]
    pub(crate) dns_max_ttl: String,

    /// How long an address is used beyond that while no name server can say; 0s for not at all
    #[arg(long, value_name = "DURATION", default_value = "1h", help_heading = "Names")]
    pub(crate) dns_stale: String,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CallCommandArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,

    /// The plugin's name
    #[arg(long, default_value = "user-upstream")]
    pub(crate) plugin: String,

    /// The claims that X-Userinfo carries, a JSON text, or @FILE
    #[arg(long, value_name = "JSON")]
    pub(crate) userinfo: Option<String>,

    #[command(flatten)]
    pub(crate) request: RequestArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The conf of user-upstream, a JSON text, or @FILE
    #[arg(long, value_name = "JSON")]
    pub(crate) conf: String,

    /// The claims that X-Userinfo carries, a JSON text, or @FILE
    #[arg(long, value_name = "JSON")]
    pub(crate) userinfo: Option<String>,

    /// A token, or @FILE with one
    #[arg(long, value_name = "JWT")]
    pub(crate) token: Option<String>,

    /// The header that the token comes in
    #[arg(long, value_name = "NAME", default_value = "x-raw-id-token", requires = "token")]
    pub(crate) token_header: String,

    /// A file with the request's headers, one a line, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) headers: Option<String>,

    /// How the client speaks to the gateway, http or https. A WebSocket that a page at http:// opens is refused over
    /// https; without this option the answer to such a request is open
    #[arg(long, value_name = "SCHEME")]
    pub(crate) scheme: Option<String>,

    /// The issuer's keys (a JWKS) to check the signature with, a JSON text, or @FILE
    #[arg(long, value_name = "JWKS")]
    pub(crate) keys: Option<String>,

    /// Ask the issuer for its keys, and look the workspace's name up
    #[arg(long)]
    pub(crate) online: bool,

    #[command(flatten)]
    pub(crate) ways: WaysArgs,

    /// With --online, ask this name server, in place of the system's; repeatable
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) dns_server: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CheckArgs {
    /// What is checked together, YAML or JSON; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) file: Vec<String>,

    /// How findings are printed: text, json, or sarif for what shows them beside the files
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: String,

    /// Print our route in place of the one whose Lua function chooses the upstream, and check nothing
    #[arg(long, conflicts_with = "format")]
    pub(crate) migrate: bool,

    /// Which APISIX runs, such as 3.18: some findings depend on it
    #[arg(long, value_name = "VERSION")]
    pub(crate) gateway_version: Option<String>,

    /// Where the runner's forwarder listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9181", help_heading = "Forwarder")]
    pub(crate) forwarder_address: String,

    #[command(flatten)]
    pub(crate) ways: WaysArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InstallArgs {
    /// A file, which is replaced, or a folder
    pub(crate) target: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NameArgs {
    /// The host part of an upstream, with claims in braces, each of which stands for the subject
    #[arg(long, default_value = "code-{sub}")]
    pub(crate) template: String,

    /// Who the workspaces belong to
    #[arg(required = true)]
    pub(crate) subject: Vec<String>,
}
