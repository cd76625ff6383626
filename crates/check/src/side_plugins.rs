//! Other plugins on the way to workspaces: what they take away, or let others do.

use super::document::Spot;
use super::finding::Findings;
use super::login::LOGIN;
use super::route::GatewayRoute;
use super::rule::Rule;
use super::runner_facts::{DECISION_HEADER, STAMP_HEADER};

/// When these run by default.
const REDIRECT_PRIORITY: f64 = 900.0;
const LOGIN_PRIORITY: f64 = 2599.0;

/// Headers that the forwarder, the gateway's plugin for direct mode, or a workspace needs.
const NEEDED: [&str; 13] = [
    "cookie",
    "origin",
    "host",
    "upgrade",
    "connection",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "x-forwarded-user",
    "x-forwarded-proto",
    "x-forwarded-host",
    STAMP_HEADER,
    DECISION_HEADER,
];

/// Checks the plugins of a route to workspaces, or of a global rule.
pub(super) fn check(route: &GatewayRoute<'_>, findings: &mut Findings) {
    redirect(route, findings);
    cors(route, findings);
    removed_headers(route, findings);
}

fn redirect(route: &GatewayRoute<'_>, findings: &mut Findings) {
    let Some((redirect, login)) = route.plugin("redirect").zip(route.plugin(LOGIN)) else { return };
    let runs_at = redirect.priority().unwrap_or(REDIRECT_PRIORITY);
    let login_at = login.priority().unwrap_or(LOGIN_PRIORITY);
    if redirect.conf.has_true("http_to_https") && runs_at <= login_at {
        let text = format!("redirect runs at {runs_at}, after openid-connect at {login_at}");
        findings.add(Rule::RedirectLate, &redirect.conf, text);
    }
}

fn cors(route: &GatewayRoute<'_>, findings: &mut Findings) {
    if let Some(cors) = route.plugin("cors").filter(|cors| cors.conf.has_true("allow_credential")) {
        let spot = cors.conf.get_or_missing("allow_credential");
        findings.add(Rule::CorsCredentials, &spot, "cors with allow_credential: true");
    }
}

fn removed_headers(route: &GatewayRoute<'_>, findings: &mut Findings) {
    let Some(plugin) = route.plugin("proxy-rewrite") else { return };
    let headers = plugin.conf.get_or_missing("headers");
    let is_needed = |name: &str| NEEDED.contains(&&*name.to_ascii_lowercase());
    for spot in headers.items_of("remove") {
        if let Some(name) = spot.text().filter(|name| is_needed(name)) {
            findings.add(Rule::HeaderRemoved, &spot, format!("proxy-rewrite removes {name}"));
        }
    }
    // An empty value takes the header away, too.
    let set = [Some(headers.clone()), headers.get("set")];
    let emptied = |(name, spot): &(&str, Spot<'_>)| is_needed(name) && spot.text() == Some("");
    for (name, spot) in set.into_iter().flatten().flat_map(|change| change.entries()).filter(emptied) {
        findings.add(Rule::HeaderRemoved, &spot, format!("proxy-rewrite removes {name}"));
    }
}
