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
    /// Send one request to a running runner and print its decision. The request's id is 0123456789abcdef0123456789abcdef,
    /// so that the runner's log lines about it can be found
    Call(CallCommandArgs),
    /// Show step by step how user-upstream decides. Uses the network only with --online
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
    /// How requests reach workspaces: forward (through the forwarder) or direct (by the gateway's proxy; needs
    /// kube-coders-upstream.lua). A conf's upstream_mode overrides it
    #[arg(long, value_name = "MODE", default_value = "forward", help_heading = "Forwarder")]
    pub(crate) upstream_mode: String,

    /// Which certificates to accept from https:// workspaces: those of the system's CAs, only those of the CAs in a PEM
    /// FILE, or with none any certificate (direct mode needs none for https)
    #[arg(long, value_name = "system|FILE|none", default_value = "system", help_heading = "Forwarder")]
    pub(crate) workspace_ca: String,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RunCommandArgs {
    #[command(flatten)]
    pub(crate) runner: RunArgs,

    /// Drain in a separate process. When it is told to end, the started process exits immediately; the draining one first waits up to 2 s for a
    /// successor. Always on if the gateway starts the runner
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

    /// Maximum number of requests in progress plus tunnels; twice as many connections may be open
    #[arg(long, value_name = "COUNT", default_value = "4096", help_heading = "Forwarder")]
    pub(crate) max_forwarder_connections: String,

    /// A file with the stamps' key, at least 32 bytes [default: the socket's path followed by .key; created at the first start]
    #[arg(long, value_name = "FILE", help_heading = "Forwarder")]
    pub(crate) stamp_key_file: Option<String>,

    /// A file with the key that marks browsers as their users', at least 32 bytes; created if it is missing. All replicas
    /// need the same key. Repeat the flag for former keys, which are still accepted [default: the socket's path followed
    /// by .subject-key]
    #[arg(long, value_name = "FILE", help_heading = "Browsers")]
    pub(crate) subject_key_file: Vec<String>,

    /// Show the subject and the workspace's host in the log lines of refusals. Without it, they have a keyed digest of
    /// the subject
    #[arg(long, help_heading = "Log")]
    pub(crate) log_subjects: bool,

    /// Maximum number of requests in progress plus tunnels for one subject
    #[arg(long, value_name = "COUNT", default_value = "256", help_heading = "Forwarder")]
    pub(crate) max_subject_connections: String,

    /// How long the gateway may take to send a request head, counted from its first byte
    #[arg(long, value_name = "DURATION", default_value = "10s", help_heading = "Forwarder")]
    pub(crate) head_timeout: String,

    /// How long connecting to a workspace may take in total, over all its addresses
    #[arg(long, value_name = "DURATION", default_value = "6s", help_heading = "Forwarder")]
    pub(crate) connect_timeout: String,

    /// How long a workspace or the gateway may accept none of the bytes sent to it
    #[arg(long, value_name = "DURATION", default_value = "300s", help_heading = "Forwarder")]
    pub(crate) send_timeout: String,

    /// How long the forwarder waits for a workspace's response while no bytes move
    #[arg(long, value_name = "DURATION", default_value = "300s", help_heading = "Forwarder")]
    pub(crate) read_timeout: String,

    /// Maximum number of idle connections to all workspaces
    #[arg(long, value_name = "COUNT", default_value = "320", help_heading = "Forwarder")]
    pub(crate) max_idle_connections: String,

    /// How long a connection to a workspace may stay idle
    #[arg(long, value_name = "DURATION", default_value = "60s", help_heading = "Forwarder")]
    pub(crate) idle_timeout: String,

    /// How long a tunnel, such as a WebSocket, may live until its client has to connect again, so that the plugins
    /// decide again; 0s turns this off
    #[arg(long, value_name = "DURATION", default_value = "1h", help_heading = "Forwarder")]
    pub(crate) max_tunnel_time: String,

    /// How long a WebSocket may send nothing to its client until the forwarder sends a ping, so that the gateway's read
    /// timeout does not close it; 0s turns this off
    #[arg(long, value_name = "DURATION", default_value = "30s", help_heading = "Forwarder")]
    pub(crate) ping_interval: String,

    /// Maximum number of requests on one connection to a workspace
    #[arg(long, value_name = "COUNT", default_value = "1000", help_heading = "Forwarder")]
    pub(crate) max_connection_requests: String,

    /// How long a stamp is valid. The gateway may read a whole upload before it sends the request on, so allow for the longest upload
    #[arg(long, value_name = "DURATION", default_value = "60s", help_heading = "Forwarder")]
    pub(crate) stamp_lifetime: String,

    /// Ask this name server instead of the system's resolv.conf and hosts file; repeatable
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Names")]
    pub(crate) dns_server: Vec<String>,

    /// Allow workspaces to have addresses of this network that no workspace has otherwise: loopback, link-local, cloud
    /// metadata, multicast, this machine's own; repeatable
    #[arg(long, value_name = "CIDR", help_heading = "Names")]
    pub(crate) allow_address: Vec<String>,

    /// Look for workspaces' names of a single label in this domain; repeatable. A name with a dot is never completed
    #[arg(long, value_name = "DOMAIN", help_heading = "Names")]
    pub(crate) search_domain: Vec<String>,

    /// Minimum time to use an address, whatever its TTL
    #[arg(long, value_name = "DURATION", default_value = "1s", help_heading = "Names")]
    pub(crate) dns_min_ttl: String,

    /// Maximum time to use an address, whatever its TTL
    #[arg(long, value_name = "DURATION", default_value = "5m", help_heading = "Names")]
    pub(crate) dns_max_ttl: String,

    /// How much longer to use an address while no name server answers; 0s turns this off
    #[arg(long, value_name = "DURATION", default_value = "5m", help_heading = "Names")]
    pub(crate) dns_stale: String,

    /// How long to use an issuer's last keys while it does not answer
    #[arg(long, value_name = "DURATION", default_value = "1h", help_heading = "Tokens")]
    pub(crate) keys_stale: String,
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

    /// How the client reaches the gateway: http or https. Needed to decide about WebSockets from http:// pages
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

    /// With --online, allow workspaces to have addresses of this network that no workspace has otherwise; repeatable
    #[arg(long, value_name = "CIDR")]
    pub(crate) allow_address: Vec<String>,

    /// With --online, look for workspaces' names of a single label in this domain; repeatable
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) search_domain: Vec<String>,

    /// With --online, ask this name server instead of the system's; repeatable
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) dns_server: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CheckArgs {
    /// What is checked together, YAML or JSON; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) file: Vec<String>,

    /// How findings are printed: text, json, or sarif for code-review tools
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: String,

    /// Print a kube-coders route that replaces a route whose Lua function chooses the upstream; skip the checks
    #[arg(long, conflicts_with = "format")]
    pub(crate) migrate: bool,

    /// The gateway's APISIX version, for example 3.18; some findings depend on it
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
    /// The upstream of a conf, or its host alone, with claims in braces. The subject replaces every claim
    #[arg(long, default_value = "code-{sub}")]
    pub(crate) template: String,

    /// How many digits of a hash a label has that needs one: 32, or 16 for the names that earlier versions gave
    #[arg(long, default_value = "32", value_parser = ["16", "32"])]
    pub(crate) digits: String,

    /// Subjects (sub claims)
    #[arg(required = true)]
    pub(crate) subject: Vec<String>,
}
