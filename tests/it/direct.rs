//! Direct mode: what the runner decides, and what the gateway's plugin makes of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use apisix_plugin_runner::gateway::{CallError, ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
use apisix_plugin_runner::{
    Action, CacheKey, HeaderName, Plugin, PluginError, Request, Upstream, UpstreamMode,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::Algorithm;
use kube_coders_test_support::{Mode, NameServer};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::issuer::Issuer;
use crate::peer::PATIENCE;
use crate::program::{kube_coders, listen_address, run};
use crate::served::Served;
use crate::skip::skip;
use kube_coders_test_support::{Signer, claims};

const HEADER: &str = "x-kube-coders-upstream";

/// A runner with a name server that knows two users' workspaces.
struct House {
    names: NameServer,
    runner: Served,
    gateway: Gateway,
}

impl House {
    async fn new(args: &[&str]) -> Self {
        Self::with(kube_coders::Program::new(), args).await
    }

    async fn with(command: kube_coders::Program, args: &[&str]) -> Self {
        let names = NameServer::start().await.unwrap();
        names.set("code-alice.test", ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        names.set("code-bob.test", ["10.0.0.2".parse().unwrap()]);
        let address = names.address().to_string();
        let runner = Served::start(command, &[&["--dns-server", &address], args].concat());
        let gateway = kube_coders::gateway(&runner.socket);
        Self { names, runner, gateway }
    }

    async fn outcome(&self, conf: &Value, request: ClientRequest) -> Outcome {
        let route = Route::new("workspaces").plugin("user-upstream", &conf.to_string());
        timeout(PATIENCE, self.gateway.call(&route, &request)).await.expect("an answer")
    }

    async fn forwarded(&self, conf: &Value, request: ClientRequest) -> ForwardedRequest {
        match self.outcome(conf, request).await {
            Outcome::Forward(forwarded) => forwarded,
            Outcome::Answer(answer) => panic!("{answer:?}"),
        }
    }
}

fn conf() -> Value {
    json!({"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}.test:8443"})
}

fn as_user(subject: &str) -> ClientRequest {
    ClientRequest::get("/").added_header("X-Userinfo", STANDARD.encode(json!({"sub": subject}).to_string()))
}

fn decision(forwarded: &ForwardedRequest) -> Value {
    serde_json::from_slice(forwarded.header(HEADER).expect("a decision")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_has_all_that_the_gateway_does() {
    let house = House::new(&["--upstream-mode", "direct"]).await;
    let request = as_user("alice")
        .header("cookie", "a=1; session=x")
        .header("x-access-token", "secret")
        .header(HEADER, "a client's");
    let forwarded = house.forwarded(&conf(), request).await;
    assert_eq!(forwarded.header("x-kube-coders-stamp"), None);
    assert_eq!(forwarded.headers.iter().filter(|(name, _)| name == HEADER).count(), 1);
    let mut decision = decision(&forwarded);
    // Either order is right.
    decision["addresses"].as_array_mut().unwrap().sort_by_key(Value::to_string);
    let expected = json!({
        "v": 1, "scheme": "http", "host": "code-alice.test", "port": 8443,
        "addresses": ["10.0.0.1", "fd00::1"],
        "timeout": {"connect": 6.0, "send": 300.0, "read": 300.0},
        "remember": 10.0,
        "by": ["authorization", "host", "origin", "upgrade", "x-access-token", "x-forwarded-preferred-username",
               "x-forwarded-user", "x-id-token", "x-kube-coders-stamp", "x-raw-id-token", "x-refresh-token",
               "x-userinfo"],
        "set": {"x-forwarded-user": "alice"},
        "remove": ["x-access-token", "x-userinfo"],
        "cookies": ["session"],
    });
    assert_eq!(decision, expected);
    // The runner has done the same itself.
    assert_eq!(forwarded.header("x-forwarded-user"), Some(&b"alice"[..]));
    assert_eq!((forwarded.header("x-access-token"), forwarded.header("x-userinfo")), (None, None));
    assert_eq!(forwarded.header("cookie"), Some(&b"a=1"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conf_says_what_its_route_is_made_for() {
    let mut other = conf();
    for (flag, mode) in [("forward", "direct"), ("direct", "forward")] {
        let house = House::new(&["--upstream-mode", flag]).await;
        other["upstream_mode"] = mode.into();
        other["timeout"] = json!({"connect": "250ms", "send": "7s", "read": "1m"});
        for (conf, expected) in [(conf(), flag), (other.clone(), mode)] {
            let forwarded = house.forwarded(&conf, as_user("alice")).await;
            let is_direct = forwarded.header(HEADER).is_some();
            assert_eq!(is_direct, expected == "direct");
            assert_eq!(forwarded.header("x-kube-coders-stamp").is_some(), !is_direct);
            assert_eq!(
                forwarded.upstream.as_ref().map(Upstream::to_string).unwrap(),
                "http://code-alice.test:8443"
            );
            if is_direct && conf == other {
                assert_eq!(
                    decision(&forwarded)["timeout"],
                    json!({"connect": 0.25, "send": 7.0, "read": 60.0})
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_goes_where_nothing_is_known() {
    let house =
        House::with(kube_coders::Program::new().plugin(Elsewhere), &["--upstream-mode", "direct"]).await;
    let zoe = house.outcome(&conf(), as_user("zoe")).await;
    assert_eq!(zoe.status(), Some(404));
    house.names.set_mode(Mode::Silent);
    let yan = house.outcome(&conf(), as_user("yan")).await;
    assert_eq!(yan.status(), Some(503));

    // The gateway would not look at the certificate.
    let secure = json!({"identity": {"trust": "gateway"}, "upstream": "https://127.0.0.1:8443"});
    let route = Route::new("s").plugin("user-upstream", &secure.to_string());
    let refused = house.gateway.try_call(&route, &as_user("alice")).await;
    assert!(matches!(refused, Err(CallError::Refused(_))));
    let mut forward = secure.clone();
    forward["upstream_mode"] = "forward".into();
    house.forwarded(&forward, as_user("alice")).await;
    let any = Route::new("elsewhere").plugin("elsewhere", "null");
    let request = ClientRequest::get("/").header("x-to", "127.0.0.1").header("x-scheme", "https");
    assert_eq!(house.gateway.call(&any, &request).await.status(), Some(503));
    let trusting = House::new(&["--upstream-mode", "direct", "--workspace-ca", "none"]).await;
    let forwarded = trusting.forwarded(&secure, as_user("alice")).await;
    assert_eq!(decision(&forwarded)["scheme"], "https");
}

/// Sends to the host that a header names, and lets that be repeated where it has looked
/// at nothing else.
struct Elsewhere;

impl Plugin for Elsewhere {
    const NAME: &'static str = "elsewhere";
    type Config = ();

    async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
        let scheme = request.header_str("x-scheme").unwrap_or("http");
        let host = request.header_str("x-to").unwrap_or("a.test");
        let upstream: Upstream = format!("{scheme}://{host}:1").parse()?;
        request.set_upstream(upstream.in_mode(UpstreamMode::Direct))?;
        match request.header_str("x-look") {
            Some("path") => drop(request.path().len()),
            Some("query") => drop(request.arg("x").is_some()),
            Some("queries") => drop(request.args().count()),
            Some("method") => drop(request.method()),
            Some("source") => drop(request.source()),
            Some("variable") => drop(request.var("remote_addr").await?),
            Some("body") => drop(request.body().await?),
            Some("scheme") => drop(request.var("scheme").await?),
            _ => {}
        }
        let names = ["x-scheme", "x-to", "x-look"].map(HeaderName::from_static);
        request.cache_for(Duration::from_secs(3), &Arc::new(CacheKey::new(names)));
        Ok(Action::Continue)
    }
}

/// A plugin of anybody's can go directly, and is refused in words where it can't.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_plugin_s_choice_is_resolved_for_it() {
    let house = House::with(kube_coders::Program::new().plugin(Elsewhere), &[]).await;
    let route = Route::new("elsewhere").plugin("elsewhere", "null");
    let ask = async |to: &str| {
        let request = ClientRequest::get("/").header("x-to", to);
        timeout(PATIENCE, house.gateway.call(&route, &request)).await.expect("an answer")
    };
    let Outcome::Forward(forwarded) = ask("code-bob.test").await else { panic!("forwarded") };
    let decision = decision(&forwarded);
    assert_eq!((&decision["addresses"], &decision["remember"]), (&json!(["10.0.0.2"]), &json!(3.0)));
    assert_eq!(decision["by"], json!(["x-look", "x-scheme", "x-to"]));
    for look in ["path", "query", "queries", "method", "source", "variable", "body", "scheme"] {
        let request = ClientRequest::get("/?x=1").header("x-to", "code-bob.test").header("x-look", look);
        let outcome = timeout(PATIENCE, house.gateway.call(&route, &request)).await.expect("an answer");
        let Outcome::Forward(forwarded) = outcome else { panic!("{outcome:?}") };
        let may_repeat = self::decision(&forwarded).get("remember").is_some();
        assert_eq!(may_repeat, look == "scheme", "{look}: the gateway compares headers, route and scheme");
    }
    let Outcome::Answer(answer) = ask("nobody.test").await else { panic!("refused") };
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &problem["code"]), (404, &json!("workspace-not-found")));
}

/// A request's headers, sorted, but for the decision and what both have from the gateway.
fn headers(forwarded: &ForwardedRequest) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let mut headers: Vec<_> = (forwarded.headers.iter())
        .filter(|(name, _)| name != HEADER)
        .map(|(name, value)| (name.clone(), text(value)))
        .collect();
    headers.sort();
    headers
}

/// What a gateway makes of a request when it repeats a decision. The cookies are those
/// of the test below.
fn repeated(decision: &Value, mut headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let names = |field: &str| -> Vec<String> { serde_json::from_value(decision[field].clone()).unwrap() };
    headers.retain(|(name, _)| !names("remove").contains(name));
    let set: BTreeMap<String, String> = serde_json::from_value(decision["set"].clone()).unwrap();
    headers.retain(|(name, _)| !set.contains_key(name));
    headers.extend(set);
    assert_eq!(names("cookies"), ["session"]);
    for (name, value) in &mut headers {
        if name == "cookie" {
            *value = value.replace("; session=x", "");
        }
    }
    headers.sort();
    headers
}

/// Whatever else requests have, those that are alike in what the decision rests on
/// come to the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_rests_on_nothing_but_what_it_names() {
    let keys = [Signer::new("1", Algorithm::ES256)];
    let issuer = Issuer::start(&keys).await;
    let house = House::new(&["--upstream-mode", "direct"]).await;
    let token = keys[0].token(&claims(&issuer.url(), "alice"));
    let bearer = format!("Bearer {token}");
    let verified = json!({
        "identity": {
            "trust": "verified", "issuer": issuer.url(), "audience": ["apisix"], "allow_http": true,
            "token": ["x-raw-id-token"],
        },
        "upstream": "http://code-{sub}.test:8443",
    });
    let alice = STANDARD.encode(r#"{"sub": "alice"}"#);
    let bob = STANDARD.encode(r#"{"sub": "bob", "preferred_username": "Bob"}"#);
    // Of each line one, or none.
    let choices: [&[(&str, &str)]; 8] = [
        &[("authorization", "Basic YTpi"), ("authorization", &bearer)],
        &[("cookie", "a=1"), ("cookie", "a=1; session=x")],
        &[("x-userinfo", &alice), ("x-userinfo", &bob)],
        &[("x-forwarded-user", "mallory")],
        &[("x-forwarded-preferred-username", "mallory")],
        &[("upgrade", "websocket")],
        &[("origin", "https://gateway.test"), ("origin", "https://evil.test")],
        &[("accept", "text/html"), ("x-refresh-token", "secret"), ("x_userinfo", "twin")],
    ];
    let plain = Route::new("plain");
    for conf in [conf(), verified] {
        // What came of each request, by what its decision rested on.
        let mut decided: BTreeMap<Vec<Option<String>>, Value> = BTreeMap::new();
        let mut by: Option<Vec<String>> = None;
        let (mut refused, mut repeats) = (Vec::new(), 0);
        for number in 0..choices.iter().map(|choice| choice.len() + 1).product::<usize>() {
            let mut rest = number;
            let mut request = ClientRequest::get("/").added_header("x-raw-id-token", &token);
            for choice in choices {
                let (chosen, others) = (rest % (choice.len() + 1), rest / (choice.len() + 1));
                rest = others;
                if let Some((name, value)) = choice.get(chosen) {
                    request = match *name {
                        "x-userinfo" => request.added_header(name, value),
                        _ => request.header(name, value),
                    };
                }
            }
            let Outcome::Forward(original) = house.gateway.call(&plain, &request).await else {
                panic!("plain")
            };
            let original = headers(&original);
            let forwarded = match house.outcome(&conf, request).await {
                Outcome::Forward(forwarded) => forwarded,
                Outcome::Answer(_) => {
                    refused.push(original);
                    continue;
                }
            };
            let decision = decision(&forwarded);
            let names: Vec<String> = serde_json::from_value(decision["by"].clone()).unwrap();
            assert_eq!(by.get_or_insert_with(|| names.clone()), &names, "the same for all of a conf");
            match decided.entry(rests_on(&names, &original)) {
                Entry::Vacant(first) => drop(first.insert(decision)),
                Entry::Occupied(first) => {
                    let first = first.get();
                    assert_eq!(repeated(first, original.clone()), headers(&forwarded), "{original:?}");
                    assert_eq!(first["host"], decision["host"]);
                    repeats += 1;
                }
            }
        }
        let by = by.expect("a decision");
        assert!(repeats > 100 && refused.len() > 100, "{repeats} and {}", refused.len());
        for original in refused {
            assert!(!decided.contains_key(&rests_on(&by, &original)), "refused, and forwarded: {original:?}");
        }
    }
}

/// What the headers of a decision have as values, beneath the twins of their names, as
/// the gateway's plugin sees them.
fn rests_on(by: &[String], headers: &[(String, String)]) -> Vec<Option<String>> {
    let of = |wanted: &String| {
        let values = headers.iter().filter(|(name, _)| name.replace('_', "-") == *wanted);
        values.map(|(name, value)| format!("{name}: {value}")).reduce(|all, one| format!("{all}, {one}"))
    };
    by.iter().map(of).collect()
}

/// A token that is over in four seconds is not remembered for ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_is_good_for_no_longer_than_its_token() {
    let keys = [Signer::new("1", Algorithm::ES256)];
    let issuer = Issuer::start(&keys).await;
    let house = House::new(&["--upstream-mode", "direct"]).await;
    let conf = json!({
        "identity": {
            "trust": "verified", "issuer": issuer.url(), "audience": ["apisix"], "allow_http": true,
            "token": ["x-raw-id-token"],
        },
        "upstream": "http://code-{sub}.test:8443",
    });
    let ask = async |lasts: i64| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = claims(&issuer.url(), "alice");
        claims["exp"] = (i64::try_from(now).unwrap() + lasts).into();
        let token = keys[0].token(&claims);
        // A browser may have another authorization for its workspace beside it.
        let request = || {
            ClientRequest::get("/")
                .added_header("X-Raw-ID-Token", &token)
                .header("authorization", format!("Bearer {token}"))
        };
        let asked = async {
            loop {
                match house.outcome(&conf, request()).await {
                    Outcome::Forward(forwarded) => return decision(&forwarded),
                    Outcome::Answer(answer) => {
                        assert_eq!(answer.status, 503, "the keys come in a moment: {answer:?}");
                    }
                }
            }
        };
        timeout(PATIENCE, asked).await.expect("a decision")
    };
    let long = ask(3600).await;
    assert_eq!(long["remember"], 10.0);
    assert_eq!(long["remove"], json!(["authorization", "x-raw-id-token"]));
    assert!(long["by"].as_array().unwrap().contains(&json!("authorization")), "{long}");
    let short = ask(4).await["remember"].as_f64().unwrap();
    assert!(0.0 < short && short <= 4.0, "{short}");
    assert_eq!(ask(-5).await.get("remember"), None, "within its leeway, it is good for this request alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_shows_where_a_request_goes() {
    let house = House::new(&["--upstream-mode", "direct"]).await;
    let listen = listen_address(&house.runner.socket);
    let printed = kube_coders(&[
        "call",
        "--listen-address",
        &listen,
        "--conf",
        &conf().to_string(),
        "--userinfo",
        r#"{"sub": "bob"}"#,
    ]);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let lines: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "go on to http://code-bob.test:8443 directly, at 10.0.0.2",
            "  may be cached for 10 s by authorization, host, origin, upgrade, x-access-token, x-forwarded-preferred-username, x-forwarded-user, x-id-token, x-kube-coders-stamp, x-raw-id-token, x-refresh-token, x-userinfo",
            "  remove x-userinfo",
            "  set x-forwarded-user: bob"
        ]
    );
}

/// Whether LuaJIT is there, with the JSON library of the gateway's.
fn has_lua() -> bool {
    let is_there = run(Command::new("sh").args(["-c", "luajit -e 'require(\"cjson\")'"])).code == Some(0);
    if !is_there {
        skip("luajit or lua-cjson is missing");
    }
    is_there
}

fn lua(script: &str) -> Command {
    let mut command = Command::new("luajit");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(script);
    command
}

#[test]
fn the_gateway_s_plugin_passes_its_own_tests() {
    if !has_lua() {
        return;
    }
    let printed = run(&mut lua("tests/lua/run.lua"));
    let failed: Vec<_> = printed.stdout.lines().filter(|line| line.starts_with("not ok")).collect();
    assert_eq!(printed.code, Some(0), "{failed:#?}\n{}", printed.stderr);
    let passed = printed.stdout.lines().filter(|line| line.starts_with("ok - ")).count();
    assert_eq!(printed.stdout.lines().last(), Some(&*format!("{passed} passed, 0 failed")));
    assert!(passed > 100, "{passed}");
}

/// From a client's request to the gateway's upstream, by a real runner and the plugin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_s_plugin_goes_where_the_runner_says() {
    if !has_lua() {
        return;
    }
    let house = House::new(&["--upstream-mode", "direct"]).await;
    let mut ways = Vec::new();
    for user in ["alice", "bob"] {
        let forwarded = house.forwarded(&conf(), as_user(user)).await;
        let mut luajit =
            lua("tests/lua/decide.lua").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        luajit.stdin.take().unwrap().write_all(forwarded.header(HEADER).unwrap()).unwrap();
        let printed = luajit.wait_with_output().unwrap();
        let way: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert_eq!(way["key"], format!("http://code-{user}.test:8443"));
        assert_eq!(way["conf"]["timeout"], json!({"connect": 6, "send": 300, "read": 300}));
        assert_eq!((&way["conf"]["scheme"], &way["conf"]["pass_host"]), (&json!("http"), &json!("pass")));
        assert_eq!(way["headers"]["x-forwarded-user"], user);
        assert_eq!(way["headers"]["cookie"], "a=1; b=2");
        assert_eq!(way["headers"].get(HEADER), None);
        assert_eq!(way["headers"].get("x-userinfo"), None);
        let mut nodes: Vec<String> = way["conf"]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| format!("{}:{}", node["host"].as_str().unwrap(), node["port"]))
            .collect();
        nodes.sort();
        ways.push((way["key"].clone(), way["version"].clone(), nodes));
    }
    assert_eq!(ways[0].2, ["10.0.0.1:8443", "[fd00::1]:8443"]);
    assert_eq!(ways[1].2, ["10.0.0.2:8443"]);
    assert_ne!((&ways[0].0, &ways[0].1), (&ways[1].0, &ways[1].1));
}

#[test]
fn explain_knows_the_way() {
    let conf = |scheme: &str| {
        json!({"identity": {"trust": "gateway"}, "upstream": format!("{scheme}://127.0.0.1:1"), "upstream_mode": "direct"})
            .to_string()
    };
    let explain = |conf: &str, args: &[&str]| {
        kube_coders(&[&["explain", "--conf", conf, "--userinfo", r#"{"sub": "alice"}"#], args].concat())
    };
    let plain = explain(&conf("http"), &[]);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    assert!(
        plain.stdout.contains("\nok  way        direct: the gateway goes there itself"),
        "{}",
        plain.stdout
    );
    let secure = explain(&conf("https"), &[]);
    assert_eq!(secure.code, Some(2), "{}", secure.stdout);
    assert!(secure.stderr.contains("--conf: upstream: https:// in direct mode"), "{}", secure.stderr);
    assert_eq!(explain(&conf("https"), &["--workspace-ca", "none"]).code, Some(0));
    let by_flag = conf("https").replace(r#""upstream_mode":"direct""#, r#""remove_cookies":[]"#);
    assert_eq!(explain(&by_flag, &[]).code, Some(0));
    assert_eq!(explain(&by_flag, &["--upstream-mode", "direct"]).code, Some(2));
}
