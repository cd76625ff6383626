//! `explain`: each step and its outcome, and the same answer as the runner's.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command as Process, Output, Stdio};
use std::slice::from_ref;

use apisix_plugin_runner::gateway::{ClientRequest, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_coders::Program;
use kube_coders_test_support::NameServer;
use serde_json::{Value, json};

use crate::issuer::Issuer;
use crate::served::Served;
use kube_coders_test_support::{Signer, claims, key_set};

const GATEWAY: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}.test:8443"}"#;

fn explain(args: &[&str], input: &str) -> Output {
    let mut process = Process::new(env!("CARGO_BIN_EXE_kube-coders"))
        .arg("explain")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    process.wait_with_output().unwrap()
}

#[track_caller]
fn check(args: &[&str], input: &str, code: i32, expected: &str) -> String {
    let output = explain(args, input);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code));
    said
}

#[track_caller]
fn wrong(args: &[&str], input: &str, expected: &str) {
    let output = explain(args, input);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("kube-coders: {expected}\n"));
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

fn verified(issuer: &str) -> Value {
    json!({
        "identity": {"trust": "verified", "issuer": issuer, "audience": ["apisix"], "allow_http": true},
        "upstream": "http://code-{sub}.test:8443", "allow": {"groups": ["/developers"]},
    })
}

