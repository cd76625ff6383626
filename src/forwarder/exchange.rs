//! One request and its response.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{self, Either};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::buffered_stream::BufferedStream;
use super::deadline_timer::DeadlineTimer;
use super::error_response::{self, RestOfRequest};
use super::exchange_failure::ExchangeFailure;
use super::http::framing::Framing;
use super::http::head::RawRequestHead;
use super::http::headers::Persistence;
use super::http::websocket::UpgradedProtocol;
use super::relay::{Coding, PassError, Relay};
use super::stamped_request::{RequestError, StampedRequest};
use super::state::ConnectionPermit;
use super::state::Forwarder;
use super::strangers::ConnectionPlace;
use super::subjects::Use;
use super::tasks::random_part;
use super::transfer::{Ended, Transfer};
use super::tunnel::Tunnel;
use super::workspace::connection::{ConnectError, WorkspaceConnection};
use super::workspace::pool::Destination;
use super::write_buffer::WriteBuffer;
use crate::refusal::{More, Refusal};

/// After how long without a connection a workspace may have moved.
const SLOW_CONNECT: Duration = Duration::from_secs(1);

/// What comes after an exchange on the gateway's connection.
pub(super) enum AfterExchange {
    /// Another request.
    Request,
    End,
    Tunnel(Tunnel),
}

impl From<RestOfRequest> for AfterExchange {
    fn from(rest: RestOfRequest) -> Self {
        match rest {
            RestOfRequest::Read => Self::Request,
            RestOfRequest::Unread => Self::End,
        }
    }
}

/// Responds to the request whose head was read, with the workspace's response or with a
/// refusal.
pub(super) async fn run(
    forwarder: &Arc<Forwarder>,
    gateway: &mut BufferedStream<TcpStream>,
    place: &mut ConnectionPlace,
    timer: &mut DeadlineTimer,
    stop: &CancellationToken,
) -> AfterExchange {
    let mut asked = match StampedRequest::read(gateway.used(), &forwarder.key, SystemTime::now()) {
        Ok(asked) => asked,
        Err(error) => {
            let body = match error {
                RequestError::Stamp { framing, is_last: false, .. } => Some(framing),
                _ => None,
            };
            let body = body.map(|framing| Relay::new(WriteBuffer::default(), framing, Coding::Plain));
            let failure = error.into();
            let responding = error_response::respond(forwarder, gateway, None, &failure, body, More::Nothing);
            return place.while_kept(responding).await.map_or(AfterExchange::End, Into::into);
        }
    };
    let before = WriteBuffer::new(std::mem::take(&mut asked.head));
    let mut upload = Relay::new(before, asked.framing, upload_coding(asked.framing));
    let exchanged = match upload.take_early(gateway) {
        Ok(()) if !place.know(&forwarder.sockets) => {
            Err(ExchangeFailure::Busy(forwarder.limits.max_connections))
        }
        Ok(()) if asked.is_shared_worker => Err(ExchangeFailure::SharedWorker),
        Ok(()) => exchange(forwarder, gateway, &asked, &mut upload, timer, stop).await,
        Err(PassError::Malformed(error)) => Err(ExchangeFailure::Body(error)),
        Err(_) => Err(ExchangeFailure::Gone),
    };
    match exchanged {
        Ok(next) => next,
        Err(failure) => {
            let upstream = &asked.upstream;
            debug!(host = %upstream.host(), port = upstream.port(), %failure, "no response");
            let body = (!asked.is_last && !matches!(failure, ExchangeFailure::Body(_))).then_some(upload);
            // Only a navigation shows the time. The requests of a tab that its user has
            // forgotten don't count: they would keep the time of an earlier start.
            let more = match failure.refusal() {
                Some(Refusal::WorkspaceStarting) if is_navigation(gateway) => {
                    More::Waited(forwarder.start_times.waited(&Destination::of(&asked.upstream)))
                }
                _ => More::Nothing,
            };
            error_response::respond(forwarder, gateway, Some(&asked), &failure, body, more).await.into()
        }
    }
}

/// Whether a person waits for the response to the request whose head was read.
fn is_navigation(gateway: &BufferedStream<TcpStream>) -> bool {
    RawRequestHead::parse(gateway.used()).is_ok_and(|head| error_response::reader(&head).is_navigation())
}

fn upload_coding(framing: Framing) -> Coding {
    if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain }
}

