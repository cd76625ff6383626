//! The check as a fuzz target tries it.

use apisix_plugin_runner::upstream::UpstreamMode;

use super::options::CheckContext;
use super::{File, Options, migrated, report};

/// The lines of what is found in a file, printed in every form and migrated on the way.
pub fn finding_lines(text: &str) -> Vec<u64> {
    let forwarder = ([127, 0, 0, 1], 9181).into();
    let options = Options { mode: UpstreamMode::Forward, forwarder, gateway_version: None };
    let context = CheckContext { options, judge: &|_, _| None };
    let files = [File { name: "a file".to_owned(), text: text.to_owned() }];
    let _ = migrated(&files);
    let Ok((findings, unknown)) = context.findings(&files) else { return Vec::new() };
    let _ =
        (report::text(&findings, &unknown, 1), report::json(&findings, &unknown), report::sarif(&findings));
    findings.iter().map(|finding| finding.line).collect()
}
