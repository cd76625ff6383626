//! The forms in which a gateway's configuration comes.

use super::*;
use crate::rule::Rule;

const CONF: &str = r#"{\"identity\": {\"trust\": \"gateway\"}, \"upstream\": \"http://code-{sub}:8443\"}"#;

/// As it is sent to the Admin API: each object a file, its kind in no file.
fn service() -> String {
    format!(
        r#"{{"id": "workspaces", "enable_websocket": true,
            "plugins": {{"ext-plugin-pre-req": {{"conf": [{{"name": "user-upstream", "value": "{CONF}"}}]}}}},
            "upstream": {{"nodes": [{{"host": "127.0.0.1", "port": 9181, "weight": 1}}], "timeout": {{"read": 300}}}}}}"#
    )
}

const ROUTE: &str = r#"{"uri": "/*", "service_id": "workspaces", "plugins": {"openid-connect": {
  "_meta": {"priority": 20000}, "bearer_only": true, "client_id": "a", "discovery": "https://key/"}}}"#;

const GATEWAY: &[&str] = &["--gateway-version", "3.18"];
const EXPECTED: (&str, &str) = ("bearer-only", "plugins.openid-connect.bearer_only");

#[test]
fn a_service_is_in_force_on_its_routes() {
    check(&[("route.json", ROUTE), ("service.json", &service())], GATEWAY, &[EXPECTED]);
    // Without it, what it contains is not known.
    let alone = [("reference-missing", "service_id")];
    check(&[("route.json", ROUTE)], GATEWAY, &alone);
}

#[test]
fn a_route_s_own_plugin_takes_the_place_of_its_service_s() {
    let own = ROUTE.replace(
        "\"plugins\": {",
        "\"plugins\": {\"ext-plugin-pre-req\": {\"_meta\": {\"disable\": true}, \"conf\": []},",
    );
    check(&[("route.json", &own), ("service.json", &service())], GATEWAY, &[("runner-not-called", "")]);
}

#[test]
fn answers_of_the_admin_api_are_read() {
    let route = format!("{{\"key\": \"/apisix/routes/1\", \"value\": {ROUTE}, \"createdIndex\": 7}}");
    let service = format!("{{\"key\": \"/apisix/services/workspaces\", \"value\": {}}}", service());
    let path = "value.plugins.openid-connect.bearer_only";
    check(&[("route.json", &route), ("service.json", &service)], GATEWAY, &[("bearer-only", path)]);
    let all = format!("{{\"total\": 2, \"list\": [{route}, {service}]}}");
    let path = "list[0].value.plugins.openid-connect.bearer_only";
    check(&[("all.json", &all)], GATEWAY, &[("bearer-only", path)]);
}

const INGRESS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: apisix}
---
apiVersion: apisix.apache.org/v2
kind: ApisixUpstream
metadata: {name: forwarder, namespace: apisix}
spec:
  externalNodes: [{type: Domain, name: 127.0.0.1, port: 9181}]
  timeout: {connect: 6s, send: 300s, read: 5m}
---
apiVersion: apisix.apache.org/v2
kind: ApisixPluginConfig
metadata: {name: workspaces, namespace: apisix}
spec:
  plugins:
    - name: ext-plugin-pre-req
      enable: true
      config:
        _meta: {priority: 2598}
        conf: [{name: user-upstream, value: '{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443", "login": "/logout"}'}]
