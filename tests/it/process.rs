//! The life of the real process: who takes over from whom, what ends it, and who
//! may connect to it.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apisix_plugin_runner::gateway::{ClientRequest, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::RenameFlags;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::peer::{PATIENCE, Peer, until};
use crate::program::{BINARY, Program, Runner, kube_coders, listen_address, run};
use crate::skip::skip;
use crate::wire::{Call, extra_info};
use crate::workspace::{self, Behaviour, Edge};

const UPSTREAM: &str = "user-upstream";
const CONF: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:1"}"#;

/// A user who is not root, as a gateway's workers are.
pub(crate) const NOBODY: &str = "65534";

/// A folder that every user can look into.
pub(crate) fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

/// A call that waits for the answer to a question.
fn call_in_flight(socket: &Path) -> Peer {
    let mut peer = Peer::connect(socket);
    let token = peer.prepare(UPSTREAM, CONF);
    let question = peer.ask(&Call::new(1, token).frame());
    assert_eq!(question.question().as_deref(), Some("request_id"));
    peer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_is_replaced_under_load_loses_no_call() {
    const CLIENTS: usize = 8;
    const SUCCESSORS: usize = 5;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut runner = Runner::start_at(&socket, &[]);
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (gateway, stop, calls) = (kube_coders::gateway(&socket), Arc::clone(&stop), calls.clone());
            tokio::spawn(async move {
                let route = Route::new("1").plugin(UPSTREAM, CONF);
                let userinfo = STANDARD.encode(r#"{"sub": "alice"}"#);
                let request = ClientRequest::get("/").added_header("X-Userinfo", userinfo);
                let mut lost = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    calls.send_modify(|calls| *calls += 1);
                    match gateway.try_call(&route, &request).await {
                        Ok(Outcome::Forward(_)) => {}
                        other => lost.push(format!("{other:?}")),
                    }
                }
                lost
            })
        })
        .collect();
    let some_calls = async || {
        let mut calls = calls.subscribe();
        let enough = *calls.borrow() + 200;
        timeout(PATIENCE, calls.wait_for(|calls| *calls > enough)).await.expect("calls").unwrap();
    };
    for _ in 0..SUCCESSORS {
        some_calls().await;
        let successor = Runner::start_at(&socket, &[]);
        runner.program.signal(Signal::SIGTERM);
        assert!(runner.program.ended().success());
        runner = successor;
    }
    some_calls().await;
    stop.store(true, Ordering::Relaxed);
    let mut lost = Vec::new();
    for client in clients {
        lost.extend(client.await.unwrap());
    }
    let calls: u64 = *calls.borrow();
    assert!(lost.is_empty(), "{} of {calls} calls were lost: {lost:#?}", lost.len());
}

#[test]
fn a_signal_lets_calls_finish_and_the_process_end() {
    // Tests that run without a terminal may inherit that this signal is ignored.
    let ignored = run(Command::new("grep").args(["SigIgn", "/proc/self/status"])).stdout;
    let may_hang_up = !ignored.trim_end().ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']);
    let hang_up = may_hang_up.then_some(Signal::SIGHUP);
    for signal in [Signal::SIGTERM, Signal::SIGINT].into_iter().chain(hang_up) {
        let mut runner = Runner::start(&[]);
        let mut peer = call_in_flight(&runner.socket);
        let idle = &mut Peer::connect(&runner.socket);
        idle.prepare(UPSTREAM, CONF);
        runner.program.signal(signal);
        runner.program.line(&["told to end", signal.as_str()]);
        assert_eq!(idle.receive(), None, "an idle connection is closed");
        until("the end of the socket's file", || (!runner.socket.exists()).then_some(()));
        assert!(runner.program.is_running(), "a call is in flight");
        assert_eq!(peer.ask(&extra_info(None)).refusal().0, 401);
        assert!(runner.program.ended().success());
        runner.program.line(&["drained"]);
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGINT), (Signal::SIGINT, Signal::SIGTERM)] {
        let mut runner = Runner::start(&["--call-deadline", "59s"]);
        let mut peer = call_in_flight(&runner.socket);
        runner.program.signal(first);
        runner.program.line(&["told to end", first.as_str()]);
        runner.program.signal(second);
        runner.program.ended();
        runner.program.line(&["ended before everything was finished"]);
        assert_eq!(peer.receive(), None);
        assert!(!runner.socket.exists());
    }
}

