//! The forwarder's accept loop and its drain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::gateway_connection;
use super::state::Forwarder;

/// How long the forwarder accepts nothing after a failure such as running out of file
/// descriptors, which ends only when other connections are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The refusal code of a connection that is closed without a response, because too many
/// others wait for theirs.
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
                self.admit(stream, &stop);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = accepting => {}
        }
        self.serve_queued(listener, &stop);
        self.pool.close();
        let (tunnels, refused) = (self.tunnels(), self.counters.refused());
        tracing::info!(tunnels, most = ?drain, ?refused, "forwarder drains");
        self.tasks.finish(drain).await;
    }

    /// Serves a connection if the limit allows it. Otherwise responds that there are too
    /// many connections.
    pub(crate) fn admit(self: &Arc<Self>, stream: TcpStream, stop: &CancellationToken) {
        let forwarder = Arc::clone(self);
        if let Ok(socket) = Arc::clone(&self.sockets).try_acquire_owned() {
            self.tasks.spawn(gateway_connection::serve(forwarder, stream, socket, stop.clone()));
        } else if let Ok(permit) = Arc::clone(&self.turned_away).try_acquire_owned() {
            let refusing = gateway_connection::turn_away(forwarder, stream, stop.clone());
            self.tasks.spawn(async move {
                refusing.await;
                drop(permit);
            });
        } else {
            self.counters.count(CLOSED_UNANSWERED);
            self.limit_log.turn_away();
        }
    }

    /// Serves the connections in the listener's queue, which closing it would reset.
    fn serve_queued(self: &Arc<Self>, listener: TcpListener, stop: &CancellationToken) {
        let Ok(queue) = listener.into_std() else { return };
        // A connection beyond the limit stays in the queue, which a successor may share.
        while let Ok(socket) = Arc::clone(&self.sockets).try_acquire_owned() {
            let Ok((stream, _)) = queue.accept() else { return };
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                let serving = gateway_connection::serve(Arc::clone(self), stream, socket, stop.clone());
                self.tasks.spawn(serving);
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
