//! The forwarder between raw sockets: the test is both the gateway and the
//! workspace, and reads every byte that either of them gets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::pool::Destination;
use super::workspace::Connection;
use super::*;
use crate::resolver::NameServers;
use crate::upstream::Upstream;

/// How long a test waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than that, so that a test which waits for a drain to be over sees it
/// end by itself.
const DRAIN: Duration = Duration::from_secs(60);

#[track_caller]
fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move { timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("nothing happened at {place}")) }
}

/// A forwarder that serves on loopback.
struct Served {
    address: SocketAddr,
    key: StampKey,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Served {
    async fn new() -> Self {
        Self::with(ForwarderLimits::default(), DRAIN).await
    }

    async fn with(limits: ForwarderLimits, drain: Duration) -> Self {
        let key = StampKey::random().unwrap();
        let resolver =
            Arc::new(Resolver::new(&NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()])).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let forwarder = Forwarder::new(key.clone(), resolver, limits);
        let serving = tokio::spawn(forwarder.serve(listener, stop.clone(), drain));
        Self { address, key, stop, serving }
    }

    async fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    fn stamp_until(&self, to: SocketAddr, expires: SystemTime) -> String {
        let upstream: Upstream = format!("http://{to}").parse().unwrap();
        self.key.make(&upstream.for_subject("alice"), expires)
    }

    /// The header line with a good stamp for this workspace.
    fn stamp(&self, to: &Workspace) -> String {
        let expires = SystemTime::now() + Duration::from_secs(60);
        format!("X-Kube-Coders-Stamp: {}\r\n", self.stamp_until(to.address, expires))
    }

    fn get(&self, target: &str, to: &Workspace) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: code.example\r\n{}\r\n", self.stamp(to))
    }

    fn upgrade(&self, to: &Workspace) -> String {
        let stamp = self.stamp(to);
        format!("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n{stamp}\r\n")
    }
}

/// A workspace that answers what the test tells it to.
struct Workspace {
    listener: TcpListener,
    address: SocketAddr,
}

impl Workspace {
    async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    async fn accept(&self) -> Peer {
        Peer::new(within(self.listener.accept()).await.unwrap().0)
    }

    /// Whether nobody has connected who was not accepted yet.
    async fn is_untouched(&self) -> bool {
        timeout(Duration::ZERO, self.listener.accept()).await.is_err()
    }
}

