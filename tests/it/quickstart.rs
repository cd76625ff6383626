//! The quickstart as a new user meets it: started, asked
//! as several users, and stopped.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use crate::skip::skip;

// Of an example that other tests start, cargo runs no tests of its own: here
// they are run.
#[allow(dead_code)]
#[path = "../../examples/quickstart/pages.rs"]
mod pages;
#[allow(dead_code)]
#[path = "../../examples/quickstart/users.rs"]
mod users;

/// How long anything here may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// The base64 of `{"sub":"alice"}`, which a client sends who wants to be alice.
const FORGED: &str = "eyJzdWIiOiJhbGljZSJ9";

/// The quickstart's binary, built by the same `cargo test`.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_kube-coders")).with_file_name("examples/quickstart");
    assert!(
        program.is_file(),
        "{} is not there: `cargo test` builds it, and so does `cargo build --example quickstart`",
        program.display()
    );
    program
}

/// A quickstart that runs. Dropped, it is killed.
struct Quickstart {
    process: Child,
    /// Its gateway, as `127.0.0.1:port`.
    gateway: String,
    /// What it printed before it was ready.
    before: Vec<String>,
    /// What it prints.
    lines: Lines<BufReader<ChildStdout>>,
}

impl Quickstart {
    /// Starts it on a free port and waits for what it says when it is ready.
    async fn start() -> Self {
        Self::start_as(&mut Command::new(program())).await
    }

