//! Finds mistakes and risks in an APISIX gateway's configuration for kube-coders.
//!
//! This crate is for the command `kube-coders check`, and for tools that check
//! configuration before they apply it. It takes the text of files and returns findings.
//! Each finding has a place, a consequence and a cure.
//!
//! ```
//! use apisix_plugin_runner::UpstreamMode;
//! use kube_coders_check::{File, Options, check};
//!
//! let file = File {
//!     name: "apisix.yaml".to_owned(),
//!     text: r#"
//! routes:
//!   - id: workspaces
//!     uri: /*
//!     plugins:
//!       ext-plugin-pre-req:
//!         conf: [{name: no-such-plugin, value: "{}"}]
//!     upstream:
//!       nodes: {"127.0.0.1:9181": 1}
//! #END
//! "#.to_owned(),
//! };
//! let options = Options {
//!     mode: UpstreamMode::Forward,
//!     forwarder: ([127, 0, 0, 1], 9181).into(),
//!     gateway_version: None,
//! };
//! // The runner that the files are for has no plugin at all.
//! let report = check(&[file], options, &|_plugin, _conf| None)?;
//! assert!(report.has_errors());
//! assert!(report.text().contains("no-such-plugin"));
//! # Ok::<(), kube_coders_check::CheckError>(())
//! ```
//!
//! # Where to look
//!
//! | I want to | use |
//! |---|---|
//! | check files together | [`check()`], [`File`], [`Options`] |
//! | have the confs of a runner's plugins checked | [`Judge`] |
//! | print findings for people, programs or code review | [`Report::text`], [`Report::json`], [`Report::sarif`] |
//! | replace a Lua function that chooses the upstream | [`migrated`] |
//! | print a text from a file safely | [`shown`] |
//! | compare with the runner's names and limits | [`runner_facts`] |
//!
//! The crate opens no file and no socket. No finding repeats a secret. The rules are listed
//! in `apisix-conf/CHECKS.md`.

mod addresses;
mod options;
mod document;
mod embedded;
mod not_examined;
mod gateway_reader;
mod objects;
mod ingress;
mod kubernetes;
mod route;
mod route_set;
mod login;
mod names;
mod calls;
mod trust;
mod destination;
mod lua;
mod side_plugins;
mod chart;
mod secrets;
mod process;
mod version;
mod rule;
mod finding;
mod report;
pub mod runner_facts;
mod migration;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod tests;

use kube_coders_identity::UserUpstreamConfig;
use thiserror::Error;

use document::{Document, Spot};
use finding::{Finding, Findings, Unknown};
use migration::MigrationError;
use objects::Objects;
use options::CheckContext;
pub use options::{Judge, Options};
pub use report::shown;
use route::GatewayRoute;
use rule::{Rule, Severity};
pub use version::Version;

/// Why nothing can be checked.
///
/// ```
/// use apisix_plugin_runner::UpstreamMode;
/// use kube_coders_check::{CheckError, File, Options, check};
///
/// let options = Options {
///     mode: UpstreamMode::Forward,
///     forwarder: ([127, 0, 0, 1], 9181).into(),
///     gateway_version: None,
/// };
/// let file = File { name: "notes.yaml".to_owned(), text: "text: hello".to_owned() };
/// let error = check(&[file], options, &|_, _| None).unwrap_err();
/// assert!(matches!(error, CheckError::Files(_)), "not a gateway's configuration");
/// ```
#[derive(Debug, Error)]
pub enum CheckError {
    /// What is wrong with files, a line each.
    #[error("{}", .0.join("\nkube-coders: "))]
    Files(Vec<String>),
    /// There is nothing to migrate.
    #[error("--migrate: no route has a function that chooses the upstream")]
    NothingToMigrate,
    /// The function to migrate makes a name that is not understood.
    #[error(
        "--migrate: {place}: the workspace's name that this function makes is not understood: {reason}; write the \
         route by hand from apisix-conf/standalone/apisix.yaml, with an upstream template that makes the same names"
    )]
    NameNotUnderstood {
        /// The function's file and line.
        place: String,
        /// Why its name is not understood.
        reason: String,
    },
}

