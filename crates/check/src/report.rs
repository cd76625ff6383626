//! Findings as text, as JSON, and as SARIF.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::finding::{Finding, Unknown};
use super::rule::{Rule, Severity};

/// As a person reads them.
pub(super) fn text(findings: &[Finding], unknown: &[Unknown], files: usize) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { line, column, rule, .. } = finding;
        let [file, path, found] = [&finding.file, &finding.path, &finding.found].map(|text| shown(text));
        let facts = rule.facts();
        let severity = name(facts.severity);
        // Writing to a text can't fail.
        let _ = write!(
            text,
            "{file}:{line}:{column}: {severity}[{}]: {found}\n  at   {path}\n  so   {}\n  cure {}\n\n",
            facts.code, facts.consequence, facts.cure
        );
    }
    for Unknown { file, line, path } in unknown {
        let [file, path] = [file, path].map(|text| shown(text));
        let _ = writeln!(text, "{file}:{line}: can't be checked, because its value is a variable: {path}");
    }
    if !unknown.is_empty() {
        text.push('\n');
    }
    let count =
        |severity| findings.iter().filter(|finding| finding.rule.facts().severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = writeln!(
        text,
        "{}, {} in {}",
        counted(errors, "error"),
        counted(warnings, "warning"),
        counted(files, "file")
    );
    text
}

/// A text that may come from anywhere, without what moves a terminal's cursor, begins a
/// line, or turns the direction of writing.
///
/// ```
/// use kube_coders_check::shown;
///
/// assert_eq!(shown("apisix.yaml"), "apisix.yaml");
/// assert!(!shown("a\u{1b}[2Jb").contains('\u{1b}'), "a terminal must not obey a file");
/// ```
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_debug()),
            _ => shown.push(character),
        }
    }
    shown
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// For a program: an object with a list of findings.
pub(super) fn json(findings: &[Finding], unknown: &[Unknown]) -> String {
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            let facts = finding.rule.facts();
            json!({
                "file": finding.file,
                "line": finding.line,
                "column": finding.column,
                "path": finding.path,
                "severity": name(facts.severity),
                "code": facts.code,
                "found": finding.found,
                "consequence": facts.consequence,
                "cure": facts.cure,
            })
        })
        .collect();
    let unknown: Vec<_> = unknown
        .iter()
        .map(|Unknown { file, line, path }| json!({ "file": file, "line": line, "path": path }))
        .collect();
    pretty(&json!({ "findings": findings, "unknown": unknown }))
}

/// For tools that show findings in the code (SARIF 2.1.0).
pub(super) fn sarif(findings: &[Finding]) -> String {
    let rules: Vec<_> = Rule::ALL
        .iter()
        .map(|rule| {
            let facts = rule.facts();
            json!({
                "id": facts.code,
                "shortDescription": { "text": facts.consequence },
                "help": { "text": facts.cure },
                "defaultConfiguration": { "level": name(facts.severity) },
            })
        })
        .collect();
    let results: Vec<_> = findings
        .iter()
        .map(|finding| {
            let facts = finding.rule.facts();
            let message = format!("{}: {}. Cure: {}", finding.found, facts.consequence, facts.cure);
            json!({
                "ruleId": facts.code,
                "ruleIndex": Rule::ALL.iter().position(|rule| *rule == finding.rule),
                "level": name(facts.severity),
                "message": { "text": message },
                "locations": [{
                    "physicalLocation": {
                        "artifactLocation": { "uri": uri(&finding.file) },
                        "region": { "startLine": finding.line, "startColumn": finding.column },
                    },
                    "logicalLocations": [{ "fullyQualifiedName": finding.path }],
                }],
            })
        })
        .collect();
    pretty(&json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "kube-coders check",
                    "version": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                },
            },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    }))
}

/// What is escaped in a path: all but unreserved characters and `/` (RFC 3986, section 2.3).
const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A file's name as a URI reference (RFC 3986): relative ones stay relative.
fn uri(file: &str) -> String {
    let scheme = if file.starts_with('/') { "file://" } else { "" };
    format!("{scheme}{}", utf8_percent_encode(file, &ESCAPED))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::{shown, uri};

    #[test]
    fn text_from_a_file_stays_on_its_line() {
        let hostile = "a\u{1b}[31m\r\n::error::b\u{202e}c\u{9b}é 한";
        assert_eq!(shown(hostile), "a\\u{1b}[31m\\r\\n::error::b\\u{202e}c\\u{9b}é 한");
    }

    #[test]
    fn a_file_s_name_becomes_a_uri() {
        for (file, expected) in [
            ("conf/apisix.yaml", "conf/apisix.yaml"),
            ("/etc/a b.yaml", "file:///etc/a%20b.yaml"),
            ("a:b#c?.yaml", "a%3Ab%23c%3F.yaml"),
        ] {
            assert_eq!(uri(file), expected);
        }
    }
}
