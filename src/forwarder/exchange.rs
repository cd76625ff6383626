//! One request and its response.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::asked::{Asked, AskedError};
use super::buffered::{Buffered, Unsent};
use super::failure::Failure;
use super::framing::Framing;
use super::passage::{Ended, Passage};
use super::pool::Destination;
use super::relay::{Coding, PassError, Relay};
use super::tunnel::Tunnel;
use super::watch::Watch;
use super::workspace::Connection;
use super::{Forwarder, refuse};
use crate::refusal::{More, Refusal};

/// What comes after an exchange on the gateway's connection.
pub(super) enum Next {
    /// Another request.
    Request,
    End,
    Tunnel(Tunnel),
}

/// Responds to the request whose head is used up: with the workspace's response, or with a
/// refusal.
pub(super) async fn run(
    forwarder: &Arc<Forwarder>,
    gateway: &mut Buffered<TcpStream>,
    watch: &mut Watch,
    stop: &CancellationToken,
) -> Next {
    let mut asked = match Asked::read(gateway.used(), &forwarder.key, SystemTime::now()) {
        Ok(asked) => asked,
        Err(error) => {
            let body = match error {
                AskedError::Stamp { framing, is_last: false, .. } => Some(framing),
                _ => None,
            };
            let body = body.map(|framing| Relay::new(Unsent::default(), framing, Coding::Plain));
            return refuse::respond(forwarder, gateway, &error.into(), body, More::Nothing).await;
        }
    };
    let before = Unsent::new(std::mem::take(&mut asked.head));
    let mut upload = Relay::new(before, asked.framing, upload_coding(asked.framing));
    let exchanged = match upload.take_early(gateway) {
        Ok(()) => exchange(forwarder, gateway, &asked, &mut upload, watch, stop).await,
        Err(PassError::Malformed(error)) => Err(Failure::Body(error)),
        Err(_) => Err(Failure::Gone),
    };
    match exchanged {
        Ok(next) => next,
        Err(failure) => {
            let upstream = &asked.upstream;
            debug!(host = %upstream.host(), port = upstream.port(), %failure, "no response");
            let body = (!asked.is_last && !matches!(failure, Failure::Body(_))).then_some(upload);
            let more = match failure.refusal() {
                Some(Refusal::WorkspaceStarting) => {
                    More::Waited(forwarder.starting.waited(&Destination::of(&asked.upstream)))
                }
                _ => More::Nothing,
            };
            refuse::respond(forwarder, gateway, &failure, body, more).await
        }
    }
}

fn upload_coding(framing: Framing) -> Coding {
    if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain }
}

async fn exchange(
    forwarder: &Arc<Forwarder>,
    gateway: &mut Buffered<TcpStream>,
    asked: &Asked,
    upload: &mut Relay,
    watch: &mut Watch,
    stop: &CancellationToken,
) -> Result<Next, Failure> {
    let place = Arc::clone(&forwarder.places).try_acquire_owned();
    let place = place.map_err(|_| Failure::Busy(forwarder.limits.max_connections))?;
    let most = forwarder.limits.max_of_subject;
    let counted = forwarder.subjects.begin(asked.upstream.subject(), most);
    let counted = counted.ok_or(Failure::SubjectBusy(most))?;
    let addresses = forwarder.resolver.resolve(asked.upstream.host()).await?;
    let destination = Destination::of(&asked.upstream);
    let pooled = forwarder.pool.take(&destination, &addresses);
    let is_reused = pooled.is_some();
    let connection = match pooled {
        Some(connection) => connection,
        None => connect(forwarder, asked, &addresses).await?,
    };
    let mut passage = Passage::new(forwarder, gateway, connection, asked, upload, watch, stop);
    let mut exchanged = poll_fn(|context| passage.poll(context)).await;
    if is_reused && matches!(exchanged, Err(Failure::Unsent(_))) {
        // It died while it waited. That no byte was written makes this the one case
        // where sending again is safe for any request.
        passage.replace(connect(forwarder, asked, &addresses).await?);
        exchanged = poll_fn(|context| passage.poll(context)).await;
    }
    if passage.has_begun() {
        // Behind what has begun, a refusal would be the response to the next request.
        exchanged = exchanged.map_err(Failure::behind_a_beginning);
    }
    if exchanged.is_ok() && passage.is_workspace_ready {
        forwarder.starting.answers(&destination);
    }
    let body_passed = passage.has_passed_request();
    let (connection, ended) = (passage.connection, exchanged?);
    match ended {
        Ended::Upgraded => {
            let counted = counted.into_tunnel(asked.upstream.clone());
            let is_websocket =
                asked.protocols.as_deref().is_some_and(|wanted| wanted.eq_ignore_ascii_case(b"websocket"));
            let waits = forwarder.limits.with(asked.upstream.timeouts());
            let workspace = connection.stream;
            Ok(Next::Tunnel(Tunnel { workspace, counted, is_websocket, send: waits.send, place }))
        }
        Ended::Responded { keep, is_last } => {
            if let Some(idle) = keep.filter(|_| body_passed) {
                forwarder.pool.put(destination, connection, idle);
            }
            if !body_passed {
                // What is unread would reset the connection, and take the response with it.
                refuse::discard(gateway, upload).await;
            }
            Ok(if is_last || !body_passed { Next::End } else { Next::Request })
        }
    }
}

async fn connect(forwarder: &Forwarder, asked: &Asked, addresses: &[IpAddr]) -> Result<Connection, Failure> {
    let wait = forwarder.limits.with(asked.upstream.timeouts()).connect;
    Ok(Connection::open(&asked.upstream, addresses, &forwarder.tls, wait).await?)
}
