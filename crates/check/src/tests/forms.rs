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
  ingressClassName: apisix
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
}

/// A conf whose fault shows that it was read.
const FAULTY: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}"#;

/// The values that people write for the gateway's chart, and those of the chart before version 2.
#[test]
fn values_for_the_gateway_s_chart_are_read() {
    let values = "apisix:
  admin:
    credentials: {admin: s3cret, secretName: keys}
    allow: {ipList: [0.0.0.0/0]}
  trustedAddresses: [10.0.0.0/8, '::/0']
  extPlugin: {enabled: true, cmd: [/opt/kube-coders/kube-coders]}
extraEnvVars:
  - {name: SESSION_SECRET, value: s3cret}
  - {name: CLIENT_SECRET, valueFrom: {secretKeyRef: {name: login, key: CLIENT_SECRET}}}
etcd: {auth: {rbac: {create: true, rootPassword: s3cret}, tls: {existingSecret: etcd}}}
ingress-controller: {config: {apisix: {adminKey: s3cret}}}
";
    let expected = [
        ("secret-in-clear", "apisix.admin.credentials.admin"),
        ("admin-open", "apisix.admin.allow.ipList[0]"),
        ("forwarded-by-anybody", "apisix.trustedAddresses[1]"),
        ("underscores-on", "apisix.extPlugin"),
        ("runner-unset", "apisix.extPlugin.cmd"),
        ("secret-in-clear", "extraEnvVars[0].value"),
        ("secret-in-clear", "etcd.auth.rbac.rootPassword"),
        ("secret-in-clear", "ingress-controller.config.apisix.adminKey"),
    ];
    check(&[("values.yaml", values)], &[], &expected);
    // Another chart that depends on it.
    let umbrella = format!("coders: {{}}\napisix:\n  {}\n", values.trim_end().replace('\n', "\n  "));
    let paths = expected.map(|(code, path)| (code, format!("apisix.{path}")));
    let paths: Vec<_> = paths.iter().map(|(code, path)| (*code, &**path)).collect();
    check(&[("values.yaml", &umbrella)], &[], &paths);
    let before_2 = "gateway: {type: LoadBalancer}\nadmin: {allow: {ipList: [0.0.0.0/0]}, credentials: {viewer: s3cret}}\n";
    check(
        &[("values.yaml", before_2)],
        &[],
        &[("admin-open", "admin.allow.ipList[0]"), ("secret-in-clear", "admin.credentials.viewer")],
    );
}

/// Values and routes are checked together.
#[test]
fn values_load_the_plugins_of_routes_and_start_their_runner() {
    let good = "apisix:
  plugins: [openid-connect, ext-plugin-pre-req]
  extPlugin: {enabled: true, cmd: [/opt/kube-coders/kube-coders, run]}
  nginx: {configurationSnippet: {httpSrv: underscores_in_headers off;}}
";
    for (values, expected) in [
        (good.to_owned(), None),
        (good.replace("[openid-connect, ", "["), Some(("plugin-not-listed", faults::LOGIN))),
        (good.replace("enabled: true", "enabled: false"), Some(("runner-unset", "apisix.extPlugin"))),
    ] {
        check(&[("apisix.yaml", faults::GOOD), ("values.yaml", &values)], GATEWAY, expected.as_slice());
    }
}

