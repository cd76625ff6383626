//! Whether a peer has gone whose bytes nobody reads: its end stands behind them.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::tls::Stream;

/// How often it is looked, while nothing is read.
pub(super) const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A connection whose other end may go unread.
pub(super) trait HangUp {
    /// Whether the peer sends nothing more, or is gone altogether.
    fn has_hung_up(&self) -> bool;
}

impl HangUp for TcpStream {
    fn has_hung_up(&self) -> bool {
        let ready = self.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.map_or(true, Ready::is_read_closed))
    }
}

impl HangUp for Stream {
    fn has_hung_up(&self) -> bool {
        self.tcp().has_hung_up()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_end_is_seen_behind_bytes_that_nobody_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(!stream.has_hung_up());
        peer.write_all(b"unread").await.unwrap();
        stream.readable().await.unwrap();
        assert!(!stream.has_hung_up());
        peer.shutdown().await.unwrap();
        while !stream.has_hung_up() {
            tokio::task::yield_now().await;
        }
    }
}