/// One end of a connection, with what was read too early.
struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Everything up to and with this text.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end.as_bytes()) {
                let found: Vec<u8> = self.read.drain(..at + end.len()).collect();
                return found.iter().map(|byte| char::from(*byte)).collect();
            }
            let count = within(self.stream.read_buf(&mut self.read)).await.unwrap();
            assert_ne!(count, 0, "ended before {end:?}: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// A response whose body has a length.
    async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        (head, self.exactly(length).await)
    }

    async fn exactly(&mut self, length: usize) -> String {
        while self.read.len() < length {
            assert_ne!(within(self.stream.read_buf(&mut self.read)).await.unwrap(), 0, "ended too early");
        }
        String::from_utf8(self.read.drain(..length).collect()).unwrap()
    }

    /// Everything up to the end; a reset is an end.
    async fn rest(&mut self) -> String {
        let _ = within(self.stream.read_to_end(&mut self.read)).await;
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    async fn answer(&mut self, body: &str) {
        self.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    }

    async fn finish_writing(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

#[track_caller]
fn assert_refused((head, body): &(String, String), status: u16, code: &str) {
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head:.300}");
    assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["code"], code);
}

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/0", &workspace)).await;
    let mut inside = workspace.accept().await;
    for turn in 0..5 {
        assert!(inside.head().await.starts_with(&format!("GET /{turn} HTTP/1.1\r\n")));
        inside.answer("hello").await;
        assert_eq!(gateway.response().await.1, "hello");
        let mut next = served.connect().await;
        std::mem::swap(&mut gateway, &mut next);
        // The first connection is as good as a new one.
        if turn % 2 == 0 {
            gateway = next;
        }
        gateway.write(served.get(&format!("/{}", turn + 1), &workspace)).await;
    }
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn connections_are_not_shared_between_upstreams() {
    let (served, alice, bob) = (Served::new().await, Workspace::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for workspace in [&alice, &bob] {
        gateway.write(served.get("/", workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.answer("").await;
        gateway.response().await;
        // Alice's connection stays open while Bob's is made.
        std::mem::forget(inside);
    }
    assert!(alice.is_untouched().await && bob.is_untouched().await);
}

/// Many users at once, over connections of the gateway's that they share, on
/// more than one thread: what each reads comes from their own workspace.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_answered_by_another_workspace() {
    let served = Arc::new(Served::with(ForwarderLimits { max_idle: 3, ..Default::default() }, DRAIN).await);
    let mut workspaces = Vec::new();
    for number in 0..4 {
        let workspace = Arc::new(Workspace::new().await);
        workspaces.push(Arc::clone(&workspace));
        tokio::spawn(async move {
            while let Ok((stream, _)) = workspace.listener.accept().await {
                tokio::spawn(async move {
                    let mut peer = Peer::new(stream);
                    while peer.stream.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
                        let line = peer.until("\r\n").await;
                        peer.head().await;
                        peer.answer(&format!("{number} {line}")).await;
                    }
                });
            }
        });
    }
    let gateways = (0..8).map(|gateway| {
        let (served, workspaces) = (Arc::clone(&served), workspaces.clone());
        tokio::spawn(async move {
            let mut peer = served.connect().await;
            for turn in 0..100 {
                let number = (gateway + turn * 7) % workspaces.len();
                peer.write(served.get(&format!("/{gateway}/{turn}"), &workspaces[number])).await;
                assert_eq!(peer.response().await.1, format!("{number} GET /{gateway}/{turn} HTTP/1.1\r\n"));
            }
        })
    });
    for gateway in gateways.collect::<Vec<_>>() {
        gateway.await.unwrap();
    }
}

#[tokio::test]
async fn without_a_good_stamp_nothing_is_connected() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let good = served.stamp(&workspace);
    let expired = served.stamp_until(workspace.address, SystemTime::now());
    let foreign = Served::new().await.stamp(&workspace);
    let forged = good.replace(": A", ": B");
    assert_ne!(good, forged);
    for stamp in [
        String::new(),
        format!("{good}{good}"),
        format!("{good}x-kube-coders-stamp: \r\n"),
        "x-kube-coders-stamp: \r\n".to_owned(),
        "x-kube-coders-stamp: \u{fc}\r\n".to_owned(),
        format!("x-kube-coders-stamp: {expired}\r\n"),
        foreign,
        forged,
        good.replace("Stamp", "Stamps"),
        good.replace("\r\n", ",\r\n"),
    ] {
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: id-1\r\n{stamp}\r\n")).await;
        let response = gateway.response().await;
        assert_refused(&response, 403, "stamp-refused");
        assert!(response.1.contains("\"request_id\":\"id-1\""), "{}", response.1);
        assert!(!response.1.contains("127.0.0.1") && !response.1.contains("alice"), "{}", response.1);
    }
    // The first connection that the workspace sees is that of the good one.
    gateway.write(served.get("/good", &workspace)).await;
    assert!(workspace.accept().await.head().await.starts_with("GET /good "));
    assert!(workspace.is_untouched().await);
}

/// Neither a body without a stamp nor one for a workspace that is not there
/// resets the connection on which its refusal is read.
#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    const SIZE: usize = 512 << 10;
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    drop(workspace);
    for (stamp, status) in [("", 403), (stamp.as_str(), 503)] {
        gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n{stamp}\r\n")).await;
        gateway.write(vec![b'x'; SIZE]).await;
        let (head, _) = gateway.response().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")) && !head.contains("connection: close"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_navigation_is_refused_with_a_page() {
    let served = Served::new().await;
    let mut gateway = served.connect().await;
    gateway.write("GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\nAccept-Language: ko\r\n\r\n").await;
    let (head, body) = gateway.response().await;
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert!(head.contains("content-type: text/html; charset=utf-8\r\n"), "{head}");
    assert!(body.contains("<html lang=\"ko\">"), "{body}");
}

