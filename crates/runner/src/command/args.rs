//! What may be typed, each value still a text, and the settings made of it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use nix::unistd::{Group, User};

use crate::command::checker::{Checker, Mistakes, number_between};
use crate::command::environment::Environment;
use crate::command::log::LogFilter;
use crate::dispatcher::CallLimits;
use crate::listener::socket_file::SocketFile;
use crate::settings::{MAX_CALL_DEADLINE, Settings};

/// The name of the argument whose help names the default socket.
const LISTEN_ADDRESS: &str = "listen_address";

/// How long a gateway keeps a conf token by default (docs/gateway.md, PrepareConf).
const DEFAULT_CONF_EXPIRE_TIME: &str = "3600";

/// The longest expiry and drain, so that no sum of times overflows.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// An external plugin runner for Apache APISIX
#[derive(Debug, Parser)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Run the runner: serve the unix socket that the gateway calls
    Run(Box<RunArgs>),
    /// Send one request to a running runner and print its decision. The request's id is 0123456789abcdef0123456789abcdef,
    /// so that the runner's log lines about it can be found
    Call(CallArgs),
    /// Exit with 0 if the local runner answers
    Health(SocketArgs),
}

/// Where the runner listens.
///
/// ```
/// use apisix_plugin_runner::command::{Environment, SocketArgs};
///
/// let environment = Environment::without_gateway("my-plugins");
/// let path = SocketArgs::default().path(&environment)?;
/// assert_eq!(path.to_str(), Some("/run/my-plugins/runner.sock"));
/// # Ok::<(), apisix_plugin_runner::command::Mistakes>(())
/// ```
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct SocketArgs {
    /// The runner's unix socket, as unix:/path
    #[arg(long, id = LISTEN_ADDRESS, value_name = "unix:PATH")]
    pub listen_address: Option<String>,
}