/// What is logged decides nothing.
#[test]
fn a_runner_serves_and_ends_whatever_it_logs() {
    for level in ["error", "warn", "info", "debug", "trace"] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let mut command = Command::new(BINARY);
        command.args(["run", "--log-level", level, "--listen-address", &listen_address(&socket)]);
        command.args(["--forwarder-address", "127.0.0.1:0"]);
        let mut program = Program::start(&mut command);
        until("a socket's file", || socket.exists().then_some(()));
        let mut idle = Peer::connect(&socket);
        idle.prepare(UPSTREAM, CONF);
        program.signal(Signal::SIGTERM);
        assert_eq!(idle.receive(), None);
        assert_eq!(program.ended().code(), Some(0), "{level}");
    }
}

/// A gateway prepares its confs again at each reload, and the log says it once.
#[test]
fn a_risky_template_is_logged_once_and_with_its_full_name() {
    let runner = Runner::start(&[]);
    let mut peer = Peer::connect(&runner.socket);
    let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{email}.ns:1"}"#;
    let other = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}.ns.svc:1"}"#;
    for conf in [conf, conf, other] {
        peer.prepare(UPSTREAM, conf);
    }
    let lines = [
        ["code-{email}.ns", "write code-{email}.ns.svc.cluster.local"],
        ["code-{email}.ns", "the claim email is not unique"],
        ["code-{sub}.ns.svc", "write code-{sub}.ns.svc.cluster.local"],
    ];
    for [host, risk] in lines {
        runner.program.line(&["the upstream of a conf is risky", host, risk]);
    }
    let risky = runner.program.lines().into_iter().filter(|line| line.contains("is risky"));
    assert_eq!(risky.count(), lines.len());
}

#[test]
fn a_runner_under_nohup_outlives_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut command = Command::new("nohup");
    command.arg(BINARY).args(["run", "--listen-address", &listen_address(&socket)]);
    command.args(["--forwarder-address", "127.0.0.1:0"]);
    let mut runner = Runner::from_program(Program::start(&mut command), &socket);
    runner.program.signal(Signal::SIGHUP);
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    runner.program.signal(Signal::SIGTERM);
    runner.program.ended();
    assert!(!runner.program.lines().iter().any(|line| line.contains("SIGHUP")));
}

/// A process that may read the folder may lock it for as long as it likes.
#[test]
fn a_lock_on_the_folder_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let lock = fs::File::open(folder.path()).unwrap();
    lock.lock().unwrap();
    let mut first = Runner::start_at(&socket, &[]);
    let mut second = Runner::start_at(&socket, &[]);
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    for runner in [&mut first, &mut second] {
        runner.program.signal(Signal::SIGTERM);
        assert!(runner.program.ended().success());
    }
    assert!(!socket.exists());
}

