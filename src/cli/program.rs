//! The `kube-coders` command, and programs of other names that hold it.

use std::ffi::OsString;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use apisix_plugin_runner::command::{
    CLOSED_PIPE, CallCommandError, Environment, FAILED, LogWriter, Mistakes, NO, health, raise_open_files,
    with_default_socket,
};
use apisix_plugin_runner::listener::{GatewayProcess, Shutdown};
use apisix_plugin_runner::{PreparedPlugin, Runner};
use clap::{CommandFactory as _, FromArgMatches as _, Parser as _};
use rustix::process::getppid;
use thiserror::Error;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cli::arguments::{Cli, NameArgs, RunCommandArgs, Subcommands};
use crate::cli::call::call;
use crate::cli::check::{CheckCommandError, check};
use crate::cli::explain::{self, ExplainError};
use crate::cli::install::{InstallError, install};
use crate::cli::keeper::{KeeperEnd, Log, keep, listen_to_keeper};
use crate::cli::run::{StartError, run};
use crate::cli::settings::ProgramSettings;
use crate::resolver::most_sockets;
use kube_coders_identity::label::HashDigits;
use kube_coders_identity::{HostTemplate, Template, TemplateError};

/// The name of the program in help, errors and versions.
const NAME: &str = env!("CARGO_PKG_NAME");

/// What `name` does when it can't write.
const WRITING_NAMES: &str = "writing the names";

/// How long a runtime waits for a plugin's code that blocks a thread.
const BLOCKED: Duration = Duration::from_secs(1);

/// The whole `kube-coders` command, with further plugins.
///
/// ```no_run
/// # use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
/// # struct Greet;
/// # impl Plugin for Greet {
/// #     const NAME: &'static str = "greet";
/// #     type Config = ();
/// #     async fn on_request(&self, _: &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
/// #         Ok(Action::Continue)
/// #     }
/// # }
/// fn main() -> std::process::ExitCode {
///     kube_coders::Program::new().plugin(Greet).main()
/// }
/// ```
pub struct Program {
    runner: Runner,
}

