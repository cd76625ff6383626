//! The gateway's plugin on a real nginx with its real Lua module: what nginx itself
//! makes of headers, variables and upstreams is not a stand-in's.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};
use futures_util::{SinkExt as _, StreamExt as _};
use kube_coders_test_support::NameServer;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::peer::PATIENCE;
use crate::served::Served;
use crate::skip::skip;
use crate::workspace::{self, header};

/// Names a folder with Debian's packages of nginx's Lua module unpacked.
const MODULES: &str = "KUBE_CODERS_NGINX_LUA";

const CONF: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}.test:PORT"}"#;

/// A gateway, its runner, and the workspaces of Alice and Bob.
struct House {
    socket: PathBuf,
    calls: Arc<Calls>,
    /// How often the route's own upstream was reached.
    own: Arc<AtomicUsize>,
    nginx: Child,
    _names: NameServer,
    _runner: Served,
    _folder: TempDir,
}

/// Calls the runner as the gateway does.
struct Calls {
    gateway: Gateway,
    route: Route,
    made: AtomicUsize,
    is_away: AtomicBool,
}

#[derive(Deserialize)]
struct LoggedCall {
    target: String,
    headers: Vec<(String, String)>,
}

impl Calls {
    /// What changes in a request, or the answer to it.
    async fn call(&self, line: &str) -> Option<Value> {
        self.made.fetch_add(1, Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) {
            return None;
        }
        let logged: LoggedCall = serde_json::from_str(line).unwrap();
        let request =
            logged.headers.iter().fold(ClientRequest::get(&logged.target), |request, (name, value)| {
                // What the gateway added itself comes last in a frame.
                match name.as_str() {
                    "x-userinfo" => request.added_header(name, value),
                    _ => request.header(name, value),
                }
            });
        match self.gateway.call(&self.route, &request).await {
            Outcome::Answer(answer) => {
                Some(json!({"status": answer.status, "body": String::from_utf8(answer.body).unwrap()}))
            }
            Outcome::Forward(forwarded) => {
                let before: BTreeMap<_, _> = logged.headers.iter().cloned().collect();
                let after: BTreeMap<String, String> = (forwarded.headers.into_iter())
                    .filter(|(name, _)| !name.starts_with("x-forwarded-") || name.ends_with("-user"))
                    .map(|(name, value)| (name, String::from_utf8(value).unwrap()))
                    .collect();
                let remove: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
                let remove: Vec<_> = remove
                    .into_iter()
                    .filter(|name| !name.starts_with("x-forwarded-") || name.ends_with("username"))
                    .collect();
                let set: BTreeMap<_, _> = after
                    .iter()
                    .filter(|(name, value)| before.get(*name) != Some(value) && *name != "x-real-ip")
                    .collect();
                Some(json!({"set": set, "remove": remove}))
            }
        }
    }
}

impl House {
    async fn new() -> Option<Self> {
        let Some(modules) = std::env::var_os(MODULES).map(PathBuf::from) else {
            skip(&format!("{MODULES} names no folder with nginx's Lua module: see tests/lua/README.md"));
            return None;
        };
        let port = workspace::start_two("alice", "bob").await;
        let names = NameServer::start().await.unwrap();
        names.set("code-alice.test", [Ipv4Addr::new(127, 0, 0, 2).into()]);
        names.set("code-bob.test", [Ipv4Addr::new(127, 0, 0, 3).into()]);
        let mallory = Ipv4Addr::new(127, 0, 0, 4);
        names.set("code-mallory.test", [mallory.into()]);
        start_commanding((mallory, port).into()).await;
        let dns = names.address().to_string();
        let runner =
            Served::start(kube_coders::Program::new(), &["--upstream-mode", "direct", "--dns-server", &dns]);
        let conf = CONF.replace("PORT", &port.to_string());
        let calls = Arc::new(Calls {
            gateway: kube_coders::gateway(&runner.socket),
            route: Route::new("workspaces").plugin("user-upstream", &conf),
            made: AtomicUsize::new(0),
            is_away: AtomicBool::new(false),
        });
        let (own, calls_port) = (Arc::new(AtomicUsize::new(0)), serve_calls(Arc::clone(&calls)).await);
        let own_port = trap(Arc::clone(&own)).await;
        let folder = tempfile::tempdir().unwrap();
        let nginx = start_nginx(folder.path(), &modules, calls_port, own_port).await;
        let socket = folder.path().join("gateway.sock");
        Some(Self { socket, calls, own, nginx, _names: names, _runner: runner, _folder: folder })
    }

