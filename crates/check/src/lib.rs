//! What is wrong or dangerous in a gateway's configuration.
//!
//! Files become documents, documents a gateway's objects, objects its routes with all that
//! is in force on them; the modules below look at those one after the other.
//!
//! # Invariants
//!
//! - It opens no file and no socket: it gets texts and gives findings.
//! - Of the rest of the program it uses `kube-coders-identity`, which has the conf of `user-upstream`,
//!   and the types of an upstream. What a plugin says of its conf is asked for.
//! - No finding repeats a secret.

mod addresses;
mod checked;
mod document;
mod gateway_reader;
mod objects;
mod ingress;
mod route;
mod route_set;
mod login;
mod calls;
mod trust;
mod destination;
mod lua;
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

use thiserror::Error;

use checked::Checked;
pub use checked::{Judge, Options};
use document::{Node, Root};
use finding::{Finding, Findings};
use objects::Objects;
pub use report::shown;
use route::GatewayRoute;
use rule::{Rule, Severity};
pub use version::Version;

/// Why nothing can be checked.
#[derive(Debug, Error)]
pub enum CheckError {
    /// What is wrong with files, a line each.
    #[error("{}", .0.join("\nkube-coders: "))]
    Files(Vec<String>),
    /// There is nothing to migrate.
    #[error("--migrate: no route has a function that chooses the upstream")]
    NothingToMigrate,
}

/// A file's name and its text.
#[derive(Clone, Debug)]
pub struct File {
    /// As it is shown.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// What was found in files.
#[derive(Debug)]
pub struct Report {
    findings: Vec<Finding>,
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
        report::text(&self.findings, self.files)
    }

    /// The findings as a JSON object with a list of them.
    #[must_use]
    pub fn json(&self) -> String {
        report::json(&self.findings)
    }

    /// The findings in SARIF 2.1.0.
    #[must_use]
    pub fn sarif(&self) -> String {
        report::sarif(&self.findings)
    }
}

/// Checks files together.
///
/// # Errors
///
/// A file is no YAML and no JSON, or not of a gateway's configuration.
pub fn check(files: &[File], options: Options, judge: &Judge<'_>) -> Result<Report, CheckError> {
    let findings = Checked { options, judge }.findings(files)?;
    Ok(Report { findings, files: files.len() })
}

impl Checked<'_> {
    fn findings(&self, files: &[File]) -> Result<Vec<Finding>, CheckError> {
        let trees = documents(files)?;
        let objects = objects(&trees)?;
        let mut findings = Findings::default();
        for (File { text, .. }, (file, documents)) in files.iter().zip(&trees) {
            for node in documents {
                gateway_reader::check(&Root { file, node }.spot(), text, &mut findings);
            }
        }
        self.look_at(&objects, &mut findings);
        let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
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
        route_set::check(&routes, &to_workspaces, findings);
        secrets::check(objects, findings);
        process::check(objects, &routes, findings);
        if found.contains(&Leads::ByRunner) {
            process::check_runner(objects, findings);
        }
    }

    fn look_at_route(&self, route: &GatewayRoute<'_>, findings: &mut Findings) -> Leads {
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
        trust::check(route, workspaces.as_ref(), self, findings);
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

/// Whether a route without user-upstream leads to the forwarder, which serves no request
/// without the runner's decision.
fn needs_runner(route: &GatewayRoute<'_>, checked: &Checked<'_>) -> bool {
    route.is_complete && addresses::leads_to_forwarder(route, checked) && !route_set::is_answered(route)
}

/// The standalone file of our route, in place of the first route whose Lua function chooses
/// the upstream.
///
/// # Errors
///
/// As [`check()`], or no route has such a function.
pub fn migrated(files: &[File]) -> Result<String, CheckError> {
    let trees = documents(files)?;
    let routes = objects(&trees)?.routes(&mut Findings::default());
    migration::migrated(&routes).ok_or(CheckError::NothingToMigrate)
}

/// Each file's documents.
fn documents(files: &[File]) -> Result<Vec<(&str, Vec<Node>)>, CheckError> {
    let (mut trees, mut wrong) = (Vec::new(), Vec::new());
    for File { name, text } in files {
        match document::documents(text) {
            Ok(documents) => trees.push((&**name, documents)),
            Err(error) => wrong.push(format!("{}, {error}", shown(name))),
        }
    }
    if wrong.is_empty() { Ok(trees) } else { Err(CheckError::Files(wrong)) }
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
