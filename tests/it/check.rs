//! `check`: what it prints of the original's route, and that what is shipped is clean.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli::assert_accepted;
use crate::program::{BINARY, Printed, Runner, kube_coders};

const ORIGINAL: &str = "tests/check/original.yaml";

/// The gateway that the shipped configurations are for.
const FOR_GATEWAY: [&str; 2] = ["--gateway-version", "3.18"];

/// What is applied together: folders, or the files of one.
const SHIPPED: [&[&str]; 18] = [
    &["apisix-conf/standalone/config.yaml", "apisix-conf/standalone/apisix.yaml"],
    &["apisix-conf/standalone-direct/config.yaml", "apisix-conf/standalone-direct/apisix.yaml"],
    &[
        "apisix-conf/admin-api/service.json",
        "apisix-conf/admin-api/route-workspaces.json",
        "apisix-conf/admin-api/route-workspaces-login.json",
        "apisix-conf/admin-api/route-healthz.json",
        "apisix-conf/admin-api/route-favicon.json",
    ],
    &[
        "apisix-conf/admin-api/service-direct.json",
        "apisix-conf/admin-api/route-workspaces.json",
        "apisix-conf/admin-api/route-workspaces-login.json",
    ],
    &["apisix-conf/ingress/forward.yaml", "apisix-conf/ingress/route.yaml", "apisix-conf/ingress/tls.yaml"],
    &["apisix-conf/ingress/direct.yaml", "apisix-conf/ingress/route.yaml", "apisix-conf/ingress/tls.yaml"],
    &["examples/compose/apisix/config.yaml", "examples/compose/apisix/apisix.yaml"],
    &["examples/kubernetes/gateway/apisix.yaml"],
    &["apisix-conf/helm/values-beside.yaml", "apisix-conf/standalone/apisix.yaml"],
    &["apisix-conf/helm/values-spawned.yaml", "apisix-conf/standalone/apisix.yaml"],
    &[
        "apisix-conf/helm/values-spawned.yaml",
        "examples/kubernetes/gateway/values-spawned.yaml",
        "examples/kubernetes/gateway/dashboard/values.yaml",
        "apisix-conf/admin-api/service.json",
        "apisix-conf/admin-api/route-workspaces.json",
        "apisix-conf/admin-api/route-workspaces-login.json",
    ],
    &[
        "apisix-conf/helm/values-spawned.yaml",
        "apisix-conf/helm/values-ingress.yaml",
        "apisix-conf/ingress/gateway.yaml",
        "apisix-conf/ingress/forward.yaml",
        "apisix-conf/ingress/route.yaml",
    ],
    &[
        "apisix-conf/helm/values-spawned.yaml",
        "apisix-conf/helm/values-direct.yaml",
        "apisix-conf/standalone-direct/apisix.yaml",
    ],
    &[
        "apisix-conf/helm/values-spawned.yaml",
        "examples/kubernetes/gateway/values-spawned.yaml",
        "examples/kubernetes/gateway/apisix.yaml",
    ],
    &[
        "apisix-conf/helm/values-beside.yaml",
        "apisix-conf/helm/values-direct.yaml",
        "apisix-conf/standalone-direct/apisix.yaml",
    ],
    &[
        "apisix-conf/helm/values-beside.yaml",
        "examples/kubernetes/gateway/values-beside.yaml",
        "examples/kubernetes/gateway/apisix.yaml",
    ],
    &[
        "apisix-conf/ingress/gateway.yaml",
        "apisix-conf/ingress/forward.yaml",
        "apisix-conf/ingress/route.yaml",
        "examples/kubernetes/gateway/ingress-keycloak.yaml",
    ],
    &[
        "apisix-conf/admin-api/service.json",
        "apisix-conf/admin-api/route-workspaces.json",
        "apisix-conf/admin-api/route-workspaces-login.json",
        "examples/kubernetes/gateway/dashboard/route-keycloak.json",
        "examples/kubernetes/gateway/dashboard/ssl-coders.json",
        "examples/kubernetes/gateway/dashboard/ssl-key.json",
    ],
];