#[test]
fn a_drain_has_a_deadline() {
    let mut runner = Runner::start(&["--call-deadline", "59s", "--drain-deadline", "100ms"]);
    let mut peer = call_in_flight(&runner.socket);
    runner.program.signal(Signal::SIGTERM);
    assert!(runner.program.ended().success());
    runner.program.line(&["drain deadline reached", "connections=1"]);
    assert_eq!(peer.receive(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_two_runners_live_at_one_socket_each_takes_the_others_stamps() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let workspace = workspace::start("alice", (Ipv4Addr::LOCALHOST, 0).into(), Behaviour::Serve).await;
    let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://{workspace}"}}"#);
    let route = Route::new("1").plugin(UPSTREAM, &conf);
    let userinfo = STANDARD.encode(r#"{"sub": "alice"}"#);
    let request = ClientRequest::get("/").added_header("X-Userinfo", userinfo);

    let first = Runner::start_at(&socket, &[]);
    let by_first = Edge::new(&socket, first.forwarder).decide(&route, &request).await.unwrap();
    // The second takes the socket over, and shares the forwarder's port meanwhile.
    let shared = first.forwarder.to_string();
    let second = Runner::start_at(&socket, &["--forwarder-address", &shared]);
    assert_eq!(second.forwarder, first.forwarder);
    let edge = Edge::new(&socket, first.forwarder);
    let by_second = edge.decide(&route, &request).await.unwrap();
    // Which of the two a connection reaches is the kernel's choice.
    for forwarded in [by_first, by_second] {
        for _ in 0..32 {
            let seen = edge.forward(&forwarded, &[]).await;
            assert_eq!(seen.status, 200, "{seen:?}");
        }
    }

    // A runner at another socket is another's, and its stamps would be refused.
    let elsewhere = listen_address(&folder.path().join("another.sock"));
    let other = kube_coders(&["run", "--listen-address", &elsewhere, "--forwarder-address", &shared]);
    assert_eq!(other.code, Some(2));
    let last = other.stderr.lines().last().unwrap();
    assert_eq!(
        last,
        format!(
            "kube-coders: --forwarder-address {shared}: another process listens there, and it is not a runner that hands over to this one: end it, or choose another address"
        )
    );
}

/// An administrator starts a second runner at the same socket, and ends it again.
#[test]
fn a_socket_file_that_another_runner_removed_is_recreated() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let first = Runner::start_at(&socket, &[]);
    let mut second = Runner::start_at(&socket, &[]);
    first.program.line(&["another runner takes over"]);
    second.program.signal(Signal::SIGTERM);
    second.program.ended();
    first.program.line(&["the socket's file was gone: it is recreated"]);
    until("a socket's file", || socket.exists().then_some(()));
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    fs::remove_file(&socket).unwrap();
    until("a socket's file", || socket.exists().then_some(()));
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    // Each of these has cost it nothing that stays.
    let sockets = || {
        let files = fs::read_dir(format!("/proc/{}/fd", first.program.pid())).unwrap();
        files.filter(|file| is_socket(&file.as_ref().unwrap().path())).count()
    };
    let before = sockets();
    for _ in 0..5 {
        fs::remove_file(&socket).unwrap();
        until("a socket's file", || socket.exists().then_some(()));
    }
    until("sockets that are closed", || (sockets() <= before).then_some(()));
    // A file that can't be recreated is logged once, and recreated as soon as it can be.
    let (here, other) = (nix::fcntl::AT_FDCWD, folder.path().join("directory"));
    fs::create_dir(&other).unwrap();
    // In one step: between two, the runner would recreate the file.
    nix::fcntl::renameat2(here, &other, here, &socket, RenameFlags::RENAME_EXCHANGE).unwrap();
    first.program.line(&["ERROR", "something else than a socket"]);
    // The tries that fail now are not logged, so there is nothing to wait for: their time passes.
    std::thread::sleep(std::time::Duration::from_millis(500));
    fs::remove_dir(&socket).unwrap();
    until("a socket", || is_listening(&socket).then_some(()));
    let errors = first.program.lines().iter().filter(|line| line.contains("ERROR")).count();
    assert_eq!(errors, 1, "{:?}", first.program.lines());
    std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
    fs::rename(folder.path().join("link"), &socket).unwrap();
    first.program.line(&["ERROR", "something else than a socket"]);
    fs::remove_file(&socket).unwrap();
    until("a socket", || is_listening(&socket).then_some(()));
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    let mut first = first;
    first.program.signal(Signal::SIGTERM);
    assert!(first.program.ended().success());
    assert!(!socket.exists());
}

fn is_socket(file: &Path) -> bool {
    fs::read_link(file).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}

fn is_listening(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

#[test]
fn the_socket_s_file_goes_with_its_last_owner() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut first = Runner::start_at(&socket, &[]);
    let mut second = Runner::start_at(&socket, &[]);
    first.program.signal(Signal::SIGTERM);
    first.program.ended();
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    second.program.signal(Signal::SIGTERM);
    second.program.ended();
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["runner.sock.key", "runner.sock.subject-key"], "only keys stay, for the next runner");
}

/// As APISIX starts a runner, with no variable more.
pub(crate) fn spawned_by(program: &str, socket: &Path, expire: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("APISIX_LISTEN_ADDRESS", listen_address(socket)).env("APISIX_CONF_EXPIRE_TIME", expire);
    command
}

#[test]
fn a_runner_that_the_gateway_starts_needs_nothing_but_its_environment() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("apisix-1.sock");
    let mut command = spawned_by(BINARY, &socket, "1");
    let runner = Program::start(command.args(["run", "--forwarder-address", "127.0.0.1:0"]));
    let line = runner.line(&["runner listens", "mode=\"0666\"", "children of the gateway's process"]);
    assert!(line.contains(socket.to_str().unwrap()), "{line}");
    let runner = Runner::from_program(runner, &socket);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    // The token is kept for 1.2 times the second that the gateway keeps it.
    let mut peer = Peer::connect(&runner.socket);
    let token = peer.prepare(UPSTREAM, CONF);
    until("the end of a token", || {
        let answer = peer.ask(&Call::new(1, token).frame());
        match answer.error_code() {
            Some(code) => {
                assert_eq!(code, 2);
                Some(())
            }
            None => {
                assert_eq!(peer.ask(&extra_info(None)).refusal().0, 401);
                None
            }
        }
    });
}

