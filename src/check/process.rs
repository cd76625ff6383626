//! The gateway's own configuration, `config.yaml`, beside what its routes need of it.

use super::document::Spot;
use super::finding::Findings;
use super::gateway::{Objects, Route};
use super::rule::Rule;
use super::secrets::{is_reference, variables};

/// Checks every `config.yaml` among the files.
pub(super) fn check(
    objects: &Objects<'_>,
    routes: &[Route<'_>],
    calls_runner: bool,
    findings: &mut Findings,
) {
    for config in &objects.configs {
        if calls_runner {
            runner(config, findings);
            underscores(config, findings);
        }
        environment(config, objects, findings);
        plugins(config, routes, findings);
        admin(config, findings);
    }
}

fn runner(config: &Spot<'_>, findings: &mut Findings) {
    let runner = config.get_or_missing("ext-plugin");
    if runner.text_of("path_for_test").is_none() && runner.items_of("cmd").is_empty() {
        findings.add(Rule::RunnerUnset, &runner, "neither path_for_test nor cmd");
    }
}

fn underscores(config: &Spot<'_>, findings: &mut Findings) {
    let http = config.at(&["nginx_config", "http"]);
    let setting = http.as_ref().and_then(|http| http.get("underscores_in_headers"));
    // Unquoted, off is a truth value for the gateway's reader and a text for ours.
    let is_off = setting.as_ref().is_some_and(|setting| setting.is(false) || setting.text() == Some("off"));
    if !is_off {
        let spot = setting
            .or_else(|| Some(http?.missing("underscores_in_headers")))
            .unwrap_or_else(|| config.missing("nginx_config.http.underscores_in_headers"));
        findings.add(Rule::UnderscoresOn, &spot, "headers with an underscore come through");
    }
}

fn environment(config: &Spot<'_>, objects: &Objects<'_>, findings: &mut Findings) {
    let passed: Vec<_> = config.at(&["nginx_config", "envs"]).iter().flat_map(Spot::items).collect();
    // An entry may have a value behind its name.
    let is_passed =
        |name: &str| passed.iter().filter_map(Spot::text).any(|entry| entry.split('=').next() == Some(name));
    for (name, spot) in variables(objects) {
        if !is_passed(name) {
            let text = format!("nginx_config.envs of {} does not have {name}", config.file);
            findings.add(Rule::EnvironmentNotPassed, &spot, text);
        }
    }
}

fn plugins(config: &Spot<'_>, routes: &[Route<'_>], findings: &mut Findings) {
    let Some(list) = config.get("plugins").filter(Spot::is_list) else { return };
    let listed: Vec<_> = list.items().iter().filter_map(Spot::text).collect();
    for plugin in routes.iter().flat_map(|route| &route.plugins) {
        if !listed.contains(&plugin.name) {
            let text = format!("plugins of {} does not have {}", config.file, plugin.name);
            findings.add(Rule::PluginNotListed, &plugin.conf, text);
        }
    }
}

fn admin(config: &Spot<'_>, findings: &mut Findings) {
    let Some(admin) = config.at(&["deployment", "admin"]) else { return };
    for range in admin.items_of("allow_admin") {
        if range.text().is_some_and(|range| range.ends_with("/0")) {
            findings.add(Rule::AdminOpen, &range, "the Admin API takes anybody's requests");
        }
    }
    for key in admin.items_of("admin_key") {
        if key.text_of("key").is_some_and(|value| !value.is_empty() && !is_reference(value)) {
            findings.add(
                Rule::SecretInClear,
                &key.get_or_missing("key"),
                "the Admin API's key in clear text",
            );
        }
    }
}