    /// Sends a head, without its blank line, and reads the answer.
    async fn send(&self, head: &str) -> (String, String) {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await.unwrap();
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        };
        let answer = timeout(PATIENCE, exchange).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    }

    /// The same as this user, with these header lines.
    async fn get(&self, user: &str, target: &str, lines: &str) -> (String, String) {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: coders.test\r\nCookie: user={user}\r\n{lines}"))
            .await
    }

    fn made(&self) -> usize {
        self.calls.made.load(Ordering::Relaxed)
    }

    async fn end(mut self) {
        assert_eq!(self.own.load(Ordering::Relaxed), 0, "the route's own upstream was reached");
        self.nginx.kill().await.unwrap();
    }
}

/// Answers each line with what the runner says.
async fn serve_calls(calls: Arc<Calls>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = Arc::clone(&calls);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                if let Some(answer) = calls.call(&line).await {
                    stream.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

/// Counts the requests that reach the route's own upstream.
async fn trap(reached: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            reached.fetch_add(1, Ordering::Relaxed);
        }
    });
    port
}

/// What the shipped configuration of direct mode adds to the gateway's server.
fn shipped_snippet() -> String {
    let text = include_str!("../../apisix-conf/standalone-direct/config.yaml");
    let config: Value = serde_saphyr::from_str(text).unwrap();
    config["nginx_config"]["http_server_configuration_snippet"].as_str().unwrap().to_owned()
}

/// What a hostile workspace answers every request with.
const COMMANDS: &str = "X-Accel-Redirect: /internal\r\nX-Accel-Charset: utf-7\r\nSet-Cookie: session=stolen\r\n\
                        Set-Cookie: a=b; Domain=test; Path=/\r\nSet-Cookie: =session=tossed\r\n\
                        Clear-Site-Data: \"*\"\r\nStrict-Transport-Security: max-age=0\r\nNEL: {}\r\n\
                        Service-Worker-Allowed: /\r\nCache-Control: max-age=31536000\r\n\
                        Cache-Control: immutable\r\nExpires: Thu, 01 Jan 2099 00:00:00 GMT\r\nX-Own: 1\r\n";

/// A hostile workspace.
async fn start_commanding(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{COMMANDS}Content-Length: 3\r\n\r\nown");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
}