/// The settings of `run`.
///
/// ```
/// use apisix_plugin_runner::command::{Environment, RunArgs};
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct MyCommand {
///     #[command(flatten)]
///     run: RunArgs,
/// }
///
/// let typed = MyCommand::parse_from(["my-plugins", "--listen-address", "unix:/tmp/my.sock"]);
/// let (settings, filter) = typed.run.settings(&Environment::without_gateway("my-plugins"))?;
/// assert_eq!(settings.socket_path().to_str(), Some("/tmp/my.sock"));
/// # Ok::<(), apisix_plugin_runner::command::Mistakes>(())
/// ```
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct RunArgs {
    /// The socket.
    #[command(flatten)]
    pub socket: SocketArgs,

    /// How long the gateway keeps a conf token, in seconds; the runner keeps it 1.2 times as long [default:
    /// APISIX_CONF_EXPIRE_TIME if the gateway set it, else 3600]
    #[arg(long, value_name = "SECONDS")]
    pub conf_expire_time: Option<String>,

    /// The socket's permission bits, octal [default: 0666 if the gateway started the runner or with --allow-uid, 0660
    /// with --socket-group, else 0600; only permitted users are served in any case]
    #[arg(long, value_name = "MODE", help_heading = "Who may connect")]
    pub socket_mode: Option<String>,

    /// The socket's owner, a name or number [default: the runner's user]
    #[arg(long, value_name = "USER", help_heading = "Who may connect")]
    pub socket_owner: Option<String>,

    /// The socket's group, a name or number [default: the runner's group]
    #[arg(long, value_name = "GROUP", help_heading = "Who may connect")]
    pub socket_group: Option<String>,

    /// Also serve this user, a number; repeatable. Root, the runner's own user, and the workers of the gateway that
    /// started the runner are always served
    #[arg(long, value_name = "UID", help_heading = "Who may connect")]
    pub allow_uid: Vec<String>,

    /// How many connections of the gateway are served at a time
    #[arg(long, value_name = "COUNT", default_value = "4096", help_heading = "Limits")]
    pub max_connections: String,

    /// How many prepared confs are kept
    #[arg(long, value_name = "COUNT", default_value = "4096", help_heading = "Limits")]
    pub max_confs: String,

    /// How long a call may take, such as 5s or 800ms, at most 59s, because the gateway waits 60 s
    #[arg(long, value_name = "DURATION", default_value = "5s", help_heading = "Limits")]
    pub call_deadline: String,

    /// How many questions (variables, bodies) a call may ask the gateway
    #[arg(long, value_name = "COUNT", default_value = "64", help_heading = "Limits")]
    pub max_questions: String,

    /// How many bytes the gateway's answers to a call's questions may have in all, and as many again its changes
    #[arg(long, value_name = "BYTES", default_value = "33554432", help_heading = "Limits")]
    pub max_call_bytes: String,

    /// How long calls, requests and tunnels may go on after SIGTERM, SIGINT or SIGHUP; a second signal ends them immediately
    #[arg(long, value_name = "DURATION", default_value = "240s", help_heading = "Limits")]
    pub drain_deadline: String,

    /// What goes to the log on standard error: a level (error, warn, info, debug, trace), directives for modules such as
    /// hello=debug, or both, separated by commas
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,

    /// Ask the gateway for each request's id, so that every log line of a plugin shows it. It costs a round trip to the
    /// gateway for each call
    #[arg(long)]
    pub log_request_id: bool,
}

/// One request to a running runner.
///
/// ```
/// use apisix_plugin_runner::command::CallArgs;
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct MyCall {
///     #[command(flatten)]
///     call: CallArgs,
/// }
///
/// let typed = MyCall::parse_from(["call", "--plugin", "hello", "--conf", "null", "/path"]);
/// assert_eq!((&*typed.call.plugin, &*typed.call.request.target), ("hello", "/path"));
/// ```
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct CallArgs {
    /// The socket.
    #[command(flatten)]
    pub socket: SocketArgs,

    /// The plugin's name
    #[arg(long, value_name = "NAME")]
    pub plugin: String,

    /// What the runner is asked.
    #[command(flatten)]
    pub request: RequestArgs,
}

/// A request and the conf of its plugin.
///
/// ```
/// use apisix_plugin_runner::command::{RequestArgs, client_request};
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct MyCall {
///     #[command(flatten)]
///     request: RequestArgs,
/// }
///
/// let typed = MyCall::parse_from(["call", "--conf", "null", "--header", "x-name: alice"]);
/// let request = client_request(&typed.request)?;
/// assert_eq!(request.header_value("x-name"), Some(&b"alice"[..]));
/// # Ok::<(), apisix_plugin_runner::command::CallCommandError>(())
/// ```
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct RequestArgs {
    /// The plugin's conf, a JSON text, or @FILE
    #[arg(long, value_name = "JSON")]
    pub conf: String,

    /// The request's method
    #[arg(long, default_value = "GET")]
    pub method: String,

    /// A header of the request, as "name: value"; repeatable
    #[arg(long, value_name = "HEADER")]
    pub header: Vec<String>,

    /// A variable that the plugin may ask for, as name=value; repeatable
    #[arg(long, value_name = "VARIABLE")]
    pub var: Vec<String>,

    /// The request's body, or @FILE
    #[arg(long)]
    pub body: Option<String>,

    /// The request's target: path and query
    #[arg(default_value = "/")]
    pub target: String,
}

impl SocketArgs {
    /// The name and value of the setting that gives the socket, and whether a gateway that
    /// started this process set it.
    pub(crate) fn address<'a>(&'a self, environment: &'a Environment) -> (&'static str, Cow<'a, str>, bool) {
        match (&self.listen_address, &environment.listen_address) {
            (Some(typed), _) => ("--listen-address", typed.into(), false),
            (None, Some(set)) => ("APISIX_LISTEN_ADDRESS", set.into(), true),
            (None, None) => ("--listen-address", default_socket(environment.program).into(), false),
        }
    }

    /// Whether a gateway started this process and gave it the address to listen at.
    #[must_use]
    pub fn is_spawned(&self, environment: &Environment) -> bool {
        self.address(environment).2
    }
}

impl RunArgs {
    /// The settings, and which lines go to the log.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the settings.
    pub fn settings(&self, environment: &Environment) -> Result<(Settings, LogFilter), Mistakes> {
        let mut checker = Checker::default();
        let settings = self.check(environment, &mut checker);
        checker.finish(settings)
    }

    /// Checks the settings with a program's own checker, so that one start shows the mistakes
    /// of both. `None` if a setting is wrong.
    pub fn check(&self, environment: &Environment, checker: &mut Checker) -> Option<(Settings, LogFilter)> {
        let (name, address, is_spawned) = self.socket.address(environment);
        let path = checker.check(name, &address, socket_path(&address));
        let (name, expire) = match (&self.conf_expire_time, &environment.conf_expire_time) {
            (Some(typed), _) => ("--conf-expire-time", typed.as_str()),
            (None, Some(set)) => ("APISIX_CONF_EXPIRE_TIME", set.as_str()),
            (None, None) => ("--conf-expire-time", DEFAULT_CONF_EXPIRE_TIME),
        };
        let expire = checker.check(name, expire, seconds(expire));
        let allowed_uids = checker.each("--allow-uid", &self.allow_uid, |text| {
            text.parse::<u32>().map_err(|_| "not a user's number".to_owned())
        });
        let owner = checker.optional("--socket-owner", self.socket_owner.as_deref(), user);
        let group = checker.optional("--socket-group", self.socket_group.as_deref(), group);
        let mode = match &self.socket_mode {
            Some(text) => checker.check("--socket-mode", text, mode(text)),
            None => Some(self.default_mode(is_spawned)),
        };
        let max_connections = checker.count("--max-connections", &self.max_connections, 1 << 20);
        let max_confs = checker.count("--max-confs", &self.max_confs, 1 << 20);
        let deadline = checker.duration("--call-deadline", &self.call_deadline, MAX_CALL_DEADLINE);
        let questions = checker.count("--max-questions", &self.max_questions, 1 << 16);
        let bytes = checker.count("--max-call-bytes", &self.max_call_bytes, 1 << 28);
        let drain = checker.duration("--drain-deadline", &self.drain_deadline, MAX_TIME);
        let filter = checker.check("--log-level", &self.log_level, LogFilter::parse(&self.log_level));
        let settings = Settings {
            socket: SocketFile { path: path?, mode: mode?, owner: owner?, group: group? },
            is_mode_chosen: true,
            has_takeover: true,
            allowed_uids: allowed_uids?.into_iter().collect(),
            gateway: None,
            conf_expire_time: expire?,
            max_connections: max_connections?,
            max_confs: max_confs?,
            call: CallLimits {
                deadline: deadline?,
                questions: questions?,
                bytes: bytes?,
                asks_request_id: self.log_request_id,
            },
            drain: drain?,
        };
        Some((settings, filter?))
    }

    fn default_mode(&self, is_spawned: bool) -> u32 {
        if is_spawned || !self.allow_uid.is_empty() {
            // The gateway's workers run as another user, and connecting takes the right to write.
            0o666
        } else if self.socket_group.is_some() {
            0o660
        } else {
            0o600
        }
    }
}

/// Where the runner of this program listens by default.
fn default_socket(program: &str) -> String {
    format!("unix:/run/{program}/runner.sock")
}

/// Names this program's default socket in the help of each command that takes a socket.
///
/// ```
/// use apisix_plugin_runner::command::{SocketArgs, with_default_socket};
/// use clap::{Args as _, Command};
///
/// let health = SocketArgs::augment_args(Command::new("health"));
/// let program = with_default_socket(Command::new("my-plugins").subcommand(health), "my-plugins");
/// let help = program.find_subcommand("health").map(|health| health.clone().render_long_help());
/// assert!(help.is_some_and(|help| help.to_string().contains("unix:/run/my-plugins/runner.sock")));
/// ```
#[must_use]
pub fn with_default_socket(mut command: clap::Command, program: &str) -> clap::Command {
    let takes_socket = |command: &&clap::Command| {
        command.get_arguments().any(|argument| argument.get_id() == LISTEN_ADDRESS)
    };
    let names: Vec<_> =
        command.get_subcommands().filter(takes_socket).map(|found| found.get_name().to_owned()).collect();
    let help = format!(
        "The runner's unix socket, as unix:/path [default: APISIX_LISTEN_ADDRESS if the gateway set it, else {}]",
        default_socket(program)
    );
    for name in names {
        let help = help.clone();
        command = command
            .mut_subcommand(name, |found| found.mut_arg(LISTEN_ADDRESS, |argument| argument.help(help)));
    }
    command
}

pub(crate) fn socket_path(address: &str) -> Result<PathBuf, String> {
    let path = address.strip_prefix("unix:").ok_or("does not begin with unix:")?;
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err("the path behind unix: does not begin with /".to_owned()),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(mode),
        _ => Err("not permission bits in octal, such as 0660".to_owned()),
    }
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("no such user".to_owned()),
        Err(error) => Err(format!("looking the user up: {error}")),
    }
}

fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("no such group".to_owned()),
        Err(error) => Err(format!("looking the group up: {error}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let most = usize::try_from(MAX_TIME.as_secs()).unwrap_or(usize::MAX);
    number_between(text, 1, most).map(|seconds| Duration::from_secs(seconds as u64))
}
