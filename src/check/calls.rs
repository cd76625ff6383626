//! The calls of the runner: in which order, with which confs.

use super::Checked;
use super::document::Spot;
use super::finding::Findings;
use super::gateway::{Plugin, Route};
use super::rule::Rule;
use crate::plugin::{Plugin as _, parse_conf};
use crate::upstream::UpstreamMode;
use crate::user_upstream::{UserUpstream, UserUpstreamConfig};

/// The gateway's plugins that call a runner, with their priorities.
const BEFORE_LOGIN: &str = "ext-plugin-pre-req";
const AFTER_LOGIN: &str = "ext-plugin-post-req";
const RESPONSE: &str = "ext-plugin-post-resp";

/// What ext-plugin-pre-req's priority is if nobody says otherwise.
const PRE_REQ_PRIORITY: f64 = 12000.0;

/// When openid-connect runs.
pub(super) const LOGIN_PRIORITY: f64 = 2599.0;

/// When kube-coders-upstream runs.
const DECISION_PRIORITY: f64 = 2598.0;

/// The filter that leaves the call out where a decision is remembered.
const REMEMBERED: [&str; 4] = ["kc_hit", "!", "==", "1"];

/// user-upstream as a route has it.
pub(super) struct Workspaces<'d> {
    /// The plugin that calls the runner.
    pub(super) call: Plugin<'d>,
    /// Its conf's place.
    pub(super) conf: Spot<'d>,
    /// The conf, unless it is refused.
    pub(super) config: Option<UserUpstreamConfig>,
    pub(super) mode: UpstreamMode,
}

/// Checks a route's calls, and says what it makes of user-upstream.
pub(super) fn check<'d>(
    route: &Route<'d>,
    checked: &Checked<'_>,
    findings: &mut Findings,
) -> Option<Workspaces<'d>> {
    let mut workspaces = None;
    for plugin in route.plugins.iter().filter(|plugin| is_call(plugin.name)) {
        if plugin.conf.says("allow_degradation", true) {
            findings.add(
                Rule::DegradationAllowed,
                &plugin.conf.get_or_missing("allow_degradation"),
                format!("{} has allow_degradation: true", plugin.name),
            );
        }
        if let Some(found) = confs(plugin, checked, findings) {
            if plugin.name == RESPONSE {
                let text = "user-upstream stands in ext-plugin-post-resp";
                findings.add(Rule::WrongPhase, &found.conf, text);
            } else {
                order(route, plugin, findings);
                filter(plugin, found.mode, findings);
                workspaces = Some(found);
            }
        }
    }
    if let (Some(response), Some(_)) = (route.plugin(RESPONSE), &workspaces) {
        let text = "ext-plugin-post-resp on a route with WebSockets";
        findings.add(Rule::ResponseCalled, &response.conf, text);
    }
    workspaces
}

/// Checks that a global rule calls no user-upstream.
pub(super) fn check_global<'d>(plugins: &[Plugin<'d>], checked: &Checked<'_>, findings: &mut Findings) {
    for plugin in plugins.iter().filter(|plugin| is_call(plugin.name)) {
        if let Some(found) = confs(plugin, checked, findings) {
            let text = format!("user-upstream stands in {} of a global rule", plugin.name);
            findings.add(Rule::GlobalCall, &found.conf, text);
        }
    }
}

fn is_call(name: &str) -> bool {
    [BEFORE_LOGIN, AFTER_LOGIN, RESPONSE].contains(&name)
}

/// Checks a call's confs, each by its own plugin.
fn confs<'d>(plugin: &Plugin<'d>, checked: &Checked<'_>, findings: &mut Findings) -> Option<Workspaces<'d>> {
    let list = plugin.conf.get_or_missing("conf");
    if !list.is_list() {
        findings.add(Rule::ConfMalformed, &list, format!("{} has no list of confs", plugin.name));
    }
    let mut workspaces = None;
    for entry in list.items() {
        let (Some(name), Some(value)) = (entry.text_of("name"), entry.text_of("value")) else {
            let text = "an entry without a text for its name or value; the value is JSON as a text";
            findings.add(Rule::ConfMalformed, &entry, text);
            continue;
        };
        let spot = entry.get_or_missing("value");
        if name == UserUpstream::NAME {
            workspaces = Some(user_upstream(plugin, &spot, value, checked, findings));
        } else {
            match checked.registry.prepare(name.as_bytes(), value.as_bytes()) {
                None => findings.add(Rule::PluginUnknown, &spot, format!("the plugin {name:?}")),
                Some(Err(error)) => findings.add(Rule::ConfRefused, &spot, format!("{name}: {error}")),
                Some(Ok(_)) => {}
            }
        }
    }
    workspaces
}

