//! The login: openid-connect, on any route.

use super::addresses::is_loopback;
use super::document::Spot;
use super::finding::Findings;
use super::options::CheckContext;
use super::route::{GatewayRoute, RoutePlugin};
use super::rule::Rule;
use super::version::Version;
use kube_coders_identity::Url;

pub(super) const LOGIN: &str = "openid-connect";

/// The fields that a session may have. The gateway refuses any other.
const SESSION_FIELDS: [&str; 13] = [
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
    "redis",
];

/// The fields that are truth values. The gateway refuses any other value.
const TRUTH_VALUES: [&str; 14] = [
    "bearer_only",
    "ssl_verify",
    "use_pkce",
    "use_nonce",
    "use_jwks",
    "accept_none_alg",
    "accept_unsupported_alg",
    "set_userinfo_header",
    "set_access_token_header",
    "set_id_token_header",
    "set_raw_id_token_header",
    "set_refresh_token_header",
    "access_token_in_authorization_header",
    "renew_access_token_on_expiry",
];

/// The values of `cookie_same_site`. The gateway refuses any other, also with another case.
const SAME_SITE: [&str; 4] = ["Strict", "Lax", "None", "Default"];

/// What may happen to requests without a session. The gateway refuses any other value.
const ACTIONS: [&str; 3] = ["auth", "deny", "pass"];

/// The least length of a session's secret, in characters.
const MIN_SECRET: usize = 16;

/// The first version in which the gateway checks certificates by default.
const CHECKS_CERTIFICATES: Version = Version { major: 3, minor: 16 };

/// Checks that apply to every login, whatever its route is for.
pub(super) fn check(route: &GatewayRoute<'_>, context: &CheckContext<'_>, findings: &mut Findings) {
    let Some(plugin) = route.plugin(LOGIN) else { return };
    let conf = &plugin.conf;
    refused(plugin, findings);
    provider(conf, context, findings);
    if conf.has_true("bearer_only") {
        return;
    }
    session(plugin, findings);
    redirect_uri(route, plugin, findings);
    let unsaid = |name: &str, good: bool| match conf.get(name) {
        Some(_) => format!("{name} is not {good}"),
        None => format!("no {name}"),
    };
    if !conf.has_false("accept_unsupported_alg") {
        let spot = conf.get_or_missing("accept_unsupported_alg");
        findings.add(Rule::UnsupportedAccepted, &spot, unsaid("accept_unsupported_alg", false));
    }
    for (rule, name) in [(Rule::PkceOff, "use_pkce"), (Rule::NonceOff, "use_nonce")] {
        if !conf.has_true(name) {
            findings.add(rule, &conf.get_or_missing(name), unsaid(name, true));
        }
    }
}

/// Checks what makes the gateway refuse the plugin's conf.
fn refused(plugin: &RoutePlugin<'_>, findings: &mut Findings) {
    let conf = &plugin.conf;
    for name in ["client_id", "discovery"] {
        if conf.text_of(name).is_none() && !plugin.has_secret {
            findings.add(Rule::ObjectRefused, &conf.missing(name), format!("no {name}"));
        }
    }
    for name in TRUTH_VALUES {
        if let Some(spot) = conf.get(name).filter(|value| !value.is_true() && !value.is_false()) {
            findings.add(Rule::ObjectRefused, &spot, format!("{name} is neither true nor false"));
        }
    }
    let action = conf.get("unauth_action");
    if let Some(action) = action.filter(|action| !action.text().is_some_and(|text| ACTIONS.contains(&text))) {
        findings.add(Rule::ObjectRefused, &action, "unauth_action is neither auth, deny nor pass");
    }
    let same_site = conf.at(&["session", "cookie_same_site"]);
    let is_known = |value: &Spot<'_>| value.text().is_some_and(|text| SAME_SITE.contains(&text));
    if let Some(spot) = same_site.filter(|value| !is_known(value)) {
        let text = "session.cookie_same_site is neither Strict, Lax, None nor Default, spelled so";
        findings.add(Rule::ObjectRefused, &spot, text);
    }
    for (name, spot) in conf.entries_of("session") {
        if !SESSION_FIELDS.contains(&name) {
            findings.add(Rule::ObjectRefused, &spot, format!("session has no field {name:?}"));
        }
    }
    let secret = conf.at(&["session", "secret"]);
    let is_short = |secret: &Spot<'_>| secret.text().is_some_and(|text| text.chars().count() < MIN_SECRET);
    if let Some(secret) = secret.filter(is_short) {
        let text = format!("session.secret has fewer than {MIN_SECRET} characters");
        findings.add(Rule::ObjectRefused, &secret, text);
    }
}

