//! A real code-server for each user, instead of the small workspaces.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::select_all;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::terminal::say;
use crate::users::User;

const PROGRAM: &str = "code-server";

/// What to do if there is no code-server.
const HOW_TO_GET_IT: &str = "there is no code-server on PATH. Get it with `npm install --global code-server`, which \
                             needs Node 24, or as https://coder.com/docs/code-server/install says; \
                             without --code-server the quickstart needs nothing";

/// How long a code-server may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A code-server that ends sooner than this after its start counts as one that can't run, and
/// how many such ends there may be in a row.
const SHORT_LIFE: Duration = Duration::from_secs(10);
const SHORT_LIVES: u32 = 3;

/// How long to wait before a code-server is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// How much of a log is shown, in lines from its end.
const SHOWN_LINES: usize = 20;

/// Variables that would make a code-server listen elsewhere, or open a window of another
/// code-server instead of starting.
const DISTURBING: [&str; 4] = ["PORT", "CODE_SERVER_HOST", "CODE_SERVER_CONFIG", "VSCODE_IPC_HOOK_CLI"];

/// The code-servers that were started. Each ends when this is dropped, or when this process
/// ends in any way.
#[derive(Default)]
pub(crate) struct CodeServers(Vec<CodeServer>);

struct CodeServer {
    user: &'static User,
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    process: Child,
    /// The code-server ends when this is closed, and so when this process ends.
    life: Option<ChildStdin>,
    since: Instant,
    short_lives: u32,
}

/// The program, or what to do if it is missing.
pub(crate) fn find() -> Result<PathBuf, &'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    programs.find(|program| program.is_file()).ok_or(HOW_TO_GET_IT)
}

impl CodeServers {
    /// Starts one more code-server, with folders of its own.
    pub(crate) fn start(
        &mut self,
        program: &Path,
        folder: &Path,
        user: &'static User,
        address: SocketAddr,
    ) -> io::Result<()> {
        let folder = folder.join(user.subject);
        fs::create_dir_all(folder.join("project"))?;
        let mut process = spawn(program, &folder, address)?;
        let log = log_in(&folder);
        say(&format!("starts code-server for {} at {address}; its log is {}", user.name, log.display()));
        self.0.push(CodeServer {
            user,
            program: program.to_owned(),
            folder,
            address,
            life: process.stdin.take(),
            process,
            since: Instant::now(),
            short_lives: 0,
        });
        Ok(())
    }

    /// The log of each user's code-server.
    pub(crate) fn logs(&self) -> Vec<(&'static User, PathBuf)> {
        self.0.iter().map(|server| (server.user, log_in(&server.folder))).collect()
    }

    /// Starts each code-server again that ends. Returns only if one ends again and again, and
    /// then says why.
    pub(crate) async fn keep_running(&mut self) -> String {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let ended = self.0.iter_mut().map(|server| Box::pin(server.process.wait()));
            let (status, at, _) = select_all(ended).await;
            if let Err(why) = self.0[at].start_again(status).await {
                return why;
            }
        }
    }

    /// Ends all code-servers, and waits for their ends.
    pub(crate) async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let ended = async {
            for server in &mut self.0 {
                // A process that can't be waited for has already ended.
                let _ = server.process.wait().await;
            }
        };
        if timeout(PATIENCE, ended).await.is_err() {
            self.signal(Signal::SIGKILL);
        }
    }

    /// Signals the code-servers that still run, and the processes that they started.
    fn signal(&self, signal: Signal) {
        for server in &self.0 {
            if let Some(id) = server.process.id().and_then(|id| i32::try_from(id).ok()) {
                // It may have ended just now.
                let _ = killpg(Pid::from_raw(id), signal);
            }
        }
    }
}

impl CodeServer {
    async fn start_again(&mut self, status: io::Result<ExitStatus>) -> Result<(), String> {
        let Self { user, program, folder, address, .. } = self;
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let log = log_in(folder);
        self.short_lives = if self.since.elapsed() < SHORT_LIFE { self.short_lives + 1 } else { 0 };
        if self.short_lives >= SHORT_LIVES {
            return Err(format!(
                "the code-server of {} ended {SHORT_LIVES} times soon after its start ({how}) and said:\n{}",
                user.name,
                end_of(&log)
            ));
        }
        say(&format!(
            "the code-server of {} ended ({how}) and is started again; its log is {}",
            user.name,
            log.display()
        ));
        sleep(RESTART_PAUSE).await;
        let again = spawn(program, folder, *address);
        self.process = again.map_err(|error| format!("starting {} again: {error}", program.display()))?;
        // A wait would close it.
        self.life = self.process.stdin.take();
        self.since = Instant::now();
        Ok(())
    }
}

/// Starts a code-server under a process that ends it when this one has ended.
fn spawn(program: &Path, folder: &Path, address: SocketAddr) -> io::Result<Child> {
    let output = File::options().create(true).append(true).open(log_in(folder))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--supervise")
        .arg(program)
        .args(["--auth", "none", "--disable-telemetry", "--disable-update-check"])
        .args(["--bind-addr", &address.to_string()])
        .arg("--config")
        .arg(folder.join("config.yaml"))
        .arg("--user-data-dir")
        .arg(folder.join("data"))
        .arg("--extensions-dir")
        .arg(folder.join("extensions"))
        .arg(folder.join("project"))
        // Closed when this process ends.
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(output)
        // A group of its own, so that only this program receives Ctrl-C, and processes
        // that the code-server starts end with it.
        .process_group(0);
    for name in DISTURBING {
        command.env_remove(name);
    }
    command.spawn()
}

fn log_in(folder: &Path) -> PathBuf {
    folder.join("log")
}

/// The last lines of a log.
pub(crate) fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
