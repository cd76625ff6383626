//! Direct mode: what the runner decides, and what the gateway's plugin makes of it.

use std::io::{Seek as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use apisix_plugin_runner::direct::{Direct, SystemResolver};
use apisix_plugin_runner::gateway::{CallError, ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
use apisix_plugin_runner::{
    Action, CacheKey, HeaderName, Method, Plugin, PluginError, Request, Upstream, UpstreamMode,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::Algorithm;
use kube_coders_test_support::{Mode, NameServer};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config as TestConfig, RngAlgorithm, TestRng, TestRunner};
use serde::{Deserialize, Serialize};
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
        "removed_cookies": ["__Host-kube-coders-user", "session"],
        "cache": {
            "seconds": 10.0,
            "headers": ["authorization", "host", "origin", "sec-fetch-mode", "x-access-token", "x-userinfo"],
            "presence": ["x-access-token", "x-forwarded-preferred-username", "x-id-token",
                         "x-kube-coders-stamp", "x-raw-id-token", "x-refresh-token", "x-userinfo"],
            "navigation": true,
            "digest": decision["cache"]["digest"],
            "set": {"x-forwarded-user": "alice"},
            "remove": ["x-access-token", "x-userinfo"],
            "cookies": ["__Host-kube-coders-user", "session"],
        },
    });
    assert_eq!(decision, expected);
    // The runner has done the same itself.
    assert_eq!(forwarded.header("x-forwarded-user"), Some(&b"alice"[..]));
    assert_eq!((forwarded.header("x-access-token"), forwarded.header("x-userinfo")), (None, None));
    assert_eq!(forwarded.header("cookie"), Some(&b"a=1"[..]));
}

/// Its response depends on the browser's marker, which is in no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_decision_about_a_navigation_is_not_cached() {
    let house = House::new(&["--upstream-mode", "direct"]).await;
    for (mode, is_cached) in [("navigate", false), ("cors", true)] {
        let forwarded = house.forwarded(&conf(), as_user("alice").header("Sec-Fetch-Mode", mode)).await;
        assert_eq!(decision(&forwarded).get("cache").is_some(), is_cached, "{mode}");
        assert_eq!(forwarded.response_headers.is_empty(), is_cached, "{mode}");
    }
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
async fn no_request_goes_anywhere_without_a_known_address() {
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

/// Sends to the host that a header names, and lets that be cached.
struct Elsewhere;

impl Plugin for Elsewhere {
    const NAME: &'static str = "elsewhere";
    type Config = ();

    fn cache_key(&self, (): &()) -> Option<CacheKey> {
        Some(CacheKey::new(["x-scheme", "x-to", "x-look"].map(HeaderName::from_static)))
    }

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
            Some("header") => drop(request.header("accept")),
            _ => {}
        }
        request.cache_for(Duration::from_secs(3));
        Ok(Action::Continue)
    }
}

/// Any plugin can choose direct mode; if that is impossible, the refusal says why.
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
    let cache = &decision["cache"];
    assert_eq!((&decision["addresses"], &cache["seconds"]), (&json!(["10.0.0.2"]), &json!(3.0)));
    assert_eq!(cache["headers"], json!(["x-look", "x-scheme", "x-to"]));
    for look in ["path", "query", "queries", "method", "source", "variable", "body", "header", "scheme"] {
        let request = ClientRequest::get("/?x=1").header("x-to", "code-bob.test").header("x-look", look);
        let outcome = timeout(PATIENCE, house.gateway.call(&route, &request)).await.expect("an answer");
        let Outcome::Forward(forwarded) = outcome else { panic!("{outcome:?}") };
        let is_cached = self::decision(&forwarded).get("cache").is_some();
        assert_eq!(is_cached, look == "scheme", "{look}: the key has headers, route and scheme");
    }
    let Outcome::Answer(answer) = ask("absent.test").await else { panic!("refused") };
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &problem["code"]), (404, &json!("workspace-not-found")));
}

/// What goes on of a request, in an order of its own, without the decision.
fn sent_on(outcome: Outcome) -> Result<Vec<(String, Vec<u8>)>, u16> {
    let mut forwarded = match outcome {
        Outcome::Forward(forwarded) => forwarded,
        Outcome::Answer(answer) => return Err(answer.status),
    };
    let decision = decision(&forwarded);
    forwarded.headers.retain(|(name, _)| name != HEADER);
    let host = ("the workspace".to_owned(), decision["host"].as_str().unwrap().into());
    forwarded.headers.push(host);
    forwarded.headers.sort();
    Ok(forwarded.headers)
}

