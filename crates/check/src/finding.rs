//! What was found, and where.

use super::document::Spot;
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

/// What has been found so far.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, rule: Rule, spot: &Spot<'_>, found: impl Into<String>) {
        self.0.push(Finding {
            file: spot.file.to_owned(),
            line: spot.place.line,
            column: spot.place.column,
            path: spot.path.clone(),
            rule,
            found: found.into(),
        });
    }

    /// Each once, in the order of files and lines: what two routes share is looked at
    /// with each of them.
    pub(super) fn sorted(self, files: &[String]) -> Vec<Finding> {
        let mut findings = self.0;
        let file = |finding: &Finding| files.iter().position(|file| *file == finding.file);
        findings.sort_by(|one, other| file(one).cmp(&file(other)).then_with(|| one.cmp(other)));
        findings.dedup();
        findings
    }
}
