//! `kube-coders check`: the command around the check.

use std::io::Write;
use std::process::ExitCode;

use thiserror::Error;
use tokio::runtime::Builder;

use crate::cli::arguments::CheckArgs;
use crate::cli::settings::checked_ways;
use crate::route::mode::Ways;
use crate::user_upstream::UserUpstream;
use apisix_plugin_runner::command::Mistakes;
use apisix_plugin_runner::command::read_input;
use apisix_plugin_runner::config::parse_conf;
use apisix_plugin_runner::{ConfError, PreparedPlugin as _, Runner};
use kube_coders_check::{self as check, CheckError, File, Options};
use kube_coders_identity::UserUpstreamConfig;

/// The exit code if an error was found.
const FOUND: u8 = 1;

/// Why nothing was checked.
#[derive(Debug, Error)]
pub(crate) enum CheckCommandError {
    #[error("{}", .0.join("\nkube-coders: "))]
    Arguments(Vec<String>),
    #[error(transparent)]
    Settings(#[from] Mistakes),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("writing the findings: {0}")]
    Write(#[from] std::io::Error),
}

/// How findings are printed.
#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
    Sarif,
}

/// Checks the files together and prints what is found. The exit code is 1 if an error is
/// among it.
pub(crate) fn check(
    args: &CheckArgs,
    runner: &Runner,
    output: &mut impl Write,
) -> Result<ExitCode, CheckCommandError> {
    let (options, ways, format) = usable(args)?;
    let files = read_all(&args.file)?;
    if args.migrate {
        output.write_all(check::migrated(&files)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = check::check(&files, options, &|name, conf| judge(runner, ways, name, conf))?;
    let text = match format {
        Format::Text => report.text(),
        Format::Json => report.json(),
        Format::Sarif => report.sarif(),
    };
    output.write_all(text.as_bytes())?;
    Ok(if report.has_errors() { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// What was typed, as usable values; one look shows every mistake.
fn usable(args: &CheckArgs) -> Result<(Options, Ways, Format), CheckCommandError> {
    let mut wrong = Vec::new();
    let mut note = |flag: &str, found: &str, why: &str| wrong.push(format!("{flag} {found:?}: {why}"));
    let format = match &*args.format {
        "text" => Some(Format::Text),
        "json" => Some(Format::Json),
        "sarif" => Some(Format::Sarif),
        _ => None,
    };
    if format.is_none() {
        note("--format", &args.format, "neither text, json nor sarif");
    }
    let forwarder = args.forwarder_address.parse().ok();
    if forwarder.is_none() {
        note("--forwarder-address", &args.forwarder_address, "not an address with a port");
    }
    let mut gateway_version = None;
    if let Some(text) = &args.gateway_version {
        match text.parse() {
            Ok(version) => gateway_version = Some(version),
            Err(why) => note("--gateway-version", text, why),
        }
    }
    match (format, forwarder, checked_ways(&args.ways)) {
        (Some(format), Some(forwarder), Ok(ways)) if wrong.is_empty() => {
            Ok((Options { mode: ways.mode, forwarder, gateway_version }, ways, format))
        }
        (_, _, Err(mistakes)) if wrong.is_empty() => Err(mistakes.into()),
        (_, _, ways) => {
            wrong.extend(ways.err().map(|mistakes| mistakes.to_string()));
            Err(CheckCommandError::Arguments(wrong))
        }
    }
}

/// What the runner would say about a plugin's conf. A conf of `user-upstream` is not
/// prepared, because its files and its issuer belong to another machine.
fn judge(runner: &Runner, ways: Ways, name: &str, conf: &str) -> Option<Result<(), String>> {
    if name != UserUpstream::NAME {
        return Some(prepared(runner, name, conf)?.map_err(|error| error.to_string()));
    }
    let judged = parse_conf::<UserUpstreamConfig>(conf.as_bytes()).map_err(|error| error.to_string());
    Some(judged.and_then(|config| {
        let way = ways.way(config.upstream.scheme(), config.upstream_mode);
        way.map(|_| ()).map_err(|error| format!("upstream: {error}"))
    }))
}

/// What a plugin of the program says about a conf, on a runtime of its own.
fn prepared(runner: &Runner, name: &str, conf: &str) -> Option<Result<(), ConfError>> {
    let prepare = || match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let judged = runtime.block_on(runner.check_conf(name, conf.as_bytes()));
            // A plugin's code may block a thread for ever.
            runtime.shutdown_background();
            judged
        }
        Err(error) => Some(Err(ConfError::whole(format!("starting a runtime: {error}")))),
    };
    let panicked = |_| Some(Err(ConfError::whole("the plugin panicked".to_owned())));
    std::thread::scope(|scope| scope.spawn(prepare).join()).unwrap_or_else(panicked)
}

/// Each file's text; one look shows all that can't be read.
fn read_all(names: &[String]) -> Result<Vec<File>, CheckCommandError> {
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for name in names {
        let text = read_input(name).map_err(|error| error.to_string()).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| "stream did not contain valid UTF-8".to_owned())
        });
        match text {
            Ok(text) => files.push(File { name: name.clone(), text }),
            Err(why) => wrong.push(format!("{}: {why}", check::shown(name))),
        }
    }
    if wrong.is_empty() { Ok(files) } else { Err(CheckCommandError::Arguments(wrong)) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::arguments::{Cli, Subcommands};

    fn typed(flags: &[&str]) -> String {
        let words = [&["kube-coders", "check", "-"], flags].concat();
        let Subcommands::Check(args) = Cli::parse_from(words).command else { panic!("check") };
        usable(&args).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn wrong_arguments_are_named_together() {
        let error =
            typed(&["--gateway-version", "new", "--forwarder-address", "9181", "--upstream-mode", "both"]);
        for part in ["--gateway-version \"new\"", "--forwarder-address \"9181\"", "--upstream-mode \"both\""]
        {
            assert!(error.contains(part), "{error}");
        }
        for (flags, expected) in [
            (
                ["--gateway-version", "new"],
                "--gateway-version \"new\": not a version, such as 3.18 or 3.18.0",
            ),
            (["--forwarder-address", "9181"], "--forwarder-address \"9181\": not an address with a port"),
        ] {
            assert_eq!(typed(&flags), expected);
        }
    }

    #[test]
    fn the_check_knows_the_runners_constants() {
        use check::runner_facts::{DECISION_HEADER, READ_TIMEOUT, STAMP_HEADER, USER_UPSTREAM};

        assert_eq!(USER_UPSTREAM, UserUpstream::NAME);
        assert_eq!(STAMP_HEADER, crate::route::stamp::STAMP_HEADER);
        assert_eq!(DECISION_HEADER, apisix_plugin_runner::direct::DECISION_HEADER);
        let Subcommands::Run(args) = Cli::parse_from(["kube-coders", "run"]).command else { panic!("run") };
        assert_eq!(humantime::parse_duration(&args.read_timeout), Ok(READ_TIMEOUT));
    }
}
