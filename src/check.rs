//! `kube-coders check`: what is wrong or dangerous in a gateway's configuration.
//!
//! Files become documents, documents a gateway's objects, objects its routes with all that
//! is in force on them; the rooms below look at those one after the other.

mod calls;
mod destination;
mod document;
mod finding;
mod gateway;
mod ingress;
mod login;
mod lua;
mod migrate;
mod process;
mod report;
mod rule;
mod secrets;
#[cfg(test)]
mod tests;
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
use gateway::Objects;
use rule::{Rule, Severity};
use version::Version;

/// How much of a file is read, in bytes: more than a gateway's configuration has.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The exit code where an error was found.
const FOUND: u8 = 1;

/// Why nothing can be checked.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    #[error("{file}: {why}")]
    File { file: String, why: String },
    #[error("{file}, {error}")]
    Document { file: String, error: String },
    #[error(
        "{0}: no configuration of a gateway: no standalone file, no object or answer of the Admin API, no config.yaml, \
         and no resource of the ingress controller"
    )]
    Foreign(String),
    #[error("{flag} {found:?}: {why}")]
    Argument { flag: &'static str, found: String, why: String },
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
    forwarder_port: u16,
    gateway_version: Option<Version>,
}

/// How findings are printed.
enum Format {
    Text,
    Json,
    Sarif,
}

/// Checks the files together and prints what is found. The exit code is 1 where an error
/// is among it.
pub(crate) fn check(
    args: &CheckArgs,
    registry: &Registry,
    output: &mut impl Write,
) -> Result<ExitCode, CheckError> {
    let format = match &*args.format {
        "text" => Format::Text,
        "json" => Format::Json,
        "sarif" => Format::Sarif,
        _ => return Err(argument("--format", &args.format, "neither text, json nor sarif")),
    };
    let checked = Checked::new(args, registry)?;
    let texts = args.file.iter().map(|file| Ok((file.clone(), read(file)?)));
    let texts: Vec<(String, String)> = texts.collect::<Result<_, CheckError>>()?;
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

fn argument(flag: &'static str, found: &str, why: &str) -> CheckError {
    CheckError::Argument { flag, found: found.to_owned(), why: why.to_owned() }
}

/// Reads a file, or standard input where it is `-`.
fn read(file: &str) -> Result<String, CheckError> {
    let wrong = |why: String| CheckError::File { file: file.to_owned(), why };
    let source: Box<dyn std::io::Read> = match file {
        "-" => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).map_err(|error| wrong(error.to_string()))?),
    };
    let mut text = String::new();
    source.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(wrong(format!("more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

impl<'r> Checked<'r> {
    fn new(args: &CheckArgs, registry: &'r Registry) -> Result<Self, CheckError> {
        let forwarder: Result<SocketAddr, _> = args.forwarder_address.parse();
        let forwarder = forwarder.map_err(|_| {
            argument("--forwarder-address", &args.forwarder_address, "not an address with a port")
        })?;
        let version = |text: &String| text.parse().map_err(|why| argument("--gateway-version", text, why));
        Ok(Self {
            registry,
            ways: checked_ways(&args.ways)?,
            forwarder_port: forwarder.port(),
            gateway_version: args.gateway_version.as_ref().map(version).transpose()?,
        })
    }

    fn findings(&self, texts: &[(String, String)]) -> Result<Vec<Finding>, CheckError> {
        let files = documents(texts)?;
        let objects = objects(&files)?;
        let mut findings = Findings::default();
        for ((file, text), (_, documents)) in texts.iter().zip(&files) {
            terminated(file, text, documents, &mut findings);
        }
        self.look_at(&objects, &mut findings);
        let names: Vec<_> = texts.iter().map(|(file, _)| file.clone()).collect();
        Ok(findings.sorted(&names))
    }

    fn look_at(&self, objects: &Objects<'_>, findings: &mut Findings) {
        let routes = objects.resolved(findings);
        let mut calls_runner = false;
        for route in &routes {
            let workspaces = calls::check(route, self, findings);
            calls_runner |= workspaces.is_some();
            login::check(route, findings);
            if workspaces.is_some() || !lua::choosers(route).is_empty() {
                login::check_for_workspaces(route, workspaces.as_ref(), self, findings);
                lua::check(route, findings);
                destination::check(route, workspaces.as_ref(), self, findings);
            }
            if let Some(workspaces) = &workspaces {
                calls::check_decision(route, workspaces, findings);
            }
        }
        login::check_together(&routes, findings);
        for plugins in objects.global_plugins() {
            calls::check_global(&plugins, self, findings);
        }
        secrets::check(objects, findings);
        process::check(objects, &routes, calls_runner, findings);
    }
}

/// Our route in place of an old one.
fn migrated(texts: &[(String, String)]) -> Result<String, CheckError> {
    let files = documents(texts)?;
    let routes = objects(&files)?.resolved(&mut Findings::default());
    migrate::migrate(&routes).ok_or(CheckError::NothingToMigrate)
}

/// Each file's documents.
fn documents(texts: &[(String, String)]) -> Result<Vec<(&str, Vec<Node>)>, CheckError> {
    let read = |(file, text): &'_ (String, String)| match document::documents(text) {
        Ok(documents) => Ok(documents),
        Err(error) => Err(CheckError::Document { file: file.clone(), error: error.to_string() }),
    };
    texts.iter().map(|file| Ok((&*file.0, read(file)?))).collect()
}

/// The gateway that the files make together.
fn objects<'d>(files: &'d [(&'d str, Vec<Node>)]) -> Result<Objects<'d>, CheckError> {
    let mut objects = Objects::default();
    for (file, documents) in files {
        sort_in(file, documents, &mut objects)?;
    }
    Ok(objects)
}

/// Sorts a file's documents in. A file in which nothing is a gateway's was named by
/// mistake, and to call it clean would be one too.
fn sort_in<'d>(file: &'d str, documents: &'d [Node], objects: &mut Objects<'d>) -> Result<(), CheckError> {
    let before = objects.count();
    for node in documents {
        objects.add(&Root { file, node }.spot());
    }
    match objects.count() > before {
        true => Ok(()),
        false => Err(CheckError::Foreign(file.to_owned())),
    }
}

/// Checks that a standalone file ends as the gateway wants it.
fn terminated(file: &str, text: &str, documents: &[Node], findings: &mut Findings) {
    let is_json = text.trim_start().starts_with('{');
    for node in documents {
        let spot = Root { file, node }.spot();
        if !is_json && gateway::is_standalone(&spot) && !text.trim_end().ends_with("\n#END") {
            findings.add(Rule::NotTerminated, &spot, "the last line is not #END");
        }
    }
}

/// The lines of what is found in a file, printed in every form and migrated on the way.
#[cfg(fuzzing)]
pub(crate) fn found_lines(text: &str) -> Vec<u64> {
    let registry = Registry::default();
    let ways = Ways { mode: crate::upstream::UpstreamMode::Forward, trusts_anybody: false };
    let checked = Checked { registry: &registry, ways, forwarder_port: 9181, gateway_version: None };
    let texts = [("a file".to_owned(), text.to_owned())];
    let _ = migrated(&texts);
    let Ok(findings) = checked.findings(&texts) else { return Vec::new() };
    let _ = (report::text(&findings, 1), report::json(&findings), report::sarif(&findings));
    findings.iter().map(|finding| finding.line).collect()
}
