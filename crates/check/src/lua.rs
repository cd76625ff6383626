//! Functions in routes, and other things that change a request on its way.

use super::document::Spot;
use super::finding::Findings;
use super::route::{GatewayRoute, RoutePlugin};
use super::rule::Rule;
use super::runner_facts::{DECISION_HEADER, STAMP_HEADER};

/// The plugins that run functions from their conf.
const FUNCTIONS: [&str; 2] = ["serverless-pre-function", "serverless-post-function"];

/// When a request has been sent already.
const LATE: [&str; 3] = ["header_filter", "body_filter", "log"];

/// What a function names that chooses an upstream, in lower case.
const CHOOSES: [&str; 4] = ["apisix.upstream", "apisix.balancer", "ngx.balancer", "upstream.set"];

/// What a function names that reads the user's identity, in lower case.
const IDENTITY: [&str; 4] = ["userinfo", "id-token", "id_token", "access-token"];

/// Headers that carry the user's identity or the request's destination.
const DECIDING: [&str; 9] = [
    "x-userinfo",
    "x-id-token",
    "x-raw-id-token",
    "x-access-token",
    "authorization",
    "x-forwarded-user",
    STAMP_HEADER,
    DECISION_HEADER,
    "host",
];

/// The functions that plugins of a route run, each plugin's `_meta.pre_function` too.
fn functions<'d>(route: &GatewayRoute<'d>) -> Vec<Spot<'d>> {
    let plugins = FUNCTIONS.iter().filter_map(|name| route.plugin(name));
    let of_plugins = plugins.flat_map(|plugin| plugin.conf.items_of("functions"));
    let before_plugins = route.plugins.iter().filter_map(|plugin| plugin.conf.at(&["_meta", "pre_function"]));
    of_plugins.chain(before_plugins).collect()
}

/// The functions that choose a destination by the user. The runner replaces them.
pub(super) fn choosers<'d>(route: &GatewayRoute<'d>) -> Vec<Spot<'d>> {
    let chooses = |function: &Spot<'d>| {
        // `upstream_status` and the like are results of a choice that was made.
        let text = function.text().unwrap_or_default().to_ascii_lowercase().replace("upstream_", "");
        let names = |words: &[&str]| words.iter().any(|word| text.contains(word));
        names(&CHOOSES) || names(&IDENTITY) && (text.contains("upstream") || text.contains("balancer"))
    };
    // A later phase finds the upstream chosen.
    let is_late = |function: &Spot<'d>| {
        let of =
            |plugin: &&RoutePlugin<'d>| function.path.starts_with(&format!("{}.functions", plugin.conf.path));
        let phase = route.plugins.iter().find(of).and_then(|plugin| plugin.conf.text_of("phase"));
        phase.is_some_and(|phase| LATE.contains(&phase))
    };
    let all = functions(route).into_iter().filter(|function| !is_late(function));
    all.chain(route.scripts.iter().cloned()).filter(chooses).collect()
}

/// Checks a route to workspaces, or a global rule, for functions other than the runner that
/// change requests.
pub(super) fn check(route: &GatewayRoute<'_>, findings: &mut Findings) {
    let choosers = choosers(route);
    let is_chooser = |function: &Spot<'_>| choosers.iter().any(|chooser| chooser.path == function.path);
    for chooser in &choosers {
        findings.add(Rule::LuaChooses, chooser, "a Lua function that chooses the upstream");
    }
    for function in functions(route).iter().filter(|function| !is_chooser(function)) {
        findings.add(Rule::LuaOnRoute, function, "a Lua function on the way to workspaces");
    }
    for script in &route.scripts {
        findings.add(Rule::ScriptOnRoute, script, "a Lua script on a route to workspaces");
    }
    rewrites(route, findings);
}

/// Checks what takes a path, a host or a deciding header for another.
fn rewrites(route: &GatewayRoute<'_>, findings: &mut Findings) {
    if let Some(plugin) = route.plugin("proxy-rewrite") {
        for name in ["uri", "regex_uri", "host", "method", "use_real_request_uri_unsafe"] {
            if let Some(spot) = plugin.conf.get(name) {
                findings.add(Rule::PathRewritten, &spot, format!("proxy-rewrite with {name}"));
            }
        }
        let headers = plugin.conf.get_or_missing("headers");
        let changes = [Some(headers.clone()), headers.get("set"), headers.get("add")];
        for (name, spot) in changes.into_iter().flatten().flat_map(|change| change.entries()) {
            // An empty value takes the header away.
            if DECIDING.contains(&&*name.to_ascii_lowercase()) && spot.text() != Some("") {
                findings.add(Rule::IdentityRewritten, &spot, format!("proxy-rewrite writes {name}"));
            }
        }
    }
    for plugin in route.plugins.iter().filter(|plugin| plugin.name == "forward-auth") {
        for header in plugin.conf.items_of("upstream_headers") {
            let name = header.text().unwrap_or_default();
            if DECIDING.contains(&&*name.to_ascii_lowercase()) {
                findings.add(Rule::IdentityRewritten, &header, format!("forward-auth writes {name}"));
            }
        }
    }
}
