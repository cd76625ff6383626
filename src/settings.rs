//! Checked settings: what was typed, turned into values, all mistakes at once.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::unistd::{Group, User};
use tracing::level_filters::LevelFilter;

use crate::cli::{RunArgs, SocketArgs, WaysArgs};
use crate::direct::Ways;
use crate::forwarder::{ForwarderLimits, Trust};
use crate::key_file::{OperatorsKey, read_key};
use crate::resolver::{Lifetimes, NameServers};
use crate::runner::CallLimits;
use crate::socket_file::SocketFile;
use crate::upstream::{MIN_TIMEOUT, UpstreamMode};

/// Where the runner listens if nobody says anything.
const DEFAULT_SOCKET: &str = "unix:/run/kube-coders/runner.sock";

/// How long a gateway keeps a conf token if nobody says anything (GATEWAY.md,
/// PrepareConf).
const DEFAULT_CONF_EXPIRE_TIME: &str = "3600";

/// How long a call may take at most. A gateway waits 60 s for an answer
/// (GATEWAY.md, Connections), and a call that failed waits a moment for its id.
const MAX_DEADLINE: Duration = Duration::from_secs(59);

/// What an expiry may be at most, so that no sum of times overflows.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long is waited for a workspace at most.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// What a lifetime of names may be at most. After a day an address is anybody's.
const MAX_NAME_TIME: Duration = Duration::from_secs(86_400);

/// What a gateway says in the environment of a runner that it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// `APISIX_LISTEN_ADDRESS`
    pub(crate) listen_address: Option<String>,
    /// `APISIX_CONF_EXPIRE_TIME`
    pub(crate) conf_expire_time: Option<String>,
}

/// How the process runs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) socket: SocketFile,
    /// Whether the gateway started this process, and so says where it listens.
    pub(crate) spawned: bool,
    /// Whether this process is to start the one that serves.
    pub(crate) is_keeper: bool,
    /// Whose workers are served whatever their user, if another process keeps this one;
    /// 0 for nobody's.
    pub(crate) kept_for: Option<i32>,
    pub(crate) allowed_uids: BTreeSet<u32>,
    pub(crate) conf_expire_time: Duration,
    pub(crate) max_connections: usize,
    pub(crate) max_confs: usize,
    pub(crate) call: CallLimits,
    pub(crate) drain: Duration,
    pub(crate) forwarder: SocketAddr,
    pub(crate) upstream_mode: UpstreamMode,
    pub(crate) forwarder_limits: ForwarderLimits,
    pub(crate) workspace_trust: Trust,
    /// `None` for the one beside the socket.
    pub(crate) stamp_key: Option<OperatorsKey>,
    pub(crate) stamp_lifetime: Duration,
    pub(crate) name_servers: NameServers,
    pub(crate) name_lifetimes: Lifetimes,
    pub(crate) log_level: LevelFilter,
}

/// Everything that is wrong with the settings, one a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    pub(crate) fn one(mistake: String) -> Self {
        Self(vec![mistake])
    }
}

/// Checks values one by one and remembers what was wrong.
#[derive(Default)]
struct Checker(Vec<String>);

impl Checker {
    /// The value, or `None` after noting the mistake.
    fn check<T>(&mut self, name: &str, text: &str, checked: Result<T, String>) -> Option<T> {
        checked.map_err(|why| self.0.push(format!("{name} {text:?}: {why}"))).ok()
    }

    fn count(&mut self, name: &str, text: &str, most: usize) -> Option<usize> {
        self.check(name, text, number_between(text, 1, most))
    }

    fn duration(&mut self, name: &str, text: &str, most: Duration) -> Option<Duration> {
        self.check(name, text, duration_up_to(text, most))
    }
}

impl Settings {
    pub(crate) fn ways(&self) -> Ways {
        ways(self.upstream_mode, &self.workspace_trust)
    }

    pub(crate) fn check(args: &RunArgs, environment: &Environment) -> Result<Self, Mistakes> {
        let mut checker = Checker::default();
        let settings = Self::check_all(args, environment, &mut checker);
        match settings {
            Some(settings) if checker.0.is_empty() => Ok(settings),
            _ => Err(Mistakes(checker.0)),
        }
    }