fn check(args: &[&str]) -> Printed {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate::program::run(Command::new(BINARY).env_clear().current_dir(root).arg("check").args(args))
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_original_s_route_has_a_finding_for_each_hole() {
    let printed = check(&[ORIGINAL]);
    assert_eq!((printed.code, &*printed.stderr), (Some(1), ""));
    let heads: Vec<_> = printed.stdout.lines().filter(|line| line.starts_with(ORIGINAL)).collect();
    let expected = [
        "8:7: warning[unsupported-accepted]: no accept_unsupported_alg",
        "8:7: error[redirect-uri-missing]: no redirect_uri",
        "8:7: warning[cookie-not-secure]: cookie_secure is not true",
        "8:7: error[session-secret-missing]: no session.secret",
        "8:7: warning[xhr-login]: every request without a session is sent to the login",
        "8:7: warning[nonce-off]: no use_nonce",
        "8:7: warning[pkce-off]: no use_pkce",
        "11:9: error[secret-in-clear]: client_secret in clear text",
        "12:9: error[discovery-over-http]: discovery over http, to another machine",
        "16:9: error[tls-unverified]: ssl_verify: false",
        "18:9: warning[path-rewritten]: proxy-rewrite with regex_uri",
        "23:13: error[lua-chooses-upstream]: a Lua function that chooses the upstream",
        "34:5: warning[read-timeout-short]: the gateway waits 60s for what it reads, the runner 300s",
        "37:9: error[upstream-open]: the upstream is httpbin.org:80, and not the forwarder at 127.0.0.1:9181",
    ]
    .map(|line| format!("{ORIGINAL}:{line}"));
    assert_eq!(heads, expected);
    let whole = format!(
        "{ORIGINAL}:16:9: error[tls-unverified]: ssl_verify: false\n  \
         at   routes[0].plugins.openid-connect.ssl_verify\n  \
         so   an attacker between gateway and Keycloak can pose as Keycloak, and log in as any user\n  \
         cure set ssl_verify: true, and name a private CA in apisix.ssl.ssl_trusted_certificate\n"
    );
    assert!(printed.stdout.contains(&whole), "{}", printed.stdout);
    assert!(printed.stdout.ends_with("\n7 errors, 7 warnings in 1 file\n"), "{}", printed.stdout);
    assert!(!printed.stdout.contains("0f3b6f1a5d7c4e21"), "the secret is not repeated");
}

#[test]
fn json_sarif_and_text_report_the_same_findings() {
    let text = check(&[ORIGINAL]).stdout;
    let printed = check(&[ORIGINAL, "--format", "json"]);
    assert_eq!(printed.code, Some(1));
    let findings = json(&printed.stdout)["findings"].as_array().unwrap().clone();
    assert_eq!(findings.len(), 14);
    let printed = check(&[ORIGINAL, "--format", "sarif"]);
    assert_eq!(printed.code, Some(1));
    let sarif = json(&printed.stdout);
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    let (rules, results) = (&run["tool"]["driver"]["rules"], run["results"].as_array().unwrap());
    assert_eq!(results.len(), findings.len());
    for (finding, result) in findings.iter().zip(results) {
        let line = format!(
            "{}:{}:{}: {}[{}]: {}\n  at   {}\n  so   {}\n  cure {}\n",
            finding["file"].as_str().unwrap(),
            finding["line"],
            finding["column"],
            finding["severity"].as_str().unwrap(),
            finding["code"].as_str().unwrap(),
            finding["found"].as_str().unwrap(),
            finding["path"].as_str().unwrap(),
            finding["consequence"].as_str().unwrap(),
            finding["cure"].as_str().unwrap(),
        );
        assert!(text.contains(&line), "{line}");
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!((&rules[index]["id"], &result["ruleId"]), (&finding["code"], &finding["code"]));
        assert_eq!(result["level"], finding["severity"]);
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], ORIGINAL);
        assert_eq!(place["region"]["startLine"], finding["line"]);
        assert_eq!(place["region"]["startColumn"], finding["column"]);
    }
}

