//! The unix listener: accepts, admits, and serves connections until the drain.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use apisix_ext_plugin::payload::Encoder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::connection::{Connection, Frame, ReadError};
use crate::containment::poll_caught;
use crate::dispatcher::{AfterCall, Dispatcher};
use crate::listener::admission::Admission;
use crate::listener::limit_log::LimitLog;
use crate::listener::log_throttle::LogThrottle;
use crate::listener::socket_file::BoundFile;
use crate::listener::takeover::{Succession, may_take_over};

/// How long a connection may be silent. The gateway closes its own after 180 s
/// (docs/gateway.md, Connections), so only a connection that it forgot is silent for longer.
const IDLE: Duration = Duration::from_secs(200);

/// How long a drain waits for the first call of a connection that was just
/// opened: the gateway opened it to send one.
const FIRST_CALL: Duration = Duration::from_secs(1);

/// How long a drain keeps a connection that is idle. The gateway may be about to
/// send a call on it, which a close at this very moment would lose; on a reload it
/// kills us after 1 s (docs/gateway.md, Spawned by the gateway).
const LAST_CALL: Duration = Duration::from_millis(500);

/// How long the answer to an abandoned question may take: as long as the gateway
/// itself waits to send it (docs/gateway.md, Connections).
const LATE_ANSWER: Duration = Duration::from_secs(60);

/// How many successors may ask at a time. One asks at each start of a runner.
const MAX_SUCCESSORS: usize = 16;

/// How long accepting rests after an error such as "too many open files", which
/// would otherwise come again immediately.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a gateway's connections.
pub(crate) struct Server {
    admission: Admission,
    permits: Arc<Semaphore>,
    limit: Arc<LimitLog>,
    successors: Arc<Semaphore>,
    connections: TaskTracker,
    shared: Arc<ServerShared>,
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Calls,
    Takeover,
}

/// What each connection needs.
struct ServerShared {
    dispatcher: Arc<Dispatcher>,
    succession: Arc<Succession>,
    /// Refused peers, by their user.
    refused: LogThrottle<(u32, Purpose)>,
    stop: CancellationToken,
    /// Ends everything.
    cut: CancellationToken,
}

impl Server {
    /// A server that serves until `stop`.
    pub(crate) fn new(
        dispatcher: Arc<Dispatcher>,
        admission: Admission,
        max_connections: usize,
        succession: Arc<Succession>,
        stop: CancellationToken,
    ) -> Self {
        let (refused, cut) = (LogThrottle::default(), CancellationToken::new());
        Self {
            admission,
            shared: Arc::new(ServerShared { dispatcher, succession, refused, stop, cut }),
            permits: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            limit: Arc::new(LimitLog::new(max_connections, "--max-connections")),
            successors: Arc::new(Semaphore::new(MAX_SUCCESSORS)),
            connections: TaskTracker::new(),
        }
    }

    /// Accepts until it is told to stop, or until another listener has taken this one's
    /// place. It removes the file first, so no client connects that would not be served.
    pub(crate) async fn accept(
        &self,
        listener: UnixListener,
        file: BoundFile,
        replaced: CancellationToken,
        admit: impl Fn(&Self, UnixStream),
    ) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => admit(self, stream),
                    Err(error) => {
                        error!(%error, "accepting a connection");
                        let _ = timeout(ACCEPT_PAUSE, self.shared.stop.cancelled()).await;
                    }
                },
                () = self.shared.stop.cancelled() => break,
                () = replaced.cancelled() => break,
            }
        }
        drop(file);
        // Clients that connected before the file was removed are in the queue and will send a
        // call. Ask the kernel itself: the runtime may not know its connections yet.
        if let Ok(queue) = listener.into_std() {
            loop {
                match queue.accept() {
                    Ok((stream, _)) => {
                        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
                        if let Ok(stream) = stream {
                            admit(self, stream);
                        }
                    }
                    // If one client has gone while it waited, the others are still in the queue.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Lets the calls in flight finish, until the deadline.
    pub(crate) async fn finish(&self, deadline: Instant) {
        self.connections.close();
        if tokio::time::timeout_at(deadline, self.connections.wait()).await.is_err() {
            warn!(connections = self.connections.len(), "drain deadline reached: connections are closed");
            self.shared.cut.cancel();
            self.connections.wait().await;
        }
    }

    /// Serves a connection, if its peer may connect and there is a place for it.
    pub(crate) fn admit(&self, stream: UnixStream) {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => return error!(%error, "reading a peer's credentials"),
        };
        if !self.admission.admits(&peer) {
            let uid = peer.uid();
            if let Some(refused) = self.shared.refused.note((uid, Purpose::Calls)) {
                warn!(
                    uid,
                    refused,
                    pid = peer.pid(),
                    cure = format!("--allow-uid {uid}"),
                    "peer refused: its user may not connect"
                );
            }
            return;
        }
        // Closing immediately costs the client a 503; keeping it waiting would cost it 60 s.
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return self.limit.turn_away() };
        // Each future around this one would hold it once more.
        let serving = Box::pin(serve_connection(stream, Arc::clone(&self.shared), permit));
        self.spawn(serving);
    }

    /// Serves a successor's connection, if the kernel says that it belongs to our own user
    /// or root.
    pub(crate) fn admit_successor(&self, stream: UnixStream) {
        let uid = match stream.peer_cred() {
            Ok(peer) => peer.uid(),
            Err(error) => return error!(%error, "reading a peer's credentials"),
        };
        if !may_take_over(uid) {
            if let Some(refused) = self.shared.refused.note((uid, Purpose::Takeover)) {
                warn!(uid, refused, "peer refused: its user may not take over");
            }
            return;
        }
        let Ok(place) = Arc::clone(&self.successors).try_acquire_owned() else { return };
        let (succession, cut) = (Arc::clone(&self.shared.succession), self.shared.cut.clone());
        // No drain waits for it.
        tokio::spawn(async move {
            cut.run_until_cancelled(succession.attend(stream)).await;
            drop(place);
        });
    }

    fn spawn(&self, serving: Pin<Box<impl Future<Output = ()> + Send + 'static>>) {
        let cut = self.shared.cut.clone();
        self.connections.spawn(async move {
            // A bug ends only its own connection, and is logged.
            let mut serving = pin!(cut.run_until_cancelled_owned(serving));
            if std::future::poll_fn(|task| poll_caught(serving.as_mut(), task)).await.is_err() {
                error!("a connection ended by a bug");
            }
        });
    }
}

