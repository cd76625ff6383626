//! The whole process put together: sockets bound, parts started, drain awaited.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admission::{Admission, GatewayProcess};
use crate::conf::ConfCache;
use crate::direct::Direct;
use crate::forwarder::{Forwarder, ForwarderLimits};
use crate::key_file::{KeyError, OperatorsKey, key_beside, read_or_make_key};
use crate::plugin::Registry;
use crate::resolver::Resolver;
use crate::runner::Runner;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::socket_file::{BindError, BoundFile, Watched, Whose};
use crate::stamp::{StampKey, Stamper};
use crate::takeover::{Before, Inheritance, Inherited, Predecessor, Succession};
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

/// What may help where the runner at the socket is another user's.
const FOREIGN: &str = "; the runner at this socket is another user's, who hands over to their own and to root: start this one as that user";

/// Why the runner did not start.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error("the plugin name {0:?} is taken twice")]
    SameName(&'static str),
    #[error("the socket {path:?} (--listen-address or APISIX_LISTEN_ADDRESS): {error}")]
    Socket { path: PathBuf, error: BindError },
    #[error("the stamps' key {path:?} (or --stamp-key-file): {error}")]
    Key { path: PathBuf, error: KeyError },
    #[error("--forwarder-address {address}: {error}{}", if *.is_foreign { FOREIGN } else { "" })]
    Forwarder {
        address: SocketAddr,
        /// Whether another user's runner is at the socket.
        is_foreign: bool,
        error: io::Error,
    },
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

    let before = Before::ask(&settings.socket.path).await;
    let is_foreign = matches!(before, Before::Foreign);
    let (predecessor, listener, may_share) = match before {
        Before::Hands(Inheritance { predecessor, listener }) => {
            let may_share = listener.is_none();
            (Some(predecessor), listener, may_share)
        }
        Before::Keeps => (None, None, true),
        Before::Nobody | Before::Foreign => (None, None, false),
    };
    let listening = forwarder_listener(settings.forwarder, listener, may_share);
    let Some(forwarder_listener) = shutdown.stop.run_until_cancelled(listening).await else { return Ok(()) };
    let failed = |error| RunError::Forwarder { address: settings.forwarder, is_foreign, error };
    let forwarder_listener = forwarder_listener.map_err(failed)?;
    let shared = forwarder_listener.as_fd().try_clone_to_owned();
    let shared = shared.map_err(failed)?;
    let succession = Succession::new(Some(shared));
    // Who is told to end already takes nothing away from others.
    if shutdown.stop.is_cancelled() {
        return Ok(());
    }
    let failed = |error| RunError::Socket { path: settings.socket.path.clone(), error };
    let prepared = settings.socket.prepare().map_err(failed)?;
    // The path is taken last: who can't start takes nothing from a runner that serves.
    let stamp_key = match &settings.stamp_key {
        Some(OperatorsKey { key, is_everybodys }) => {
            if *is_everybodys {
                warn!(
                    cure = "chmod 0600",
                    "--stamp-key-file: every user of this machine may read the key or change it, and make stamps with it"
                );
            }
            key.clone()
        }
        None => key_of_the_socket(&settings.socket.path)?,
    };
    let (listener, file) = prepared.take_path().map_err(failed)?;
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
    let mut is_told = false;
    let mut serving = FuturesUnordered::new();
    let mut replaced = CancellationToken::new();
    serving.push(server.accept(listener, file, replaced.clone()));
    loop {
        tokio::select! {
            Some(()) = serving.next() => if serving.is_empty() { break },
            () = gone(&watched, succession, stop) => match settings.socket.bind() {
                Ok((listener, file)) => {
                    warn!(socket = %settings.socket.path.display(), "the socket's file was gone: made anew");
                    (watched, is_told) = (file.watched(), false);
                    let before = std::mem::take(&mut replaced);
                    serving.push(server.accept(listener, file, replaced.clone()));
                    before.cancel();
                }
                Err(error) if !is_told => {
                    error!(%error, "the socket's file is gone and can't be made: tries again until it can");
                    is_told = true;
                }
                Err(_) => {}
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

fn key_of_the_socket(socket: &Path) -> Result<StampKey, RunError> {
    let path = key_beside(socket);
    read_or_make_key(&path).map_err(|error| RunError::Key { path, error })
}

/// The forwarder's listener: the predecessor's own, or one beside it where it hands
/// none over, as a runner of an older version does not.
///
/// Anybody else at this address would get requests with our stamps, and we theirs.
async fn forwarder_listener(
    address: SocketAddr,
    inherited: Option<StdTcpListener>,
    may_share: bool,
) -> io::Result<TcpListener> {
    if let Some(listener) = inherited {
        let theirs = listener.local_addr()?;
        if theirs == address {
            listener.set_nonblocking(true)?;
            return TcpListener::from_std(listener);
        }
        if address.port() != 0 {
            warn!(%theirs, ours = %address, "the runner at this socket has its forwarder at another address, which ends with it: have the routes' upstream follow");
        }
    }
    let start = Instant::now();
    let mut is_told = false;
    loop {
        let taken = match listen(address, may_share) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
            listening => return listening,
        };
        // The runner of a gateway that was stopped is at another socket, and about to end.
        if start.elapsed() >= PORT || may_share {
            let why = "another process listens there, and it is no runner that hands over to this one: end it, or choose another address";
            return Err(io::Error::new(taken.kind(), why));
        }
        if !is_told {
            info!(%address, most = ?PORT, "another process has the forwarder's port: waits for its end");
            is_told = true;
        }
        sleep(PORT_CHECK).await;
    }
}

/// Listens there alone, or beside another process of the same user. In any case one that
/// comes later may listen beside us: a successor to which nothing could be handed over.
fn listen(address: SocketAddr, may_share: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(may_share)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    setsockopt(&listener, sockopt::ReusePort, &true)?;
    Ok(listener)
}
