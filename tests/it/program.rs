//! The real binary, started, read and measured.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::peer::{PATIENCE, until};

/// The binary that is tested.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_kube-coders");

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

/// A process whose standard error is read line by line.
pub(crate) struct Program {
    child: Child,
    log: Arc<Log>,
}

impl Program {
    /// Starts it as the first of a group of its own, which ends with the test.
    pub(crate) fn start(command: &mut Command) -> Self {
        let command =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Log::default());
        let (lines, stderr) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lines.lock().unwrap().0.push(line);
                lines.more.notify_all();
            }
            lines.lines.lock().unwrap().1 = true;
            lines.more.notify_all();
        });
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The first line of the log that holds all of these, once it is there.
    #[track_caller]
    pub(crate) fn line(&self, parts: &[&str]) -> String {
        let since = Instant::now();
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            let holds_all = |line: &&String| parts.iter().all(|part| line.contains(part));
            if let Some(line) = lines.0.iter().find(holds_all) {
                return line.clone();
            }
            let left = PATIENCE.saturating_sub(since.elapsed());
            assert!(!lines.1 && !left.is_zero(), "no line with {parts:?} in\n{}", lines.0.join("\n"));
            lines = self.log.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// What was logged so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().0.clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Gives it a line to read.
    pub(crate) fn say(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits until its standard error is closed: it and all that it started have ended.
    #[track_caller]
    pub(crate) fn all_ended(&self) {
        let lines = self.log.lines.lock().unwrap();
        let (lines, _) = self.log.more.wait_timeout_while(lines, PATIENCE, |lines| !lines.1).unwrap();
        assert!(lines.1, "processes that have not ended; their log:\n{}", lines.0.join("\n"));
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end. Waiting for a child has no deadline of its own, so it is asked.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        until("the end of a process", || self.child.try_wait().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its first process is not waited for before, so the number is still its own.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) || !self.log.lines.lock().unwrap().1 {
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// `kube-coders run`, listening, in a folder of its own.
pub(crate) struct Runner {
    pub(crate) program: Program,
    pub(crate) socket: PathBuf,
    pub(crate) forwarder: SocketAddr,
    _folder: Option<TempDir>,
}

impl Runner {
    pub(crate) fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        Self { _folder: Some(folder), ..Self::start_at(&socket, args) }
    }

    /// The same at a path that is the caller's.
    pub(crate) fn start_at(socket: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.env_clear().arg("run").arg("--listen-address").arg(listen_address(socket));
        if !args.contains(&"--forwarder-address") {
            command.args(["--forwarder-address", "127.0.0.1:0"]);
        }
        command.args(args);
        Self::from_program(Program::start(&mut command), socket)
    }

    pub(crate) fn from_program(program: Program, socket: &Path) -> Self {
        let line = program.line(&["forwarder listens"]);
        let (_, address) = line.rsplit_once("address=").unwrap();
        let forwarder = address.trim().parse().unwrap();
        Self { program, socket: socket.to_owned(), forwarder, _folder: None }
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory::of(self.program.pid())
    }
}

pub(crate) fn listen_address(socket: &Path) -> String {
    format!("unix:{}", socket.to_str().unwrap())
}

/// What a process holds in memory, in KiB (proc(5), status).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

impl Memory {
    fn of(pid: Pid) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Self { now: field("VmRSS:"), peak: field("VmHWM:") }
    }
}

/// What a command printed, and how it ended.
pub(crate) struct Printed {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Printed {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let code = child.wait().unwrap().code();
    Printed { code, stdout, stderr: errors.join().unwrap() }
}

/// The binary with these arguments, to its end.
#[track_caller]
pub(crate) fn kube_coders(args: &[&str]) -> Printed {
    run(Command::new(BINARY).env_clear().args(args))
}