---
apiVersion: apisix.apache.org/v2
kind: ApisixRoute
metadata: {name: workspaces, namespace: apisix}
spec:
  http:
    - name: workspaces
      match:
        hosts: [coders.example.com]
        paths: [/*]
        exprs: [{subject: {scope: Header, name: Accept}, op: RegexMatch, value: text/html}]
      websocket: true
      upstreams: [{name: forwarder}]
      plugin_config_name: workspaces
      plugins:
        - name: openid-connect
          enable: true
          secretRef: login
          config:
            discovery: https://key.example.com/realms/dev/.well-known/openid-configuration
            redirect_uri: https://coders.example.com/.apisix/redirect
            session: {cookie_secure: true}
            use_pkce: true
            use_nonce: true
            accept_unsupported_alg: false
"#;

#[track_caller]
fn check_ingress(change: &[(&str, &str)], expected: &[(&str, &str)]) {
    let mut text = INGRESS.to_owned();
    for (before, after) in change {
        assert_eq!(text.matches(before).count(), 1, "{before:?} stands there once");
        text = text.replace(before, after);
    }
    check(&[("ingress.yaml", &text)], GATEWAY, expected);
}

#[test]
fn the_ingress_controller_s_resources_are_read() {
    check_ingress(&[], &[]);
    let route = "spec.http[0]";
    check_ingress(&[("      websocket: true\n", "")], &[("websocket-off", &format!("{route}.websocket"))]);
    check_ingress(&[("read: 5m", "read: 59s")], &[("read-timeout-short", "spec.timeout.read")]);
    check_ingress(
        &[("_meta: {priority: 2598}", "_meta: {priority: 12000}")],
        &[("runs-before-login", "spec.plugins[0].config._meta.priority")],
    );
    check_ingress(&[("port: 9181", "port: 80")], &[("upstream-open", "spec.externalNodes[0]")]);
    check_ingress(
        &[(
            "upstreams: [{name: forwarder}]",
            "timeout: {read: 300s}\n      backends: [{serviceName: code, servicePort: 80}]",
        )],
        &[("upstream-open", &format!("{route}.backends[0]"))],
    );
    check_ingress(
        &[("plugin_config_name: workspaces", "plugin_config_name: others")],
        &[("reference-missing", &format!("{route}.plugin_config_name"))],
    );
    check_ingress(
        &[("[{name: forwarder}]", "[{name: another}]")],
        &[("reference-missing", &format!("{route}.upstreams[0].name"))],
    );
    check_ingress(
        &[("          secretRef: login\n", "")],
        &[
            ("object-refused", &format!("{route}.plugins[0].config.client_id")),
            ("session-secret-missing", &format!("{route}.plugins[0].config.session.secret")),
        ],
    );
    check_ingress(
        &[(
            "        - name: openid-connect\n          enable: true",
            "        - name: openid-connect\n          enable: false",
        )],
        &[("no-login", "spec.plugins[0].config.conf[0].value")],
    );
}

#[test]
fn resources_of_another_namespace_are_others() {
    check_ingress(
        &[("name: forwarder, namespace: apisix", "name: forwarder, namespace: other")],
        &[("reference-missing", "spec.http[0].upstreams[0].name")],
    );
}

#[test]
fn resources_in_a_list_are_read() {
    let documents: Vec<_> = INGRESS.trim().split("\n---\n").collect();
    let items: Vec<_> =
        documents.iter().map(|document| format!("- {}\n", document.replace('\n', "\n  "))).collect();
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}", items.concat())
        .replace("websocket: true", "websocket: false");
    check(&[("list.yaml", &list)], GATEWAY, &[("websocket-off", "items[3].spec.http[0].websocket")]);
}

#[test]
fn a_global_rule_of_the_ingress_controller_is_one() {
    let text = INGRESS.replace("kind: ApisixPluginConfig", "kind: ApisixGlobalRule");
    let findings = found(&[("ingress.yaml", &text)], GATEWAY).unwrap();
    assert!(findings.iter().any(|finding| finding.rule == Rule::CalledElsewhere), "{findings:?}");
}

#[test]
fn other_documents_are_refused_and_not_called_clean() {
    for text in ["", "a: 1\n", "- 1\n", "[]", "apiVersion: v1\nkind: ConfigMap\n", "routes: {}\n"] {
        let error = found(&[("a.yaml", text)], &[]).unwrap_err().to_string();
        assert!(error.starts_with("a.yaml: no configuration of a gateway: "), "{text:?}: {error}");
    }
    let error = found(&[("a.yaml", "a: [")], &[]).unwrap_err().to_string();
    assert_eq!(error, "a.yaml, line 1, column 4: neither YAML nor JSON");
}

/// What the ingress controller's resources say in addition to routes, and how a route can be said
/// in other ways.
#[test]
fn the_controller_s_other_ways_are_known() {
    let timeout = ("      websocket: true\n", "      websocket: true\n      timeout: {connect: 6s}\n");
    check_ingress(&[timeout], &[("read-timeout-short", "spec.http[0].timeout")]);
    check_ingress(
        &[("        paths: [/*]\n", "        paths: [/*]\n        filter_func: 'return function() end'\n")],
        &[("script-on-route", "spec.http[0].match.filter_func")],
    );
    check_ingress(
        &[("  externalNodes:", "  discovery: {type: nacos, serviceName: x}\n  externalNodes:")],
        &[("upstream-open", "spec.discovery")],
    );
    // An upstream that no file has does not hide the other backends.
    check_ingress(
        &[(
            "[{name: forwarder}]",
            "[{name: another}]\n      backends: [{serviceName: code, servicePort: 80}]",
        )],
        &[
            ("read-timeout-short", "spec.http[0].upstreams.timeout"),
            ("reference-missing", "spec.http[0].upstreams[0].name"),
            ("upstream-open", "spec.http[0].backends[0]"),
        ],
    );
    let twice = format!(
        "{INGRESS}---\napiVersion: apisix.apache.org/v2\nkind: ApisixUpstream\nmetadata: {{name: forwarder, namespace: apisix}}\nspec: {{externalNodes: [{{type: Domain, name: evil.example, port: 80}}]}}\n"
    );
    let findings = found(&[("ingress.yaml", &twice)], GATEWAY).unwrap();
    let codes: Vec<_> = findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(codes, [Rule::ReadTimeoutShort, Rule::IdTwice, Rule::UpstreamOpen]);
}

#[test]
fn a_gateway_proxy_s_plugins_are_global_and_its_key_is_a_secret() {
    let text = "apiVersion: apisix.apache.org/v1alpha1\nkind: GatewayProxy\nmetadata: {name: a}\nspec:\n  plugins:\n    - {name: openid-connect, enabled: true, config: {client_id: a, discovery: 'https://key/', bearer_only: true, ssl_verify: false}}\n    - {name: openid-connect2, enabled: false, config: {client_secret: s3cret}}\n  provider: {controlPlane: {auth: {adminKey: {value: s3cret}}}}\n";
    check(
        &[("proxy.yaml", text)],
        &[],
        &[
            ("tls-unverified", "spec.plugins[0].config.ssl_verify"),
            ("secret-in-clear", "spec.plugins[1].config.client_secret"),
            ("secret-in-clear", "spec.provider.controlPlane.auth.adminKey.value"),
        ],
    );
}

#[test]
fn of_helm_values_the_embedded_configuration_is_read() {
    let values = "image: {tag: 3.18.0}\napisix:\n  fullCustomConfig:\n    config:\n      deployment: {admin: {allow_admin: [0.0.0.0/0]}}\n";
    let path = "apisix.fullCustomConfig.config.deployment.admin.allow_admin[0]";
    check(&[("values.yaml", values)], &[], &[("admin-open", path)]);
    let spawned = "apisix:\n  extPlugin: {enabled: true}\n  nginx: {envs: [A]}\n";
    assert!(found(&[("values.yaml", spawned)], &[]).is_err());
}

#[test]
fn a_collection_alone_is_a_gateway_s() {
    for text in [
        "plugin_configs:\n  - {id: 1, plugins: {}}\n#END\n",
        "stream_routes: []\n#END\n",
        "{\"routes\": []}",
        "{\"total\": 0, \"list\": []}",
        "{\"total\": 0, \"list\": {}}",
        "{\"id\": \"o\", \"upstream_id\": \"u\"}",
        "{\"key\": \"/apisix/secrets/vault/1\", \"value\": {\"uri\": \"https://vault\"}}",
        "{\"key\": \"/apisix/services/routes\", \"value\": {\"uri\": \"/*\"}}",
    ] {
        check(&[("a.yaml", text)], &[], &[]);
    }
}

#[test]
fn a_credential_of_a_consumer_is_a_secret() {
    let text = "{\"key\": \"/apisix/consumers/jack/credentials/c1\", \"value\": {\"plugins\": {\"key-auth\": {\"key\": \"s3cret\"}}}}";
    check(&[("a.json", text)], &[], &[("secret-in-clear", "value.plugins.key-auth.key")]);
}

#[test]
fn bodies_of_other_kinds_may_have_one_id() {
    let plugins = r#"{"id": "workspaces", "plugins": {"prometheus": {}}}"#;
    check(
        &[("route.json", ROUTE), ("service.json", &service()), ("plugins.json", plugins)],
        GATEWAY,
        &[EXPECTED],
    );
    check(
        &[("route.json", ROUTE), ("plugins.json", plugins), ("service.json", &service())],
        GATEWAY,
        &[EXPECTED],
    );
}

#[test]
fn variables_are_replaced_in_the_gateway_s_own_files_only() {
    let body = r#"{"uri": "/*", "plugins": {"basic-auth": {"password": "${{PASSWORD}}"}}}"#;
    check(&[("route.json", body)], &[], &[("secret-in-clear", "plugins.basic-auth.password")]);
    let standalone = format!("{{\"routes\": [{body}]}}");
    check(&[("apisix.json", &standalone)], &[], &[]);
}

#[test]
fn one_look_shows_all_that_is_wrong() {
    let error = found(&[("a.yaml", "a: ["), ("b.yaml", "b: [")], &[]).unwrap_err().to_string();
    let expected = "a.yaml, line 1, column 4: neither YAML nor JSON\nkube-coders: b.yaml, line 1, column 4: neither YAML nor JSON";
    assert_eq!(error, expected);
}

#[test]
fn hostile_names_stay_on_their_line() {
    let text = "routes:\n  - uri: /*\n    plugins: {openid-connect: {discovery: 'https://key/', client_id: a, bearer_only: true, session: {\"a\\e[31m\\n::error::b\": 1}}}\n#END\n";
    let findings = found(&[("a\nb.yaml", text)], &[]).unwrap();
    let printed = report::text(&findings, 1);
    assert!(printed.starts_with("a\\nb.yaml:3:"), "{printed}");
    assert!(!printed.contains('\u{1b}') && !printed.contains("\n::error"), "{printed}");
}

/// Values of every kind at every place: whatever is written, nothing panics.
#[test]
fn values_of_another_kind_are_no_end() {
    let values = ["null", "true", "7", "-1e300", "\"x\"", "[]", "[[[]]]", "{}", "{a: {}}"];
    let lines: Vec<_> = INGRESS.lines().collect();
    let mut checked = 0;
    for (at, line) in lines.iter().enumerate() {
        let Some((name, _)) = line.split_once(": ") else { continue };
        for value in values {
            let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            changed[at] = format!("{name}: {value}");
            let _ = found(&[("a.yaml", &changed.join("\n"))], GATEWAY);
            checked += 1;
        }
    }
    assert!(checked > 200, "{checked}");
}