    fn check_all(args: &RunArgs, environment: &Environment, checker: &mut Checker) -> Option<Self> {
        let (name, address, spawned) = listen_address(&args.socket, environment);
        let path = checker.check(name, address, socket_path(address));
        let (name, expire) = match (&args.conf_expire_time, &environment.conf_expire_time) {
            (Some(typed), _) => ("--conf-expire-time", typed.as_str()),
            (None, Some(set)) => ("APISIX_CONF_EXPIRE_TIME", set.as_str()),
            (None, None) => ("--conf-expire-time", DEFAULT_CONF_EXPIRE_TIME),
        };
        let expire = checker.check(name, expire, seconds(expire));
        let allowed_uids = checked_each(checker, "--allow-uid", &args.allow_uid, |text| {
            text.parse::<u32>().map_err(|_| "not a user's number".to_owned())
        });
        let owner = optional(checker, "--socket-owner", args.socket_owner.as_deref(), user);
        let group = optional(checker, "--socket-group", args.socket_group.as_deref(), group);
        let mode = match &args.socket_mode {
            Some(text) => checker.check("--socket-mode", text, mode(text)),
            None => Some(default_mode(args, spawned)),
        };
        let max_connections = checker.count("--max-connections", &args.max_connections, 1 << 20);
        let max_confs = checker.count("--max-confs", &args.max_confs, 1 << 20);
        let deadline = checker.duration("--call-deadline", &args.call_deadline, MAX_DEADLINE);
        let questions = checker.count("--max-questions", &args.max_questions, 1 << 16);
        let bytes = checker.count("--max-call-bytes", &args.max_call_bytes, 1 << 28);
        let drain = checker.duration("--drain-deadline", &args.drain_deadline, MAX_TIME);
        let forwarder =
            checker.check("--forwarder-address", &args.forwarder_address, loopback(&args.forwarder_address));
        let upstream_mode = upstream_mode(checker, &args.ways);
        let forwarder_limits = forwarder_limits(checker, args);
        let workspace_trust = workspace_trust(checker, &args.ways);
        let stamp_key = match &args.stamp_key_file {
            Some(file) => {
                let key = read_key(Path::new(file)).map_err(|error| error.to_string());
                checker.check("--stamp-key-file", file, key).map(Some)
            }
            None => Some(None),
        };
        let stamp_lifetime = checker.duration("--stamp-lifetime", &args.stamp_lifetime, MAX_TIME);
        let stamp_lifetime = stamp_lifetime.and_then(|lifetime| {
            let long_enough = if lifetime < Duration::from_secs(1) {
                Err("less than a second".to_owned())
            } else {
                Ok(lifetime)
            };
            checker.check("--stamp-lifetime", &args.stamp_lifetime, long_enough)
        });
        let servers = checked_name_servers(checker, &args.dns_server);
        let name_lifetimes = name_lifetimes(checker, args);
        let log_level = checker.check("--log-level", &args.log_level, log_level(&args.log_level));
        Some(Self {
            socket: SocketFile { path: path?, mode: mode?, owner: owner?, group: group? },
            spawned,
            is_keeper: (spawned || args.drain_apart) && args.kept_for.is_none(),
            kept_for: args.kept_for,
            allowed_uids: allowed_uids?.into_iter().collect(),
            conf_expire_time: expire?,
            max_connections: max_connections?,
            max_confs: max_confs?,
            call: CallLimits { deadline: deadline?, questions: questions?, bytes: bytes? },
            drain: drain?,
            forwarder: forwarder?,
            upstream_mode: upstream_mode?,
            forwarder_limits: forwarder_limits?,
            workspace_trust: workspace_trust?,
            stamp_key: stamp_key?,
            stamp_lifetime: stamp_lifetime?,
            name_servers: servers?,
            name_lifetimes: name_lifetimes?,
            log_level: log_level?,
        })
    }
}

/// Whom a command asks for names.
pub(crate) fn name_servers(typed: &[String]) -> Result<NameServers, Mistakes> {
    let mut checker = Checker::default();
    checked_name_servers(&mut checker, typed).ok_or(Mistakes(checker.0))
}

/// How a command takes it that requests get to their workspaces.
pub(crate) fn checked_ways(typed: &WaysArgs) -> Result<Ways, Mistakes> {
    let mut checker = Checker::default();
    let (mode, trust) = (upstream_mode(&mut checker, typed), workspace_trust(&mut checker, typed));
    let ways = mode.zip(trust).map(|(mode, trust)| ways(mode, &trust));
    ways.ok_or(Mistakes(checker.0))
}

fn ways(mode: UpstreamMode, trust: &Trust) -> Ways {
    Ways { mode, trusts_anybody: matches!(trust, Trust::Anybody) }
}

