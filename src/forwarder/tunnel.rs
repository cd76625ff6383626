//! What follows an upgrade: bytes both ways, which are none of our business.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Place;
use super::buffered::{Buffered, Unsent};
use super::framing::Framing;
use super::relay::{Coding, PassError, Relay};
use super::subjects::TunnelUse;
use super::tls::Stream;

/// How long one side may go on once the other has ended. A workspace that never
/// closes would hold a place among all users' connections for ever.
const AFTER_END: Duration = Duration::from_secs(10);

/// The workspace's side of a connection that was upgraded.
pub(super) struct Tunnel {
    pub(super) workspace: Buffered<Stream>,
    /// The subject's part in it.
    pub(super) counted: TunnelUse,
}

impl Tunnel {
    /// Copies both ways until both sides have ended, or one has failed, or has not
    /// followed the other's end.
    ///
    /// An end of one side is passed to the other as what it is: that side may
    /// still speak. What either side sent before the upgrade was complete has been
    /// read already and comes first.
    pub(super) async fn run(mut self, gateway: Buffered<TcpStream>, place: Place) {
        self.workspace.forget_used();
        match both_ways(gateway, self.workspace, || self.counted.touch()).await {
            Ok(()) => tracing::debug!("tunnel ended"),
            Err(error) => tracing::debug!(%error, "tunnel broke off"),
        }
        drop(place);
    }
}

/// One direction of a tunnel.
struct Way {
    relay: Relay,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Passing,
    /// All has passed but the end itself.
    Ending,
    Ended,
}

impl Way {
    fn new() -> Self {
        Self {
            relay: Relay::new(Unsent::default(), Framing::UntilClose, Coding::Plain),
            state: State::Passing,
        }
    }

    /// Passes everything on, and the end as well.
    fn poll<R, W>(
        &mut self,
        from: &mut Buffered<R>,
        to: &mut Buffered<W>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.state == State::Passing {
            let passed = ready!(self.relay.poll_pass(from, &mut to.stream, context));
            passed.map_err(|error| match error {
                PassError::Read(error) | PassError::Write(error) => error,
                other => io::Error::other(other),
            })?;
            self.state = State::Ending;
        }
        if self.state == State::Ending {
            ready!(Pin::new(&mut to.stream).poll_shutdown(context))?;
            self.state = State::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

/// Tells each time that bytes came from the gateway.
async fn both_ways<A, B>(
    mut gateway: Buffered<A>,
    mut workspace: Buffered<B>,
    is_active: impl Fn(),
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Way::new(), Way::new());
    let mut poll = |context: &mut Context<'_>, is_one_enough: bool| {
        let passed = up.poll(&mut gateway, &mut workspace, context)?;
        if up.relay.take_moved() {
            is_active();
        }
        let down = down.poll(&mut workspace, &mut gateway, context)?;
        match (passed, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Ready(()), _) | (_, Poll::Ready(())) if is_one_enough => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    };
    poll_fn(|context| poll(context, true)).await?;
    let rest = timeout(AFTER_END, poll_fn(|context| poll(context, false))).await;
    rest.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_side_that_never_ends_holds_a_tunnel_no_longer() {
        for gateway_ends in [true, false] {
            let ((gateway, gateway_peer), (workspace, workspace_peer)) = (duplex(64), duplex(64));
            let (ended, _silent) =
                if gateway_ends { (gateway_peer, workspace_peer) } else { (workspace_peer, gateway_peer) };
            drop(ended);
            let since = Instant::now();
            let error = both_ways(Buffered::new(gateway), Buffered::new(workspace), || {}).await.unwrap_err();
            assert_eq!((error.kind(), since.elapsed()), (io::ErrorKind::TimedOut, AFTER_END));
        }
    }
}
