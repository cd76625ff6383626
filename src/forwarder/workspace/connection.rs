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

use super::super::buffered_stream::BufferedStream;
use super::tls::{Tls, WorkspaceStream};
use apisix_plugin_runner::{Scheme, Upstream};

/// After how long the next address is tried too, while an earlier one has not answered (RFC
/// 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection to a workspace, which carries one request after the other.
#[derive(Debug)]
pub(crate) struct WorkspaceConnection {
    pub(crate) stream: BufferedStream<WorkspaceStream>,
    address: IpAddr,
    /// How many requests were sent on it.
    pub(crate) requests: u32,
}

/// Why no connection could be made.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no connection: {0}")]
    Refused(#[source] io::Error),
    #[error("no TLS connection: {0}")]
    Tls(#[source] io::Error),
    /// The workspace has not seen an attempt.
    #[error("this machine can't open another connection: {0}")]
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

impl WorkspaceConnection {
    /// Connects to the first address that accepts the connection and, with `https`, shows a
    /// trusted certificate. The addresses are tried in order, and while one is slow, the next
    /// one is tried too (RFC 8305).
    pub(crate) async fn open(
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
                Scheme::Http => WorkspaceStream::Plain(stream),
                Scheme::Https => tls.connect(stream, upstream.host()).await.map_err(ConnectError::Tls)?,
            };
            Ok(Self { stream: BufferedStream::new(stream), address, requests: 0 })
        });
        timeout(wait, opening).await.unwrap_or(Err(ConnectError::Timeout(wait)))
    }

    /// A connection that a test has made.
    #[cfg(test)]
    pub(crate) fn of_tcp(stream: TcpStream, address: IpAddr) -> Self {
        Self { stream: BufferedStream::new(WorkspaceStream::Plain(stream)), address, requests: 0 }
    }

    /// The address of the workspace.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the next request can be sent: the workspace has neither closed the connection
    /// nor sent anything on it. The check asks the kernel, because the runtime may not have
    /// seen an end yet.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.stream.unused().is_empty()
            && self.stream.stream.is_drained()
            && recv(self.stream.stream.tcp().as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

/// The result of the first attempt that succeeds. If none does, a rejected certificate is
/// reported rather than another failure, because waiting does not help against it.
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

    use super::super::tls::CertificateTrust;
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
        let tls = Tls::new(CertificateTrust::System);
        let opened = WorkspaceConnection::open(&upstream, &addresses, &tls, wait).await.unwrap();
        assert_eq!(opened.address(), addresses[3]);
        let error = WorkspaceConnection::open(&upstream, &addresses[..2], &tls, wait).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
        let error = WorkspaceConnection::open(&upstream, &[], &tls, wait).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_while_a_slow_one_still_connects() {
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
        let (addresses, tls) = (ips(&["127.0.0.1", "::1"]), Tls::new(CertificateTrust::System));
        let opened =
            WorkspaceConnection::open(&upstream, &addresses, &tls, Duration::from_secs(20)).await.unwrap();
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
    async fn a_connection_is_quiet_until_the_peer_sends_or_closes() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        for speaks in [true, false] {
            let upstream: Upstream = format!("http://{address}").parse().unwrap();
            let (tls, wait) = (Tls::new(CertificateTrust::System), Duration::from_secs(20));
            let opened = WorkspaceConnection::open(&upstream, &[address.ip()], &tls, wait).await;
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