fn upstream_mode(checker: &mut Checker, args: &WaysArgs) -> Option<UpstreamMode> {
    let mode = args.upstream_mode.parse().map_err(|_| "neither forward nor direct".to_owned());
    checker.check("--upstream-mode", &args.upstream_mode, mode)
}

fn workspace_trust(checker: &mut Checker, args: &WaysArgs) -> Option<Trust> {
    checker.check("--workspace-ca", &args.workspace_ca, trust(&args.workspace_ca))
}

fn checked_name_servers(checker: &mut Checker, typed: &[String]) -> Option<NameServers> {
    let servers = checked_each(checker, "--dns-server", typed, |text| {
        text.parse::<SocketAddr>().map_err(|_| "not an address with a port, such as 10.96.0.10:53".to_owned())
    });
    match servers? {
        none if none.is_empty() => Some(NameServers::System),
        listed => Some(NameServers::Listed(listed)),
    }
}

/// The path of the socket of a runner that is to be called.
pub(crate) fn checked_socket_path(args: &SocketArgs, environment: &Environment) -> Result<PathBuf, Mistakes> {
    let (name, address, _) = listen_address(args, environment);
    socket_path(address).map_err(|why| Mistakes::one(format!("{name} {address:?}: {why}")))
}

/// Who says where the runner listens, what, and whether that is a gateway that
/// started us.
fn listen_address<'a>(args: &'a SocketArgs, environment: &'a Environment) -> (&'static str, &'a str, bool) {
    match (&args.listen_address, &environment.listen_address) {
        (Some(typed), _) => ("--listen-address", typed, false),
        (None, Some(set)) => ("APISIX_LISTEN_ADDRESS", set, true),
        (None, None) => ("--listen-address", DEFAULT_SOCKET, false),
    }
}

fn socket_path(address: &str) -> Result<PathBuf, String> {
    let path = address.strip_prefix("unix:").ok_or("does not begin with unix:")?;
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err("the path behind unix: does not begin with /".to_owned()),
    }
}

fn default_mode(args: &RunArgs, spawned: bool) -> u32 {
    if spawned || !args.allow_uid.is_empty() {
        // Workers run as another user, and to connect takes the right to write.
        0o666
    } else if args.socket_group.is_some() {
        0o660
    } else {
        0o600
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

fn number_between(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) && !text.starts_with('+') => Ok(number),
        _ => Err(format!("not a number from {least} to {most}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let most = usize::try_from(MAX_TIME.as_secs()).unwrap_or(usize::MAX);
    number_between(text, 1, most).map(|seconds| Duration::from_secs(seconds as u64))
}

fn duration_up_to(text: &str, most: Duration) -> Result<Duration, String> {
    match duration_or_none(text, most)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration if duration < MIN_TIMEOUT => {
            Err(format!("less than {}", humantime::format_duration(MIN_TIMEOUT)))
        }
        duration => Ok(duration),
    }
}

/// A duration that may be nothing.
fn duration_or_none(text: &str, most: Duration) -> Result<Duration, String> {
    let duration = humantime::Duration::from_str(text)
        .map_err(|_| "not a duration with its unit, such as 5s, 800ms or 2m".to_owned())?;
    match *duration {
        duration if duration > most => Err(format!("more than {}", humantime::format_duration(most))),
        duration => Ok(duration),
    }
}

fn forwarder_limits(checker: &mut Checker, args: &RunArgs) -> Option<ForwarderLimits> {
    let max_connections =
        checker.count("--max-forwarder-connections", &args.max_forwarder_connections, 1 << 20);
    let max_of_subject = checker.count("--max-subject-connections", &args.max_subject_connections, 1 << 20);
    let mut time = |name, text| checker.duration(name, text, MAX_WAIT);
    let head = time("--head-timeout", &args.head_timeout);
    let connect = time("--connect-timeout", &args.connect_timeout);
    let send = time("--send-timeout", &args.send_timeout);
    let read = time("--read-timeout", &args.read_timeout);
    let idle = time("--idle-timeout", &args.idle_timeout);
    let max_idle = checker.count("--max-idle-connections", &args.max_idle_connections, 1 << 20);
    let max_requests = checker.count("--max-connection-requests", &args.max_connection_requests, 1 << 30);
    Some(ForwarderLimits {
        max_connections: max_connections?,
        max_of_subject: max_of_subject?,
        head: head?,
        connect: connect?,
        send: send?,
        read: read?,
        idle: idle?,
        max_idle: max_idle?,
        max_requests: u32::try_from(max_requests?).ok()?,
    })
}

fn name_lifetimes(checker: &mut Checker, args: &RunArgs) -> Option<Lifetimes> {
    let min_ttl = checker.duration("--dns-min-ttl", &args.dns_min_ttl, MAX_NAME_TIME);
    let max_ttl = checker.duration("--dns-max-ttl", &args.dns_max_ttl, MAX_NAME_TIME);
    let stale = duration_or_none(&args.dns_stale, MAX_NAME_TIME);
    let stale = checker.check("--dns-stale", &args.dns_stale, stale);
    let (min_ttl, max_ttl) = (min_ttl?, max_ttl?);
    let in_order = match min_ttl <= max_ttl {
        true => Ok(()),
        false => Err(format!("more than --dns-max-ttl, which is {}", args.dns_max_ttl)),
    };
    checker.check("--dns-min-ttl", &args.dns_min_ttl, in_order)?;
    Some(Lifetimes { min_ttl, max_ttl, stale: stale? })
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "not an address with a port, such as 127.0.0.1:9181".to_owned())?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err("not a loopback address: only the gateway beside us may reach the forwarder".to_owned()),
    }
}

