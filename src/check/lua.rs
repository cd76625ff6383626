//! Functions in routes, and what else changes a request on its way.

use super::document::Spot;
use super::finding::Findings;
use super::gateway::Route;
use super::rule::Rule;

/// The plugins that run functions from their conf.
const FUNCTIONS: [&str; 2] = ["serverless-pre-function", "serverless-post-function"];

/// What a function names that chooses an upstream, in lower case.
const CHOOSES: [&str; 4] = ["apisix.upstream", "apisix.balancer", "ngx.balancer", "upstream.set"];

/// What a function names that wants to know who is asking, in lower case.
const IDENTITY: [&str; 4] = ["userinfo", "id-token", "id_token", "access-token"];

/// The functions of a route.
fn functions<'d>(route: &Route<'d>) -> Vec<Spot<'d>> {
    let plugins = FUNCTIONS.iter().filter_map(|name| route.plugin(name));
    let of_plugins = plugins.flat_map(|plugin| plugin.conf.items_of("functions"));
    of_plugins.chain(route.scripts.iter().cloned()).collect()
}

/// The functions that send a request somewhere by who is asking: those which the runner
/// takes the place of.
pub(super) fn choosers<'d>(route: &Route<'d>) -> Vec<Spot<'d>> {
    let chooses = |function: &Spot<'d>| {
        let text = function.text().unwrap_or_default().to_ascii_lowercase();
        let names = |words: &[&str]| words.iter().any(|word| text.contains(word));
        names(&CHOOSES) || names(&IDENTITY) && (text.contains("upstream") || text.contains("balancer"))
    };
    functions(route).into_iter().filter(chooses).collect()
}

/// Checks a route to workspaces for what changes requests beside the runner.
pub(super) fn check(route: &Route<'_>, findings: &mut Findings) {
    let choosers = choosers(route);
    for function in functions(route) {
        if choosers.iter().any(|chooser| chooser.path == function.path) {
            findings.add(Rule::LuaChooses, &function, "a Lua function that chooses the upstream");
        } else {
            findings.add(Rule::LuaOnRoute, &function, "a Lua function on a route to workspaces");
        }
    }
    if let Some(plugin) = route.plugin("proxy-rewrite") {
        for name in ["uri", "regex_uri"] {
            if let Some(spot) = plugin.conf.get(name) {
                findings.add(Rule::PathRewritten, &spot, format!("proxy-rewrite with {name}"));
            }
        }
    }
}
