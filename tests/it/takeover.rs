//! Restarts without a cut: real processes take over from each other under requests
//! and WebSockets, and not one of these fails.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apisix_plugin_runner::gateway::{ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::peer::{PATIENCE, Peer, until};
use crate::process::{NOBODY, for_another_user, open_folder};
use crate::program::{BINARY, Program, Runner, kube_coders, listen_address};
use crate::wire::{Call, extra_info};
use crate::workspace::{self, Behaviour, head_of, header};

const CONF: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://a:1"}"#;

const TAKEOVERS: usize = 10;
const WEBSOCKETS: usize = 200;

/// How many more are opened behind each takeover.
const NEW_WEBSOCKETS: usize = 4;

/// How often a request is sent.
const PACE: Duration = Duration::from_millis(5);

/// How often each WebSocket has something to say.
const TALK: Duration = Duration::from_millis(200);

/// How many requests there are between two takeovers.
const BETWEEN: u64 = 40;

/// How a runner is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Next to the gateway: the new one listens, then the old one is told to end.
    NextToGateway,
    /// By a gateway that reloads: the new one is started, the old one told to end, and
    /// killed.
    Spawned,
    /// By a service manager: the old one ends, then the new one is started.
    OneByOne,
}

/// A gateway with keep-alive connections on both sides of the runner.
struct Edge {
    gateway: Gateway,
    route: Route,
    forwarder: SocketAddr,
    idle: Mutex<Vec<TcpStream>>,
}

impl Edge {
    fn new(socket: &Path, forwarder: SocketAddr, workspace: SocketAddr) -> Arc<Self> {
        let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://{workspace}"}}"#);
        let route = Route::new("1").plugin("user-upstream", &conf);
        Arc::new(Self { gateway: kube_coders::gateway(socket), route, forwarder, idle: Mutex::default() })
    }

    async fn decide(&self, request: ClientRequest) -> Result<ForwardedRequest, String> {
        let userinfo = STANDARD.encode(r#"{"sub": "alice"}"#);
        let request = request.added_header("X-Userinfo", userinfo);
        match self.gateway.try_call(&self.route, &request).await {
            Ok(Outcome::Forward(forwarded)) => Ok(forwarded),
            other => Err(format!("the call: {other:?}")),
        }
    }

    /// An idle connection that has not ended, or a new one. A gateway hears of an end
    /// before it uses a connection, unless the two cross.
    async fn connection(&self) -> Result<TcpStream, String> {
        while let Some(idle) = self.idle.lock().unwrap().pop() {
            match idle.try_read(&mut [0]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(idle),
                _ => {}
            }
        }
        TcpStream::connect(self.forwarder).await.map_err(|error| format!("connecting: {error}"))
    }

    async fn request(&self) -> Result<(), String> {
        let forwarded = self.decide(ClientRequest::get("/")).await?;
        let mut stream = self.connection().await?;
        let exchange = async {
            stream.write_all(head_of(&forwarded).as_bytes()).await?;
            read_head(&mut stream).await
        };
        let (head, early) =
            exchange.await.map_err(|error: std::io::Error| format!("the request: {error}"))?;
        let length: usize = header(&head, "content-length").unwrap_or_default().parse().unwrap_or(0);
        let mut rest = vec![0; length.saturating_sub(early.len())];
        stream.read_exact(&mut rest).await.map_err(|error| format!("the body: {error}"))?;
        let body = String::from_utf8_lossy(&[early, rest].concat()).into_owned();
        if !head.starts_with("HTTP/1.1 200 ") || !body.starts_with("alice got 0 bytes") {
            return Err(format!("the answer: {head}{body}"));
        }
        if !header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.idle.lock().unwrap().push(stream);
        }
        Ok(())
    }

