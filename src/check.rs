//! `kube-coders check`: what is wrong or dangerous in a gateway's configuration.
//!
//! Files become documents, documents a gateway's objects, objects its routes with all that
//! is in force on them; the rooms below look at those one after the other.

mod calls;
mod destination;
mod document;
mod finding;
mod identity;
mod ingress;
mod login;
mod lua;
mod migrate;
mod objects;
mod process;
mod reading;
mod report;
mod route;
mod rule;
mod secrets;
#[cfg(test)]
mod tests;
mod together;
mod version;

use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use thiserror::Error;

use crate::cli::CheckArgs;
use crate::direct::Ways;
use crate::plugin::Registry;
use crate::settings::{Mistakes, checked_ways};
use document::{Node, Root};
use finding::{Finding, Findings};
use objects::Objects;
use report::shown;
use route::Route;
use rule::{Rule, Severity};
use version::Version;

/// How much of a file is read, in bytes: more than a gateway's configuration has.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The exit code where an error was found.
const FOUND: u8 = 1;

/// Why nothing can be checked.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    #[error("{}", .0.join("\nkube-coders: "))]
    Files(Vec<String>),
    #[error(transparent)]
    Settings(#[from] Mistakes),
    #[error("--migrate: no route has a function that chooses the upstream")]
    NothingToMigrate,
    #[error("writing the findings: {0}")]
    Write(#[from] std::io::Error),
}

/// What the runner and the gateway are that the files are for.
struct Checked<'r> {
    registry: &'r Registry,
    ways: Ways,
    forwarder: SocketAddr,
    gateway_version: Option<Version>,
}

/// A file's name and its text.
type Text = (String, String);

/// How findings are printed.
enum Format {
    Text,
    Json,
    Sarif,
}

impl Format {
    fn of(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            "sarif" => Some(Self::Sarif),
            _ => None,
        }
    }
}

