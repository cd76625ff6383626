//! A connection to a workspace.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::buffered::Buffered;
use super::tls::{Stream, Tls};
use crate::upstream::{Scheme, Upstream};

/// After how long the next address is tried beside the one before, which has not
/// answered (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection to a workspace that takes one request after the other.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Buffered<Stream>,
    address: IpAddr,
    /// How many requests were sent on it.
    pub(super) requests: u32,
}

/// Why no connection could be made.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no connection: {0}")]
    Refused(#[source] io::Error),
    #[error("no TLS: {0}")]
    Tls(#[source] io::Error),
}

impl Connection {
    /// Connects to the first address that takes the connection: one after the other,
    /// and the next one beside an address that is slow (RFC 8305).
    pub(super) async fn open(
        upstream: &Upstream,
        addresses: &[IpAddr],
        tls: &Tls,
        wait: Duration,
    ) -> Result<Self, ConnectError> {
        let opening = async {
            let opened = race(interleaved(addresses), upstream.port()).await;
            let (stream, address) = opened.map_err(ConnectError::Refused)?;
            // Only slower without.
            let _ = stream.set_nodelay(true);
            let stream = match upstream.scheme() {
                Scheme::Http => Stream::Plain(stream),
                Scheme::Https => tls.connect(stream, upstream.host()).await.map_err(ConnectError::Tls)?,
            };
            Ok(Self { stream: Buffered::new(stream), address, requests: 0 })
        };
        timeout(wait, opening).await.unwrap_or(Err(ConnectError::Timeout(wait)))
    }

    /// Where it leads.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the next request can be sent: nobody has closed it, and nothing has
    /// come that nobody asked for. The kernel is asked itself, since the runtime may
    /// not have heard of an end yet.
    pub(super) fn is_quiet(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.stream.unused().is_empty()
            && recv(self.stream.stream.tcp().as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

async fn race(mut addresses: VecDeque<IpAddr>, port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut attempts = FuturesUnordered::new();
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.push(async move {
                TcpStream::connect(SocketAddr::new(address, port)).await.map(|stream| (stream, address))
            });
        }
        let is_last = addresses.is_empty();
        tokio::select! {
            Some(connected) = attempts.next() => match connected {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            },
            () = sleep(ATTEMPT_DELAY), if !is_last => {}
            else => return Err(failure),
        }
        if is_last && attempts.is_empty() {
            return Err(failure);
        }
    }
}

/// The addresses in the order in which they are tried: IPv6 and IPv4 in turn, each
/// in the order in which they came (RFC 8305, section 4).
fn interleaved(addresses: &[IpAddr]) -> VecDeque<IpAddr> {
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv6());
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut order = VecDeque::with_capacity(addresses.len());
    while order.len() < addresses.len() {
        order.extend(six.next());
        order.extend(four.next());
    }
    order
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::super::tls::Trust;
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_two_kinds_of_addresses_take_turns() {
        for (addresses, expected) in [
            (&["127.0.0.1", "127.0.0.2", "::1"][..], &["::1", "127.0.0.1", "127.0.0.2"][..]),
            (&["::1", "::2", "::3", "127.0.0.1"], &["::1", "127.0.0.1", "::2", "::3"]),
            (&["127.0.0.1"], &["127.0.0.1"]),
            (&[], &[]),
        ] {
            assert_eq!(Vec::from(interleaved(&ips(addresses))), ips(expected));
        }
    }

    #[tokio::test]
    async fn every_address_is_tried() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ips(&["127.0.0.3", "127.0.0.2", "::1", "127.0.0.1"]);
        let wait = Duration::from_secs(20);
        let upstream: Upstream = format!("http://a:{port}").parse().unwrap();
        let tls = Tls::new(Trust::System);
        let opened = Connection::open(&upstream, &addresses, &tls, wait).await.unwrap();
        assert_eq!(opened.address(), addresses[3]);
        let error = Connection::open(&upstream, &addresses[..2], &tls, wait).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
        let error = Connection::open(&upstream, &[], &tls, wait).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
    }

    #[tokio::test]
    async fn a_connection_is_quiet_until_somebody_speaks_or_goes() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        for speaks in [true, false] {
            let upstream: Upstream = format!("http://{address}").parse().unwrap();
            let (tls, wait) = (Tls::new(Trust::System), Duration::from_secs(20));
            let opened = Connection::open(&upstream, &[address.ip()], &tls, wait).await;
            let (opened, (peer, _)) = (opened.unwrap(), listener.accept().await.unwrap());
            assert!(opened.is_quiet());
            if speaks {
                assert_eq!(peer.try_write(b"x").unwrap(), 1);
            } else {
                drop(peer);
            }
            assert!(!opened.is_quiet());
        }
    }
}