#[tokio::test]
async fn a_request_id_that_is_not_sane_is_replaced() {
    let served = Served::new().await;
    let mut gateway = served.connect().await;
    let long = "x".repeat(129);
    for id in ["", "a b", "\u{fc}", &long] {
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: {id}\r\n\r\n")).await;
        let problem: serde_json::Value = serde_json::from_str(&gateway.response().await.1).unwrap();
        let id = problem["request_id"].as_str().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
}

#[tokio::test]
async fn the_connection_header_removes_only_what_is_the_clients() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway
        .write(format!(
            "POST /a HTTP/1.1\r\nHost: code.example\r\nConnection: x-forwarded-user, Host, cookie, content-length\r\n\
             Connection: x-hop, x-kube-coders-stamp\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: websocket\r\n\
             X-Forwarded-User: alice\r\nX-Forwarded-For: 192.0.2.1\r\nCookie: a=b\r\nContent-Length: 3\r\n\
             Accept: a\r\nAccept: b\r\nX-Latin: \u{e9}\r\n{stamp}\r\nabc"
        ))
        .await;
    let mut inside = workspace.accept().await;
    let head = inside.head().await;
    assert_eq!(inside.exactly(3).await, "abc");
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "POST /a HTTP/1.1");
    lines.sort_unstable();
    let expected = [
        "accept: a",
        "accept: b",
        "content-length: 3",
        "cookie: a=b",
        "host: code.example",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-user: alice",
        // Two bytes of UTF-8, as they were sent.
        "x-latin: \u{c3}\u{a9}",
    ];
    assert_eq!(lines, expected);

    inside
        .write(
            "HTTP/1.1 299 Very Own Words\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nDate: today\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
    let (head, body) = gateway.response().await;
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "HTTP/1.1 299 Very Own Words");
    lines.sort_unstable();
    assert_eq!(lines, ["content-length: 2", "date: today", "set-cookie: a=b", "set-cookie: c=d"]);
    assert_eq!(body, "ok");
}