#[test]
fn a_userinfo_is_explained() {
    let expected = "\
ok  headers    1 in all, each identity header once
ok  userinfo   believed, because the conf trusts the gateway
ok  subject    \"Alice\"
ok  policy     no rules, all users are admitted
ok  label      `sub` is \"Alice\": code-alice---3bc51062973c458d5a6f2d8d64a02324
ok  name       code-alice---3bc51062973c458d5a6f2d8d64a02324.test
?   addresses  not looked up: --online does
ok  removed    x-userinfo
ok  added      x-forwarded-user: \"Alice\", x-forwarded-preferred-username: \"al\"

It goes to http://code-alice---3bc51062973c458d5a6f2d8d64a02324.test:8443, if that name exists.
";
    check(
        &["--conf", GATEWAY, "--userinfo", r#"{"sub": "Alice", "preferred_username": "al"}"#],
        "",
        0,
        expected,
    );
}

#[test]
fn the_scheme_of_a_page_without_tls_is_open() {
    let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;
    let userinfo = STANDARD.encode(r#"{"sub":"alice"}"#);
    let of =
        |origin: &str| format!("Host: a\nOrigin: {origin}\nUpgrade: websocket\nX-Userinfo: {userinfo}\n");
    for (origin, scheme, code, expected) in [
        (
            "http://a",
            None,
            3,
            "It would go to http://127.0.0.1:8443, unless the client speaks https to the gateway: then it is refused, \
             403 foreign-origin.",
        ),
        ("http://a", Some("http"), 0, "It goes to http://127.0.0.1:8443."),
        ("http://a", Some("https"), 1, "It is refused: 403 foreign-origin."),
        ("https://a", None, 0, "It goes to http://127.0.0.1:8443."),
        ("https://a", Some("https"), 0, "It goes to http://127.0.0.1:8443."),
        ("http://b", None, 1, "It is refused: 403 foreign-origin."),
    ] {
        let mut args = vec!["--conf", conf, "--headers", "-"];
        args.extend(scheme.iter().flat_map(|scheme| ["--scheme", scheme]));
        let output = explain(&args, &of(origin));
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.lines().last(), Some(expected), "{origin} {scheme:?}\n{said}");
        assert_eq!(output.status.code(), Some(code), "{origin} {scheme:?}");
        let is_open = said.contains("?   scheme     not known");
        assert_eq!(is_open, code == 3, "{said}");
    }
    wrong(&["--conf", conf, "--scheme", "ws"], "", "--scheme: \"ws\" is neither http nor https");
}

#[test]
fn a_refusal_ends_the_steps() {
    let expected = "\
ok  headers    1 in all, each identity header once
ok  userinfo   believed, because the conf trusts the gateway
ok  subject    \"alice\"
ok  policy     no rules, all users are admitted
no  label      `org` is missing: no label
no  name       a claim of the template is missing or not a text

It is refused: 403 no-workspace-name.
";
    let conf = GATEWAY.replace("{sub}", "{org}");
    check(&["--conf", &conf, "--userinfo", r#"{"sub": "alice"}"#], "", 1, expected);
    let expected = "\
no  headers    x-userinfo is there twice

It is refused: 400 identity-malformed.
";
    check(&["--conf", GATEWAY, "--headers", "-"], "X-Userinfo: a\r\nx-userinfo: b\r\n", 1, expected);
}

#[test]
fn a_token_is_explained_without_being_shown() {
    let signer = Signer::rsa();
    let token = signer.token(&claims("https://a", "alice"));
    let conf = verified("https://a").to_string();
    let input = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1; session=x\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let output = explain(&["--conf", &conf, "--headers", "-"], &input);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.ends_with(", but the token's signature was not checked.\n"), "{said}");
    for line in [
        "ok  headers    3 in all, each identity header once",
        "?   signature  not checked: --keys gives the issuer's keys, --online asks for them",
        "ok  claim      `groups` is a list of 1: \"/developers\"",
        "ok  policy     admitted",
        "ok  removed    authorization, the session in cookie",
    ] {
        assert!(said.lines().any(|known| known == line), "{line} in\n{said}");
    }
    assert!(said.contains(&format!(
        "in authorization: {}… ({} bytes), RS256, kid \"rsa-1\"",
        &token[..10],
        token.len()
    )));
    for part in token.split('.') {
        assert!(!said.contains(part), "{said}");
    }
}

#[test]
fn keys_can_be_given() {
    let (signer, other) = (Signer::rsa(), Signer::new("rsa-1", signer_algorithm()));
    let token = signer.token(&claims("https://a", "alice"));
    let conf = verified("https://a").to_string();
    for (keys, code, line) in [
        (key_set(from_ref(signer)), 0, "ok  signature  the issuer's"),
        (key_set(from_ref(&other)), 1, "no  signature  the token's signature is not the issuer's"),
    ] {
        let output = explain(&["--conf", &conf, "--token", &token, "--keys", &keys], "");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.lines().any(|known| known == line), "{said}");
        assert_eq!(output.status.code(), Some(code));
    }
}

fn signer_algorithm() -> jsonwebtoken::Algorithm {
    Signer::rsa().algorithm
}

#[tokio::test(flavor = "multi_thread")]
async fn online_the_issuer_and_name_servers_are_asked() {
    let issuer = Issuer::start(from_ref(Signer::rsa())).await;
    let names = NameServer::start().await.unwrap();
    names.set("code-alice.test", ["127.0.0.2".parse::<IpAddr>().unwrap()]);
    let (conf, server) = (verified(&issuer.url()).to_string(), names.address().to_string());
    let ask = |token: String| {
        let args = [
            "--online",
            "--allow-address",
            "127.0.0.0/8",
            "--dns-server",
            &server,
            "--conf",
            &conf,
            "--token",
            &token,
        ];
        let output = explain(&args, "");
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = ask(issuer.token("alice"));
    assert!(
        said.contains("ok  signature  the issuer's\n") && said.contains("ok  addresses  127.0.0.2\n"),
        "{said}"
    );
    assert!(said.ends_with("\nIt goes to http://code-alice.test:8443.\n"), "{said}");
    assert_eq!(code, Some(0));
    let (code, said) = ask(issuer.token("bob"));
    assert!(said.contains("no  addresses  the name does not exist\n"), "{said}");
    assert!(said.ends_with("\nIt is refused: 404 workspace-not-found.\n"), "{said}");
    assert_eq!(code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn why_there_are_no_keys_is_told() {
    let issuer = Issuer::start(from_ref(Signer::rsa())).await;
    let token = issuer.token("alice");
    let url = issuer.url();
    for (discovery, expected) in [
        ("/nowhere".to_owned(), format!("no  keys       discovery at {url}/nowhere: status 404\n")),
        (
            "/keys".to_owned(),
            format!("no  keys       discovery at {url}/keys: not a JSON object with a text in `jwks_uri`\n"),
        ),
    ] {
        let mut conf = verified(&url);
        conf["identity"]["discovery"] = json!(format!("{url}{discovery}"));
        let output = explain(&["--online", "--conf", &conf.to_string(), "--token", &token], "");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(&expected), "{said}");
        assert!(said.ends_with("\nIt is refused: 503 keys-unavailable.\n"), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

/// As in many images: an issuer in the cluster is still asked without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_system_without_certificates_has_keys_without_tls() {
    let issuer = Issuer::start(from_ref(Signer::rsa())).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("none.pem"), "").unwrap();
    let said = |conf: &Value, token: &str| {
        let output = Process::new(env!("CARGO_BIN_EXE_kube-coders"))
            .env("SSL_CERT_FILE", folder.path().join("none.pem"))
            .env("SSL_CERT_DIR", folder.path())
            .args(["explain", "--online", "--conf", &conf.to_string(), "--token", token])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let conf = verified(&issuer.url());
    let steps = said(&conf, &issuer.token("alice"));
    assert!(steps.contains("ok  signature  the issuer's\n"), "{steps}");
    let conf = verified("https://127.0.0.1:1");
    let steps = said(&conf, &Signer::rsa().token(&claims("https://127.0.0.1:1", "alice")));
    assert!(steps.contains("no  keys       starting: ") && steps.contains("certificates"), "{steps}");
}

#[test]
fn a_failed_check_prints_the_claim_s_value() {
    let conf = verified("https://a").to_string();
    let good = claims("https://a", "alice");
    for (name, value, expected) in [
        ("iss", json!("https://a/"), "; `iss` is \"https://a/\", identity.issuer is \"https://a\"\n"),
        ("aud", json!(["x", "y"]), "; `aud` is a list of 2: \"x\", \"y\", `azp` is missing\n"),
        ("exp", json!("soon"), "; `exp` is \"soon\"\n"),
        ("exp", json!(1000), " ago\n"),
        ("nbf", json!(9_999_999_999_u64), "(`nbf`); it is in "),
    ] {
        let mut claims = good.clone();
        claims[name] = value;
        let token = Signer::rsa().token(&claims);
        let output = explain(&["--conf", &conf, "--token", &format!("Bearer {token}")], "");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("no  claims     the token") && said.contains(expected), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn mistyped_arguments_are_reported() {
    wrong(
        &["--conf", "conf.json"],
        "",
        "--conf: expected value (line 1, column 1); a file is given as @FILE",
    );
    wrong(&["--conf", GATEWAY, "--token", " "], "", "--token: it is empty");
    wrong(
        &["--conf", GATEWAY, "--userinfo", "e30="],
        "",
        "--userinfo: not JSON: expected value at line 1 column 1; a file is given as @FILE",
    );
    wrong(
        &["--conf", GATEWAY, "--headers", "@/nowhere"],
        "",
        "--headers: \"/nowhere\": No such file or directory (os error 2)",
    );
    wrong(&["--conf", GATEWAY, "--headers", "-"], "> a: b\n", "--headers: line 1 is not \"name: value\"");
    let no_file =
        verified("https://a").to_string().replace("\"allow_http\":true", "\"ca_file\":\"/nowhere\"");
    wrong(&["--conf", &no_file], "", "--conf: identity.ca_file: No such file or directory (os error 2)");
    wrong(&["--conf", "{"], "", "--conf: EOF while parsing an object (line 1, column 1)");
    let conf = r#"{"identity": {"trust": "verified"}, "upstream": "http://a:1"}"#;
    wrong(
        &["--conf", conf],
        "",
        "--conf: identity: `issuer` is missing: the `iss` of the tokens (line 1, column 34)",
    );
    wrong(&["--conf", "@/nowhere"], "", "--conf: \"/nowhere\": No such file or directory (os error 2)");
    wrong(&["--conf", GATEWAY, "--headers", "-"], "a: b\nc\n", "--headers: line 2 is not \"name: value\"");
    wrong(&["--conf", GATEWAY, "--keys", "{}"], "", "--keys: not a JSON object with a list `keys`");
    wrong(&["--conf", GATEWAY, "--dns-server", "127.0.0.1:1"], "", "--dns-server: needs --online");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_the_runners() {
    let issuer = Issuer::start(from_ref(Signer::rsa())).await;
    let names = NameServer::start().await.unwrap();
    names.set("code-alice.test", ["127.0.0.2".parse::<IpAddr>().unwrap()]);
    let server = names.address().to_string();
    let runner = Served::start(Program::new(), &["--dns-server", &server]);
    let gateway = kube_coders::gateway(&runner.socket);
    let conf = verified(&issuer.url()).to_string();
    let (good, bob) = (issuer.token("alice"), issuer.token("bob"));
    let forged = Signer::new("rsa-1", signer_algorithm()).token(&claims(&issuer.url(), "alice"));
    let outside = Signer::rsa()
        .token(&json!({"iss": issuer.url(), "aud": "apisix", "sub": "alice", "exp": 9_999_999_999_u64}));
    let userinfo = |subject: &str| STANDARD.encode(json!({"sub": subject}).to_string());
    let cases: Vec<Vec<(&str, String)>> = vec![
        vec![],
        vec![("x-raw-id-token", good.clone())],
        vec![("x-raw-id-token", forged)],
        vec![("x-raw-id-token", outside)],
        vec![("x-raw-id-token", bob)],
        vec![("x-raw-id-token", "opaque".to_owned())],
        vec![("x-raw-id-token", good.clone()), ("x-raw-id-token", good.clone())],
        vec![("x-raw-id-token", good.clone()), ("x_userinfo", userinfo("alice"))],
        vec![("x-raw-id-token", good.clone()), ("x-userinfo", userinfo("alice"))],
        vec![("x-raw-id-token", good.clone()), ("x-userinfo", userinfo("bob"))],
        vec![
            ("upgrade", "websocket".to_owned()),
            ("origin", "https://b".to_owned()),
            ("x-raw-id-token", good.clone()),
        ],
        vec![
            ("upgrade", "websocket".to_owned()),
            ("origin", "http://a".to_owned()),
            ("x-raw-id-token", good.clone()),
        ],
        vec![("authorization", format!("Bearer {good}"))],
        (0..100).map(|_| ("x-a", "1".to_owned())).chain([("x-raw-id-token", good.clone())]).collect(),
    ];
    let by_gateway = json!({
        "identity": {"trust": "gateway"}, "upstream": "http://code-{sub}.test:8443", "deny": {"groups": ["/guests"]},
    })
    .to_string();
    let told = |json: Value| vec![("x-userinfo", STANDARD.encode(json.to_string()))];
    let of_gateway = vec![
        vec![],
        told(json!({"sub": "alice"})),
        told(json!({"sub": "alice", "groups": ["/guests"]})),
        told(json!({"sub": "alice", "groups": {"/guests": true}})),
        told(json!({"sub": "bob"})),
        told(json!({"sub": ""})),
        vec![("x-userinfo", "?".to_owned())],
    ];
    let cases = cases.into_iter().map(|headers| (&conf, headers));
    let cases: Vec<_> = cases.chain(of_gateway.into_iter().map(|headers| (&by_gateway, headers))).collect();
    for (conf, headers) in cases {
        let mut request = ClientRequest::get("/").header("Host", "a");
        let mut input = "Host: a\n".to_owned();
        for (name, value) in &headers {
            request = request.added_header(name, value);
            input += &format!("{name}: {value}\n");
        }
        let route = Route::new("r").plugin("user-upstream", conf);
        let expected = match gateway.call(&route, &request).await {
            Outcome::Forward(forwarded) => format!("It goes to {}.", forwarded.upstream.unwrap()),
            Outcome::Answer(answer) => {
                let problem: Value = serde_json::from_slice(&answer.body).unwrap();
                format!("It is refused: {} {}.", answer.status, problem["code"].as_str().unwrap())
            }
        };
        let ask = [
            "--online",
            "--allow-address",
            "127.0.0.0/8",
            "--dns-server",
            &server,
            "--scheme",
            "http",
            "--conf",
            conf,
            "--headers",
            "-",
        ];
        let output = explain(&ask, &input);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.lines().last(), Some(&*expected), "{said}");
    }
}
