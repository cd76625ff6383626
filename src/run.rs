//! The whole process put together: sockets bound, parts started, drain awaited.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use nix::unistd::getppid;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tracing::{info, warn};

use crate::admission::{Admission, GatewayProcess};
use crate::conf::ConfCache;
use crate::forwarder::{Forwarder, ForwarderLimits};
use crate::plugin::Registry;
use crate::resolver::Resolver;
use crate::runner::Runner;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::socket_file::BindError;
use crate::stamp::Stamper;
use crate::user_upstream::UserUpstream;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Why the runner did not start.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error("the plugin name {0:?} is taken twice")]
    SameName(&'static str),
    #[error("--listen-address {path:?}: {error}")]
    Socket { path: std::path::PathBuf, error: BindError },
    #[error("--forwarder-address {address}: {error}")]
    Forwarder { address: SocketAddr, error: io::Error },
    #[error("reading the system's name servers: {0}")]
    Names(String),
}

/// Runs until it is told to stop, then drains.
pub(crate) async fn run(
    settings: Settings,
    mut registry: Registry,
    shutdown: &Shutdown,
) -> Result<(), RunError> {
    let resolver =
        Resolver::new(&settings.name_servers).map_err(|error| RunError::Names(error.to_string()))?;
    let resolver = Arc::new(resolver);
    if !registry.add(UserUpstream::new(Arc::clone(&resolver))) {
        return Err(RunError::SameName(<UserUpstream as crate::Plugin>::NAME));
    }
    let parent = getppid();
    let gateway = settings.spawned.then(|| GatewayProcess::above(parent.as_raw())).flatten();
    let admission = Admission::new(settings.allowed_uids, gateway);

    let forwarder_listener = listen_loopback(settings.forwarder)
        .map_err(|error| RunError::Forwarder { address: settings.forwarder, error })?;
    let bound = settings.socket.bind();
    let (listener, file) =
        bound.map_err(|error| RunError::Socket { path: settings.socket.path.clone(), error })?;
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

    let stamper = Stamper { key: settings.stamp_key.clone(), lifetime: settings.stamp_lifetime };
    let confs = ConfCache::new(settings.conf_expire_time, settings.max_confs);
    let runner = Arc::new(Runner::new(registry, confs, settings.call, stamper));
    let server = Server::new(runner, admission, settings.max_connections);
    let limits =
        ForwarderLimits { max_connections: settings.max_forwarder_connections, ..ForwarderLimits::default() };
    let forwarder = Forwarder::new(settings.stamp_key, resolver, limits);

    let serving = async {
        tokio::join!(
            server.serve(listener, file, shutdown.stop.clone(), settings.drain),
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

/// Listens beside a predecessor that has not let the port go yet: on a reload
/// the gateway starts the new runner while the old one still runs (GATEWAY.md,
/// Spawned by the gateway).
fn listen_loopback(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
