//! Where the gateway itself sends what a route matches.

use std::net::IpAddr;
use std::time::Duration;

use super::Checked;
use super::calls::Workspaces;
use super::document::Spot;
use super::finding::Findings;
use super::gateway::{Route, TargetNode, Upstream};
use super::rule::Rule;
use crate::upstream::UpstreamMode;

/// What the gateway waits for where nobody says otherwise.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(60);

/// What the runner waits for where neither its conf nor `--read-timeout` says otherwise.
const RUNNER_READ_TIMEOUT: Duration = Duration::from_secs(300);

/// Checks the upstream, WebSockets and timeouts of a route to workspaces.
pub(super) fn check(
    route: &Route<'_>,
    workspaces: Option<&Workspaces<'_>>,
    checked: &Checked<'_>,
    findings: &mut Findings,
) {
    if !route.websocket.is(true) {
        findings.add(Rule::WebSocketOff, &route.websocket, "WebSockets are not switched on");
    }
    if let Some(plugin) = route.plugin("traffic-split") {
        findings.add(Rule::UpstreamElsewhere, &plugin.conf, "traffic-split on a route to workspaces");
    }
    match &route.upstream {
        Some(upstream) => {
            check_nodes(upstream, workspaces, checked, findings);
            check_read_timeout(route, upstream, workspaces, findings);
        }
        None if !route.upstream_is_unknown => {
            findings.add(Rule::UpstreamMissing, &route.spot.missing("upstream"), "no upstream");
        }
        None => {}
    }
}

fn check_nodes(
    upstream: &Upstream<'_>,
    workspaces: Option<&Workspaces<'_>>,
    checked: &Checked<'_>,
    findings: &mut Findings,
) {
    if upstream.is_discovered {
        let text = "an upstream whose nodes the gateway finds out";
        findings.add(Rule::UpstreamOpen, &upstream.spot.get_or_missing("service_name"), text);
        return;
    }
    if upstream.nodes.is_empty() {
        findings.add(Rule::UpstreamMissing, &upstream.spot, "an upstream without nodes");
    }
    let mode = workspaces.map_or(UpstreamMode::Forward, |workspaces| workspaces.mode);
    for node in &upstream.nodes {
        let is_forwarder = is_loopback(&node.host) && node.port == Some(checked.forwarder_port);
        let is_right = match mode {
            UpstreamMode::Forward => is_forwarder,
            // Which ports are closed, nobody can tell from here; that none but the
            // machine's own is meant can be.
            UpstreamMode::Direct => is_loopback(&node.host) && !is_forwarder,
        };
        if !is_right {
            let expected = match mode {
                UpstreamMode::Forward => format!("the forwarder at 127.0.0.1:{}", checked.forwarder_port),
                UpstreamMode::Direct => "a closed port on loopback".to_owned(),
            };
            let text = format!("the upstream is {}, and not {expected}", shown(node));
            findings.add(Rule::UpstreamOpen, &node.spot, text);
        }
    }
}

fn shown(node: &TargetNode<'_>) -> String {
    match node.port {
        Some(port) => format!("{}:{port}", node.host),
        None => node.host.clone(),
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

/// In direct mode the workspace's own timeouts travel with the decision.
fn check_read_timeout(
    route: &Route<'_>,
    upstream: &Upstream<'_>,
    workspaces: Option<&Workspaces<'_>>,
    findings: &mut Findings,
) {
    if workspaces.is_some_and(|workspaces| workspaces.mode == UpstreamMode::Direct) {
        return;
    }
    let config = workspaces.and_then(|workspaces| workspaces.config.as_ref());
    let wanted = config.and_then(|config| config.timeouts.read).unwrap_or(RUNNER_READ_TIMEOUT);
    let timeout = route.timeout.as_ref().or(upstream.timeout.as_ref());
    let read = timeout.and_then(|timeout| timeout.get("read"));
    let waits = read.as_ref().map_or(Some(GATEWAY_TIMEOUT), duration);
    if waits.is_some_and(|waits| waits < wanted) {
        let spot =
            read.or_else(|| timeout.cloned()).unwrap_or_else(|| upstream.spot.get_or_missing("timeout"));
        let text = format!(
            "the gateway waits {:?} for what it reads, the runner {wanted:?}",
            waits.unwrap_or_default()
        );
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Subcommands};

    #[test]
    fn the_runner_waits_as_long_as_its_flag_says() {
        let Subcommands::Run(args) = Cli::parse_from(["kube-coders", "run"]).command else { panic!("run") };
        assert_eq!(humantime::parse_duration(&args.read_timeout), Ok(RUNNER_READ_TIMEOUT));
    }

    #[test]
    fn loopback_is_this_machine() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("[::1]", true),
            ("localhost", true),
            ("10.0.0.1", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
