//! What follows an upgrade: bytes both ways, which are none of our business.

use std::io;
use std::pin::pin;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::time::timeout;

/// How long one side may go on once the other has ended. A workspace that never
/// closes would hold a place among all users' connections for ever.
const AFTER_END: Duration = Duration::from_secs(10);

/// Copies both ways until both sides have ended, or one has failed, or has not
/// followed the other's end.
///
/// An end of one side is passed to the other as what it is: that side may
/// still speak. What either side sent before the upgrade was complete has been
/// read already and comes first.
pub(super) async fn run(gateway: OnUpgrade, workspace: OnUpgrade, request_id: &str) {
    let upgraded = tokio::try_join!(gateway, workspace);
    let copied = match upgraded {
        Ok((gateway, workspace)) => both_ways(TokioIo::new(gateway), TokioIo::new(workspace)).await,
        Err(error) => {
            tracing::debug!(request_id, %error, "upgrade failed");
            return;
        }
    };
    match copied {
        Ok((to_workspace, to_gateway)) => {
            tracing::debug!(request_id, to_workspace, to_gateway, "tunnel ended");
        }
        Err(error) => tracing::debug!(request_id, %error, "tunnel broke off"),
    }
}

/// How many bytes went to the second, and how many to the first.
async fn both_ways<A, B>(first: A, second: B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((mut from_first, mut to_first), (mut from_second, mut to_second)) = (split(first), split(second));
    let mut there = pin!(pass(&mut from_first, &mut to_second));
    let mut back = pin!(pass(&mut from_second, &mut to_first));
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::select! {
        passed = there.as_mut() => Ok((passed?, timeout(AFTER_END, back).await.map_err(late)??)),
        passed = back.as_mut() => {
            let passed = passed?;
            Ok((timeout(AFTER_END, there).await.map_err(late)??, passed))
        }
    }
}

/// Passes everything on, and the end as well.
async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<u64> {
    let passed = copy(from, to).await?;
    to.shutdown().await?;
    Ok(passed)
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
            let error = both_ways(gateway, workspace).await.unwrap_err();
            assert_eq!((error.kind(), since.elapsed()), (io::ErrorKind::TimedOut, AFTER_END));
        }
    }
}
