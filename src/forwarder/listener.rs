//! The forwarder's accept loop and its drain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::gateway_connection;
use super::state::Forwarder;
use super::strangers::ConnectionPlace;

/// How long the forwarder accepts nothing after a failure such as running out of file
/// descriptors, which ends only when other connections are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The refusal code of a connection that is closed without a response: it was the oldest one
/// without a valid stamp, and there were too many.
pub(super) const CLOSED_UNANSWERED: &str = "closed-unanswered";

impl Forwarder {
    /// Serves the listener until `stop`. Then lets requests and tunnels go on for at most
    /// `drain`, and returns when none is left.
    ///
    /// A forwarder serves once: afterwards it keeps nothing open.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        drain: Duration,
    ) {
        // Dropping this future ends the tasks too.
        let _ended = self.tasks.end_on_drop();
        self.tasks.spawn(Arc::clone(&self.pool).close_expired(stop.clone()));
        let accepting = async {
            loop {
                let stream = accept(&listener).await;
                self.admit_stranger(stream, &stop);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = accepting => {}
        }
        self.serve_queued(listener, &stop);
        self.pool.close();
        let refused: Vec<_> =
            self.counters.refused().iter().map(|(code, count)| format!("{code}:{count}")).collect();
        let (tunnels, refused) = (self.tunnels(), refused.join(","));
        tracing::info!(tunnels, most = ?drain, refused, "forwarder drains");
        self.tasks.finish(drain).await;
    }

    /// Serves a connection that a predecessor has handed over. The predecessor has seen a valid
    /// stamp on it.
    pub(crate) fn admit(self: &Arc<Self>, stream: TcpStream, stop: &CancellationToken) {
        match Arc::clone(&self.sockets).try_acquire_owned() {
            Ok(permit) => self.serve_at(ConnectionPlace::Known { _permit: permit }, stream, stop),
            Err(_) => self.admit_stranger(stream, stop),
        }
    }

    /// Serves a new connection. If there are too many without a valid stamp, the oldest one is
    /// closed.
    fn admit_stranger(self: &Arc<Self>, stream: TcpStream, stop: &CancellationToken) {
        let (place, has_replaced) = self.strangers.enter();
        if has_replaced {
            self.counters.count(CLOSED_UNANSWERED);
            self.limit_log.turn_away();
        }
        self.serve_at(ConnectionPlace::Stranger(place), stream, stop);
    }

    fn serve_at(self: &Arc<Self>, place: ConnectionPlace, stream: TcpStream, stop: &CancellationToken) {
        self.tasks.spawn(gateway_connection::serve(Arc::clone(self), stream, place, stop.clone()));
    }

    /// Serves the connections in the listener's queue, which closing it would reset.
    fn serve_queued(self: &Arc<Self>, listener: TcpListener, stop: &CancellationToken) {
        let Ok(queue) = listener.into_std() else { return };
        // A connection beyond the limit stays in the queue, which a successor may share.
        while let Some(place) = self.strangers.enter_free() {
            let Ok((stream, _)) = queue.accept() else { return };
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.serve_at(ConnectionPlace::Stranger(place), stream, stop);
            }
        }
    }
}

/// Waits for the next connection. An accept that fails is tried again.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it, a request's head and its body would wait for each other's
                // acknowledgement. The connection works without it too, only slower.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // The peer gave up while it waited in the queue.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                tracing::error!(%error, "the forwarder can't accept connections, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