    async fn open_websocket(&self) -> Result<WebSocketStream<TcpStream>, String> {
        let request = ClientRequest::get("/socket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Upgrade", "websocket");
        let forwarded = self.decide(request).await?;
        let mut stream = self.connection().await?;
        let head = head_of(&forwarded).replacen("\r\n", "\r\nConnection: Upgrade\r\n", 1);
        stream.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
        let (head, early) = read_head(&mut stream).await.map_err(|error| format!("the upgrade: {error}"))?;
        if !head.starts_with("HTTP/1.1 101 ") || !early.is_empty() {
            return Err(format!("the upgrade's answer: {head}"));
        }
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok((String::from_utf8(read).unwrap(), rest));
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Says something and hears its echo, over and over, until everything has been said.
async fn talk(mut socket: WebSocketStream<TcpStream>, stop: Arc<AtomicBool>) -> Result<u64, String> {
    let mut pace = interval(TALK);
    let mut said = 0;
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        socket.send(format!("{said}").into()).await.map_err(|error| format!("after {said}: {error}"))?;
        let heard = timeout(PATIENCE, socket.next()).await.map_err(|_| format!("no echo of {said}"))?;
        match heard {
            Some(Ok(heard)) if heard.to_text().is_ok_and(|text| text == format!("alice: {said}")) => {}
            other => return Err(format!("after {said}: {other:?}")),
        }
        said += 1;
    }
    Ok(said)
}

/// Sends a request every 5 ms until it is stopped; what failed.
async fn requests(edge: Arc<Edge>, done: watch::Sender<u64>, stop: Arc<AtomicBool>) -> Vec<String> {
    let failed = Arc::<Mutex<Vec<String>>>::default();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = tokio::task::JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let (edge, failed, done) = (Arc::clone(&edge), Arc::clone(&failed), done.clone());
        running.spawn(async move {
            let outcome = timeout(PATIENCE, edge.request()).await;
            if let Err(why) = outcome.unwrap_or_else(|_| Err("no answer".to_owned())) {
                failed.lock().unwrap().push(why);
            }
            done.send_modify(|done| *done += 1);
        });
        while running.try_join_next().is_some() {}
    }
    running.join_all().await;
    Arc::try_unwrap(failed).unwrap().into_inner().unwrap()
}

/// Starts runners at one socket, one after another.
struct Starter {
    way: Way,
    socket: PathBuf,
    forwarder: String,
}

impl Starter {
    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env_clear().args(["run", "--forwarder-address", &self.forwarder]);
        // All of this is one subject's.
        command.args(["--max-subject-connections", "4096"]);
        match self.way {
            Way::NextToGateway => command.arg("--listen-address").arg(listen_address(&self.socket)),
            Way::OneByOne => {
                command.arg("--drain-apart").arg("--listen-address").arg(listen_address(&self.socket))
            }
            Way::Spawned => command.env("APISIX_LISTEN_ADDRESS", listen_address(&self.socket)),
        };
        command
    }

    fn start(&self) -> Program {
        Program::start(&mut self.command())
    }

    fn replace(&self, old: &mut Program) -> Program {
        match self.way {
            Way::NextToGateway => {
                let new = self.start();
                new.line(&["forwarder listens"]);
                old.signal(Signal::SIGTERM);
                new
            }
            Way::Spawned => {
                let new = self.start();
                old.signal(Signal::SIGTERM);
                old.line(&["told to end"]);
                old.signal(Signal::SIGKILL);
                old.ended();
                new.line(&["forwarder listens"]);
                new
            }
            Way::OneByOne => {
                old.signal(Signal::SIGTERM);
                assert!(old.ended().success());
                let new = self.start();
                new.line(&["forwarder listens"]);
                new
            }
        }
    }
}