async fn exchange(
    forwarder: &Arc<Forwarder>,
    gateway: &mut BufferedStream<TcpStream>,
    asked: &StampedRequest,
    upload: &mut Relay,
    timer: &mut DeadlineTimer,
    stop: &CancellationToken,
) -> Result<AfterExchange, ExchangeFailure> {
    let permit = Arc::clone(&forwarder.permits).try_acquire_owned();
    let permit = permit.map_err(|_| ExchangeFailure::Busy(forwarder.limits.max_connections))?;
    let (most, free) = (forwarder.limits.max_of_subject, forwarder.permits.available_permits() + 1);
    let counted = forwarder.subjects.begin(asked.upstream.subject(), most);
    let counted = counted.ok_or(ExchangeFailure::SubjectBusy(most))?;
    if let Some(open) = counted.others_open()
        && forwarder.limits.is_unfair(open, free)
    {
        return Err(ExchangeFailure::UnfairShare { open, free });
    }
    let addresses = forwarder.resolver.resolve(asked.upstream.host()).await?;
    let destination = Destination::of(&asked.upstream);
    let pooled = forwarder.pool.take(&destination, &addresses);
    let is_reused = pooled.is_some();
    let connection = match pooled {
        Some(connection) => connection,
        None => connect(forwarder, asked, &addresses).await?,
    };
    let mut transfer = Transfer::new(forwarder, gateway, connection, asked, upload, timer, stop);
    let mut exchanged = poll_fn(|context| transfer.poll(context)).await;
    if is_reused && matches!(exchanged, Err(ExchangeFailure::Unsent(_))) {
        // The idle connection was dead. Not a byte was written on it, so sending the request
        // again is safe whatever its method is.
        transfer.replace(connect(forwarder, asked, &addresses).await?);
        exchanged = poll_fn(|context| transfer.poll(context)).await;
    } else if is_reused && matches!(exchanged, Err(ExchangeFailure::Broken(_))) && transfer.may_repeat() {
        // The workspace has closed the idle connection as the request arrived.
        if transfer.repeat(connect(forwarder, asked, &addresses).await?) {
            exchanged = poll_fn(|context| transfer.poll(context)).await;
        }
    }
    if transfer.has_begun() {
        // After the start of a response, a refusal would be read as the response to the next
        // request.
        exchanged = exchanged.map_err(ExchangeFailure::behind_a_beginning);
    }
    if exchanged.is_ok() && transfer.is_workspace_ready {
        forwarder.start_times.answers(&destination);
    }
    let body_passed = transfer.has_passed_request();
    let (connection, ended) = (transfer.connection, exchanged?);
    let (keep, persistence) = match ended {
        Ended::Upgraded => {
            return Ok(AfterExchange::Tunnel(tunnel(forwarder, asked, connection, counted, permit)));
        }
        Ended::Responded { keep, persistence } => (keep, persistence),
    };
    if !body_passed {
        // Closing the connection with something unread would reset it, and the response
        // would be lost.
        error_response::discard(gateway, upload).await;
        return Ok(AfterExchange::End);
    }
    if let Some(idle) = keep {
        forwarder.pool.put(destination, connection, idle);
    }
    Ok(match persistence {
        Persistence::KeepAlive => AfterExchange::Request,
        Persistence::Close => AfterExchange::End,
    })
}

/// The tunnel of a request that was upgraded.
fn tunnel(
    forwarder: &Forwarder,
    asked: &StampedRequest,
    connection: WorkspaceConnection,
    counted: Use,
    permit: ConnectionPermit,
) -> Tunnel {
    Tunnel {
        workspace: connection.stream,
        counted: counted.into_tunnel(asked.upstream.clone()),
        protocol: asked.protocols.as_deref().map_or(UpgradedProtocol::Other, UpgradedProtocol::of),
        send: forwarder.limits.with(asked.upstream.timeouts()).send,
        // Up to a tenth less, so that tunnels that began together do not end together.
        life: forwarder.limits.tunnel.map(|most| most.mul_f64(1.0 - random_part() / 10.0)),
        ping: forwarder.limits.ping,
        permit,
    }
}

async fn connect(
    forwarder: &Forwarder,
    asked: &StampedRequest,
    addresses: &[IpAddr],
) -> Result<WorkspaceConnection, ExchangeFailure> {
    let wait = forwarder.limits.with(asked.upstream.timeouts()).connect;
    let open = |addresses: Arc<[IpAddr]>| async move {
        WorkspaceConnection::open(&asked.upstream, &addresses, &forwarder.tls, wait).await
    };
    let mut opening = pin!(open(addresses.into()));
    let first = tokio::select! {
        opened = &mut opening => match opened {
            Ok(connection) => return Ok(connection),
            Err(error @ ConnectError::NoMeans(_)) => return Err(error.into()),
            Err(error) => Some(error),
        },
        () = sleep(SLOW_CONNECT) => None,
    };
    // The workspace may have moved: its name is asked for again, whatever its TTL is.
    let known = forwarder.resolver.resolve_unreachable(asked.upstream.host()).await;
    let moved = known.ok().filter(|known| known.iter().any(|address| !addresses.contains(address)));
    match (first, moved) {
        (None, None) => Ok(opening.await?),
        (Some(error), None) => Err(error.into()),
        (Some(_), Some(moved)) => Ok(open(moved).await?),
        (None, Some(moved)) => match future::select(opening, pin!(open(moved))).await {
            Either::Left((Ok(connection), _)) | Either::Right((Ok(connection), _)) => Ok(connection),
            Either::Left((Err(_), other)) => Ok(other.await?),
            Either::Right((Err(_), other)) => Ok(other.await?),
        },
    }
}
