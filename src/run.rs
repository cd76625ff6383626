//! The whole process put together: sockets bound, parts started, drain awaited.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::unistd::getppid;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admission::{Admission, GatewayProcess};
use crate::conf::ConfCache;
use crate::forwarder::Forwarder;
use crate::key_file::{KeyError, key_beside, read_or_make_key};
use crate::plugin::Registry;
use crate::resolver::Resolver;
use crate::runner::Runner;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::socket_file::{BindError, BoundFile, Watched, Whose};
use crate::stamp::{StampKey, Stamper};
use crate::user_upstream::UserUpstream;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How often it is looked whether the socket's file is still there.
const SOCKET_CHECK: Duration = Duration::from_secs(1);

/// Why the runner did not start.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error("the plugin name {0:?} is taken twice")]
    SameName(&'static str),
    #[error("the socket {path:?} (--listen-address or APISIX_LISTEN_ADDRESS): {error}")]
    Socket { path: PathBuf, error: BindError },
    #[error("the stamps' key {path:?} (or --stamp-key-file): {error}")]
    Key { path: PathBuf, error: KeyError },
    #[error("--forwarder-address {address}: {error}")]
    Forwarder { address: SocketAddr, error: io::Error },
    #[error("random numbers: {0}")]
    Random(getrandom::Error),
    #[error("reading the system's name servers: {0}")]
    Names(String),
}

/// Runs until it is told to stop, then drains.
pub(crate) async fn run(
    mut settings: Settings,
    mut registry: Registry,
    shutdown: &Shutdown,
) -> Result<(), RunError> {
    // First of all, so that a parent which dies while we start is missed.
    let parent = getppid();
    let resolver = Resolver::with_lifetimes(&settings.name_servers, settings.name_lifetimes)
        .map_err(|error| RunError::Names(error.to_string()))?;
    let resolver = Arc::new(resolver);
    let user_upstream = UserUpstream::new(Arc::clone(&resolver)).map_err(RunError::Random)?;
    if !registry.add(user_upstream) {
        return Err(RunError::SameName(<UserUpstream as crate::Plugin>::NAME));
    }
    let gateway = settings.spawned.then(|| GatewayProcess::above(parent.as_raw())).flatten();
    let admission = Admission::new(std::mem::take(&mut settings.allowed_uids), gateway);

    let forwarder_listener = listen_at(settings.forwarder, &settings.socket.path)
        .map_err(|error| RunError::Forwarder { address: settings.forwarder, error })?;
    let bound = settings.socket.bind();
    let (listener, file) =
        bound.map_err(|error| RunError::Socket { path: settings.socket.path.clone(), error })?;
    let stamp_key = stamp_key(&mut settings)?;
    info!(
        socket = %settings.socket.path.display(),
        mode = format!("{:04o}", settings.socket.mode),
        serves = %admission,
        plugins = ?registry.names(),
        "runner listens"
    );
    info!(address = %forwarder_listener.local_addr().unwrap_or(settings.forwarder), "forwarder listens");
    if settings.spawned && gateway.is_none() {
        warn!(
            "the process that started this one is gone or has no parent: no gateway's workers are served by descent"
        );
    }

    let stamper = Stamper { key: stamp_key.clone(), lifetime: settings.stamp_lifetime };
    let confs = ConfCache::new(settings.conf_expire_time, settings.max_confs);
    let runner = Arc::new(Runner::new(registry, confs, settings.call, stamper));
    let server = Server::new(runner, admission, settings.max_connections);
    let forwarder = Forwarder::new(
        stamp_key,
        resolver,
        settings.forwarder_limits.clone(),
        settings.workspace_trust.clone(),
    );

    let serving = async {
        tokio::join!(
            serve_socket(&server, &settings, listener, file, &shutdown.stop),
            forwarder.serve(forwarder_listener, shutdown.stop.clone(), settings.drain),
        )
    };
    let orphaned = async {
        if settings.spawned {
            shutdown.on_death_of(parent).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = serving => info!("drained"),
        () = shutdown.now.cancelled() => warn!("ended before everything was finished"),
        () = orphaned => {}
    }
    Ok(())
}

/// Serves the socket, and makes it anew where its file has gone: a runner that was
/// started beside this one and has ended took it along.
async fn serve_socket(
    server: &Server,
    settings: &Settings,
    listener: UnixListener,
    file: BoundFile,
    stop: &CancellationToken,
) {
    let mut watched = file.watched();
    let mut serving = FuturesUnordered::new();
    serving.push(server.serve(listener, file, stop.clone(), settings.drain));
    loop {
        tokio::select! {
            Some(()) = serving.next() => if serving.is_empty() { return },
            () = gone(&watched, stop) => match settings.socket.bind() {
                Ok((listener, file)) => {
                    warn!(socket = %settings.socket.path.display(), "the socket's file was gone: made anew");
                    watched = file.watched();
                    serving.push(server.serve(listener, file, stop.clone(), settings.drain));
                }
                Err(error) => error!(%error, "the socket's file is gone and can't be made"),
            },
        }
    }
}

/// Returns when a socket's file is there no more; never once everything is to end.
async fn gone(watched: &Watched, stop: &CancellationToken) {
    let mut looks = interval(SOCKET_CHECK);
    let mut is_told = false;
    // The first look is at once, and too early.
    looks.tick().await;
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        match watched.whose() {
            Whose::Ours => is_told = false,
            Whose::Anothers if is_told => {}
            Whose::Anothers => {
                warn!("another runner has taken the socket over: the gateway's new calls go there");
                is_told = true;
            }
            Whose::Nobodys => return,
        }
    }
    std::future::pending::<()>().await;
}

fn stamp_key(settings: &mut Settings) -> Result<StampKey, RunError> {
    if let Some(key) = settings.stamp_key.take() {
        return Ok(key);
    }
    let path = key_beside(&settings.socket.path);
    read_or_make_key(&path).map_err(|error| RunError::Key { path, error })
}

/// Listens at the forwarder's address, beside a predecessor that has not let it
/// go yet: on a reload the gateway starts the new runner while the old one still
/// runs (GATEWAY.md, Spawned by the gateway). Anybody else there would get
/// requests with our stamps, and we theirs.
fn listen_at(address: SocketAddr, socket: &Path) -> io::Result<TcpListener> {
    let is_taken = address.port() != 0 && TcpStream::connect(address).is_ok();
    let has_predecessor = || UnixStream::connect(socket).is_ok();
    if is_taken && !has_predecessor() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there, and no runner at this socket",
        ));
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
