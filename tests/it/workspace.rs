//! Workspaces on loopback behind the gateway, and the way there
//! from a client's request to the response.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use apisix_plugin_runner::gateway::{ClientRequest, ForwardedRequest, Gateway, Outcome, Route};
use futures_util::{SinkExt as _, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::peer::PATIENCE;

/// How much of a body is held at a time.
const PIECE: usize = 64 * 1024;

/// What a workspace does with a request.
#[derive(Clone, Copy)]
pub(crate) enum Behaviour {
    /// Says whose it is and what it got; speaks WebSocket.
    Serve,
    /// Closes the connection once the head is there.
    BreakOff,
}

/// Listens for one user, until the runtime of its test ends.
pub(crate) async fn start(owner: &'static str, address: SocketAddr, behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(owner, stream, behaviour));
        }
    });
    address
}

/// One port for two workspaces on two addresses.
pub(crate) async fn start_two(one: &'static str, other: &'static str) -> u16 {
    for _ in 0..100 {
        let first = start(one, (Ipv4Addr::new(127, 0, 0, 2), 0).into(), Behaviour::Serve).await;
        let address: SocketAddr = (Ipv4Addr::new(127, 0, 0, 3), first.port()).into();
        if TcpListener::bind(address).await.is_ok() {
            start(other, address, Behaviour::Serve).await;
            return first.port();
        }
    }
    panic!("no port is free on two addresses")
}

async fn serve(owner: &'static str, mut stream: TcpStream, behaviour: Behaviour) {
    let Some((head, early)) = read_head(&mut stream).await else { return };
    if let Behaviour::BreakOff = behaviour {
        return;
    }
    if let Some(key) = header(&head, "sec-websocket-key") {
        let accept = derive_accept_key(key.as_bytes());
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(switch.as_bytes()).await.unwrap();
        return echo(owner, WebSocketStream::from_raw_socket(stream, Role::Server, None).await).await;
    }
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let (received, hash) = hash_body(&mut stream, early, length).await;
    let body = format!("{owner} got {received} bytes, sha256 {hash}\n{head}");
    let answer =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
}

async fn echo(owner: &str, mut socket: WebSocketStream<TcpStream>) {
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            break;
        }
        let answer = format!("{owner}: {}", message.to_text().unwrap());
        socket.send(answer.into()).await.unwrap();
    }
}

async fn hash_body(stream: &mut TcpStream, early: Vec<u8>, length: u64) -> (u64, String) {
    let mut hash = Sha256::new();
    hash.update(&early);
    let mut received = early.len() as u64;
    let mut piece = vec![0; PIECE];
    while received < length {
        let read = stream.read(&mut piece).await.unwrap();
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
        received += read as u64;
    }
    (received, hex(&hash.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A message's head with its blank line, and what came after it.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Some((String::from_utf8(read).unwrap(), rest));
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

pub(crate) fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What the client gets in the end.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// A gateway that sends on what the runner lets pass.
pub(crate) struct Edge {
    gateway: Gateway,
    forwarder: SocketAddr,
}

impl Edge {
    pub(crate) fn new(socket: &Path, forwarder: SocketAddr) -> Self {
        Self { gateway: kube_coders::gateway(socket), forwarder }
    }

    /// The request as it goes to the forwarder, or the runner's answer.
    pub(crate) async fn decide(
        &self,
        route: &Route,
        request: &ClientRequest,
    ) -> Result<ForwardedRequest, Seen> {
        match self.gateway.call(route, request).await {
            Outcome::Forward(forwarded) => Ok(forwarded),
            Outcome::Answer(answer) => {
                let headers = answer.headers.iter();
                let headers = headers
                    .map(|(name, value)| format!("{name}: {}\r\n", std::str::from_utf8(value).unwrap()));
                Err(Seen {
                    status: answer.status,
                    head: format!("the runner's\r\n{}", headers.collect::<String>()),
                    body: String::from_utf8(answer.body).unwrap(),
                })
            }
        }
    }

    pub(crate) async fn request(&self, route: &Route, request: &ClientRequest) -> Seen {
        match self.decide(route, request).await {
            Ok(forwarded) => self.forward(&forwarded, &[]).await,
            Err(answer) => answer,
        }
    }

    /// Sends a request to the forwarder, with its body in so many pieces.
    pub(crate) async fn forward(&self, forwarded: &ForwardedRequest, body: &[Vec<u8>]) -> Seen {
        let exchange = async {
            let mut stream = TcpStream::connect(self.forwarder).await.unwrap();
            stream.write_all(head_of(forwarded).as_bytes()).await.unwrap();
            for piece in body {
                stream.write_all(piece).await.unwrap();
            }
            let (head, mut rest) = read_head(&mut stream).await.expect("a response");
            let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
            let missing = length.saturating_sub(rest.len());
            let mut piece = vec![0; missing];
            stream.read_exact(&mut piece).await.unwrap();
            rest.extend(piece);
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            Seen { status, head, body: String::from_utf8(rest).unwrap() }
        };
        timeout(PATIENCE, exchange).await.expect("a response in time")
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.forwarder).await.unwrap()
    }
}

/// As a gateway writes it, with hop-by-hop headers of its own.
pub(crate) fn head_of(forwarded: &ForwardedRequest) -> String {
    let target = std::str::from_utf8(&forwarded.target).unwrap();
    let mut head = format!("{} {target} HTTP/1.1\r\n", forwarded.method.as_str());
    for (name, value) in &forwarded.headers {
        head.push_str(&format!("{name}: {}\r\n", std::str::from_utf8(value).unwrap()));
    }
    head + "\r\n"
}
