//! The login: openid-connect as a route has it, and what the runner's conf expects of it.

use std::collections::HashMap;

use reqwest::Url;

use super::Checked;
use super::calls::Workspaces;
use super::destination::is_loopback;
use super::document::Spot;
use super::finding::Findings;
use super::gateway::{Plugin, Route};
use super::rule::Rule;
use super::version::Version;
use crate::headers::HeaderName;
use crate::user_upstream::{IdentityConfig, UserUpstreamConfig, Verified};

pub(super) const LOGIN: &str = "openid-connect";

/// The session's cookie where nobody names one (lua-resty-session 4).
const SESSION_COOKIE: &str = "session";

/// Where a login ends by default.
const LOGOUT_PATH: &str = "/logout";

/// What a session may have; the gateway refuses anything else.
const SESSION_FIELDS: [&str; 12] = [
    "secret",
    "cookie_name",
    "cookie_path",
    "cookie_domain",
    "cookie_secure",
    "cookie_http_only",
    "cookie_same_site",
    "idling_timeout",
    "rolling_timeout",
    "absolute_timeout",
    "cookie",
    "storage",
];

/// A session's secret has at least so many characters.
const MIN_SECRET: usize = 16;

/// The first versions in which the gateway removes identity headers that clients send,
/// and in which it passes the signed ID token on.
const REMOVES_HEADERS: Version = Version { major: 3, minor: 17 };
const HAS_RAW_TOKEN: Version = Version { major: 3, minor: 18 };

/// Checks what holds for any login, whatever its route is for.
pub(super) fn check(route: &Route<'_>, findings: &mut Findings) {
    let Some(plugin) = route.plugin(LOGIN) else { return };
    let conf = &plugin.conf;
    required(plugin, findings);
    session(plugin, findings);
    redirect_uri(route, conf, findings);
    let expect = |findings: &mut Findings, rule, name: &str, bad: bool| {
        if conf.says(name, bad) {
            findings.add(rule, &conf.get_or_missing(name), format!("{name}: {bad}"));
        }
    };
    expect(findings, Rule::TlsUnverified, "ssl_verify", false);
    expect(findings, Rule::NoneAccepted, "accept_none_alg", true);
    for (rule, name, good) in [
        (Rule::UnsupportedAccepted, "accept_unsupported_alg", false),
        (Rule::PkceOff, "use_pkce", true),
        (Rule::NonceOff, "use_nonce", true),
    ] {
        if !conf.says(name, good) && !conf.says("bearer_only", true) {
            let found =
                if conf.get(name).is_some() { format!("{name}: {}", !good) } else { format!("no {name}") };
            findings.add(rule, &conf.get_or_missing(name), found);
        }
    }
    let discovery = conf.text_of("discovery").and_then(|text| Url::parse(text).ok());
    if discovery.is_some_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback)) {
        let text = "discovery over http, to another machine";
        findings.add(Rule::DiscoveryOverHttp, &conf.get_or_missing("discovery"), text);
    }
}

fn required(plugin: &Plugin<'_>, findings: &mut Findings) {
    for name in ["client_id", "discovery"] {
        if plugin.conf.text_of(name).is_none() && !plugin.has_secret {
            findings.add(Rule::LoginRefused, &plugin.conf.missing(name), format!("no {name}"));
        }
    }
}

fn session(plugin: &Plugin<'_>, findings: &mut Findings) {
    let conf = &plugin.conf;
    let session = conf.get_or_missing("session");
    for (name, spot) in session.entries() {
        if !SESSION_FIELDS.contains(&name) && name != "redis" {
            findings.add(Rule::LoginRefused, &spot, format!("session has no field {name:?}"));
        }
    }
    if conf.says("bearer_only", true) {
        return;
    }
    match session.text_of("secret") {
        None if plugin.has_secret => {}
        None => findings.add(Rule::SessionSecretMissing, &session.missing("secret"), "no session.secret"),
        Some(secret) if secret.chars().count() < MIN_SECRET => {
            let text = format!("session.secret has fewer than {MIN_SECRET} characters");
            findings.add(Rule::LoginRefused, &session.get_or_missing("secret"), text);
        }
        Some(_) => {}
    }
    if !session.says("cookie_secure", true) {
        findings.add(
            Rule::CookieNotSecure,
            &session.get_or_missing("cookie_secure"),
            "cookie_secure is not true",
        );
    }
    if session.says("cookie_http_only", false) {
        findings.add(
            Rule::CookieReadable,
            &session.get_or_missing("cookie_http_only"),
            "cookie_http_only: false",
        );
    }
    if session.text_of("cookie_same_site") == Some("None") {
        let text = "cookie_same_site: None";
        findings.add(Rule::CookieCrossSite, &session.get_or_missing("cookie_same_site"), text);
    }
}

