//! The settings of the product: what was typed, turned into values, with all mistakes at
//! once.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use apisix_plugin_runner::command::{Checker, Environment, LogFilter, Mistakes};
use apisix_plugin_runner::{HostName, Settings, UpstreamMode};

use crate::cli::arguments::{RunCommandArgs, WaysArgs};
use crate::forwarder::{CertificateTrust, ForwarderLimits};
use crate::resolver::{AddressPolicy, Lifetimes, NameServers, SearchDomains};
use crate::route::key_file::{ConfiguredKey, KeyError, read_key};
use crate::route::mode::Ways;

/// The longest time that a stamp may be valid, so that no sum of times overflows.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The longest wait for a workspace.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// The longest time for which keys serve without a word of their issuer.
const MAX_KEY_AGE: Duration = Duration::from_secs(30 * 86_400);

/// The longest lifetime of a name's address. After a day it may belong to another
/// workspace.
const MAX_NAME_TIME: Duration = Duration::from_secs(86_400);

/// How the process runs.
#[derive(Debug)]
pub(crate) struct ProgramSettings {
    pub(crate) runner: Settings,
    pub(crate) log_filter: LogFilter,
    /// Whether the gateway started this process. Then it also says where to listen.
    pub(crate) spawned: bool,
    /// Whether this process is to start the process that serves.
    pub(crate) is_keeper: bool,
    /// The gateway's process, if a keeper started this one; 0 for none. Its workers are
    /// served whatever their user.
    pub(crate) kept_for: Option<i32>,
    pub(crate) forwarder: SocketAddr,
    pub(crate) upstream_mode: UpstreamMode,
    pub(crate) forwarder_limits: ForwarderLimits,
    pub(crate) workspace_trust: CertificateTrust,
    /// `None` for the key next to the socket.
    pub(crate) stamp_key: Option<ConfiguredKey>,
    pub(crate) stamp_lifetime: Duration,
    /// The key of subjects' digests, and former ones; empty for the key next to the socket.
    pub(crate) subject_keys: Vec<SubjectKeyFile>,
    /// Whether lines of refusals have the subject and the workspace.
    pub(crate) logs_subjects: bool,
    /// How long an issuer's last keys serve while it does not answer.
    pub(crate) max_key_age: Duration,
    pub(crate) name_servers: NameServers,
    pub(crate) name_lifetimes: Lifetimes,
    /// The domains of workspaces' names of a single label.
    pub(crate) search_domains: SearchDomains,
    /// Which addresses workspaces may have.
    pub(crate) address_policy: AddressPolicy,
}

impl ProgramSettings {
    pub(crate) fn ways(&self) -> Ways {
        ways(self.upstream_mode, &self.workspace_trust)
    }

    pub(crate) fn check(args: &RunCommandArgs, environment: &Environment) -> Result<Self, Mistakes> {
        let mut checker = Checker::default();
        let settings = Self::check_all(args, environment, &mut checker);
        checker.finish(settings)
    }

    fn check_all(args: &RunCommandArgs, environment: &Environment, checker: &mut Checker) -> Option<Self> {
        let runner = args.runner.check(environment, checker);
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
        let stamp_lifetime = stamp_lifetime(checker, &args.stamp_lifetime);
        let subject_keys = subject_keys(checker, &args.subject_key_file);
        let max_key_age = checker.duration("--keys-stale", &args.keys_stale, MAX_KEY_AGE);
        let servers = checked_name_servers(checker, &args.dns_server);
        let search_domains = checked_search_domains(checker, &args.search_domain);
        let address_policy = checked_address_policy(checker, &args.allow_address);
        let name_lifetimes = name_lifetimes(checker, args);
        let spawned = args.runner.socket.is_spawned(environment);
        let (runner, log_filter) = runner?;
        Some(Self {
            runner,
            log_filter,
            spawned,
            is_keeper: (spawned || args.drain_apart) && args.kept_for.is_none(),
            kept_for: args.kept_for,
            forwarder: forwarder?,
            upstream_mode: upstream_mode?,
            forwarder_limits: forwarder_limits?,
            workspace_trust: workspace_trust?,
            stamp_key: stamp_key?,
            stamp_lifetime: stamp_lifetime?,
            subject_keys: subject_keys?,
            logs_subjects: args.log_subjects,
            max_key_age: max_key_age?,
            name_servers: servers?,
            name_lifetimes: name_lifetimes?,
            search_domains: search_domains?,
            address_policy: address_policy?,
        })
    }
}

/// The key of subjects' digests in its file.
#[derive(Clone, Debug)]
pub(crate) enum SubjectKeyFile {
    Read(ConfiguredKey),
    /// The start makes it.
    Missing(PathBuf),
}

