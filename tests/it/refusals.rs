//! The answer table of what can fail, each line over the real way, as a problem
//! and as a page in either language, and the same with `allow_degradation`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use apisix_plugin_runner::gateway::{ClientRequest, ForwardedRequest, Route};
use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use kube_coders::Program;
use kube_coders_test_support::{Mode, NameServer};
use tokio::net::TcpListener;

use crate::peer::PATIENCE;
use crate::program::Runner;
use crate::served::Served;
use crate::workspace::{Behaviour, Edge, Seen, start};

const STAMP: &str = "x-kube-coders-stamp";

struct House {
    names: NameServer,
    runner: Runner,
    edge: Edge,
    port: u16,
}

async fn house(args: &[&str]) -> House {
    let names = NameServer::start().await.unwrap();
    let address = names.address().to_string();
    let runner =
        Runner::start(&[&["--allow-address", "127.0.0.0/8", "--dns-server", &address], args].concat());
    let edge = Edge::new(&runner.socket, runner.forwarder);
    let port = start("alice", ([127, 0, 0, 2], 0).into(), Behaviour::Serve).await.port();
    names.set("code-alice.test", ["127.0.0.2".parse::<IpAddr>().unwrap()]);
    House { names, runner, edge, port }
}

impl House {
    fn route(&self) -> Route {
        route_to(&format!("http://code-{{sub}}.test:{}", self.port))
    }
}

fn route_to(upstream: &str) -> Route {
    let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "{upstream}"}}"#);
    Route::new("workspaces").plugin("user-upstream", &conf)
}

fn get() -> ClientRequest {
    ClientRequest::get("/").header("Host", "coders.test")
}

fn userinfo(claims: &str) -> ClientRequest {
    get().added_header("X-Userinfo", STANDARD.encode(claims))
}