#[tokio::test]
async fn method_and_target_arrive_byte_for_byte() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = None;
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/?"),
        ("GET", "/a?b=%2F&&c=d+e&f=?/?"),
        ("GET", "/%2F%2f/%FF%00//../.;a=b/"),
        ("GET", "//other.example/a"),
        ("GET", "/http://other.example/"),
        ("GET", "/a:b@c"),
        ("GET", "/{a}|^\\[]~\"'?{b}|^\\[]`'"),
        ("GET", "/김재훈?q=김"),
        ("OPTIONS", "*"),
        ("DELETE", "/x"),
        ("PROPFIND", "/x"),
        ("M-SEARCH", "/x"),
        ("get", "/x"),
    ] {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{stamp}\r\n")).await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        let line = inside.until("\r\n").await;
        let bytes: String = target.bytes().map(char::from).collect();
        assert_eq!(line, format!("{method} {bytes} HTTP/1.1\r\n"));
        inside.head().await;
        inside.answer("").await;
        assert!(gateway.response().await.0.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    // What is for a proxy becomes what is for a server.
    let stamp = served.stamp(&workspace);
    gateway.write(format!("GET http://other.example/a?b HTTP/1.1\r\nHost: h\r\n{stamp}\r\n")).await;
    let head = inside.unwrap().head().await;
    assert!(head.starts_with("GET /a?b HTTP/1.1\r\n") && head.contains("host: h\r\n"), "{head}");
}

/// What the HTTP crates do not take as a target is refused and not changed:
/// bytes that are no UTF-8, and a few that every browser encodes.
#[tokio::test]
async fn a_target_that_can_not_be_passed_on_is_refused() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    for target in [b"/\xff".as_slice(), b"/?\xff", b"/<", b"/>", b"/`", b"/?\"", b"/?<", b"/?>"] {
        let mut gateway = served.connect().await;
        let stamp = served.stamp(&workspace);
        let rest = format!(" HTTP/1.1\r\nHost: h\r\n{stamp}\r\n");
        gateway.write([b"GET ", target, rest.as_bytes()].concat()).await;
        assert!(gateway.head().await.starts_with("HTTP/1.1 400 "), "{target:?}");
    }
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn connect_is_not_allowed() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n{stamp}\r\n")).await;
    assert!(gateway.head().await.starts_with("HTTP/1.1 405 "));
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn responses_without_a_body_stay_as_they_are() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = None;
    for (method, answer, expected) in [
        ("HEAD", "200 OK\r\nContent-Length: 5", Some("content-length: 5\r\n")),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", None),
        ("GET", "204 No Content\r\nETag: x", Some("etag: x\r\n")),
        ("GET", "304 Not Modified\r\nETag: x", Some("etag: x\r\n")),
        ("GET", "304 Not Modified\r\nETag: x\r\nContent-Length: 5", Some("etag: x\r\n")),
        ("GET", "103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\nETag: x", Some("etag: x\r\n")),
    ] {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("{method} / HTTP/1.1\r\nHost: h\r\n{stamp}\r\n")).await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        inside.head().await;
        inside.write(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let head = gateway.head().await;
        let status = answer.rsplit("HTTP/1.1 ").next().unwrap().split("\r\n").next().unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        assert!(head.contains(expected.unwrap_or_default()), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
    }
    // Nothing stands between the responses.
    gateway.write(served.get("/last", &workspace)).await;
    let inside = inside.as_mut().unwrap();
    inside.head().await;
    inside.answer("last").await;
    assert_eq!(gateway.response().await.1, "last");
}

#[tokio::test]
async fn a_body_without_a_length_arrives_with_any_method() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = None;
    for method in ["GET", "POST"] {
        let stamp = served.stamp(&workspace);
        let head = format!("{method} / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{stamp}\r\n");
        gateway.write(head + "3\r\nabc\r\n0\r\nX-Forwarded-User: bob\r\n\r\n").await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        assert!(inside.head().await.contains("transfer-encoding: chunked\r\n"));
        assert_eq!(inside.until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
        inside.answer("").await;
        gateway.response().await;
    }
}

#[tokio::test]
async fn bodies_are_streamed_both_ways() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n{stamp}\r\nabc")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    // Each piece is seen on the other side before the next one is sent.
    assert_eq!(inside.exactly(3).await, "abc");
    inside.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n").await;
    gateway.head().await;
    assert_eq!(gateway.until("\r\nhe\r\n").await, "2\r\nhe\r\n");
    gateway.write("def").await;
    assert_eq!(inside.exactly(3).await, "def");
    inside.write("3\r\nllo\r\n0\r\n\r\n").await;
    assert_eq!(gateway.until("0\r\n\r\n").await, "3\r\nllo\r\n0\r\n\r\n");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_arrives() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n{stamp}\r\nabc")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno").await;
    inside.finish_writing().await;
    let (head, body) = gateway.response().await;
    assert!(head.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{head}");
    assert_eq!(body, "no");
}

#[tokio::test]
async fn a_gateway_may_speak_http_1_0() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace).replace("HTTP/1.1", "HTTP/1.0")).await;
    let mut inside = workspace.accept().await;
    let head = inside.head().await;
    assert!(head.starts_with("GET /ws HTTP/1.1\r\n") && !head.contains("upgrade"), "{head}");
    inside.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n\r\n").await;
    let answer = gateway.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nhe"), "{answer}");
}