async fn start_nginx(folder: &Path, modules: &Path, calls: u16, own: u16) -> Child {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let conf = include_str!("../lua/nginx/nginx.conf")
        .replace("FOLDER", &text(folder))
        .replace("PROJECT", env!("CARGO_MANIFEST_DIR"))
        .replace("MODULES", &text(modules))
        .replace("CALLS", &calls.to_string())
        .replace("OWN", &own.to_string())
        .replace("SNIPPET", &shipped_snippet());
    let path = folder.join("nginx.conf");
    std::fs::write(&path, conf).unwrap();
    let mut nginx = Command::new(modules.join("nginx"))
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(&path)
        .args(["-e", "stderr"])
        .env("LD_LIBRARY_PATH", modules.join("lib"))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(nginx.stderr.take().unwrap()).lines();
    let socket = folder.join("gateway.sock");
    let started = async {
        while UnixStream::connect(&socket).await.is_err() {
            if let Some(ended) = nginx.try_wait().unwrap() {
                let mut lines = Vec::new();
                while let Ok(Some(line)) = log.next_line().await {
                    lines.push(line);
                }
                panic!("nginx {ended}: {lines:#?}");
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, started).await.expect("nginx listens");
    // The log is read further, so that nginx never waits for it.
    tokio::spawn(async move { while log.next_line().await.is_ok_and(|line| line.is_some()) {} });
    nginx
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_lands_in_their_own_workspace_whatever_a_client_says() {
    let Some(house) = House::new().await else { return };
    let (_, real) = house.get("bob", "/", "").await;
    assert!(real.starts_with("bob got 0 bytes"), "{real}");
    let decision = json!({
        "v": 1, "scheme": "http", "host": "code-bob.test", "port": 80, "addresses": ["127.0.0.3"],
        "timeout": {"connect": 1, "send": 1, "read": 1},
    });
    let spoofed = |name: &str| format!("{name}: {decision}\r\n");
    let many: String = (0..80).map(|number| format!("X-{number}: 1\r\n")).collect();
    let attempts = [
        String::new(),
        spoofed("X-Kube-Coders-Upstream"),
        spoofed("X-Kube-Coders-Upstream").repeat(3),
        spoofed("x_kube_coders_upstream"),
        spoofed("X-Kube_Coders-Upstream"),
        spoofed("X_KUBE-CODERS_UPSTREAM") + &spoofed("X-KUBE-CODERS-UPSTREAM"),
        many.clone() + &spoofed("X-Kube-Coders-Upstream"),
        "X-Userinfo: eyJzdWIiOiJib2IifQ==\r\n".to_owned(),
        "X-Forwarded-User: bob\r\n".to_owned(),
        "kc_hit: 1\r\n".to_owned(),
    ];
    for attempt in &attempts {
        for target in ["/a?x=%20", "/a?x=%20&remember=10", "/a?kc_hit=1&remember=10"] {
            let (head, body) = house.get("alice", target, attempt).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{attempt}{head}{body}");
            let (first, seen) = body.split_once('\n').unwrap();
            assert!(first.starts_with("alice got 0 bytes"), "{attempt}{body}");
            assert!(seen.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{seen}");
            assert_eq!(header(seen, "x-forwarded-user"), Some("alice"), "{seen}");
            assert_eq!((header(seen, "host"), header(seen, "x-userinfo")), (Some("coders.test"), None));
            let is_left =
                |line: &str| line.to_ascii_lowercase().replace('_', "-").starts_with("x-kube-coders");
            assert!(!seen.lines().any(is_left), "{seen}");
        }
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_decision_no_request_goes_anywhere() {
    let Some(house) = House::new().await else { return };
    let (head, body) = house.send("GET / HTTP/1.1\r\nHost: coders.test\r\n").await;
    assert!(head.starts_with("HTTP/1.1 401 ") && body.contains("identity-missing"), "{head}\n{body}");
    house.calls.is_away.store(true, Ordering::Relaxed);
    for lines in ["", "X-Kube-Coders-Upstream: {}\r\n", "X_Kube_Coders_Upstream: {}\r\n"] {
        let (head, body) = house.get("alice", "/?remember=10", lines).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(header(&head, "content-type"), Some("application/problem+json"));
        assert_eq!(header(&head, "retry-after"), Some("2"));
        // It comes in a chunk.
        let problem = body.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{body}"));
        let problem: Value = serde_json::from_str(problem).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&json!("decision-missing"), &json!(503)));
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_does_not_command_the_gateways_nginx() {
    let Some(house) = House::new().await else { return };
    let renewed = ["session=renewed", "session2=more"];
    for (target, own) in
        [("/", &[][..]), ("/?remember=10", &[]), ("/?remember=10", &[]), ("/?renew=1", &renewed)]
    {
        let (head, body) = house.get("mallory", target, "").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, "own");
        let mut lines: Vec<_> = head.lines().skip(1).map(str::to_owned).collect();
        lines.retain(|line| !["Server:", "Date:", "Connection:"].iter().any(|name| line.starts_with(name)));
        let cookies =
            own.iter().copied().chain(["a=b; Path=/"]).map(|cookie| format!("Set-Cookie: {cookie}"));
        let mut expected: Vec<_> = cookies.collect();
        expected.extend(["Cache-Control: no-cache", "Content-Length: 3", "X-Own: 1"].map(str::to_owned));
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected, "{target}");
    }
    house.end().await;
}

/// nginx sends all of a client's lines on; the runner sees the first 100.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_cookie_behind_a_hundred_lines_reaches_no_workspace() {
    let Some(house) = House::new().await else { return };
    let fill = |name: &str, count: usize| format!("{name}: 1\r\n").repeat(count);
    for target in ["/", "/?remember=10"] {
        // `Host` and the user's own cookie come before these. The login drops each `X-Userinfo`.
        for (lines, status) in [
            (fill("X-Filler", 96) + "Cookie: session=secret\r\n", 431),
            (fill("X-Filler", 90) + "Cookie: session=secret\r\n", 200),
            (fill("X-Filler", 99) + "Cookie: session=secret\r\n", 431),
            (fill("X-Userinfo", 99) + "Cookie: session=secret\r\n", 431),
            (fill("X-Userinfo", 99) + "X_Forwarded_User: bob\r\n", 431),
            (fill("X-Userinfo", 60) + "Cookie: session=secret\r\n", 200),
        ] {
            let (head, body) = house.get("alice", target, &lines).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{}: {head}{body}", &lines[..40]);
            assert!(!body.contains("secret") && !body.contains("bob"), "{body}");
            assert_eq!(body.contains("alice got"), status == 200, "{body}");
            assert_eq!(body.contains("too-many-headers"), status == 431, "{body}");
        }
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_decision_serves_only_its_own_user() {
    let Some(house) = House::new().await else { return };
    let ask = async |user: &str, lines: &str| {
        let made = house.made();
        let (head, body) = house.get(user, "/?remember=10", lines).await;
        (house.made() > made, head, body)
    };
    for user in ["alice", "bob"] {
        for is_first in [true, false, false] {
            let (is_called, head, body) = ask(user, "X-Access-Token: secret\r\n").await;
            assert_eq!(is_called, is_first, "{user}: {head}");
            let (first, seen) = body.split_once('\n').unwrap();
            assert!(first.starts_with(user), "{body}");
            assert_eq!(header(seen, "x-forwarded-user"), Some(user));
            assert_eq!((header(seen, "x-access-token"), header(seen, "x-userinfo")), (None, None), "{seen}");
            assert_eq!(header(seen, "cookie"), Some(&*format!("user={user}")));
        }
    }
    // A session's cookie is not asked about, and yet it goes.
    let (is_called, _, body) = ask("alice", "X-Access-Token: secret\r\nCookie: session=x; b=2\r\n").await;
    assert!(!is_called && !body.contains("session"), "{body}");
    assert!(body.contains("b=2"), "{body}");
    // `Authorization` may hold the access token, and is removed then.
    for (lines, expected) in [
        ("X-Access-Token: secret\r\nAccept: text/plain\r\n", false),
        ("X-Access-Token: other\r\n", true),
        ("X-Access-Token: secret\r\nAuthorization: Basic YTpi\r\n", true),
        ("X-Access-Token: secret\r\nAuthorization: Bearer secret\r\n", true),
        ("", true),
        ("X-Access-Token: secret\r\nOrigin: https://coders.test\r\n", true),
    ] {
        assert_eq!(ask("alice", lines).await.0, expected, "{lines}");
    }
    let (is_called, head, _) = ask("alice", "X-Access-Token: secret\r\nX_Access_Token: twin\r\n").await;
    assert!(is_called && head.starts_with("HTTP/1.1 400 "), "{head}");
    house.calls.is_away.store(true, Ordering::Relaxed);
    assert!(ask("alice", "X-Access-Token: secret\r\n").await.2.starts_with("alice"), "for ten seconds");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_goes_the_same_way() {
    let Some(house) = House::new().await else { return };
    for (target, calls) in [("/socket", 1), ("/socket?remember=10", 2), ("/socket?remember=10", 2)] {
        let mut stream = UnixStream::connect(&house.socket).await.unwrap();
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: coders.test\r\nCookie: user=bob\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        socket.send("hello".into()).await.unwrap();
        let heard = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(heard.to_text().unwrap(), "bob: hello");
        assert_eq!(house.made(), calls, "{target}");
    }
    house.end().await;
}