fn trust(text: &str) -> Result<Trust, String> {
    match text {
        "system" => Ok(Trust::System),
        "none" => Ok(Trust::Anybody),
        path => {
            let read = Trust::read(Path::new(path));
            read.map_err(|error| format!("neither `system` nor `none`, and as a PEM file: {error}"))
        }
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" | "warn" | "info" | "debug" | "trace" => Ok(text.parse().unwrap_or(LevelFilter::INFO)),
        _ => Err("not one of error, warn, info, debug, trace".to_owned()),
    }
}

fn optional<T>(
    checker: &mut Checker,
    name: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Option<T>> {
    match text {
        Some(text) => checker.check(name, text, parse(text)).map(Some),
        None => Some(None),
    }
}

/// `None` where one of them is wrong; all that are wrong are noted.
fn checked_each<T>(
    checker: &mut Checker,
    name: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let checked: Vec<Option<T>> = texts.iter().map(|text| checker.check(name, text, parse(text))).collect();
    checked.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Subcommands};

    fn check(args: &[&str], environment: &Environment) -> Result<Settings, String> {
        let cli = Cli::try_parse_from(["kube-coders", "run"].iter().chain(args)).expect("typed rightly");
        let Subcommands::Run(args) = cli.command else { panic!("another command") };
        Settings::check(&args, environment).map_err(|mistakes| mistakes.to_string())
    }

    fn spawned() -> Environment {
        Environment {
            listen_address: Some("unix:/usr/local/apisix/conf/apisix-1.sock".to_owned()),
            conf_expire_time: Some("10".to_owned()),
        }
    }

    #[test]
    fn defaults_fit_each_way_of_running() {
        let beside = check(&[], &Environment::default()).expect("defaults");
        assert_eq!(beside.socket.path, Path::new("/run/kube-coders/runner.sock"));
        assert_eq!((beside.spawned, beside.socket.mode), (false, 0o600));
        assert_eq!(beside.conf_expire_time, Duration::from_secs(3600));
        assert_eq!(beside.call.deadline, Duration::from_secs(5));
        assert_eq!(beside.forwarder, "127.0.0.1:9181".parse().expect("an address"));
        assert_eq!(beside.name_servers, NameServers::System);
        assert_eq!(beside.name_lifetimes, Lifetimes::default());

        let by_gateway = check(&[], &spawned()).expect("as APISIX starts it");
        assert_eq!(by_gateway.socket.path, Path::new("/usr/local/apisix/conf/apisix-1.sock"));
        assert_eq!((by_gateway.spawned, by_gateway.socket.mode), (true, 0o666));
        assert_eq!(by_gateway.conf_expire_time, Duration::from_secs(10));

        let flagged = check(&["--listen-address", "unix:/a", "--conf-expire-time", "7"], &spawned())
            .expect("flags win");
        assert_eq!((flagged.socket.path.as_path(), flagged.spawned), (Path::new("/a"), false));
        assert_eq!(flagged.conf_expire_time, Duration::from_secs(7));

        let mode = |args: &[&str]| check(args, &Environment::default()).expect("right").socket.mode;
        assert_eq!(mode(&["--allow-uid", "65534"]), 0o666);
        assert_eq!(mode(&["--socket-group", "0"]), 0o660);
        assert_eq!(mode(&["--socket-group", "root", "--socket-mode", "0620"]), 0o620);
    }

    #[test]
    fn the_lifetimes_of_names_are_set_one_by_one() {
        let lifetimes =
            |args: &[&str]| check(args, &Environment::default()).map(|right| right.name_lifetimes);
        let set = lifetimes(&["--dns-min-ttl", "30s", "--dns-max-ttl", "30s", "--dns-stale", "0s"]);
        let half_a_minute = Duration::from_secs(30);
        let expected = Lifetimes { min_ttl: half_a_minute, max_ttl: half_a_minute, stale: Duration::ZERO };
        assert_eq!(set, Ok(expected));
        let mistakes = lifetimes(&["--dns-min-ttl", "0s", "--dns-max-ttl", "2 days", "--dns-stale", "long"]);
        let expected = [
            "--dns-min-ttl \"0s\": must be more than nothing",
            "--dns-max-ttl \"2 days\": more than 1day",
            "--dns-stale \"long\": not a duration with its unit, such as 5s, 800ms or 2m",
        ];
        assert_eq!(mistakes, Err(expected.join("\n")));
    }

    #[test]
    fn one_start_shows_every_mistake_with_its_flag() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        std::fs::write(&key, [1; 31]).expect("written");
        let key = key.to_str().expect("a path in UTF-8");
        let environment = Environment { conf_expire_time: Some("soon".to_owned()), ..Environment::default() };
        let args = [
            "--listen-address",
            "tcp:1",
            "--socket-mode",
            "999",
            "--socket-owner",
            "no such user",
            "--socket-group",
            "no such group",
            "--allow-uid",
            "nobody",
            "--allow-uid",
            "-1",
            "--max-connections",
            "0",
            "--max-confs",
            "many",
            "--call-deadline",
            "2m",
            "--max-questions",
            "+1",
            "--max-call-bytes",
            "1e9",
            "--drain-deadline",
            "0s",
            "--forwarder-address",
            "0.0.0.0:9181",
            "--max-forwarder-connections",
            "",
            "--stamp-key-file",
            key,
            "--stamp-lifetime",
            "1ms",
            "--dns-server",
            "localhost",
            "--dns-min-ttl",
            "6m",
            "--dns-stale",
            "25h",
            "--log-level",
            "loud",
        ];
        let args: Vec<&str> = args.into_iter().collect();
        // clap takes what begins with a hyphen for a flag, unless it stands behind an equals sign.
        let args: Vec<String> = args.chunks(2).map(|pair| pair.join("=")).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mistakes = check(&args, &environment).expect_err("all wrong");
        let expected = [
            "--listen-address \"tcp:1\": does not begin with unix:".to_owned(),
            "APISIX_CONF_EXPIRE_TIME \"soon\": not a number from 1 to 315360000".to_owned(),
            "--allow-uid \"nobody\": not a user's number".to_owned(),
            "--allow-uid \"-1\": not a user's number".to_owned(),
            "--socket-owner \"no such user\": no such user".to_owned(),
            "--socket-group \"no such group\": no such group".to_owned(),
            "--socket-mode \"999\": not permission bits in octal, such as 0660".to_owned(),
            "--max-connections \"0\": not a number from 1 to 1048576".to_owned(),
            "--max-confs \"many\": not a number from 1 to 1048576".to_owned(),
            "--call-deadline \"2m\": more than 59s".to_owned(),
            "--max-questions \"+1\": not a number from 1 to 65536".to_owned(),
            "--max-call-bytes \"1e9\": not a number from 1 to 268435456".to_owned(),
            "--drain-deadline \"0s\": must be more than nothing".to_owned(),
            "--forwarder-address \"0.0.0.0:9181\": not a loopback address: only the gateway beside us may reach the forwarder".to_owned(),
            "--max-forwarder-connections \"\": not a number from 1 to 1048576".to_owned(),
            format!("--stamp-key-file {key:?}: 31 bytes, less than 32"),
            "--stamp-lifetime \"1ms\": less than a second".to_owned(),
            "--dns-server \"localhost\": not an address with a port, such as 10.96.0.10:53".to_owned(),
            "--dns-stale \"25h\": more than 1day".to_owned(),
            "--dns-min-ttl \"6m\": more than --dns-max-ttl, which is 5m".to_owned(),
            "--log-level \"loud\": not one of error, warn, info, debug, trace".to_owned(),
        ];
        assert_eq!(mistakes.lines().collect::<Vec<_>>(), expected);
    }
}