/// A file in a text of another document is reported by the lines of the file in which it is.
#[test]
fn files_in_texts_of_other_documents_are_read() {
    let open = faults::GOOD.replace("{\"127.0.0.1:9181\": 1}", "{\"10.0.0.1:80\": 1}");
    let indented = |text: &str, by: usize| text.trim_end().replace('\n', &format!("\n{}", " ".repeat(by)));
    let config_map = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: gateway}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: route}}\ndata:\n  apisix.yaml: |\n    {}\n",
        indented(&open, 4)
    );
    let values = format!(
        "apisix:\n  extPlugin: {{enabled: true, cmd: [/a]}}\n  nginx: {{configurationSnippet: {{httpSrv: underscores_in_headers off;}}}}\n  deployment:\n    standalone:\n      config: |\n        {}\n",
        indented(open.trim_end().trim_end_matches("#END"), 8)
    );
    for (text, way) in
        [(&config_map, "data[\"apisix.yaml\"]."), (&values, "apisix.deployment.standalone.config.")]
    {
        let findings = found(&[("a.yaml", text)], &[]).unwrap();
        let found: Vec<_> = findings.iter().map(|finding| (finding.rule, &*finding.path)).collect();
        let path = format!("{way}routes[0].upstream.nodes[\"10.0.0.1:80\"]");
        assert_eq!(found, [(Rule::UpstreamOpen, &*path)]);
        let line = text.lines().position(|line| line.contains("10.0.0.1:80")).unwrap();
        let column = text.lines().nth(line).unwrap().find("\"10.").unwrap();
        let place = (findings[0].line, findings[0].column);
        assert_eq!(place, (line as u64 + 1, column as u64 + 1), "{text}");
    }
    // A quoted text has its own lines, and all of it is at one place of the file.
    let quoted = serde_json::json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [{
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "data": {"apisix.yaml": open, "config.yaml": faults::CONFIG},
        }],
    });
    let findings = found(&[("a.json", &quoted.to_string())], &[]).unwrap();
    let path = "items[0].data[\"apisix.yaml\"].routes[0].upstream.nodes[\"10.0.0.1:80\"]";
    let places: Vec<_> =
        findings.iter().map(|finding| (finding.rule, &*finding.path, finding.line)).collect();
    assert_eq!(places, [(Rule::UpstreamOpen, path, 1)]);
    let unended = found(&[("a.yaml", &config_map.replace("    #END\n", ""))], &[]).unwrap();
    assert!(unended.iter().any(|finding| finding.rule == Rule::NotTerminated), "{unended:?}");
}

/// What the Admin API of a gateway without etcd answers has no end of its own.
#[test]
fn the_whole_configuration_of_the_admin_api_is_read() {
    let open = faults::GOOD.replace("{\"127.0.0.1:9181\": 1}", "{\"10.0.0.1:80\": 1}");
    let text = format!("routes_conf_version: 7\n{}", open.trim_end().trim_end_matches("#END"));
    let path = "routes[0].upstream.nodes[\"10.0.0.1:80\"]";
    check(&[("configs.yaml", &text)], &[], &[("upstream-open", path)]);
}

