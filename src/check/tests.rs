//! Each rule on a route that is good but for one thing, and the forms that a route has.

mod faults;
mod forms;
mod rules;

use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Subcommands};

/// What is found in these files, by a program with a plugin of its own.
fn found(files: &[(&str, &str)], flags: &[&str]) -> Result<Vec<Finding>, CheckError> {
    let typed = [&["kube-coders", "check", "-"], flags].concat();
    let Subcommands::Check(args) = Cli::parse_from(typed).command else { panic!("check") };
    let mut registry = Registry::default();
    assert!(registry.add(Other));
    let (checked, _) = Checked::new(&args, &registry)?;
    let files: Vec<_> = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    checked.findings(&files)
}

/// Asserts what is found, each as its rule's code and its path.
#[track_caller]
fn check(files: &[(&str, &str)], flags: &[&str], expected: &[(&str, &str)]) {
    let findings = found(files, flags).unwrap();
    let findings: Vec<_> =
        findings.iter().map(|finding| (finding.rule.facts().code, &*finding.path)).collect();
    assert_eq!(findings, expected);
}

/// A plugin that somebody else wrote.
struct Other;

impl crate::plugin::Plugin for Other {
    const NAME: &'static str = "other";
    type Config = ();

    async fn on_request(
        &self,
        _: &(),
        _: &mut crate::request::Request<'_>,
    ) -> Result<crate::plugin::Action, crate::plugin::PluginError> {
        Ok(crate::plugin::Action::Continue)
    }
}