impl Drop for Server {
    /// Ends all tasks, which would otherwise go on without an owner.
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

/// Serves one connection to its end. The permit goes with it.
async fn serve_connection(stream: UnixStream, shared: Arc<ServerShared>, _permit: OwnedSemaphorePermit) {
    let ServerShared { dispatcher, succession, stop, .. } = &*shared;
    let mut connection = Connection::new(stream);
    loop {
        match serve_calls(&mut connection, dispatcher, succession, stop).await {
            Ok(Served { calls, end: ConnectionEnd::Closed }) => return debug!(calls, "connection closed"),
            Ok(Served { calls, end: ConnectionEnd::HandOver }) => {
                let stream = connection.into_stream();
                if succession.hand_over_calls(&stream).await {
                    return debug!(calls, "connection handed over");
                }
                connection = Connection::new(stream);
            }
            Err(error) => return info!(%error, "connection lost"),
        }
    }
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// How many calls were answered.
    pub(crate) calls: u64,
    pub(crate) end: ConnectionEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionEnd {
    Closed,
    /// The next call is a successor's to answer.
    HandOver,
}

/// Answers calls until the connection ends or can be handed over to a successor.
///
/// It is handed over as soon as the successor serves, and not only in the drain: two
/// runners that answer one gateway do not know each other's conf tokens, and after three
/// wrong tokens a call would fail (docs/gateway.md, PrepareConf).
pub(crate) async fn serve_calls<S>(
    connection: &mut Connection<S>,
    dispatcher: &Dispatcher,
    succession: &Succession,
    stop: &CancellationToken,
) -> Result<Served, ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
{
    let mut encoder = Encoder::new();
    let mut calls = 0;
    let mut stopped = pin!(stop.cancelled());
    let mut succeeded = Box::pin(succession.ready());
    let mut idle = pin!(IdleTimer::new(IDLE));
    loop {
        // Rare futures are boxed: they are large, and each connection holds them.
        let next = tokio::select! {
            biased;
            frame = connection.read_frame() => frame?.into(),
            () = &mut succeeded => {
                // A future is not asked again once it has returned.
                succeeded.set(succession.ready());
                Box::pin(hand_over(connection)).await?
            }
            () = &mut stopped => Box::pin(last_call(connection, calls, succession)).await?,
            () = idle.as_mut().silent_since(calls) => NextCall::Nothing(ConnectionEnd::Closed),
        };
        let frame = match next {
            NextCall::Call(frame) => frame,
            NextCall::Nothing(end) => return Ok(Served { calls, end }),
        };
        calls += 1;
        match dispatcher.answer(&frame, connection, &mut encoder).await? {
            AfterCall::Keep if connection.has_unread() => {}
            AfterCall::Keep if succession.is_ready() => {
                return Ok(Served { calls, end: ConnectionEnd::HandOver });
            }
            // A close costs least right after an answer: the gateway mostly sees it before
            // it uses the connection for another call.
            AfterCall::Keep if stop.is_cancelled() => break,
            AfterCall::Keep => {}
            AfterCall::Close => break,
            AfterCall::TakeLateAnswer => {
                take_late_answer(connection).await?;
                break;
            }
        }
    }
    Ok(Served { calls, end: ConnectionEnd::Closed })
}

enum NextCall {
    Call(Frame),
    /// No further call comes on this connection.
    Nothing(ConnectionEnd),
}

impl From<Option<Frame>> for NextCall {
    fn from(frame: Option<Frame>) -> Self {
        frame.map_or(Self::Nothing(ConnectionEnd::Closed), Self::Call)
    }
}

/// The call that has begun. If there is none, later bytes wait in the connection for its
/// next reader.
async fn hand_over<S>(connection: &mut Connection<S>) -> Result<NextCall, ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match connection.has_unread() {
        true => Ok(connection.read_frame().await?.into()),
        false => Ok(NextCall::Nothing(ConnectionEnd::HandOver)),
    }
}

/// The next call in a drain. A call is in flight if it has begun, or came while we were
/// told to stop.
async fn last_call<S>(
    connection: &mut Connection<S>,
    calls: u64,
    succession: &Succession,
) -> Result<NextCall, ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if succession.is_ready() || connection.has_unread() {
        return hand_over(connection).await;
    }
    let wait = if calls == 0 { FIRST_CALL } else { LAST_CALL };
    match timeout(wait, connection.read_frame()).await {
        Ok(frame) => Ok(frame?.into()),
        Err(_) => Ok(NextCall::Nothing(ConnectionEnd::Closed)),
    }
}

