//! Each rule.

use std::collections::BTreeSet;

use super::faults::*;
use super::{check, found};
use crate::rule::Rule;

#[track_caller]
fn changed(text: &str, change: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (before, after) in change {
        assert_eq!(text.matches(before).count(), 1, "{before:?} stands there once");
        text = text.replace(before, after);
    }
    text
}

#[test]
fn a_good_configuration_has_no_finding() {
    check(&[("apisix.yaml", GOOD)], &[], &[]);
    check(&[("apisix.yaml", GOOD), ("config.yaml", CONFIG)], &["--gateway-version", "3.18.0"], &[]);
    let direct = changed(GOOD, &[DIRECT, CLOSED, DECISION, DECISION_ORDER]);
    check(&[("apisix.yaml", &direct)], &[], &[]);
    let way = changed(GOOD, &[CLOSED, DECISION, DECISION_ORDER]);
    check(&[("apisix.yaml", &way)], &["--upstream-mode", "direct"], &[]);
    let spawned = changed(
        CONFIG,
        &[("path_for_test: /run/kube-coders/runner.sock", "cmd: [/opt/kube-coders/kube-coders, run]")],
    );
    check(&[("apisix.yaml", GOOD), ("config.yaml", &spawned)], &[], &[]);
    let remembered = changed(
        GOOD,
        &[
            DIRECT,
            CLOSED,
            DECISION,
            ("{priority: 2598}", r#"{priority: 2597, filter: [["kc_hit", "!", "==", "1"]]}"#),
        ],
    );
    check(&[("apisix.yaml", &remembered)], &[], &[]);
    let for_navigations = changed(
        GOOD,
        &[
            ("unauth_action: deny", "unauth_action: auth"),
            ("    uri: /*\n", "    uri: /*\n    vars: [[http_accept, \"~~\", text/html]]\n"),
        ],
    );
    check(&[("apisix.yaml", &for_navigations)], &[], &[]);
}

#[test]
fn each_fault_is_found_alone_and_where_it_is() {
    for Fault { change, flags, rule, path } in faults() {
        let text = changed(GOOD, change);
        check(&[("apisix.yaml", &text)], flags, &[(rule.facts().code, &path)]);
    }
    for Fault { change, flags, rule, path } in process_faults() {
        let text = changed(CONFIG, change);
        check(&[("apisix.yaml", GOOD), ("config.yaml", &text)], flags, &[(rule.facts().code, &path)]);
    }
}

#[test]
fn every_rule_has_a_fault_that_shows_it() {
    let shown: BTreeSet<_> = faults().iter().chain(&process_faults()).map(|fault| fault.rule).collect();
    // These need more than one object, or another form, and have tests of their own.
    let elsewhere = [
        Rule::CalledElsewhere,
        Rule::WrongPhase,
        Rule::SessionsDiffer,
        Rule::SessionReachesOther,
        Rule::RouteShadowed,
        Rule::ReferenceMissing,
        Rule::IdTwice,
        Rule::TemplatesMeet,
        Rule::IssuersMeet,
        Rule::NotExamined,
        Rule::IngressClassMissing,
    ];
    let missing: Vec<_> =
        Rule::ALL.iter().filter(|rule| !shown.contains(rule) && !elsewhere.contains(rule)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn no_finding_shows_a_secret() {
    for (before, after) in [
        ("$env://CLIENT_SECRET", "s3cret"),
        ("$env://SESSION_SECRET", "s3cret"),
        ("\"http://code-{sub}:8443\"", "\"s3cret s3cret\""),
        ("\"trust\": \"verified\"", "\"trust\": \"s3cret\""),
    ] {
        let text = changed(GOOD, &[(before, after)]);
        let findings = found(&[("apisix.yaml", &text)], &[]).unwrap();
        assert!(!findings.is_empty(), "{after}");
        for finding in findings {
            assert!(!finding.found.contains("s3cret"), "{}", finding.found);
        }
    }
}

#[test]
fn a_call_in_a_global_rule_is_before_every_login() {
    let conf = r#"{"conf": [{"name": "user-upstream", "value": "{\"identity\": {\"trust\": \"gateway\"}, \"upstream\": \"http://code-{sub}:1\"}"}]}"#;
    let text = format!("global_rules:\n  - id: 1\n    plugins:\n      ext-plugin-pre-req: {conf}\n#END\n");
    let path = "global_rules[0].plugins.ext-plugin-pre-req.conf[0].value";
    check(&[("apisix.yaml", &text)], &[], &[("called-elsewhere", path)]);
}

/// The good route, and one like it for another host with these changes.
fn two_routes(changes: &[(&str, &str)]) -> String {
    let second = GOOD.strip_prefix("routes:\n").unwrap();
    let second = second.replace("id: \"workspaces\"", "id: \"others\"").replace("coders.", "others.");
    format!("{}{}", GOOD.strip_suffix("#END\n").unwrap(), changed(&second, changes))
}

#[test]
fn templates_of_two_routes_give_no_name_twice() {
    let conf = CONF.replace("routes[0]", "routes[1]");
    check(&[("apisix.yaml", &two_routes(&[]))], &[], &[]);
    for (template, is_fault) in [
        ("http://code-{sub}-dev:8443", true),
        ("http://code-{sub}:3000", false),
        ("http://dev-{sub}:8443", false),
    ] {
        let text = two_routes(&[("http://code-{sub}:8443", template)]);
        let expected = [("templates-meet", &*conf)];
        check(&[("apisix.yaml", &text)], &[], if is_fault { &expected } else { &[] });
    }
    let issuers = |changes: &[(&str, &str)]| {
        let text = two_routes(changes);
        let (first, second) = text.split_at(text.find("id: \"others\"").unwrap());
        format!("{first}{}", second.replace("realms/dev", "realms/partners"))
    };
    check(&[("apisix.yaml", &issuers(&[]))], &[], &[("issuers-meet", &conf)]);
    let text = issuers(&[("http://code-{sub}:8443", "http://partner-{sub}:8443")]);
    check(&[("apisix.yaml", &text)], &[], &[]);
}

#[test]
fn user_upstream_does_not_look_at_responses() {
    let text = changed(GOOD, &[("ext-plugin-pre-req", "ext-plugin-post-resp")]);
    let path = "routes[0].plugins.ext-plugin-post-resp.conf[0].value";
    check(&[("apisix.yaml", &text)], &[], &[("runner-not-called", "routes[0]"), ("wrong-phase", path)]);
}

#[test]
fn routes_of_one_host_share_their_session() {
    let second = GOOD.split_once("routes:\n").unwrap().1;
    let two = |second: &str| format!("{}{second}", GOOD.trim_end_matches("#END\n"));
    let named = changed(second, &[("\"workspaces\"", "\"login\"")]);
    check(&[("apisix.yaml", &two(&named))], &[], &[]);
    let other = changed(&named, &[("$env://SESSION_SECRET", "$env://ANOTHER_SECRET")]);
    let path = "routes[1].plugins.openid-connect";
    check(&[("apisix.yaml", &two(&other))], &[], &[("sessions-differ", path)]);
    check(&[("apisix.yaml", &two(second))], &[], &[("id-twice", "routes[1].id")]);
}

#[test]
fn a_login_for_something_else_is_looked_at_too() {
    let text = changed(
        GOOD,
        &[
            ("ext-plugin-pre-req", "key-auth"),
            ("ssl_verify: true", "ssl_verify: false"),
            (NODES, "nodes: {\"app:80\": 1}"),
        ],
    );
    check(&[("apisix.yaml", &text)], &[], &[("tls-unverified", &format!("{LOGIN}.ssl_verify"))]);
}

#[test]
fn the_gateway_s_own_order_of_objects_counts() {
    // The id of an upstream before an upstream, and the last of two objects of one id.
    let upstreams = |host: &str| {
        format!(
            "upstreams:\n  - {{id: 7, nodes: {{\"127.0.0.1:9181\": 1}}, timeout: {{read: 300}}}}\n  - {{id: 7, nodes: {{\"{host}\": 1}}, timeout: {{read: 300}}}}\nroutes:\n"
        )
    };
    let of = |host: &str| {
        changed(
            GOOD,
            &[("routes:\n", &upstreams(host)), ("    uri: /*\n", "    uri: /*\n    upstream_id: 7\n")],
        )
    };
    let path = "upstreams[1].nodes[\"evil.example:80\"]";
    check(
        &[("apisix.yaml", &of("evil.example:80"))],
        &[],
        &[("id-twice", "upstreams[1].id"), ("upstream-open", path)],
    );
    check(&[("apisix.yaml", &of("127.0.0.1:9181"))], &[], &[("id-twice", "upstreams[1].id")]);
}

#[test]
fn a_service_s_script_runs_in_place_of_all() {
    let text = changed(
        GOOD,
        &[
            ("routes:\n", "services:\n  - {id: 7, script: 'return {}'}\nroutes:\n"),
            ("    uri: /*\n", "    uri: /*\n    service_id: 7\n"),
        ],
    );
    check(&[("apisix.yaml", &text)], &[], &[("script-on-route", "services[0].script")]);
}

#[test]
fn a_global_rule_is_looked_at() {
    let rule = |plugins: &str| {
        let rules = format!("global_rules:\n  - {{id: 1, plugins: {{{plugins}}}}}\nroutes:\n");
        changed(GOOD, &[("routes:\n", &rules)])
    };
    for (plugins, code, path) in [
        (
            "serverless-post-function: {functions: ['require(\"apisix.upstream\")']}",
            "lua-chooses-upstream",
            "serverless-post-function.functions[0]",
        ),
        ("proxy-cache: {}", "answers-shared", "proxy-cache"),
        ("traffic-split: {}", "upstream-elsewhere", "traffic-split"),
        (
            "ext-plugin-pre-req: {conf: [], allow_degradation: true}",
            "degradation-allowed",
            "ext-plugin-pre-req.allow_degradation",
        ),
    ] {
        check(&[("apisix.yaml", &rule(plugins))], &[], &[(code, &format!("global_rules[0].plugins.{path}"))]);
    }
}

#[test]
fn a_login_in_a_global_rule_is_one() {
    let login = GOOD
        .split_once("      openid-connect:\n")
        .unwrap()
        .1
        .split_once("      ext-plugin-pre-req:\n")
        .unwrap()
        .0;
    let rule = format!("global_rules:\n  - id: 1\n    plugins:\n      openid-connect:\n{login}routes:\n");
    let without = changed(GOOD, &[(&format!("      openid-connect:\n{login}"), "")]);
    check(&[("apisix.yaml", &without)], &[], &[("nobody-logs-in", CONF)]);
    check(&[("apisix.yaml", &changed(&without, &[("routes:\n", &rule)]))], &[], &[]);
}

#[test]
fn a_route_that_is_off_is_not_looked_at() {
    let text = changed(
        GOOD,
        &[
            ("    uri: /*\n", "    uri: /*\n    status: 0\n"),
            ("allow_degradation: false", "allow_degradation: true"),
        ],
    );
    check(&[("apisix.yaml", &text)], &[], &[]);
}

#[test]
fn a_login_for_programs_has_no_session_to_share() {
    let api = "  - id: api\n    host: coders.example.com\n    uri: /api/*\n    plugins:\n      openid-connect: {bearer_only: true, client_id: b, discovery: 'https://key/'}\n    upstream: {nodes: {\"app:80\": 1}}\n#END\n";
    check(&[("apisix.yaml", &changed(GOOD, &[("#END\n", api)]))], &[], &[]);
}

#[test]
fn another_route_of_the_host_gets_the_session_too() {
    let other = |more: &str| {
        let route = format!("  - id: other\n    host: coders.example.com\n    uri: /api/*\n{more}#END\n");
        changed(GOOD, &[("#END\n", &route)])
    };
    let open = other("    upstream: {nodes: {\"app:80\": 1}}\n");
    check(&[("apisix.yaml", &open)], &[], &[("session-reaches-other", "routes[1]")]);
    let answered = other("    plugins: {fault-injection: {abort: {http_status: 200}}}\n");
    check(&[("apisix.yaml", &answered)], &[], &[]);
}

#[test]
fn navigations_need_the_higher_priority() {
    let second = GOOD.split_once("routes:\n").unwrap().1;
    let login = |priority: &str| {
        let route = changed(
            second,
            &[
                ("\"workspaces\"", "\"login\""),
                ("unauth_action: deny", "unauth_action: auth"),
                (
                    "    uri: /*\n",
                    &format!("    uri: /*\n{priority}    vars: [[http_accept, \"~~\", text/html]]\n"),
                ),
            ],
        );
        format!("{}{route}", GOOD.trim_end_matches("#END\n"))
    };
    check(&[("apisix.yaml", &login(""))], &[], &[("route-shadowed", "routes[1].priority")]);
    check(&[("apisix.yaml", &login("    priority: 1\n"))], &[], &[]);
}

#[test]
fn direct_mode_needs_the_plugin_to_be_loaded() {
    let direct = changed(GOOD, &[DIRECT, CLOSED, DECISION, DECISION_ORDER]);
    let files = |config: &str| found(&[("apisix.yaml", &direct), ("config.yaml", config)], &[]).unwrap();
    let paths = |config: &str| -> Vec<_> {
        files(config).into_iter().map(|finding| (finding.rule, finding.path)).collect()
    };
    let loaded = changed(
        CONFIG,
        &[
            ("[openid-connect, ", "[kube-coders-upstream, openid-connect, "),
            ("ext-plugin:\n", "apisix: {extra_lua_path: /opt/?.lua}\next-plugin:\n"),
        ],
    );
    assert_eq!(paths(&loaded), []);
    let unlisted =
        changed(&loaded, &[("plugins: [kube-coders-upstream, openid-connect, ext-plugin-pre-req]\n", "")]);
    assert_eq!(
        paths(&unlisted),
        [(Rule::PluginNotListed, "routes[0].plugins.kube-coders-upstream".to_owned())]
    );
    let nowhere = changed(&loaded, &[("apisix: {extra_lua_path: /opt/?.lua}\n", "")]);
    assert_eq!(paths(&nowhere), [(Rule::PluginNotListed, "apisix.extra_lua_path".to_owned())]);
}

/// What is said of each fault, word by word.
#[test]
fn a_finding_has_the_texts_of_the_list() {
    let mut said = String::new();
    let mut say = |files: &[(&str, &str)], flags: &[&str]| {
        for finding in found(files, flags).unwrap() {
            said.push_str(&format!("{}: {}\n", finding.rule.facts().code, finding.found));
        }
    };
    for Fault { change, flags, .. } in faults() {
        say(&[("apisix.yaml", &changed(GOOD, change))], flags);
    }
    for Fault { change, flags, .. } in process_faults() {
        say(&[("apisix.yaml", GOOD), ("config.yaml", &changed(CONFIG, change))], flags);
    }
    let listed = include_str!("found.txt");
    assert!(said == listed, "crates/check/src/tests/found.txt must be:\n{said}");
}

#[test]
fn a_safe_setting_has_no_finding() {
    let other = |route: &str| {
        let routes = format!("  - id: other\n    host: app.example.com\n    uri: /*\n{route}#END\n");
        changed(GOOD, &[("#END\n", &routes)])
    };
    for route in [
        "    plugins: {proxy-rewrite: {headers: {set: {Authorization: Bearer $cookie_token, X-Auth-Token: $http_x_token}}}}\n",
        "    plugins: {http-logger: {log_format: {token: $http_x_token}}}\n",
        "    plugins: {serverless-post-function: {phase: log, functions: ['ngx.log(ctx.var.upstream_status, ctx.var.http_x_userinfo)']}}\n",
    ] {
        check(&[("apisix.yaml", &other(route))], &[], &[]);
    }
    let emptied = changed(
        GOOD,
        &[(
            "    upstream:\n",
            "      proxy-rewrite: {headers: {set: {X-Access-Token: ''}}}\n    upstream:\n",
        )],
    );
    check(&[("apisix.yaml", &emptied)], &[], &[]);
    let six = changed(GOOD, &[(NODES, "nodes: [{host: \"[::1]\", port: 9181, weight: 1}]")]);
    check(&[("apisix.yaml", &six)], &["--forwarder-address", "[::1]:9181"], &[]);
    // Another route of the host takes the login's callback.
    let second = GOOD.split_once("routes:\n").unwrap().1;
    let callback =
        changed(second, &[("\"workspaces\"", "\"callback\""), ("    uri: /*\n", "    uri: /.apisix/*\n")]);
    let split =
        format!("{}{callback}", changed(GOOD, &[("    uri: /*\n", "    uri: /code/*\n"), ("#END\n", "")]));
    check(&[("apisix.yaml", &split)], &[], &[]);
    // Values for Helm in two layers, of which one says where the runner is.
    let values = |config: &str| format!("apisix:\n  fullCustomConfig:\n    config:\n{config}");
    let runner = values(
        "      ext-plugin: {path_for_test: /run/a.sock}\n      nginx_config: {http: {underscores_in_headers: \"off\"}}\n",
    );
    let more = values("      nginx_config: {worker_processes: 2}\n");
    check(&[("apisix.yaml", GOOD), ("a.yaml", &runner), ("b.yaml", &more)], &[], &[]);
}
