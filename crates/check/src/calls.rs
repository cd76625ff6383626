//! The calls of the runner: in which order, with which confs.

use super::addresses::leads_to_forwarder;
use super::document::Spot;
use super::finding::Findings;
use super::login::LOGIN;
use super::names;
use super::options::CheckContext;
use super::route::{GatewayRoute, RoutePlugin};
use super::rule::Rule;
use super::runner_facts::USER_UPSTREAM;
use super::version::Version;
use apisix_plugin_runner::upstream::UpstreamMode;
use kube_coders_identity::UserUpstreamConfig;

/// The gateway's plugins that call a runner.
pub(super) const REQUEST: &str = "ext-plugin-pre-req";
pub(super) const LATE_REQUEST: &str = "ext-plugin-post-req";
pub(super) const RESPONSE: &str = "ext-plugin-post-resp";

/// The gateway's plugin for direct mode.
pub(super) const DECISION: &str = "kube-coders-upstream";

/// When these run by default; ext-plugin-post-req runs in a later phase.
const REQUEST_PRIORITY: f64 = 12000.0;
const LOGIN_PRIORITY: f64 = 2599.0;
const DECISION_PRIORITY: f64 = 2598.0;

/// The first version in which one plugin can skip another.
const SKIPS_PLUGINS: Version = Version { major: 3, minor: 18 };

/// The most seconds for which a decision may be cached: the plugin's limit of `remember`.
const MAX_REMEMBER: f64 = 10.0;

/// The filter that skips the call if a decision is cached.
const REMEMBERED: [&str; 4] = ["kc_hit", "!", "==", "1"];

/// user-upstream as a route has it.
pub(super) struct Workspaces<'d> {
    /// The plugin that calls the runner.
    call: RoutePlugin<'d>,
    /// Its conf's place.
    pub(super) conf: Spot<'d>,
    /// The conf, unless it is refused.
    pub(super) config: Option<UserUpstreamConfig>,
    /// What the conf, or the runner's setting, says.
    mode: UpstreamMode,
    /// What the route is made for: it has the gateway's plugin and not the forwarder.
    pub(super) route_mode: UpstreamMode,
}

/// Checks a route's calls, and says what it makes of user-upstream.
pub(super) fn check<'d>(
    route: &GatewayRoute<'d>,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) -> Option<Workspaces<'d>> {
    let mut workspaces: Option<Workspaces<'d>> = None;
    for plugin in route.plugins.iter().filter(|plugin| is_call(plugin.name)) {
        degradation(plugin, findings);
        for found in confs(plugin, context, findings) {
            if plugin.name == RESPONSE {
                findings.add(Rule::WrongPhase, &found.conf, "user-upstream is in ext-plugin-post-resp");
            } else if workspaces.is_some() {
                findings.add(Rule::CalledTwice, &found.conf, "user-upstream is on the route twice");
            } else {
                workspaces = Some(found);
            }
        }
    }
    let mut found = workspaces?;
    if route.plugin(DECISION).is_some() && !leads_to_forwarder(route, context) {
        found.route_mode = UpstreamMode::Direct;
    }
    order(route, &found, findings);
    filter(&found, findings);
    if let Some(response) = route.plugin(RESPONSE) {
        findings.add(Rule::ResponseCalled, &response.conf, "ext-plugin-post-resp on a route with WebSockets");
    }
    Some(found)
}

/// Checks the calls of a global rule or a consumer. Neither may name user-upstream.
pub(super) fn check_elsewhere(
    plugins: &[RoutePlugin<'_>],
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    for plugin in plugins.iter().filter(|plugin| is_call(plugin.name)) {
        degradation(plugin, findings);
        for found in confs(plugin, context, findings) {
            let text = format!("user-upstream is in {} outside of routes and services", plugin.name);
            findings.add(Rule::CalledElsewhere, &found.conf, text);
        }
    }
}

fn is_call(name: &str) -> bool {
    [REQUEST, LATE_REQUEST, RESPONSE].contains(&name)
}

fn degradation(plugin: &RoutePlugin<'_>, findings: &mut Findings) {
    let Some(setting) = plugin.conf.get("allow_degradation") else { return };
    if setting.is_true() {
        let text = format!("{} has allow_degradation: true", plugin.name);
        findings.add(Rule::DegradationAllowed, &setting, text);
    } else if !setting.is_false() {
        findings.add(Rule::ObjectRefused, &setting, "allow_degradation is neither true nor false");
    }
}

/// Checks a call's confs, each by its own plugin, and gives those of user-upstream.
fn confs<'d>(
    plugin: &RoutePlugin<'d>,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) -> Vec<Workspaces<'d>> {
    let list = plugin.conf.get_or_missing("conf");
    if !list.is_list() {
        findings.add(Rule::ConfMalformed, &list, format!("{} has no list of confs", plugin.name));
    }
    let mut workspaces = Vec::new();
    for entry in list.items() {
        let (Some(name), Some(value)) = (entry.text_of("name"), entry.text_of("value")) else {
            let text = "an entry without a text for its name or value; the value is JSON as a text";
            findings.add(Rule::ConfMalformed, &entry, text);
            continue;
        };
        let spot = entry.get_or_missing("value");
        if name == USER_UPSTREAM {
            workspaces.push(user_upstream(plugin, &spot, value, context, findings));
            continue;
        }
        match (context.judge)(name, value) {
            None => {
                let is_ours = name.replace('_', "-").eq_ignore_ascii_case(USER_UPSTREAM);
                let hint = if is_ours { ", where user-upstream may be meant" } else { "" };
                findings.add(Rule::PluginUnknown, &spot, format!("the plugin {name:?}{hint}"));
            }
            Some(Err(error)) => findings.add(Rule::ConfRefused, &spot, format!("{name}: {error}")),
            Some(Ok(())) => {}
        }
    }
    workspaces
}

fn user_upstream<'d>(
    plugin: &RoutePlugin<'d>,
    spot: &Spot<'d>,
    value: &str,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) -> Workspaces<'d> {
    if let Some(Err(error)) = (context.judge)(USER_UPSTREAM, value) {
        findings.add(Rule::ConfRefused, spot, format!("user-upstream: {error}"));
    }
    // A conf that is refused only for the runner that it meets still says what it wants.
    let config: Option<UserUpstreamConfig> = serde_json::from_str(value).ok();
    let chosen = config.as_ref().and_then(|config| config.upstream_mode);
    let mode = chosen.unwrap_or(context.options.mode);
    if let Some(config) = &config {
        if config.upstream.claim_names().next().is_none() {
            findings.add(Rule::OneForAll, spot, "upstream names no claim");
        }
        names::check(config, spot, findings);
    }
    Workspaces { call: plugin.clone(), conf: spot.clone(), config, mode, route_mode: mode }
}

