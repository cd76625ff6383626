//! The loopback listener that the gateway forwards to, and that knows from each
//! request's stamp which workspace it is for.
//!
//! `gateway` is a connection of the gateway's, `asked` a request on it, `exchange` that
//! request and its response, `passage` their ways there and back, `workspace` a connection
//! to a workspace, `pool` those that wait for their next request, `tunnel` what follows an
//! upgrade.
//!
//! Nothing is connected for a request without a good stamp, nothing is sent
//! twice that may have arrived once, no body is ever held as a whole, and what two
//! readers could read in two ways is refused, from whichever side it comes.

mod asked;
mod buffered;
mod chunked;
mod counters;
mod exchange;
mod failure;
mod framing;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gateway;
mod hang_up;
mod head;
mod headers;
mod passage;
mod pool;
mod refuse;
mod relay;
mod starting;
mod subjects;
mod tls;
#[cfg(test)]
mod tests;
mod tunnel;
mod watch;
mod websocket;
mod workspace;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limit_log::LimitLog;
use crate::resolver::Resolver;
use crate::stamp::StampKey;
use crate::takeover::Succession;
use crate::upstream::Timeouts;
use counters::Counters;
use pool::Pool;
use starting::Starting;
use subjects::Subjects;
use tls::Tls;
pub(crate) use tls::Trust;

/// How long nothing is accepted after a failure such as running out of file
/// descriptors, which passes only when others are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How many connections beyond the limit are told so at a time; more are closed at
/// once.
const MAX_TURNED_AWAY: usize = 64;

/// What the forwarder does not exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwarderLimits {
    /// Requests under way and tunnels at a time. Each has a connection of the
    /// gateway's and one to a workspace.
    pub(crate) max_connections: usize,
    /// Requests under way and tunnels of one subject at a time.
    pub(crate) max_of_subject: usize,
    /// How long a workspace may take to accept a connection, over all its
    /// addresses.
    pub(crate) connect: Duration,
    /// How long a workspace, or the gateway, may take nothing of what is sent to it.
    pub(crate) send: Duration,
    /// How long nothing may move while a workspace is to answer.
    pub(crate) read: Duration,
    /// How long the gateway may take for a request's head, from its first byte on.
    pub(crate) head: Duration,
    /// How long a connection to a workspace is kept for its next request.
    pub(crate) idle: Duration,
    /// Idle connections in all; the one that has waited longest makes room.
    pub(crate) max_idle: usize,
    /// Requests on one connection to a workspace.
    pub(crate) max_requests: u32,
}

impl Default for ForwarderLimits {
    /// The values of the gateway's own upstream, but for the connections.
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_of_subject: 256,
            connect: Duration::from_secs(6),
            send: Duration::from_secs(300),
            read: Duration::from_secs(300),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            max_idle: 320,
            max_requests: 1000,
        }
    }
}

impl ForwarderLimits {
    /// How many connections there may be at a time, of the gateway's and to workspaces.
    pub(crate) fn most_connections(&self) -> usize {
        (SOCKETS_A_PLACE + 1) * self.max_connections + self.max_idle
    }

    /// The same with the times that a plugin chose for a request.
    fn with(&self, chosen: Timeouts) -> Waits {
        Waits {
            connect: chosen.connect.unwrap_or(self.connect),
            send: chosen.send.unwrap_or(self.send),
            read: chosen.read.unwrap_or(self.read),
        }
    }
}

/// How long is waited in one exchange.
#[derive(Clone, Copy, Debug)]
struct Waits {
    connect: Duration,
    send: Duration,
    read: Duration,
}

/// Sends each request to the upstream that its stamp names.
pub(crate) struct Forwarder {
    key: StampKey,
    resolver: Arc<Resolver>,
    limits: ForwarderLimits,
    pool: Arc<Pool>,
    places: Arc<Semaphore>,
    sockets: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    closed: LimitLog,
    succession: Arc<Succession>,
    starting: Starting,
    tls: Tls,
    pub(crate) subjects: Arc<Subjects>,
    pub(crate) counters: Counters,
    tasks: Tasks,
}

/// What a connection counts as that is closed without an answer, because there are too
/// many to say even that.
const CLOSED: &str = "closed-unanswered";

/// A place among `max_connections`.
type Place = OwnedSemaphorePermit;

/// How many connections of the gateway's are open for each that is in use: idle ones
/// cost little, and each of its workers keeps some.
const SOCKETS_A_PLACE: usize = 2;