fn subject_keys(checker: &mut Checker, files: &[String]) -> Option<Vec<SubjectKeyFile>> {
    let current = files.first();
    checker.each("--subject-key-file", files, |file| match read_key(Path::new(file)) {
        Ok(key) => Ok(SubjectKeyFile::Read(key)),
        // A former key can only be one that was.
        Err(KeyError::Io(error))
            if error.kind() == ErrorKind::NotFound && Some(file) == current.map(String::as_str) =>
        {
            Ok(SubjectKeyFile::Missing(file.into()))
        }
        Err(error) => Err(error.to_string()),
    })
}

fn stamp_lifetime(checker: &mut Checker, text: &str) -> Option<Duration> {
    let lifetime = checker.duration("--stamp-lifetime", text, MAX_TIME)?;
    let long_enough = match lifetime < Duration::from_secs(1) {
        true => Err("less than a second".to_owned()),
        false => Ok(lifetime),
    };
    checker.check("--stamp-lifetime", text, long_enough)
}

/// The name servers that a command asks.
pub(crate) fn name_servers(typed: &[String]) -> Result<NameServers, Mistakes> {
    let mut checker = Checker::default();
    let servers = checked_name_servers(&mut checker, typed);
    checker.finish(servers)
}

/// The domains in which a command looks for workspaces' names of a single label.
pub(crate) fn search_domains(typed: &[String]) -> Result<SearchDomains, Mistakes> {
    let mut checker = Checker::default();
    let domains = checked_search_domains(&mut checker, typed);
    checker.finish(domains)
}

fn checked_search_domains(checker: &mut Checker, typed: &[String]) -> Option<SearchDomains> {
    let domains = checker.each("--search-domain", typed, |text| {
        let name = text.strip_suffix('.').unwrap_or(text).parse::<HostName>();
        let name = name.map_err(|error| error.to_string())?;
        if name.as_ip().is_some() { Err("an address, and no domain".to_owned()) } else { Ok(name) }
    });
    domains.map(SearchDomains::Listed)
}

/// Which addresses of workspaces a command allows.
pub(crate) fn address_policy(typed: &[String]) -> Result<AddressPolicy, Mistakes> {
    let mut checker = Checker::default();
    let policy = checked_address_policy(&mut checker, typed);
    checker.finish(policy)
}

fn checked_address_policy(checker: &mut Checker, typed: &[String]) -> Option<AddressPolicy> {
    let networks = checker.each("--allow-address", typed, |text| {
        let alone = || text.parse::<IpAddr>().map(IpNet::from);
        let network = text.parse::<IpNet>().or_else(|_| alone());
        network.map_err(|_| "not a network, such as 127.0.0.0/8, and not an address".to_owned())
    });
    networks.map(AddressPolicy::allowing)
}

/// How a command supposes that requests get to their workspaces.
pub(crate) fn checked_ways(typed: &WaysArgs) -> Result<Ways, Mistakes> {
    let mut checker = Checker::default();
    let (mode, trust) = (upstream_mode(&mut checker, typed), workspace_trust(&mut checker, typed));
    checker.finish(mode.zip(trust).map(|(mode, trust)| ways(mode, &trust)))
}

fn ways(mode: UpstreamMode, trust: &CertificateTrust) -> Ways {
    Ways { mode, accepts_any_certificate: matches!(trust, CertificateTrust::Any) }
}

fn upstream_mode(checker: &mut Checker, args: &WaysArgs) -> Option<UpstreamMode> {
    let mode = args.upstream_mode.parse().map_err(|_| "neither forward nor direct".to_owned());
    checker.check("--upstream-mode", &args.upstream_mode, mode)
}

fn workspace_trust(checker: &mut Checker, args: &WaysArgs) -> Option<CertificateTrust> {
    checker.check("--workspace-ca", &args.workspace_ca, trust(&args.workspace_ca))
}

fn checked_name_servers(checker: &mut Checker, typed: &[String]) -> Option<NameServers> {
    let servers = checker.each("--dns-server", typed, |text| {
        text.parse::<SocketAddr>().map_err(|_| "not an address with a port, such as 10.96.0.10:53".to_owned())
    });
    match servers? {
        none if none.is_empty() => Some(NameServers::System),
        listed => Some(NameServers::Listed(listed)),
    }
}

fn forwarder_limits(checker: &mut Checker, args: &RunCommandArgs) -> Option<ForwarderLimits> {
    let max_connections =
        checker.count("--max-forwarder-connections", &args.max_forwarder_connections, 1 << 20);
    let max_of_subject = checker.count("--max-subject-connections", &args.max_subject_connections, 1 << 20);
    let mut time = |name, text| checker.duration(name, text, MAX_WAIT);
    let head = time("--head-timeout", &args.head_timeout);
    let connect = time("--connect-timeout", &args.connect_timeout);
    let send = time("--send-timeout", &args.send_timeout);
    let read = time("--read-timeout", &args.read_timeout);
    let idle = time("--idle-timeout", &args.idle_timeout);
    let tunnel = checker.duration_or_zero("--max-tunnel-time", &args.max_tunnel_time, MAX_TIME);
    let ping = checker.duration_or_zero("--ping-interval", &args.ping_interval, MAX_TIME);
    let max_idle = checker.count("--max-idle-connections", &args.max_idle_connections, 1 << 20);
    let max_requests = checker.count("--max-connection-requests", &args.max_connection_requests, 1 << 30);
    Some(ForwarderLimits {
        max_connections: max_connections?,
        max_of_subject: max_of_subject?,
        head: head?,
        first_byte: ForwarderLimits::default().first_byte,
        connect: connect?,
        send: send?,
        read: read?,
        idle: idle?,
        tunnel: tunnel.map(|most| Some(most).filter(|most| !most.is_zero()))?,
        ping: ping.map(|interval| Some(interval).filter(|interval| !interval.is_zero()))?,
        max_idle: max_idle?,
        max_requests: u32::try_from(max_requests?).ok()?,
    })
}