/// A gateway that caches decisions does with each request what one without a cache does,
/// whatever else came before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_decision_is_the_one_that_the_runner_would_make() {
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
    for conf in [conf(), verified] {
        let caching = kube_coders::gateway(&house.runner.socket).caches_decisions(Duration::from_secs(3600));
        let route = Route::new("workspaces").plugin("user-upstream", &conf.to_string());
        let (mut forwarded, mut refused) = (0, 0);
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
            let fresh = sent_on(house.outcome(&conf, request.clone()).await);
            let cached = timeout(PATIENCE, caching.call(&route, &request)).await.expect("an answer");
            assert_eq!(sent_on(cached), fresh, "{request:?}");
            *(if fresh.is_ok() { &mut forwarded } else { &mut refused }) += 1;
        }
        let hits = forwarded + refused - caching.call_count();
        assert!(hits > 100 && refused > 100, "{hits} hits, {refused} refused, {forwarded} forwarded");
    }
}

/// The decision about a token that expires in four seconds is not cached for ten.
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
        // A browser may also send another authorization, for its workspace.
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
    assert_eq!(long["cache"]["seconds"], 10.0);
    assert_eq!(long["cache"]["remove"], json!(["authorization", "x-raw-id-token"]));
    assert!(long["cache"]["headers"].as_array().unwrap().contains(&json!("authorization")), "{long}");
    let short = ask(4).await["cache"]["seconds"].as_f64().unwrap();
    assert!(0.0 < short && short <= 4.0, "{short}");
    assert_eq!(ask(-5).await.get("cache"), None, "within its leeway, it is good for this request alone");
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
            "  may be cached for 10 s by authorization, host, origin, sec-fetch-mode, x-access-token, x-userinfo, whether x-access-token is there, whether x-forwarded-preferred-username is there, whether x-id-token is there, whether x-kube-coders-stamp is there, whether x-raw-id-token is there, whether x-refresh-token is there, whether x-userinfo is there, navigation or not",
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line for `decide.lua`: a request as the gateway has it, and what the runner decided.
fn lua_request(original: &ForwardedRequest, decided: &ForwardedRequest) -> String {
    // The gateway adds these when the request goes on.
    let is_later = |name: &str| ["x-forwarded-for", "x-real-ip"].contains(&name);
    let headers: Vec<_> = (original.headers.iter())
        .filter(|(name, _)| !is_later(name))
        .map(|(name, value)| (name, hex(value)))
        .collect();
    let decision = hex(decided.header(HEADER).expect("a decision"));
    json!({"method": original.method.as_str(), "headers": headers, "decision": decision}).to_string()
}

/// What the gateway's plugin makes of each line.
fn decided_by_lua(lines: &[String]) -> Vec<Value> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    file.rewind().unwrap();
    let printed = lua("tests/lua/decide.lua").stdin(file).output().unwrap();
    let errors = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.success() && errors.is_empty(), "{errors}");
    let found: Vec<Value> =
        serde_json::Deserializer::from_slice(&printed.stdout).into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(found.len(), lines.len());
    found
}

/// Has the key that its config describes, and decides the same for all requests.
struct AnyKey;

#[derive(Debug, Deserialize, Serialize)]
struct KeyConfig {
    headers: Vec<String>,
    presence: Vec<String>,
    has_navigation: bool,
}

impl Plugin for AnyKey {
    const NAME: &'static str = "any-key";
    type Config = KeyConfig;

    fn cache_key(&self, config: &KeyConfig) -> Option<CacheKey> {
        let names = |names: &[String]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        let key = CacheKey::new(names(&config.headers)).and_presence(names(&config.presence));
        Some(if config.has_navigation { key.and_navigation() } else { key })
    }

    async fn on_request(&self, _: &KeyConfig, request: &mut Request<'_>) -> Result<Action, PluginError> {
        request.set_upstream("http://127.0.0.1:1".parse()?)?;
        request.cache_for(Duration::from_secs(10));
        Ok(Action::Continue)
    }
}