/// Reads the answer to an abandoned question. The gateway reads our answer only after it
/// has sent its own, so the connection must not close before.
async fn take_late_answer<S>(connection: &mut Connection<S>) -> Result<(), ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(LATE_ANSWER, connection.read_frame()).await {
        Ok(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Ends a silence without setting a timer for each call: the timer is set again only when
/// it has run down, if there was a call meanwhile.
struct IdleTimer {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    calls_when_set: u64,
}

impl IdleTimer {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: Box::pin(sleep(limit)), calls_when_set: 0 }
    }

    /// Returns once there was no call for the limit, and at most twice that.
    async fn silent_since(mut self: Pin<&mut Self>, calls: u64) {
        loop {
            self.sleep.as_mut().await;
            if self.calls_when_set == calls {
                return;
            }
            self.calls_when_set = calls;
            let next = Instant::now() + self.limit;
            self.sleep.as_mut().reset(next);
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use apisix_ext_plugin::frame::FrameKind;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::yield_now;

    use super::*;
    use crate::chains::ConfCache;
    use crate::dispatcher::CallLimits;
    use crate::registry::Registry;

    /// Serves one connection until its end; the number of calls answered.
    async fn served(stream: DuplexStream, stop: &CancellationToken) -> u64 {
        let limits =
            CallLimits { deadline: Duration::from_secs(5), questions: 1, bytes: 1, asks_request_id: false };
        let confs = ConfCache::new(Duration::from_secs(3600), 10);
        let dispatcher = Dispatcher::new(Registry::default(), confs, limits);
        let succession = Succession::new(None);
        serve_calls(&mut Connection::new(stream), &dispatcher, &succession, stop).await.unwrap().calls
    }

    async fn call(gateway: &mut Connection<DuplexStream>) {
        let mut encoder = Encoder::new();
        encoder.prepare_conf_call("route#1", &[]);
        gateway.write_frame(FrameKind::PrepareConf, encoder.payload()).await.unwrap();
        assert_eq!(gateway.read_frame().await.unwrap().unwrap().kind, FrameKind::PrepareConf);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_drain_an_idle_connection_gets_its_last_call() {
        let (stop, (ours, theirs)) = (CancellationToken::new(), duplex(1024));
        let calls = async {
            let mut gateway = Connection::new(ours);
            call(&mut gateway).await;
            stop.cancel();
            yield_now().await;
            call(&mut gateway).await;
            let since = Instant::now();
            assert_eq!(gateway.read_frame().await.unwrap(), None);
            assert_eq!(since.elapsed(), Duration::ZERO, "closed right behind the answer");
        };
        assert_eq!(tokio::join!(served(theirs, &stop), calls), (2, ()));
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_drain_silence_ends_a_connection() {
        for (calls, wait) in [(0, FIRST_CALL), (1, LAST_CALL)] {
            let (stop, (ours, theirs)) = (CancellationToken::new(), duplex(1024));
            let silent = async {
                let mut gateway = Connection::new(ours);
                for _ in 0..calls {
                    call(&mut gateway).await;
                }
                stop.cancel();
                let since = Instant::now();
                assert_eq!(gateway.read_frame().await.unwrap(), None);
                assert_eq!(since.elapsed(), wait);
            };
            assert_eq!(tokio::join!(served(theirs, &stop), silent), (calls, ()));
        }
    }
}