fn user_upstream<'d>(
    plugin: &Plugin<'d>,
    spot: &Spot<'d>,
    value: &str,
    checked: &Checked<'_>,
    findings: &mut Findings,
) -> Workspaces<'d> {
    let mut mode = checked.ways.mode;
    let mut refused = |text: String| findings.add(Rule::ConfRefused, spot, format!("user-upstream: {text}"));
    let config = match parse_conf::<UserUpstreamConfig>(value.as_bytes()) {
        Ok(config) => {
            mode = config.upstream_mode.unwrap_or(mode);
            if let Err(error) = config.way(checked.ways) {
                refused(format!("upstream: {error}"));
            }
            Some(config)
        }
        Err(error) => {
            refused(error.to_string());
            None
        }
    };
    Workspaces { call: plugin.clone(), conf: spot.clone(), config, mode }
}

/// Checks that the runner is asked behind the login.
fn order(route: &Route<'_>, plugin: &Plugin<'_>, findings: &mut Findings) {
    if plugin.name != BEFORE_LOGIN || route.plugin("openid-connect").is_none() {
        return;
    }
    let login = route.plugin("openid-connect").and_then(Plugin::priority).unwrap_or(LOGIN_PRIORITY);
    let priority = plugin.priority().unwrap_or(PRE_REQ_PRIORITY);
    if priority >= login {
        let meta = plugin.conf.get_or_missing("_meta");
        let spot = if meta.is_map() { meta.get_or_missing("priority") } else { meta };
        let text = format!("ext-plugin-pre-req runs at priority {priority}, openid-connect at {login}");
        findings.add(Rule::RunsBeforeLogin, &spot, text);
    }
}

/// Checks that no request goes past the call.
fn filter(plugin: &Plugin<'_>, mode: UpstreamMode, findings: &mut Findings) {
    let Some(filter) = plugin.filter() else { return };
    let is_remembered = filter.items().len() == 1
        && filter.items()[0].items().iter().map(Spot::text).eq(REMEMBERED.map(Some));
    if mode == UpstreamMode::Forward || !is_remembered {
        findings.add(Rule::CallFiltered, &filter, format!("{} has a filter of its own", plugin.name));
    }
}

/// Checks that direct mode has its plugin in the gateway, and forward mode has not.
pub(super) fn check_decision(route: &Route<'_>, workspaces: &Workspaces<'_>, findings: &mut Findings) {
    let decision = route.plugin("kube-coders-upstream");
    match (workspaces.mode, decision) {
        (UpstreamMode::Forward, Some(plugin)) => {
            findings.add(
                Rule::DecisionPluginUnused,
                &plugin.conf,
                "kube-coders-upstream beside forward mode",
            );
        }
        (UpstreamMode::Direct, None) if route.is_complete => {
            let text = "direct mode without kube-coders-upstream";
            findings.add(Rule::DecisionPluginMissing, &workspaces.conf, text);
        }
        (UpstreamMode::Direct, Some(_)) => {
            let call = &workspaces.call;
            let priority = call.priority().unwrap_or(PRE_REQ_PRIORITY);
            if call.name == BEFORE_LOGIN && (DECISION_PRIORITY..LOGIN_PRIORITY).contains(&priority) {
                let text = format!("ext-plugin-pre-req runs at priority {priority}");
                findings.add(Rule::DecisionDropped, &call.conf.get_or_missing("_meta"), text);
            }
            if let Some(timeout) = &route.timeout {
                findings.add(Rule::RouteTimeout, timeout, "the route has a timeout of its own");
            }
        }
        _ => {}
    }
}
