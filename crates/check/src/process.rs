//! The gateway's own configuration, `config.yaml`, compared with what its routes need.

use std::collections::HashSet;

use super::calls::DECISION;
use super::chart;
use super::document::Spot;
use super::finding::Findings;
use super::objects::Objects;
use super::route::GatewayRoute;
use super::rule::Rule;
use super::secrets::is_variable;

/// Checks every `config.yaml` among the files.
pub(super) fn check(objects: &Objects<'_>, routes: &[GatewayRoute<'_>], findings: &mut Findings) {
    plugins(objects, routes, findings);
    for config in objects.configs() {
        if config.get("ext-plugin").is_some() {
            underscores(config, findings);
        }
        admin(config, findings);
        forwarded(config, findings);
    }
    objects.charts().iter().for_each(|values| chart(values, findings));
}

/// Checks that the gateway knows the runner which its routes call.
pub(super) fn check_runner(objects: &Objects<'_>, findings: &mut Findings) {
    let configs = objects.configs();
    let is_set = |config: &Spot<'_>| {
        ["path_for_test", "cmd"].iter().any(|name| config.at(&["ext-plugin", name]).is_some())
    };
    // Values for Helm come in layers, and only one of them sets it.
    for config in configs.iter().filter(|config| is_set(config)) {
        runner(config, findings);
    }
    if configs.iter().any(is_set) || objects.charts().iter().any(|values| chart::runner(values).is_some()) {
        return;
    }
    match (configs.first(), objects.charts().first()) {
        (Some(config), _) => runner(config, findings),
        (None, Some(values)) => {
            let spot = values.get_or_missing("apisix").missing("extPlugin");
            findings.add(Rule::RunnerUnset, &spot, "neither extPlugin.cmd nor fullCustomConfig");
        }
        (None, None) => {}
    }
}

fn runner(config: &Spot<'_>, findings: &mut Findings) {
    let runner = config.get_or_missing("ext-plugin");
    match (runner.text_of("path_for_test"), runner.get("cmd")) {
        (Some(path), _) if !path.starts_with('/') => {
            let text = "path_for_test is not a path such as /run/kube-coders/runner.sock";
            findings.add(Rule::RunnerUnset, &runner.get_or_missing("path_for_test"), text);
        }
        (Some(_), _) => {}
        (None, Some(spot)) => runner_command(&spot, findings),
        (None, None) => findings.add(Rule::RunnerUnset, &runner, "neither path_for_test nor cmd"),
    }
}

/// Checks values for the gateway's Helm chart, but for the secrets in them.
fn chart(values: &Spot<'_>, findings: &mut Findings) {
    for range in
        chart::setting(values, &["admin", "allow", "ipList"]).map(|list| list.items()).unwrap_or_default()
    {
        if is_wide(&range) {
            findings.add(Rule::AdminOpen, &range, "the Admin API accepts requests from any address");
        }
    }
    let trusted = chart::setting(values, &["trustedAddresses"]).map(|list| list.items()).unwrap_or_default();
    for range in trusted.into_iter().filter(is_wide) {
        let text = "any client can choose its scheme, host and port";
        findings.add(Rule::ForwardedByAnybody, &range, text);
    }
    // The chart ignores all other settings of `apisix` where there is a whole config.yaml.
    let Some(runner) = chart::runner(values).filter(|_| chart::full_config(values).is_none()) else { return };
    runner_command(&runner.get_or_missing("cmd"), findings);
    chart_underscores(values, &runner, findings);
}

fn chart_underscores(values: &Spot<'_>, runner: &Spot<'_>, findings: &mut Findings) {
    let snippets = chart::setting(values, &["nginx", "configurationSnippet"])
        .or_else(|| chart::setting(values, &["configurationSnippet"]))
        .map(|snippets| snippets.entries())
        .unwrap_or_default();
    let says = |spot: &Spot<'_>, what: &str| {
        let words: Vec<_> = spot.text().unwrap_or_default().split_whitespace().collect();
        words.windows(2).any(|pair| pair == ["underscores_in_headers", what])
    };
    if let Some((_, spot)) = snippets.iter().find(|(_, spot)| says(spot, "on;")) {
        findings.add(Rule::UnderscoresOn, spot, "a snippet lets headers with an underscore through");
    } else if !snippets.iter().any(|(_, spot)| says(spot, "off;")) {
        findings.add(Rule::UnderscoresOn, runner, "no snippet drops headers with an underscore");
    }
}

/// Checks the command by which the gateway starts the runner.
fn runner_command(spot: &Spot<'_>, findings: &mut Findings) {
    let command = spot.items();
    let Some(program) = command.first() else {
        findings.add(Rule::RunnerUnset, spot, "cmd is no list");
        return;
    };
    let is_ours = program.text().is_some_and(|program| program.ends_with("/kube-coders"));
    if is_ours && command.get(1).and_then(Spot::text) != Some("run") {
        findings.add(Rule::RunnerUnset, spot, "cmd starts kube-coders without the command run");
    }
}

