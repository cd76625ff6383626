//! The command line with an author's plugins in it.

use std::env::VarError;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::getppid;
use thiserror::Error;
use tokio::runtime;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::admission::GatewayProcess;
use crate::call::{self, CallCommandError, cure};
use crate::check::{self, CheckError};
use crate::cli::{Cli, RunArgs, SocketArgs, Subcommands};
use crate::explain::{self, ExplainError};
use crate::install::{InstallError, install};
use crate::keeper::{End, Log, keep};
use crate::plugin::{Plugin, Registry};
use crate::run::{RunError, run};
use crate::settings::{Environment, Mistakes, Settings, checked_socket_path};
use crate::shutdown::Shutdown;
use crate::testing::Gateway;
use crate::user_upstream::{HostTemplate, TemplateError};

/// The exit code of a command that did what it was told, and the answer is no.
const NO: u8 = 1;

/// How long `health` waits: as long as a call may take by default. Who asks is a
/// kubelet or systemd, and would rather know.
const HEALTH_TIME: Duration = Duration::from_secs(5);

/// How many lines of the log wait for whoever reads them, some hundred bytes each.
const LOG_LINES: usize = 8192;

/// The exit code of a command that could not do what it was told.
const FAILED: u8 = 2;

/// The whole `kube-coders` command, with plugins beside those that it ships.
///
/// ```no_run
/// # use kube_coders::{Action, Plugin, PluginError, Request};
/// # struct Greet;
/// # impl Plugin for Greet {
/// #     const NAME: &'static str = "greet";
/// #     type Config = ();
/// #     async fn on_request(&self, _: &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
/// #         Ok(Action::Continue)
/// #     }
/// # }
/// fn main() -> std::process::ExitCode {
///     kube_coders::Command::new().plugin(Greet).main()
/// }
/// ```
#[derive(Default)]
pub struct Command {
    registry: Registry,
    same_name: Option<&'static str>,
}

/// Why a command could not do what it was told.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct CommandError(Failure);

#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Arguments(clap::Error),
    #[error("these settings are wrong:\n{0}")]
    Settings(#[from] Mistakes),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Call(#[from] CallCommandError),
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("--template: {0}")]
    Template(#[from] TemplateError),
    #[error("only `run` can be served")]
    NotRun,
    #[error("{doing}: {error}")]
    Io { doing: &'static str, error: std::io::Error },
}

impl Command {
    /// The command as it is shipped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one plugin more. Two of one name, or one named as a shipped
    /// plugin, are told when the runner starts.
    #[must_use]
    pub fn plugin<P: Plugin>(mut self, plugin: P) -> Self {
        if !self.registry.add(plugin) {
            self.same_name = Some(P::NAME);
        }
        self
    }

    /// Does what the process's arguments say, to its end.
    ///
    /// Reads the arguments and the environment, installs a tracing subscriber
    /// that writes to standard error, and starts a runtime of its own.
    #[must_use]
    pub fn main(self) -> ExitCode {
        match self.execute() {
            Ok(code) => code,
            Err(Failure::Arguments(error)) => {
                let _ = error.print();
                ExitCode::from(if error.use_stderr() { FAILED } else { 0 })
            }
            Err(failure) => {
                let _ = writeln!(std::io::stderr(), "kube-coders: {failure}");
                ExitCode::from(FAILED)
            }
        }
    }

    fn execute(self) -> Result<ExitCode, Failure> {
        let cli = Cli::try_parse().map_err(Failure::Arguments)?;
        let environment = Environment {
            listen_address: variable("APISIX_LISTEN_ADDRESS")?,
            conf_expire_time: variable("APISIX_CONF_EXPIRE_TIME")?,
        };
        match cli.command {
            Subcommands::Run(args) => self.run(&args, &environment),
            Subcommands::Call(args) => {
                let path = checked_socket_path(&args.socket, &environment)?;
                block_on(async { Ok(call::call(&path, &args, &mut std::io::stdout()).await?) })
            }
            Subcommands::Explain(args) => {
                block_on(async { Ok(explain::explain(&args, &mut std::io::stdout()).await?) })
            }
            Subcommands::Check(args) => {
                // Authors' plugins prepare their confs as they would in the runner: within a runtime.
                let registry = self.registry()?;
                block_on(async { Ok(check::check(&args, &registry, &mut std::io::stdout())?) })
            }
            Subcommands::Name(args) => print_names(&args.template, &args.subject),
            Subcommands::Install(args) => Ok(install(&args.target).map(|()| ExitCode::SUCCESS)?),
            Subcommands::Health(args) => health(&args, &environment),
        }
    }

    fn run(self, args: &RunArgs, environment: &Environment) -> Result<ExitCode, Failure> {
        let settings = Settings::check(args, environment)?;
        let _written = log_to_stderr(settings.log_level);
        if settings.is_keeper {
            return keep_runner(&settings);
        }
        raise_open_files(&settings);
        let registry = self.registry()?;
        block_on(async {
            let shutdown = Shutdown::default();
            let failed = |doing| move |error| Failure::Io { doing, error };
            let signals = shutdown.on_signals().map_err(failed("listening for signals"))?;
            let keeper = settings.kept_for.map(|_| shutdown.on_keeper()).transpose();
            let keeper = keeper.map_err(failed("listening to the keeper"))?;
            let told = async {
                let told_by_keeper = async {
                    if let Some(keeper) = keeper {
                        keeper.await;
                    }
                };
                tokio::join!(signals, told_by_keeper);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ran = run(settings, registry, &shutdown) => ran?,
                () = told => {}
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    /// Runs the runner within a runtime of the caller's, until `stop`; then it
    /// drains. The arguments are those of `run`, without the program's name.
    ///
    /// Neither the environment nor signals are looked at, and no subscriber is
    /// installed: that is for programs which hold more than the runner, and for
    /// tests.
    ///
    /// # Errors
    ///
    /// Arguments that are wrong, and addresses that can't be listened at.
    pub async fn serve<A>(self, args: A, stop: impl Future<Output = ()>) -> Result<(), CommandError>
    where
        A: IntoIterator,
        A::Item: Into<OsString>,
    {
        self.serve_until(args, stop).await.map_err(CommandError)
    }

    async fn serve_until<A>(self, args: A, stop: impl Future<Output = ()>) -> Result<(), Failure>
    where
        A: IntoIterator,
        A::Item: Into<OsString>,
    {
        let typed = [OsString::from("kube-coders"), OsString::from("run")];
        let typed = typed.into_iter().chain(args.into_iter().map(Into::into));
        let cli = Cli::try_parse_from(typed).map_err(Failure::Arguments)?;
        let Subcommands::Run(args) = cli.command else { return Err(Failure::NotRun) };
        let settings = Settings::check(&args, &Environment::default())?;
        if settings.is_keeper || settings.kept_for.is_some() {
            let why = "--drain-apart: this runner is a part of another program, which can't be started anew";
            return Err(Mistakes::one(why.to_owned()).into());
        }
        let registry = self.registry()?;
        let shutdown = Shutdown::default();
        let told_to_stop = async {
            stop.await;
            shutdown.stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ran = run(settings, registry, &shutdown) => Ok(ran?),
            () = told_to_stop => Ok(()),
        }
    }

    fn registry(self) -> Result<Registry, RunError> {
        match self.same_name {
            Some(name) => Err(RunError::SameName(name)),
            None => Ok(self.registry),
        }
    }
}

/// Starts the runner in a process of its own, and says how that ended.
fn keep_runner(settings: &Settings) -> Result<ExitCode, Failure> {
    let parent = getppid();
    let gateway = settings.spawned.then(|| GatewayProcess::above(parent.as_raw())).flatten();
    if settings.spawned && gateway.is_none() {
        warn!(
            "the process that started this one is gone or has no parent: no gateway's workers are served by descent"
        );
    }
    let kept_for = gateway.map_or(0, GatewayProcess::pid);
    let arguments: Vec<OsString> =
        std::env::args_os().skip(1).chain([format!("--kept-for={kept_for}").into()]).collect();
    let failed = |doing| move |error| Failure::Io { doing, error };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("starting the runtime"))?;
    let log = if settings.spawned { Log::PassedOn } else { Log::Same };
    let end = runtime
        .block_on(keep(&arguments, log, settings.spawned.then_some(parent)))
        .map_err(failed("starting the runner's process"))?;
    // What it has not passed on yet, nobody waits for.
    runtime.shutdown_background();
    Ok(match end {
        End::Left => ExitCode::SUCCESS,
        End::Ended(status) => status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED).into(),
    })
}

/// Lets the process have as many open files as it may, and says so where that is
/// fewer than its limits on connections promise.
fn raise_open_files(settings: &Settings) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    let needed = settings.max_connections + settings.forwarder_limits.most_connections();
    match raised {
        Ok(most) if most >= needed as u64 => {}
        Ok(most) => {
            warn!(open_files = most, needed, cure = "ulimit -n, or fewer connections", "too few open files");
        }
        Err(error) => warn!(%error, "raising the limit of open files"),
    }
}

fn variable(name: &str) -> Result<Option<String>, Mistakes> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(value)) => Err(Mistakes::one(format!("{name} {value:?}: not UTF-8"))),
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { doing: "starting the runtime", error })?;
    runtime.block_on(command)
}

