//! The whole of kube-coders on loopback, with no other software: a gateway that
//! asks who you are, the real runner and forwarder, and a workspace for each
//! user.
//!
//! A browser connects to `gateway`. `proxy` is the way to the forwarder, and `workspace` its
//! end. `code_server` replaces the workspaces by real ones, and `users` lists the users.

// What production leaves to one place, tests and tools may do.
#![allow(clippy::disallowed_methods)]

mod users;
mod pages;
mod tasks;
mod workspace;
mod code_server;
mod proxy;
mod gateway;
mod ready;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use kube_coders::Program;
use kube_coders_test_support::NameServer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::code_server::CodeServers;
use crate::gateway::Gateway;
use crate::tasks::Tasks;

/// kube-coders on this machine alone: a gateway to click through, the real runner and forwarder, and a workspace for
/// each of three users.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Args {
    /// The port of the gateway on 127.0.0.1; 0 for any that is free
    #[arg(long, default_value_t = 9080)]
    port: u16,

    /// Start a real code-server for each user; it has to be on PATH
    #[arg(long)]
    code_server: bool,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
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
        let port = start_workspaces(&names, program, folder.path(), &tasks, &mut code_servers).await?;
        let ended = code_servers.one_ended();
        serve(listener, folder.path(), &names, port, &tasks, ended, &stop).await
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

/// Starts a workspace for each user who has one, gives it its name, and returns the port of
/// all workspaces.
async fn start_workspaces(
    names: &NameServer,
    code_server: Option<&Path>,
    folder: &Path,
    tasks: &Tasks,
    code_servers: &mut CodeServers,
) -> Result<u16, Error> {
    let listeners = workspace::listeners().await.map_err(|error| {
        format!("the workspaces need 127.0.0.2 and those after it, as Linux has: {error}")
    })?;
    let mut port = 0;
    for (user, listener) in listeners {
        let address = listener.local_addr()?;
        port = address.port();
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
    Ok(port)
}

/// Runs runner, forwarder and gateway until the stop signal, or until one of them ends
/// unexpectedly.
async fn serve(
    listener: TcpListener,
    folder: &Path,
    names: &NameServer,
    workspace_port: u16,
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
    Gateway::new(asked, workspace_port, forwarder, tasks.clone()).serve(listener);

    let used = async {
        ready::all_answer(front).await?;
        print_where_to_look(front);
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
    let lines = format!(
        "\
kube-coders quickstart: one address, a workspace for each user
  pick a user    http://{front}/
  pick another   http://{front}/quickstart/
  without pages  curl -i -b {}=alice http://{front}/
  end            Ctrl-C
ready: http://{front}/
",
        gateway::USER_COOKIE
    );
    // If the reader of our output has closed it, there is no one to tell.
    let mut out = io::stdout();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}
