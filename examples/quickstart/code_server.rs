//! A real code-server for each user, instead of the small workspaces.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::select_all;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::users::User;

const PROGRAM: &str = "code-server";

/// What to do if there is no code-server.
const HOW_TO_GET_IT: &str = "there is no code-server on PATH. Get it with `npm install --global code-server`, \
                             or as https://coder.com/docs/code-server/install says; \
                             without --code-server the quickstart needs nothing";

/// How long a code-server may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Variables that would make a code-server listen elsewhere, or open a window of another
/// code-server instead of starting.
const DISTURBING: [&str; 4] = ["PORT", "CODE_SERVER_HOST", "CODE_SERVER_CONFIG", "VSCODE_IPC_HOOK_CLI"];

/// The code-servers that were started. They are killed on drop.
#[derive(Default)]
pub(crate) struct CodeServers(Vec<Started>);

struct Started {
    user: &'static User,
    process: Child,
    log: PathBuf,
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
        let own = folder.join(user.subject);
        let project = own.join("project");
        fs::create_dir_all(&project)?;
        let log = own.join("log");
        let output = File::create(&log)?;
        let mut command = Command::new(program);
        command
            .args(["--auth", "none", "--disable-telemetry", "--disable-update-check"])
            .args(["--bind-addr", &address.to_string()])
            .arg("--config")
            .arg(own.join("config.yaml"))
            .arg("--user-data-dir")
            .arg(own.join("data"))
            .arg("--extensions-dir")
            .arg(own.join("extensions"))
            .arg(&project)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A group of its own, so that only this program receives Ctrl-C, and processes
            // that the code-server starts end with it.
            .process_group(0)
            .kill_on_drop(true);
        for name in DISTURBING {
            command.env_remove(name);
        }
        self.0.push(Started { user, process: command.spawn()?, log });
        Ok(())
    }

    /// Returns when a code-server has ended, with its output; never if there is none.
    pub(crate) async fn one_ended(&mut self) -> String {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        let ended = self.0.iter_mut().map(|started| Box::pin(started.process.wait()));
        let (status, at, _) = select_all(ended).await;
        let Started { user, log, .. } = &self.0[at];
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let said = fs::read_to_string(log).unwrap_or_default();
        format!("the code-server of {} ended ({how}) and said:\n{}", user.name, said.trim_end())
    }

    /// Ends all code-servers, and waits for their ends.
    pub(crate) async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let ended = async {
            for started in &mut self.0 {
                // A process that can't be waited for has already ended.
                let _ = started.process.wait().await;
            }
        };
        if timeout(PATIENCE, ended).await.is_err() {
            self.signal(Signal::SIGKILL);
        }
    }

    /// Signals the code-servers that still run, and the processes that they started.
    fn signal(&self, signal: Signal) {
        for started in &self.0 {
            if let Some(id) = started.process.id().and_then(|id| i32::try_from(id).ok()) {
                // It may have ended just now.
                let _ = killpg(Pid::from_raw(id), signal);
            }
        }
    }
}