fn redirect_uri(route: &Route<'_>, conf: &Spot<'_>, findings: &mut Findings) {
    if conf.says("bearer_only", true) {
        return;
    }
    let Some(text) = conf.text_of("redirect_uri") else {
        findings.add(Rule::RedirectUriMissing, &conf.missing("redirect_uri"), "no redirect_uri");
        return;
    };
    let wrong = match Url::parse(text) {
        Err(_) => Some("redirect_uri is no whole URL, so its host is what a client says it is".to_owned()),
        Ok(url) if url.scheme() != "https" => Some(format!("redirect_uri is at {}://", url.scheme())),
        Ok(url) => {
            let host = url.host_str().unwrap_or_default();
            let is_ours =
                route.hosts.is_empty() || route.hosts.iter().any(|pattern| matches_host(pattern, host));
            (!is_ours).then(|| format!("redirect_uri is at {host:?}, which is no host of the route"))
        }
    };
    if let Some(wrong) = wrong {
        findings.add(Rule::RedirectUriForeign, &conf.get_or_missing("redirect_uri"), wrong);
    }
}

/// A host of a route: a name, or one with `*.` before it.
fn matches_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// Checks what a route to workspaces needs of its login.
pub(super) fn check_for_workspaces(
    route: &Route<'_>,
    workspaces: Option<&Workspaces<'_>>,
    checked: &Checked<'_>,
    findings: &mut Findings,
) {
    if let Some(plugin) = route.plugin(LOGIN) {
        let conf = &plugin.conf;
        if conf.says("bearer_only", true) {
            findings.add(Rule::BearerOnly, &conf.get_or_missing("bearer_only"), "bearer_only: true");
        } else {
            unauthorised(route, conf, findings);
        }
    }
    let Some(workspaces) = workspaces else { return };
    let Some(config) = &workspaces.config else { return };
    trust(route, workspaces, config, checked, findings);
    if let Some(plugin) = route.plugin(LOGIN) {
        passed_on(plugin, workspaces, config, checked, findings);
        if let IdentityConfig::Verified(verified) = &config.identity {
            same_issuer(plugin, workspaces, verified, findings);
        }
        cookie(plugin, workspaces, config, findings);
        let logout = plugin.conf.text_of("logout_path").unwrap_or(LOGOUT_PATH);
        let login = config.login.as_str();
        if login.starts_with('/') && login != logout {
            let text = format!("login of the conf is {login:?}, logout_path is {logout:?}");
            findings.add(Rule::LogoutElsewhere, &workspaces.conf, text);
        }
    }
}

/// What becomes of requests without a session.
fn unauthorised(route: &Route<'_>, conf: &Spot<'_>, findings: &mut Findings) {
    match conf.text_of("unauth_action").unwrap_or("auth") {
        "pass" => {
            findings.add(Rule::UnauthPass, &conf.get_or_missing("unauth_action"), "unauth_action: pass");
        }
        "auth" if !is_for_navigations(route) => {
            let text = "every request without a session is sent to the login";
            findings.add(Rule::XhrLogin, &conf.get_or_missing("unauth_action"), text);
        }
        _ => {}
    }
}

/// Whether the route asks for what tells a navigation from a script's request.
fn is_for_navigations(route: &Route<'_>) -> bool {
    let signs = ["accept", "sec-fetch-mode", "sec-fetch-dest", "x-requested-with"];
    let conditions = route.conditions.iter().flat_map(Spot::texts);
    conditions.filter_map(|(_, text)| text.text()).any(|text| {
        let text = text.to_ascii_lowercase().replace('_', "-");
        signs.contains(&text.strip_prefix("http-").unwrap_or(&text))
    })
}

fn trust(
    route: &Route<'_>,
    workspaces: &Workspaces<'_>,
    config: &UserUpstreamConfig,
    checked: &Checked<'_>,
    findings: &mut Findings,
) {
    let trusts_gateway = matches!(config.identity, IdentityConfig::Gateway);
    match route.plugin(LOGIN) {
        None if !route.is_complete => {}
        None if trusts_gateway => {
            let text = "\"trust\": \"gateway\" on a route without openid-connect";
            findings.add(Rule::NoLogin, &workspaces.conf, text);
        }
        None => {
            let text = "\"trust\": \"verified\" on a route without openid-connect";
            findings.add(Rule::NobodyLogsIn, &workspaces.conf, text);
        }
        Some(plugin) => {
            if let Some(filter) = plugin.filter().filter(|_| trusts_gateway) {
                findings.add(Rule::LoginFiltered, &filter, "openid-connect has a filter");
            }
        }
    }
    if trusts_gateway {
        match checked.gateway_version {
            Some(version) if version < REMOVES_HEADERS => {
                let text = format!("\"trust\": \"gateway\" with APISIX {version}");
                findings.add(Rule::GatewayTooOld, &workspaces.conf, text);
            }
            Some(_) => {}
            None => {
                let text = "\"trust\": \"gateway\", and nobody said which APISIX runs";
                findings.add(Rule::GatewayUnsaid, &workspaces.conf, text);
            }
        }
    }
}