/// The gateway's plugin caches a decision only if it computes the runner's digest, so a hit
/// shows that both compute the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_s_plugin_computes_the_runner_s_digest() {
    const NAMES: [&str; 6] = ["accept", "host", "x-a", "x-b", "upgrade", "authorization"];
    const RANGES: [&str; 6] = ["text/html", "TEXT/Html ", "\ttext/html\t", "text/html x", "text/htm", "*/*"];
    const WEIGHTS: [&str; 36] = [
        "",
        ";",
        ";q",
        ";q=",
        ";q=0",
        ";q=1",
        ";q=2",
        ";q=01",
        ";q=00",
        ";q=10",
        ";q=0001",
        ";q=1.",
        ";q=0.",
        ";q=.5",
        ";q=0.5",
        ";q=0.001",
        ";q=0.000",
        ";q=0.0001",
        ";q=1.000",
        ";q=1.001",
        ";q=-0",
        ";q=1e0",
        ";q=0x1",
        ";q=0.5 ",
        "; Q = 1",
        ";q =\t0",
        ";q=0;q=1",
        ";q=1;q=0",
        ";level=1;q=0",
        ";level;q=0",
        ";qq=0",
        ";q=1=0",
        ";q=0 5",
        ";q=\"1\"",
        ";xq=0",
        ";x;q=1.0;q=0",
    ];
    const ACCEPT: &str = r"(text/html|TEXT/HTML|text/\*|\*/\*|image/png|)[ \t]?(;[ \t]?(q|Q|level|)[ \t]?(=[ \t]?(|0|1|01|1\.|1\.0|1\.001|0\.000|0\.001|0\.0001|0\.5|\.5|-1|1e0|x)[ \t]?)?){0,2}";
    if !has_lua() {
        return;
    }
    let (seed, rng) = seeded();
    let accept = prop::collection::vec(ACCEPT, 0..4).prop_map(|items| items.join(",").into_bytes());
    let bytes = prop::collection::vec(prop_oneof![any::<u8>(), Just(b','), Just(b';')], 0..12);
    let value = prop_oneof![2 => accept, 1 => bytes].prop_map(|mut value| {
        // nginx lets no value have these, and takes the spaces around it away.
        value.retain(|byte| !b"\r\n\0".contains(byte));
        value.trim_ascii().to_vec()
    });
    let headers = prop::collection::vec((prop::sample::select(&NAMES[..]), value), 0..8);
    let names = || prop::sample::subsequence(&NAMES[..], 0..=NAMES.len());
    let method = prop::sample::select(vec![Method::GET, Method::GET, Method::POST, Method::HEAD]);
    let cases = (method, headers, names(), names(), any::<bool>());
    let mut runner = TestRunner::new_with_rng(TestConfig::default(), rng);
    let carrier = Direct::new(Arc::new(SystemResolver));
    let gateway = Gateway::with_runner(
        apisix_plugin_runner::Runner::named("test", "0").plugin(AnyKey).carrier(carrier),
        apisix_plugin_runner::Settings::new("/nonexistent"),
    );
    let (mut lines, mut asked) = (Vec::new(), Vec::new());
    let random = (0..700).map(|_| cases.new_tree(&mut runner).unwrap().current()).collect::<Vec<_>>();
    let of_accept =
        |accept: String| (Method::GET, vec![("accept", accept.into_bytes())], vec!["x-a"], Vec::new(), true);
    let weighted = RANGES.iter().flat_map(|range| WEIGHTS.map(|weight| format!("{range}{weight}")));
    for (method, headers, values, presence, has_navigation) in
        random.into_iter().chain(weighted.map(of_accept))
    {
        let request = headers
            .iter()
            .fold(ClientRequest::new(method, "/"), |request, (name, value)| request.header(name, value));
        let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        let config = KeyConfig { headers: names(values), presence: names(presence), has_navigation };
        // A route of its own for each key.
        let route = Route::new(&format!("r{}", lines.len())).plugin_with("any-key", &config);
        let original = gateway.call(&Route::new("plain"), &request).await.forwarded();
        let outcome = gateway.call(&route, &request).await;
        if config.headers.is_empty() && config.presence.is_empty() {
            assert_eq!(outcome.status(), Some(503), "the conf is refused");
            continue;
        }
        let decided = outcome.forwarded();
        lines.push(lua_request(&original, &decided));
        asked.push((decision(&decided), request));
    }
    let mut navigations = 0;
    for (found, (decision, request)) in decided_by_lua(&lines).iter().zip(&asked) {
        assert_eq!(found["statuses"], json!([0, 0]), "KUBE_CODERS_SEED={seed} {request:?}");
        assert_eq!(found["hit"], true, "KUBE_CODERS_SEED={seed} {request:?} {decision}");
        navigations += usize::from(decision["cache"]["navigation"] == true);
    }
    assert!(asked.len() > 400 && navigations > 400, "{}, {navigations} with navigations", asked.len());
}

/// A random generator, and its seed: `KUBE_CODERS_SEED` repeats a run that failed.
fn seeded() -> (u64, TestRng) {
    let seed: u64 = match std::env::var("KUBE_CODERS_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::process::id().into(),
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    (seed, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
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
        let request = as_user(user)
            .header("cookie", "a=1; session=x; session_2=y; b=2")
            .header("x-access-token", "token")
            .header("x-forwarded-user", "mallory");
        let original = house.gateway.call(&Route::new("plain"), &request).await.forwarded();
        let forwarded = house.forwarded(&conf(), request).await;
        let way = decided_by_lua(&[lua_request(&original, &forwarded)]).remove(0);
        assert_eq!((&way["statuses"], &way["hit"]), (&json!([0, 0]), &json!(true)), "{way}");
        assert_eq!(way["key"], format!("http://code-{user}.test:8443"));
        assert_eq!(way["conf"]["timeout"], json!({"connect": 6, "send": 300, "read": 300}));
        assert_eq!((&way["conf"]["scheme"], &way["conf"]["pass_host"]), (&json!("http"), &json!("pass")));
        assert_eq!(way["headers"]["x-forwarded-user"], hex(user.as_bytes()));
        assert_eq!(way["headers"]["cookie"], hex(b"a=1; b=2"));
        for gone in [HEADER, "x-userinfo", "x-access-token"] {
            assert_eq!(way["headers"].get(gone), None);
        }
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
