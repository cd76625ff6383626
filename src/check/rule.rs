//! What is looked for: each rule's name, how bad it is, what happens because of it, and
//! the cure.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Somebody gets where they must not, or nobody gets anywhere.
    Error,
    /// It works, and worse than it could.
    Warning,
}

/// What is always said of a rule's findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// A stable name.
    pub(super) code: &'static str,
    pub(super) severity: Severity,
    /// What happens because of it.
    pub(super) consequence: &'static str,
    pub(super) cure: &'static str,
}

const fn error(code: &'static str, consequence: &'static str, cure: &'static str) -> Facts {
    Facts { code, severity: Severity::Error, consequence, cure }
}

const fn warning(code: &'static str, consequence: &'static str, cure: &'static str) -> Facts {
    Facts { code, severity: Severity::Warning, consequence, cure }
}

/// Declares the rules together with the list of all of them, so that none is left out.
macro_rules! rules {
    ($($(#[$about:meta])* $rule:ident => $facts:expr,)*) => {
        /// A thing that is looked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Rule { $($(#[$about])* $rule,)* }

        impl Rule {
            /// All of them.
            pub(super) const ALL: &[Self] = &[$(Self::$rule,)*];

            pub(super) const fn facts(self) -> Facts {
                match self { $(Self::$rule => $facts,)* }
            }
        }
    };
}

rules! {
    // The order of login and runner.
    RunsBeforeLogin => error(
        "runs-before-login",
        "the runner is asked before the login and sees whatever identity headers a client wrote",
        "give ext-plugin-pre-req \"_meta\": {\"priority\": 2598}, which is below openid-connect's 2599",
    ),
    CalledElsewhere => error(
        "called-elsewhere",
        "a global rule's plugins run before those of any route, so the runner is asked before the login; \
         a consumer's replace the route's",
        "user-upstream in ext-plugin-pre-req of the route or its service, behind openid-connect",
    ),
    CalledTwice => error(
        "called-twice",
        "the second is asked about what the first has changed, and finds no identity any more",
        "one user-upstream on a route",
    ),
    DegradationAllowed => error(
        "degradation-allowed",
        "when the runner fails, the request goes on as if there were no runner: to the route's own upstream",
        "allow_degradation: false",
    ),
    CallFiltered => error(
        "call-filtered",
        "requests for which the filter is false go on without the runner's decision",
        "remove the filter; only direct mode has one, [[\"kc_hit\", \"!\", \"==\", \"1\"]]",
    ),
    DecisionBeforeLogin => error(
        "decision-before-login",
        "kube-coders-upstream looks before anybody knows who is asking: what it remembers would serve all users",
        "leave kube-coders-upstream at its own priority, 2598, openid-connect at 2599, and ext-plugin-pre-req at 2597",
    ),
    WrongPhase => error(
        "wrong-phase",
        "user-upstream is asked only about responses here, when the request has gone somewhere already",
        "move it to ext-plugin-pre-req",
    ),
    ResponseCalled => warning(
        "response-called",
        "ext-plugin-post-resp makes the gateway fetch each response itself, and WebSockets are asked for twice",
        "take ext-plugin-post-resp off routes with WebSockets",
    ),

    // Whom the runner believes.
    ConfMalformed => error(
        "conf-malformed",
        "the gateway refuses the route, or calls the runner without any plugin",
        "conf is a list of {\"name\": PLUGIN, \"value\": the plugin's conf as JSON text}",
    ),
    ConfRefused => error(
        "conf-refused",
        "the runner refuses the conf, and every request to the route is answered with 503",
        "mend the field that the message names; docs/user-upstream.md lists all of them",
    ),
    OneForAll => warning(
        "one-for-all",
        "every user of the route gets the same workspace, and with it the others' files",
        "name a claim in the upstream's host, such as code-{sub}; leave it where one for all is meant",
    ),
    PluginUnknown => warning(
        "plugin-unknown",
        "this program has no plugin of that name, so its conf was not looked at; a runner without it answers 503",
        "run the check with the program that holds the plugin",
    ),
    NoLogin => error(
        "no-login",
        "anybody can write X-Userinfo, and nothing on the way removes what clients send",
        "put openid-connect on the route, or use \"trust\": \"verified\"",
    ),
    NobodyLogsIn => warning(
        "nobody-logs-in",
        "browsers bring no token by themselves, so they are answered with 401",
        "put openid-connect on the route",
    ),
    LoginFiltered => error(
        "login-filtered",
        "requests for which the filter is false pass without a login, with the identity headers that the client wrote",
        "remove _meta.filter from openid-connect",
    ),
    GatewayTooOld => error(
        "gateway-too-old",
        "this gateway lets clients forge X-Userinfo (CVE-2026-44087)",
        "APISIX 3.17 or later, or \"trust\": \"verified\"",
    ),
    GatewayUnsaid => warning(
        "gateway-unsaid",
        "APISIX 2.3 to 3.16 let clients forge X-Userinfo (CVE-2026-44087)",
        "\"trust\": \"verified\"; or say with --gateway-version which version runs",
    ),
    UserinfoOff => error(
        "userinfo-off",
        "X-Userinfo never comes, and the conf needs it: users are answered with 401, or lack claims",
        "set_userinfo_header: true",
    ),
    SessionWithoutUser => error(
        "session-without-user",
        "the session does not keep the userinfo, so X-Userinfo never comes and the conf needs it",
        "\"session_contents\": {\"user\": true, …}, or leave session_contents out",
    ),
    TokenNotPassed => error(
        "token-not-passed",
        "no token of those that the conf looks for comes from the login: every user is answered with 401",
        "set_raw_id_token_header: true (APISIX 3.18), and \"x-raw-id-token\" in identity.token",
    ),
    RawTokenUnknown => error(
        "raw-token-unknown",
        "this gateway does not know set_raw_id_token_header, so X-Raw-ID-Token never comes",
        "APISIX 3.18 or later; or \"token\": [\"x-access-token\"] where Keycloak's access token has an audience of yours",
    ),
    AudienceForeign => warning(
        "audience-foreign",
        "ID tokens of this login are for its client_id, which the conf does not list: they are refused",
        "put the client_id into identity.audience",
    ),
    IssuerForeign => warning(
        "issuer-foreign",
        "login and conf speak of different issuers: tokens of one are refused by the other",
        "make discovery the issuer with /.well-known/openid-configuration behind it, or say identity.discovery",
    ),

    // The login.
    BearerOnly => error(
        "bearer-only",
        "nobody is ever sent to a login: browsers are answered with 401",
        "bearer_only: false",
    ),
    SessionSecretMissing => error(
        "session-secret-missing",
        "APISIX 3.18 refuses the route, and older ones make a secret up: each worker or restart logs everybody out",
        "\"session\": {\"secret\": \"$env://SESSION_SECRET\"}, at least 16 characters, the same on every gateway",
    ),
    SecretInClear => error(
        "secret-in-clear",
        "whoever reads the file, a backup or the Admin API has the secret",
        "\"$env://NAME\" or \"$secret://…\" (in config.yaml \"${{NAME}}\"), and change the secret that has been seen",
    ),
    RedirectUriMissing => error(
        "redirect-uri-missing",
        "it is made of each request's own path, so that Keycloak must allow a wildcard, to which codes can be stolen",
        "redirect_uri: https://HOST/.apisix/redirect, and exactly that at Keycloak",
    ),
    RedirectUriForeign => error(
        "redirect-uri-foreign",
        "the login does not come back to this route over TLS: the code can be read, or the session is never found",
        "redirect_uri: https://, a host of the route, and a path of the route that is no page of the workspace",
    ),
    TlsUnverified => error(
        "tls-unverified",
        "whoever stands between gateway and Keycloak can be Keycloak, and log in as anybody",
        "ssl_verify: true, and a private CA in apisix.ssl.ssl_trusted_certificate",
    ),
    DiscoveryOverHttp => error(
        "discovery-over-http",
        "whoever stands between gateway and Keycloak says where logins go and which keys are good",
        "discovery: https://…",
    ),
    NoneAccepted => error(
        "none-accepted",
        "an ID token without a signature is believed",
        "accept_none_alg: false",
    ),
    UnsupportedAccepted => warning(
        "unsupported-accepted",
        "an ID token whose algorithm the gateway does not know is believed without a look at its signature",
        "accept_unsupported_alg: false",
    ),
    PkceOff => warning(
        "pkce-off",
        "a code that is stolen on its way is enough to log in",
        "use_pkce: true, and S256 at Keycloak's client",
    ),
    NonceOff => warning(
        "nonce-off",
        "an ID token of another login can be slipped into this one",
        "use_nonce: true",
    ),
    UnauthPass => warning(
        "unauth-pass",
        "nobody is sent to the login, and whoever has no session is answered with 401",
        "unauth_action: auth for navigations, deny for the rest",
    ),
    XhrLogin => warning(
        "xhr-login",
        "a script's request or a WebSocket without a session is redirected to the login, which it can't follow, \
         and leaves a cookie behind for each try",
        "two routes: navigations by vars with unauth_action: auth, the rest with deny; see apisix-conf/standalone",
    ),
    SessionsDiffer => warning(
        "sessions-differ",
        "a session that one route of the host made is none for the other: users are sent to the login again and again",
        "the same client_id, session.secret, cookie_name and redirect_uri on all routes of a host",
    ),
    CookieNotSecure => warning(
        "cookie-not-secure",
        "the session's cookie is also sent without TLS, where it can be read",
        "\"session\": {\"cookie_secure\": true}",
    ),
    CookieReadable => error(
        "cookie-readable",
        "scripts, and so every workspace's pages, can read the session's cookie",
        "\"session\": {\"cookie_http_only\": true}",
    ),
    CookieCrossSite => warning(
        "cookie-cross-site",
        "other sites' pages can send requests with the user's session",
        "\"session\": {\"cookie_same_site\": \"Lax\"}",
    ),
    CookieLost => error(
        "cookie-lost",
        "browsers refuse the session's cookie, or do not send it on the way back from the login, which never ends",
        "\"__Host-…\" with cookie_secure: true, cookie_path \"/\" and no cookie_domain; cookie_same_site: Lax",
    ),
    CookieShared => warning(
        "cookie-shared",
        "the session is sent to every host of the domain",
        "no cookie_domain",
    ),
    SessionReachesOther => warning(
        "session-reaches-other",
        "the session's cookie is for the whole host, so this route's upstream gets it too",
        "another host for it, or a login on it",
    ),
    CookieReachesWorkspace => error(
        "cookie-reaches-workspace",
        "the workspace, which is a user's own code, gets the session's cookie and can use it elsewhere",
        "put the session's cookie_name (\"session\" without one) into remove_cookies of the conf",
    ),
    LogoutElsewhere => warning(
        "logout-elsewhere",
        "the link to sign in again on the runner's pages leads nowhere",
        "make login of the conf the logout_path of openid-connect",
    ),

    // Where requests go.
    UpstreamMissing => error(
        "upstream-missing",
        "the gateway answers 503 to every request",
        "the forwarder, {\"127.0.0.1:9181\": 1} if it listens where it does by default; in direct mode {\"127.0.0.1:1\": 1}",
    ),
    UpstreamOpen => error(
        "upstream-open",
        "a request that comes without the runner's decision goes there, with its cookies and tokens",
        "the forwarder, {\"127.0.0.1:9181\": 1} if it listens where it does by default; in direct mode {\"127.0.0.1:1\": 1}",
    ),
    UpstreamElsewhere => error(
        "upstream-elsewhere",
        "this plugin chooses an upstream of its own, past the runner's decision",
        "take it off the route",
    ),
    AnswersShared => error(
        "answers-shared",
        "one user's answers are kept by host and path, and given to others",
        "take it off the route",
    ),
    UpstreamUnfit => error(
        "upstream-unfit",
        "the forwarder speaks plain HTTP, and passes the browser's Host on: requests or WebSockets fail",
        "scheme: http and pass_host: pass",
    ),
    RunnerNotCalled => error(
        "runner-not-called",
        "nobody decides where its requests go, so the forwarder answers all of them with 403 stamp-refused",
        "user-upstream in ext-plugin-pre-req of the route or its service",
    ),
    RouteShadowed => warning(
        "route-shadowed",
        "of two routes with the same priority the gateway may take either: navigations may never see the login",
        "a higher priority for the route that asks for more",
    ),
    WebSocketOff => error(
        "websocket-off",
        "VS Code lives on WebSockets: it loads and never connects",
        "enable_websocket: true (ApisixRoute: websocket: true)",
    ),
    ReadTimeoutShort => warning(
        "read-timeout-short",
        "the gateway cuts what is quiet for longer before the runner would: terminals, downloads, debuggers",
        "timeout: {connect: 6, send: 300, read: 300} at the route's upstream, and none at the route",
    ),
    RouteTimeout => warning(
        "route-timeout",
        "in direct mode the route's own timeout counts in place of the workspace's",
        "remove timeout from the route",
    ),
    DecisionPluginMissing => error(
        "decision-plugin-missing",
        "nothing in the gateway reads the decision: every request is answered with 502, and the decision's header goes out",
        "put kube-coders-upstream on the route, or use forward mode",
    ),
    DecisionPluginUnused => error(
        "decision-plugin-unused",
        "the runner writes no decision in forward mode: every request is answered with 503 decision-missing",
        "\"upstream_mode\": \"direct\" in the conf, or take kube-coders-upstream off the route",
    ),
    RememberedInVain => warning(
        "remembered-in-vain",
        "the runner is asked about every request all the same, so what is remembered saves nothing",
        "ext-plugin-pre-req with \"_meta\": {\"filter\": [[\"kc_hit\", \"!\", \"==\", \"1\"]]}, or no remember",
    ),
    DecisionDropped => error(
        "decision-dropped",
        "kube-coders-upstream runs after the runner and drops its decision as if a client had sent it, or looks before \
         it is there: every request is answered with 503",
        "ext-plugin-pre-req with \"_meta\": {\"priority\": 2597}, and kube-coders-upstream at its own 2598",
    ),
    LuaChooses => error(
        "lua-chooses-upstream",
        "a function in the route decides whose workspace a request reaches, and believes headers without a check",
        "user-upstream in ext-plugin-pre-req in its place; --migrate prints the route",
    ),
    ScriptOnRoute => error(
        "script-on-route",
        "a script runs in place of all plugins: no login, and no call of the runner",
        "take it off the route and its service",
    ),
    IdentityRewritten => error(
        "identity-rewritten",
        "a header that says who somebody is, or where the request goes, is overwritten with what the plugin says",
        "leave these headers to openid-connect and the runner",
    ),
    LuaOnRoute => warning(
        "lua-on-route",
        "the function may change headers, or the upstream, after the runner's decision",
        "take it off routes to workspaces",
    ),
    PathRewritten => warning(
        "path-rewritten",
        "a workspace gets another path, host or method than the client asked for: a path is decoded and encoded again",
        "remove proxy-rewrite, which such a route has no use for",
    ),

    // The files and the process.
    ObjectRefused => error(
        "object-refused",
        "the gateway refuses the object, and goes on with what it had before or without it",
        "what the plugin's schema says: APISIX 3.18's documentation, or apisix-conf/plugins for ours",
    ),
    ReadDifferently => error(
        "read-differently",
        "the gateway reads YAML 1.1, in which this is another value than in YAML 1.2 and than it looks like",
        "quote a text, and write a number in decimal digits without a leading 0",
    ),
    IdTwice => error(
        "id-twice",
        "only one of the two is in force",
        "give each its own id",
    ),
    ReferenceMissing => warning(
        "reference-missing",
        "what it brings to the route, a login perhaps, could not be checked",
        "name its file too",
    ),
    ReferenceBroken => error(
        "reference-broken",
        "the gateway knows no such object and answers every request to the route with an error",
        "the id of an object that the file has",
    ),
    NotTerminated => error(
        "not-terminated",
        "APISIX reads a standalone file only if it ends so, and keeps what it had before",
        "a last line #END",
    ),
    RunnerUnset => error(
        "runner-unset",
        "the gateway does not know the runner, and answers 503",
        "ext-plugin.path_for_test with the runner's socket, or ext-plugin.cmd",
    ),
    PluginNotListed => error(
        "plugin-not-listed",
        "a plugin that the gateway does not load is left out of every route, without an error",
        "add it to plugins of config.yaml, and for kube-coders-upstream apisix.extra_lua_path",
    ),
    UnderscoresOn => warning(
        "underscores-on",
        "headers with _ for - come through; the runner refuses them, other plugins may take them for the real ones",
        "nginx_config.http.underscores_in_headers: \"off\"",
    ),
    ForwardedByAnybody => warning(
        "forwarded-by-anybody",
        "whoever connects says that plain HTTP was HTTPS, which host was meant, or what the log shows as its address",
        "the addresses of your load balancers and nothing wider, or nothing",
    ),
    AdminOpen => error(
        "admin-open",
        "whoever reaches the Admin API and has, or guesses, its key can send everybody anywhere",
        "deployment.admin.allow_admin with the few addresses that need it, and a key that is asked for",
    ),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_on_the_page_of_rules() {
        let row = |rule: &Rule| {
            let Facts { code, severity, consequence, cure } = rule.facts();
            let severity = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            format!("| `{code}` | {severity} | {consequence} | {cure} |\n")
        };
        let rows: String = Rule::ALL.iter().map(row).collect();
        let page = include_str!("../../apisix-conf/CHECKS.md");
        assert!(page.contains(&rows), "apisix-conf/CHECKS.md must have these rows:\n{rows}");
    }

    #[test]
    fn every_rule_has_a_name_of_its_own_and_says_what_to_do() {
        let mut codes: Vec<_> = Rule::ALL.iter().map(|rule| rule.facts().code).collect();
        assert!(codes.len() > 50, "{}", codes.len());
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Rule::ALL.len());
        for rule in Rule::ALL {
            let Facts { code, consequence, cure, .. } = rule.facts();
            assert!(code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{code}");
            assert!(consequence.len() > 20 && cure.len() > 10, "{code}");
            assert!(!consequence.ends_with('.') && !cure.ends_with('.'), "{code}");
        }
    }
}