/// A file's name and its text.
///
/// ```
/// use kube_coders_check::File;
///
/// let file = File { name: "apisix.yaml".to_owned(), text: "routes: []\n#END\n".to_owned() };
/// ```
#[derive(Clone, Debug)]
pub struct File {
    /// As it is shown.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// What was found in files.
///
/// ```
/// use kube_coders_check::Report;
///
/// /// What a program prints, and whether it fails.
/// fn shown(report: &Report) -> (String, bool) {
///     (report.text(), report.has_errors())
/// }
/// ```
#[derive(Debug)]
pub struct Report {
    findings: Vec<Finding>,
    unknown: Vec<Unknown>,
    files: usize,
}

impl Report {
    /// Whether an error is among the findings.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.rule.facts().severity == Severity::Error)
    }

    /// The findings as a person reads them.
    #[must_use]
    pub fn text(&self) -> String {
        report::text(&self.findings, &self.unknown, self.files)
    }

    /// The findings as a JSON object with a list of them, and a list of places that can't be
    /// checked because their values are variables.
    #[must_use]
    pub fn json(&self) -> String {
        report::json(&self.findings, &self.unknown)
    }

    /// The findings in SARIF 2.1.0.
    #[must_use]
    pub fn sarif(&self) -> String {
        report::sarif(&self.findings)
    }
}

/// Checks files together.
///
/// ```
/// use apisix_plugin_runner::UpstreamMode;
/// use kube_coders_check::{File, Options, check};
///
/// let options = Options {
///     mode: UpstreamMode::Forward,
///     forwarder: ([127, 0, 0, 1], 9181).into(),
///     gateway_version: "3.18".parse().ok(),
/// };
/// let file = File { name: "apisix.yaml".to_owned(), text: "routes: []\n#END\n".to_owned() };
/// let report = check(&[file], options, &|_plugin, _conf| None)?;
/// assert!(!report.has_errors());
/// # Ok::<(), kube_coders_check::CheckError>(())
/// ```
///
/// # Errors
///
/// A file is no YAML and no JSON, or not of a gateway's configuration.
pub fn check(files: &[File], options: Options, judge: &Judge<'_>) -> Result<Report, CheckError> {
    let (findings, unknown) = CheckContext { options, judge }.findings(files)?;
    Ok(Report { findings, unknown, files: files.len() })
}

impl CheckContext<'_> {
    fn findings(&self, files: &[File]) -> Result<(Vec<Finding>, Vec<Unknown>), CheckError> {
        let documents = documents(files)?;
        let objects = objects(&documents)?;
        let mut findings = Findings::default();
        for document in documents.iter().flat_map(|(_, documents)| documents) {
            gateway_reader::check(document, &mut findings);
        }
        self.look_at(&objects, &mut findings);
        for document in documents.iter().flat_map(|(_, documents)| documents) {
            not_examined::check(document, &mut findings);
        }
        let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
        Ok(findings.sorted(&names))
    }

    fn look_at(&self, objects: &Objects<'_>, findings: &mut Findings) {
        let rules = objects.global_rules();
        let mut routes = objects.routes(findings);
        let global_login = rules.iter().find_map(|rule| rule.plugin(login::LOGIN));
        let (mut found, mut found_in_parts, mut confs) = (Vec::new(), Vec::new(), Vec::new());
        for route in &mut routes {
            route.global_login = global_login.cloned();
            found.push(self.look_at_route(route, &mut confs, findings));
        }
        for part in objects.unused(findings) {
            found_in_parts.push(self.look_at_route(&part, &mut confs, findings));
        }
        names::check_together(&confs, findings);
        let to_workspaces: Vec<_> = found.iter().map(|found| *found != RouteTarget::Elsewhere).collect();
        for rule in &rules {
            login::check(rule, self, findings);
            calls::check_elsewhere(&rule.plugins, self, findings);
            if found.iter().chain(&found_in_parts).any(|found| *found != RouteTarget::Elsewhere) {
                lua::check(rule, findings);
                destination::check_plugins(rule, findings);
                side_plugins::check(rule, findings);
            }
        }
        for plugins in objects.consumers() {
            calls::check_elsewhere(&plugins, self, findings);
        }
        route_set::check(&routes, &to_workspaces, findings);
        secrets::check(objects, findings);
        process::check(objects, &routes, findings);
        if found.iter().chain(&found_in_parts).any(|found| *found == RouteTarget::ByRunner) {
            process::check_runner(objects, findings);
        }
    }

    /// Checks one route, and adds its conf to `confs`.
    fn look_at_route<'d>(
        &self,
        route: &GatewayRoute<'d>,
        confs: &mut Vec<(UserUpstreamConfig, Spot<'d>)>,
        findings: &mut Findings,
    ) -> RouteTarget {
        login::check(route, self, findings);
        let workspaces = calls::check(route, self, findings);
        if let Some(workspaces) = &workspaces {
            calls::check_decision(route, workspaces, self.options.gateway_version, findings);
        } else if needs_runner(route, self) {
            let text = "the upstream is the forwarder, without user-upstream";
            findings.add(Rule::RunnerNotCalled, &route.spot, text);
        }
        if workspaces.is_none() && lua::choosers(route).is_empty() {
            return RouteTarget::Elsewhere;
        }
        trust::check(route, workspaces.as_ref(), self, findings);
        lua::check(route, findings);
        side_plugins::check(route, findings);
        destination::check(route, workspaces.as_ref(), self, findings);
        let Some(workspaces) = workspaces else { return RouteTarget::ByFunction };
        confs.extend(workspaces.config.map(|config| (config, workspaces.conf)));
        RouteTarget::ByRunner
    }
}

