//! What follows an upgrade: bytes both ways, copied without being read.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::buffered_stream::BufferedStream;
use super::deadline_timer::DeadlineTimer;
use super::http::websocket::{self, UpgradedProtocol};
use super::peer_state::{LOOK_PAUSE, PeerState};
use super::relay::{PassError, Relay, WaitsFor};
use super::state::ConnectionPermit;
use super::subjects::TunnelUse;
use super::tasks::DrainStart;
use super::workspace::tls::WorkspaceStream;

/// How long nothing may move once one side has ended. Otherwise a workspace that never
/// closes would hold one of all users' connections for ever.
const AFTER_END: Duration = Duration::from_secs(10);

/// How long a tunnel may take to close when the forwarder ends it.
const CLOSING: Duration = Duration::from_secs(1);

/// The workspace's side of a connection that was upgraded.
pub(super) struct Tunnel {
    pub(super) workspace: BufferedStream<WorkspaceStream>,
    /// Counts it for its subject.
    pub(super) counted: TunnelUse,
    pub(super) protocol: UpgradedProtocol,
    /// How long either side may take nothing of what is sent to it.
    pub(super) send: Duration,
    /// How long it lives at most.
    pub(super) life: Option<Duration>,
    /// After how long without a byte the client of a WebSocket gets a ping.
    pub(super) ping: Option<Duration>,
    pub(super) permit: ConnectionPermit,
}

impl Tunnel {
    /// Copies both ways until both sides have ended, or one has failed, or has not
    /// followed the other's end, or until its time or that of the drain is over.
    ///
    /// An end of one side is passed to the other as what it is: that side may
    /// still speak. What either side sent before the upgrade was complete has been
    /// read already and comes first.
    pub(super) async fn run(
        self,
        gateway: BufferedStream<TcpStream>,
        deadline: CancellationToken,
        drain: DrainStart,
    ) {
        let Self { workspace, counted, protocol, send, life, ping, permit } = self;
        let too_old = async {
            match life {
                Some(life) => sleep(life).await,
                None => std::future::pending().await,
            }
        };
        let mut ways =
            TunnelDirections::new(gateway.without_heads(), workspace.without_heads(), protocol, send);
        ways.ping = ping.filter(|_| protocol == UpgradedProtocol::WebSocket).map(PingTimer::new);
        let ended = tokio::select! {
            ended = ways.both(|| counted.touch()) => ended,
            () = deadline.cancelled() => ways.close().await,
            () = drain.part() => ways.close().await,
            () = too_old => ways.close().await,
        };
        match ended {
            Ok(()) => tracing::debug!("tunnel ended"),
            Err(error) => tracing::debug!(%error, "tunnel broke off"),
        }
        drop(permit);
    }
}

/// Both directions of a tunnel.
struct TunnelDirections<A, B> {
    gateway: BufferedStream<A>,
    workspace: BufferedStream<B>,
    up: TunnelDirection,
    down: TunnelDirection,
    /// How long either side may take nothing of what is sent to it.
    send: Duration,
    /// Present while a side is waited for to take something.
    timer: Option<DeadlineTimer>,
    last_move: Instant,
    ping: Option<PingTimer>,
}

/// When the client gets a ping. A gateway closes a connection on which nothing comes for the
/// time of its `read` timeout.
struct PingTimer {
    interval: Duration,
    timer: DeadlineTimer,
    last_sent: Instant,
}

impl PingTimer {
    fn new(interval: Duration) -> Self {
        Self { interval, timer: DeadlineTimer::new(interval), last_sent: Instant::now() }
    }

    /// Whether nothing was sent for an interval.
    fn is_due(&mut self, context: &mut Context<'_>) -> bool {
        let mut is_due = false;
        while self.timer.poll_over(self.last_sent + self.interval, context).is_ready() {
            (self.last_sent, is_due) = (Instant::now(), true);
        }
        is_due
    }
}