async fn ten_takeovers_cost_nothing(way: Way) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let workspace = workspace::start("alice", (Ipv4Addr::LOCALHOST, 0).into(), Behaviour::Serve).await;
    let mut starter = Starter { way, socket: socket.clone(), forwarder: "127.0.0.1:0".to_owned() };
    let first = Runner::from_program(starter.start(), &socket);
    starter.forwarder = first.forwarder.to_string();
    let edge = Edge::new(&socket, first.forwarder, workspace);
    let mut runner = first.program;

    let (stop, done) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
    let mut talks: Vec<JoinHandle<Result<u64, String>>> = Vec::new();
    let mut more_websockets = async |count: usize| {
        for _ in 0..count {
            let socket = edge.open_websocket().await.unwrap();
            talks.push(tokio::spawn(talk(socket, Arc::clone(&stop))));
        }
    };
    more_websockets(WEBSOCKETS).await;
    let asking = tokio::spawn(requests(Arc::clone(&edge), done.clone(), Arc::clone(&stop)));
    let some_requests = async || {
        let mut done = done.subscribe();
        let enough = *done.borrow() + BETWEEN;
        done.wait_for(|done| *done >= enough).await.unwrap();
    };
    let mut predecessors = Vec::new();
    for _ in 0..TAKEOVERS {
        some_requests().await;
        let successor = tokio::task::block_in_place(|| starter.replace(&mut runner));
        predecessors.push(std::mem::replace(&mut runner, successor));
        more_websockets(NEW_WEBSOCKETS).await;
    }
    some_requests().await;
    stop.store(true, Ordering::Relaxed);
    let failed = asking.await.unwrap();
    assert!(
        failed.is_empty(),
        "{way:?}: {} of {done:?} requests failed: {:#?}",
        failed.len(),
        failed.first()
    );
    let mut said = 0;
    let mut closed = Vec::new();
    for talk in talks {
        match talk.await.unwrap() {
            Ok(count) => said += count,
            Err(why) => closed.push(why),
        }
    }
    assert!(closed.is_empty(), "{way:?}: {} WebSockets were closed: {:#?}", closed.len(), closed.first());
    assert!(said as usize > WEBSOCKETS * 2, "{said} messages");
    assert!(*done.borrow() > TAKEOVERS as u64 * BETWEEN);
    // It was no luck. Now that nothing is under way, a connection of each kind waits; both
    // go to one more successor, and are used there.
    edge.request().await.unwrap();
    let successor = tokio::task::block_in_place(|| starter.replace(&mut runner));
    predecessors.push(std::mem::replace(&mut runner, successor));
    edge.request().await.unwrap();
    tokio::task::block_in_place(|| {
        until("connections that were handed over", || {
            let ends = runner.lines().into_iter().filter(|line| line.contains("has handed over"));
            let (calls, requests) = ends.fold((0, 0), |(calls, requests), line| {
                (calls + count(&line, "calls="), requests + count(&line, "requests="))
            });
            (calls > 0 && requests > 0).then_some(())
        });
    });
}