/// Checks that the headers come which the conf reads.
fn passed_on(
    plugin: &Plugin<'_>,
    workspaces: &Workspaces<'_>,
    config: &UserUpstreamConfig,
    checked: &Checked<'_>,
    findings: &mut Findings,
) {
    let conf = &plugin.conf;
    let reads_userinfo =
        matches!(config.identity, IdentityConfig::Gateway) || !config.identity.userinfo_claims().is_empty();
    if reads_userinfo && conf.says("set_userinfo_header", false) {
        findings.add(
            Rule::UserinfoOff,
            &conf.get_or_missing("set_userinfo_header"),
            "set_userinfo_header: false",
        );
    }
    let contents =
        conf.get("session_contents").filter(|contents| reads_userinfo && !contents.says("user", true));
    if let Some(contents) = contents {
        findings.add(Rule::SessionWithoutUser, &contents, "session_contents without user");
    }
    let IdentityConfig::Verified(verified) = &config.identity else { return };
    let keeps = |what: &str| conf.get("session_contents").is_none_or(|contents| contents.says(what, true));
    let in_authorization = conf.says("access_token_in_authorization_header", true);
    let passes_access = !conf.says("set_access_token_header", false) && keeps("access_token");
    let passes_raw = conf.says("set_raw_id_token_header", true);
    let mut looked_for = verified.sources.names().iter().map(HeaderName::as_str);
    let comes = looked_for.any(|name| match name {
        "x-raw-id-token" => passes_raw,
        "x-access-token" => passes_access && !in_authorization,
        "authorization" => passes_access && in_authorization,
        // Some other plugin's business.
        _ => true,
    });
    if !comes {
        let names: Vec<_> = verified.sources.names().iter().map(HeaderName::as_str).collect();
        let text = format!(
            "the conf looks for a token in {}, and openid-connect sets none of these",
            names.join(", ")
        );
        findings.add(Rule::TokenNotPassed, &workspaces.conf, text);
    }
    if passes_raw && checked.gateway_version.is_some_and(|version| version < HAS_RAW_TOKEN) {
        let text = "set_raw_id_token_header with a gateway before 3.18";
        findings.add(Rule::RawTokenUnknown, &conf.get_or_missing("set_raw_id_token_header"), text);
    }
}

/// Checks that login and conf speak of the same issuer and client.
fn same_issuer(
    plugin: &Plugin<'_>,
    workspaces: &Workspaces<'_>,
    verified: &Verified,
    findings: &mut Findings,
) {
    let conf = &plugin.conf;
    let expected = &verified.expected;
    let reads_id_token = verified.sources.names().iter().any(|name| name.as_str() == "x-raw-id-token")
        && conf.says("set_raw_id_token_header", true);
    let client = conf.text_of("client_id").filter(|client| !client.starts_with('$'));
    let lists_client = |client: &str| {
        [&expected.audience, &expected.authorized_parties]
            .iter()
            .any(|list| list.iter().any(|one| **one == *client))
    };
    if let Some(client) = client.filter(|client| reads_id_token && !lists_client(client)) {
        let text = format!("client_id is {client:?}, which the conf's audience does not have");
        findings.add(Rule::AudienceForeign, &workspaces.conf, text);
    }
    let Some(discovery) = conf.text_of("discovery") else { return };
    let of_issuer = format!("{}/.well-known/openid-configuration", expected.issuer.trim_end_matches('/'));
    if discovery != of_issuer && discovery != verified.keys.discovery.as_str() {
        let text = "discovery is neither the conf's issuer's nor its identity.discovery";
        findings.add(Rule::IssuerForeign, &conf.get_or_missing("discovery"), text);
    }
}

fn cookie(
    plugin: &Plugin<'_>,
    workspaces: &Workspaces<'_>,
    config: &UserUpstreamConfig,
    findings: &mut Findings,
) {
    let name = plugin.conf.at(&["session", "cookie_name"]);
    let name = name.and_then(|name| name.text()).unwrap_or(SESSION_COOKIE);
    if !config.remove_cookies.names().any(|removed| removed == name) {
        let text = format!("remove_cookies does not have {name:?}, the session's cookie");
        findings.add(Rule::CookieReachesWorkspace, &workspaces.conf, text);
    }
}

/// Checks that the routes of one host have one session.
pub(super) fn check_together(routes: &[Route<'_>], findings: &mut Findings) {
    let mut first_of = HashMap::new();
    for route in routes {
        let Some(plugin) = route.plugin(LOGIN) else { continue };
        let firsts: Vec<_> =
            route.hosts.iter().map(|host| *first_of.entry(*host).or_insert(&plugin.conf)).collect();
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

#[cfg(test)]
mod tests {
    use super::matches_host;

    #[test]
    fn a_route_s_host_may_begin_with_a_star() {
        for (pattern, host, expected) in [
            ("a.example.com", "a.example.com", true),
            ("A.example.com", "a.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("a.example.com", "b.example.com", false),
        ] {
            assert_eq!(matches_host(pattern, host), expected, "{pattern} {host}");
        }
    }
}