fn by(user: &str) -> ClientRequest {
    userinfo(&format!(r#"{{"sub": "{user}"}}"#))
}

#[track_caller]
fn assert_problem(seen: &Seen, status: u16, code: &str, case: &str) {
    assert_eq!(seen.status, status, "{case}: {seen:?}");
    assert_eq!(seen.header("content-type"), Some("application/problem+json"), "{case}: {seen:?}");
    let problem: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
    assert_eq!(problem["code"], code, "{case}");
    assert_eq!(problem["status"], status, "{case}");
    assert!(!problem["request_id"].as_str().unwrap().is_empty(), "{case}");
    assert_eq!(seen.header("retry-after").is_some(), retries(code), "{case}");
}

fn retries(code: &str) -> bool {
    ["resolver-unavailable", "workspace-starting"].contains(&code)
}

#[track_caller]
fn assert_page(seen: &Seen, status: u16, code: &str, language: &str, case: &str) {
    assert_eq!(seen.status, status, "{case}: {seen:?}");
    assert_eq!(seen.header("content-type"), Some("text/html; charset=utf-8"), "{case}");
    assert!(seen.body.contains(&format!("<html lang=\"{language}\">")), "{case}: {}", seen.body);
    assert!(seen.body.contains(code), "{case}: {}", seen.body);
    let has_hangul = seen.body.chars().any(|letter| ('가'..='힣').contains(&letter));
    assert_eq!(has_hangul, language == "ko", "{case}");
    assert_eq!(seen.header("retry-after").is_some(), retries(code), "{case}");
    let secrets = ["alice", "zoe", "secret", ".test", "127.0.0"];
    assert!(secrets.iter().all(|secret| !seen.body.contains(secret)), "{case}: {}", seen.body);
}

/// All that a client can see of one refusal. The changes make the forwarder's
/// share of it go wrong.
async fn check(
    edge: &Edge,
    route: &Route,
    request: &ClientRequest,
    (status, code): (u16, &str),
    case: &str,
    change: impl Fn(&mut ForwardedRequest),
) {
    let navigation = |language| {
        request.clone().header("Accept", "text/html,*/*;q=0.8").header("Accept-Language", language)
    };
    let degradable = route.clone().allow_degradation();
    let (english, korean) = (navigation("en-US,en;q=0.9"), navigation("ko-KR,ko;q=0.9,en;q=0.8"));
    let see = async |route: &Route, request: &ClientRequest| match edge.decide(route, request).await {
        Ok(mut forwarded) => {
            change(&mut forwarded);
            edge.forward(&forwarded, &[]).await
        }
        Err(answer) => answer,
    };
    let (problem, english, korean, degraded) = tokio::join!(
        see(route, request),
        see(route, &english),
        see(route, &korean),
        see(&degradable, request)
    );
    assert_problem(&problem, status, code, case);
    assert_page(&english, status, code, "en", case);
    assert_page(&korean, status, code, "ko", case);
    assert_problem(&degraded, status, code, case);
}

async fn check_plain(house: &House, request: &ClientRequest, expected: (u16, &str), case: &str) {
    check(&house.edge, &house.route(), request, expected, case, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_in_either_alphabet_padded_or_not_is_good() {
    let house = house(&[]).await;
    // "û" and "ÿ" give + and / in base64, - and _ in the alphabet for URLs.
    let claims = r#"{"sub": "alice", "name": "ûûû???ÿÿÿ>>>~"}"#;
    let encodings = [
        STANDARD.encode(claims),
        STANDARD_NO_PAD.encode(claims),
        URL_SAFE.encode(claims),
        URL_SAFE_NO_PAD.encode(claims),
    ];
    assert!(encodings[0].contains('/') && encodings[0].ends_with('='), "{}", encodings[0]);
    for encoded in encodings {
        let seen = house.edge.request(&house.route(), &get().added_header("X-Userinfo", &encoded)).await;
        assert_eq!(seen.status, 200, "{encoded}: {}", seen.body);
        assert!(seen.body.starts_with("alice got"), "{}", seen.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_user_is_refused_by_the_runner() {
    let house = house(&[]).await;
    let good = STANDARD.encode(r#"{"sub": "alice"}"#);
    let long = format!(r#"{{"sub": "alice", "x": "{}"}}"#, "x".repeat(50_000));
    let upgrade = |origin| {
        by("alice").header("Upgrade", "websocket").header("Connection", "Upgrade").header("Origin", origin)
    };
    let missing = (401, "identity-missing");
    let malformed = (400, "identity-malformed");
    let nameless = (403, "no-workspace-name");
    let foreign = (403, "foreign-origin");
    for (case, request, expected) in [
        ("no header", get(), missing),
        ("twice", get().header("X-Userinfo", &good).header("X-Userinfo", &good), malformed),
        ("a twin of it", by("alice").header("X_Userinfo", &good), malformed),
        ("a twin alone", get().header("X_Userinfo", &good), malformed),
        ("not base64", get().added_header("X-Userinfo", "{}"), malformed),
        ("not JSON", userinfo("sub=alice"), malformed),
        ("not an object", userinfo(r#"["alice"]"#), malformed),
        ("over 64 KiB", userinfo(&long), (431, "identity-too-large")),
        ("a claim twice", userinfo(r#"{"sub": "alice", "sub": "bob"}"#), malformed),
        ("a subject that no header can have", userinfo(r#"{"sub": "a\u0000"}"#), malformed),
        ("a subject of 256 characters", by(&"a".repeat(256)), nameless),
        ("no subject", userinfo(r#"{"name": "alice"}"#), nameless),
    ] {
        check_plain(&house, &request, expected, case).await;
    }
    // An upgrade is no navigation, so no page would be seen.
    for origin in ["https://evil.test", "null", "http://coders.test.evil.test", "https://coders.test:8443"] {
        let request = upgrade(origin).header("Accept", "text/html");
        for route in [house.route(), house.route().allow_degradation()] {
            let seen = house.edge.request(&route, &request).await;
            assert_problem(&seen, foreign.0, foreign.1, origin);
        }
    }
    let route = route_to(&format!("http://code-{{team}}.test:{}", house.port));
    for (case, claims) in [
        ("no such claim", r#"{"sub": "alice"}"#),
        ("a claim that is no text", r#"{"sub": "alice", "team": 7}"#),
        ("a claim without a label", r#"{"sub": "alice", "team": ""}"#),
    ] {
        check(&house.edge, &route, &userinfo(claims), nameless, case, |_| {}).await;
    }
    let seen = house.edge.request(&house.route(), &by("alice").header("Origin", "https://evil.test")).await;
    assert_eq!(seen.status, 200, "an origin is nothing but on an upgrade: {}", seen.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_that_is_not_there_is_said_to_be() {
    let house = house(&[]).await;
    check_plain(&house, &by("zoe"), (404, "workspace-not-found"), "no such name").await;

    let unused = TcpListener::bind("127.0.0.4:0").await.unwrap();
    let closed = unused.local_addr().unwrap();
    drop(unused);
    let closed_route = route_to(&format!("http://{closed}"));
    check(&house.edge, &closed_route, &by("alice"), (503, "workspace-starting"), "nothing listens", |_| {})
        .await;

    let broken = start("broken", ([127, 0, 0, 1], 0).into(), Behaviour::BreakOff).await;
    let broken = route_to(&format!("http://{broken}"));
    check(&house.edge, &broken, &by("alice"), (502, "workspace-failed"), "breaks off", |_| {}).await;

    house.names.set_mode(Mode::Silent);
    check_plain(&house, &by("bob"), (503, "resolver-unavailable"), "a silent name server").await;
    house.names.set_mode(Mode::Fail);
    check_plain(&house, &by("carol"), (503, "resolver-unavailable"), "a failing name server").await;
    house.names.set_mode(Mode::Answer);
    let seen = house.edge.request(&house.route(), &by("alice")).await;
    assert_eq!(seen.status, 200, "{}", seen.body);
}

fn set_stamp(forwarded: &mut ForwardedRequest, change: impl Fn(&mut Vec<u8>)) {
    let (_, stamp) = forwarded.headers.iter_mut().find(|(name, _)| name == STAMP).unwrap();
    change(stamp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stamp_that_is_not_good_is_refused_and_nothing_connected() {
    let (house, other) = tokio::join!(house(&[]), house(&["--stamp-lifetime", "1s"]));
    let refused = (403, "stamp-refused");
    let workspace = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = route_to(&format!("http://{}", workspace.local_addr().unwrap()));
    let of_another = other.edge.decide(&route, &by("alice")).await.unwrap();
    let of_another = String::from_utf8(of_another.header(STAMP).unwrap().to_vec()).unwrap();
    let edge = &house.edge;
    check(edge, &route, &by("alice"), refused, "no stamp", |forwarded| {
        forwarded.headers.retain(|(name, _)| name != STAMP);
    })
    .await;
    check(edge, &route, &by("alice"), refused, "forged", |forwarded| {
        set_stamp(forwarded, |stamp| stamp[40] = if stamp[40] == b'A' { b'B' } else { b'A' });
    })
    .await;
    check(edge, &route, &by("alice"), refused, "another key's", |forwarded| {
        set_stamp(forwarded, |stamp| *stamp = of_another.clone().into_bytes());
    })
    .await;
    check(edge, &route, &by("alice"), refused, "two stamps", |forwarded| {
        let stamp = forwarded.header(STAMP).unwrap().to_vec();
        forwarded.headers.push((STAMP.to_owned(), stamp));
    })
    .await;

    // A stamp of one second that was good, and after a while is not.
    let old = other.edge.decide(&other.route(), &by("alice")).await.unwrap();
    let since = Instant::now();
    let seen = loop {
        let seen = other.edge.forward(&old, &[]).await;
        if seen.status != 200 || since.elapsed() > PATIENCE {
            break seen;
        }
        tokio::task::yield_now().await;
    };
    assert_problem(&seen, 403, "stamp-refused", "expired");
    check(&other.edge, &other.route(), &by("alice"), refused, "expired", |forwarded| {
        let stamp = old.header(STAMP).unwrap().to_vec();
        set_stamp(forwarded, |there| there.clone_from(&stamp));
    })
    .await;

    let connected =
        std::future::poll_fn(|context| std::task::Poll::Ready(workspace.poll_accept(context).is_ready()));
    assert!(!connected.await, "nothing was connected");
    house.runner.program.line(&["stamp-refused"]);
}

struct Panics;

impl Plugin for Panics {
    const NAME: &'static str = "panics";
    type Config = ();

    async fn on_request(&self, _: &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
        panic!("a bug of a plugin's author")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bug_in_a_plugin_is_an_answer_of_ours() {
    let served = Served::start(Program::new().plugin(Panics), &[]);
    let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
    let edge = Edge::new(&served.socket, nowhere);
    let route = Route::new("bug").plugin("panics", "null");
    check(&edge, &route, &by("alice"), (503, "runner-failed"), "a panic", |_| {}).await;
    // What runs before the bug does not let a request pass, nor what would run after it.
    let route = Route::new("bug")
        .plugin("user-upstream", r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:1"}"#);
    let route = route.plugin("panics", "null");
    check(&edge, &route, &by("alice"), (503, "runner-failed"), "a panic of a later plugin", |_| {}).await;
}

/// The fields of a line `… request refused name=value …`, as a program reads them.
fn fields(line: &str) -> BTreeMap<String, String> {
    let (_, mut rest) = line.split_once("request refused ").unwrap();
    let mut fields = BTreeMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let value = if after.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = values.next().unwrap().unwrap();
            rest = &after[values.byte_offset()..];
            value
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            rest = &after[end..];
            after[..end].to_owned()
        };
        rest = rest.trim_start();
        fields.insert(name.to_owned(), value);
    }
    assert_eq!(rest, "", "{line}");
    fields
}

/// Both the runner's and the forwarder's lines can be read by a program. They tell which request
/// on which route was refused, and of whom, without a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_s_line_names_its_request_its_route_and_a_digest_of_its_user() {
    let conf = |upstream: &str| {
        format!(
            r#"{{"identity": {{"trust": "gateway"}}, "upstream": "{upstream}", "deny": {{"subjects": ["mallory"]}}}}"#
        )
    };
    let unused = TcpListener::bind("127.0.0.4:0").await.unwrap();
    let closed = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    let mut digests = Vec::new();
    for flags in [&[][..], &["--log-subjects"]] {
        let house = house(flags).await;
        let by_name = conf(&format!("http://code-{{sub}}.test:{}", house.port));
        // Two routes with the same conf are told apart.
        let (one, two) = (Route::new("one"), Route::new("two"));
        let (one, two) = (one.plugin("user-upstream", &by_name), two.plugin("user-upstream", &by_name));
        let starting = Route::new("starting").plugin("user-upstream", &conf(&closed));
        let mut digests_here = Vec::new();
        for (route, name, user, code, workspace) in [
            (&one, "one", "zoe", "workspace-not-found", Some("code-zoe.test")),
            (&two, "two", "zoe", "workspace-not-found", Some("code-zoe.test")),
            (&one, "one", "mallory", "not-allowed", None),
            (&two, "two", "", "identity-missing", None),
            (&starting, "starting", "zoe", "workspace-starting", Some("127.0.0.4")),
        ] {
            let request = if user.is_empty() { get() } else { by(user) };
            let request = request.header("X-Request-Id", "id-of-this-request");
            house.edge.request(route, &request).await;
            let line = house.runner.program.line(&[
                "request refused",
                &format!("code={code:?}"),
                &format!("route={name:?} "),
            ]);
            let fields = fields(&line);
            let get = |name: &str| fields.get(name).map(String::as_str);
            assert!(!get("request_id").unwrap().is_empty(), "{line}");
            if name == "starting" {
                assert_eq!(get("request_id"), Some("id-of-this-request"));
            }
            assert_eq!((get("route"), get("code")), (Some(name), Some(code)), "{line}");
            assert!(line.contains("reason=\"") && !get("reason").unwrap().is_empty(), "{line}");
            assert_eq!(get("subject_digest").is_some(), !user.is_empty(), "{line}");
            let (subject, workspace) = match flags {
                [] => (None, None),
                _ => (Some(user).filter(|user| !user.is_empty()), workspace),
            };
            assert_eq!((get("subject"), get("workspace")), (subject, workspace), "{line}");
            assert!(!flags.is_empty() || user.is_empty() || !line.contains(user), "{line}");
            digests_here.push((user, get("subject_digest").map(str::to_owned)));
        }
        let of = |user| digests_here.iter().filter(move |(name, _)| *name == user).map(|(_, digest)| digest);
        assert_eq!(of("zoe").collect::<BTreeSet<_>>().len(), 1, "the runner's and the forwarder's are equal");
        assert_ne!(of("zoe").next(), of("mallory").next());
        digests.extend(of("zoe").next().cloned());
    }
    assert_ne!(digests[0], digests[1], "two runners with keys of their own");
}