fn count(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(name).unwrap();
    rest.split(' ').next().unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_takeovers_of_a_runner_outside_the_gateway_cost_nothing() {
    ten_takeovers_cost_nothing(Way::NextToGateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_of_the_gateway_cost_nothing() {
    ten_takeovers_cost_nothing(Way::Spawned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_restarts_by_a_service_manager_cost_nothing() {
    ten_takeovers_cost_nothing(Way::OneByOne).await;
}

/// A runner that the test's gateway has started, with a WebSocket open through it.
struct Kept {
    keeper: Program,
    runner: Pid,
    socket: PathBuf,
    edge: Arc<Edge>,
    websocket: WebSocketStream<TcpStream>,
    _folder: TempDir,
}

impl Kept {
    /// Started by this command, which its arguments follow.
    async fn start(command: &mut Command, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let workspace = workspace::start("alice", (Ipv4Addr::LOCALHOST, 0).into(), Behaviour::Serve).await;
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("APISIX_LISTEN_ADDRESS", listen_address(&socket));
        command.args(["run", "--forwarder-address", "127.0.0.1:0"]).args(args);
        let Runner { program: keeper, forwarder, .. } =
            Runner::from_program(Program::start(command), &socket);
        let line = keeper.line(&["started the process that serves"]);
        let pid = line.rsplit_once("runner=").unwrap().1.trim().parse().unwrap();
        let edge = Edge::new(&socket, forwarder, workspace);
        let websocket = edge.open_websocket().await.unwrap();
        Self { keeper, runner: Pid::from_raw(pid), socket, edge, websocket, _folder: folder }
    }

    async fn says(&mut self, text: &'static str) {
        self.websocket.send(text.into()).await.unwrap();
        let heard = timeout(PATIENCE, self.websocket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(heard.to_text().unwrap(), format!("alice: {text}"));
    }

    /// Waits until nothing listens any more; how long it took.
    fn until_no_listener_is_left(&self) -> Duration {
        let since = Instant::now();
        until("the end of the listeners", || {
            let is_served = std::net::TcpStream::connect(self.edge.forwarder).is_ok();
            (!is_served && !self.socket.exists()).then_some(())
        });
        since.elapsed()
    }

    fn runs(&self) -> bool {
        // One that has ended may still be a zombie.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.runner)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_a_killed_runner_hold_no_listener_and_end_at_the_deadline() {
    let mut kept = Kept::start(&mut Command::new(BINARY), &["--drain-deadline", "3s"]).await;
    kept.says("before").await;
    kept.keeper.signal(Signal::SIGTERM);
    kept.keeper.line(&["told to end"]);
    kept.keeper.signal(Signal::SIGKILL);
    kept.keeper.ended();
    kept.says("just behind").await;
    kept.until_no_listener_is_left();
    kept.says("without a listener").await;
    assert!(kept.runs());
    let close = timeout(PATIENCE, kept.websocket.next()).await.unwrap().unwrap().unwrap();
    let Message::Close(Some(close)) = close else { panic!("{close:?}") };
    assert_eq!(u16::from(close.code), 1001);
    until("the end of the runner", || (!kept.runs()).then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_without_a_word_leaves_no_listener_and_open_tunnels() {
    // The keeper and its gateway's agent; each may be what dies.
    for victim in ["agent", "keeper"] {
        let script = r#""$0" "$@"; :"#;
        let mut agent = Command::new("sh");
        agent.args(["-c", script, BINARY]);
        let mut kept = Kept::start(&mut agent, &[]).await;
        kept.says("before").await;
        match victim {
            "agent" => kept.keeper.signal(Signal::SIGKILL),
            _ => {
                kill(parent_of(kept.runner), Signal::SIGKILL).unwrap();
            }
        }
        let took = kept.until_no_listener_is_left();
        assert!(took < Duration::from_secs(2), "{victim}: {took:?}");
        kept.says("afterwards").await;
        kept.websocket.close(None).await.unwrap();
        until("the end of the runner", || (!kept.runs()).then_some(()));
    }
}

/// A process that starts the keeper as a service may end immediately.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_gateway_the_starter_of_the_keeper_need_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let script =
        r#""$0" run --drain-apart --forwarder-address 127.0.0.1:0 --listen-address "$1" & read -r _"#;
    let mut starter = Command::new("sh");
    starter.args(["-c", script, BINARY, &listen_address(&socket)]);
    let mut starter = Program::start(&mut starter);
    let line = starter.line(&["forwarder listens"]);
    let forwarder: SocketAddr = line.rsplit_once("address=").unwrap().1.trim().parse().unwrap();
    let line = starter.line(&["started the process that serves"]);
    let runner = Pid::from_raw(line.rsplit_once("runner=").unwrap().1.trim().parse().unwrap());
    let keeper = parent_of(runner);
    let shell = starter.pid();
    starter.say("go");
    starter.ended();
    until("another parent", || (parent_of(keeper) != shell).then_some(()));
    Peer::connect(&socket).prepare("user-upstream", CONF);
    let workspace = workspace::start("alice", (Ipv4Addr::LOCALHOST, 0).into(), Behaviour::Serve).await;
    let edge = Edge::new(&socket, forwarder, workspace);
    let mut websocket = edge.open_websocket().await.unwrap();
    // The keeper's word is the first signal, so the next one is the second.
    kill(keeper, Signal::SIGTERM).unwrap();
    starter.line(&["told to end by its keeper"]);
    websocket.send("still".into()).await.unwrap();
    assert_eq!(websocket.next().await.unwrap().unwrap().to_text().unwrap(), "alice: still");
    kill(runner, Signal::SIGTERM).unwrap();
    starter.line(&["ended before everything was finished"]);
    starter.all_ended();
    assert!(!socket.exists());
}

fn parent_of(pid: Pid) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    Pid::from_raw(stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap())
}

/// A process that is stopped and not ended answers no call.
#[test]
fn a_runner_that_hangs_is_replaced_without_its_help() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut hung = Runner::start_at(&socket, &[]);
    hung.program.signal(Signal::SIGSTOP);
    let shared = hung.forwarder.to_string();
    let mut command = Command::new(BINARY);
    command.args(["run", "--listen-address", &listen_address(&socket), "--forwarder-address", &shared]);
    let successor = Program::start(&mut command);
    let cure = format!("kill -KILL {}", hung.program.pid());
    successor.line(&["is not responding", &cure]);
    // It waits for the port, which it does not share.
    successor.line(&["another process has the forwarder's port"]);
    hung.program.signal(Signal::SIGKILL);
    hung.program.ended();
    let successor = Runner::from_program(successor, &socket);
    assert_eq!(successor.forwarder, hung.forwarder);
    Peer::connect(&socket).prepare("user-upstream", CONF);
    for _ in 0..20 {
        let mut gateway = std::net::TcpStream::connect(successor.forwarder).unwrap();
        gateway.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        gateway.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
}

/// A process of the same user would get requests with their cookies.
#[test]
fn no_other_process_listens_at_the_forwarder_s_port() {
    let folder = tempfile::tempdir().unwrap();
    let runner = Runner::start_at(&folder.path().join("runner.sock"), &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for address in [runner.forwarder, ([0, 0, 0, 0], runner.forwarder.port()).into()] {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.set_reuseport(true).unwrap();
            let error = socket.bind(address).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{address}");
        }
    });
}

/// Neither its socket nor its forwarder's port are taken from a runner by one that can't
/// start.
#[test]
fn a_runner_that_can_not_start_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let serving = Runner::start_at(&socket, &[]);
    let made = std::fs::metadata(&socket).unwrap().ino();
    let mut key = socket.clone().into_os_string();
    key.push(".key");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let starting = kube_coders(&[
        "run",
        "--listen-address",
        &listen_address(&socket),
        "--forwarder-address",
        &serving.forwarder.to_string(),
    ]);
    assert_eq!(starting.code, Some(2));
    assert!(starting.stderr.contains("(mode 0644): make it 0600"), "{}", starting.stderr);
    assert_eq!(std::fs::metadata(&socket).unwrap().ino(), made, "the same socket still");
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "nothing is left but socket, takeover and keys: {names:?}");
    Peer::connect(&socket).prepare("user-upstream", CONF);
}

/// The routes still name the old one.
#[test]
fn another_address_for_the_forwarder_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let old = Runner::start_at(&socket, &[]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = free.local_addr().unwrap().to_string();
    drop(free);
    let new = Runner::start_at(&socket, &["--forwarder-address", &other]);
    let (theirs, ours) = (format!("theirs={}", old.forwarder), format!("ours={other}"));
    new.program.line(&["WARN", "forwarder has another address", &theirs, &ours]);
}

/// Nor is it a runner of ours that hangs there.
#[test]
fn a_silent_process_at_the_forwarder_s_port_keeps_no_runner_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Its queue has room for one, and is full with two.
    let (address, _listener) = runtime.block_on(async {
        let listener = tokio::net::TcpSocket::new_v4().unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(1).unwrap();
        (listener.local_addr().unwrap(), listener)
    });
    let _queued = [(); 2].map(|()| std::net::TcpStream::connect(address).unwrap());
    let mut command = Command::new(BINARY);
    command.args(["run", "--listen-address", &listen_address(&socket)]);
    command.args(["--forwarder-address", &address.to_string()]);
    let mut waiting = Program::start(&mut command);
    waiting.line(&["another process has the forwarder's port"]);
    waiting.signal(Signal::SIGTERM);
    assert_eq!(waiting.ended().code(), Some(0));
    assert!(!waiting.lines().iter().any(|line| line.contains("end it, or choose")), "{:?}", waiting.lines());
}

#[test]
fn only_the_same_user_takes_over_and_only_from_the_same_user() {
    let folder = open_folder();
    let Some(binary) = for_another_user(&folder) else { return };
    let socket = folder.path().join("runner.sock");
    let _ours = Runner::start_at(&socket, &["--allow-uid", NOBODY]);
    let as_another_user = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&binary);
        command.args(["run", "--forwarder-address", "127.0.0.1:0"]);
        command
    };
    // The other user may call, and so connect to the socket. The takeover's socket is our user's.
    let mut theirs = Program::start(as_another_user().arg("--listen-address").arg(listen_address(&socket)));
    assert_eq!(theirs.ended().code(), Some(2), "they can't write to the folder");
    theirs.line(&["hands nothing over", "Permission denied"]);
    let takeover = std::fs::metadata(folder.path().join("runner.sock.takeover")).unwrap();
    assert_eq!(takeover.permissions().mode() & 0o777, 0o600);
    assert!(!theirs.lines().iter().any(|line| line.contains("takes over")), "{:?}", theirs.lines());
    Peer::connect(&socket).prepare("user-upstream", CONF);

    // Another user's runner that has the path hands us nothing.
    let open = tempfile::tempdir_in(folder.path()).unwrap();
    std::fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
    let socket = open.path().join("runner.sock");
    let mut theirs = as_another_user();
    theirs.arg("--listen-address").arg(listen_address(&socket)).args(["--socket-mode", "0666"]);
    let theirs = Runner::from_program(Program::start(&mut theirs), &socket);
    let key = key_file(&folder);
    let keys = ["--stamp-key-file", "--subject-key-file"].map(|flag| [flag, key.to_str().unwrap()]);
    let ours = Runner::start_at(&socket, keys.as_flattened());
    ours.program.line(&["hands nothing over", "it belongs to user 65534, not to the user of this runner"]);
    assert!(
        !ours.program.lines().iter().any(|line| line.contains("takes over")),
        "{:?}",
        ours.program.lines()
    );
    assert!(!theirs.program.lines().iter().any(|line| line.contains("takes over")));
}

fn key_file(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("stamps.key");
    std::fs::write(&path, [7; 32]).unwrap();
    path
}

/// A successor may die immediately, and the next one takes over.
#[test]
fn a_successor_that_is_killed_leaves_the_socket_to_its_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let first = Runner::start_at(&socket, &[]);
    for _ in 0..3 {
        let mut second = Runner::start_at(&socket, &[]);
        let asked = Peer::connect(&socket).prepare("user-upstream", CONF);
        assert_ne!(asked, 0);
        second.program.signal(Signal::SIGKILL);
        second.program.ended();
        until("a listener", || std::os::unix::net::UnixStream::connect(&socket).ok());
        Peer::connect(&socket).prepare("user-upstream", CONF);
    }
    first.program.line(&["the socket's file was gone: it is recreated"]);
}