    async fn start_as(command: &mut Command) -> Self {
        let mut process = command
            .args(["--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut before = Vec::new();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(address) = line.strip_prefix("ready: http://") {
                    return address.trim_end_matches('/').to_owned();
                }
                before.push(line);
            }
            panic!("the quickstart ended before it was ready");
        };
        let gateway = timeout(PATIENCE, ready).await.expect("the quickstart becomes ready");
        Self { process, gateway, before, lines }
    }

    /// The next line that it prints with this in it.
    async fn line(&mut self, part: &str) -> String {
        let found = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the quickstart prints more");
                if line.contains(part) {
                    return line;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no line with {part:?}"))
    }

    /// Asks as the user that the cookie names; with `""`, without a user.
    async fn ask(&self, user: &str, request: http::request::Builder, body: Bytes) -> Answer {
        self.ask_host(&self.gateway, user, request, body).await
    }

    async fn ask_host(&self, host: &str, user: &str, request: http::request::Builder, body: Bytes) -> Answer {
        let stream = TcpStream::connect(&self.gateway).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = request.header("host", host);
        if !user.is_empty() {
            request = request.header("cookie", format!("other=1; quickstart_user={user}"));
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        connection.abort();
        Answer { parts, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    async fn get(&self, user: &str, path: &str) -> Answer {
        self.ask(user, Request::get(path), Bytes::new()).await
    }

    /// Says something on a WebSocket and returns what comes back.
    async fn say(&self, user: &str, text: &str) -> Result<String, WebSocketError> {
        let mut request = format!("ws://{}/echo", self.gateway).into_client_request()?;
        let cookie = format!("quickstart_user={user}").try_into().unwrap();
        request.headers_mut().insert("cookie", cookie);
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
        socket.send(Message::text(text)).await?;
        let answer = socket.next().await.expect("an answer comes before the end")?;
        Ok(answer.into_text()?.to_string())
    }

    async fn stop(mut self) -> ExitStatus {
        let id = self.process.id().expect("it has not been waited for");
        kill(Pid::from_raw(id.try_into().unwrap()), Signal::SIGTERM).unwrap();
        timeout(PATIENCE, self.process.wait()).await.expect("the quickstart ends").unwrap()
    }
}

struct Answer {
    parts: http::response::Parts,
    body: String,
}

impl Answer {
    fn status(&self) -> u16 {
        self.parts.status.as_u16()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

#[tokio::test]
async fn each_user_finds_their_own_workspace() {
    let quickstart = Quickstart::start().await;
    for (user, name) in [("alice", "alice"), ("bob", "bob"), ("jaehun", "김재훈")] {
        let page = quickstart.get(user, "/").await;
        assert_eq!(page.status(), 200);
        assert!(page.body.contains(&format!("<title>{name}’s workspace</title>")), "{}", page.body);
        let seen = quickstart.get(user, "/headers.json").await.json();
        assert_eq!(seen["workspace"], user);
        assert_eq!(seen["headers"]["x-forwarded-user"], user);
        assert_eq!(seen["headers"]["x-forwarded-preferred-username"], name);
        assert_eq!(seen["headers"]["host"], quickstart.gateway);
        let answer = quickstart.say(user, "hello").await.unwrap();
        assert_eq!(answer, format!("{name}'s workspace: hello"));
    }
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_user_without_a_workspace_or_a_name_is_refused() {
    let quickstart = Quickstart::start().await;
    let zoe = quickstart.get("zoe", "/").await;
    assert_eq!((zoe.status(), &zoe.json()["code"]), (404, &"workspace-not-found".into()));
    let anonymous = quickstart.get("", "/x").await;
    assert_eq!((anonymous.status(), &anonymous.json()["code"]), (401, &"identity-missing".into()));
    for (user, expected) in [("zoe", 404), ("mallory", 401)] {
        let Err(WebSocketError::Http(refused)) = quickstart.say(user, "hello").await else {
            panic!("{user} is not refused")
        };
        assert_eq!(refused.status().as_u16(), expected);
    }
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_clients_own_identity_headers_are_dropped() {
    let quickstart = Quickstart::start().await;
    let forged = || Request::get("/headers.json").header("X-Userinfo", FORGED);
    let anonymous = quickstart.ask("", forged(), Bytes::new()).await;
    assert_eq!((anonymous.status(), &anonymous.json()["code"]), (401, &"identity-missing".into()));

    let dropped = ["X-Access-Token", "X-ID-Token", "X-Raw-ID-Token", "X-Refresh-Token"];
    let request = dropped.iter().fold(forged(), |request, name| request.header(*name, FORGED));
    let request = request.header("X-Kube-Coders-Stamp", FORGED).header("X-Forwarded-User", "alice");
    let seen = quickstart.ask("bob", request, Bytes::new()).await.json();
    assert_eq!((&seen["workspace"], &seen["headers"]["x-forwarded-user"]), (&"bob".into(), &"bob".into()));
    for name in dropped.iter().chain(&["X-Userinfo", "X-Kube-Coders-Stamp"]) {
        assert_eq!(seen["headers"][name.to_lowercase()], serde_json::Value::Null, "{name}");
    }

    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn only_hosts_of_this_machine_are_served() {
    let quickstart = Quickstart::start().await;
    let port = quickstart.gateway.rsplit(':').next().unwrap();
    for (host, expected) in [
        (format!("localhost:{port}"), 200),
        ("localhost".to_owned(), 200),
        ("[::1]:1".to_owned(), 200),
        (format!("rebound.example:{port}"), 421),
        ("127.0.0.1.rebound.example".to_owned(), 421),
        ("localhost:x".to_owned(), 421),
    ] {
        let answer = quickstart.ask_host(&host, "alice", Request::get("/"), Bytes::new()).await;
        assert_eq!(answer.status(), expected, "{host}");
    }
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_user_is_picked_and_left() {
    let quickstart = Quickstart::start().await;
    let picker = quickstart.get("", "/").await;
    assert_eq!(picker.status(), 200);
    for user in ["alice", "bob", "jaehun", "zoe", "nina", "eve"] {
        let link = format!("/quickstart/pick?user={user}");
        assert!(picker.body.contains(&link), "{}", picker.body);
        let picked = quickstart.get("", &link).await;
        assert_eq!((picked.status(), &picked.parts.headers["location"]), (303, &"/".try_into().unwrap()));
        let cookie = format!("quickstart_user={user}; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(picked.parts.headers["set-cookie"], cookie);
    }
    let left = quickstart.get("alice", "/quickstart/leave").await;
    assert_eq!(
        left.parts.headers["set-cookie"],
        "quickstart_user=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax"
    );
    assert_eq!(quickstart.get("", "/quickstart/pick?user=mallory").await.status(), 404);
    assert_eq!(quickstart.get("alice", "/quickstart/").await.body, picker.body);
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_rule_refuses_a_user_and_a_workspace_starts_when_it_is_asked_for() {
    let quickstart = Quickstart::start().await;
    let eve = quickstart.get("eve", "/").await;
    assert_eq!((eve.status(), &eve.json()["code"]), (403, &"not-allowed".into()));
    let nina = quickstart.get("nina", "/").await;
    assert_eq!((nina.status(), &nina.json()["code"]), (503, &"workspace-starting".into()));
    let started = async {
        while quickstart.get("nina", "/").await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, started).await.expect("the workspace starts");
    assert_eq!(quickstart.get("nina", "/headers.json").await.json()["workspace"], "nina");
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

/// Who picks a user after a refusal gets the page that was refused.
#[tokio::test]
async fn a_refused_page_is_opened_once_a_user_is_picked() {
    let quickstart = Quickstart::start().await;
    let navigation = |path: &str| Request::get(path).header("accept", "text/html");
    let refused = quickstart.ask("", navigation("/x/y?folder=/a&b"), Bytes::new()).await;
    assert_eq!(refused.status(), 401);
    let kept = refused.parts.headers["set-cookie"].to_str().unwrap();
    assert!(kept.contains("; Path=/quickstart/;"), "{kept}");
    let kept = kept.split(';').next().unwrap();
    let pick = async |cookie: &str| {
        let request = Request::get("/quickstart/pick?user=bob").header("cookie", cookie);
        let picked = quickstart.ask("", request, Bytes::new()).await;
        let clears = picked.parts.headers.get_all("set-cookie").iter().nth(1).unwrap();
        assert!(clears.to_str().unwrap().starts_with("quickstart_back=; Max-Age=0; Path=/quickstart/;"));
        picked.parts.headers["location"].to_str().unwrap().to_owned()
    };
    assert_eq!(pick(kept).await, "/x/y?folder=/a&b");
    for elsewhere in ["//evil.test/", "/\\evil.test/", "https://evil.test/", "x", "", "/a\r\nx: y"] {
        let forged = format!("quickstart_back={}", URL_SAFE_NO_PAD.encode(elsewhere));
        assert_eq!(pick(&forged).await, "/", "{elsewhere:?}");
    }
    assert_eq!(pick("quickstart_back=%").await, "/");
    // What a script asks for is no page to go back to.
    let script = quickstart.get("", "/x").await;
    assert!(!script.parts.headers.contains_key("set-cookie"));
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn the_cookie_of_the_gateway_reaches_no_workspace() {
    let quickstart = Quickstart::start().await;
    let seen = quickstart.get("alice", "/headers.json").await.json();
    assert_eq!(seen["headers"]["cookie"], "other=1");
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

#[tokio::test]
async fn the_terminal_shows_where_each_request_goes() {
    let mut quickstart = Quickstart::start().await;
    quickstart.get("alice", "/a?secret=1").await;
    let line = quickstart.line("alice ").await;
    assert!(line.contains("GET /a -> http://code-alice:") && !line.contains("secret"), "{line}");
    quickstart.say("bob", "hello").await.unwrap();
    assert!(quickstart.line("bob ").await.contains("GET /echo (upgrade) -> http://code-bob:"));
    quickstart.get("zoe", "/").await;
    assert!(quickstart.line("zoe ").await.ends_with("GET / -> 404 workspace-not-found"));
    quickstart.ask("eve", Request::get("/").header("accept", "text/html"), Bytes::new()).await;
    assert!(quickstart.line("eve ").await.ends_with("GET / -> 403 not-allowed"));
    quickstart.get("", "/x").await;
    assert!(quickstart.line("nobody ").await.ends_with("GET /x -> 401 identity-missing"));
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

/// A program in the place of code-server, in a folder of its own. It writes its process id to
/// `pids`, and answers every request with the status that it is made with.
fn stand_in(folder: &Path, status: u16) {
    let script = format!(
        "#!/usr/bin/env python3
import http.server, os, sys
host, port = sys.argv[sys.argv.index('--bind-addr') + 1].rsplit(':', 1)
with open({pids:?}, 'a') as pids: pids.write(f'{{host}} {{os.getpid()}}\\n')
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/end': os._exit(7)
        self.send_response({status}); self.send_header('Content-Length', '9'); self.end_headers()
        self.wfile.write(b'its page\\n')
    def log_message(self, *_): pass
print('stand-in serves', flush=True)
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
",
        pids = folder.join("pids")
    );
    let program = folder.join("code-server");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The process ids of the stand-ins at an address, in the order of their starts.
fn pids(folder: &Path, host: &str) -> Vec<i32> {
    let text = std::fs::read_to_string(folder.join("pids")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(at, _)| *at == host).map(|(_, pid)| pid.parse().unwrap()).collect()
}

fn with_stand_ins(folder: &Path) -> Option<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("python3").is_file()) {
        skip("no python3 is on PATH");
        return None;
    }
    let mut folders = vec![folder.to_owned()];
    folders.extend(std::env::split_paths(&path));
    let mut command = Command::new(program());
    command.arg("--code-server").env("PATH", std::env::join_paths(folders).unwrap());
    Some(command)
}

async fn all_gone(pids: &[i32]) {
    let gone = async {
        for pid in pids {
            // A process whose parent has not waited for it yet has ended, too.
            let is_there = || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
            };
            while is_there() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    timeout(PATIENCE, gone).await.expect("the code-servers end");
}

/// Even a quickstart that is killed leaves no code-server behind.
#[tokio::test]
async fn code_servers_are_told_started_again_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    stand_in(folder.path(), 200);
    let Some(mut command) = with_stand_ins(folder.path()) else { return };
    let mut quickstart = Quickstart::start_as(&mut command).await;
    let starts: Vec<_> =
        quickstart.before.iter().filter(|line| line.starts_with("starts code-server for ")).collect();
    assert_eq!(starts.len(), 3, "{:?}", quickstart.before);
    let log = starts[0].rsplit_once("; its log is ").unwrap().1;
    assert!(std::fs::read_to_string(log).unwrap().contains("stand-in serves"));
    assert_eq!(quickstart.get("alice", "/").await.body, "its page\n");

    let first = pids(folder.path(), "127.0.0.2");
    let _ = quickstart.get("alice", "/end").await;
    let line = quickstart.line("the code-server of alice ended").await;
    assert!(line.contains("(exit status: 7) and is started again; its log is "), "{line}");
    let again = async {
        while quickstart.get("alice", "/").await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("it serves again");
    assert_eq!(pids(folder.path(), "127.0.0.2").len(), first.len() + 1);

    let running: Vec<_> = (2..5).flat_map(|host| pids(folder.path(), &format!("127.0.0.{host}"))).collect();
    assert_eq!(running.len(), 4);
    quickstart.process.kill().await.unwrap();
    all_gone(&running).await;
}

#[tokio::test]
async fn a_code_server_that_fails_is_told_with_its_log() {
    let folder = tempfile::tempdir().unwrap();
    stand_in(folder.path(), 500);
    let Some(mut command) = with_stand_ins(folder.path()) else { return };
    let said = failure_of(command.args(["--port", "0"])).await;
    let expected = "the workspace of alice answered 20 times with 500 Internal Server Error: its page; \
                    its log ends with:\nstand-in serves";
    assert!(said.contains(expected), "{said}");
    all_gone(&pids(folder.path(), "127.0.0.2")).await;
    // One that can't run at all.
    let broken = folder.path().join("code-server");
    std::fs::write(&broken, "#!/bin/sh\necho needs Node 24 >&2\nexit 3\n").unwrap();
    let said = failure_of(with_stand_ins(folder.path()).unwrap().args(["--port", "0"])).await;
    assert!(
        said.contains("ended 3 times soon after its start (exit status: 3) and said:\nneeds Node 24"),
        "{said}"
    );
}

#[tokio::test]
async fn an_upload_arrives_whole() {
    let quickstart = Quickstart::start().await;
    let upload = Bytes::from(vec![b'x'; 3_000_000]);
    let request = Request::builder().method(Method::POST).uri("/");
    let answer = quickstart.ask("bob", request, upload).await;
    assert_eq!(answer.body, "bob's workspace received 3000000 bytes\n");
    assert_eq!(quickstart.stop().await.code(), Some(0));
}

/// Open WebSockets do not keep it from ending.
#[tokio::test]
async fn it_ends_while_a_websocket_is_open() {
    let quickstart = Quickstart::start().await;
    let mut request = format!("ws://{}/echo", quickstart.gateway).into_client_request().unwrap();
    request.headers_mut().insert("cookie", "quickstart_user=alice".try_into().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(quickstart.stop().await.code(), Some(0));
    assert!(!matches!(socket.next().await, Some(Ok(_))), "the WebSocket is closed");
}

/// Starts it with arguments that it can't follow, and returns what it says.
async fn failure_of(command: &mut Command) -> String {
    let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    let output = output.expect("the quickstart ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_its_flag() {
    let taken = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = failure_of(Command::new(program()).args(["--port", &port.to_string()])).await;
    assert!(said.starts_with(&format!("quickstart: listening at 127.0.0.1:{port}: ")), "{said}");
    assert!(said.contains("--port 0"), "{said}");
}

#[tokio::test]
async fn without_a_code_server_it_says_how_to_get_one() {
    let said = failure_of(Command::new(program()).args(["--port=0", "--code-server"]).env("PATH", "")).await;
    assert!(said.starts_with("quickstart: there is no code-server on PATH."), "{said}");
    assert!(said.contains("npm install --global code-server") && said.contains("Node 24"), "{said}");
}
