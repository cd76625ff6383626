//! What is looked for: each rule's name, how bad it is, what happens because of it, and
//! the cure.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Users reach what they must not, or none reaches anything.
    Error,
    /// It works, but worse than it could.
    Warning,
}

/// The fixed part of a rule's findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleFacts {
    /// A stable name.
    pub(super) code: &'static str,
    pub(super) severity: Severity,
    /// What happens because of it.
    pub(super) consequence: &'static str,
    pub(super) cure: &'static str,
}

const fn error(code: &'static str, consequence: &'static str, cure: &'static str) -> RuleFacts {
    RuleFacts { code, severity: Severity::Error, consequence, cure }
}

const fn warning(code: &'static str, consequence: &'static str, cure: &'static str) -> RuleFacts {
    RuleFacts { code, severity: Severity::Warning, consequence, cure }
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

            pub(super) const fn facts(self) -> RuleFacts {
                match self { $(Self::$rule => $facts,)* }
            }
        }
    };
}

rules! {
    // The order of login and runner.
    RunsBeforeLogin => error(
        "runs-before-login",
        "the runner runs before the login, so it believes identity headers that a client wrote",
        "give ext-plugin-pre-req \"_meta\": {\"priority\": 2598}, which is below openid-connect's 2599",
    ),
    CalledElsewhere => error(
        "called-elsewhere",
        "a global rule's plugins run before those of any route, so the runner runs before the login; a consumer's \
         plugins replace the route's",
        "put user-upstream into ext-plugin-pre-req of the route or its service, to run after openid-connect",
    ),
    CalledTwice => error(
        "called-twice",
        "the first call removes the identity headers, so the second finds no identity",
        "have user-upstream on the route once",
    ),
    DegradationAllowed => error(
        "degradation-allowed",
        "if the runner fails, the gateway sends the request to the route's own upstream",
        "set allow_degradation: false",
    ),
    CallFiltered => error(
        "call-filtered",
        "requests that do not match the filter go on without the runner's decision",
        "remove the filter; only direct mode may have one, [[\"kc_hit\", \"!\", \"==\", \"1\"]]",
    ),
    DecisionBeforeLogin => error(
        "decision-before-login",
        "kube-coders-upstream runs before the login, so one user's cached decision would serve all users",
        "leave kube-coders-upstream at its own priority, 2598, openid-connect at 2599, and ext-plugin-pre-req at \
         2597",
    ),
    WrongPhase => error(
        "wrong-phase",
        "in this phase, user-upstream sees only responses, after the gateway has sent the request",
        "move it to ext-plugin-pre-req",
    ),
    ResponseCalled => warning(
        "response-called",
        "with ext-plugin-post-resp the gateway fetches each response itself, and opens each WebSocket twice",
        "remove ext-plugin-post-resp from routes with WebSockets",
    ),

    // Trust: what the runner believes.
    ConfMalformed => error(
        "conf-malformed",
        "the gateway refuses the route, or calls the runner without any plugin",
        "make conf a list of {\"name\": PLUGIN, \"value\": the plugin's conf as JSON text}",
    ),
    ConfRefused => error(
        "conf-refused",
        "the runner rejects the conf, so every request to the route gets 503",
        "correct the field that the message names; docs/user-upstream.md lists all fields",
    ),
    OneForAll => warning(
        "one-for-all",
        "all users of the route share one workspace and its files",
        "put a claim into the upstream's host, such as code-{sub}; ignore this if a shared workspace is intended",
    ),
    NameNotFull => error(
        "name-not-full",
        "the name does not exist as it is, so every user gets 404",
        "write the name in full, for example with .svc.cluster.local at its end",
    ),
    ClaimChangeable => error(
        "claim-changeable",
        "two users can have the same value, or one can take another's, and then reaches another's workspace",
        "use sub, or a claim that only an administrator sets and that is never given to another user",
    ),
    ClaimReassigned => warning(
        "claim-reassigned",
        "a user who is renamed loses the workspace, and the next user of the name gets it",
        "use sub; or let Keycloak forbid renaming, and never give a name to another user",
    ),
    HostIsClaim => error(
        "host-is-claim",
        "a user whose claim is the name of another host is sent there",
        "put a text before or after the claim, such as code-{sub}",
    ),
    TemplatesMeet => error(
        "templates-meet",
        "two users can get the same name, and reach each other's workspace",
        "give the templates different texts before the claim, such as code-{sub} and dev-{sub}",
    ),
    IssuersMeet => warning(
        "issuers-meet",
        "users of two issuers with the same value of the claim reach the same workspace",
        "give each issuer a template of its own, such as code-{sub} and partner-{sub}",
    ),
    PluginUnknown => warning(
        "plugin-unknown",
        "this program has no plugin of that name, so its conf was not checked; at a runner \
         without the plugin, requests get 503",
        "run the check with the program that has the plugin",
    ),
    NoLogin => error(
        "no-login",
        "any client can write X-Userinfo, and nothing removes it",
        "put openid-connect on the route, or use \"trust\": \"verified\"",
    ),
    NobodyLogsIn => warning(
        "nobody-logs-in",
        "browsers send no token on their own, so they get 401",
        "put openid-connect on the route",
    ),
    LoginFiltered => error(
        "login-filtered",
        "requests that do not match the filter pass without a login, with the identity headers that the client wrote",
        "remove _meta.filter from openid-connect",
    ),
    GatewayTooOld => error(
        "gateway-too-old",
        "this gateway lets clients forge X-Userinfo (CVE-2026-44087)",
        "use APISIX 3.18 or later, or \"trust\": \"verified\"",
    ),
    GatewayUnsaid => warning(
        "gateway-unsaid",
        "APISIX 2.3 to 3.16 let clients forge X-Userinfo (CVE-2026-44087)",
        "use \"trust\": \"verified\", or name the version with --gateway-version",
    ),
    UserinfoOff => error(
        "userinfo-off",
        "the gateway never sends X-Userinfo, which the conf needs: users get 401, or lack claims",
        "set set_userinfo_header: true",
    ),
    SessionWithoutUser => error(
        "session-without-user",
        "the session does not keep the userinfo, so the gateway never sends X-Userinfo, which the conf needs",
        "set \"session_contents\": {\"user\": true, …}, or omit session_contents",
    ),
    TokenNotPassed => error(
        "token-not-passed",
        "the login sends no token that the conf looks for: every user gets 401",
        "set set_raw_id_token_header: true (APISIX 3.18), and put \"x-raw-id-token\" into identity.token",
    ),
    RawTokenUnknown => error(
        "raw-token-unknown",
        "this gateway does not know set_raw_id_token_header, so it never sends X-Raw-ID-Token",
        "use APISIX 3.18 or later; or \"token\": [\"x-access-token\"] if Keycloak's access token has your audience",
    ),
    AudienceForeign => warning(
        "audience-foreign",
        "the conf does not list the login's client_id, for which its ID tokens are issued, so the runner refuses \
         them",
        "add the client_id to identity.audience",
    ),
    IssuerForeign => warning(
        "issuer-foreign",
        "the login and the conf name different issuers, so the runner refuses the login's tokens",
        "set discovery to the issuer followed by /.well-known/openid-configuration, or set identity.discovery",
    ),

    // The login.
    BearerOnly => error(
        "bearer-only",
        "the gateway never redirects to the login: browsers get 401",
        "set bearer_only: false",
    ),
    SessionSecretMissing => error(
        "session-secret-missing",
        "APISIX 3.18 refuses the route; older versions invent a secret for each worker and restart, which logs all \
         users out",
        "set \"session\": {\"secret\": \"$env://SESSION_SECRET\"}, at least 16 characters, the same on every gateway",
    ),
    SecretInClear => error(
        "secret-in-clear",
        "any reader of the file, a backup or the Admin API gets the secret",
        "use \"$env://NAME\" or \"$secret://…\" (in config.yaml \"${{NAME}}\"), and replace the exposed secret",
    ),
    RedirectUriMissing => error(
        "redirect-uri-missing",
        "the gateway derives the redirect URI from each request's path, so Keycloak must allow a wildcard, which lets \
         attackers steal codes",
        "set redirect_uri: https://HOST/.apisix/redirect, and allow exactly that at Keycloak",
    ),
    RedirectUriForeign => error(
        "redirect-uri-foreign",
        "the login does not return to this route over TLS: the code can be read, or the session is not found",
        "set redirect_uri to https://, a host of the route, and a path of the route that no page of the workspace \
         has",
    ),
    TlsUnverified => error(
        "tls-unverified",
        "an attacker between gateway and Keycloak can pose as Keycloak, and log in as any user",
        "set ssl_verify: true, and name a private CA in apisix.ssl.ssl_trusted_certificate",
    ),
    DiscoveryOverHttp => error(
        "discovery-over-http",
        "an attacker between gateway and Keycloak can choose where logins go and which keys are trusted",
        "use https:// in discovery",
    ),
    NoneAccepted => error(
        "none-accepted",
        "the gateway believes an ID token without a signature",
        "set accept_none_alg: false",
    ),
    UnsupportedAccepted => warning(
        "unsupported-accepted",
        "the gateway believes an ID token without checking its signature if it does not know the algorithm",
        "set accept_unsupported_alg: false",
    ),
    PkceOff => warning(
        "pkce-off",
        "a stolen authorization code is enough to log in",
        "set use_pkce: true, and S256 at Keycloak's client",
    ),
    NonceOff => warning(
        "nonce-off",
        "an attacker can inject an ID token of another login",
        "set use_nonce: true",
    ),
    UnauthPass => warning(
        "unauth-pass",
        "the gateway never redirects to the login, and users without a session get 401",
        "set unauth_action: auth for navigations, deny for the rest",
    ),
    XhrLogin => warning(
        "xhr-login",
        "the gateway redirects scripts' requests and WebSockets without a session to the login, which they can't \
         follow, and sets a cookie for each try",
        "use two routes: one for navigations, matched by vars, with unauth_action: auth, and one for the rest with \
         deny; see apisix-conf/standalone",
    ),
    SessionsDiffer => warning(
        "sessions-differ",
        "one route of the host does not accept the other's session: users are sent to the login again and again",
        "use the same client_id, session.secret, cookie_name and redirect_uri on all routes of a host",
    ),
    CookieNotSecure => warning(
        "cookie-not-secure",
        "browsers also send the session's cookie without TLS, so it can be read",
        "set \"session\": {\"cookie_secure\": true}",
    ),
    CookieReadable => error(
        "cookie-readable",
        "scripts, including those of every workspace's pages, can read the session's cookie",
        "set \"session\": {\"cookie_http_only\": true}",
    ),
    CookieCrossSite => warning(
        "cookie-cross-site",
        "other sites' pages can send requests with the user's session",
        "set \"session\": {\"cookie_same_site\": \"Lax\"}",
    ),
    CookieLost => error(
        "cookie-lost",
        "browsers refuse the session's cookie, or do not send it when the login returns, so the login never ends",
        "with a \"__Host-…\" name, set cookie_secure: true, cookie_path \"/\" and no cookie_domain; set \
         cookie_same_site: Lax",
    ),
    CookieShared => warning(
        "cookie-shared",
        "browsers send the session to every host of the domain",
        "remove cookie_domain",
    ),
    SessionReachesOther => warning(
        "session-reaches-other",
        "the session's cookie is for the whole host, so this route's upstream gets it too",
        "give the route another host, or a login",
    ),
    CookieReachesWorkspace => error(
        "cookie-reaches-workspace",
        "the workspace, which runs its user's code, gets the session's cookie and can use it elsewhere",
        "add the session's cookie_name (by default \"session\") to remove_cookies of the conf",
    ),
    AuthorizationReplaced => warning(
        "authorization-replaced",
        "the login writes the user's access token over each request's own Authorization, which workspaces and the \
         applications in them need",
        "remove access_token_in_authorization_header, unless the conf reads its token from Authorization",
    ),
    RedirectLate => warning(
        "redirect-late",
        "the login sees a request over plain HTTP before the redirect to HTTPS: it starts logins whose cookies the \
         browser refuses",
        "give redirect \"_meta\": {\"priority\": 2700}, which is above openid-connect's 2599",
    ),
    LogoutElsewhere => warning(
        "logout-elsewhere",
        "the link to sign in again on the runner's pages does not log the user out",
        "set login of the conf to the logout_path of openid-connect",
    ),

    // Where requests go.
    UpstreamMissing => error(
        "upstream-missing",
        "the gateway has no destination, so every request gets 503",
        "use the forwarder, by default {\"127.0.0.1:9181\": 1}; in direct mode {\"127.0.0.1:1\": 1}",
    ),
    UpstreamOpen => error(
        "upstream-open",
        "a request without the runner's decision goes to this upstream, with its cookies and tokens",
        "use the forwarder, by default {\"127.0.0.1:9181\": 1}; in direct mode {\"127.0.0.1:1\": 1}",
    ),
    UpstreamElsewhere => error(
        "upstream-elsewhere",
        "this plugin chooses an upstream itself, whatever the runner decides",
        "remove it from the route",
    ),
    AnswersShared => error(
        "answers-shared",
        "the plugin caches one user's responses by host and path, and gives them to others",
        "remove it from the route",
    ),
    UpstreamUnfit => error(
        "upstream-unfit",
        "the forwarder speaks plain HTTP and needs the browser's Host: requests or WebSockets fail",
        "set scheme: http and pass_host: pass",
    ),
    RunnerNotCalled => error(
        "runner-not-called",
        "the gateway does not call the runner, so every request gets 403 stamp-refused from the forwarder",
        "put user-upstream into ext-plugin-pre-req of the route or its service",
    ),
    RouteShadowed => warning(
        "route-shadowed",
        "the gateway may choose either of two routes with the same priority: navigations may never see the login",
        "give the route with more conditions a higher priority",
    ),
    WebSocketOff => error(
        "websocket-off",
        "VS Code needs WebSockets: it loads but never connects",
        "set enable_websocket: true (ApisixRoute: websocket: true)",
    ),
    ReadTimeoutShort => warning(
        "read-timeout-short",
        "the gateway closes quiet connections earlier than the runner would: terminals, downloads, debuggers",
        "set timeout: {connect: 6, send: 300, read: 300} at the route's upstream, and none at the route",
    ),
    RouteTimeout => warning(
        "route-timeout",
        "in direct mode the route's own timeout overrides the workspace's",
        "remove timeout from the route",
    ),
    DecisionPluginMissing => error(
        "decision-plugin-missing",
        "nothing in the gateway reads the decision, so the gateway sends each request, with the decision's header, to \
         the route's own upstream; a closed port gives 502",
        "put kube-coders-upstream on the route, or use forward mode",
    ),
    DecisionPluginUnused => error(
        "decision-plugin-unused",
        "the runner writes no decision in forward mode, so every request gets 503 decision-missing",
        "set \"upstream_mode\": \"direct\" in the conf, or remove kube-coders-upstream from the route",
    ),
    RememberedInVain => warning(
        "remembered-in-vain",
        "this gateway can't skip the call, so kube-coders-upstream caches nothing",
        "use APISIX 3.18 or later, or remove remember",
    ),
    DecisionDropped => error(
        "decision-dropped",
        "kube-coders-upstream drops the runner's decision as if a client had sent it, or looks for it before the \
         runner made it: every request gets 503",
        "give ext-plugin-pre-req \"_meta\": {\"priority\": 2597}, and leave kube-coders-upstream at its own 2598",
    ),
    LuaChooses => error(
        "lua-chooses-upstream",
        "a function in the route chooses the workspace, and believes headers without checking them",
        "replace it by user-upstream in ext-plugin-pre-req; --migrate prints the route",
    ),
    ScriptOnRoute => error(
        "script-on-route",
        "the script replaces all plugins: there is no login, and the runner is not called",
        "remove it from the route and its service",
    ),
    IdentityRewritten => error(
        "identity-rewritten",
        "the plugin overwrites a header that carries the user's identity or the request's destination",
        "leave these headers to openid-connect and the runner",
    ),
    HeaderRemoved => error(
        "header-removed",
        "the plugin removes a header that the forwarder, or the workspace, needs: requests are refused, or sessions and \
         WebSockets of the workspace fail",
        "leave Cookie, Origin, Host, Upgrade and the headers of the login and the runner as they are",
    ),
    CorsCredentials => error(
        "cors-credentials",
        "pages of other sites may send requests with the user's session, and read what the workspace answers",
        "remove cors from routes to workspaces, or set allow_credential: false",
    ),
    LuaOnRoute => warning(
        "lua-on-route",
        "the function may change headers, or the upstream, after the runner's decision",
        "remove it from routes to workspaces",
    ),
    PathRewritten => warning(
        "path-rewritten",
        "a workspace gets another path, host or method than the client sent: proxy-rewrite decodes and encodes paths \
         again",
        "remove proxy-rewrite, which such a route does not need",
    ),

    // The files and the process.
    ObjectRefused => error(
        "object-refused",
        "the gateway refuses the object, and keeps using the previous one or none",
        "follow the plugin's schema: APISIX 3.18's documentation, or apisix-conf/plugins for ours",
    ),
    ReadDifferently => error(
        "read-differently",
        "the gateway reads YAML 1.1, in which this value has another meaning than in YAML 1.2",
        "quote texts, and write numbers in decimal digits without a leading 0",
    ),
    IdTwice => error(
        "id-twice",
        "the gateway uses only one of the two objects",
        "give each its own id",
    ),
    NotExamined => error(
        "not-examined",
        "the plugin stands where this check does not look, so nothing is known about it",
        "check it by hand, or give it a form that the check reads: apisix-conf/CHECKS.md lists them",
    ),
    IngressClassMissing => warning(
        "ingress-class-missing",
        "the ingress controller ignores the resource, unless its own class is the cluster's default",
        "set spec.ingressClassName, as in apisix-conf/ingress",
    ),
    ReferenceMissing => warning(
        "reference-missing",
        "no file contains the object, so what it adds to the route, such as a login, was not checked",
        "name the file that contains the object, too",
    ),
    ReferenceBroken => error(
        "reference-broken",
        "the gateway knows no such object, so every request to the route gets an error",
        "use the id of an object in the file",
    ),
    NotTerminated => error(
        "not-terminated",
        "APISIX ignores a standalone file without this ending, and keeps the previous configuration",
        "end the file with the line #END",
    ),
    RunnerUnset => error(
        "runner-unset",
        "the gateway does not know where the runner is, so requests get 503",
        "set ext-plugin.path_for_test to the runner's socket, or set ext-plugin.cmd",
    ),
    PluginNotListed => error(
        "plugin-not-listed",
        "the gateway does not load the plugin: it rejects each route that names it (with apisix.yaml), or runs the \
         route without it (with etcd)",
        "add it to plugins of config.yaml, and for kube-coders-upstream apisix.extra_lua_path",
    ),
    UnderscoresOn => warning(
        "underscores-on",
        "the gateway accepts headers with _ instead of -; the runner refuses them, but other plugins may take them \
         for the real ones",
        "set nginx_config.http.underscores_in_headers: \"off\"",
    ),
    ForwardedByAnybody => warning(
        "forwarded-by-anybody",
        "any client can pass plain HTTP off as HTTPS, choose the host, or choose the address that the log shows",
        "list only the addresses of your load balancers, or none",
    ),
    AdminOpen => error(
        "admin-open",
        "any client that reaches the Admin API and has, or guesses, its key can redirect all users",
        "restrict deployment.admin.allow_admin to the few addresses that need it, and require a key",
    ),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_on_the_page_of_rules() {
        let row = |rule: &Rule| {
            let RuleFacts { code, severity, consequence, cure } = rule.facts();
            let severity = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            format!("| `{code}` | {severity} | {consequence} | {cure} |\n")
        };
        let rows: String = Rule::ALL.iter().map(row).collect();
        let page = include_str!("../../../apisix-conf/CHECKS.md");
        assert!(page.contains(&rows), "apisix-conf/CHECKS.md must have these rows:\n{rows}");
    }

    #[test]
    fn each_rule_has_a_unique_code_a_consequence_and_a_cure() {
        let mut codes: Vec<_> = Rule::ALL.iter().map(|rule| rule.facts().code).collect();
        assert!(codes.len() > 50, "{}", codes.len());
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Rule::ALL.len());
        for rule in Rule::ALL {
            let RuleFacts { code, consequence, cure, .. } = rule.facts();
            assert!(code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{code}");
            assert!(consequence.len() > 20 && cure.len() > 10, "{code}");
            assert!(!consequence.ends_with('.') && !cure.ends_with('.'), "{code}");
        }
    }
}