/// The limit is where a new runner may be wanted.
#[test]
fn a_runner_that_is_full_can_still_be_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut first = Runner::start_at(&socket, &["--max-connections", "2"]);
    let mut peers = [(); 2].map(|()| Peer::connect(&socket));
    for peer in &mut peers {
        peer.prepare("user-upstream", CONF);
    }
    let shared = first.forwarder.to_string();
    let second = Runner::start_at(&socket, &["--forwarder-address", &shared]);
    second.program.line(&["takes over from the runner at this socket"]);
    first.program.signal(Signal::SIGTERM);
    assert!(first.program.ended().success());
    second.program.line(&["a predecessor has ended", "calls=2"]);
    for peer in &mut peers {
        peer.prepare("user-upstream", CONF);
    }
}

/// The middle one of three has ended long before the first has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_the_first_of_three_go_to_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let workspace = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut first = Runner::start_at(&socket, &[]);
    let shared = first.forwarder.to_string();
    let edge = Edge::new(&socket, first.forwarder, workspace.local_addr().unwrap());
    // A request is under way at the first one.
    let forwarded = edge.decide(ClientRequest::get("/")).await.unwrap();
    let mut slow = TcpStream::connect(first.forwarder).await.unwrap();
    slow.write_all(head_of(&forwarded).as_bytes()).await.unwrap();
    let (mut answering, _) = workspace.accept().await.unwrap();
    read_head(&mut answering).await.unwrap();
    let start = || Runner::start_at(&socket, &["--forwarder-address", &shared]);
    let mut second = tokio::task::block_in_place(start);
    first.program.signal(Signal::SIGTERM);
    first.program.line(&["forwarder drains"]);
    let third = tokio::task::block_in_place(start);
    second.program.signal(Signal::SIGTERM);
    assert!(tokio::task::block_in_place(|| second.program.ended()).success());
    // It is answered, and its connection goes on at the third.
    answering.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let (head, _) = read_head(&mut slow).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && header(&head, "connection").is_none(), "{head}");
    assert!(tokio::task::block_in_place(|| first.program.ended()).success());
    third.program.line(&["a predecessor has ended", "requests=1"]);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (head, _) = timeout(PATIENCE, read_head(&mut slow)).await.unwrap().unwrap();
    assert!(head.starts_with("HTTP/1.1 403 "), "no stamp, but an answer: {head}");
}

/// A gateway that reads nothing of what it is told still gets its answers, and its end.
#[test]
fn an_unread_log_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut command = Command::new(BINARY);
    command.env_clear().env("APISIX_LISTEN_ADDRESS", listen_address(&socket));
    command.args(["run", "--forwarder-address", "127.0.0.1:0"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut keeper = command.spawn().unwrap();
    until("a socket", || socket.exists().then_some(()));
    let mut peer = Peer::connect(&socket);
    let token = peer.prepare("user-upstream", CONF);
    // Each is refused, and told in a line: more than both pipes take.
    for number in 0..3000 {
        peer.ask(&Call::new(number, token).frame());
        assert_eq!(peer.ask(&extra_info(None)).refusal().0, 401);
    }
    kill(Pid::from_raw(i32::try_from(keeper.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ended = until("the end of the keeper", || keeper.try_wait().unwrap());
    assert!(ended.success());
    until("the end of the runner", || (!socket.exists()).then_some(()));
}
