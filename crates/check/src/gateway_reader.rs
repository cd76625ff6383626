//! How the gateway's own reader reads a file differently from ours.

use super::chart;
use super::document::{Document, Spot};
use super::finding::Findings;
use super::objects::is_standalone;
use super::rule::Rule;
use kube_coders_identity::is_digits;

/// In how many bytes at a file's end the gateway looks for its end.
const END: usize = 10;

/// Checks a document of a file.
pub(super) fn check(document: &Document<'_>, findings: &mut Findings) {
    let (spot, text) = (document.spot(), &*document.source);
    // JSON has but one reading, and Kubernetes' resources have another reader.
    let is_json = text.trim_start().starts_with(['{', '[']);
    if is_json || spot.get("apiVersion").is_some() {
        return;
    }
    if is_standalone(&spot) && !is_ended_by_others(&spot) && !is_terminated(text) {
        let last = text.trim_end().lines().count().max(1) as u64;
        findings.add(Rule::NotTerminated, &spot.at_line(last), "the file does not end with #END");
    }
    let lines: Vec<_> = text.lines().collect();
    // Of values for a chart, the gateway reads what becomes its config.yaml.
    let part = match chart::values(&spot) {
        Some(values) => chart::full_config(&values),
        None => Some(spot),
    };
    let Some(part) = part else { return };
    for spot in part.scalars() {
        let line = usize::try_from(spot.place.line).ok().and_then(|line| lines.get(line.checked_sub(1)?));
        let column = usize::try_from(spot.place.column).unwrap_or(1).max(1);
        let Some((before, source)) = line.map(|line| split_at_character(line, column - 1)) else { continue };
        if let Some(found) = read_differently(before, source) {
            findings.add(Rule::ReadDifferently, &spot, found);
        }
    }
}

/// Whether these objects need no end of their own: the Admin API answers with the versions of
/// its collections, and the Helm chart ends the text of its values itself.
fn is_ended_by_others(document: &Spot<'_>) -> bool {
    document.entries().iter().any(|(name, _)| name.ends_with("_conf_version"))
        || document.path.ends_with("deployment.standalone.config")
}

/// A line before and from a character on.
fn split_at_character(line: &str, count: usize) -> (&str, &str) {
    let at = line.char_indices().nth(count).map_or(line.len(), |(at, _)| at);
    line.split_at(at)
}

/// As APISIX looks for it: `#END` in the last bytes, with only white space after it.
fn is_terminated(text: &str) -> bool {
    let bytes = text.as_bytes();
    let end = &bytes[bytes.len().saturating_sub(END)..];
    end.trim_ascii_end().ends_with(b"#END")
}

/// What YAML 1.1 reads instead of a name or value, which is given as its line has it.
fn read_differently(before: &str, source: &str) -> Option<&'static str> {
    let is_merge = ["\"<<\"", "'<<'", "!!merge "].iter().any(|name| source.starts_with(name));
    if is_merge || before.ends_with("!!merge ") {
        return Some("a name that the gateway takes for a merge");
    }
    // A value may have an anchor before it.
    let source = match source.strip_prefix('&') {
        Some(anchored) => anchored.split_once(' ')?.1.trim_start(),
        None => source,
    };
    let value = source.split([',', '}', ']', ' ', '\t']).next().unwrap_or_default().trim_end_matches(':');
    let is_digits = |text: &str| is_digits(text.as_bytes());
    if value.len() > 1 && value.starts_with('0') && is_digits(value) {
        return Some("a number with a leading 0, which the gateway reads as octal");
    }
    let mut parts = value.split(':');
    let is_sexagesimal = value.contains(':') && parts.all(|part| is_digits(part) && part.len() < 3);
    is_sexagesimal.then_some("digits with colons, which the gateway reads as a number to the base of 60")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_ends_where_the_gateway_looks() {
        for (text, expected) in [
            ("routes: []\n#END\n", true),
            ("routes: []\n#END", true),
            ("routes: []\n  #END \n\n", true),
            ("routes: []\n#END\n\n\n\n\n\n\n\n", false),
            ("routes: []\n#END\n# more\n", false),
            ("routes: []\n", false),
            ("", false),
        ] {
            assert_eq!(is_terminated(text), expected, "{text:?}");
        }
    }

    #[track_caller]
    fn found(text: &str) -> Vec<(String, u64, u64)> {
        let documents = Document::of_file("a.yaml", text).unwrap();
        let mut findings = Findings::default();
        documents.iter().for_each(|document| check(document, &mut findings));
        let (findings, _) = findings.sorted(&["a.yaml".to_owned()]);
        findings.into_iter().map(|finding| (finding.path, finding.line, finding.column)).collect()
    }

    #[test]
    fn a_value_that_yaml_1_1_reads_differently_is_reported_by_its_position() {
        for (text, path, line, column) in [
            ("a:\n  priority: 05000\n", "a.priority", 2, 13),
            ("a: {_meta: {priority: 0:10, disable: false}}\n", "a._meta.priority", 1, 23),
            ("a:\n  - 010 # ten\n", "a[0]", 2, 5),
            ("a: {\"priority\":03000}\n", "a.priority", 1, 16),
            ("a:\n  03000\n", "a", 2, 3),
            ("a: {\"<<\": {b: 1}}\n", "a[\"<<\"]", 1, 5),
        ] {
            assert_eq!(found(text), [(path.to_owned(), line, column)], "{text}");
        }
    }

    #[test]
    fn equal_values_have_no_finding() {
        for text in [
            "priority: 2598 # since: 12:30, before it was: 010\n",
            "port: 0\nweight: 0.5\nread: 5m\n",
            "host: \"05000\"\nnodes: {\"127.0.0.1:9181\": 1}\nupstream: http://a:8443\n",
            "# priority: 05000\nlist: [127.0.0.1, \"8080:80\"]\n",
            "body: |\n  since: 0:10\n  - 007\n",
            "base: &base {a: 1}\nother:\n  <<: *base\n",
            "apiVersion: v1\nmode: 0400\n",
            "mode: 0400\napisix: {fullCustomConfig: {config: {port: 80}}}\n",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }
}
