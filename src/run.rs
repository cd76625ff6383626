//! The whole process put together: sockets bound, parts started, drain awaited.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admission::{Admission, GatewayProcess};
use crate::conf::ConfCache;
use crate::direct::Direct;
use crate::forwarder::{Forwarder, ForwarderLimits};
use crate::key_file::{KeyError, key_beside, read_or_make_key};
use crate::plugin::Registry;
use crate::resolver::Resolver;
use crate::runner::Runner;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::socket_file::{BindError, BoundFile, Watched, Whose};
use crate::stamp::{StampKey, Stamper};
use crate::takeover::{Inheritance, Inherited, Predecessor, Succession};
use crate::user_upstream::UserUpstream;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How often it is looked whether the socket's file is still there.
const SOCKET_CHECK: Duration = Duration::from_millis(100);

/// How long a runner that its keeper has left waits for a successor: on a reload a
/// gateway starts the new one at about the time when it ends the old one (GATEWAY.md,
/// Spawned by the gateway).
const SUCCESSOR: Duration = Duration::from_secs(2);

/// How often a runner that waits looks whether its gateway still lives.
const GATEWAY_CHECK: Duration = Duration::from_millis(50);

/// How many checks there are to a look whether somebody listens at a socket that
/// another runner has taken over.
const LOOK_EVERY: u32 = 10;

/// How long the forwarder's port may still be another's, who may be about to end.
const PORT: Duration = Duration::from_secs(4);

/// How often it is looked whether the port is free.
const PORT_CHECK: Duration = Duration::from_millis(50);

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
    let resolver = Resolver::with_lifetimes(&settings.name_servers, settings.name_lifetimes)
        .map_err(|error| RunError::Names(error.to_string()))?;
    let resolver = Arc::new(resolver);
    let user_upstream =
        UserUpstream::new(Arc::clone(&resolver), settings.ways()).map_err(RunError::Random)?;
    if !registry.add(user_upstream) {
        return Err(RunError::SameName(<UserUpstream as crate::Plugin>::NAME));
    }
    let gateway = settings.kept_for.filter(|master| *master > 0).map(GatewayProcess::new);
    let admission = Admission::new(std::mem::take(&mut settings.allowed_uids), gateway);

    let inheritance = Inheritance::ask(&settings.socket.path).await;
    let (predecessor, listener) =
        inheritance.map_or((None, None), |inheritance| (Some(inheritance.predecessor), inheritance.listener));
    let forwarder_listener = forwarder_listener(settings.forwarder, listener, &settings.socket.path)
        .await
        .map_err(|error| RunError::Forwarder { address: settings.forwarder, error })?;
    let shared = forwarder_listener.as_fd().try_clone_to_owned();
    let shared = shared.map_err(|error| RunError::Forwarder { address: settings.forwarder, error })?;
    let succession = Succession::new(Some(shared));
    // Who is told to end already takes nothing away from others.
    if shutdown.stop.is_cancelled() {
        return Ok(());
    }
    let bound = settings.socket.bind();
    let (listener, file) =
        bound.map_err(|error| RunError::Socket { path: settings.socket.path.clone(), error })?;
    let stamp_key = stamp_key(&mut settings)?;
    tell_start(&settings, &admission, &registry, &forwarder_listener);
    let stamper = Stamper { key: stamp_key.clone(), lifetime: settings.stamp_lifetime };
    let confs = ConfCache::new(settings.conf_expire_time, settings.max_confs);
    let runner = Runner::new(registry, confs, settings.call, stamper);
    let runner = Arc::new(runner.with_direct(direct(&settings, &resolver)));
    let draining = CancellationToken::new();
    let server =
        Server::new(runner, admission, settings.max_connections, Arc::clone(&succession), draining.clone());
    let forwarder = Forwarder::new(
        stamp_key,
        resolver,
        settings.forwarder_limits.clone(),
        settings.workspace_trust.clone(),
        Arc::clone(&succession),
    );

    let serving = async {
        tokio::join!(
            serve_socket(&server, &settings, listener, file, &succession, &draining),
            Arc::clone(&forwarder).serve(forwarder_listener, draining.clone(), settings.drain),
            // What it hands on must be gone before we are.
            inherit(predecessor, &server, &forwarder, &succession, &draining),
        )
    };
    let told_to_stop = async {
        shutdown.stop.cancelled().await;
        // Where no gateway has died, a service manager starts the next one.
        let is_orphan = settings.spawned && shutdown.alone.is_cancelled();
        let is_awaited = settings.kept_for.is_some() && !is_orphan;
        hand_over(&succession, if is_awaited { SUCCESSOR } else { Duration::ZERO }, gateway).await;
        draining.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = serving => info!("drained"),
        () = shutdown.now.cancelled() => warn!("ended before everything was finished"),
        () = told_to_stop => {}
    }
    Ok(())
}