/// Checks whether the gateway authenticates the provider, and believes only signed tokens.
fn provider(conf: &Spot<'_>, context: &CheckContext<'_>, findings: &mut Findings) {
    let verify = conf.get_or_missing("ssl_verify");
    let by_default = context.options.gateway_version.filter(|version| *version < CHECKS_CERTIFICATES);
    if verify.is_false() {
        findings.add(Rule::TlsUnverified, &verify, "ssl_verify: false");
    } else if let Some(version) = by_default.filter(|_| conf.get("ssl_verify").is_none()) {
        let text = format!("no ssl_verify, which is false by default with APISIX {version}");
        findings.add(Rule::TlsUnverified, &verify, text);
    }
    if conf.has_true("accept_none_alg") {
        findings.add(Rule::NoneAccepted, &conf.get_or_missing("accept_none_alg"), "accept_none_alg: true");
    }
    for name in ["discovery", "introspection_endpoint"] {
        let url = conf.text_of(name).and_then(|text| Url::parse(text).ok());
        if url.is_some_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback)) {
            let text = format!("{name} over http, to another machine");
            findings.add(Rule::DiscoveryOverHttp, &conf.get_or_missing(name), text);
        }
    }
}

fn session(plugin: &RoutePlugin<'_>, findings: &mut Findings) {
    let session = plugin.conf.get_or_missing("session");
    if session.text_of("secret").is_none() && !plugin.has_secret {
        findings.add(Rule::SessionSecretMissing, &session.missing("secret"), "no session.secret");
    }
    if !session.has_true("cookie_secure") {
        let text = "cookie_secure is not true";
        findings.add(Rule::CookieNotSecure, &session.get_or_missing("cookie_secure"), text);
    }
    if session.has_false("cookie_http_only") {
        let text = "cookie_http_only: false";
        findings.add(Rule::CookieReadable, &session.get_or_missing("cookie_http_only"), text);
    }
    let same_site = session.get_or_missing("cookie_same_site");
    match same_site.text() {
        Some("None") => findings.add(Rule::CookieCrossSite, &same_site, "cookie_same_site: None"),
        Some("Strict") => {
            let text = "cookie_same_site: Strict, and the login is at another site";
            findings.add(Rule::CookieLost, &same_site, text);
        }
        _ => {}
    }
    let domain = session.get("cookie_domain");
    if session.text_of("cookie_name").is_some_and(|name| name.starts_with("__Host-")) {
        let path = session.get("cookie_path").filter(|path| path.text() != Some("/"));
        if !session.has_true("cookie_secure") || domain.is_some() || path.is_some() {
            let text =
                "a name with __Host- without cookie_secure, with a domain, or with another path than /";
            findings.add(Rule::CookieLost, &session.get_or_missing("cookie_name"), text);
        }
    } else if let Some(domain) = domain {
        findings.add(Rule::CookieShared, &domain, "the session's cookie has a domain");
    }
}

fn redirect_uri(route: &GatewayRoute<'_>, plugin: &RoutePlugin<'_>, findings: &mut Findings) {
    let conf = &plugin.conf;
    let Some(text) = conf.text_of("redirect_uri") else {
        if !plugin.has_secret {
            findings.add(Rule::RedirectUriMissing, &conf.missing("redirect_uri"), "no redirect_uri");
        }
        return;
    };
    let wrong = match Url::parse(text) {
        Err(_) => Some("redirect_uri is not a complete URL, so the client chooses its host".to_owned()),
        Ok(url) if url.scheme() != "https" => Some(format!("redirect_uri is at {}://", url.scheme())),
        Ok(url) => foreign(route, &url),
    };
    if let Some(wrong) = wrong {
        findings.add(Rule::RedirectUriForeign, &conf.get_or_missing("redirect_uri"), wrong);
    }
}

/// Why a redirect URI does not fit this route, if it does not.
fn foreign(route: &GatewayRoute<'_>, url: &Url) -> Option<String> {
    let (host, path) = (url.host_str().unwrap_or_default(), url.path());
    // Which host a variable is, only the gateway knows.
    let may_match = |pattern: &&str| pattern.contains("${{") || matches_host(pattern, host);
    if !route.hosts.is_empty() && !route.hosts.iter().any(may_match) {
        return Some(format!("redirect_uri is at {host:?}, which is not a host of the route"));
    }
    (path == "/").then(|| "redirect_uri is the workspace's first page".to_owned())
}

/// Whether a route's path may match. The pattern is a path, a start with `*` after it, or a
/// path with parameters, which may match anything.
pub(super) fn matches_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        _ if pattern.contains(':') => true,
        Some(start) => path.starts_with(start),
        None => pattern == path,
    }
}

/// A host of a route: a name, or one with `*.` before it.
pub(super) fn matches_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            host.len() > suffix.len() && host.to_ascii_lowercase().ends_with(&suffix.to_ascii_lowercase())
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::{matches_host, matches_path};

    #[test]
    fn a_route_s_path_may_end_with_a_star() {
        for (pattern, path, expected) in [
            ("/*", "/.apisix/redirect", true),
            ("/code/*", "/.apisix/redirect", false),
            ("/.apisix/redirect", "/.apisix/redirect", true),
            ("/", "/.apisix/redirect", false),
            ("/:user/*", "/.apisix/redirect", true),
        ] {
            assert_eq!(matches_path(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_route_s_host_may_begin_with_a_star() {
        for (pattern, host, expected) in [
            ("a.example.com", "a.example.com", true),
            ("A.example.com", "a.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.Example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("a.example.com", "b.example.com", false),
        ] {
            assert_eq!(matches_host(pattern, host), expected, "{pattern} {host}");
        }
    }
}