fn underscores(config: &Spot<'_>, findings: &mut Findings) {
    let nginx = config.get_or_missing("nginx_config");
    // What a server says itself counts before what is said for all.
    for snippet in ["http_server_configuration_snippet", "http_configuration_snippet"] {
        let Some(spot) = nginx.get(snippet) else { continue };
        let words: Vec<_> = spot.text().unwrap_or_default().split_whitespace().collect();
        let says = |what: &str| words.windows(2).any(|pair| pair == ["underscores_in_headers", what]);
        if says("on;") {
            findings.add(Rule::UnderscoresOn, &spot, "a snippet lets headers with an underscore through");
        }
        if says("on;") || says("off;") {
            return;
        }
    }
    let setting = nginx.get_or_missing("http").get_or_missing("underscores_in_headers");
    if setting.is_false() {
        let text = "off without quotes is false, which nginx does not know: it does not start";
        findings.add(Rule::UnderscoresOn, &setting, text);
    } else if setting.text() != Some("off") {
        findings.add(Rule::UnderscoresOn, &setting, "headers with an underscore come through");
    }
}

/// Checks that the gateway loads the plugins of its routes. A list in the file of routes replaces
/// that of `config.yaml`.
fn plugins(objects: &Objects<'_>, routes: &[GatewayRoute<'_>], findings: &mut Findings) {
    let (configs, own) = (objects.configs(), objects.plugin_lists());
    let used = || routes.iter().flat_map(|route| &route.plugins);
    let named = |list: Spot<'_>| {
        let plugins = list.items().into_iter().filter(|plugin| !plugin.has_true("stream"));
        let names = plugins.filter_map(|plugin| plugin.text().or_else(|| plugin.text_of("name")));
        (list.file.to_owned(), names.map(str::to_owned).collect::<HashSet<_>>())
    };
    let mut lists: Vec<_> = own.iter().cloned().map(named).collect();
    if own.is_empty() {
        let of_configs = configs.iter().filter_map(|config| config.get("plugins").filter(Spot::is_list));
        lists.extend(of_configs.map(named));
        let of_charts = objects.charts().iter().filter(|values| chart::full_config(values).is_none());
        lists.extend(
            of_charts
                .filter_map(chart::plugin_list)
                .map(|(list, names)| (list.file.to_owned(), names.into_iter().map(str::to_owned).collect())),
        );
    }
    for (file, listed) in &lists {
        for plugin in used().filter(|plugin| !listed.contains(plugin.name)) {
            let text = format!("plugins of {file} does not have {}", plugin.name);
            findings.add(Rule::PluginNotListed, &plugin.conf, text);
        }
    }
    let brings_it = objects.charts().iter().any(chart::has_decision_plugin);
    let Some(first) = configs.first().or(objects.charts().first()).filter(|_| !brings_it) else { return };
    if lists.is_empty() {
        for plugin in used().filter(|plugin| plugin.name == DECISION) {
            let text =
                format!("{} has no list of plugins, and the gateway's own lacks {DECISION}", first.file);
            findings.add(Rule::PluginNotListed, &plugin.conf, text);
        }
    }
    let has_path = |config: &Spot<'_>| config.at(&["apisix", "extra_lua_path"]).is_some();
    if used().any(|plugin| plugin.name == DECISION) && !configs.iter().any(has_path) {
        let text = format!("no extra_lua_path, by which the gateway finds {DECISION}");
        let spot = first.get_or_missing("apisix").missing("extra_lua_path");
        findings.add(Rule::PluginNotListed, &spot, text);
    }
}

fn admin(config: &Spot<'_>, findings: &mut Findings) {
    let Some(admin) = config.at(&["deployment", "admin"]) else { return };
    if let Some(allowed) = admin.get("allow_admin") {
        let ranges = if allowed.text().is_some() { vec![allowed.clone()] } else { allowed.items() };
        if ranges.is_empty() {
            findings.add(Rule::AdminOpen, &allowed, "an empty allow_admin admits every address");
        }
        for range in ranges.into_iter().filter(is_wide) {
            findings.add(Rule::AdminOpen, &range, "the Admin API accepts requests from any address");
        }
    }
    if admin.has_false("admin_key_required") {
        let text = "the Admin API requires no key";
        findings.add(Rule::AdminOpen, &admin.get_or_missing("admin_key_required"), text);
    }
    for key in admin.items_of("admin_key") {
        if key.text_of("key").is_some_and(|value| !value.is_empty() && !is_variable(value)) {
            let text = "the Admin API's key in clear text";
            findings.add(Rule::SecretInClear, &key.get_or_missing("key"), text);
        }
    }
}

/// A range of addresses that has half of them or all in it.
fn is_wide(range: &Spot<'_>) -> bool {
    range.text().is_some_and(|range| range.ends_with("/0") || range.ends_with("/1"))
}

/// Checks which peers the gateway believes about a client's address, host and scheme.
fn forwarded(config: &Spot<'_>, findings: &mut Findings) {
    for (path, what) in [
        (&["apisix", "trusted_addresses"][..], "its scheme, host and port"),
        (&["nginx_config", "http", "real_ip_from"], "its address"),
    ] {
        let ranges = config.at(path).map(|list| list.items()).unwrap_or_default();
        for range in ranges.into_iter().filter(is_wide) {
            findings.add(Rule::ForwardedByAnybody, &range, format!("any client can choose {what}"));
        }
    }
}
