//! A program's runner: its plugins, and its life from the start to the end of the drain.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener as StdTcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::carrier::Carrier;
use crate::chains::ConfCache;
use crate::config::ConfError;
use crate::dispatcher::Dispatcher;
use crate::failure::FailureAnswers;
use crate::listener::admission::Admission;
use crate::listener::file_watch::gone;
use crate::listener::server::{Purpose, Server};
use crate::listener::socket_file::{BindError, BoundFile, PreparedFile, SocketFile, lock_folder};
use crate::listener::takeover::{Incumbent, Inheritance, Inherited, Predecessor, Succession, takeover_path};
use crate::plugin::{PluginError, PreparedPlugin};
use crate::registry::{PREPARE_DEADLINE, Registry};
use crate::settings::Settings;
use crate::tasks::{EndOnDrop, Tasks};

/// How long the plugins' `stop` hooks may take in all.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How long the plugins' tasks may take to be dropped: each at its next `.await`.
const TASKS_DEADLINE: Duration = Duration::from_secs(1);

/// A runner with its plugins.
///
/// ```no_run
/// # use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
/// # struct Greet;
/// # impl Plugin for Greet {
/// #     const NAME: &'static str = "greet";
/// #     type Config = ();
/// #     async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
/// #         Ok(Action::Continue)
/// #     }
/// # }
/// use apisix_plugin_runner::Runner;
///
/// # #[cfg(feature = "cli")]
/// fn main() -> std::process::ExitCode {
///     Runner::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).plugin(Greet).main()
/// }
/// # #[cfg(not(feature = "cli"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct Runner {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) registry: Registry,
    carrier: Option<Arc<dyn Carrier>>,
    failures: Option<Arc<dyn FailureAnswers>>,
}

/// Why a runner did not start.
///
/// ```
/// use apisix_plugin_runner::{RunError, Runner, Settings};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let runner = Runner::named("my-plugins", "1.0.0");
/// let ran = runner.run(Settings::new("/nonexistent/runner.sock"), std::future::pending()).await;
/// let Err(RunError::Socket { path, error }) = ran else { panic!("{ran:?}") };
/// assert_eq!(error.to_string(), "its folder does not exist: make it, or choose another path");
/// # });
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Two plugins have the same name.
    #[error("two plugins are named {0:?}")]
    DuplicatePlugin(&'static str),
    /// The socket can't be made.
    #[error("the socket {path:?} (--listen-address or APISIX_LISTEN_ADDRESS): {error}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What failed.
        error: BindError,
    },
    /// A plugin's `start` hook failed.
    #[error("the plugin {plugin:?} did not start: {error}")]
    PluginStart {
        /// The plugin's name.
        plugin: &'static str,
        /// What it said.
        error: PluginError,
    },
}

impl Runner {
    /// A runner of the program with this name and version, without plugins. `--help`,
    /// `--version` and error messages show both.
    #[must_use]
    pub fn named(name: &'static str, version: &'static str) -> Self {
        Self { name, version, registry: Registry::default(), carrier: None, failures: None }
    }

    /// Adds a plugin. A runner with two plugins of one name does not start.
    #[must_use]
    pub fn plugin<P: PreparedPlugin>(mut self, plugin: P) -> Self {
        self.registry.add(plugin);
        self
    }

    /// Lets plugins choose the upstream, by this carrier.
    #[must_use]
    pub fn carrier(mut self, carrier: impl Carrier) -> Self {
        self.carrier = Some(Arc::new(carrier));
        self
    }

    /// Replaces the answers to calls that could not be decided.
    #[must_use]
    pub fn failure_answers(mut self, answers: impl FailureAnswers) -> Self {
        self.failures = Some(Arc::new(answers));
        self
    }

