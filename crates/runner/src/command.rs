//! The command line of a program: `run`, `call` and `health`.
//!
//! [`Runner::main`] does all of it. A program with commands or settings of its own uses the
//! parts:
//!
//! | I want to | use |
//! |---|---|
//! | take the arguments of `run` | [`RunArgs`], [`Environment`] |
//! | report mistakes in my own settings together with the runner's | [`Checker`], [`Mistakes`], [`RunArgs::check`] |
//! | write the log | [`LogFilter`], [`LogWriter`] |
//! | have descriptors for all connections | [`raise_open_files`] |
//! | take the arguments of `call`, and print a decision | [`CallArgs`], [`client_request`], [`ask`] |
//! | take a text that may be in a file | [`text_or_file`], [`read_input`] |
//! | do `health` | [`SocketArgs`], [`health`] |

mod args;
mod call;
mod checker;
mod environment;
mod input;
mod log;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _};
use rustix::process::{Pid, Resource, getppid, getrlimit, setrlimit};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tracing::warn;

use crate::gateway::Gateway;
use crate::listener::admission::GatewayProcess;
use crate::listener::process_end::death_of;
use crate::listener::shutdown::Shutdown;
use crate::runner::{Control, RunError, Runner, Start};
pub use args::{CallArgs, RequestArgs, RunArgs, SocketArgs, with_default_socket};
use args::{CommandLine, Subcommand};
use call::cure;
#[cfg(feature = "direct")]
pub use call::decision_note;
pub use call::{CallCommandError, Note, ask, client_request, flag_text};
pub use checker::{Checker, Mistakes, number_between};
pub use environment::Environment;
pub use input::{read_input, text_or_file};
pub use log::{LogFilter, LogWriter};

/// The exit code of a command that did what it was told, and whose answer is no.
pub const NO: u8 = 1;

/// The exit code of a command that could not do what it was told.
pub const FAILED: u8 = 2;

/// How long `health` waits: as long as a call may take by default. A kubelet or systemd
/// asks, and has to know.
const HEALTH_DEADLINE: Duration = Duration::from_secs(5);

/// How long a runner that the gateway started waits for its successor: on a reload the
/// gateway starts the new one at about the time when it ends the old one, which it kills a
/// second later (docs/gateway.md, Spawned by the gateway).
const SUCCESSOR: Duration = Duration::from_millis(400);

/// How long a runtime waits for a plugin's code that blocks a thread.
const BLOCKED: Duration = Duration::from_secs(1);

/// The exit code if the reader of the output has gone: the one that shells show for SIGPIPE.
pub const CLOSED_PIPE: u8 = 128 + 13;

