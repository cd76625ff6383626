//! Routes in relation to each other: those that share a host, or shadow each other.

use std::collections::{HashMap, HashSet};

use super::document::Spot;
use super::finding::Findings;
use super::login::{LOGIN, matches_host, matches_path};
use super::route::GatewayRoute;
use super::rule::Rule;
use super::trust::is_for_navigations;
use kube_coders_identity::Url;

/// Checks the routes of a gateway. Some of them lead to workspaces.
pub(super) fn check(routes: &[GatewayRoute<'_>], to_workspaces: &[bool], findings: &mut Findings) {
    sessions(routes, findings);
    callbacks(routes, findings);
    others_of_the_host(routes, to_workspaces, findings);
    priorities(routes, to_workspaces, findings);
}

/// Checks that the routes of one host have one session.
fn sessions(routes: &[GatewayRoute<'_>], findings: &mut Findings) {
    let mut first_of = HashMap::new();
    for route in routes {
        let login = route.plugin(LOGIN).filter(|plugin| !plugin.conf.has_true("bearer_only"));
        let Some(plugin) = login else { continue };
        let firsts: Vec<_> =
            hosts_of(route).map(|host| *first_of.entry(host).or_insert(&plugin.conf)).collect();
        if let Some(name) = firsts.into_iter().find_map(|first| different(&plugin.conf, first)) {
            let text = format!("{name} differs from that of another route of the same host");
            findings.add(Rule::SessionsDiffer, &plugin.conf, text);
        }
    }
}

/// The first field in which two logins differ so that they can't share a session.
fn different(one: &Spot<'_>, other: &Spot<'_>) -> Option<&'static str> {
    let paths: [&[&str]; 5] = [
        &["client_id"],
        &["session", "secret"],
        &["session", "cookie_name"],
        &["session", "cookie_path"],
        &["redirect_uri"],
    ];
    let names = ["client_id", "session.secret", "session.cookie_name", "session.cookie_path", "redirect_uri"];
    let text =
        |conf: &Spot<'_>, path: &[&str]| conf.at(path).and_then(|value| value.text().map(str::to_owned));
    paths.into_iter().zip(names).find(|(path, _)| text(one, path) != text(other, path)).map(|(_, name)| name)
}

/// Checks that a login comes back to a route that has one.
fn callbacks(routes: &[GatewayRoute<'_>], findings: &mut Findings) {
    let mut paths: HashMap<&str, Vec<&str>> = HashMap::new();
    for route in routes.iter().filter(|route| route.plugin(LOGIN).is_some()) {
        for host in hosts_of(route) {
            paths.entry(host).or_default().extend(&route.paths);
        }
    }
    for route in routes {
        let Some(plugin) = route.plugin(LOGIN).filter(|plugin| !plugin.conf.has_true("bearer_only")) else {
            continue;
        };
        let Some(url) = plugin.conf.text_of("redirect_uri").and_then(|text| Url::parse(text).ok()) else {
            continue;
        };
        let (host, path) = (url.host_str().unwrap_or_default(), url.path());
        let of_host = hosts_of(route)
            .filter(|pattern| *pattern == ANY_HOST || matches_host(pattern, host))
            .filter_map(|host| paths.get(host));
        let known: Vec<_> = of_host.flatten().collect();
        if !known.is_empty() && !known.iter().any(|pattern| matches_path(pattern, path)) {
            let text = format!("redirect_uri has the path {path:?}, which no route with a login has");
            findings.add(Rule::RedirectUriForeign, &plugin.conf.get_or_missing("redirect_uri"), text);
        }
    }
}

/// Checks that no other upstream gets the session's cookie, which is for the whole host.
fn others_of_the_host(routes: &[GatewayRoute<'_>], to_workspaces: &[bool], findings: &mut Findings) {
    let ours = || routes.iter().zip(to_workspaces).filter(|(_, ours)| **ours).map(|(route, _)| route);
    let hosts: HashSet<_> = ours().flat_map(session_hosts).collect();
    let others = routes.iter().zip(to_workspaces).filter(|(_, ours)| !**ours).map(|(route, _)| route);
    for route in others {
        let is_answered_here = route.upstream.is_none() && !route.upstream_is_unknown || is_answered(route);
        let shares = hosts.iter().any(|ours| hosts_of(route).any(|theirs| overlap(ours, theirs)));
        if shares && !is_answered_here && route.plugin(LOGIN).is_none() {
            let text = "a route without a login on the host of workspaces";
            findings.add(Rule::SessionReachesOther, &route.spot, text);
        }
    }
}

/// Checks that a route for navigations comes before the one for the rest.
fn priorities(routes: &[GatewayRoute<'_>], to_workspaces: &[bool], findings: &mut Findings) {
    let ours = || routes.iter().zip(to_workspaces).filter(|(_, ours)| **ours).map(|(route, _)| route);
    let mut plain: HashMap<_, f64> = HashMap::new();
    for route in ours().filter(|route| route.conditions.is_none()) {
        for place in places(route) {
            let highest = plain.entry(place).or_insert(f64::NEG_INFINITY);
            *highest = highest.max(route.priority);
        }
    }
    for route in ours().filter(|route| is_for_navigations(route)) {
        let is_shadowed = |place| plain.get(&place).is_some_and(|priority| route.priority <= *priority);
        if places(route).any(is_shadowed) {
            let text = format!("a route for navigations with priority {}", route.priority);
            findings.add(Rule::RouteShadowed, &route.spot.get_or_missing("priority"), text);
        }
    }
}

/// Whether a plugin answers each request, so that no upstream is asked.
pub(super) fn is_answered(route: &GatewayRoute<'_>) -> bool {
    let fault = route.plugin("fault-injection").and_then(|plugin| plugin.conf.get("abort"));
    let always = fault.is_some_and(|abort| abort.get("vars").is_none() && abort.get("percentage").is_none());
    always
        || route.plugin("mocking").is_some()
        || route.plugin("redirect").is_some_and(|it| it.conf.get("uri").is_some())
}

/// How many of a route's hosts and paths are looked at together: more than routes have.
const MAX_PLACES: usize = 1000;

/// Each host of a route with each of its paths.
fn places<'r, 'd>(route: &'r GatewayRoute<'d>) -> impl Iterator<Item = (&'d str, &'d str)> + use<'r, 'd> {
    hosts_of(route).flat_map(|host| route.paths.iter().map(move |path| (host, *path))).take(MAX_PLACES)
}

/// The host of a route that names none: it serves all of them.
const ANY_HOST: &str = "*";

/// The hosts of a route.
fn hosts_of<'r, 'd>(route: &'r GatewayRoute<'d>) -> impl Iterator<Item = &'d str> + use<'r, 'd> {
    let any = route.hosts.is_empty().then_some(ANY_HOST);
    route.hosts.iter().copied().chain(any)
}

/// The hosts at which browsers have the session of a route. One that serves all hosts has its
/// login at the host of the redirect URI.
fn session_hosts(route: &GatewayRoute<'_>) -> Vec<String> {
    let login = route.plugin(LOGIN).or(route.global_login.as_ref());
    let uri = login.and_then(|plugin| Url::parse(plugin.conf.text_of("redirect_uri")?).ok());
    match uri.as_ref().and_then(Url::host_str).filter(|_| route.hosts.is_empty()) {
        Some(host) => vec![host.to_owned()],
        None => hosts_of(route).map(str::to_owned).collect(),
    }
}

/// Whether a request's host can fit both of these.
fn overlap(one: &str, other: &str) -> bool {
    one == ANY_HOST
        || other == ANY_HOST
        || matches_host(one, other)
        || matches_host(other, one)
        || one
            .strip_prefix('*')
            .zip(other.strip_prefix('*'))
            .is_some_and(|(one, other)| one.ends_with(other) || other.ends_with(one))
}
