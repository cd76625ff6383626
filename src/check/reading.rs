//! What the gateway's own reader makes of a file, where it is not what ours makes.

use super::document::Spot;
use super::finding::Findings;
use super::objects::is_standalone;
use super::rule::Rule;

/// In how many bytes at a file's end the gateway looks for its end.
const END: usize = 10;

/// Checks a document of a file.
pub(super) fn check(document: &Spot<'_>, text: &str, findings: &mut Findings) {
    let is_json = text.trim_start().starts_with(['{', '[']);
    if is_json {
        return;
    }
    if is_standalone(document) && !is_terminated(text) {
        let last = text.trim_end().lines().count().max(1) as u64;
        findings.add(Rule::NotTerminated, &document.at_line(last), "the file does not end with #END");
    }
    for (at, line) in text.lines().enumerate() {
        if let Some(found) = read_differently(line) {
            findings.add(Rule::ReadDifferently, &document.at_line(at as u64 + 1), found);
        }
    }
}

/// As APISIX looks for it: `#END` and nothing but white space behind it, in the last bytes.
fn is_terminated(text: &str) -> bool {
    let bytes = text.as_bytes();
    let end = &bytes[bytes.len().saturating_sub(END)..];
    end.trim_ascii_end().ends_with(b"#END")
}

/// What of a line YAML 1.1 reads as something else.
fn read_differently(line: &str) -> Option<&'static str> {
    let code = line.trim();
    if code.starts_with('#') {
        return None;
    }
    let name = code.trim_start_matches("- ");
    if name.starts_with("\"<<\"") || name.starts_with("'<<'") || name.starts_with("!!merge ") {
        return Some("a name that the gateway takes for a merge");
    }
    let value = match code.rsplit_once(": ") {
        Some((_, value)) => value,
        None => code.strip_prefix("- ")?,
    };
    let value = value.split(" #").next().unwrap_or_default().trim_end_matches(['}', ']', ',', ' ']);
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if value.len() > 1 && value.starts_with('0') && is_digits(value) {
        return Some("a number with a leading 0, which the gateway reads as octal");
    }
    let mut parts = value.split(':');
    let is_sexagesimal = value.contains(':') && parts.all(|part| is_digits(part) && part.len() < 3);
    is_sexagesimal.then_some("digits with colons, which the gateway reads as a number to the base of 60")
}

#[cfg(test)]
mod tests {
    use super::{is_terminated, read_differently};

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

    #[test]
    fn what_is_another_value_in_yaml_1_1_is_known() {
        for line in
            ["priority: 05000", "  _meta: {priority: 0:10}", "- 010", "\"<<\": {a: 1}", "!!merge x: *y"]
        {
            assert!(read_differently(line).is_some(), "{line}");
        }
        for line in [
            "priority: 2598",
            "port: 0",
            "weight: 0.5",
            "host: \"05000\"",
            "nodes: {\"127.0.0.1:9181\": 1}",
            "upstream: http://a:8443",
            "# priority: 05000",
            "- 127.0.0.1",
            "read: 5m",
            "<<: *base",
        ] {
            assert_eq!(read_differently(line), None, "{line}");
        }
    }
}