#[tokio::test]
async fn an_expected_continue_is_given() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    let head =
        format!("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n{stamp}\r\n");
    gateway.write(head).await;
    assert_eq!(gateway.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    gateway.write("abc").await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(inside.exactly(3).await, "abc");
    inside.answer("thanks").await;
    assert_eq!(gateway.response().await.1, "thanks");
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    const SIZE: usize = 64 << 20;
    const PIECE: usize = 1 << 16;
    /// Differs from piece to piece, so that a swap would be seen.
    fn piece(number: usize) -> &'static [u8] {
        static BYTES: std::sync::LazyLock<Vec<u8>> =
            std::sync::LazyLock::new(|| (0..=250).cycle().take(PIECE + 251).collect());
        &BYTES[number % 251..][..PIECE]
    }
    async fn send(stream: &mut (impl tokio::io::AsyncWrite + Unpin)) {
        for number in 0..SIZE / PIECE {
            stream.write_all(piece(number)).await.unwrap();
        }
    }
    async fn receive(stream: &mut (impl tokio::io::AsyncRead + Unpin), early: Vec<u8>) {
        let mut stream = early.as_slice().chain(stream);
        let mut read = vec![0; PIECE];
        for number in 0..SIZE / PIECE {
            stream.read_exact(&mut read).await.unwrap();
            assert!(read == piece(number), "piece {number}");
        }
    }
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n{stamp}\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    gateway.head().await;
    let (mut gateway_reads, mut gateway_writes) = gateway.stream.split();
    let (mut inside_reads, mut inside_writes) = inside.stream.split();
    within(async {
        tokio::join!(
            send(&mut gateway_writes),
            receive(&mut inside_reads, inside.read),
            send(&mut inside_writes),
            receive(&mut gateway_reads, gateway.read),
        )
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_that_ends_half_by_half() {
    for gateway_ends_first in [true, false] {
        let (served, workspace) = (Served::new().await, Workspace::new().await);
        let mut gateway = served.connect().await;
        // Early bytes of the client's, in one piece with the request …
        gateway.write(served.upgrade(&workspace) + "early").await;
        let mut inside = workspace.accept().await;
        let head = inside.head().await;
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: echo/1\r\n"), "{head}");
        assert!(!head.contains("stamp"), "{head}");
        // … and of the workspace's, in one piece with the answer.
        inside
            .write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\nfirst")
            .await;
        let head = gateway.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: echo/1\r\n"), "{head}");
        assert_eq!(gateway.exactly(5).await, "first");
        assert_eq!(inside.exactly(5).await, "early");

        let (mut first, mut last) = if gateway_ends_first { (gateway, inside) } else { (inside, gateway) };
        first.write("bye").await;
        first.finish_writing().await;
        assert_eq!(last.rest().await, "bye");
        last.write("still here").await;
        assert_eq!(first.exactly(10).await, "still here");
        last.finish_writing().await;
        assert_eq!(first.rest().await, "");
    }
}

#[tokio::test]
async fn an_upgrade_may_be_declined() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno").await;
    let (head, body) = gateway.response().await;
    assert!(head.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{head}");
    assert_eq!(body, "no");
    // Both connections go on as if nothing had been asked.
    gateway.write(served.get("/next", &workspace)).await;
    assert!(inside.head().await.starts_with("GET /next "));
    inside.answer("yes").await;
    assert_eq!(gateway.response().await.1, "yes");
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_a_failure() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside
        .write("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nsmuggled")
        .await;
    assert_refused(&gateway.response().await, 502, "workspace-failed");
    assert_eq!(inside.rest().await, "");
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_replaced() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for turn in 0..20 {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n{stamp}\r\nbody")).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        assert_eq!(inside.exactly(4).await, "body");
        inside.answer("").await;
        let (head, _) = gateway.response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{turn}: {head}");
        // Dropped here: closed, whether the forwarder has seen it or not.
    }
}

#[tokio::test]
async fn a_workspace_that_does_not_listen_is_starting() {
    let served = Served::new().await;
    let workspace = Workspace::new().await;
    let request = served.get("/", &workspace);
    drop(workspace);
    let mut gateway = served.connect().await;
    gateway.write(request).await;
    let response = gateway.response().await;
    assert_refused(&response, 503, "workspace-starting");
    assert!(response.0.contains("retry-after: 5\r\n"), "{}", response.0);
}

#[tokio::test]
async fn a_name_that_can_not_be_resolved_is_said_to_be() {
    let served = Served::new().await;
    let mut gateway = served.connect().await;
    let upstream: Upstream = "http://code-alice.test:1".parse().unwrap();
    let stamp = served.key.make(&upstream, SystemTime::now() + Duration::from_secs(60));
    gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Kube-Coders-Stamp: {stamp}\r\n\r\n")).await;
    assert_refused(&gateway.response().await, 503, "resolver-unavailable");
}

#[tokio::test]
async fn a_silent_workspace_is_starting() {
    let limits = ForwarderLimits { response_head: Duration::from_millis(50), ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    assert_refused(&gateway.response().await, 503, "workspace-starting");
    // Its answer would come too late for anybody.
    inside.head().await;
    assert_eq!(inside.rest().await, "");
}

#[tokio::test]
async fn a_workspace_is_not_late_while_the_request_is_still_coming() {
    let wait = Duration::from_millis(500);
    let limits = ForwarderLimits { response_head: wait, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{stamp}\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let started = std::time::Instant::now();
    while started.elapsed() < 2 * wait {
        gateway.write("1\r\nx\r\n").await;
        assert_eq!(inside.until("x\r\n").await, "1\r\nx\r\n");
    }
    gateway.write("0\r\n\r\n").await;
    inside.until("0\r\n\r\n").await;
    inside.answer("done").await;
    assert_eq!(gateway.response().await.1, "done");
}

#[tokio::test]
async fn a_workspace_that_breaks_off_has_failed_and_is_not_asked_again() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for (turn, answer) in ["", "HTTP/1.1 200 O", "nonsense\r\n\r\n"].iter().enumerate() {
        // On a connection that was used before, too.
        gateway.write(served.get(&format!("/{turn}/first"), &workspace)).await;
        let mut inside = workspace.accept().await;
        assert!(inside.head().await.starts_with(&format!("GET /{turn}/first ")));
        inside.answer("").await;
        gateway.response().await;
        gateway.write(served.get(&format!("/{turn}/second"), &workspace)).await;
        inside.head().await;
        inside.write(answer).await;
        drop(inside);
        assert_refused(&gateway.response().await, 502, "workspace-failed");
        assert!(workspace.is_untouched().await);
    }
}

#[tokio::test]
async fn a_response_that_can_not_be_passed_on_is_a_failure() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let many = "X: y\r\n".repeat(MAX_HEADERS + 1);
    let long = format!("X: {}\r\n", "y".repeat(MAX_HEAD));
    for lines in ["Transfer-Encoding: gzip, chunked\r\n", &many, &long] {
        gateway.write(served.get("/", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.write(format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).await;
        assert_refused(&gateway.response().await, 502, "workspace-failed");
    }
}

#[tokio::test]
async fn a_request_head_has_a_limit() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let many = "X: y\r\n".repeat(MAX_HEADERS - 2);
    let long = format!("X: {}\r\n", "y".repeat(MAX_HEAD));
    for (lines, is_taken) in [(many.clone(), true), (many + "X: y\r\n", false), (long, false)] {
        let mut gateway = served.connect().await;
        let stamp = served.stamp(&workspace);
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\n{stamp}{lines}\r\n")).await;
        if is_taken {
            workspace.accept().await.head().await;
        } else {
            assert!(gateway.head().await.starts_with("HTTP/1.1 431 "));
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_completed() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n").await;
    drop(inside);
    gateway.head().await;
    assert!(!gateway.rest().await.contains("0\r\n\r\n"));
}

#[tokio::test]
async fn a_workspace_hears_that_the_gateway_has_gone() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    drop(gateway);
    assert_eq!(inside.rest().await, "");
}

#[tokio::test]
async fn a_connection_serves_only_so_many_requests() {
    let limits = ForwarderLimits { max_requests: 2, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for _ in 0..3 {
        gateway.write(served.get("/1", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.answer("").await;
        gateway.response().await;
        gateway.write(served.get("/2", &workspace)).await;
        inside.head().await;
        // The last response passes as a whole, piece by piece.
        inside.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla").await;
        gateway.head().await;
        assert_eq!(gateway.exactly(2).await, "la");
        inside.write("st").await;
        assert_eq!(gateway.exactly(2).await, "st");
        assert_eq!(inside.rest().await, "");
    }
}

#[tokio::test]
async fn a_connection_that_the_workspace_will_close_is_not_kept() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for line in ["Keep-Alive: timeout=1", "Connection: close"] {
        gateway.write(served.get("/", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.write(format!("HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 0\r\n\r\n")).await;
        gateway.response().await;
        assert_eq!(inside.rest().await, "");
    }
}

#[tokio::test]
async fn idle_connections_have_a_limit_and_an_end() {
    let limits =
        ForwarderLimits { max_idle: 1, idle: Duration::from_millis(200), ..ForwarderLimits::default() };
    let served = Served::with(limits, DRAIN).await;
    let (alice, bob) = (Workspace::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = Vec::new();
    for workspace in [&alice, &bob] {
        gateway.write(served.get("/", workspace)).await;
        let mut peer = workspace.accept().await;
        peer.head().await;
        peer.answer("").await;
        gateway.response().await;
        inside.push(peer);
    }
    // Bob's made Alice's go, and then its own time came.
    assert_eq!(inside[0].rest().await, "");
    assert_eq!(inside[1].rest().await, "");
}

#[tokio::test]
async fn every_address_is_tried() {
    let workspace = Workspace::new().await;
    let tasks = Tasks::new();
    let addresses = ["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()];
    let opened = Connection::open(&addresses, workspace.address.port(), PATIENCE, &tasks).await;
    assert_eq!(opened.ok().unwrap().address(), addresses[1]);
    let refused = Connection::open(&addresses[..1], workspace.address.port(), PATIENCE, &tasks).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn an_idle_connection_is_not_used_for_an_address_that_the_name_has_lost() {
    let workspace = Workspace::new().await;
    let (tasks, pool) = (Tasks::new(), Pool::new(10, PATIENCE));
    let upstream: Upstream = format!("http://code-alice:{}", workspace.address.port()).parse().unwrap();
    let destination = Destination::of(&upstream);
    let (old, new) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
    let addresses = [old];
    let open = || Connection::open(&addresses, workspace.address.port(), PATIENCE, &tasks);
    pool.put(destination.clone(), open().await.ok().unwrap(), PATIENCE);
    assert!(pool.take(&destination, &[new, old]).is_some());
    assert!(pool.take(&destination, &[new, old]).is_none());
    pool.put(destination.clone(), open().await.ok().unwrap(), PATIENCE);
    assert!(pool.take(&destination, &[new]).is_none());
    workspace.accept().await;
    // It was closed, not kept for better days.
    assert_eq!(workspace.accept().await.rest().await, "");
    assert!(pool.take(&destination, &[old]).is_none());
}

#[tokio::test]
async fn the_number_of_connections_is_limited() {
    let limits = ForwarderLimits { max_connections: 1, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut first = served.connect().await;
    first.write(served.upgrade(&workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let mut second = served.connect().await;
    second.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    // A tunnel holds its place until it ends.
    inside.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n").await;
    first.head().await;
    for _ in 0..10 {
        first.write("x").await;
        inside.exactly(1).await;
        let mut nothing = [0; 1];
        assert!(second.stream.try_read(&mut nothing).is_err());
    }
    drop(first);
    drop(inside);
    assert_refused(&second.response().await, 403, "stamp-refused");
}

#[tokio::test]
async fn a_drain_finishes_requests_and_closes_idle_connections() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let (mut busy, mut idle) = (served.connect().await, served.connect().await);
    idle.write(served.get("/", &workspace)).await;
    let mut idle_inside = workspace.accept().await;
    idle_inside.head().await;
    busy.write(served.get("/", &workspace)).await;
    let mut busy_inside = workspace.accept().await;
    busy_inside.head().await;
    idle_inside.answer("").await;
    idle.response().await;

    served.stop.cancel();
    assert_eq!(idle.rest().await, "");
    assert_eq!(idle_inside.rest().await, "");
    assert!(TcpStream::connect(served.address).await.is_err());
    busy_inside.answer("finished").await;
    assert_eq!(busy.response().await.1, "finished");
    assert_eq!(busy.rest().await, "");
    assert_eq!(busy_inside.rest().await, "");
    within(served.serving).await.unwrap();
}

#[tokio::test]
async fn a_tunnel_lives_until_the_drain_deadline() {
    let served = Served::with(ForwarderLimits::default(), Duration::from_secs(1)).await;
    let workspace = Workspace::new().await;
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n").await;
    gateway.head().await;
    let mut idle = served.connect().await;

    served.stop.cancel();
    assert_eq!(idle.rest().await, "");
    gateway.write("still open").await;
    assert_eq!(inside.exactly(10).await, "still open");
    within(served.serving).await.unwrap();
    assert_eq!(gateway.rest().await, "");
    assert_eq!(inside.rest().await, "");
}