/// Checks the files together and prints what is found. The exit code is 1 where an error
/// is among it.
pub(crate) fn check(
    args: &CheckArgs,
    registry: &Registry,
    output: &mut impl Write,
) -> Result<ExitCode, CheckError> {
    let (checked, format) = Checked::new(args, registry)?;
    let texts = read_all(&args.file)?;
    if args.migrate {
        output.write_all(migrated(&texts)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = checked.findings(&texts)?;
    let text = match format {
        Format::Text => report::text(&findings, texts.len()),
        Format::Json => report::json(&findings),
        Format::Sarif => report::sarif(&findings),
    };
    output.write_all(text.as_bytes())?;
    let is_error = |finding: &Finding| finding.rule.facts().severity == Severity::Error;
    Ok(if findings.iter().any(is_error) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// Each file's text; one look shows all that can't be read.
fn read_all(files: &[String]) -> Result<Vec<Text>, CheckError> {
    let (texts, wrong): (Vec<_>, Vec<_>) = files.iter().map(|file| read(file)).partition(Result::is_ok);
    match wrong.is_empty() {
        true => Ok(files.iter().cloned().zip(texts.into_iter().flatten()).collect()),
        false => Err(CheckError::Files(wrong.into_iter().filter_map(Result::err).collect())),
    }
}

/// Reads a file, or standard input where it is `-`.
fn read(file: &str) -> Result<String, String> {
    let wrong = |why: String| format!("{}: {why}", shown(file));
    let source: Box<dyn std::io::Read> = match file {
        "-" => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).map_err(|error| wrong(error.to_string()))?),
    };
    let mut text = String::new();
    source.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    match text.len() as u64 > MAX_FILE {
        true => Err(wrong(format!("more than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

impl<'r> Checked<'r> {
    /// What was typed; one look shows every mistake.
    fn new(args: &CheckArgs, registry: &'r Registry) -> Result<(Self, Format), CheckError> {
        let mut wrong = Vec::new();
        let mut told = |flag: &str, found: &str, why: &str| wrong.push(format!("{flag} {found:?}: {why}"));
        let format = Format::of(&args.format);
        if format.is_none() {
            told("--format", &args.format, "neither text, json nor sarif");
        }
        let forwarder = args.forwarder_address.parse().ok();
        if forwarder.is_none() {
            told("--forwarder-address", &args.forwarder_address, "not an address with a port");
        }
        let mut gateway_version = None;
        if let Some(text) = &args.gateway_version {
            match text.parse() {
                Ok(version) => gateway_version = Some(version),
                Err(why) => told("--gateway-version", text, why),
            }
        }
        let ways = checked_ways(&args.ways);
        match (format, forwarder, ways) {
            (Some(format), Some(forwarder), Ok(ways)) if wrong.is_empty() => {
                Ok((Self { registry, ways, forwarder, gateway_version }, format))
            }
            (_, _, Err(mistakes)) if wrong.is_empty() => Err(mistakes.into()),
            (_, _, ways) => {
                wrong.extend(ways.err().map(|mistakes| mistakes.to_string()));
                Err(CheckError::Files(wrong))
            }
        }
    }

    fn findings(&self, texts: &[Text]) -> Result<Vec<Finding>, CheckError> {
        let files = documents(texts)?;
        let objects = objects(&files)?;
        let mut findings = Findings::default();
        for ((_, text), (file, documents)) in texts.iter().zip(&files) {
            for node in documents {
                reading::check(&Root { file, node }.spot(), text, &mut findings);
            }
        }
        self.look_at(&objects, &mut findings);
        let names: Vec<_> = texts.iter().map(|(file, _)| file.clone()).collect();
        Ok(findings.sorted(&names))
    }

    fn look_at(&self, objects: &Objects<'_>, findings: &mut Findings) {
        let rules = objects.global_rules();
        let mut routes = objects.routes(findings);
        let global_login = rules.iter().find_map(|rule| rule.plugin(login::LOGIN));
        let mut found = Vec::new();
        for route in &mut routes {
            route.global_login = global_login.cloned();
            found.push(self.look_at_route(route, findings));
        }
        let to_workspaces: Vec<_> = found.iter().map(|found| *found != Leads::Elsewhere).collect();
        for rule in &rules {
            login::check(rule, self, findings);
            calls::check_elsewhere(&rule.plugins, self, findings);
            if to_workspaces.contains(&true) {
                lua::check(rule, findings);
                destination::check_plugins(rule, findings);
            }
        }
        for plugins in objects.consumers() {
            calls::check_elsewhere(&plugins, self, findings);
        }
        together::check(&routes, &to_workspaces, findings);
        secrets::check(objects, findings);
        process::check(objects, &routes, findings);
        if found.contains(&Leads::ByRunner) {
            process::check_runner(objects, findings);
        }
    }

    fn look_at_route(&self, route: &Route<'_>, findings: &mut Findings) -> Leads {
        login::check(route, self, findings);
        let workspaces = calls::check(route, self, findings);
        if let Some(workspaces) = &workspaces {
            calls::check_decision(route, workspaces, findings);
        } else if needs_runner(route, self) {
            let text = "the upstream is the forwarder, without user-upstream";
            findings.add(Rule::RunnerNotCalled, &route.spot, text);
        }
        if workspaces.is_none() && lua::choosers(route).is_empty() {
            return Leads::Elsewhere;
        }
        identity::check(route, workspaces.as_ref(), self, findings);
        lua::check(route, findings);
        destination::check(route, workspaces.as_ref(), self, findings);
        if workspaces.is_some() { Leads::ByRunner } else { Leads::ByFunction }
    }
}

/// Where a route leads, and by whose decision.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// To workspaces, by the runner's.
    ByRunner,
    /// To workspaces, by that of a function in the route.
    ByFunction,
    Elsewhere,
}

/// Whether a route without user-upstream leads where nobody goes without its decision.
fn needs_runner(route: &Route<'_>, checked: &Checked<'_>) -> bool {
    route.is_complete && destination::leads_to_forwarder(route, checked) && !together::is_answered(route)
}

/// Our route in place of an old one.
fn migrated(texts: &[Text]) -> Result<String, CheckError> {
    let files = documents(texts)?;
    let routes = objects(&files)?.routes(&mut Findings::default());
    migrate::migrate(&routes).ok_or(CheckError::NothingToMigrate)
}

/// Each file's documents.
fn documents(texts: &[Text]) -> Result<Vec<(&str, Vec<Node>)>, CheckError> {
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for (file, text) in texts {
        match document::documents(text) {
            Ok(documents) => files.push((&**file, documents)),
            Err(error) => wrong.push(format!("{}, {error}", shown(file))),
        }
    }
    if wrong.is_empty() { Ok(files) } else { Err(CheckError::Files(wrong)) }
}

/// The gateway that the files make together. A file in which nothing is a gateway's was
/// named by mistake, and to call it clean would be one too.
fn objects<'d>(files: &'d [(&'d str, Vec<Node>)]) -> Result<Objects<'d>, CheckError> {
    let (mut objects, mut wrong) = (Objects::default(), Vec::new());
    for (file, documents) in files {
        let ours = documents.iter().filter(|node| objects.add(&Root { file, node }.spot())).count();
        if ours == 0 {
            wrong.push(format!(
                "{}: no configuration of a gateway: no standalone file, no object or answer of the Admin API, no \
                 config.yaml, no resource of the ingress controller, and no \
                 fullCustomConfig in Helm values",
                shown(file)
            ));
        }
    }
    if wrong.is_empty() { Ok(objects) } else { Err(CheckError::Files(wrong)) }
}

/// The lines of what is found in a file, printed in every form and migrated on the way.
#[cfg(fuzzing)]
pub(crate) fn found_lines(text: &str) -> Vec<u64> {
    let registry = Registry::default();
    let ways = Ways { mode: crate::upstream::UpstreamMode::Forward, trusts_anybody: false };
    let checked = Checked {
        registry: &registry,
        ways,
        forwarder: ([127, 0, 0, 1], 9181).into(),
        gateway_version: None,
    };
    let texts = [("a file".to_owned(), text.to_owned())];
    let _ = migrated(&texts);
    let Ok(findings) = checked.findings(&texts) else { return Vec::new() };
    let _ = (report::text(&findings, 1), report::json(&findings), report::sarif(&findings));
    findings.iter().map(|finding| finding.line).collect()
}
