//! A route and a process without a fault, and each fault that they can have.

use crate::rule::Rule;

/// A route without a fault.
pub(super) const GOOD: &str = r#"routes:
  - id: "workspaces"
    host: coders.example.com
    uri: /*
    enable_websocket: true
    plugins:
      openid-connect:
        discovery: https://key.example.com/realms/dev/.well-known/openid-configuration
        client_id: apisix
        client_secret: $env://CLIENT_SECRET
        bearer_only: false
        session:
          secret: $env://SESSION_SECRET
          cookie_secure: true
        redirect_uri: https://coders.example.com/.apisix/redirect
        logout_path: /.apisix/logout
        unauth_action: deny
        ssl_verify: true
        use_pkce: true
        use_nonce: true
        accept_unsupported_alg: false
        set_raw_id_token_header: true
      ext-plugin-pre-req:
        _meta: {priority: 2598}
        allow_degradation: false
        conf:
          - name: user-upstream
            value: >-
              {"identity": {"trust": "verified", "issuer": "https://key.example.com/realms/dev", "audience": ["apisix"]},
               "upstream": "http://code-{sub}:8443", "login": "/.apisix/logout"}
    upstream:
      nodes: {"127.0.0.1:9181": 1}
      timeout: {connect: 6, send: 300, read: 300}
#END
"#;

/// A process's configuration without a fault.
pub(super) const CONFIG: &str = r#"deployment:
  role: data_plane
  admin:
    allow_admin: [127.0.0.0/24]
    admin_key: [{name: admin, key: "${{ADMIN_KEY}}", role: admin}]
ext-plugin:
  path_for_test: /run/kube-coders/runner.sock
nginx_config:
  envs: [CLIENT_SECRET]
  http:
    underscores_in_headers: "off"
plugins: [openid-connect, ext-plugin-pre-req]
"#;

pub(super) const LOGIN: &str = "routes[0].plugins.openid-connect";
pub(super) const CALL: &str = "routes[0].plugins.ext-plugin-pre-req";
pub(super) const CONF: &str = "routes[0].plugins.ext-plugin-pre-req.conf[0].value";

/// A fault in the route: what is replaced by what, the flags, and what is found where.
pub(super) struct Fault {
    pub(super) change: &'static [(&'static str, &'static str)],
    pub(super) flags: &'static [&'static str],
    pub(super) rule: Rule,
    pub(super) path: String,
}

pub(super) fn fault(
    change: &'static [(&'static str, &'static str)],
    rule: Rule,
    path: impl Into<String>,
) -> Fault {
    Fault { change, flags: &[], rule, path: path.into() }
}

/// A conf that believes the gateway.
pub(super) const TRUST_GATEWAY: (&str, &str) = (
    r#"{"trust": "verified", "issuer": "https://key.example.com/realms/dev", "audience": ["apisix"]}"#,
    r#"{"trust": "gateway"}"#,
);
pub(super) const RAW_TOKEN: &str = "        set_raw_id_token_header: true\n";
pub(super) const NODES: &str = r#"nodes: {"127.0.0.1:9181": 1}"#;
pub(super) const LOGIN_PATH: &str = r#""login": "/.apisix/logout""#;
pub(super) const DIRECT: (&str, &str) =
    (LOGIN_PATH, r#""login": "/.apisix/logout", "upstream_mode": "direct""#);
pub(super) const CLOSED: (&str, &str) = (NODES, r#"nodes: {"127.0.0.1:1": 1}"#);
pub(super) const DECISION: (&str, &str) =
    ("      ext-plugin-pre-req:\n", "      kube-coders-upstream: {remember: 0}\n      ext-plugin-pre-req:\n");
pub(super) const DECISION_ORDER: (&str, &str) = ("{priority: 2598}", "{priority: 2597}");
pub(super) const NO_LOGIN: (&str, &str) =
    ("      openid-connect:\n", "      openid-connect:\n        _meta: {disable: true}\n");

pub(super) fn faults() -> Vec<Fault> {
    let at = |path: &str, name: &str| format!("{path}.{name}");
    vec![
        fault(&[("_meta: {priority: 2598}", "_meta: {}")], Rule::RunsBeforeLogin, at(CALL, "_meta.priority")),
        fault(&[("        _meta: {priority: 2598}\n", "")], Rule::RunsBeforeLogin, at(CALL, "_meta")),
        fault(&[("priority: 2598", "priority: 2599")], Rule::RunsBeforeLogin, at(CALL, "_meta.priority")),
        fault(
            &[("allow_degradation: false", "allow_degradation: true")],
            Rule::DegradationAllowed,
            at(CALL, "allow_degradation"),
        ),
        fault(
            &[("{priority: 2598}", r#"{priority: 2598, filter: [["kc_hit", "!", "==", "1"]]}"#)],
            Rule::CallFiltered,
            at(CALL, "_meta.filter"),
        ),
        fault(
            &[
                DIRECT,
                CLOSED,
                DECISION,
                ("{priority: 2598}", r#"{priority: 2597, filter: [["uri", "~~", "^/a"]]}"#),
            ],
            Rule::CallFiltered,
            at(CALL, "_meta.filter"),
        ),
        fault(
            &[("    upstream:\n", "      ext-plugin-post-resp: {conf: []}\n    upstream:\n")],
            Rule::ResponseCalled,
            "routes[0].plugins.ext-plugin-post-resp",
        ),
        fault(
            &[("          - name: user", "          - plugin: x\n          - name: user")],
            Rule::ConfMalformed,
            at(CALL, "conf[0]"),
        ),
        fault(&[("\"upstream\":", "\"upstreams\":")], Rule::ConfRefused, CONF),
        fault(
            &[
                ("http://code-{sub}:8443", "https://code-{sub}:8443"),
                DIRECT,
                CLOSED,
                DECISION,
                DECISION_ORDER,
            ],
            Rule::ConfRefused,
            CONF,
        ),
        fault(
            &[("          - name: user", "          - {name: other, value: \"7\"}\n          - name: user")],
            Rule::ConfRefused,
            at(CALL, "conf[0].value"),
        ),
        fault(&[("http://code-{sub}:8443", "http://code-{sub}.code-server:8443")], Rule::NameNotFull, CONF),
        fault(
            &[("http://code-{sub}:8443", "http://code-{sub}.code-server.svc:8443")],
            Rule::NameNotFull,
            CONF,
        ),
        fault(&[("http://code-{sub}:8443", "http://code-{email}:8443")], Rule::ClaimChangeable, CONF),
        fault(
            &[("http://code-{sub}:8443", "http://code-{preferred_username}:8443")],
            Rule::ClaimReassigned,
            CONF,
        ),
        fault(&[("http://code-{sub}:8443", "http://{sub}:8443")], Rule::HostIsClaim, CONF),
        fault(
            &[("          - name: user", "          - {name: another, value: \"\"}\n          - name: user")],
            Rule::PluginUnknown,
            at(CALL, "conf[0].value"),
        ),
        Fault {
            flags: &["--gateway-version", "3.18"],
            ..fault(&[TRUST_GATEWAY, NO_LOGIN], Rule::NoLogin, CONF)
        },
        fault(&[NO_LOGIN], Rule::NobodyLogsIn, CONF),
        Fault {
            flags: &["--gateway-version", "3.18"],
            ..fault(
                &[
                    TRUST_GATEWAY,
                    (
                        "      openid-connect:\n",
                        "      openid-connect:\n        _meta: {filter: [[\"uri\", \"==\", \"/\"]]}\n",
                    ),
                ],
                Rule::LoginFiltered,
                at(LOGIN, "_meta.filter"),
            )
        },
        Fault {
            flags: &["--gateway-version", "3.16.2"],
            ..fault(&[TRUST_GATEWAY, (RAW_TOKEN, "")], Rule::GatewayTooOld, CONF)
        },
        Fault {
            flags: &["--gateway-version", "3.17.0"],
            ..fault(&[TRUST_GATEWAY, (RAW_TOKEN, "")], Rule::GatewayTooOld, CONF)
        },
        fault(&[TRUST_GATEWAY], Rule::GatewayUnsaid, CONF),
        Fault {
            flags: &["--gateway-version", "3.18"],
            ..fault(
                &[TRUST_GATEWAY, (RAW_TOKEN, "        set_userinfo_header: false\n")],
                Rule::UserinfoOff,
                at(LOGIN, "set_userinfo_header"),
            )
        },
        Fault {
            flags: &["--gateway-version", "3.18"],
            ..fault(
                &[TRUST_GATEWAY, (RAW_TOKEN, "        session_contents: {access_token: true}\n")],
                Rule::SessionWithoutUser,
                at(LOGIN, "session_contents"),
            )
        },
        fault(&[(RAW_TOKEN, "        set_access_token_header: false\n")], Rule::TokenNotPassed, CONF),
        fault(
            &[("\"audience\":", "\"token\": [\"x-raw-id-token\"], \"audience\":"), (RAW_TOKEN, "")],
            Rule::TokenNotPassed,
            CONF,
        ),
        fault(
            &[
                ("\"audience\":", "\"token\": [\"authorization\"], \"audience\":"),
                (RAW_TOKEN, "        access_token_in_authorization_header: false\n"),
            ],
            Rule::TokenNotPassed,
            CONF,
        ),
        Fault {
            flags: &["--gateway-version", "3.17"],
            ..fault(&[], Rule::RawTokenUnknown, at(LOGIN, "set_raw_id_token_header"))
        },
        fault(&[("[\"apisix\"]", "[\"account\"]")], Rule::AudienceForeign, CONF),
        fault(
            &[("discovery: https://key.", "discovery: https://keys.")],
            Rule::IssuerForeign,
            at(LOGIN, "discovery"),
        ),
        fault(
            &[
                ("discovery: https://key.example.com", "discovery: http://localhost:8080"),
                (
                    "\"audience\":",
                    r#""discovery": "http://localhost:8080/realms/dev/.well-known/openid-configuration", "allow_http": true, "audience":"#,
                ),
                ("client_id: apisix", "client_name: apisix"),
            ],
            Rule::ObjectRefused,
            at(LOGIN, "client_id"),
        ),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_samesite: Lax")],
            Rule::ObjectRefused,
            at(LOGIN, "session.cookie_samesite"),
        ),
        fault(&[("bearer_only: false", "bearer_only: true")], Rule::BearerOnly, at(LOGIN, "bearer_only")),
        fault(
            &[("          secret: $env://SESSION_SECRET\n", "")],
            Rule::SessionSecretMissing,
            at(LOGIN, "session.secret"),
        ),
        fault(&[("$env://CLIENT_SECRET", "s3cret")], Rule::SecretInClear, at(LOGIN, "client_secret")),
        fault(
            &[("$env://SESSION_SECRET", "0123456789abcdef")],
            Rule::SecretInClear,
            at(LOGIN, "session.secret"),
        ),
        fault(
            &[(
                "routes:\n",
                "ssls:\n  - snis: [a]\n    cert: $env://CERT\n    key: \"-----BEGIN PRIVATE KEY-----\\nx\"\nroutes:\n",
            )],
            Rule::SecretInClear,
            "ssls[0].key",
        ),
        fault(
            &[("        redirect_uri: https://coders.example.com/.apisix/redirect\n", "")],
            Rule::RedirectUriMissing,
            at(LOGIN, "redirect_uri"),
        ),
        fault(
            &[("redirect_uri: https:", "redirect_uri: http:")],
            Rule::RedirectUriForeign,
            at(LOGIN, "redirect_uri"),
        ),
        fault(
            &[("redirect_uri: https://coders.example.com", "redirect_uri: https://other.example.com")],
            Rule::RedirectUriForeign,
            at(LOGIN, "redirect_uri"),
        ),
        fault(
            &[("redirect_uri: https://coders.example.com", "redirect_uri: ")],
            Rule::RedirectUriForeign,
            at(LOGIN, "redirect_uri"),
        ),
        fault(&[("ssl_verify: true", "ssl_verify: false")], Rule::TlsUnverified, at(LOGIN, "ssl_verify")),
        fault(
            &[
                ("discovery: https:", "discovery: http:"),
                (
                    "\"audience\":",
                    r#""discovery": "http://key.example.com/realms/dev/.well-known/openid-configuration", "allow_http": true, "audience":"#,
                ),
            ],
            Rule::DiscoveryOverHttp,
            at(LOGIN, "discovery"),
        ),
        fault(
            &[(
                "accept_unsupported_alg: false",
                "accept_unsupported_alg: false\n        accept_none_alg: true",
            )],
            Rule::NoneAccepted,
            at(LOGIN, "accept_none_alg"),
        ),
        fault(
            &[("        accept_unsupported_alg: false\n", "")],
            Rule::UnsupportedAccepted,
            at(LOGIN, "accept_unsupported_alg"),
        ),
        fault(&[("use_pkce: true", "use_pkce: false")], Rule::PkceOff, at(LOGIN, "use_pkce")),
        fault(&[("        use_nonce: true\n", "")], Rule::NonceOff, at(LOGIN, "use_nonce")),
        fault(
            &[("unauth_action: deny", "unauth_action: pass")],
            Rule::UnauthPass,
            at(LOGIN, "unauth_action"),
        ),
        fault(&[("unauth_action: deny", "unauth_action: auth")], Rule::XhrLogin, at(LOGIN, "unauth_action")),
        fault(&[("        unauth_action: deny\n", "")], Rule::XhrLogin, at(LOGIN, "unauth_action")),
        fault(
            &[("          cookie_secure: true\n", "")],
            Rule::CookieNotSecure,
            at(LOGIN, "session.cookie_secure"),
        ),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_http_only: false")],
            Rule::CookieReadable,
            at(LOGIN, "session.cookie_http_only"),
        ),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_same_site: None")],
            Rule::CookieCrossSite,
            at(LOGIN, "session.cookie_same_site"),
        ),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_name: coders")],
            Rule::CookieReachesWorkspace,
            CONF,
        ),
        fault(&[("        logout_path: /.apisix/logout\n", "")], Rule::LogoutElsewhere, CONF),
        fault(
            &[
                ("    upstream:\n      nodes: {\"127.0.0.1:9181\": 1}\n", ""),
                ("      timeout: {connect: 6, send: 300, read: 300}\n", ""),
            ],
            Rule::UpstreamMissing,
            "routes[0].upstream",
        ),
        fault(&[("{\"127.0.0.1:9181\": 1}", "{}")], Rule::UpstreamMissing, "routes[0].upstream"),
        fault(
            &[("{\"127.0.0.1:9181\": 1}", "{\"httpbin.org:80\": 1}")],
            Rule::UpstreamOpen,
            "routes[0].upstream.nodes[\"httpbin.org:80\"]",
        ),
        fault(
            &[("{\"127.0.0.1:9181\": 1}", "[{host: 127.0.0.1, port: 9180, weight: 1}]")],
            Rule::UpstreamOpen,
            "routes[0].upstream.nodes[0]",
        ),
        fault(
            &[(NODES, "service_name: default/forwarder:http\n      discovery_type: kubernetes")],
            Rule::UpstreamOpen,
            "routes[0].upstream.service_name",
        ),
        Fault {
            flags: &["--forwarder-address", "127.0.0.1:9999"],
            ..fault(&[], Rule::UpstreamOpen, "routes[0].upstream.nodes[\"127.0.0.1:9181\"]")
        },
        fault(
            &[DIRECT, DECISION, DECISION_ORDER],
            Rule::UpstreamOpen,
            "routes[0].upstream.nodes[\"127.0.0.1:9181\"]",
        ),
        fault(
            &[("    upstream:\n", "      traffic-split: {rules: []}\n    upstream:\n")],
            Rule::UpstreamElsewhere,
            "routes[0].plugins.traffic-split",
        ),
        fault(&[("    enable_websocket: true\n", "")], Rule::WebSocketOff, "routes[0].enable_websocket"),
        fault(&[("read: 300", "read: 299")], Rule::ReadTimeoutShort, "routes[0].upstream.timeout.read"),
        fault(
            &[("      timeout: {connect: 6, send: 300, read: 300}\n", "")],
            Rule::ReadTimeoutShort,
            "routes[0].upstream.timeout",
        ),
        fault(
            &[(LOGIN_PATH, r#""login": "/.apisix/logout", "timeout": {"read": "1h"}"#)],
            Rule::ReadTimeoutShort,
            "routes[0].upstream.timeout.read",
        ),
        fault(
            &[("    uri: /*\n", "    uri: /*\n    timeout: {connect: 6, send: 6, read: 6}\n")],
            Rule::ReadTimeoutShort,
            "routes[0].timeout.read",
        ),
        fault(
            &[
                DIRECT,
                CLOSED,
                DECISION,
                DECISION_ORDER,
                ("    uri: /*\n", "    uri: /*\n    timeout: {read: 6}\n"),
            ],
            Rule::RouteTimeout,
            "routes[0].timeout",
        ),
        fault(&[DIRECT, CLOSED], Rule::DecisionPluginMissing, CONF),
        fault(&[DECISION], Rule::DecisionPluginUnused, "routes[0].plugins.kube-coders-upstream"),
        fault(&[DIRECT, CLOSED, DECISION], Rule::DecisionDropped, at(CALL, "_meta.priority")),
        fault(
            &[(
                "    upstream:\n",
                "      serverless-pre-function: {functions: ['return function() local u = require(\"apisix.upstream\") end']}\n    upstream:\n",
            )],
            Rule::LuaChooses,
            "routes[0].plugins.serverless-pre-function.functions[0]",
        ),
        fault(
            &[(
                "    upstream:\n",
                "      serverless-post-function: {functions: ['return function() end']}\n    upstream:\n",
            )],
            Rule::LuaOnRoute,
            "routes[0].plugins.serverless-post-function.functions[0]",
        ),
        fault(
            &[("    uri: /*\n", "    uri: /*\n    script: 'return {}'\n")],
            Rule::ScriptOnRoute,
            "routes[0].script",
        ),
        fault(
            &[(
                "    upstream:\n",
                "      proxy-rewrite: {regex_uri: [\"^/(.*)\", \"/$1\"]}\n    upstream:\n",
            )],
            Rule::PathRewritten,
            "routes[0].plugins.proxy-rewrite.regex_uri",
        ),
        fault(
            &[("    uri: /*\n", "    uri: /*\n    plugin_config_id: 7\n")],
            Rule::ReferenceBroken,
            "routes[0].plugin_config_id",
        ),
        fault(&[("#END\n", "")], Rule::NotTerminated, ""),
        fault(
            &[("{priority: 2598}", "{priority: 2598, pre_function: 'return function() end'}")],
            Rule::LuaOnRoute,
            at(CALL, "_meta.pre_function"),
        ),
        fault(
            &[(
                "          - name: user",
                "          - name: user-upstream\n            value: '{\"identity\": {\"trust\": \"verified\", \"issuer\": \"https://key.example.com/realms/dev\", \"audience\": [\"apisix\"]}, \"upstream\": \"http://code-{sub}:1\", \"login\": \"/.apisix/logout\"}'\n          - name: user",
            )],
            Rule::CalledTwice,
            at(CALL, "conf[1].value"),
        ),
        fault(
            &[
                DIRECT,
                CLOSED,
                (
                    DECISION.0,
                    "      kube-coders-upstream: {remember: 0, _meta: {priority: 2700}}\n      ext-plugin-pre-req:\n",
                ),
                DECISION_ORDER,
            ],
            Rule::DecisionBeforeLogin,
            "routes[0].plugins.kube-coders-upstream._meta.priority",
        ),
        fault(
            &[
                DIRECT,
                CLOSED,
                (
                    DECISION.0,
                    "      kube-coders-upstream: {_meta: {priority: 2000}}\n      ext-plugin-pre-req:\n",
                ),
                DECISION_ORDER,
            ],
            Rule::DecisionDropped,
            at(CALL, "_meta.priority"),
        ),
        fault(
            &[
                DIRECT,
                CLOSED,
                DECISION,
                ("      ext-plugin-pre-req:\n", "      ext-plugin-post-req:\n"),
                ("        _meta: {priority: 2598}\n", ""),
            ],
            Rule::DecisionDropped,
            "routes[0].plugins.ext-plugin-post-req",
        ),
        fault(
            &[
                DIRECT,
                CLOSED,
                (DECISION.0, "      kube-coders-upstream: {remember: 11}\n      ext-plugin-pre-req:\n"),
                DECISION_ORDER,
            ],
            Rule::ObjectRefused,
            "routes[0].plugins.kube-coders-upstream.remember",
        ),
        Fault {
            flags: &["--gateway-version", "3.17"],
            ..fault(
                &[
                    DIRECT,
                    CLOSED,
                    (DECISION.0, "      kube-coders-upstream: {remember: 5}\n      ext-plugin-pre-req:\n"),
                    DECISION_ORDER,
                    (RAW_TOKEN, ""),
                ],
                Rule::RememberedInVain,
                "routes[0].plugins.kube-coders-upstream.remember",
            )
        },
        fault(&[("http://code-{sub}:8443", "http://code:8443")], Rule::OneForAll, CONF),
        fault(
            &[
                DIRECT,
                CLOSED,
                (
                    DECISION.0,
                    "      kube-coders-upstream: {_meta: {filter: [[uri, \"==\", /]]}}\n      ext-plugin-pre-req:\n",
                ),
                DECISION_ORDER,
            ],
            Rule::CallFiltered,
            "routes[0].plugins.kube-coders-upstream._meta.filter",
        ),
        fault(
            &[DIRECT, (NODES, r#"nodes: {"127.0.0.1:9180": 1}"#), DECISION, DECISION_ORDER],
            Rule::UpstreamOpen,
            "routes[0].upstream.nodes[\"127.0.0.1:9180\"]",
        ),
        fault(
            &[(NODES, r#"nodes: {"[::1]:9181": 1}"#)],
            Rule::UpstreamOpen,
            "routes[0].upstream.nodes[\"[::1]:9181\"]",
        ),
        fault(
            &[("    upstream:\n", "    upstream:\n      scheme: https\n")],
            Rule::UpstreamUnfit,
            "routes[0].upstream.scheme",
        ),
        fault(
            &[("    upstream:\n", "    upstream:\n      pass_host: node\n")],
            Rule::UpstreamUnfit,
            "routes[0].upstream.pass_host",
        ),
        fault(
            &[
                ("          - name: user-upstream", "          - name: other"),
                (
                    "            value: >-\n              {\"identity\": {\"trust\": \"verified\", \"issuer\": \"https://key.example.com/realms/dev\", \"audience\": [\"apisix\"]},\n               \"upstream\": \"http://code-{sub}:8443\", \"login\": \"/.apisix/logout\"}\n",
                    "            value: ''\n",
                ),
            ],
            Rule::RunnerNotCalled,
            "routes[0]",
        ),
        fault(
            &[("    upstream:\n", "      proxy-cache: {cache_strategy: memory}\n    upstream:\n")],
            Rule::AnswersShared,
            "routes[0].plugins.proxy-cache",
        ),
        fault(
            &[(
                "    upstream:\n",
                "      proxy-rewrite: {headers: {set: {X-Userinfo: $arg_u}}}\n    upstream:\n",
            )],
            Rule::IdentityRewritten,
            "routes[0].plugins.proxy-rewrite.headers.set.X-Userinfo",
        ),
        fault(
            &[(
                "    upstream:\n",
                "      forward-auth: {uri: 'https://a/', upstream_headers: [X-Userinfo]}\n    upstream:\n",
            )],
            Rule::IdentityRewritten,
            "routes[0].plugins.forward-auth.upstream_headers[0]",
        ),
        fault(
            &[("    upstream:\n", "      proxy-rewrite: {host: a}\n    upstream:\n")],
            Rule::PathRewritten,
            "routes[0].plugins.proxy-rewrite.host",
        ),
        Fault {
            flags: &["--gateway-version", "3.15"],
            ..fault(
                &[
                    ("        ssl_verify: true\n", ""),
                    ("[\"apisix\"]}", "[\"apisix\"], \"token\": [\"x-access-token\"]}"),
                    (RAW_TOKEN, ""),
                ],
                Rule::TlsUnverified,
                at(LOGIN, "ssl_verify"),
            )
        },
        fault(&[("ssl_verify: true", "ssl_verify: \"true\"")], Rule::ObjectRefused, at(LOGIN, "ssl_verify")),
        fault(
            &[("unauth_action: deny", "unauth_action: login")],
            Rule::ObjectRefused,
            at(LOGIN, "unauth_action"),
        ),
        fault(
            &[("allow_degradation: false", "allow_degradation: \"false\"")],
            Rule::ObjectRefused,
            at(CALL, "allow_degradation"),
        ),
        fault(
            &[(
                "redirect_uri: https://coders.example.com/.apisix/redirect",
                "redirect_uri: https://coders.example.com/",
            )],
            Rule::RedirectUriForeign,
            at(LOGIN, "redirect_uri"),
        ),
        fault(
            &[("    uri: /*\n", "    uri: /code/*\n")],
            Rule::RedirectUriForeign,
            at(LOGIN, "redirect_uri"),
        ),
        fault(&[("\"audience\":", "\"token\": [\"x-id-token\"], \"audience\":")], Rule::TokenNotPassed, CONF),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_same_site: Strict")],
            Rule::CookieLost,
            at(LOGIN, "session.cookie_same_site"),
        ),
        fault(
            &[
                (
                    "cookie_secure: true",
                    "cookie_secure: true\n          cookie_name: __Host-a\n          cookie_path: /a",
                ),
                (LOGIN_PATH, r#""login": "/.apisix/logout", "remove_cookies": ["__Host-a"]"#),
            ],
            Rule::CookieLost,
            at(LOGIN, "session.cookie_name"),
        ),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_domain: example.com")],
            Rule::CookieShared,
            at(LOGIN, "session.cookie_domain"),
        ),
        fault(
            &[
                ("unauth_action: deny", "unauth_action: auth"),
                ("    uri: /*\n", "    uri: /*\n    vars: [[http_accept, \"!\", \"~~\", text/html]]\n"),
            ],
            Rule::XhrLogin,
            at(LOGIN, "unauth_action"),
        ),
        Fault {
            flags: &["--gateway-version", "3.18"],
            ..fault(
                &[
                    ("\"audience\":", "\"userinfo_claims\": [\"team\"], \"audience\":"),
                    ("code-{sub}", "code-{team}"),
                    NO_LOGIN,
                ],
                Rule::NoLogin,
                CONF,
            )
        },
        fault(
            &[
                ("\"audience\":", "\"userinfo_claims\": [\"team\"], \"audience\":"),
                ("code-{sub}", "code-{team}"),
            ],
            Rule::GatewayUnsaid,
            CONF,
        ),
        fault(
            &[("$env://CLIENT_SECRET", "${{CLIENT_SECRET:=s3cret}}")],
            Rule::SecretInClear,
            at(LOGIN, "client_secret"),
        ),
        fault(
            &[(
                "routes:\n",
                "consumers:\n  - username: a\n    plugins: {key-auth: {key: s3cret}}\nroutes:\n",
            )],
            Rule::SecretInClear,
            "consumers[0].plugins.key-auth.key",
        ),
        fault(
            &[("    uri: /*\n", "    uri: /*\n    service_id: 7\n")],
            Rule::ReferenceBroken,
            "routes[0].service_id",
        ),
        fault(
            &[("    uri: /*\n", "    uri: /*\n    upstream_id: 7\n")],
            Rule::ReferenceBroken,
            "routes[0].upstream_id",
        ),
        fault(
            &[(
                RAW_TOKEN,
                "        set_raw_id_token_header: true\n        access_token_in_authorization_header: true\n",
            )],
            Rule::AuthorizationReplaced,
            at(LOGIN, "access_token_in_authorization_header"),
        ),
        fault(
            &[("    upstream:\n", "      redirect: {http_to_https: true}\n    upstream:\n")],
            Rule::RedirectLate,
            "routes[0].plugins.redirect",
        ),
        fault(
            &[(
                "    upstream:\n",
                "      cors: {allow_origins: '**', allow_credential: true}\n    upstream:\n",
            )],
            Rule::CorsCredentials,
            "routes[0].plugins.cors.allow_credential",
        ),
        fault(
            &[(
                "    upstream:\n",
                "      proxy-rewrite: {headers: {remove: [X-Own, cookie]}}\n    upstream:\n",
            )],
            Rule::HeaderRemoved,
            "routes[0].plugins.proxy-rewrite.headers.remove[1]",
        ),
        fault(
            &[("    upstream:\n", "      proxy-rewrite: {headers: {set: {Upgrade: \"\"}}}\n    upstream:\n")],
            Rule::HeaderRemoved,
            "routes[0].plugins.proxy-rewrite.headers.set.Upgrade",
        ),
        fault(
            &[("cookie_secure: true", "cookie_secure: true\n          cookie_same_site: lax")],
            Rule::ObjectRefused,
            at(LOGIN, "session.cookie_same_site"),
        ),
        fault(
            &[("    upstream:\n", "      http-logger: {uri: 'https://u:s3cret@a/'}\n    upstream:\n")],
            Rule::SecretInClear,
            "routes[0].plugins.http-logger.uri",
        ),
        fault(
            &[("    upstream:\n", "      csrf: {key: s3cret}\n    upstream:\n")],
            Rule::SecretInClear,
            "routes[0].plugins.csrf.key",
        ),
        fault(
            &[("    upstream:\n", "      ai-proxy-x: {auth: {query: {k: s3cret}}}\n    upstream:\n")],
            Rule::SecretInClear,
            "routes[0].plugins.ai-proxy-x.auth.query.k",
        ),
        fault(
            &[("routes:\n", "secrets:\n  - {id: aws/1, secret_access_key: s3cret}\nroutes:\n")],
            Rule::SecretInClear,
            "secrets[0].secret_access_key",
        ),
        fault(
            &[(
                "routes:\n",
                "plugins: [{name: ext-plugin-pre-req}, {name: openid-connect, stream: true}]\nroutes:\n",
            )],
            Rule::PluginNotListed,
            LOGIN,
        ),
        fault(
            &[("{priority: 2598}", "{priority: 02598}")],
            Rule::ReadDifferently,
            at(CALL, "_meta.priority"),
        ),
    ]
}

/// Faults of the process's configuration, with the good route.
pub(super) fn process_faults() -> Vec<Fault> {
    vec![
        fault(&[("path_for_test:", "path:")], Rule::RunnerUnset, "ext-plugin"),
        fault(&[("[openid-connect, ", "[")], Rule::PluginNotListed, LOGIN),
        fault(&[("\"off\"", "\"on\"")], Rule::UnderscoresOn, "nginx_config.http.underscores_in_headers"),
        fault(
            &[("  http:\n    underscores_in_headers: \"off\"\n", "")],
            Rule::UnderscoresOn,
            "nginx_config.http.underscores_in_headers",
        ),
        fault(&[("127.0.0.0/24", "0.0.0.0/0")], Rule::AdminOpen, "deployment.admin.allow_admin[0]"),
        fault(&[("\"${{ADMIN_KEY}}\"", "s3cret")], Rule::SecretInClear, "deployment.admin.admin_key[0].key"),
        fault(
            &[("\"${{ADMIN_KEY}}\"", "\"${{ADMIN_KEY:=s3cret}}\"")],
            Rule::SecretInClear,
            "deployment.admin.admin_key[0].key",
        ),
        fault(&[("[127.0.0.0/24]", "[]")], Rule::AdminOpen, "deployment.admin.allow_admin"),
        fault(&[("[127.0.0.0/24]", "0.0.0.0/0")], Rule::AdminOpen, "deployment.admin.allow_admin"),
        fault(
            &[("${{ADMIN_KEY}}", "$env://ADMIN_KEY")],
            Rule::SecretInClear,
            "deployment.admin.admin_key[0].key",
        ),
        fault(
            &[("  admin:\n", "  admin:\n    admin_key_required: false\n")],
            Rule::AdminOpen,
            "deployment.admin.admin_key_required",
        ),
        fault(
            &[("  admin:\n", "  etcd: {password: s3cret}\n  admin:\n")],
            Rule::SecretInClear,
            "deployment.etcd.password",
        ),
        fault(
            &[("[CLIENT_SECRET]", "[\"SESSION_SECRET=s3cret\"]")],
            Rule::SecretInClear,
            "nginx_config.envs[0]",
        ),
        fault(
            &[("ext-plugin:\n", "apisix: {trusted_addresses: [0.0.0.0/0]}\next-plugin:\n")],
            Rule::ForwardedByAnybody,
            "apisix.trusted_addresses[0]",
        ),
        fault(
            &[("  http:\n", "  http:\n    real_ip_from: [\"::/0\"]\n")],
            Rule::ForwardedByAnybody,
            "nginx_config.http.real_ip_from[0]",
        ),
        fault(&[("\"off\"", "off")], Rule::UnderscoresOn, "nginx_config.http.underscores_in_headers"),
        fault(
            &[("  http:\n", "  http_server_configuration_snippet: underscores_in_headers on;\n  http:\n")],
            Rule::UnderscoresOn,
            "nginx_config.http_server_configuration_snippet",
        ),
        fault(
            &[("path_for_test: /run", "path_for_test: unix:/run")],
            Rule::RunnerUnset,
            "ext-plugin.path_for_test",
        ),
        fault(
            &[("path_for_test: /run/kube-coders/runner.sock", "cmd: /opt/kube-coders/kube-coders run")],
            Rule::RunnerUnset,
            "ext-plugin.cmd",
        ),
        fault(
            &[("path_for_test: /run/kube-coders/runner.sock", "cmd: [/opt/kube-coders/kube-coders]")],
            Rule::RunnerUnset,
            "ext-plugin.cmd",
        ),
    ]
}
