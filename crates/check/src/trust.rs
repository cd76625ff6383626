//! The user's identity between login and runner: what a route to workspaces needs of its
//! login, and what the runner's conf may believe.

use super::calls::Workspaces;
use super::document::Spot;
use super::finding::Findings;
use super::login::LOGIN;
use super::options::CheckContext;
use super::route::{GatewayRoute, RoutePlugin};
use super::rule::Rule;
use super::version::Version;
use http::HeaderName;
use kube_coders_identity::{IdentityConfig, UserUpstreamConfig, Verified};

/// The session's cookie by default (lua-resty-session 4).
const SESSION_COOKIE: &str = "session";

/// The path that ends a login by default.
const LOGOUT_PATH: &str = "/logout";

/// The first versions in which the gateway removes identity headers that clients send,
/// and in which it passes the signed ID token on.
const REMOVES_HEADERS: Version = Version { major: 3, minor: 18 };
const HAS_RAW_TOKEN: Version = Version { major: 3, minor: 18 };

/// Checks what a route to workspaces needs of its login.
pub(super) fn check(
    route: &GatewayRoute<'_>,
    workspaces: Option<&Workspaces<'_>>,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    if let Some(plugin) = route.plugin(LOGIN) {
        let conf = &plugin.conf;
        if conf.has_true("bearer_only") {
            findings.add(Rule::BearerOnly, &conf.get_or_missing("bearer_only"), "bearer_only: true");
        } else {
            unauthorised(route, conf, findings);
        }
    }
    let Some(workspaces) = workspaces else { return };
    let Some(config) = &workspaces.config else { return };
    trust(route, workspaces, config, context, findings);
    if let Some(plugin) = login_of(route) {
        passed_on(plugin, workspaces, config, context, findings);
        if let IdentityConfig::Verified(verified) = &config.identity {
            same_issuer(plugin, workspaces, verified, findings);
        }
        cookie(plugin, workspaces, config, findings);
        let logout = plugin.conf.text_of("logout_path").unwrap_or(LOGOUT_PATH);
        let login = config.login.as_str();
        if login.starts_with('/') && login != logout {
            let text = format!("login of the conf is {login:?}, logout_path is {logout:?}");
            let others = [plugin.conf.get("logout_path")];
            findings.add_with(Rule::LogoutElsewhere, &workspaces.conf, &others, text);
        }
    }
}

/// What becomes of requests without a session.
fn unauthorised(route: &GatewayRoute<'_>, conf: &Spot<'_>, findings: &mut Findings) {
    match conf.text_of("unauth_action").unwrap_or("auth") {
        "pass" => {
            findings.add(Rule::UnauthPass, &conf.get_or_missing("unauth_action"), "unauth_action: pass");
        }
        "auth" if !route.is_part() && !is_for_navigations(route) => {
            let text = "every request without a session is sent to the login";
            findings.add(Rule::XhrLogin, &conf.get_or_missing("unauth_action"), text);
        }
        _ => {}
    }
}

/// The login of a route, its own or that of a global rule.
fn login_of<'r, 'd>(route: &'r GatewayRoute<'d>) -> Option<&'r RoutePlugin<'d>> {
    route.plugin(LOGIN).or(route.global_login.as_ref())
}

/// Whether the route asks for what tells a navigation from a script's request.
pub(super) fn is_for_navigations(route: &GatewayRoute<'_>) -> bool {
    let signs = ["accept", "sec-fetch-mode", "sec-fetch-dest", "x-requested-with"];
    let asks = |condition: &Spot<'_>| {
        let texts = condition.texts();
        let texts = || texts.iter().filter_map(|(_, text)| text.text()).map(str::to_ascii_lowercase);
        let is_sign = |text: String| {
            let text = text.replace('_', "-");
            signs.contains(&text.strip_prefix("http-").unwrap_or(&text))
        };
        let is_negated = |text: String| text == "!" || text == "~=" || text.starts_with("not");
        texts().any(is_sign) && !texts().any(is_negated)
    };
    route.conditions.iter().flat_map(Spot::items).any(|condition| asks(&condition))
}

/// Whether the conf takes anything from X-Userinfo, which is not signed.
fn believes_userinfo(config: &UserUpstreamConfig) -> bool {
    matches!(config.identity, IdentityConfig::Gateway) || !config.identity.userinfo_claims().is_empty()
}