#[test]
fn our_route_in_place_of_the_original_s_is_clean() {
    let printed = check(&[ORIGINAL, "--migrate"]);
    assert_eq!((printed.code, &*printed.stderr), (Some(0), ""));
    let ours = printed.stdout;
    for part in [
        "https://keycloak.keycloak/realms/dev",
        "http://code-{sub}.code-server.svc.cluster.local:8443",
        "client_id: apisix\n",
        "# Replace coders.example.com: ",
    ] {
        assert!(ours.contains(part), "{part}: {ours}");
    }
    assert!(!ours.contains("httpbin") && !ours.contains("0f3b6f1a5d7c4e21"), "{ours}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apisix.yaml");
    std::fs::write(&file, &ours).unwrap();
    let file = file.to_str().unwrap();
    let printed = check(&[file, FOR_GATEWAY[0], FOR_GATEWAY[1]]);
    assert_eq!((printed.code, &*printed.stdout), (Some(0), "0 errors, 0 warnings in 1 file\n"));
    let runner = Runner::start(&[]);
    assert_accepted(&runner.socket, &confs(&[ours]));
    let nothing = check(&[file, "--migrate"]);
    let why = "kube-coders: --migrate: no route has a function that chooses the upstream\n";
    assert_eq!((nothing.code, &*nothing.stderr), (Some(2), why));
}

/// A template that is only nearly right sends users to each other's workspaces.
#[test]
fn a_name_that_is_not_understood_is_not_migrated() {
    let original = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(ORIGINAL)).unwrap();
    let made = "local host = \"code-\" .. user.sub";
    assert_eq!(original.matches(made).count(), 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.yaml");
    let migrated = |function: &str| {
        std::fs::write(&file, original.replace(made, function)).unwrap();
        check(&[file.to_str().unwrap(), "--migrate"])
    };
    let followed = migrated("local name = user.preferred_username local host = \"code-\" .. name");
    assert_eq!(followed.code, Some(0), "{}", followed.stderr);
    assert!(
        followed.stdout.contains("http://code-{preferred_username}.code-server.svc"),
        "{}",
        followed.stdout
    );
    for function in
        ["local host = \"code-\" .. string.lower(user.sub)", "local host = \"code-\" .. (user.sub or \"x\")"]
    {
        let refused = migrated(function);
        assert_eq!((refused.code, &*refused.stdout), (Some(2), ""));
        let expected = format!("kube-coders: --migrate: {}, line 23: the workspace's name", file.display());
        assert!(refused.stderr.starts_with(&expected), "{}", refused.stderr);
        assert!(refused.stderr.contains("is not understood: "), "{}", refused.stderr);
    }
}

