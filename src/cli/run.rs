//! The whole process put together: the runner, and the forwarder as its companion.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use apisix_plugin_runner::listener::{GatewayProcess, Shutdown, Succession};
use apisix_plugin_runner::{
    Companion, CompanionParts, Control, InheritedListener, RunError, Runner, Start, UpstreamMode,
};
use rustix::net::sockopt::set_socket_reuseport;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::settings::{ProgramSettings, SubjectKeyFile};
use crate::forwarder::{Forwarder, ForwarderLimits};
use crate::logged_user::LoggedUsers;
use crate::refusal::RefusalAnswers;
use crate::resolver::{AddressPolicy, Resolver, SearchDomains};
use crate::route::carrier::RouteCarrier;
use crate::route::key_file::{KeyError, default_key_file, default_subject_key_file, read_or_make_key};
use crate::route::stamp::{StampKey, Stamper};
use crate::subject_digest::SubjectKeys;
use crate::user_upstream::UserUpstream;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How long a runner that its keeper has left waits for a successor: on a reload a
/// gateway starts the new one at about the time when it ends the old one (docs/gateway.md,
/// Spawned by the gateway).
const SUCCESSOR: Duration = Duration::from_secs(2);

/// How long to wait for the forwarder's port while another process, which may be about to
/// end, has it.
const PORT: Duration = Duration::from_secs(4);

/// How often the port is tried meanwhile. The kernel has no event for a port that becomes
/// free.
const PORT_CHECK: Duration = Duration::from_millis(50);

/// What may help if the runner at the socket belongs to another user.
const FOREIGN: &str = "; the runner at this socket belongs to another user and hands over only to that user and to root: start this one as that user";

/// Why the runner did not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Runner(#[from] RunError),
    #[error("the stamps' key {path:?} (or --stamp-key-file): {error}")]
    StampKey { path: PathBuf, error: KeyError },
    #[error("the subjects' key {path:?} (or --subject-key-file): {error}")]
    SubjectKey { path: PathBuf, error: KeyError },
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
    settings: ProgramSettings,
    runner: Runner,
    shutdown: &Shutdown,
    alone: &CancellationToken,
) -> Result<(), StartError> {
    let resolver = |search, policy| {
        Resolver::with_lifetimes(&settings.name_servers, search, policy, settings.name_lifetimes)
            .map_err(|error| StartError::Names(error.to_string()))
    };
    let issuer_names = resolver(&SearchDomains::System, AddressPolicy::any())?;
    let resolver = Arc::new(resolver(&settings.search_domains, settings.address_policy.clone())?);
    let gateway = settings.kept_for.filter(|master| *master > 0).map(GatewayProcess::new);
    let runner_settings = settings.runner.clone().gateway(gateway);

    let mut start = Start::at(&runner_settings).await;
    let inherited = start.companion_listener();
    let is_foreign = inherited.is_foreign;
    let listening = forwarder_listener(settings.forwarder, inherited);
    let Some(listener) = shutdown.stop.run_until_cancelled(listening).await else { return Ok(()) };
    let failed = |error| StartError::Forwarder { address: settings.forwarder, is_foreign, error };
    let listener = listener.map_err(failed)?;
    let shared = listener.as_fd().try_clone_to_owned().map_err(failed)?;
    let succession = Succession::new(Some(shared));
    // A runner that is already told to end takes nothing away from others.
    if shutdown.stop.is_cancelled() {
        return Ok(());
    }
    let start = start.prepare()?;
    // The path is taken last: a runner that can't start takes nothing from one that serves.
    let stamp_key = stamp_key(&settings)?;
    let subject_keys = subject_keys(&settings)?;
    let logged_users = LoggedUsers::new(subject_keys.clone(), settings.logs_subjects);
    let user_upstream = UserUpstream::new(
        Arc::clone(&resolver),
        issuer_names,
        settings.ways(),
        settings.max_key_age,
        subject_keys,
        logged_users.clone(),
    );
    let runner = runner.plugin(user_upstream.map_err(StartError::Random)?).failure_answers(RefusalAnswers);
    if settings.ways().accepts_any_certificate {
        warn!("--workspace-ca none: any certificate of a workspace at https:// is accepted");
    }
    let stamper = Stamper { key: stamp_key.clone(), lifetime: settings.stamp_lifetime };
    let ForwarderLimits { connect, send, read, .. } = settings.forwarder_limits;
    let carrier = RouteCarrier::new(settings.ways(), stamper, Arc::clone(&resolver), [connect, send, read]);
    let forwarder = Forwarder::new(
        stamp_key,
        resolver,
        settings.forwarder_limits.clone(),
        settings.workspace_trust.clone(),
        logged_users,
        Arc::clone(&succession),
    );
    let mode = settings.upstream_mode;
    let companion = Arc::new(ForwarderCompanion { forwarder, mode, listener: Mutex::new(Some(listener)) });
    let parts = CompanionParts { companion, succession };
    runner
        .carrier(carrier)
        .serve(start, runner_settings, Some(parts), &control(&settings, shutdown, alone))
        .await?;
    Ok(())
}

