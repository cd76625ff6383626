//! Confs that no other part of the check has looked at.

use super::calls::{DECISION, LATE_REQUEST, REQUEST, RESPONSE};
use super::document::{Document, Spot};
use super::finding::Findings;
use super::login::LOGIN;
use super::objects::{COLLECTIONS, is_standalone};
use super::rule::Rule;

/// The plugins on which the way to workspaces depends.
const PLUGINS: [&str; 5] = [REQUEST, LATE_REQUEST, RESPONSE, LOGIN, DECISION];

/// Where a plugin's name means its settings for all routes.
const SETTINGS: [&str; 4] = ["plugin_attr", "pluginAttrs", "plugin_metadata", "pluginMetadata"];

/// A copy of a resource that is in the same file as the resource itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reports what is left after all other parts of the check.
pub(super) fn check(document: &Document<'_>, findings: &mut Findings) {
    let root = document.spot();
    if is_standalone(&root) {
        // The gateway ignores other names, which often hold what aliases refer to.
        let is_read = |name: &str| COLLECTIONS.contains(&name);
        root.entries().iter().filter(|(name, _)| is_read(name)).for_each(|(_, part)| walk(part, findings));
    } else {
        walk(&root, findings);
    }
}

fn walk(spot: &Spot<'_>, findings: &mut Findings) {
    if let Some(text) = spot.text() {
        if let Some(name) = named_in(text).filter(|_| !spot.is_examined()) {
            findings.add(Rule::NotExamined, spot, format!("{name} in a text that is not understood"));
        }
        return;
    }
    spot.items().iter().for_each(|item| walk(item, findings));
    let is_disabled_route =
        spot.number_of("status") == Some(0.0) && (spot.get("uri").is_some() || spot.get("uris").is_some());
    if is_disabled_route {
        return;
    }
    let named = ["name", "type"].into_iter().find_map(|field| spot.text_of(field));
    if let Some(name) = named.filter(|name| PLUGINS.contains(name))
        && let Some(conf) = spot.get("config").filter(Spot::is_map)
        && !conf.is_examined()
        && !spot.is_examined()
    {
        findings.add(Rule::NotExamined, &conf, format!("{name} in an object that is not understood"));
    }
    for (name, value) in spot.entries() {
        if name == LAST_APPLIED || name.ends_with(".lua") || SETTINGS.contains(&name) {
            continue;
        }
        if PLUGINS.contains(&name) && value.is_map() && !value.is_examined() {
            findings.add(Rule::NotExamined, &value, format!("{name} in an object that is not understood"));
            continue;
        }
        walk(&value, findings);
    }
}

/// The plugin that a text gives a conf, in YAML, JSON or a template of either.
fn named_in(text: &str) -> Option<&'static str> {
    PLUGINS.into_iter().find(|name| {
        text.match_indices(name).any(|(at, _)| {
            let rest = text[at + name.len()..].trim_start_matches(['\\', '"', '\'', ' ']);
            rest.starts_with(':')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::named_in;

    #[test]
    fn a_text_gives_a_plugin_a_conf_as_yaml_or_json() {
        for (text, expected) in [
            ("plugins:\n  openid-connect:\n    client_id: a\n", Some("openid-connect")),
            (r#"curl -d '{"plugins": {"ext-plugin-pre-req": {}}}'"#, Some("ext-plugin-pre-req")),
            (r#"{\"kube-coders-upstream\": {}}"#, Some("kube-coders-upstream")),
            ("runs after openid-connect, before all others", None),
            ("plugins: [openid-connect]", None),
            ("", None),
        ] {
            assert_eq!(named_in(text), expected, "{text}");
        }
    }
}