/// The runner's plugins with their confs, wherever in the files they stand.
fn confs(texts: &[String]) -> Vec<(String, String)> {
    fn collect(value: &Value, found: &mut Vec<(String, String)>) {
        if let (Some(name), Some(conf)) = (value["name"].as_str(), value["value"].as_str()) {
            found.push((name.to_owned(), conf.to_owned()));
        }
        match value {
            Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            Value::Object(fields) => fields.values().for_each(|field| collect(field, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for text in texts {
        for document in serde_saphyr::from_multiple::<Value>(text).unwrap() {
            collect(&document, &mut found);
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn shipped_files_have_no_finding_and_are_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert;
    std::fs::write(&ca_file, certificate.pem()).unwrap();
    for files in SHIPPED {
        let printed = check(&[files, &FOR_GATEWAY].concat());
        let files_word = if files.len() == 1 { "file" } else { "files" };
        let clean = format!("0 errors, 0 warnings in {} {files_word}\n", files.len());
        assert_eq!((printed.code, printed.stdout, &*printed.stderr), (Some(0), clean, ""), "{files:?}");
        let texts: Vec<_> =
            files.iter().map(|file| std::fs::read_to_string(root.join(file)).unwrap()).collect();
        let direct = files.iter().any(|file| file.contains("direct"));
        let confs = confs(&texts);
        assert_eq!(confs.iter().any(|(_, conf)| conf.contains("\"direct\"")), direct, "{files:?}");
        let runner = Runner::start(&[]);
        assert_accepted(&runner.socket, &with_ca_file(confs, &ca_file));
    }
}

/// The confs with a file of certificates that is here.
fn with_ca_file(confs: Vec<(String, String)>, file: &Path) -> Vec<(String, String)> {
    let here = |(name, conf): (String, String)| {
        let mut conf = json(&conf);
        if let Some(named) = conf["identity"].get_mut("ca_file") {
            *named = file.to_str().unwrap().into();
        }
        (name, conf.to_string())
    };
    confs.into_iter().map(here).collect()
}

/// The YAML and JSON files below a folder, but for charts' templates and the small
/// examples' routes, which have tests of their own.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_left_out = path.ends_with("templates") || path.with_file_name("main.rs").exists();
        if path.is_dir() && !is_left_out {
            files_below(&path, found);
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "json") && !is_left_out {
            found.push(path);
        }
    }
}

/// Whatever `check` takes for a gateway's has to be in the list above.
#[test]
fn every_file_of_a_gateway_s_is_in_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed: BTreeSet<PathBuf> = SHIPPED.into_iter().flatten().map(PathBuf::from).collect();
    let mut files = Vec::new();
    for folder in ["apisix-conf", "examples"] {
        files_below(&root.join(folder), &mut files);
    }
    let mut seen = BTreeSet::new();
    for file in files {
        let file = file.strip_prefix(root).unwrap().to_owned();
        let printed = check(&[file.to_str().unwrap()]);
        if printed.code != Some(2) {
            assert!(listed.contains(&file), "{} is checked nowhere", file.display());
            seen.insert(file);
        }
    }
    assert_eq!(seen, listed);
}

#[test]
fn a_change_in_what_is_shipped_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("apisix-conf/standalone/apisix.yaml")).unwrap();
    for (before, after, code) in [
        ("priority: 2598", "priority: 12000", "runs-before-login"),
        ("allow_degradation: false", "allow_degradation: true", "degradation-allowed"),
        ("\"127.0.0.1:9181\"", "\"httpbin.org:80\"", "upstream-open"),
        ("ssl_verify: true", "ssl_verify: false", "tls-unverified"),
        ("$env://SESSION_SECRET", "0123456789abcdef", "secret-in-clear"),
        ("[\"__Host-coders\"]", "[\"session\"]", "cookie-reaches-workspace"),
    ] {
        assert!(text.contains(before), "{before}");
        let mut child = Command::new(BINARY)
            .args(["check", "-", "--format", "json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.replace(before, after).as_bytes()).unwrap();
        let printed = child.wait_with_output().unwrap();
        let findings = json(&String::from_utf8(printed.stdout).unwrap());
        let codes: Vec<_> =
            findings["findings"].as_array().unwrap().iter().map(|finding| finding["code"].clone()).collect();
        assert!(codes.iter().any(|found| found == code), "{after}: {codes:?}");
        assert_eq!(findings["findings"][0]["file"], "-");
    }
}

#[test]
fn an_unreadable_input_is_reported() {
    let missing = kube_coders(&["check", "no-such.yaml"]);
    let why = "kube-coders: no-such.yaml: No such file or directory (os error 2)\n";
    assert_eq!((missing.code, &*missing.stderr), (Some(2), why));
    let foreign = check(&["Cargo.toml"]);
    assert_eq!(foreign.code, Some(2), "{}", foreign.stderr);
    let format = check(&[ORIGINAL, "--format", "xml"]);
    let why = "kube-coders: --format \"xml\": neither text, json nor sarif\n";
    assert_eq!((format.code, &*format.stderr), (Some(2), why));
}