/// How long the runner waits for a successor when it is told to stop: a service manager
/// starts the next one, and so does a gateway that lives.
fn control(settings: &ProgramSettings, shutdown: &Shutdown, alone: &CancellationToken) -> Control {
    let control = Control::new(shutdown.stop.clone(), shutdown.now.clone());
    let (is_kept, spawned, alone) = (settings.kept_for.is_some(), settings.spawned, alone.clone());
    control.successor_wait(move || {
        let is_orphan = spawned && alone.is_cancelled();
        if is_kept && !is_orphan { SUCCESSOR } else { Duration::ZERO }
    })
}

fn stamp_key(settings: &ProgramSettings) -> Result<StampKey, StartError> {
    match &settings.stamp_key {
        Some(configured) => {
            if configured.is_open_to_all {
                warn!(
                    cure = "chmod 0600",
                    "--stamp-key-file: every user of this machine may read the key or change it, and make stamps with it"
                );
            }
            Ok(StampKey::new(&configured.key))
        }
        None => {
            let path = default_key_file(settings.runner.socket_path());
            let key = read_or_make_key(&path).map_err(|error| StartError::StampKey { path, error })?;
            Ok(StampKey::new(&key))
        }
    }
}

fn subject_keys(settings: &ProgramSettings) -> Result<SubjectKeys, StartError> {
    let made = |path: &Path| {
        let key = read_or_make_key(path);
        key.map_err(|error| StartError::SubjectKey { path: path.to_owned(), error })
    };
    let mut keys = Vec::new();
    for file in &settings.subject_keys {
        keys.push(match file {
            SubjectKeyFile::Missing(path) => made(path)?,
            SubjectKeyFile::Read(configured) => {
                if configured.is_open_to_all {
                    warn!(
                        cure = "chmod 0600",
                        "--subject-key-file: every user of this machine may read the key or change it, and mark browsers with it"
                    );
                }
                configured.key.clone()
            }
        });
    }
    match keys.split_first() {
        Some((current, former)) => Ok(SubjectKeys::new(current, former)),
        None => Ok(SubjectKeys::new(&made(&default_subject_key_file(settings.runner.socket_path()))?, &[])),
    }
}

/// The forwarder as the runner's companion.
struct ForwarderCompanion {
    forwarder: Arc<Forwarder>,
    mode: UpstreamMode,
    /// Taken when it serves.
    listener: Mutex<Option<TcpListener>>,
}

impl Companion for ForwarderCompanion {
    fn serve(
        self: Arc<Self>,
        stop: CancellationToken,
        drain: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            if let Some(listener) = self.listener.lock().await.take() {
                let address = listener.local_addr().ok().map(tracing::field::display);
                info!(upstream_mode = self.mode.as_str(), address, "forwarder listens");
                Arc::clone(&self.forwarder).serve(listener, stop, drain).await;
            }
        })
    }

    fn admit(self: Arc<Self>, connection: TcpStream, stop: &CancellationToken) {
        self.forwarder.admit(connection, stop);
    }
}

/// The forwarder's listener: the predecessor's own, or a new one if the predecessor hands none
/// over.
///
/// Any other process at this address would get requests with our stamps, and we theirs.
async fn forwarder_listener(address: SocketAddr, inherited: InheritedListener) -> io::Result<TcpListener> {
    if let Some(listener) = inherited.listener {
        let theirs = listener.local_addr()?;
        if theirs == address {
            // An earlier version let other processes of the same user listen there too.
            set_socket_reuseport(&listener, false)?;
            listener.set_nonblocking(true)?;
            return TcpListener::from_std(listener);
        }
        if address.port() != 0 {
            warn!(%theirs, ours = %address, "the previous runner's forwarder has another address, which ends with it: change the upstream of the routes");
        }
    }
    let start = Instant::now();
    let mut is_logged = false;
    loop {
        let taken = match listen(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
            listening => return listening,
        };
        // The runner of a gateway that was stopped is at another socket, and about to end. One that
        // hangs at our socket is killed by its gateway.
        if start.elapsed() >= PORT {
            let why = "another process listens there, and it is not a runner that hands over to this one: end it, or choose another address";
            return Err(io::Error::new(taken.kind(), why));
        }
        if !is_logged {
            info!(%address, most = ?PORT, "another process has the forwarder's port: waiting for it to end");
            is_logged = true;
        }
        sleep(PORT_CHECK).await;
    }
}

/// Listens alone. With `SO_REUSEPORT`, any process of the same user could listen at the same
/// address and get a share of the requests, with their stamps and cookies.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