#[test]
fn routes_within_a_service_and_a_map_of_global_rules_are_read() {
    let text = format!(
        "services:
  - name: ide
    hosts: [coders.example.com]
    upstream: {{nodes: [{{host: 10.0.0.1, port: 80}}], timeout: {{read: 300}}}}
    plugins:
      ext-plugin-pre-req: {{_meta: {{priority: 2598}}, conf: [{{name: user-upstream, value: '{FAULTY}'}}]}}
    routes:
      - {{name: all, uris: [/*], enable_websocket: true}}
      - {{name: off, status: 0, uris: [/off], plugins: {{openid-connect: {{}}}}}}
global_rules:
  proxy-cache: {{cache_strategy: memory}}
#END
"
    );
    check(
        &[("adc.yaml", &text)],
        GATEWAY,
        &[
            ("upstream-open", "services[0].upstream.nodes[0]"),
            ("no-login", "services[0].plugins.ext-plugin-pre-req.conf[0].value"),
            ("answers-shared", "global_rules.proxy-cache"),
        ],
    );
}

/// A set of plugins in one of the ingress controller's kinds.
fn plugin_config(kind: &str, version: &str) -> String {
    format!(
        "apiVersion: apisix.apache.org/{version}
kind: {kind}
metadata: {{name: workspaces, namespace: apisix}}
spec:
  plugins:
    - name: ext-plugin-pre-req
      enable: true
      config: {{_meta: {{priority: 2598}}, conf: [{{name: user-upstream, value: '{FAULTY}'}}]}}
---
"
    )
}

#[test]
fn routes_of_the_gateway_api_are_read() {
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ide, namespace: apisix}
spec:
  hostnames: [coders.example.com]
  rules:
    - matches: [{path: {type: PathPrefix, value: /}}]
      filters:
        - type: ExtensionRef
          extensionRef: {group: apisix.apache.org, kind: PluginConfig, name: workspaces}
      backendRefs: [{name: kube-coders, port: 9181}]
";
    check(
        &[("gateway.yaml", &(plugin_config("PluginConfig", "v1alpha1") + route))],
        GATEWAY,
        &[
            ("no-login", "spec.plugins[0].config.conf[0].value"),
            ("read-timeout-short", "spec.rules[0].backendRefs.timeout"),
            ("upstream-open", "spec.rules[0].backendRefs[0]"),
        ],
    );
    check(
        &[("gateway.yaml", &route.replace("name: workspaces", "name: others"))],
        GATEWAY,
        &[("reference-missing", "spec.rules[0].filters[0].extensionRef.name")],
    );
}

#[test]
fn an_ingress_with_the_controller_s_annotations_is_read() {
    let ingress = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: ide
  namespace: apisix
  annotations:
    k8s.apisix.apache.org/plugin-config-name: workspaces
    kubernetes.io/ingress.class: apisix
spec:
  rules:
    - host: coders.example.com
      http:
        paths: [{path: /, pathType: Prefix, backend: {service: {name: kube-coders, port: {number: 9181}}}}]
";
    check(
        &[("ingress.yaml", &(plugin_config("ApisixPluginConfig", "v2") + ingress))],
        GATEWAY,
        &[
            ("no-login", "spec.plugins[0].config.conf[0].value"),
            ("websocket-off", "metadata.annotations.enable-websocket"),
            ("ingress-class-missing", "spec.ingressClassName"),
            ("upstream-open", "spec.rules[0].http.paths[0].backend"),
            ("read-timeout-short", "spec.rules[0].http.paths[0].backend.timeout"),
        ],
    );
    let of_another =
        ingress.replace("k8s.apisix.apache.org", "other.example").replace("class: apisix", "class: nginx");
    assert!(found(&[("ingress.yaml", &of_another)], GATEWAY).is_err(), "another controller's");
}

/// Plugins that no route names, and those of a consumer, are looked at by themselves.
#[test]
fn objects_that_no_route_names_are_checked_too() {
    let call = r#"{"allow_degradation": true, "conf": [{"name": "user-upstream", "value": "{}"}]}"#;
    let object = format!("{{\"id\": 1, \"plugins\": {{\"ext-plugin-pre-req\": {call}}}}}");
    let resource = format!(
        "apiVersion: apisix.apache.org/v1alpha1\nkind: PluginConfig\nspec: {{plugins: [{{name: ext-plugin-pre-req, config: {call}}}]}}\n"
    );
    for (text, path) in [
        (object.clone(), "plugins.ext-plugin-pre-req"),
        (format!("{{\"services\": [{object}]}}"), "services[0].plugins.ext-plugin-pre-req"),
        (format!("{{\"plugin_configs\": [{object}]}}"), "plugin_configs[0].plugins.ext-plugin-pre-req"),
        (resource, "spec.plugins[0].config"),
    ] {
        let findings = found(&[("a.yaml", &text)], GATEWAY).unwrap();
        for (rule, name) in
            [(Rule::DegradationAllowed, "allow_degradation"), (Rule::ConfRefused, "conf[0].value")]
        {
            let path = format!("{path}.{name}");
            let is_it = |finding: &Finding| finding.rule == rule && finding.path == path;
            assert!(findings.iter().any(is_it), "{text}: {findings:?}");
        }
    }
    let consumer = plugin_config("Consumer", "v1alpha1")
        .replace("spec:\n", "spec:\n  credentials: [{type: key-auth, config: {key: s3cret}}]\n");
    check(
        &[("consumer.yaml", &consumer)],
        GATEWAY,
        &[
            ("secret-in-clear", "spec.credentials[0].config.key"),
            ("called-elsewhere", "spec.plugins[0].config.conf[0].value"),
        ],
    );
}

/// A conf at a place that no part of the check knows is an error: silence would be an all-clear.
#[test]
fn what_is_not_examined_is_an_error() {
    let files = |text: &str| found(&[("apisix.yaml", faults::GOOD), ("a.yaml", text)], &[]);
    let route = "apiVersion: apisix.apache.org/v2\nkind: ApisixTls\n---\n";
    for (text, path) in [
        (
            "apiVersion: batch/v1\nkind: Job\nspec: {args: [\"curl -d '{'plugins': {'ext-plugin-pre-req': {}}}'\"]}\n",
            "spec.args[0]",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\ndata:\n  apisix.yaml: |\n    routes:\n    {{- range .hosts }}\n      plugins:\n        openid-connect: {}\n",
            "data[\"apisix.yaml\"]",
        ),
        (
            "apiVersion: example.com/v1\nkind: Route\nspec: {plugins: {openid-connect: {client_id: a}}}\n",
            "spec.plugins.openid-connect",
        ),
        (
            "apiVersion: example.com/v1\nkind: Route\nspec: {filters: [{name: kube-coders-upstream, config: {remember: 1}}]}\n",
            "spec.filters[0].config",
        ),
    ] {
        let findings = files(&format!("{route}{text}")).unwrap();
        let places: Vec<_> = findings.iter().map(|finding| (finding.rule, &*finding.path)).collect();
        assert_eq!(places, [(Rule::NotExamined, path)], "{text}");
    }
    // What the gateway itself ignores, and a copy of what is there already.
    let ignored = format!("x-plugins: {{openid-connect: {{ssl_verify: false}}}}\n{}", faults::GOOD);
    check(&[("a.yaml", &ignored)], &[], &[]);
    let copy = "apiVersion: v1\nkind: Secret\nmetadata: {annotations: {kubectl.kubernetes.io/last-applied-configuration: '{\"openid-connect\": {}}'}}\n";
    assert_eq!(files(&format!("{route}{copy}")).unwrap(), []);
}

#[test]
fn a_value_that_only_the_gateway_knows_has_no_finding() {
    let text = faults::GOOD
        .replace("https://key.example.com/realms/dev/.well-known/openid-configuration", "\"${{DISCOVERY}}\"")
        .replace("\"127.0.0.1:9181\"", "\"${{FORWARDER}}\"");
    let report = report_of(&[("apisix.yaml", &text)], &[]).unwrap();
    let printed = report.text();
    assert!(!report.has_errors(), "{printed}");
    for path in ["routes[0].plugins.openid-connect.discovery", "routes[0].upstream.nodes[\"${{FORWARDER}}\"]"]
    {
        let line = format!("can't be checked, because its value is a variable: {path}\n");
        assert!(printed.contains(&line), "{printed}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["findings"], serde_json::json!([]));
    let paths: Vec<_> = json["unknown"].as_array().unwrap().iter().map(|place| &place["path"]).collect();
    assert_eq!(paths.len(), 2, "{json}");
    assert_eq!(paths[0], "routes[0].plugins.openid-connect.discovery");
    let known = text.replace("${{FORWARDER}}", "10.0.0.1:80");
    assert!(report_of(&[("apisix.yaml", &known)], &[]).unwrap().has_errors());
}

/// Two values are compared, and one of them is a variable.
#[test]
fn a_comparison_with_a_variable_has_no_finding() {
    for (before, after) in [
        ("host: coders.example.com", "host: \"${{HOST}}\""),
        ("logout_path: /.apisix/logout", "logout_path: \"${{LOGOUT}}\""),
        (
            "secret: $env://SESSION_SECRET",
            "secret: $env://SESSION_SECRET\n          cookie_name: \"${{COOKIE}}\"",
        ),
        (
            "set_raw_id_token_header: true",
            "set_access_token_header: false\n        set_raw_id_token_header: \"${{RAW}}\"",
        ),
        ("client_id: apisix", "client_id: \"${{CLIENT_ID}}\""),
        ("[\"apisix\"]", "[\"${{CLIENT_ID}}\"]"),
        (
            "\"issuer\": \"https://key.example.com/realms/dev\"",
            "\"issuer\": \"https://key.example.com/realms/${{REALM}}\"",
        ),
        ("priority: 2598", "priority: \"${{PRIORITY}}\""),
        ("bearer_only: false", "bearer_only: \"${{BEARER}}\""),
        ("ssl_verify: true", "ssl_verify: \"${{VERIFY}}\""),
        ("enable_websocket: true", "enable_websocket: \"${{WEBSOCKET}}\""),
    ] {
        assert_eq!(faults::GOOD.matches(before).count(), 1, "{before}");
        let report = report_of(&[("apisix.yaml", &faults::GOOD.replace(before, after))], GATEWAY).unwrap();
        assert_eq!(report.findings, [], "{after}");
    }
}

#[test]
fn a_collection_alone_is_a_gateway_s() {
    for text in [
        "plugin_configs:\n  - {id: 1, plugins: {}}\n#END\n",
        "stream_routes: []\n#END\n",
        "{\"routes\": []}",
        "{\"total\": 0, \"list\": []}",
        "{\"total\": 0, \"list\": {}}",
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
    let printed = report::text(&findings, &[], 1);
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
