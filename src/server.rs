//! The unix listener: accepts, admits, and serves connections until the drain.

use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::admission::{Admission, RefusedPeers};
use crate::connection::{Connection, Frame, ReadError};
use crate::frame::Kind;
use crate::runner::{After, Runner};
use crate::socket_file::BoundFile;
use crate::takeover::{Succession, may_take_over};
use crate::wire::Encoder;

/// How long a connection may be silent. The gateway closes its own after 180 s
/// (GATEWAY.md, Connections), so only one that it forgot is silent for longer.
const IDLE: Duration = Duration::from_secs(200);

/// How long a drain waits for the first call of a connection that was just
/// opened: the gateway opened it to send one.
const FIRST_CALL: Duration = Duration::from_secs(1);

/// How long a drain keeps a connection that is idle. The gateway may be about to
/// send a call on it, which a close at this very moment would lose; on a reload it
/// kills us after 1 s (GATEWAY.md, Spawned by the gateway).
const LAST_CALL: Duration = Duration::from_millis(500);

/// How long the answer to an abandoned question may take: as long as the gateway
/// itself waits to send it (GATEWAY.md, Connections).
const LATE_ANSWER: Duration = Duration::from_secs(60);

/// How long accepting rests after an error such as "too many open files", which
/// would otherwise come again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a gateway's connections.
pub(crate) struct Server {
    runner: Arc<Runner>,
    admission: Admission,
    succession: Arc<Succession>,
    stop: CancellationToken,
    refused: RefusedPeers,
    permits: Arc<Semaphore>,
    limit: LimitLog,
    connections: TaskTracker,
    /// Ends them all.
    cut: CancellationToken,
}

/// Says, when the limit on connections is reached, whether it is time for a line
/// in the log.
struct LimitLog {
    connections: usize,
    turned_away: AtomicU64,
    refused: RefusedPeers,
}

impl Server {
    /// A server that serves until `stop`.
    pub(crate) fn new(
        runner: Arc<Runner>,
        admission: Admission,
        max_connections: usize,
        succession: Arc<Succession>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            runner,
            admission,
            succession,
            stop,
            refused: RefusedPeers::default(),
            permits: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            limit: LimitLog {
                connections: max_connections,
                turned_away: AtomicU64::new(0),
                refused: RefusedPeers::default(),
            },
            connections: TaskTracker::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Accepts until it is told to stop. The file goes first, so that nobody comes who
    /// would not be served.
    pub(crate) async fn accept(&self, listener: UnixListener, file: BoundFile) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream),
                    Err(error) => {
                        error!(%error, "accepting a connection");
                        let _ = timeout(ACCEPT_PAUSE, self.stop.cancelled()).await;
                    }
                },
                () = self.stop.cancelled() => break,
            }
        }
        drop(file);
        // Who connected before the file went is in the queue and will send a call.
        // The kernel is asked itself: the runtime may not know yet what it has.
        if let Ok(queue) = listener.into_std() {
            while let Ok((stream, _)) = queue.accept() {
                let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
                if let Ok(stream) = stream {
                    self.admit(stream);
                }
            }
        }
    }

    /// Lets the calls in flight finish, until the deadline.
    pub(crate) async fn finish(&self, deadline: Instant) {
        self.connections.close();
        if tokio::time::timeout_at(deadline, self.connections.wait()).await.is_err() {
            warn!(connections = self.connections.len(), "drain deadline reached: connections are closed");
            self.cut.cancel();
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
            if self.refused.should_log(uid) {
                warn!(
                    uid,
                    pid = peer.pid(),
                    cure = format!("--allow-uid {uid}"),
                    "peer refused: its user may not connect"
                );
            }
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return self.limit.turn_away() };
        // Each future around it would hold it once more.
        let serving = Box::pin(serve_connection(
            stream,
            Arc::clone(&self.runner),
            Arc::clone(&self.succession),
            self.stop.clone(),
            permit,
        ));
        let cut = self.cut.clone();
        self.connections.spawn(async move {
            // A bug ends its own connection, and is told.
            let ended = AssertUnwindSafe(cut.run_until_cancelled_owned(serving)).catch_unwind().await;
            if ended.is_err() {
                error!("a connection ended by a bug");
            }
        });
    }
}