fn name_lifetimes(checker: &mut Checker, args: &RunCommandArgs) -> Option<Lifetimes> {
    let min_ttl = checker.duration("--dns-min-ttl", &args.dns_min_ttl, MAX_NAME_TIME);
    let max_ttl = checker.duration("--dns-max-ttl", &args.dns_max_ttl, MAX_NAME_TIME);
    let stale = checker.duration_or_zero("--dns-stale", &args.dns_stale, MAX_NAME_TIME);
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
        false => {
            Err("not a loopback address: only the gateway on this machine may reach the forwarder".to_owned())
        }
    }
}

fn trust(text: &str) -> Result<CertificateTrust, String> {
    match text {
        "system" => Ok(CertificateTrust::System),
        "none" => Ok(CertificateTrust::Any),
        path => {
            let read = CertificateTrust::read(Path::new(path));
            read.map_err(|error| format!("neither `system` nor `none`, and as a PEM file: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::arguments::{Cli, Subcommands};

    fn check(args: &[&str], environment: &Environment) -> Result<ProgramSettings, String> {
        let cli = Cli::try_parse_from(["kube-coders", "run"].iter().chain(args)).expect("typed rightly");
        let Subcommands::Run(args) = cli.command else { panic!("another command") };
        ProgramSettings::check(&args, environment).map_err(|mistakes| mistakes.to_string())
    }

    fn spawned() -> Environment {
        Environment {
            program: "kube-coders",
            listen_address: Some("unix:/usr/local/apisix/conf/apisix-1.sock".to_owned()),
            conf_expire_time: Some("10".to_owned()),
        }
    }

    #[test]
    fn defaults_fit_each_way_of_running() {
        let by_default = check(&[], &Environment::without_gateway("kube-coders")).expect("defaults");
        assert_eq!(by_default.runner.socket_path(), Path::new("/run/kube-coders/runner.sock"));
        assert!(!by_default.spawned);
        assert_eq!(by_default.forwarder, "127.0.0.1:9181".parse().expect("an address"));
        assert_eq!(by_default.name_servers, NameServers::System);
        assert_eq!(by_default.name_lifetimes, Lifetimes::default());

        let by_gateway = check(&[], &spawned()).expect("as APISIX starts it");
        assert_eq!(by_gateway.runner.socket_path(), Path::new("/usr/local/apisix/conf/apisix-1.sock"));
        assert!(by_gateway.spawned);

        let flagged = check(&["--listen-address", "unix:/a", "--conf-expire-time", "7"], &spawned())
            .expect("flags win");
        assert_eq!((flagged.runner.socket_path(), flagged.spawned), (Path::new("/a"), false));
    }

    #[test]
    fn the_lifetimes_of_names_are_set_one_by_one() {
        let lifetimes = |args: &[&str]| {
            check(args, &Environment::without_gateway("kube-coders")).map(|right| right.name_lifetimes)
        };
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
        let environment = Environment {
            conf_expire_time: Some("soon".to_owned()),
            ..Environment::without_gateway("kube-coders")
        };
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
            "--subject-key-file",
            "/dev/null",
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
        // clap takes a value that begins with a hyphen for a flag, unless an equals sign precedes it.
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
            "--log-level \"loud\": not a level (error, warn, info, debug, trace), a directive such as hello=debug, or a list of them separated by commas".to_owned(),
            "--forwarder-address \"0.0.0.0:9181\": not a loopback address: only the gateway on this machine may reach the forwarder".to_owned(),
            "--max-forwarder-connections \"\": not a number from 1 to 1048576".to_owned(),
            format!("--stamp-key-file {key:?}: 31 bytes, less than 32"),
            "--stamp-lifetime \"1ms\": less than a second".to_owned(),
            "--subject-key-file \"/dev/null\": not a file".to_owned(),
            "--dns-server \"localhost\": not an address with a port, such as 10.96.0.10:53".to_owned(),
            "--dns-stale \"25h\": more than 1day".to_owned(),
            "--dns-min-ttl \"6m\": more than --dns-max-ttl, which is 5m".to_owned(),
        ];
        assert_eq!(mistakes.lines().collect::<Vec<_>>(), expected);
    }
}