    /// The names of the plugins, in alphabetical order.
    #[must_use]
    pub fn plugin_names(&self) -> Vec<&'static str> {
        self.registry.names()
    }

    /// Prepares a conf as for a route and forgets it. `None` if no plugin has this name.
    pub async fn check_conf(&self, plugin: &str, conf: &[u8]) -> Option<Result<(), ConfError>> {
        let prepared =
            self.registry.prepare(plugin.as_bytes(), conf, Instant::now() + PREPARE_DEADLINE).await?;
        Some(prepared.map(drop))
    }

    /// Runs on the caller's runtime until `stop`, then drains. Reads no environment, handles no
    /// signals and installs no subscriber.
    ///
    /// # Errors
    ///
    /// Two plugins of one name, a socket that can't be made, a plugin that does not start.
    pub async fn run(self, settings: Settings, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let control = Control::new(CancellationToken::new(), CancellationToken::new());
        let stop_token = control.stop.clone();
        let stopped = async {
            stop.await;
            stop_token.cancel();
            std::future::pending::<()>().await;
        };
        let running = async {
            let start = Start::at(&settings).await.prepare()?;
            self.serve(start, settings, None, &control).await
        };
        tokio::select! {
            ran = running => ran,
            () = stopped => Ok(()),
        }
    }

    pub(crate) fn dispatcher(&self, settings: &Settings) -> Result<Dispatcher, RunError> {
        if let Some(name) = self.registry.duplicate() {
            return Err(RunError::DuplicatePlugin(name));
        }
        let confs = ConfCache::new(settings.conf_expire_time, settings.max_confs);
        let dispatcher = Dispatcher::new(self.registry.clone(), confs, settings.call);
        Ok(dispatcher.with_carrier(self.carrier.clone()).with_failures(self.failures.clone()))
    }

    /// Takes the socket's path and serves until the drain has ended.
    ///
    /// # Errors
    ///
    /// Two plugins of one name, a plugin that does not start, a path that can't be taken.
    pub async fn serve(
        self,
        start: PreparedStart,
        settings: Settings,
        companion: Option<CompanionParts>,
        control: &Control,
    ) -> Result<(), RunError> {
        let dispatcher = Arc::new(self.dispatcher(&settings)?);
        let (tasks, succession) = (Tasks::default(), succession_of(companion.as_ref()));
        let _ended = EndOnDrop(tasks.clone());
        let started = tokio::select! {
            started = dispatcher.registry().start(&tasks) => started,
            () = control.stop.cancelled() => return Ok(()),
        };
        started.map_err(|(plugin, error)| RunError::PluginStart { plugin, error })?;
        // A runner that was already told to end takes nothing from others.
        if control.stop.is_cancelled() {
            return Ok(());
        }
        let (predecessor, sockets) = start.take_path()?;
        let admission = Admission::new(settings.allowed_uids.clone(), settings.gateway);
        info!(
            socket = %settings.socket.path.display(),
            mode = format!("{:04o}", settings.socket.mode),
            serves = %admission,
            plugins = self.registry.names().join(","),
            "runner listens"
        );
        let draining = CancellationToken::new();
        let server = Server::new(
            Arc::clone(&dispatcher),
            admission,
            settings.max_connections,
            Arc::clone(&succession),
            draining.clone(),
        );
        let companion = companion.map(|parts| parts.companion);
        let serving = async {
            tokio::join!(
                serve_sockets(&server, sockets, &succession, &draining, settings.drain),
                async {
                    if let Some(companion) = &companion {
                        Arc::clone(companion).serve(draining.clone(), settings.drain).await;
                    }
                },
                // What it hands on must be gone before we are.
                inherit(predecessor, &server, companion.as_ref(), &succession, &draining),
            )
        };
        let told_to_stop = async {
            control.stop.cancelled().await;
            hand_over(&succession, control, &settings).await;
            draining.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = serving => info!("drained"),
            () = control.now.cancelled() => warn!("ended before everything was finished"),
            () = told_to_stop => {}
        }
        // No call is answered while the stop hooks run.
        drop(server);
        tokio::select! {
            () = stop_plugins(&dispatcher, &tasks) => {}
            () = control.now.cancelled() => {}
        }
        Ok(())
    }
}

/// Runs the stop hooks and ends the plugins' tasks. The hooks run as a task, so that a hook
/// that blocks its thread does not keep the process.
async fn stop_plugins(dispatcher: &Arc<Dispatcher>, tasks: &Tasks) {
    let stopped = Arc::clone(dispatcher);
    let stopping = tokio::spawn(async move { stopped.registry().stop().await });
    if tokio::time::timeout(STOP_DEADLINE, stopping).await.is_err() {
        warn!(most = ?STOP_DEADLINE, "the plugins' stop hooks take too long: not waited for");
    }
    if tokio::time::timeout(TASKS_DEADLINE, tasks.end()).await.is_err() {
        warn!(most = ?TASKS_DEADLINE, "the plugins' tasks block their threads: not waited for");
    }
}