/// The priority of a call among a request's plugins. A later phase comes after all of them.
fn call_priority(call: &RoutePlugin<'_>) -> f64 {
    match call.name {
        REQUEST => call.priority().unwrap_or(REQUEST_PRIORITY),
        _ => f64::NEG_INFINITY,
    }
}

fn priority_spot<'d>(plugin: &RoutePlugin<'d>) -> Spot<'d> {
    let meta = plugin.conf.get_or_missing("_meta");
    if meta.is_map() { meta.get_or_missing("priority") } else { meta }
}

/// Checks that the login comes first, then the plugin that drops what clients send, then
/// the call. A global rule's login comes before all of them.
fn order(route: &GatewayRoute<'_>, workspaces: &Workspaces<'_>, findings: &mut Findings) {
    let login = route.plugin(LOGIN).map(|login| login.priority().unwrap_or(LOGIN_PRIORITY));
    let call = call_priority(&workspaces.call);
    if let Some(login) = login.filter(|login| call >= *login) {
        let text = format!("ext-plugin-pre-req runs at priority {call}, openid-connect at {login}");
        findings.add(Rule::RunsBeforeLogin, &priority_spot(&workspaces.call), text);
    }
    let decision = route.plugin(DECISION).filter(|_| workspaces.route_mode == UpstreamMode::Direct);
    let Some(decision) = decision else { return };
    let priority = decision.priority().unwrap_or(DECISION_PRIORITY);
    if let Some(login) = login.filter(|login| priority >= *login) {
        let text = format!("{DECISION} runs at priority {priority}, openid-connect at {login}");
        findings.add(Rule::DecisionBeforeLogin, &priority_spot(decision), text);
    }
    if workspaces.call.name == LATE_REQUEST {
        let text = format!("{LATE_REQUEST} runs when {DECISION} has looked for the decision already");
        findings.add(Rule::DecisionDropped, &workspaces.call.conf, text);
    } else if call >= priority && login.is_none_or(|login| call < login) {
        let text = format!("ext-plugin-pre-req runs at priority {call}, {DECISION} at {priority}");
        findings.add(Rule::DecisionDropped, &priority_spot(&workspaces.call), text);
    }
}

/// Checks that no request goes past the call.
fn filter(workspaces: &Workspaces<'_>, findings: &mut Findings) {
    let Some(filter) = workspaces.call.filter() else { return };
    let is_remembered = filter.items().len() == 1
        && filter.items()[0].items().iter().map(Spot::text).eq(REMEMBERED.map(Some));
    if workspaces.route_mode == UpstreamMode::Forward || !is_remembered {
        let text = format!("{} has a filter of its own", workspaces.call.name);
        findings.add(Rule::CallFiltered, &filter, text);
    }
}

/// Checks that direct mode has its plugin in the gateway, and forward mode has not.
pub(super) fn check_decision(
    route: &GatewayRoute<'_>,
    workspaces: &Workspaces<'_>,
    gateway_version: Option<Version>,
    findings: &mut Findings,
) {
    let Some(decision) = route.plugin(DECISION) else {
        if workspaces.mode == UpstreamMode::Direct && route.is_complete {
            findings.add(
                Rule::DecisionPluginMissing,
                &workspaces.conf,
                format!("direct mode without {DECISION}"),
            );
        }
        return;
    };
    if workspaces.mode == UpstreamMode::Forward {
        findings.add(Rule::DecisionPluginUnused, &decision.conf, format!("{DECISION} with forward mode"));
    }
    if let Some(filter) = decision.filter() {
        findings.add(Rule::CallFiltered, &filter, format!("{DECISION} has a filter"));
    }
    let remember = decision.conf.get("remember");
    if let Some(remember) =
        remember.filter(|it| !it.number().is_some_and(|it| (0.0..=MAX_REMEMBER).contains(&it)))
    {
        findings.add(Rule::ObjectRefused, &remember, "remember is no number between 0 and 10");
    }
    if let Some(remember) = decision.conf.get("remember")
        && remember.number().is_some_and(|seconds| seconds > 0.0 && seconds <= MAX_REMEMBER)
        && let Some(version) = gateway_version.filter(|version| *version < SKIPS_PLUGINS)
    {
        let text = format!("remember, with APISIX {version}");
        findings.add(Rule::RememberedInVain, &remember, text);
    }
    if let Some(timeout) = &route.timeout {
        findings.add(Rule::RouteTimeout, timeout, "the route has a timeout of its own");
    }
}
