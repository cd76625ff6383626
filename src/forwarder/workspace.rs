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
    /// The workspace was not even asked.
    #[error("this machine has no means for a connection: {0}")]
    NoMeans(#[source] io::Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        let lacks = [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL, Errno::ENOBUFS, Errno::ENOMEM];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(number) if lacks.contains(&number) => Self::NoMeans(error),
            _ => Self::Refused(error),
        }
    }
}

impl Connection {
    /// Connects to the first address that takes the connection, and shakes hands within
    /// TLS: one after the other, and the next one beside an address that is slow (RFC
    /// 8305).
    pub(super) async fn open(
        upstream: &Upstream,
        addresses: &[IpAddr],
        tls: &Tls,
        wait: Duration,
    ) -> Result<Self, ConnectError> {
        let opening = race(interleaved(addresses), |address| async move {
            let stream = TcpStream::connect(SocketAddr::new(address, upstream.port())).await?;
            // Only slower without.
            let _ = stream.set_nodelay(true);
            let stream = match upstream.scheme() {
                Scheme::Http => Stream::Plain(stream),
                Scheme::Https => tls.connect(stream, upstream.host()).await.map_err(ConnectError::Tls)?,
            };
            Ok(Self { stream: Buffered::new(stream), address, requests: 0 })
        });
        timeout(wait, opening).await.unwrap_or(Err(ConnectError::Timeout(wait)))
    }

    /// Where it leads.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the next request can be sent: nobody has closed it, and nothing has
    /// come that nobody asked for. The kernel is asked itself, since the runtime may
    /// not have heard of an end yet.
    pub(super) fn is_quiet(&mut self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.stream.unused().is_empty()
            && self.stream.stream.is_drained()
            && recv(self.stream.stream.tcp().as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

/// What the first attempt gives that succeeds. Where none does, a refused certificate
/// is the failure to tell: that one does not pass by waiting.
async fn race<T, A>(mut addresses: VecDeque<IpAddr>, attempt: impl Fn(IpAddr) -> A) -> Result<T, ConnectError>
where
    A: Future<Output = Result<T, ConnectError>>,
{
    let mut failure = ConnectError::Refused(io::ErrorKind::HostUnreachable.into());
    let mut attempts = FuturesUnordered::new();
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.push(attempt(address));
        }
        let is_last = addresses.is_empty();
        tokio::select! {
            Some(connected) = attempts.next() => match connected {
                Ok(connected) => return Ok(connected),
                Err(_) if matches!(failure, ConnectError::Tls(_)) => {}
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

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_beside_one_that_is_slow() {
        let since = tokio::time::Instant::now();
        let addresses = ips(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let taken = race(addresses.clone().into(), |address| async move {
            match address.to_string().as_str() {
                "127.0.0.1" => std::future::pending().await,
                "127.0.0.2" => Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
                _ => Ok(address),
            }
        });
        assert_eq!(taken.await.ok(), Some(addresses[2]));
        assert_eq!(since.elapsed(), ATTEMPT_DELAY, "who refuses is not waited for");
    }

    #[tokio::test]
    async fn the_addresses_take_turns_from_ipv6_on() {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = four.local_addr().unwrap().port();
        let _six = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port)).await.unwrap();
        let upstream: Upstream = format!("http://a:{port}").parse().unwrap();
        let (addresses, tls) = (ips(&["127.0.0.1", "::1"]), Tls::new(Trust::System));
        let opened = Connection::open(&upstream, &addresses, &tls, Duration::from_secs(20)).await.unwrap();
        assert_eq!(opened.address(), addresses[1]);
    }

    #[tokio::test]
    async fn a_refused_certificate_is_told_and_not_an_address_that_refuses() {
        let addresses = ips(&["127.0.0.1", "127.0.0.2"]);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        for first_is_tls in [true, false] {
            let raced = race(addresses.clone().into(), |address| {
                let is_tls = (address == addresses[0]) == first_is_tls;
                let error = if is_tls { ConnectError::Tls(refused()) } else { refused().into() };
                std::future::ready(Err::<(), _>(error))
            });
            let error = raced.await.unwrap_err();
            assert!(matches!(error, ConnectError::Tls(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_quiet_until_somebody_speaks_or_goes() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        for speaks in [true, false] {
            let upstream: Upstream = format!("http://{address}").parse().unwrap();
            let (tls, wait) = (Tls::new(Trust::System), Duration::from_secs(20));
            let opened = Connection::open(&upstream, &[address.ip()], &tls, wait).await;
            let (mut opened, (peer, _)) = (opened.unwrap(), listener.accept().await.unwrap());
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