/// Our own lines at the level that was asked for; others' only from warnings on,
/// unless everything was asked for.
///
/// A gateway that does not read what it is told shall not stop what it asked for: where
/// nobody reads, lines are dropped. What is left is written when the guard is dropped.
fn log_to_stderr(level: LevelFilter) -> WorkerGuard {
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let targets = Targets::new().with_default(others).with_target(env!("CARGO_CRATE_NAME"), level);
    let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES);
    let (queue, guard) = queue.finish(std::io::stderr());
    let lines = tracing_subscriber::fmt::layer()
        // In a drain nobody may be left who reads them, and a complaint about that would
        // end its thread.
        .log_internal_errors(false)
        .with_writer(queue)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(targets).init();
    guard
}

fn print_names(template: &str, subjects: &[String]) -> Result<ExitCode, Failure> {
    let template = HostTemplate::parse(template)?;
    let mut code = ExitCode::SUCCESS;
    let mut names = String::new();
    for subject in subjects {
        match template.render_value(subject) {
            Ok(name) => names.push_str(&format!("{name}\n")),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "kube-coders: {subject:?}: {error}");
                code = ExitCode::from(NO);
            }
        }
    }
    std::io::stdout()
        .write_all(names.as_bytes())
        .map_err(|error| Failure::Io { doing: "writing the names", error })?;
    Ok(code)
}

fn health(args: &SocketArgs, environment: &Environment) -> Result<ExitCode, Failure> {
    let path = checked_socket_path(args, environment)?;
    block_on(async {
        let why = match timeout(HEALTH_TIME, Gateway::connect(&path).probe()).await {
            Ok(Ok(())) => return Ok(ExitCode::SUCCESS),
            Ok(Err(error)) => format!("{error}{}", cure(&error)),
            Err(_) => format!("the runner did not answer within {HEALTH_TIME:?}"),
        };
        let _ = writeln!(std::io::stderr(), "kube-coders: {}: {why}", path.display());
        Ok(ExitCode::from(NO))
    })
}