fn tell_start(settings: &Settings, admission: &Admission, registry: &Registry, forwarder: &TcpListener) {
    info!(
        socket = %settings.socket.path.display(),
        mode = format!("{:04o}", settings.socket.mode),
        serves = %admission,
        plugins = ?registry.names(),
        "runner listens"
    );
    if settings.ways().trusts_anybody {
        warn!("--workspace-ca none: nobody checks the certificates of workspaces at https://");
    }
    let address = forwarder.local_addr().unwrap_or(settings.forwarder);
    info!(upstream_mode = settings.upstream_mode.as_str(), %address, "forwarder listens");
}

fn direct(settings: &Settings, resolver: &Arc<Resolver>) -> Direct {
    let ForwarderLimits { connect, send, read, .. } = settings.forwarder_limits;
    Direct { ways: settings.ways(), resolver: Arc::clone(resolver), connect, send, read }
}

/// Waits for a successor, unless the gateway ends meanwhile, and leaves the forwarder's
/// port to it.
async fn hand_over(succession: &Succession, for_one: Duration, gateway: Option<GatewayProcess>) {
    tokio::select! {
        () = succession.wait(for_one) => {}
        () = end_of(gateway) => {}
    }
    succession.close_listener();
}

/// Returns once the gateway has ended; never where there is none.
async fn end_of(gateway: Option<GatewayProcess>) {
    let Some(gateway) = gateway else { return std::future::pending().await };
    while gateway.is_alive() {
        sleep(GATEWAY_CHECK).await;
    }
}

/// Serves the connections that predecessors hand over, until `stop`; then hands them on
/// to a successor, if there is one.
async fn inherit(
    first: Option<Predecessor>,
    server: &Server,
    forwarder: &Arc<Forwarder>,
    succession: &Succession,
    stop: &CancellationToken,
) {
    let (mut predecessors, mut nexts) = (BTreeMap::new(), FuturesUnordered::new());
    let next_of = |number: u64, predecessor: Predecessor| async move { (number, predecessor.next().await) };
    let mut numbers = 0..;
    let mut found = first;
    if let Some(predecessor) = &found {
        predecessor.listens().await;
    }
    loop {
        if let Some((predecessor, number)) = found.take().zip(numbers.next()) {
            nexts.push(next_of(number, predecessor.clone()));
            predecessors.insert(number, (predecessor, HandedOver::default()));
        }
        let (number, inherited) = tokio::select! {
            Some(next) = nexts.next() => next,
            () = stop.cancelled() => {
                // Whoever reads from them now, it is not us; and where nobody does, they
                // keep what they have.
                nexts.clear();
                for (predecessor, HandedOver { calls, requests }) in predecessors.into_values() {
                    let is_handed_on = succession.hand_over_predecessor(&predecessor).await;
                    info!(calls, requests, is_handed_on, "told to end; connections that a predecessor has handed over");
                }
                return;
            }
        };
        let Some((predecessor, handed_over)) = predecessors.get_mut(&number) else { continue };
        match inherited {
            Some(Inherited::Calls(stream)) => {
                handed_over.calls += 1;
                server.admit(stream);
            }
            Some(Inherited::Requests(stream)) => {
                handed_over.requests += 1;
                forwarder.admit(stream, stop);
            }
            Some(Inherited::Predecessor(predecessor)) => found = Some(predecessor),
            None => {
                let HandedOver { calls, requests } = *handed_over;
                info!(calls, requests, "a predecessor has ended; connections that it has handed over");
                predecessors.remove(&number);
                continue;
            }
        }
        nexts.push(next_of(number, predecessor.clone()));
    }
}