fn succession_of(companion: Option<&CompanionParts>) -> Arc<Succession> {
    companion.map_or_else(|| Succession::new(None), |parts| Arc::clone(&parts.succession))
}

/// How a runner is told to end.
///
/// ```
/// use std::time::Duration;
///
/// use apisix_plugin_runner::Control;
/// use tokio_util::sync::CancellationToken;
///
/// let (stop, now) = (CancellationToken::new(), CancellationToken::new());
/// let control = Control::new(stop.clone(), now.clone());
/// // A service manager starts the next runner right after it has told this one to end.
/// let control = control.successor_wait(|| Duration::from_millis(400));
///
/// stop.cancel(); // Finish the calls in flight.
/// now.cancel(); // End immediately.
/// ```
#[derive(Clone)]
pub struct Control {
    stop: CancellationToken,
    now: CancellationToken,
    successor_wait: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Control {
    /// Drains once `stop` is cancelled, and ends immediately when `now` is.
    #[must_use]
    pub fn new(stop: CancellationToken, now: CancellationToken) -> Self {
        Self { stop, now, successor_wait: Arc::new(|| Duration::ZERO) }
    }

    /// Asks this function, when the runner is told to stop, how long to wait for a
    /// successor before the drain. By default the runner waits only for a successor that
    /// has announced itself.
    #[must_use]
    pub fn successor_wait(mut self, wait: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.successor_wait = Arc::new(wait);
        self
    }
}

/// A TCP service in the runner's process, whose connections pass to the next runner
/// together with the gateway's.
///
/// ```
/// use std::pin::Pin;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use apisix_plugin_runner::Companion;
/// use tokio::net::{TcpListener, TcpStream};
/// use tokio_util::sync::CancellationToken;
///
/// /// Closes each connection that it accepts.
/// struct Closes(TcpListener);
///
/// impl Companion for Closes {
///     fn serve(
///         self: Arc<Self>,
///         stop: CancellationToken,
///         _drain: Duration,
///     ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
///         Box::pin(async move {
///             while let Some(accepted) = stop.run_until_cancelled(self.0.accept()).await {
///                 drop(accepted);
///             }
///         })
///     }
///
///     fn admit(self: Arc<Self>, connection: TcpStream, _stop: &CancellationToken) {
///         drop(connection);
///     }
/// }
/// ```
pub trait Companion: Send + Sync + 'static {
    /// Serves its listener until `stop`, then drains for at most `drain`.
    fn serve(
        self: Arc<Self>,
        stop: CancellationToken,
        drain: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Serves a connection that a predecessor has handed over.
    fn admit(self: Arc<Self>, connection: TcpStream, stop: &CancellationToken);
}

/// A companion, and the succession by which it hands its connections over.
///
/// ```
/// use std::os::fd::OwnedFd;
/// use std::sync::Arc;
///
/// use apisix_plugin_runner::listener::Succession;
/// use apisix_plugin_runner::{Companion, CompanionParts};
///
/// /// `shared` is a duplicate of the descriptor that the companion listens on.
/// fn parts(companion: Arc<dyn Companion>, shared: OwnedFd) -> CompanionParts {
///     CompanionParts { companion, succession: Succession::new(Some(shared)) }
/// }
/// ```
pub struct CompanionParts {
    /// The companion.
    pub companion: Arc<dyn Companion>,
    /// Made with a duplicate of the companion's listener.
    pub succession: Arc<Succession>,
}

/// A start in progress, and the runner that serves the socket now.
///
/// ```
/// use apisix_plugin_runner::{Control, RunError, Runner, Settings, Start};
///
/// /// As [`Runner::run`], for a program that has tokens to stop it.
/// async fn serve(runner: Runner, settings: Settings, control: &Control) -> Result<(), RunError> {
///     let start = Start::at(&settings).await.prepare()?;
///     runner.serve(start, settings, None, control).await
/// }
/// ```
pub struct Start {
    incumbent: Incumbent,
    socket: SocketFile,
    has_takeover: bool,
}

/// What a companion inherits from the previous runner.
///
/// ```
/// use std::io;
/// use std::net::TcpListener;
///
/// use apisix_plugin_runner::Start;
///
/// /// The previous runner's listener, or a new one if there is none.
/// fn listener(start: &mut Start) -> io::Result<TcpListener> {
///     match start.companion_listener().listener {
///         Some(listener) => Ok(listener),
///         None => TcpListener::bind("127.0.0.1:8080"),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct InheritedListener {
    /// The predecessor's listener, with the connections in its queue.
    pub listener: Option<StdTcpListener>,
    /// Whether the runner at the socket belongs to another user.
    pub is_foreign: bool,
}