/// Why a command could not do what it was told.
#[derive(Debug, Error)]
enum CommandFailure {
    #[error(transparent)]
    Arguments(clap::Error),
    #[error("these settings are wrong:\n{0}")]
    Settings(#[from] Mistakes),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Call(#[from] CallCommandError),
    #[error("{doing}: {error}")]
    Io { doing: &'static str, error: std::io::Error },
}

impl Runner {
    /// Does what the process's arguments say, to its end: `run`, `call` or `health`, each
    /// with `--help`.
    ///
    /// Reads the arguments and the environment, installs a `tracing` subscriber that writes
    /// to standard error, listens for SIGTERM and SIGINT, and starts a runtime of its own.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let name = self.name;
        match self.execute() {
            Ok(code) => code,
            Err(CommandFailure::Call(error)) if error.is_closed_pipe() => ExitCode::from(CLOSED_PIPE),
            Err(CommandFailure::Arguments(error)) => {
                let _ = error.print();
                ExitCode::from(if error.use_stderr() { FAILED } else { 0 })
            }
            Err(failure) => {
                let _ = writeln!(std::io::stderr(), "{name}: {failure}");
                ExitCode::from(FAILED)
            }
        }
    }

    fn execute(self) -> Result<ExitCode, CommandFailure> {
        let command = CommandLine::command().name(self.name).version(self.version).propagate_version(true);
        let command = with_default_socket(command, self.name);
        let typed = command.try_get_matches().map_err(CommandFailure::Arguments)?;
        let program = CommandLine::from_arg_matches(&typed).map_err(CommandFailure::Arguments)?;
        let environment = Environment::read(self.name)?;
        match program.command {
            Subcommand::Run(args) => self.run_command(&args, &environment),
            Subcommand::Call(args) => {
                let path = args.socket.path(&environment)?;
                let gateway = with_carried(Gateway::connect(&path));
                let mut output = std::io::stdout();
                Ok(runtime()?.block_on(call::call(&gateway, &path, &args, &self.registry, &mut output))?)
            }
            Subcommand::Health(args) => {
                let path = args.path(&environment)?;
                Ok(runtime()?.block_on(health(self.name, &path)))
            }
        }
    }

    fn run_command(self, args: &RunArgs, environment: &Environment) -> Result<ExitCode, CommandFailure> {
        let (settings, filter) = args.settings(environment)?;
        let _written = LogWriter::install(&filter);
        raise_open_files(settings.max_connections);
        let is_spawned = args.socket.is_spawned(environment);
        let parent = is_spawned.then(getppid).flatten();
        // The workers are children of the process above the one that started this program.
        let above = |parent: Pid| GatewayProcess::above(parent.as_raw_nonzero().get());
        let gateway = parent.and_then(above);
        let settings = settings.gateway(gateway);
        let runtime = runtime()?;
        let ran = runtime.block_on(async {
            let shutdown = Shutdown::default();
            let failed = |error| CommandFailure::Io { doing: "listening for signals", error };
            let signals = shutdown.on_signals().map_err(failed)?;
            let ended = async {
                death_of(parent).await;
                warn!("the gateway that started this runner is gone");
                shutdown.stop.cancel();
            };
            let control = Control::new(shutdown.stop.clone(), shutdown.now.clone());
            let control = control.successor_wait(move || match gateway {
                Some(_) => SUCCESSOR,
                None => Duration::ZERO,
            });
            let running = async {
                let start = Start::at(&settings).await.prepare()?;
                self.serve(start, settings, None, &control).await
            };
            let told = async {
                tokio::join!(signals, ended);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ran = running => Ok(ran?),
                () = told => Ok(()),
            }
        });
        // A plugin's code may block a thread for ever.
        runtime.shutdown_timeout(BLOCKED);
        ran.map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(feature = "direct")]
fn with_carried(gateway: Gateway) -> Gateway {
    let read = |header: &[u8]| crate::direct::decode_destination(header).map(|(upstream, _)| upstream);
    gateway.reads_upstream(http::HeaderName::from_static(crate::direct::DECISION_HEADER), read)
}

#[cfg(not(feature = "direct"))]
fn with_carried(gateway: Gateway) -> Gateway {
    gateway
}

fn runtime() -> Result<Runtime, CommandFailure> {
    let runtime = Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| CommandFailure::Io { doing: "starting the runtime", error })
}

/// Whether a runner answers at this socket, as an exit code. A failure is explained on
/// standard error after the program's name.
///
/// ```
/// use std::path::Path;
/// use std::process::ExitCode;
///
/// use apisix_plugin_runner::command::health;
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // Also explained on standard error.
/// let code = health("my-plugins", Path::new("/nonexistent/runner.sock")).await;
/// assert_ne!(code, ExitCode::SUCCESS);
/// # });
/// ```
pub async fn health(program: &str, socket: &std::path::Path) -> ExitCode {
    let why = match timeout(HEALTH_DEADLINE, Gateway::connect(socket).probe()).await {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => format!("{error}{}", cure(&error)),
        Err(_) => format!("the runner did not answer within {HEALTH_DEADLINE:?}"),
    };
    let _ = writeln!(std::io::stderr(), "{program}: {}: {why}", socket.display());
    ExitCode::from(NO)
}

/// Raises the limit of open files as far as this process may, and warns if that is fewer
/// than its limits on connections need.
///
/// ```
/// use apisix_plugin_runner::command::raise_open_files;
///
/// // One descriptor for each connection of the gateway, and some for everything else.
/// raise_open_files(4096 + 64);
/// ```
pub fn raise_open_files(needed: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let most = limit.maximum.unwrap_or(u64::MAX);
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) if most >= needed as u64 => {}
        Ok(()) => {
            warn!(open_files = most, needed, cure = "ulimit -n, or fewer connections", "too few open files");
        }
        Err(error) => warn!(%error, "raising the limit of open files"),
    }
}

impl SocketArgs {
    /// The path of the socket.
    ///
    /// # Errors
    ///
    /// An address that is not `unix:` and an absolute path.
    pub fn path(&self, environment: &Environment) -> Result<std::path::PathBuf, Mistakes> {
        let (name, address, _) = self.address(environment);
        args::socket_path(&address).map_err(|why| Mistakes::one(format!("{name} {address:?}: {why}")))
    }
}
