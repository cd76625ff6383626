//! One connection of the gateway, which carries one request after the other.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::buffered_stream::BufferedStream;
use super::deadline_timer::DeadlineTimer;
use super::error_response;
use super::exchange::{self, AfterExchange};
use super::exchange_failure::ExchangeFailure;
use super::http::head::{HeadEnd, HeadError};
use super::stamped_request::RequestError;
use super::state::Forwarder;
use super::strangers::ConnectionPlace;
use crate::refusal::More;

/// How long a connection of the gateway may be idle. The gateway itself closes idle
/// connections after 60 s, so it never sends a request into one that the forwarder closes.
const IDLE: Duration = Duration::from_secs(75);

/// How long a drain keeps an idle connection, because the gateway may be sending a request
/// on it.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// Serves the requests of one connection of the gateway.
pub(super) async fn serve(
    forwarder: Arc<Forwarder>,
    stream: TcpStream,
    mut place: ConnectionPlace,
    stop: CancellationToken,
) {
    let mut gateway = BufferedStream::new(stream);
    let mut timer = DeadlineTimer::new(IDLE);
    let mut stopped = pin!(stop.cancelled());
    loop {
        let reading =
            read_head(&forwarder, &mut gateway, &mut timer, stopped.as_mut(), &stop, place.is_stranger());
        let Some(head) = place.while_kept(reading).await else { return };
        let failure = match head {
            Head::Whole(length) => {
                gateway.use_up(length);
                match exchange::run(&forwarder, &mut gateway, &mut place, &mut timer, &stop).await {
                    AfterExchange::Request => {
                        gateway.forget_used();
                        continue;
                    }
                    AfterExchange::End => return,
                    AfterExchange::Tunnel(tunnel) => {
                        // A tunnel lives long, so it gets a small task of its own.
                        forwarder.tasks.spawn_closing(|deadline, drain| async move {
                            tunnel.run(gateway, deadline, drain).await;
                            drop(place);
                        });
                        return;
                    }
                }
            }
            Head::None => return,
            Head::Successors => {
                if forwarder.succession.hand_over_requests(&gateway.stream).await {
                    return;
                }
                continue;
            }
            Head::Malformed(error) => RequestError::from(error).into(),
            Head::Late => ExchangeFailure::Late,
        };
        gateway.use_up(gateway.unused().len());
        let responding =
            error_response::respond(&forwarder, &mut gateway, None, &failure, None, More::Nothing);
        place.while_kept(responding).await;
        return;
    }
}

/// What arrived on an idle connection.
enum Head {
    Whole(usize),
    /// The connection has ended, or must end.
    None,
    /// The successor reads the next request.
    Successors,
    Malformed(HeadError),
    Late,
}

/// Waits for the next head. Half-closed connections are not supported before an
/// upgrade: a gateway that closes has lost its client.
async fn read_head(
    forwarder: &Forwarder,
    gateway: &mut BufferedStream<TcpStream>,
    timer: &mut DeadlineTimer,
    mut stopped: Pin<&mut WaitForCancellationFuture<'_>>,
    stop: &CancellationToken,
    is_stranger: bool,
) -> Head {
    let mut end = HeadEnd::default();
    let idle = if is_stranger { forwarder.limits.first_byte } else { IDLE };
    let mut idle_until = Instant::now() + idle;
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
                return timer.poll_over(late_at, context).map(|()| Head::Late);
            }
            if !is_draining && (stop.is_cancelled() || stopped.as_mut().poll(context).is_ready()) {
                is_draining = true;
                idle_until = idle_until.min(Instant::now() + DRAIN_IDLE);
            }
            // A successor takes what it is handed for the gateway's.
            if is_draining && !is_stranger && forwarder.succession.is_ready() {
                return Poll::Ready(Head::Successors);
            }
            ready!(timer.poll_over(idle_until, context));
            return Poll::Ready(Head::None);
        }
    })
    .await
}