impl Forwarder {
    /// A forwarder that takes the stamps of this key.
    pub(crate) fn new(
        key: StampKey,
        resolver: Arc<Resolver>,
        limits: ForwarderLimits,
        trust: Trust,
        succession: Arc<Succession>,
    ) -> Arc<Self> {
        let pool = Arc::new(Pool::new(limits.max_idle, limits.idle));
        let places = Arc::new(Semaphore::new(limits.max_connections));
        let sockets = Arc::new(Semaphore::new(SOCKETS_A_PLACE * limits.max_connections));
        let turned_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
        let closed = LimitLog::new(limits.max_connections, "--max-forwarder-connections");
        Arc::new(Self {
            key,
            resolver,
            limits,
            pool,
            places,
            sockets,
            turned_away,
            closed,
            succession,
            starting: Starting::default(),
            tls: Tls::new(trust),
            subjects: Subjects::new(),
            counters: Counters::default(),
            tasks: Tasks::new(),
        })
    }

    /// Serves the listener until `stop`, then lets requests and tunnels go on
    /// for at most `drain`, and returns when none is left.
    ///
    /// A forwarder serves once: afterwards it keeps nothing open.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        drain: Duration,
    ) {
        // Whoever drops this future wants an end, not tasks without a master.
        let _ended = self.tasks.deadline.clone().drop_guard();
        self.tasks.spawn(Arc::clone(&self.pool).close_expired(stop.clone()));
        let accepting = async {
            loop {
                let stream = accept(&listener).await;
                self.admit(stream, &stop);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = accepting => {}
        }
        self.serve_queued(listener, &stop);
        self.pool.close();
        let (tunnels, refused) = (self.tunnels(), self.counters.refused());
        tracing::info!(tunnels, most = ?drain, ?refused, "forwarder drains");
        self.tasks.finish(drain).await;
    }

    /// Whether a connection of the gateway's ends with the answer that it gets: in a
    /// drain, unless there is somebody to hand it over to.
    fn closes_connections(&self, stop: &CancellationToken) -> bool {
        stop.is_cancelled() && !self.succession.is_ready()
    }

    /// How many tunnels are open.
    fn tunnels(&self) -> usize {
        self.subjects.activities().iter().map(|activity| activity.tunnels.len()).sum()
    }

    /// Serves a connection if there is a place for it, and else says that there is none.
    pub(crate) fn admit(self: &Arc<Self>, stream: TcpStream, stop: &CancellationToken) {
        let forwarder = Arc::clone(self);
        if let Ok(socket) = Arc::clone(&self.sockets).try_acquire_owned() {
            self.tasks.spawn(gateway::serve(forwarder, stream, socket, stop.clone()));
        } else if let Ok(place) = Arc::clone(&self.turned_away).try_acquire_owned() {
            let refusing = gateway::turn_away(forwarder, stream, stop.clone());
            self.tasks.spawn(async move {
                refusing.await;
                drop(place);
            });
        } else {
            self.counters.count(CLOSED);
            self.closed.turn_away();
        }
    }

    /// Serves who is in the listener's queue, whom its end would cut off.
    fn serve_queued(self: &Arc<Self>, listener: TcpListener, stop: &CancellationToken) {
        let Ok(queue) = listener.into_std() else { return };
        // Whoever has no place here stays in the queue, which may be a successor's too.
        while let Ok(socket) = Arc::clone(&self.sockets).try_acquire_owned() {
            let Ok((stream, _)) = queue.accept() else { return };
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.tasks.spawn(gateway::serve(Arc::clone(self), stream, socket, stop.clone()));
            }
        }
    }
}

/// The next connection; an accept that fails is tried again.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A request's head and its first bytes shall not wait for
                // each other's acknowledgement. It is only slower without.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // The peer gave up while it waited: nothing is wrong here.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                tracing::error!(%error, "the forwarder can't accept connections, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Everything that runs beside the accept loop, so that it can be waited for
/// and, in the end, dropped.
struct Tasks {
    tracker: TaskTracker,
    deadline: CancellationToken,
}

impl Tasks {
    fn new() -> Self {
        Self { tracker: TaskTracker::new(), deadline: CancellationToken::new() }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let deadline = self.deadline.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = task => {}
                () = deadline.cancelled() => {}
            }
        });
    }

    /// Spawns a task that ends soon after the deadline by itself.
    fn spawn_closing<T: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(CancellationToken) -> T,
    ) {
        self.tracker.spawn(task(self.deadline.clone()));
    }

    async fn finish(&self, drain: Duration) {
        self.tracker.close();
        if tokio::time::timeout(drain, self.tracker.wait()).await.is_err() {
            tracing::info!(tasks = self.tracker.len(), "drain deadline: closing what is still open");
            self.deadline.cancel();
            self.tracker.wait().await;
        }
    }
}
