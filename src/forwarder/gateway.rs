//! One connection of the gateway's: a request and its response, and the next.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::asked::AskedError;
use super::buffered::Buffered;
use super::exchange::{self, Next};
use super::failure::Failure;
use super::head::{HeadEnd, HeadError};
use super::watch::Watch;
use super::{Forwarder, refuse};
use crate::refusal::More;

/// How long a connection of the gateway's may be idle. Longer than the 60 s after
/// which the gateway itself closes one, so that it never sends a request into one
/// that we are just closing.
const IDLE: Duration = Duration::from_secs(75);

/// How long a drain keeps an idle connection, on which the gateway may be about to
/// send a request.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// Answers the requests of one connection of the gateway's.
pub(super) async fn serve(
    forwarder: Arc<Forwarder>,
    stream: TcpStream,
    socket: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let mut gateway = Buffered::new(stream);
    let mut watch = Watch::new(IDLE);
    let mut stopped = pin!(stop.cancelled());
    loop {
        match read_head(&forwarder, &mut gateway, &mut watch, stopped.as_mut(), &stop).await {
            Head::Whole(length) => gateway.use_up(length),
            Head::None => return,
            Head::Successors => {
                if forwarder.succession.hand_over_requests(&gateway.stream).await {
                    return;
                }
                continue;
            }
            Head::Malformed(error) => {
                gateway.use_up(gateway.unused().len());
                refuse::respond(
                    &forwarder,
                    &mut gateway,
                    &AskedError::from(error).into(),
                    None,
                    More::Nothing,
                )
                .await;
                return;
            }
            Head::Late => {
                gateway.use_up(gateway.unused().len());
                refuse::respond(&forwarder, &mut gateway, &Failure::Late, None, More::Nothing).await;
                return;
            }
        }
        match exchange::run(&forwarder, &mut gateway, &mut watch, &stop).await {
            Next::Request => gateway.forget_used(),
            Next::End => return,
            Next::Tunnel(tunnel) => {
                // A tunnel lives long, so it gets a task of its own, which is small.
                forwarder.tasks.spawn_closing(|deadline| async move {
                    tunnel.run(gateway, deadline).await;
                    drop(socket);
                });
                return;
            }
        }
    }
}

/// Refuses the first request of a connection for which there is no place.
pub(super) async fn turn_away(forwarder: Arc<Forwarder>, stream: TcpStream, stop: CancellationToken) {
    let mut gateway = Buffered::new(stream);
    let mut watch = Watch::new(forwarder.limits.head);
    let stopped = pin!(stop.cancelled());
    let head = read_head(&forwarder, &mut gateway, &mut watch, stopped, &stop);
    match timeout(forwarder.limits.head, head).await {
        Ok(Head::Whole(length)) => {
            gateway.use_up(length);
            let busy = Failure::Busy(forwarder.limits.max_connections);
            refuse::respond(&forwarder, &mut gateway, &busy, None, More::Nothing).await;
        }
        Ok(Head::Successors) => drop(forwarder.succession.hand_over_requests(&gateway.stream).await),
        // Whoever says nothing meanwhile is closed.
        _ => {}
    }
}

/// What came on an idle connection.
enum Head {
    Whole(usize),
    /// The connection has ended, or is to end.
    None,
    /// What comes is a successor's to read.
    Successors,
    Malformed(HeadError),
    Late,
}

/// Waits for the next head. Half-closed connections are not supported before an
/// upgrade: a gateway that closes has lost its client.
async fn read_head(
    forwarder: &Forwarder,
    gateway: &mut Buffered<TcpStream>,
    watch: &mut Watch,
    mut stopped: Pin<&mut WaitForCancellationFuture<'_>>,
    stop: &CancellationToken,
) -> Head {
    let mut end = HeadEnd::default();
    let mut idle_until = Instant::now() + IDLE;
    let mut late_at = None;
    let mut is_draining = false;
    poll_fn(|context| {
        loop {
            match end.find(gateway.unused()) {
                Ok(Some(length)) => return Poll::Ready(Head::Whole(length)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Head::Malformed(error)),
            }
            match gateway.poll_more(context) {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Head::None),
                Poll::Pending => {}
            }
            if !gateway.unused().is_empty() {
                let late_at = *late_at.get_or_insert_with(|| Instant::now() + forwarder.limits.head);
                return watch.poll_over(late_at, context).map(|()| Head::Late);
            }
            if !is_draining && (stop.is_cancelled() || stopped.as_mut().poll(context).is_ready()) {
                is_draining = true;
                idle_until = idle_until.min(Instant::now() + DRAIN_IDLE);
            }
            if is_draining && forwarder.succession.is_ready() {
                return Poll::Ready(Head::Successors);
            }
            ready!(watch.poll_over(idle_until, context));
            return Poll::Ready(Head::None);
        }
    })
    .await
}
