//! What was found, and where.

use super::document::{Place, Spot};
use super::rule::Rule;

/// One thing that is wrong or dangerous at one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) column: u64,
    /// The way through the document: `routes[0].plugins.openid-connect.ssl_verify`.
    pub(super) path: String,
    pub(super) rule: Rule,
    /// What was found there; never a secret.
    pub(super) found: String,
}

/// A place whose value only the gateway knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unknown {
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) path: String,
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Findings {
    findings: Vec<Finding>,
    /// What would be a finding if the variable were the value itself.
    unknown: Vec<Unknown>,
}

impl Findings {
    pub(super) fn add(&mut self, rule: Rule, spot: &Spot<'_>, found: impl Into<String>) {
        if is_unknown(rule, spot) {
            self.add_unknown(spot);
            return;
        }
        let Place { line, column } = spot.place_in_file();
        self.findings.push(Finding {
            file: spot.file.to_owned(),
            line,
            column,
            path: spot.path.clone(),
            rule,
            found: found.into(),
        });
    }

    /// Adds a finding that also depends on other values. If one of these is a variable, only
    /// the gateway knows whether it holds.
    pub(super) fn add_with(
        &mut self,
        rule: Rule,
        spot: &Spot<'_>,
        others: &[Option<Spot<'_>>],
        found: impl Into<String>,
    ) {
        let variable = others.iter().flatten().find(|other| has_variable(other));
        match variable {
            Some(other) => self.add_unknown(other),
            None => self.add(rule, spot, found),
        }
    }

    fn add_unknown(&mut self, spot: &Spot<'_>) {
        let line = spot.place_in_file().line;
        self.unknown.push(Unknown { file: spot.file.to_owned(), line, path: spot.path.clone() });
    }

    /// Each once, in the order of files and lines: what two routes share is looked at
    /// with each of them.
    pub(super) fn sorted(self, files: &[String]) -> (Vec<Finding>, Vec<Unknown>) {
        let (mut findings, mut unknown) = (self.findings, self.unknown);
        unknown.sort();
        unknown.dedup();
        let file = |finding: &Finding| files.iter().position(|file| *file == finding.file);
        findings.sort_by(|one, other| file(one).cmp(&file(other)).then_with(|| one.cmp(other)));
        findings.dedup();
        (findings, unknown)
    }
}

fn has_variable(spot: &Spot<'_>) -> bool {
    spot.text().is_some_and(|text| text.contains("${{"))
}

/// Whether only a variable's value decides about a finding: the gateway replaces variables as it
/// reads its files, and looks references up as it runs.
fn is_unknown(rule: Rule, spot: &Spot<'_>) -> bool {
    // These are about what the file itself contains.
    if matches!(rule, Rule::SecretInClear | Rule::ReadDifferently | Rule::IdTwice | Rule::NotExamined) {
        return false;
    }
    let text = spot.text().unwrap_or_default();
    let is_whole = text.starts_with("${{") && text.ends_with("}}") && text.matches("${{").count() == 1;
    let is_reference = ["$env://", "$secret://"].iter().any(|start| text.starts_with(start));
    // A conf or an address with a variable in it may be right once that is replaced.
    let is_partly = matches!(
        rule,
        Rule::ConfRefused
            | Rule::IssuerForeign
            | Rule::AudienceForeign
            | Rule::TokenNotPassed
            | Rule::CookieReachesWorkspace
            | Rule::LogoutElsewhere
            | Rule::RedirectUriForeign
            | Rule::DiscoveryOverHttp
            | Rule::UpstreamOpen
            | Rule::RunnerNotCalled
    ) && (text.contains("${{") || spot.path.contains("${{"));
    is_whole || is_reference || is_partly
}
