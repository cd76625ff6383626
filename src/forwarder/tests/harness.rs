//! A forwarder, a workspace and a gateway, each a raw socket to the others.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::forwarder::{CertificateTrust, Forwarder, ForwarderLimits};
use crate::logged_user::LoggedUsers;
use crate::resolver::NameServers;
use crate::resolver::Resolver;
use crate::route::key_file::{KeyBytes, MIN_KEY};
use crate::route::stamp::StampKey;
use crate::subject_digest::SubjectKeys;
use apisix_plugin_runner::Upstream;
use apisix_plugin_runner::listener::Succession;

/// How long a test waits for what must happen before it fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than that, so that a test which waits for a drain to be over sees it
/// end by itself.
pub(super) const DRAIN: Duration = Duration::from_secs(60);

#[track_caller]
pub(super) fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move { timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("nothing happened at {place}")) }
}

/// A forwarder that serves on loopback.
pub(super) struct Served {
    pub(super) address: SocketAddr,
    pub(super) key: StampKey,
    pub(super) stop: CancellationToken,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) serving: JoinHandle<()>,
}

impl Served {
    pub(super) async fn new() -> Self {
        Self::with(ForwarderLimits::default(), DRAIN).await
    }

    pub(super) async fn with(limits: ForwarderLimits, drain: Duration) -> Self {
        let silent = NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()]);
        Self::asking(&silent, CertificateTrust::System, limits, drain).await
    }

    pub(super) async fn asking(
        servers: &NameServers,
        trust: CertificateTrust,
        limits: ForwarderLimits,
        drain: Duration,
    ) -> Self {
        let key = StampKey::random().unwrap();
        let resolver = Arc::new(Resolver::new(servers).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let users = SubjectKeys::new(&KeyBytes::new(&[7; MIN_KEY]).unwrap(), &[]);
        let users = LoggedUsers::new(users, false);
        let forwarder = Forwarder::new(key.clone(), resolver, limits, trust, users, Succession::new(None));
        let serving = tokio::spawn(Arc::clone(&forwarder).serve(listener, stop.clone(), drain));
        Self { address, key, stop, forwarder, serving }
    }

    pub(super) async fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// How the answer to a request without a stamp begins.
    pub(super) async fn first_answer(&self) -> String {
        let mut peer = self.connect().await;
        peer.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        peer.exactly("HTTP/1.1 403".len()).await
    }

    pub(super) fn stamp_until(&self, to: SocketAddr, expires: SystemTime) -> String {
        let upstream: Upstream = format!("http://{to}").parse().unwrap();
        self.key.make(&upstream.for_subject("alice").unwrap(), expires)
    }

    /// The header line with a good stamp for this workspace.
    pub(super) fn stamp(&self, to: &Workspace) -> String {
        let expires = SystemTime::now() + Duration::from_secs(60);
        format!("X-Kube-Coders-Stamp: {}\r\n", self.stamp_until(to.address, expires))
    }

    /// A request of this subject.
    pub(super) fn get_of(&self, subject: &str, to: &Workspace) -> String {
        let upstream: Upstream = format!("http://{}", to.address).parse().unwrap();
        let expires = SystemTime::now() + Duration::from_secs(60);
        let stamp = self.key.make(&upstream.for_subject(subject).unwrap(), expires);
        format!("GET / HTTP/1.1\r\nHost: h\r\nX-Kube-Coders-Stamp: {stamp}\r\n\r\n")
    }

    pub(super) fn get(&self, target: &str, to: &Workspace) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: code.example\r\n{}\r\n", self.stamp(to))
    }

    pub(super) fn upgrade(&self, to: &Workspace) -> String {
        let stamp = self.stamp(to);
        format!("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n{stamp}\r\n")
    }
}

/// A workspace that answers what the test tells it to.
pub(super) struct Workspace {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
}

impl Workspace {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    pub(super) async fn accept(&self) -> Peer {
        Peer::new(within(self.listener.accept()).await.unwrap().0)
    }

    /// Whether no peer has connected and sent anything.
    pub(super) async fn is_unused(&self) -> bool {
        match timeout(Duration::ZERO, self.listener.accept()).await {
            Ok(accepted) => Peer::new(accepted.unwrap().0).rest().await.is_empty(),
            Err(_) => true,
        }
    }

    /// Whether no connection waits to be accepted.
    pub(super) async fn is_untouched(&self) -> bool {
        timeout(Duration::ZERO, self.listener.accept()).await.is_err()
    }
}

/// One end of a connection, with what was read too early.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    pub(super) read: Vec<u8>,
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Everything up to and with this text.
    pub(super) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end.as_bytes()) {
                let found: Vec<u8> = self.read.drain(..at + end.len()).collect();
                return found.iter().map(|byte| char::from(*byte)).collect();
            }
            let count = within(self.stream.read_buf(&mut self.read)).await.unwrap();
            assert_ne!(count, 0, "ended before {end:?}: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    pub(super) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// A response whose body has a length.
    pub(super) async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        (head, self.exactly(length).await)
    }

    pub(super) async fn exactly(&mut self, length: usize) -> String {
        String::from_utf8(self.exactly_bytes(length).await).unwrap()
    }

    pub(super) async fn exactly_bytes(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert_ne!(within(self.stream.read_buf(&mut self.read)).await.unwrap(), 0, "ended too early");
        }
        self.read.drain(..length).collect()
    }

    /// Everything up to the end; a reset is an end.
    pub(super) async fn rest(&mut self) -> String {
        String::from_utf8(self.rest_bytes().await).unwrap()
    }

    pub(super) async fn rest_bytes(&mut self) -> Vec<u8> {
        let _ = within(self.stream.read_to_end(&mut self.read)).await;
        std::mem::take(&mut self.read)
    }

    pub(super) async fn answer(&mut self, body: &str) {
        self.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    }

    pub(super) async fn finish_writing(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

/// Writes until no bytes are taken for a while, and returns how many were.
pub(super) async fn fill(peer: &mut Peer) -> usize {
    let stuck = Duration::from_millis(200);
    let mut written = 0;
    while let Ok(Ok(count @ 1..)) = timeout(stuck, peer.stream.write(&[b'x'; 65_536])).await {
        written += count;
    }
    written
}

/// Lets time pass for the timers of this runtime, which has one thread. Nothing waits.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The same again and again, on a machine that may only have been busy, until what it
/// fills has been given up.
pub(super) async fn fill_until_nothing_is_open(served: &Served, peer: &mut Peer) -> usize {
    let mut written = 0;
    within(async {
        while is_open(served) {
            written += fill(peer).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
    written
}

pub(super) async fn until_nothing_is_open(served: &Served) {
    within(async {
        while is_open(served) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Until a request is under way: on a runtime with one thread it has then taken its
/// connection from the pool, if it waits for nothing else before.
pub(super) async fn until_something_is_open(served: &Served) {
    within(async {
        while !is_open(served) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn is_open(served: &Served) -> bool {
    served.forwarder.subjects.activities().iter().any(|activity| activity.open > 0)
}

#[track_caller]
pub(super) fn assert_refused((head, body): &(String, String), status: u16, code: &str) {
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head:.300}");
    assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["code"], code);
}