impl<A, B> TunnelDirections<A, B>
where
    A: AsyncRead + AsyncWrite + PeerState + Unpin,
    B: AsyncRead + AsyncWrite + PeerState + Unpin,
{
    fn new(
        gateway: BufferedStream<A>,
        workspace: BufferedStream<B>,
        protocol: UpgradedProtocol,
        send: Duration,
    ) -> Self {
        let (up, down) = (TunnelDirection::new(protocol), TunnelDirection::new(protocol));
        Self { gateway, workspace, up, down, send, timer: None, last_move: Instant::now(), ping: None }
    }

    /// Passes on what can pass: whether each way has ended.
    fn poll(&mut self, context: &mut Context<'_>, is_active: &impl Fn()) -> io::Result<(bool, bool)> {
        let up = self.up.poll(&mut self.gateway, &mut self.workspace, context)?;
        let mut down = self.down.poll(&mut self.workspace, &mut self.gateway, context)?;
        if self.needs_ping(context) {
            self.down.relay.insert(self.up.relay.next_ping());
            down = self.down.poll(&mut self.workspace, &mut self.gateway, context)?;
        }
        let now = Instant::now();
        let (has_moved_up, has_moved_down) = (self.up.note_moves(now), self.down.note_moves(now));
        if has_moved_up {
            is_active();
        }
        if has_moved_up || has_moved_down {
            self.last_move = now;
        }
        if let Some(ping) = self.ping.as_mut().filter(|_| has_moved_down) {
            ping.last_sent = now;
        }
        self.check_stalled(context)?;
        Ok((up.is_ready(), down.is_ready()))
    }

    /// Whether a ping is due and can be sent. What waits for the client is sent before it, and
    /// a side that has ended is not kept waiting.
    fn needs_ping(&mut self, context: &mut Context<'_>) -> bool {
        self.ping.as_mut().is_some_and(|ping| ping.is_due(context))
            && [&self.up, &self.down].iter().all(|way| way.state == DirectionState::Passing)
            && self.down.relay.may_insert()
            && self.down.relay.waits_for() == WaitsFor::Reading
    }

    /// Fails once a side has taken nothing for too long. The time is shorter once the other
    /// side has closed, because that end is not read before the waiting bytes are taken.
    fn check_stalled(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let limit = |has_closed| if has_closed { self.send.min(AFTER_END) } else { self.send };
            let up = self.up.blocked.map(|since| since + limit(self.gateway.stream.has_closed()));
            let down = self.down.blocked.map(|since| since + limit(self.workspace.stream.has_closed()));
            let Some(end) = up.into_iter().chain(down).min() else {
                self.timer = None;
                return Ok(());
            };
            let now = Instant::now();
            if now >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timer = self.timer.get_or_insert_with(|| DeadlineTimer::new(LOOK_PAUSE));
            if timer.poll_over(end.min(now + LOOK_PAUSE), context).is_pending() {
                return Ok(());
            }
        }
    }

    /// Passes on until both ways have ended, and tells each time that bytes came from
    /// the gateway.
    async fn both(&mut self, is_active: impl Fn()) -> io::Result<()> {
        let mut ending: Option<DeadlineTimer> = None;
        poll_fn(|context| {
            match self.poll(context, &is_active)? {
                (true, true) => return Poll::Ready(Ok(())),
                (false, false) => return Poll::Pending,
                _ => {}
            }
            let ending = ending.get_or_insert_with(|| {
                self.last_move = Instant::now();
                DeadlineTimer::new(AFTER_END)
            });
            let over = ending.poll_over(self.last_move + AFTER_END, context);
            over.map(|()| Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }

    /// Ends both ways: a WebSocket with a close frame, if a frame may begin here.
    async fn close(&mut self) -> io::Result<()> {
        self.up.relay.end_with(websocket::close_to_server());
        self.down.relay.end_with(websocket::close_to_client());
        let closing = async {
            poll_fn(|context| match self.poll(context, &|| {}) {
                Ok((true, true)) => Poll::Ready(Ok(())),
                Ok(_) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            })
            .await?;
            // What they still say would reset the connection, and take the close with it.
            tokio::join!(swallow(&mut self.gateway.stream), swallow(&mut self.workspace.stream));
            Ok(())
        };
        timeout(CLOSING, closing).await.unwrap_or(Ok(()))
    }
}

/// Reads to the end.
async fn swallow(stream: &mut (impl AsyncRead + Unpin)) {
    let mut piece = [0; 512];
    while matches!(stream.read(&mut piece).await, Ok(1..)) {}
}

/// One direction of a tunnel.
struct TunnelDirection {
    relay: Relay,
    state: DirectionState,
    /// Since when the side that it leads to has taken nothing of what waits.
    blocked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DirectionState {
    Passing,
    /// All has passed but the end itself.
    Ending,
    Ended,
}

impl TunnelDirection {
    fn new(protocol: UpgradedProtocol) -> Self {
        Self { relay: Relay::of_tunnel(protocol), state: DirectionState::Passing, blocked: None }
    }

    /// Whether anything has moved since the last time.
    fn note_moves(&mut self, now: Instant) -> bool {
        let has_moved = self.relay.take_moved();
        self.blocked = match self.relay.waits_for() {
            // An end, too, may have to wait for what is within TLS.
            WaitsFor::Reading if self.state != DirectionState::Ending => None,
            _ if has_moved => Some(now),
            _ => self.blocked.or(Some(now)),
        };
        has_moved
    }

    /// Passes everything on, and the end as well.
    fn poll<R, W>(
        &mut self,
        from: &mut BufferedStream<R>,
        to: &mut BufferedStream<W>,
        context: &mut Context<'_>,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.state == DirectionState::Passing {
            match self.relay.poll_pass(from, &mut to.stream, context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(())) => self.state = DirectionState::Ending,
                Poll::Ready(Err(PassError::Read(error) | PassError::Write(error))) => return Err(error),
                Poll::Ready(Err(other)) => return Err(io::Error::other(other)),
            }
        }
        if self.state == DirectionState::Ending {
            match Pin::new(&mut to.stream).poll_shutdown(context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(ended) => ended?,
            }
            self.state = DirectionState::Ended;
        }
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    thread_local! {
        /// Whether the other ends of this test's streams have gone.
        static HAS_CLOSED: Cell<bool> = const { Cell::new(false) };
    }

    impl PeerState for DuplexStream {
        fn has_closed(&self) -> bool {
            HAS_CLOSED.get()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn untaken_bytes_have_less_time_once_their_sender_has_closed() {
        let send = Duration::from_secs(300);
        for has_closed in [false, true] {
            HAS_CLOSED.set(has_closed);
            let ((gateway, mut client), (workspace, _reads_nothing)) = (duplex(64), duplex(64));
            client.write_all(&[b'x'; 64]).await.unwrap();
            let mut ways = TunnelDirections::new(
                BufferedStream::new(gateway),
                BufferedStream::new(workspace),
                UpgradedProtocol::Other,
                send,
            );
            let filling = client.write_all(&[b'x'; 1024]);
            let since = Instant::now();
            let error = tokio::select! {
                ended = ways.both(|| {}) => ended.unwrap_err(),
                _ = filling => unreachable!("nothing takes the permit"),
            };
            let expected = if has_closed { AFTER_END } else { send };
            assert_eq!((error.kind(), since.elapsed()), (io::ErrorKind::TimedOut, expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_never_ends_holds_a_tunnel_no_longer() {
        for gateway_ends in [true, false] {
            let ((gateway, gateway_peer), (workspace, workspace_peer)) = (duplex(64), duplex(64));
            let (ended, _silent) =
                if gateway_ends { (gateway_peer, workspace_peer) } else { (workspace_peer, gateway_peer) };
            drop(ended);
            let since = Instant::now();
            let (gateway, workspace) = (BufferedStream::new(gateway), BufferedStream::new(workspace));
            let mut ways =
                TunnelDirections::new(gateway, workspace, UpgradedProtocol::Other, Duration::from_secs(300));
            let error = ways.both(|| {}).await.unwrap_err();
            assert_eq!((error.kind(), since.elapsed()), (io::ErrorKind::TimedOut, AFTER_END));
        }
    }

    /// A side that has ended still reads, and a peer that still sends is not cut off.
    #[tokio::test(start_paused = true)]
    async fn a_side_that_goes_on_may_take_its_time() {
        for gateway_ends in [true, false] {
            let ((gateway, mut gateway_peer), (workspace, mut workspace_peer)) = (duplex(64), duplex(64));
            let (ended, speaks) = match gateway_ends {
                true => (&mut gateway_peer, &mut workspace_peer),
                false => (&mut workspace_peer, &mut gateway_peer),
            };
            ended.shutdown().await.unwrap();
            let speaking = async {
                for _ in 0..3 {
                    tokio::time::sleep(AFTER_END - Duration::from_secs(1)).await;
                    speaks.write_all(b"x").await.unwrap();
                    assert_eq!(ended.read_u8().await.unwrap(), b'x');
                }
                speaks.shutdown().await.unwrap();
            };
            let (gateway, workspace) = (BufferedStream::new(gateway), BufferedStream::new(workspace));
            let mut ways =
                TunnelDirections::new(gateway, workspace, UpgradedProtocol::Other, Duration::from_secs(300));
            let (ended, ()) = tokio::join!(ways.both(|| {}), speaking);
            ended.unwrap();
        }
    }

    #[tokio::test]
    async fn only_what_the_client_says_is_activity() {
        let ((gateway, mut client), (workspace, mut server)) = (duplex(64), duplex(64));
        let activities = Cell::new(0);
        let (gateway, workspace) = (BufferedStream::new(gateway), BufferedStream::new(workspace));
        let mut ways =
            TunnelDirections::new(gateway, workspace, UpgradedProtocol::Other, Duration::from_secs(300));
        let speaking = async {
            server.write_all(b"a").await.unwrap();
            assert_eq!((client.read_u8().await.unwrap(), activities.get()), (b'a', 0));
            client.write_all(b"b").await.unwrap();
            assert_eq!((server.read_u8().await.unwrap(), activities.get()), (b'b', 1));
            server.shutdown().await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (ended, ()) = tokio::join!(ways.both(|| activities.set(activities.get() + 1)), speaking);
        ended.unwrap();
    }
}