impl Start {
    /// Asks the runner that serves the socket, if there is one, to hand over.
    pub async fn at(settings: &Settings) -> Self {
        let incumbent = Incumbent::ask(&settings.socket.path).await;
        Self { incumbent, socket: settings.socket.clone(), has_takeover: settings.has_takeover }
    }

    /// The listener for a companion.
    pub fn companion_listener(&mut self) -> InheritedListener {
        let is_foreign = matches!(self.incumbent, Incumbent::Foreign);
        match &mut self.incumbent {
            Incumbent::HandsOver(inheritance) => {
                InheritedListener { listener: inheritance.listener.take(), is_foreign }
            }
            Incumbent::Keeps | Incumbent::None | Incumbent::Foreign => {
                InheritedListener { listener: None, is_foreign }
            }
        }
    }

    /// Does everything that can fail before the path is taken from the runner that has it.
    ///
    /// # Errors
    ///
    /// A path at which no socket can be made.
    pub fn prepare(self) -> Result<PreparedStart, RunError> {
        let predecessor = match self.incumbent {
            Incumbent::HandsOver(Inheritance { predecessor, .. }) => Some(predecessor),
            _ => None,
        };
        let mut sockets = vec![prepared(&self.socket, Purpose::Calls)?];
        if self.has_takeover {
            let path = takeover_path(&self.socket.path);
            let file = SocketFile { path, mode: 0o600, owner: None, group: None };
            match prepared(&file, Purpose::Takeover) {
                Ok(socket) => sockets.push(socket),
                Err(RunError::Socket { path, error: BindError::TooLong(_) }) => {
                    warn!(path = %path.display(), cure = "a shorter --listen-address", "the path is too long for a unix socket: restarts close the gateway's connections");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(PreparedStart { predecessor, sockets })
    }
}

fn prepared(file: &SocketFile, purpose: Purpose) -> Result<(SocketFile, Purpose, PreparedFile), RunError> {
    let failed = |error| RunError::Socket { path: file.path.clone(), error };
    Ok((file.clone(), purpose, file.prepare().map_err(failed)?))
}

/// A start whose sockets are prepared.
///
/// ```
/// use apisix_plugin_runner::{PreparedStart, RunError, Settings, Start};
///
/// /// Fails if the socket can't be made. The runner that serves there now keeps it until
/// /// [`Runner::serve`](apisix_plugin_runner::Runner::serve).
/// async fn prepared(settings: &Settings) -> Result<PreparedStart, RunError> {
///     Start::at(settings).await.prepare()
/// }
/// ```
pub struct PreparedStart {
    predecessor: Option<Predecessor>,
    sockets: Vec<(SocketFile, Purpose, PreparedFile)>,
}

/// A socket that listens at its path.
struct BoundSocket {
    file: SocketFile,
    purpose: Purpose,
    listener: UnixListener,
    bound: BoundFile,
}

impl PreparedStart {
    /// Takes the paths from the runner that has them.
    fn take_path(self) -> Result<(Option<Predecessor>, Vec<BoundSocket>), RunError> {
        let mut bound_sockets = Vec::with_capacity(self.sockets.len());
        // Two starts at the same time must not share the paths between them.
        let _locked = self.sockets.first().and_then(|(file, ..)| lock_folder(&file.path));
        for (file, purpose, prepared) in self.sockets {
            let failed = |error| RunError::Socket { path: file.path.clone(), error };
            let (listener, bound) = prepared.take_locked_path().map_err(failed)?;
            bound_sockets.push(BoundSocket { file, purpose, listener, bound });
        }
        Ok((self.predecessor, bound_sockets))
    }
}

/// Waits for a successor, unless the gateway ends meanwhile, and leaves the companion's
/// listener to it.
async fn hand_over(succession: &Succession, control: &Control, settings: &Settings) {
    tokio::select! {
        () = succession.wait((control.successor_wait)()) => {}
        () = end_of_gateway(settings) => {}
    }
    succession.close_listener();
}

/// Returns once the gateway has ended; never without one.
async fn end_of_gateway(settings: &Settings) {
    let Some(gateway) = settings.gateway else { return std::future::pending().await };
    gateway.ended().await;
}

/// Serves the connections that predecessors hand over, until `stop`. Then hands the
/// predecessors on to a successor, if there is one.
async fn inherit(
    first: Option<Predecessor>,
    server: &Server,
    companion: Option<&Arc<dyn Companion>>,
    succession: &Succession,
    stop: &CancellationToken,
) {
    let (mut predecessors, mut nexts) = (BTreeMap::new(), Vec::<NextInherited>::new());
    let next_of = |number: u64, predecessor: Predecessor| -> NextInherited {
        Box::pin(async move { (number, predecessor.next().await) })
    };
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
            next = first_ready(&mut nexts) => next,
            () = stop.cancelled() => {
                // The successor reads what waits in their connections.
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
                if let Some(companion) = companion {
                    Arc::clone(companion).admit(stream, stop);
                }
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

type NextInherited = Pin<Box<dyn Future<Output = (u64, Option<Inherited>)> + Send>>;

/// Returns the output of the first future that is ready, and removes that future. A task for each would
/// lose a connection that it has received when it is dropped.
async fn first_ready(nexts: &mut Vec<NextInherited>) -> (u64, Option<Inherited>) {
    std::future::poll_fn(|task| {
        for index in 0..nexts.len() {
            if let Poll::Ready(next) = nexts[index].as_mut().poll(task) {
                drop(nexts.swap_remove(index));
                return Poll::Ready(next);
            }
        }
        Poll::Pending
    })
    .await
}

/// How many connections a predecessor has handed over.
#[derive(Clone, Copy, Debug, Default)]
struct HandedOver {
    calls: u64,
    requests: u64,
}

/// Serves the sockets until `stop`, then lets the calls in flight finish.
async fn serve_sockets(
    server: &Server,
    sockets: Vec<BoundSocket>,
    succession: &Succession,
    stop: &CancellationToken,
    drain: Duration,
) {
    let mut sockets = sockets.into_iter();
    match (sockets.next(), sockets.next()) {
        (Some(calls), Some(takeover)) => {
            tokio::join!(
                serve_socket(server, calls, succession, stop),
                serve_socket(server, takeover, succession, stop),
            );
        }
        (Some(calls), None) => serve_socket(server, calls, succession, stop).await,
        (None, _) => {}
    }
    server.finish(Instant::now() + drain).await;
}

/// Serves a socket, and makes its file again if the file is gone. The file disappears if
/// another runner takes the path over and then ends.
async fn serve_socket(
    server: &Server,
    socket: BoundSocket,
    succession: &Succession,
    stop: &CancellationToken,
) {
    let BoundSocket { file, purpose, listener, bound } = socket;
    let admit = |server: &Server, stream: UnixStream| match purpose {
        Purpose::Calls => server.admit(stream),
        Purpose::Takeover => server.admit_successor(stream),
    };
    let on_taken = || {
        if purpose == Purpose::Calls {
            warn!("another runner has taken the socket over: the gateway's new calls go there");
        }
    };
    let mut watched = bound.watched();
    let mut is_logged = false;
    let mut replaced = CancellationToken::new();
    let mut accepting = Box::pin(server.accept(listener, bound, replaced.clone(), admit));
    loop {
        tokio::select! {
            () = &mut accepting => return,
            () = gone(&watched, succession, stop, on_taken) => match file.bind() {
                Ok((listener, bound)) => {
                    warn!(socket = %file.path.display(), "the socket's file was gone: it is recreated");
                    (watched, is_logged) = (bound.watched(), false);
                    let before = std::mem::take(&mut replaced);
                    let next = Box::pin(server.accept(listener, bound, replaced.clone(), admit));
                    let ended = std::mem::replace(&mut accepting, next);
                    before.cancel();
                    // Connections that wait in its queue are served.
                    ended.await;
                }
                Err(error) => {
                    if !is_logged {
                        error!(%error, "the socket's file is gone and can't be recreated: tries again until it can");
                        is_logged = true;
                    }
                    tokio::time::sleep(RECREATE_PAUSE).await;
                }
            },
        }
    }
}

/// How long to wait before a socket's file is made again after a failure.
const RECREATE_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use http::HeaderName;
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::carrier::{Carried, CarrierFuture, Choice};
    use crate::gateway::{ClientRequest, Gateway, Route};
    use crate::plugin::{Action, Plugin, PreparedPlugin};
    use crate::request::Request;

    /// Its start hook waits for ever, and it sends each request to an upstream.
    struct Waits {
        started: Mutex<Option<oneshot::Sender<()>>>,
    }

    impl Plugin for Waits {
        const NAME: &'static str = "waits";
        type Config = ();

        async fn start(&self, _: &Tasks) -> Result<(), PluginError> {
            let started = self.started.lock().unwrap().take();
            let _ = started.map(|started| started.send(()));
            std::future::pending().await
        }

        async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
            request.set_upstream("http://127.0.0.1:1".parse()?)?;
            Ok(Action::Continue)
        }
    }

    fn waits() -> (Waits, oneshot::Receiver<()>) {
        let (started, has_started) = oneshot::channel();
        (Waits { started: Mutex::new(Some(started)) }, has_started)
    }

    #[tokio::test]
    async fn a_runner_that_is_told_to_end_while_a_plugin_starts_takes_no_path() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let (plugin, has_started) = waits();
        let runner = Runner::named("test", "0").plugin(plugin);
        let stop = async { drop(has_started.await) };
        runner.run(Settings::new(&socket), stop).await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "neither socket is there");
    }

    /// Sends what happens to it.
    struct Hooked(mpsc::Sender<&'static str>);

    impl Plugin for Hooked {
        const NAME: &'static str = "hooked";
        type Config = ();

        async fn start(&self, tasks: &Tasks) -> Result<(), PluginError> {
            struct Ends(mpsc::Sender<&'static str>);

            impl Drop for Ends {
                fn drop(&mut self) {
                    let _ = self.0.try_send("task ended");
                }
            }

            let ends = Ends(self.0.clone());
            tasks.spawn(async move {
                let _ends = ends;
                std::future::pending::<()>().await;
            });
            self.0.send("start").await?;
            Ok(())
        }

        async fn stop(&self) {
            let _ = self.0.send("stop").await;
        }

        async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
            self.0.send("call").await?;
            Ok(Action::Continue)
        }
    }

    /// Its stop hook panics, and comes before that of `Hooked`.
    struct Breaks;

    impl Plugin for Breaks {
        const NAME: &'static str = "breaks";
        type Config = ();

        async fn stop(&self) {
            panic!("the stop hook of a test");
        }

        async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
            Ok(Action::Continue)
        }
    }

    #[tokio::test]
    async fn hooks_run_before_the_first_call_and_after_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let (events, mut happened) = mpsc::channel(8);
        let runner = Runner::named("test", "0").plugin(Hooked(events)).plugin(Breaks);
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(runner.run(Settings::new(&socket), async { drop(stopped.await) }));
        assert_eq!(happened.recv().await, Some("start"));
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        let gateway = Gateway::connect(&socket);
        let route = Route::new("r").plugin("hooked", "null");
        assert_eq!(gateway.call(&route, &ClientRequest::get("/")).await.status(), None);
        assert_eq!(happened.recv().await, Some("call"));
        drop(stop);
        running.await.unwrap().unwrap();
        assert_eq!(happened.recv().await, Some("stop"));
        assert_eq!(happened.recv().await, Some("task ended"));
        assert_eq!(happened.recv().await, None, "nothing else");
    }