/// Where a route leads, and what decides it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RouteTarget {
    /// To workspaces, by the runner's decision.
    ByRunner,
    /// To workspaces, by the decision of a function in the route.
    ByFunction,
    Elsewhere,
}

/// Whether a route without user-upstream leads to the forwarder, which serves no request
/// without the runner's decision.
fn needs_runner(route: &GatewayRoute<'_>, context: &CheckContext<'_>) -> bool {
    route.is_complete && addresses::leads_to_forwarder(route, context) && !route_set::is_answered(route)
}

/// The standalone file of our route. It replaces the first route whose Lua function chooses
/// the upstream.
///
/// ```
/// use kube_coders_check::{CheckError, File, migrated};
///
/// let file = File { name: "apisix.yaml".to_owned(), text: "routes: []\n#END\n".to_owned() };
/// assert!(matches!(migrated(&[file]), Err(CheckError::NothingToMigrate)));
/// ```
///
/// # Errors
///
/// As [`check()`], or no route has such a function, or the name that it makes is not
/// understood.
pub fn migrated(files: &[File]) -> Result<String, CheckError> {
    let documents = documents(files)?;
    let routes = objects(&documents)?.routes(&mut Findings::default());
    migration::migrated(&routes).map_err(|error| match error {
        MigrationError::Nothing => CheckError::NothingToMigrate,
        MigrationError::NameNotUnderstood { place, reason } => {
            CheckError::NameNotUnderstood { place, reason }
        }
    })
}

/// A file's name and its documents.
type FileDocuments<'f> = (&'f str, Vec<Document<'f>>);

/// Each file's documents, each before those that are written in its texts.
fn documents(files: &[File]) -> Result<Vec<FileDocuments<'_>>, CheckError> {
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    for File { name, text } in files {
        match Document::of_file(name, text) {
            Ok(documents) => found.push((&**name, embedded::with_embedded(documents))),
            Err(error) => wrong.push(format!("{}, {error}", shown(name))),
        }
    }
    if wrong.is_empty() { Ok(found) } else { Err(CheckError::Files(wrong)) }
}

/// The gateway that the files make together. A file in which nothing is a gateway's was
/// named by mistake, and to call it clean would be one too.
fn objects<'d>(files: &'d [FileDocuments<'_>]) -> Result<Objects<'d>, CheckError> {
    let (mut objects, mut wrong) = (Objects::default(), Vec::new());
    for (file, documents) in files {
        let ours = documents.iter().filter(|document| objects.add(&document.spot())).count();
        if ours == 0 {
            wrong.push(format!(
                "{}: no configuration of a gateway: no standalone file, no object or answer of the Admin API, no \
                 config.yaml, no values for the gateway's Helm chart, and no resource of Kubernetes that has any of \
                 these or is a route",
                shown(file)
            ));
        }
    }
    if wrong.is_empty() { Ok(objects) } else { Err(CheckError::Files(wrong)) }
}

/// Compiles the README's example as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