fn trust(
    route: &GatewayRoute<'_>,
    workspaces: &Workspaces<'_>,
    config: &UserUpstreamConfig,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    let believes = believes_userinfo(config);
    match login_of(route) {
        None if !route.is_complete => {}
        None if believes => {
            let text = "X-Userinfo is believed on a route without openid-connect";
            findings.add(Rule::NoLogin, &workspaces.conf, text);
        }
        None => {
            let text = "\"trust\": \"verified\" on a route without openid-connect";
            findings.add(Rule::NobodyLogsIn, &workspaces.conf, text);
        }
        Some(plugin) => {
            if let Some(filter) = plugin.filter().filter(|_| believes) {
                findings.add(Rule::LoginFiltered, &filter, "openid-connect has a filter");
            }
        }
    }
    if !believes {
        return;
    }
    match context.options.gateway_version {
        Some(version) if version < REMOVES_HEADERS => {
            let text = format!("X-Userinfo is believed, with APISIX {version}");
            findings.add(Rule::GatewayTooOld, &workspaces.conf, text);
        }
        Some(_) => {}
        None => {
            let text = "X-Userinfo is believed, and the APISIX version is not known";
            findings.add(Rule::GatewayUnsaid, &workspaces.conf, text);
        }
    }
}

/// Checks that the headers come which the conf reads.
fn passed_on(
    plugin: &RoutePlugin<'_>,
    workspaces: &Workspaces<'_>,
    config: &UserUpstreamConfig,
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    let conf = &plugin.conf;
    let reads_userinfo = believes_userinfo(config);
    if reads_userinfo && conf.has_false("set_userinfo_header") {
        findings.add(
            Rule::UserinfoOff,
            &conf.get_or_missing("set_userinfo_header"),
            "set_userinfo_header: false",
        );
    }
    let contents =
        conf.get("session_contents").filter(|contents| reads_userinfo && !contents.has_true("user"));
    if let Some(contents) = contents {
        findings.add(Rule::SessionWithoutUser, &contents, "session_contents without user");
    }
    let sources = config.identity.token_sources();
    let is_chosen =
        *sources != Default::default() && sources.names().iter().any(|name| name.as_str() == "authorization");
    if conf.has_true("access_token_in_authorization_header") && !is_chosen {
        let spot = conf.get_or_missing("access_token_in_authorization_header");
        findings.add(Rule::AuthorizationReplaced, &spot, "access_token_in_authorization_header: true");
    }
    let IdentityConfig::Verified(verified) = &config.identity else { return };
    let keeps = |what: &str| conf.get("session_contents").is_none_or(|contents| contents.has_true(what));
    let in_authorization = conf.has_true("access_token_in_authorization_header");
    let passes_access = !conf.has_false("set_access_token_header") && keeps("access_token");
    let passes_raw = conf.has_true("set_raw_id_token_header");
    let mut looked_for = verified.sources.names().iter().map(HeaderName::as_str);
    let comes = looked_for.any(|name| match name {
        "x-raw-id-token" => passes_raw,
        "x-access-token" => passes_access && !in_authorization,
        "authorization" => passes_access && in_authorization,
        // Not a token but its claims, which are not signed.
        "x-id-token" => false,
        // Some other plugin's business.
        _ => true,
    });
    if !comes {
        let names: Vec<_> = verified.sources.names().iter().map(HeaderName::as_str).collect();
        let text = format!(
            "the conf looks for a token in {}, and openid-connect sets none of these",
            names.join(", ")
        );
        let switches =
            ["set_raw_id_token_header", "set_access_token_header", "access_token_in_authorization_header"];
        let switches = switches.map(|name| conf.get(name));
        findings.add_with(Rule::TokenNotPassed, &workspaces.conf, &switches, text);
    }
    if passes_raw && context.options.gateway_version.is_some_and(|version| version < HAS_RAW_TOKEN) {
        let text = "set_raw_id_token_header with a gateway before 3.18";
        findings.add(Rule::RawTokenUnknown, &conf.get_or_missing("set_raw_id_token_header"), text);
    }
}

/// Checks that login and conf speak of the same issuer and client.
fn same_issuer(
    plugin: &RoutePlugin<'_>,
    workspaces: &Workspaces<'_>,
    verified: &Verified,
    findings: &mut Findings,
) {
    let conf = &plugin.conf;
    let expected = &verified.expected;
    let reads_id_token = verified.sources.names().iter().any(|name| name.as_str() == "x-raw-id-token")
        && conf.has_true("set_raw_id_token_header");
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
        let others = [Some(workspaces.conf.clone())];
        findings.add_with(Rule::IssuerForeign, &conf.get_or_missing("discovery"), &others, text);
    }
}

fn cookie(
    plugin: &RoutePlugin<'_>,
    workspaces: &Workspaces<'_>,
    config: &UserUpstreamConfig,
    findings: &mut Findings,
) {
    let setting = plugin.conf.at(&["session", "cookie_name"]);
    let name = setting.as_ref().and_then(Spot::text).unwrap_or(SESSION_COOKIE);
    if !config.remove_cookies.iter().any(|removed| removed == name) {
        let text = format!("remove_cookies does not have {name:?}, the session's cookie");
        findings.add_with(Rule::CookieReachesWorkspace, &workspaces.conf, &[setting], text);
    }
}