impl Default for Program {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a command could not do what it was told.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct ProgramError(Failure);

#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Arguments(clap::Error),
    #[error("these settings are wrong:\n{0}")]
    Settings(#[from] Mistakes),
    #[error(transparent)]
    Run(#[from] StartError),
    #[error(transparent)]
    Call(#[from] CallCommandError),
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error(transparent)]
    Check(#[from] CheckCommandError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("--template: {0}")]
    Template(#[from] TemplateError),
    #[error("only `run` can be served")]
    NotRun,
    #[error("{doing}: {error}")]
    Io { doing: &'static str, error: std::io::Error },
}

impl Failure {
    /// Whether the output's reader has gone, for example `head`.
    fn is_closed_pipe(&self) -> bool {
        match self {
            Self::Call(error) => error.is_closed_pipe(),
            Self::Explain(ExplainError::Write(error))
            | Self::Check(CheckCommandError::Write(error))
            | Self::Io { doing: WRITING_NAMES, error } => error.kind() == ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

impl Program {
    /// The command as it is shipped.
    #[must_use]
    pub fn new() -> Self {
        Self { runner: Runner::named(NAME, env!("CARGO_PKG_VERSION")) }
    }

    /// Adds a plugin. A runner with two plugins of one name, or with a plugin named
    /// `user-upstream`, does not start.
    #[must_use]
    pub fn plugin<P: PreparedPlugin>(mut self, plugin: P) -> Self {
        self.runner = self.runner.plugin(plugin);
        self
    }

    /// Does what the process's arguments say, to its end.
    ///
    /// Reads the arguments and the environment, installs a `tracing` subscriber that writes
    /// to standard error, and starts a runtime of its own.
    #[must_use]
    pub fn main(self) -> ExitCode {
        match self.execute() {
            Ok(code) => code,
            Err(failure) if failure.is_closed_pipe() => ExitCode::from(CLOSED_PIPE),
            Err(Failure::Arguments(error)) => {
                let _ = error.print();
                ExitCode::from(if error.use_stderr() { FAILED } else { 0 })
            }
            Err(failure) => {
                let _ = writeln!(std::io::stderr(), "{NAME}: {failure}");
                ExitCode::from(FAILED)
            }
        }
    }

    fn execute(self) -> Result<ExitCode, Failure> {
        let typed = with_default_socket(Cli::command(), NAME).try_get_matches();
        let cli = typed.and_then(|typed| Cli::from_arg_matches(&typed)).map_err(Failure::Arguments)?;
        let environment = Environment::read(NAME)?;
        match cli.command {
            Subcommands::Run(args) => self.run(&args, &environment),
            Subcommands::Call(args) => {
                let path = args.socket.path(&environment)?;
                block_on(async { Ok(call(&path, &args, &mut std::io::stdout()).await?) })
            }
            Subcommands::Explain(args) => {
                block_on(async { Ok(explain::explain(&args, &mut std::io::stdout()).await?) })
            }
            Subcommands::Check(args) => {
                // Plugins prepare their confs as they would in the runner: within a runtime.
                block_on(async { Ok(check(&args, &self.runner, &mut std::io::stdout())?) })
            }
            Subcommands::Name(args) => print_names(&args),
            Subcommands::Install(args) => Ok(install(&args.target).map(|()| ExitCode::SUCCESS)?),
            Subcommands::Health(args) => {
                let path = args.path(&environment)?;
                block_on(async { Ok(health(NAME, &path).await) })
            }
        }
    }

    fn run(self, args: &RunCommandArgs, environment: &Environment) -> Result<ExitCode, Failure> {
        let settings = ProgramSettings::check(args, environment)?;
        let _written = LogWriter::install(&settings.log_filter);
        if settings.is_keeper {
            return keep_runner(&settings);
        }
        let (calls, requests) = (settings.runner.connections(), settings.forwarder_limits.max_connections);
        let connections = calls + settings.forwarder_limits.most_connections();
        raise_open_files(connections + most_sockets(calls + requests));
        block_on(async {
            let (shutdown, alone) = (Shutdown::default(), CancellationToken::new());
            let failed = |doing| move |error| Failure::Io { doing, error };
            let signals = shutdown.on_signals().map_err(failed("listening for signals"))?;
            let keeper = settings.kept_for.map(|_| listen_to_keeper(&shutdown, &alone)).transpose();
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
                ran = run(settings, self.runner, &shutdown, &alone) => ran?,
                () = told => {}
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    /// Runs the runner on the caller's runtime until `stop`, then drains. The arguments are
    /// those of `run`, without the program's name.
    ///
    /// Environment and signals are left to the caller, and no subscriber is installed: this
    /// is for programs that hold more than the runner, and for tests.
    ///
    /// # Errors
    ///
    /// Arguments that are wrong, and addresses at which the runner can't listen.
    pub async fn serve<A>(self, args: A, stop: impl Future<Output = ()>) -> Result<(), ProgramError>
    where
        A: IntoIterator,
        A::Item: Into<OsString>,
    {
        self.serve_until(args, stop).await.map_err(ProgramError)
    }

    async fn serve_until<A>(self, args: A, stop: impl Future<Output = ()>) -> Result<(), Failure>
    where
        A: IntoIterator,
        A::Item: Into<OsString>,
    {
        let typed = [OsString::from(NAME), OsString::from("run")];
        let typed = typed.into_iter().chain(args.into_iter().map(Into::into));
        let cli = Cli::try_parse_from(typed).map_err(Failure::Arguments)?;
        let Subcommands::Run(args) = cli.command else { return Err(Failure::NotRun) };
        let settings = ProgramSettings::check(&args, &Environment::without_gateway(NAME))?;
        if settings.is_keeper || settings.kept_for.is_some() {
            let why = "--drain-apart: this runner is a part of another program, which can't be restarted";
            return Err(Mistakes::one(why.to_owned()).into());
        }
        let (shutdown, alone) = (Shutdown::default(), CancellationToken::new());
        let told_to_stop = async {
            stop.await;
            shutdown.stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ran = run(settings, self.runner, &shutdown, &alone) => Ok(ran?),
            () = told_to_stop => Ok(()),
        }
    }
}

/// Starts the runner in a process of its own, and says how that ended.
fn keep_runner(settings: &ProgramSettings) -> Result<ExitCode, Failure> {
    let parent = getppid();
    let parent_number = parent.map_or(0, |parent| parent.as_raw_nonzero().get());
    let gateway = settings.spawned.then(|| GatewayProcess::above(parent_number)).flatten();
    if settings.spawned && gateway.is_none() {
        warn!(
            "the process that started this one is gone or has no parent: workers of the gateway are served only by their user"
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
        .block_on(keep(&arguments, log, settings.spawned.then_some(parent).flatten()))
        .map_err(failed("starting the runner's process"))?;
    // Nothing waits for the lines that it has not passed on yet.
    runtime.shutdown_background();
    Ok(match end {
        KeeperEnd::Left => ExitCode::SUCCESS,
        KeeperEnd::Ended(status) => {
            status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED).into()
        }
    })
}

fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { doing: "starting the runtime", error })?;
    let ended = runtime.block_on(command);
    // A plugin's code may block a thread for ever.
    runtime.shutdown_timeout(BLOCKED);
    ended
}

fn print_names(args: &NameArgs) -> Result<ExitCode, Failure> {
    let digits = if args.digits == "16" { HashDigits::Short } else { HashDigits::Full };
    let template = match args.template.contains("://") {
        true => Template::parse_with(&args.template, digits)?.host().clone(),
        false => HostTemplate::parse_with(&args.template, digits)?,
    };
    let mut code = ExitCode::SUCCESS;
    let mut names = String::new();
    for subject in &args.subject {
        match template.render_value(subject) {
            Ok(name) => names.push_str(&format!("{name}\n")),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{NAME}: {subject:?}: {error}");
                code = ExitCode::from(NO);
            }
        }
    }
    std::io::stdout()
        .write_all(names.as_bytes())
        .map_err(|error| Failure::Io { doing: WRITING_NAMES, error })?;
    Ok(code)
}
