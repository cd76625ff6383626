//! The destination to which the gateway itself sends a route's requests.

use std::time::Duration;

use super::addresses::{is_forwarder, is_loopback};
use super::calls::Workspaces;
use super::document::Spot;
use super::finding::Findings;
use super::options::CheckContext;
use super::route::{GatewayRoute, RouteUpstream, UpstreamNode};
use super::rule::Rule;
use super::runner_facts::READ_TIMEOUT;
use apisix_plugin_runner::upstream::UpstreamMode;

/// How long the gateway waits by default.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(60);

/// The gateway's own default ports: for clients with and without
/// TLS, the Admin API, the Control API, metrics, and its status.
const GATEWAY_PORTS: [u16; 7] = [9080, 9443, 9180, 9090, 9091, 9092, 7085];

/// Plugins that send a request somewhere else, or a copy of it.
const ELSEWHERE: [&str; 11] = [
    "traffic-split",
    "proxy-mirror",
    "ai-proxy",
    "ai-proxy-multi",
    "aws-lambda",
    "azure-functions",
    "openfunction",
    "openwhisk",
    "kafka-proxy",
    "dubbo-proxy",
    "http-dubbo",
];

/// Plugins that give one request's answer to another.
const SHARED: [&str; 2] = ["proxy-cache", "graphql-proxy-cache"];

/// Checks the upstream, WebSockets and timeouts of a route to workspaces.
pub(super) fn check(
    route: &GatewayRoute<'_>,
    workspaces: Option<&Workspaces<'_>>,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    if !route.websocket.is_true() && !route.websocket_is_unknown {
        findings.add(Rule::WebSocketOff, &route.websocket, "WebSockets are not enabled");
    }
    check_plugins(route, findings);
    match &route.upstream {
        Some(upstream) => {
            check_nodes(upstream, workspaces, context, findings);
            if mode_of(workspaces) == UpstreamMode::Forward {
                check_manner(upstream, findings);
                check_read_timeout(route, upstream, workspaces, findings);
            }
        }
        None if !route.upstream_is_unknown => {
            findings.add(Rule::UpstreamMissing, &route.spot.missing("upstream"), "no upstream");
        }
        None => {}
    }
}

/// Checks the plugins of a route, or a global rule, that decide where requests go.
pub(super) fn check_plugins(route: &GatewayRoute<'_>, findings: &mut Findings) {
    for plugin in &route.plugins {
        if ELSEWHERE.contains(&plugin.name) {
            let text = format!("{} on the way to workspaces", plugin.name);
            findings.add(Rule::UpstreamElsewhere, &plugin.conf, text);
        }
        if SHARED.contains(&plugin.name) {
            let text = format!("{} on the way to workspaces", plugin.name);
            findings.add(Rule::AnswersShared, &plugin.conf, text);
        }
    }
}

fn mode_of(workspaces: Option<&Workspaces<'_>>) -> UpstreamMode {
    workspaces.map_or(UpstreamMode::Forward, |workspaces| workspaces.route_mode)
}

fn check_nodes(
    upstream: &RouteUpstream<'_>,
    workspaces: Option<&Workspaces<'_>>,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    if let Some(discovered) = &upstream.discovered {
        findings.add(Rule::UpstreamOpen, discovered, "an upstream whose nodes the gateway discovers");
        return;
    }
    if upstream.nodes.is_empty() {
        findings.add(Rule::UpstreamMissing, &upstream.spot, "an upstream without nodes");
    }
    for node in &upstream.nodes {
        let (is_right, expected) = match mode_of(workspaces) {
            UpstreamMode::Forward => {
                (is_forwarder(node, context), format!("the forwarder at {}", context.options.forwarder))
            }
            UpstreamMode::Direct => (is_closed(node, context), "a closed port on loopback".to_owned()),
        };
        if !is_right {
            let text = format!("the upstream is {}, and not {expected}", shown(node));
            findings.add(Rule::UpstreamOpen, &node.spot, text);
        }
    }
}

/// Whether no known program listens there. Which ports are closed can't be told from a
/// file; that none but the machine's own is meant, and none of those in use, can.
fn is_closed(node: &UpstreamNode<'_>, context: &CheckContext<'_>) -> bool {
    let is_in_use = node
        .port
        .is_none_or(|port| GATEWAY_PORTS.contains(&port) || port == context.options.forwarder.port());
    is_loopback(&node.host) && !is_in_use
}

fn shown(node: &UpstreamNode<'_>) -> String {
    match node.port {
        Some(port) => format!("{}:{port}", node.host),
        None => node.host.clone(),
    }
}

/// Checks how the forwarder is spoken to.
fn check_manner(upstream: &RouteUpstream<'_>, findings: &mut Findings) {
    for (setting, name, good) in
        [(&upstream.scheme, "scheme", "http"), (&upstream.pass_host, "pass_host", "pass")]
    {
        if let Some(spot) = setting.as_ref().filter(|spot| spot.text() != Some(good)) {
            findings.add(Rule::UpstreamUnfit, spot, format!("{name} is not {good:?}"));
        }
    }
}

/// In direct mode the workspace's own timeouts travel with the decision.
fn check_read_timeout(
    route: &GatewayRoute<'_>,
    upstream: &RouteUpstream<'_>,
    workspaces: Option<&Workspaces<'_>>,
    findings: &mut Findings,
) {
    let config = workspaces.and_then(|workspaces| workspaces.config.as_ref());
    let wanted = config.and_then(|config| config.timeouts.read).unwrap_or(READ_TIMEOUT);
    let timeout = route.timeout.as_ref().or(upstream.timeout.as_ref());
    let read = timeout.and_then(|timeout| timeout.get("read"));
    let waits = read.as_ref().map_or(Some(GATEWAY_TIMEOUT), duration);
    if let Some(waits) = waits.filter(|waits| *waits < wanted) {
        let spot =
            read.or_else(|| timeout.cloned()).unwrap_or_else(|| upstream.spot.get_or_missing("timeout"));
        let text = format!("the gateway waits {waits:?} for what it reads, the runner {wanted:?}");
        findings.add(Rule::ReadTimeoutShort, &spot, text);
    }
}

/// Seconds as a number, or a text with its unit.
fn duration(spot: &Spot<'_>) -> Option<Duration> {
    match spot.number() {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => humantime::parse_duration(spot.text()?).ok(),
    }
}