impl Drop for Server {
    /// Whoever drops it wants an end, not tasks without a master.
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

impl LimitLog {
    /// Closing at once costs the client 503; to keep it waiting would cost 60 s.
    fn turn_away(&self) {
        let turned_away = self.turned_away.fetch_add(1, Ordering::Relaxed) + 1;
        if self.refused.should_log(0) {
            let limit = self.connections;
            warn!(limit, turned_away, cure = "--max-connections", "connection closed: the limit is reached");
        }
    }
}

/// Serves one connection to its end. The permit goes with it.
async fn serve_connection(
    stream: UnixStream,
    runner: Arc<Runner>,
    succession: Arc<Succession>,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let mut connection = Connection::new(stream);
    loop {
        match serve_calls(&mut connection, &runner, &stop, || succession.is_ready()).await {
            Ok(Served { calls, end: End::Closed }) => return debug!(calls, "connection closed"),
            Ok(Served { calls, end: End::HandOver }) => {
                let stream = connection.into_stream();
                if succession.hand_over_calls(&stream).await {
                    return debug!(calls, "connection handed over");
                }
                connection = Connection::new(stream);
            }
            Ok(Served { end: End::TakeOver, .. }) => {
                let stream = connection.into_stream();
                return match stream.peer_cred() {
                    Ok(peer) if may_take_over(peer.uid()) => succession.attend(stream, &stop).await,
                    Ok(peer) => warn!(uid = peer.uid(), "peer refused: its user may not take over"),
                    Err(error) => error!(%error, "reading a peer's credentials"),
                };
            }
            Err(error) => return info!(%error, "connection lost"),
        }
    }
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// How many were answered.
    pub(crate) calls: u64,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    /// The next call is a successor's to answer.
    HandOver,
    /// The peer is no gateway and wants to take over.
    TakeOver,
}

/// Answers calls until the connection ends, or in a drain waits for the next call
/// while there is somebody to hand it over to.
pub(crate) async fn serve_calls<S>(
    connection: &mut Connection<S>,
    runner: &Runner,
    stop: &CancellationToken,
    has_successor: impl Fn() -> bool,
) -> Result<Served, ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
{
    let mut encoder = Encoder::new();
    let mut calls = 0;
    let mut stopped = pin!(stop.cancelled());
    let mut idle = pin!(IdleTimer::new(IDLE));
    loop {
        let frame =
            match next_call(connection, calls, stopped.as_mut(), idle.as_mut(), &has_successor).await? {
                Next::Call(frame) if frame.kind == Kind::TakeOver && !connection.has_unread() => {
                    return Ok(Served { calls, end: End::TakeOver });
                }
                Next::Call(frame) => frame,
                Next::Nothing(end) => return Ok(Served { calls, end }),
            };
        calls += 1;
        match runner.answer(&frame, connection, &mut encoder).await? {
            // Right behind an answer is where a close costs least: the gateway mostly
            // sees it before it takes the connection for another call.
            After::Keep if stop.is_cancelled() && !connection.has_unread() && !has_successor() => break,
            After::Keep => {}
            After::Close => break,
            After::TakeLateAnswer => {
                take_late_answer(connection).await?;
                break;
            }
        }
    }
    Ok(Served { calls, end: End::Closed })
}

enum Next {
    Call(Frame),
    /// There will be none, here.
    Nothing(End),
}

impl From<Option<Frame>> for Next {
    fn from(frame: Option<Frame>) -> Self {
        frame.map_or(Self::Nothing(End::Closed), Self::Call)
    }
}

async fn next_call<S>(
    connection: &mut Connection<S>,
    calls: u64,
    stopped: Pin<&mut WaitForCancellationFuture<'_>>,
    idle: Pin<&mut IdleTimer>,
    has_successor: impl Fn() -> bool,
) -> Result<Next, ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        biased;
        frame = connection.read_frame() => return Ok(frame?.into()),
        () = stopped => {}
        () = idle.silent_since(calls) => return Ok(Next::Nothing(End::Closed)),
    }
    // A frame that has begun, or come while we were told to stop, is a call in flight.
    if connection.has_unread() {
        return Ok(connection.read_frame().await?.into());
    }
    // What comes from now on waits in the connection for whoever reads next.
    if has_successor() {
        return Ok(Next::Nothing(End::HandOver));
    }
    let wait = if calls == 0 { FIRST_CALL } else { LAST_CALL };
    match timeout(wait, connection.read_frame()).await {
        Ok(frame) => Ok(frame?.into()),
        Err(_) => Ok(Next::Nothing(End::Closed)),
    }
}

/// Reads the answer to a question that was abandoned, so that the gateway, which
/// reads ours only after sending its own, is not cut off before.
async fn take_late_answer<S>(connection: &mut Connection<S>) -> Result<(), ReadError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(LATE_ANSWER, connection.read_frame()).await {
        Ok(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Ends a silence, without a timer to set for each call: it is set anew only
/// when it has run down, if there was a call meanwhile.
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
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::yield_now;

    use super::*;
    use crate::conf::ConfCache;
    use crate::frame::Kind;
    use crate::plugin::Registry;
    use crate::runner::CallLimits;
    use crate::stamp::{StampKey, Stamper};

    /// Serves one connection until its end; the number of calls answered.
    async fn served(stream: DuplexStream, stop: &CancellationToken) -> u64 {
        let limits = CallLimits { deadline: Duration::from_secs(5), questions: 1, bytes: 1 };
        let stamper = Stamper { key: StampKey::random().unwrap(), lifetime: Duration::from_secs(60) };
        let runner =
            Runner::new(Registry::default(), ConfCache::new(Duration::from_secs(3600), 10), limits, stamper);
        serve_calls(&mut Connection::new(stream), &runner, stop, || false).await.unwrap().calls
    }

    async fn call(gateway: &mut Connection<DuplexStream>) {
        let mut encoder = Encoder::new();
        encoder.prepare_conf_call("route#1", &[]);
        gateway.write_frame(Kind::PrepareConf, encoder.payload()).await.unwrap();
        assert_eq!(gateway.read_frame().await.unwrap().unwrap().kind, Kind::PrepareConf);
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
