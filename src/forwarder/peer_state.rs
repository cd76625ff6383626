//! Whether a peer has closed its side, although bytes before that end are not read yet.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::workspace::tls::WorkspaceStream;

/// How often to check, while nothing is read.
pub(super) const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A connection that knows whether its peer has closed.
pub(super) trait PeerState {
    /// Whether the peer sends nothing more, or has closed the connection.
    fn has_closed(&self) -> bool;
}

impl PeerState for TcpStream {
    fn has_closed(&self) -> bool {
        let ready = self.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.map_or(true, Ready::is_read_closed))
    }
}

impl PeerState for WorkspaceStream {
    fn has_closed(&self) -> bool {
        self.tcp().has_closed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_end_is_seen_after_unread_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(!stream.has_closed());
        peer.write_all(b"unread").await.unwrap();
        stream.readable().await.unwrap();
        assert!(!stream.has_closed());
        peer.shutdown().await.unwrap();
        while !stream.has_closed() {
            tokio::task::yield_now().await;
        }
    }
}
