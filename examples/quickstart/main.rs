//! The whole of kube-coders on loopback, with no other software: a gateway that
//! asks who you are, the real runner and forwarder, and a workspace for each
//! user.
//!
//! A browser connects to `gateway`. `proxy` is the way to the forwarder, and `workspace` its
//! end. `code_server` replaces the workspaces by real ones, and `users` lists the users.
//! `terminal` shows what happens.

// What production leaves to one place, tests and tools may do.
#![allow(clippy::disallowed_methods)]

mod users;
mod pages;
mod tasks;
mod terminal;
mod workspace;
mod supervisor;
mod code_server;
mod proxy;
mod gateway;
mod ready;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::Parser;
use kube_coders::Program;
use kube_coders_test_support::NameServer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::code_server::CodeServers;
use crate::gateway::Gateway;
use crate::tasks::Tasks;
use crate::users::User;
use crate::workspace::Listeners;

/// kube-coders on this machine alone: a gateway to click through, the real runner and forwarder, and a workspace for
/// each of four users.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Args {
    /// The port of the gateway on 127.0.0.1; 0 for any that is free
    #[arg(long, default_value_t = 9080)]
    port: u16,

    /// Start a real code-server for each user; it has to be on PATH
    #[arg(long)]
    code_server: bool,

    /// Runs a program until it or standard input ends
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    supervise: Vec<OsString>,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if !args.supervise.is_empty() {
        let supervised = supervisor::supervise(&args.supervise).await;
        let code = supervised.unwrap_or_else(|error| {
            let _ = writeln!(io::stderr(), "starting {:?}: {error}", args.supervise[0]);
            ExitCode::FAILURE
        });
        return code;
    }
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<(), Error> {
    let stop = stop_on_signals()?;
    let code_server = if args.code_server { Some(code_server::find()?) } else { None };
    let listener = listen(args.port).await?;
    let folder = tempfile::Builder::new().prefix("kube-coders-").tempdir()?;
    let tasks = Tasks::default();
    let mut code_servers = CodeServers::default();

    let ran = async {
        let names = NameServer::start().await?;
        let program = code_server.as_deref();
        let workspaces = start_workspaces(&names, program, folder.path(), &tasks, &mut code_servers).await?;
        let ended = code_servers.keep_running();
        serve(listener, folder.path(), &names, workspaces, &tasks, ended, &stop).await
    };
    let ran = ran.await;
    tasks.end().await;
    code_servers.end().await;
    folder.close()?;
    ran
}

/// A token that SIGTERM or Ctrl-C cancels.
fn stop_on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

async fn listen(port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).await.map_err(|error| {
        let cure = match port.checked_add(1) {
            Some(other) if error.kind() == io::ErrorKind::AddrInUse => {
                format!("; choose another port, such as --port {other}, or any that is free with --port 0")
            }
            _ => String::new(),
        };
        format!("listening at {address}: {error}{cure}").into()
    })
}

/// Starts a workspace for each user who has one, and gives it its name.
async fn start_workspaces(
    names: &NameServer,
    code_server: Option<&Path>,
    folder: &Path,
    tasks: &Tasks,
    code_servers: &mut CodeServers,
) -> Result<Workspaces, Error> {
    let Listeners { listening, late } = workspace::listeners().await.map_err(|error| {
        format!("the workspaces need 127.0.0.2 and those after it, as Linux has: {error}")
    })?;
    let late_address = late.local_addr()?;
    names.set(&users::late().host(), [late_address.ip()]);
    let asked_for = Arc::new(Notify::new());
    workspace::serve_late(users::late(), late, late_address, Arc::clone(&asked_for), tasks);
    for (user, listener) in listening {
        let address = listener.local_addr()?;
        names.set(&user.host(), [address.ip()]);
        match code_server {
            None => workspace::serve(user, listener, address, tasks),
            Some(program) => {
                // From here on, the port belongs to code-server.
                drop(listener);
                code_servers
                    .start(program, folder, user, address)
                    .map_err(|error| format!("starting {}: {error}", program.display()))?;
            }
        }
    }
    Ok(Workspaces { port: late_address.port(), asked_for, logs: code_servers.logs() })
}

/// What is to be known of the workspaces.
struct Workspaces {
    /// The port of all of them.
    port: u16,
    /// Starts the one that is not started before somebody asks for it.
    asked_for: Arc<Notify>,
    /// The logs of code-servers, by their users.
    logs: Vec<(&'static User, PathBuf)>,
}

/// Runs runner, forwarder and gateway until the stop signal, or until one of them ends
/// unexpectedly.
async fn serve(
    listener: TcpListener,
    folder: &Path,
    names: &NameServer,
    workspaces: Workspaces,
    tasks: &Tasks,
    workspace_ended: impl Future<Output = String>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let front = listener.local_addr()?;
    let reserved = reserved_port()?;
    let forwarder = reserved.local_addr()?;
    let socket = folder.join("runner.sock");
    let drained = stop.child_token();
    let runner = Program::new().serve(
        [
            format!("--listen-address=unix:{}", socket.display()),
            format!("--forwarder-address={forwarder}"),
            format!("--dns-server={}", names.address()),
            // Its workspaces are on loopback.
            "--allow-address=127.0.0.0/8".to_owned(),
            "--drain-deadline=1s".to_owned(),
        ],
        drained.clone().cancelled_owned(),
    );
    let asked = kube_coders::gateway(&socket);
    let Workspaces { port, asked_for, logs } = workspaces;
    let shows = Gateway::new(asked, port, asked_for, forwarder, tasks.clone()).serve(listener);

    let used = async {
        ready::all_answer(front, &logs).await?;
        print_where_to_look(front);
        shows.store(true, Ordering::Relaxed);
        std::future::pending::<Result<(), Error>>().await
    };
    let mut runner = std::pin::pin!(runner);
    let ended: Result<(), Error> = tokio::select! {
        ended = &mut runner => return ended.map_err(Error::from),
        failed = used => failed,
        said = workspace_ended => Err(said.into()),
        () = stop.cancelled() => Ok(()),
    };
    // First the client's side: what the forwarder waits for then ends by itself.
    tasks.end().await;
    drained.cancel();
    runner.await?;
    ended
}

/// A port of 127.0.0.1 that no other process can take before the forwarder, which may share
/// it: the port is bound, and nothing listens.
fn reserved_port() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    Ok(socket)
}

fn print_where_to_look(front: SocketAddr) {
    terminal::say(&format!(
        "\
kube-coders quickstart: one address, a workspace for each user
  pick a user    http://{front}/
  pick another   http://{front}/quickstart/
  without pages  curl -i -b {}=alice http://{front}/
  end            Ctrl-C
ready: http://{front}/
Each request below, and where it goes:",
        gateway::USER_COOKIE
    ));
}