/// How many connections a predecessor has handed over.
#[derive(Clone, Copy, Debug, Default)]
struct HandedOver {
    calls: u64,
    requests: u64,
}

/// Serves the socket, and makes it anew where its file has gone: a runner that was
/// started beside this one and has ended took it along.
async fn serve_socket(
    server: &Server,
    settings: &Settings,
    listener: UnixListener,
    file: BoundFile,
    succession: &Succession,
    stop: &CancellationToken,
) {
    let mut watched = file.watched();
    let mut serving = FuturesUnordered::new();
    serving.push(server.accept(listener, file));
    loop {
        tokio::select! {
            Some(()) = serving.next() => if serving.is_empty() { break },
            () = gone(&watched, succession, stop) => match settings.socket.bind() {
                Ok((listener, file)) => {
                    warn!(socket = %settings.socket.path.display(), "the socket's file was gone: made anew");
                    watched = file.watched();
                    serving.push(server.accept(listener, file));
                }
                Err(error) => error!(%error, "the socket's file is gone and can't be made"),
            },
        }
    }
    server.finish(Instant::now() + settings.drain).await;
}

/// Returns when a socket's file is there no more, or leads to nobody because whoever
/// had taken it over was killed; never once everything is to end.
async fn gone(watched: &Watched, succession: &Succession, stop: &CancellationToken) {
    let mut looks = interval(SOCKET_CHECK);
    let mut is_told = false;
    // The first look is at once, and too early.
    looks.tick().await;
    let mut unlooked = 0;
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        match watched.whose() {
            Whose::Ours => is_told = false,
            // A successor has said so, and is there.
            Whose::Anothers if succession.is_ready() => (is_told, unlooked) = (true, 0),
            Whose::Anothers => {
                // Each look is a connection that somebody has to accept.
                if unlooked % LOOK_EVERY == 0 && watched.leads_nowhere().await {
                    return;
                }
                unlooked += 1;
                if !is_told {
                    warn!("another runner has taken the socket over: the gateway's new calls go there");
                }
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

/// The forwarder's listener: the predecessor's own, or one beside it where it hands
/// none over, as a runner of an older version does not.
///
/// Anybody else at this address would get requests with our stamps, and we theirs.
async fn forwarder_listener(
    address: SocketAddr,
    inherited: Option<StdTcpListener>,
    socket: &Path,
) -> io::Result<TcpListener> {
    if let Some(listener) = inherited
        && listener.local_addr()? == address
    {
        listener.set_nonblocking(true)?;
        return TcpListener::from_std(listener);
    }
    let is_taken = || address.port() != 0 && TcpStream::connect(address).is_ok();
    let has_predecessor = || UnixStream::connect(socket).is_ok();
    let start = Instant::now();
    let mut is_told = false;
    // The runner of a gateway that was stopped is at another socket, and about to end.
    while is_taken() && !has_predecessor() {
        if start.elapsed() >= PORT {
            let why =
                "another process listens there, and no runner at this socket: end it, or choose another";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        if !is_told {
            info!(%address, most = ?PORT, "another process has the forwarder's port: waits for its end");
            is_told = true;
        }
        sleep(PORT_CHECK).await;
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