    #[tokio::test]
    async fn a_start_hook_that_fails_ends_the_start() {
        struct Fails;

        impl Plugin for Fails {
            const NAME: &'static str = "fails";
            type Config = ();

            async fn start(&self, _: &Tasks) -> Result<(), PluginError> {
                Err("no database".into())
            }

            async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
                Ok(Action::Continue)
            }
        }

        let folder = tempfile::tempdir().unwrap();
        let runner = Runner::named("test", "0").plugin(Fails);
        let settings = Settings::new(folder.path().join("runner.sock"));
        let error = runner.run(settings, std::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), r#"the plugin "fails" did not start: no database"#);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "neither socket is there");
    }

    /// Prepares for this many milliseconds.
    struct Slow;

    impl PreparedPlugin for Slow {
        const NAME: &'static str = "slow";
        type Config = u64;
        type Prepared = ();

        async fn prepare(&self, milliseconds: u64) -> Result<(), PluginError> {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            Ok(())
        }

        async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
            Ok(Action::Continue)
        }
    }

    #[tokio::test]
    async fn the_plugins_of_a_chain_have_one_second_in_common_to_prepare() {
        let gateway = Gateway::new().plugin(Slow);
        let status = async |times: [u64; 2]| {
            let route = Route::new(&format!("{times:?}"));
            let route = times.iter().fold(route, |route, time| route.plugin("slow", &time.to_string()));
            gateway.call(&route, &ClientRequest::get("/")).await.status()
        };
        assert_eq!(status([10, 20]).await, None);
        // Each alone has time enough.
        assert_eq!(status([700, 701]).await, Some(503));
    }

    #[tokio::test]
    async fn a_carrier_that_carries_nothing_sends_no_request_to_the_route_s_own_upstream() {
        struct Nothing;

        impl Carrier for Nothing {
            fn carry<'a>(&'a self, _: Choice<'a>) -> CarrierFuture<'a> {
                Box::pin(async { Ok(Carried::new(HeaderName::from_static("x-upstream"), String::new())) })
            }
        }

        let runner = Runner::named("test", "0").plugin(waits().0).carrier(Nothing);
        let gateway = Gateway::with_runner(runner, Settings::new("/nonexistent"));
        let outcome = gateway.call(&Route::new("r").plugin("waits", "null"), &ClientRequest::get("/")).await;
        assert_eq!(outcome.status(), Some(503));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_plugin_that_blocks_while_it_prepares_delays_no_call() {
        static IS_DONE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

        struct Blocks;

        impl Plugin for Blocks {
            const NAME: &'static str = "blocks";
            type Config = ();

            fn check(&self, (): &()) -> Result<(), PluginError> {
                let (is_done, changed) = &IS_DONE;
                drop(changed.wait_while(is_done.lock().unwrap(), |is_done| !*is_done).unwrap());
                Ok(())
            }

            async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
                Ok(Action::Continue)
            }
        }

        let runner = Runner::named("test", "0").plugin(Blocks).plugin(waits().0);
        assert_eq!(runner.check_conf("waits", b"null").await, Some(Ok(())));
        let blocked =
            || async { runner.check_conf("blocks", b"null").await.unwrap().unwrap_err().to_string() };
        let late = "preparing it took longer than 1s";
        let errors: [String; 4] = tokio::join!(blocked(), blocked(), blocked(), blocked()).into();
        assert_eq!(errors, [late; 4]);
        // It keeps the threads that it has, and gets no more.
        assert_eq!(
            blocked().await,
            "the plugin is preparing too many other confs, or never returns from one"
        );
        assert_eq!(runner.check_conf("waits", b"null").await, Some(Ok(())));
        // If there are many, they wait for their turn.
        let many = (0..50).map(|_| {
            let runner = runner.clone();
            tokio::spawn(async move { runner.check_conf("waits", b"null").await })
        });
        for prepared in many.collect::<Vec<_>>() {
            assert_eq!(prepared.await.unwrap(), Some(Ok(())));
        }
        *IS_DONE.0.lock().unwrap() = true;
        IS_DONE.1.notify_all();
    }
}
