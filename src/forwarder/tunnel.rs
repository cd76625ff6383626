//! What follows an upgrade: bytes both ways, which are none of our business.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::buffered::Buffered;
use super::hang_up::{HangUp, LOOK_PAUSE};
use super::relay::{PassError, Relay, WaitsFor};
use super::subjects::TunnelUse;
use super::tls::Stream;
use super::watch::Watch;
use super::{Place, websocket};

/// How long nothing may move once one side has ended. A workspace that never closes
/// would hold a place among all users' connections for ever.
const AFTER_END: Duration = Duration::from_secs(10);

/// How long a tunnel that we end may take for it.
const CLOSING: Duration = Duration::from_secs(1);

/// The workspace's side of a connection that was upgraded.
pub(super) struct Tunnel {
    pub(super) workspace: Buffered<Stream>,
    /// The subject's part in it.
    pub(super) counted: TunnelUse,
    pub(super) is_websocket: bool,
    /// How long either side may take nothing of what is sent to it.
    pub(super) send: Duration,
    pub(super) place: Place,
}

impl Tunnel {
    /// Copies both ways until both sides have ended, or one has failed, or has not
    /// followed the other's end, or until the drain's deadline.
    ///
    /// An end of one side is passed to the other as what it is: that side may
    /// still speak. What either side sent before the upgrade was complete has been
    /// read already and comes first.
    pub(super) async fn run(self, gateway: Buffered<TcpStream>, deadline: CancellationToken) {
        let Self { workspace, counted, is_websocket, send, place } = self;
        let mut ways = Ways::new(gateway.without_heads(), workspace.without_heads(), is_websocket, send);
        let ended = tokio::select! {
            ended = ways.both(|| counted.touch()) => ended,
            () = deadline.cancelled() => ways.close().await,
        };
        match ended {
            Ok(()) => tracing::debug!("tunnel ended"),
            Err(error) => tracing::debug!(%error, "tunnel broke off"),
        }
        drop(place);
    }
}

/// Both directions of a tunnel.
struct Ways<A, B> {
    gateway: Buffered<A>,
    workspace: Buffered<B>,
    up: Way,
    down: Way,
    /// How long either side may take nothing of what is sent to it.
    send: Duration,
    /// Present while a side is waited for to take something.
    watch: Option<Watch>,
    last_move: Instant,
}