#[test]
fn a_runner_does_not_outlive_the_gateway_that_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("apisix-1.sock");
    let mut agent = spawned_by("sh", &socket, "3600");
    agent.args(["-c", "\"$0\" run --forwarder-address 127.0.0.1:0; :", BINARY]);
    let agent = Program::start(&mut agent);
    agent.line(&["forwarder listens"]);
    agent.signal(Signal::SIGKILL);
    agent.line(&["the gateway that started this runner is gone"]);
    agent.all_ended();
    until("the end of the socket's file", || (!socket.exists()).then_some(()));
}

/// The binary in a place from which every user can run it, if this test can become another
/// user.
pub(crate) fn for_another_user(folder: &TempDir) -> Option<PathBuf> {
    program_for_another_user(folder, Path::new(BINARY))
}

/// A copy of `program` that every user can run, if this test can become another user.
pub(crate) fn program_for_another_user(folder: &TempDir, program: &Path) -> Option<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        skip("only root can connect as another user");
        return None;
    }
    if run(Command::new("setpriv").arg("--version")).code != Some(0) {
        skip("setpriv (util-linux) is missing");
        return None;
    }
    let copy = folder.path().join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    Some(copy)
}

/// The exit code of `health` as another user.
fn health_as_another_user(binary: &Path, socket: &Path) -> Option<i32> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(binary);
    run(command.args(["health", "--listen-address", &listen_address(socket)])).code
}

#[test]
fn another_user_is_refused_by_name_and_admitted_by_flag() {
    let folder = open_folder();
    let Some(binary) = for_another_user(&folder) else { return };
    let socket = folder.path().join("runner.sock");
    let runner = Runner::start_at(&socket, &["--socket-mode", "0666"]);
    for _ in 0..3 {
        assert_eq!(health_as_another_user(&binary, &socket), Some(1));
    }
    runner.program.line(&["peer refused", "uid=65534", "--allow-uid 65534"]);
    Peer::connect(&socket).prepare(UPSTREAM, CONF);
    let lines = runner.program.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("peer refused")).count(), 1, "{lines:?}");

    let runner = Runner::start_at(&socket, &["--allow-uid", NOBODY]);
    assert_eq!(health_as_another_user(&binary, &socket), Some(0));
    runner.program.line(&["runner listens", "0666", "uid 0, 65534"]);

    let _runner = Runner::start_at(&socket, &[]);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(health_as_another_user(&binary, &socket), Some(1));
}

#[test]
fn the_gateway_s_workers_are_admitted_whatever_their_user() {
    // The master starts the privileged agent, which starts the runner, and then
    // the workers, which are its own children.
    const MASTER: &str = r#"
        sh -c '"$0" run --forwarder-address 127.0.0.1:0; :' "$0" &
        nobody="setpriv --reuid 65534 --regid 65534 --clear-groups $0 health"
        read -r _
        $nobody 2>&1; echo "worker $?" >&2
        sh -c "$nobody; exit \$?" 2>&1; echo "stranger $?" >&2
        read -r _
    "#;
    let folder = open_folder();
    let Some(binary) = for_another_user(&folder) else { return };
    let socket = folder.path().join("apisix-1.sock");
    let mut master = spawned_by("sh", &socket, "3600");
    let mut master = Program::start(master.args(["-c", MASTER]).arg(&binary));
    master.line(&["forwarder listens"]);
    master.say("the runner listens");
    assert!(master.line(&["worker "]).ends_with("worker 0"));
    assert!(master.line(&["stranger "]).ends_with("stranger 1"));
    master.line(&["peer refused", "uid=65534", "--allow-uid 65534"]);
}
