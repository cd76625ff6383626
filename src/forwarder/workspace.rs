//! A connection to a workspace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::body::RequestBody;
use super::{MAX_HEAD, MAX_HEADERS, Tasks};

/// A connection to a workspace that takes one request after the other.
pub(super) struct Connection {
    sender: SendRequest<RequestBody>,
    address: SocketAddr,
    requests: u32,
}

/// Why a request got no answer on a connection.
pub(super) enum SendError {
    /// The connection was already dead: here is the request, of which no byte
    /// was written.
    Unsent(Box<Request<RequestBody>>, hyper::Error),
    /// Some of the request may have arrived.
    Broken(hyper::Error),
}

/// Why no connection could be made.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no connection: {0}")]
    Refused(#[source] io::Error),
    #[error("no connection: {0}")]
    Http(#[source] hyper::Error),
}

impl Connection {
    /// Connects to the first address that takes the connection.
    ///
    /// Each address gets its share of the time that is left, so that one which
    /// is silent does not keep the next one from being tried.
    pub(super) async fn open(
        addresses: &[IpAddr],
        port: u16,
        wait: Duration,
        tasks: &Tasks,
    ) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + wait;
        let mut failure = ConnectError::Timeout(wait);
        for (tried, address) in (0_u32..).zip(addresses) {
            let left = u32::try_from(addresses.len()).unwrap_or(u32::MAX) - tried;
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            let address = SocketAddr::new(*address, port);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Self::handshake(stream, address, tasks).await,
                Ok(Err(error)) => failure = ConnectError::Refused(error),
                Err(_) => failure = ConnectError::Timeout(wait),
            }
        }
        Err(failure)
    }

    async fn handshake(stream: TcpStream, address: SocketAddr, tasks: &Tasks) -> Result<Self, ConnectError> {
        // Only slower without.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Http)?;
        tasks.spawn(async move {
            // Whoever waits for a response or a body hears of the error there.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a workspace ended");
            }
        });
        // hyper lets one request in unasked. From then on its readiness would
        // be one request ahead, and the connection be taken for idle while it
        // is in use.
        sender.ready().await.map_err(ConnectError::Http)?;
        Ok(Self { sender, address, requests: 0 })
    }

    /// Sends the request and returns when the head of its response is there.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        self.requests += 1;
        self.sender.try_send_request(request).await.map_err(|mut failed| match failed.take_message() {
            Some(request) => SendError::Unsent(Box::new(request), failed.into_error()),
            None => SendError::Broken(failed.into_error()),
        })
    }

    /// Waits until both bodies have passed; false if the connection has ended.
    pub(super) async fn becomes_idle(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Whether the next request can be sent at once.
    pub(super) fn is_idle(&self) -> bool {
        self.sender.is_ready()
    }

    /// How many requests were sent on it.
    pub(super) fn requests(&self) -> u32 {
        self.requests
    }

    /// Where it leads.
    pub(super) fn address(&self) -> IpAddr {
        self.address.ip()
    }
}