impl<A, B> Ways<A, B>
where
    A: AsyncRead + AsyncWrite + HangUp + Unpin,
    B: AsyncRead + AsyncWrite + HangUp + Unpin,
{
    fn new(gateway: Buffered<A>, workspace: Buffered<B>, is_websocket: bool, send: Duration) -> Self {
        let (up, down) = (Way::new(is_websocket), Way::new(is_websocket));
        Self { gateway, workspace, up, down, send, watch: None, last_move: Instant::now() }
    }

    /// Passes on what can pass: whether each way has ended.
    fn poll(&mut self, context: &mut Context<'_>, is_active: &impl Fn()) -> io::Result<(bool, bool)> {
        let up = self.up.poll(&mut self.gateway, &mut self.workspace, context)?;
        let down = self.down.poll(&mut self.workspace, &mut self.gateway, context)?;
        let now = Instant::now();
        let (has_moved_up, has_moved_down) = (self.up.note_moves(now), self.down.note_moves(now));
        if has_moved_up {
            is_active();
        }
        if has_moved_up || has_moved_down {
            self.last_move = now;
        }
        self.check_stalled(context)?;
        Ok((up.is_ready(), down.is_ready()))
    }

    /// Fails once a side has taken nothing for too long. It takes less where the other
    /// one has gone, whose end nobody reads behind what waits.
    fn check_stalled(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            let limit = |has_hung_up| if has_hung_up { self.send.min(AFTER_END) } else { self.send };
            let up = self.up.blocked.map(|since| since + limit(self.gateway.stream.has_hung_up()));
            let down = self.down.blocked.map(|since| since + limit(self.workspace.stream.has_hung_up()));
            let Some(end) = up.into_iter().chain(down).min() else {
                self.watch = None;
                return Ok(());
            };
            let now = Instant::now();
            if now >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let watch = self.watch.get_or_insert_with(|| Watch::new(LOOK_PAUSE));
            if watch.poll_over(end.min(now + LOOK_PAUSE), context).is_pending() {
                return Ok(());
            }
        }
    }

    /// Passes on until both ways have ended, and tells each time that bytes came from
    /// the gateway.
    async fn both(&mut self, is_active: impl Fn()) -> io::Result<()> {
        let mut ending: Option<Watch> = None;
        poll_fn(|context| {
            match self.poll(context, &is_active)? {
                (true, true) => return Poll::Ready(Ok(())),
                (false, false) => return Poll::Pending,
                _ => {}
            }
            let ending = ending.get_or_insert_with(|| {
                self.last_move = Instant::now();
                Watch::new(AFTER_END)
            });
            let over = ending.poll_over(self.last_move + AFTER_END, context);
            over.map(|()| Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }

    /// Ends both ways: a WebSocket's with a close, where a frame may begin.
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
struct Way {
    relay: Relay,
    state: State,
    /// Since when the side that it leads to has taken nothing of what waits.
    blocked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Passing,
    /// All has passed but the end itself.
    Ending,
    Ended,
}

impl Way {
    fn new(is_websocket: bool) -> Self {
        Self { relay: Relay::of_tunnel(is_websocket), state: State::Passing, blocked: None }
    }

    /// Whether anything has moved since the last time.
    fn note_moves(&mut self, now: Instant) -> bool {
        let has_moved = self.relay.take_moved();
        self.blocked = match self.relay.waits_for() {
            // An end, too, may have to wait for what is within TLS.
            WaitsFor::Reading if self.state != State::Ending => None,
            _ if has_moved => Some(now),
            _ => self.blocked.or(Some(now)),
        };
        has_moved
    }

    /// Passes everything on, and the end as well.
    fn poll<R, W>(
        &mut self,
        from: &mut Buffered<R>,
        to: &mut Buffered<W>,
        context: &mut Context<'_>,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.state == State::Passing {
            match self.relay.poll_pass(from, &mut to.stream, context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(())) => self.state = State::Ending,
                Poll::Ready(Err(PassError::Read(error) | PassError::Write(error))) => return Err(error),
                Poll::Ready(Err(other)) => return Err(io::Error::other(other)),
            }
        }
        if self.state == State::Ending {
            match Pin::new(&mut to.stream).poll_shutdown(context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(ended) => ended?,
            }
            self.state = State::Ended;
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
        static HAS_HUNG_UP: Cell<bool> = const { Cell::new(false) };
    }

    impl HangUp for DuplexStream {
        fn has_hung_up(&self) -> bool {
            HAS_HUNG_UP.get()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_has_less_time_once_nobody_waits_behind_it() {
        let send = Duration::from_secs(300);
        for has_hung_up in [false, true] {
            HAS_HUNG_UP.set(has_hung_up);
            let ((gateway, mut client), (workspace, _reads_nothing)) = (duplex(64), duplex(64));
            client.write_all(&[b'x'; 64]).await.unwrap();
            let mut ways = Ways::new(Buffered::new(gateway), Buffered::new(workspace), false, send);
            let filling = client.write_all(&[b'x'; 1024]);
            let since = Instant::now();
            let error = tokio::select! {
                ended = ways.both(|| {}) => ended.unwrap_err(),
                _ = filling => unreachable!("nobody takes it"),
            };
            let expected = if has_hung_up { AFTER_END } else { send };
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
            let (gateway, workspace) = (Buffered::new(gateway), Buffered::new(workspace));
            let mut ways = Ways::new(gateway, workspace, false, Duration::from_secs(300));
            let error = ways.both(|| {}).await.unwrap_err();
            assert_eq!((error.kind(), since.elapsed()), (io::ErrorKind::TimedOut, AFTER_END));
        }
    }

    /// A side that has ended still reads, and who still speaks is not cut off.
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
            let (gateway, workspace) = (Buffered::new(gateway), Buffered::new(workspace));
            let mut ways = Ways::new(gateway, workspace, false, Duration::from_secs(300));
            let (ended, ()) = tokio::join!(ways.both(|| {}), speaking);
            ended.unwrap();
        }
    }

    #[tokio::test]
    async fn only_what_the_client_says_is_activity() {
        let ((gateway, mut client), (workspace, mut server)) = (duplex(64), duplex(64));
        let activities = Cell::new(0);
        let (gateway, workspace) = (Buffered::new(gateway), Buffered::new(workspace));
        let mut ways = Ways::new(gateway, workspace, false, Duration::from_secs(300));
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
