//! Two users, one URL, two workspaces: gateway, runner, forwarder, workspace,
//! each as it is in earnest.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use apisix_plugin_runner::gateway::{ClientRequest, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use kube_coders_test_support::NameServer;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::issuer::{DISCOVERY, Issuer};
use crate::peer::PATIENCE;
use crate::program::{BINARY, Program, Runner, listen_address};
use crate::workspace::{Behaviour, Edge, Seen, head_of, header, hex, start, start_two};
use kube_coders_test_support::Signer;

/// How much the process may grow, in KiB, while bodies pass.
const GROWTH: u64 = 8 * 1024;

struct House {
    _names: NameServer,
    runner: Runner,
    edge: Edge,
    route: Route,
}

async fn house() -> House {
    let names = NameServer::start().await.unwrap();
    let port = start_two("alice", "bob").await;
    for (user, address) in [("alice", "127.0.0.2"), ("bob", "127.0.0.3")] {
        names.set(&format!("code-{user}.coders.test"), [address.parse::<IpAddr>().unwrap()]);
    }
    let runner =
        Runner::start(&["--allow-address", "127.0.0.0/8", "--dns-server", &names.address().to_string()]);
    let edge = Edge::new(&runner.socket, runner.forwarder);
    let conf = format!(
        r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://code-{{sub}}.coders.test:{port}"}}"#
    );
    House { _names: names, runner, edge, route: Route::new("workspaces").plugin("user-upstream", &conf) }
}

fn by(user: &str, request: ClientRequest) -> ClientRequest {
    let userinfo = format!(r#"{{"sub": "{user}", "preferred_username": "{user} of test"}}"#);
    request.added_header("X-Userinfo", STANDARD.encode(userinfo))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_with_one_url_land_in_two_workspaces() {
    let house = house().await;
    for user in ["alice", "bob", "alice"] {
        let request = ClientRequest::get("/a%2Fb//c?x=%20&y")
            .header("Host", "coders.test")
            .header("X-Forwarded-User", "mallory")
            .header("Cookie", "vscode=1");
        let request =
            by(user, request).added_header("X-Access-Token", "t0ken").added_header("X-ID-Token", "t");
        let Seen { status, body, .. } = house.edge.request(&house.route, &request).await;
        assert_eq!(status, 200, "{body}");
        let (first, head) = body.split_once('\n').unwrap();
        assert!(first.starts_with(&format!("{user} got 0 bytes")), "{body}");
        assert!(head.starts_with("GET /a%2Fb//c?x=%20&y HTTP/1.1\r\n"), "{body}");
        assert_eq!(header(head, "host"), Some("coders.test"));
        assert_eq!(header(head, "cookie"), Some("vscode=1"));
        assert_eq!(header(head, "x-forwarded-user"), Some(user));
        assert_eq!(header(head, "x-forwarded-preferred-username"), Some(&*format!("{user} of test")));
        for gone in ["x-userinfo", "x-access-token", "x-id-token", "x-kube-coders-stamp"] {
            assert_eq!(header(head, gone), None, "{gone}");
        }
        assert_eq!(head.to_ascii_lowercase().matches("x-forwarded-user:").count(), 1, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_with_one_url_have_two_websockets() {
    let house = house().await;
    let mut sockets = Vec::new();
    for user in ["alice", "bob"] {
        let upgrade = ClientRequest::get("/ws?reconnectionToken=1")
            .header("Host", "coders.test")
            .header("Origin", "https://coders.test")
            .header("Upgrade", "websocket")
            .header("Connection", "Upgrade");
        let forwarded = house.edge.decide(&house.route, &by(user, upgrade)).await.unwrap();
        let mut request = "ws://coders.test/ws?reconnectionToken=1".into_client_request().unwrap();
        for (name, value) in forwarded.headers {
            request
                .headers_mut()
                .insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(&value).unwrap());
        }
        let stream = house.edge.connect().await;
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.status(), 101);
        sockets.push((user, socket));
    }
    for round in 0..3 {
        for (user, socket) in &mut sockets {
            socket.send(format!("round {round}").into()).await.unwrap();
            let answer = socket.next().await.unwrap().unwrap();
            assert_eq!(answer.to_text().unwrap(), format!("{user}: round {round}"));
        }
    }
    for (_, mut socket) in sockets {
        socket.close(None).await.unwrap();
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_arrives_whole_and_is_never_held() {
    let house = house().await;
    let small = house.edge.request(&house.route, &by("alice", ClientRequest::get("/"))).await;
    assert_eq!(small.status, 200, "{}", small.body);
    let before = house.runner.memory();

    let pieces: Vec<Vec<u8>> = (0..64_u32)
        .map(|piece| (0..1 << 18).flat_map(|word: u32| (word ^ piece << 24).to_be_bytes()).collect())
        .collect();
    let mut hash = Sha256::new();
    pieces.iter().for_each(|piece| hash.update(piece));
    let length = pieces.iter().map(Vec::len).sum::<usize>();
    assert_eq!(length, 64 << 20);

    let post = apisix_plugin_runner::Method::POST;
    let request = ClientRequest::new(post, "/upload").header("Content-Length", length.to_string());
    let forwarded = house.edge.decide(&house.route, &by("bob", request)).await.unwrap();
    let seen = house.edge.forward(&forwarded, &pieces).await;
    let (first, _) = seen.body.split_once('\n').unwrap();
    assert_eq!(first, format!("bob got {length} bytes, sha256 {}", hex(&hash.finalize())));
    let grown = house.runner.memory().peak - before.now;
    assert!(grown < GROWTH, "grown by {grown} KiB from {before:?}");
}

/// A GiB up and a GiB down at the same time, through the running program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_is_never_held() {
    let house = house().await;
    let small = house.edge.request(&house.route, &by("alice", ClientRequest::get("/"))).await;
    assert_eq!(small.status, 200, "{}", small.body);
    let before = house.runner.memory();

    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let upstream = format!("http://code-{{sub}}.coders.test:{}", listener.local_addr().unwrap().port());
    let workspace = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        read_exact_head(&mut stream).await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        exchange_gibibytes(&mut stream).await;
    });
    let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "{upstream}"}}"#);
    let route = Route::new("large").plugin("user-upstream", &conf);
    let post = apisix_plugin_runner::Method::POST;
    let request = ClientRequest::new(post, "/").header("Host", "h").header("Content-Length", GIB.to_string());
    let forwarded = house.edge.decide(&route, &by("alice", request)).await.unwrap();
    let mut stream = house.edge.connect().await;
    stream.write_all(head_of(&forwarded).as_bytes()).await.unwrap();
    read_exact_head(&mut stream).await;
    timeout(PATIENCE, exchange_gibibytes(&mut stream)).await.unwrap();
    workspace.await.unwrap();
    let grown = house.runner.memory().peak - before.now;
    assert!(grown < GROWTH, "grown by {grown} KiB from {before:?}");
}

const GIB: usize = 1 << 30;

/// Sends a GiB and takes one.
async fn exchange_gibibytes(stream: &mut TcpStream) {
    let (mut reads, mut writes) = stream.split();
    let sending = async {
        let piece = vec![b'x'; 1 << 18];
        for _ in 0..GIB / piece.len() {
            writes.write_all(&piece).await.unwrap();
        }
    };
    let receiving = async {
        let (mut piece, mut left) = (vec![0; 1 << 18], GIB);
        while left > 0 {
            let most = left.min(piece.len());
            match reads.read(&mut piece[..most]).await.unwrap() {
                0 => panic!("{left} bytes before the end"),
                length => left -= length,
            }
        }
    };
    tokio::join!(sending, receiving);
}

/// Reads a head, and nothing after it.
async fn read_exact_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

/// What tunnels cost in which nothing moves, after a message each: all in, of the
/// runner's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_tunnel_costs_at_most_12_kib() {
    const TUNNELS: usize = 600;
    const EACH: u64 = 12;
    /// What the allocator takes at a time.
    const STEP: u64 = 2 * 1024;
    let workspace = start("alice", (Ipv4Addr::LOCALHOST, 0).into(), Behaviour::Serve).await;
    let runner = Runner::start(&["--max-subject-connections", "2000"]);
    let edge = Edge::new(&runner.socket, runner.forwarder);
    let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://{workspace}"}}"#);
    let route = Route::new("tunnels").plugin("user-upstream", &conf);
    let open = async || {
        let upgrade = ClientRequest::get("/")
            .header("Host", "h")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Upgrade", "websocket");
        let forwarded = edge.decide(&route, &by("alice", upgrade)).await.unwrap();
        let mut stream = edge.connect().await;
        let head = head_of(&forwarded).replacen("\r\n", "\r\nConnection: Upgrade\r\n", 1);
        stream.write_all(head.as_bytes()).await.unwrap();
        read_exact_head(&mut stream).await;
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        socket.send("hello".into()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().to_text().unwrap(), "alice: hello");
        socket
    };
    // What the first ones cost is the program's own.
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(open().await);
    }
    let before = runner.memory();
    for _ in 0..TUNNELS {
        sockets.push(open().await);
    }
    let grown = runner.memory().now - before.now;
    assert!(grown < TUNNELS as u64 * EACH + STEP, "grown by {grown} KiB from {before:?}");
}

/// By the system's certificates, which a variable of OpenSSL's names in place of the
/// usual folders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_that_the_system_trusts_is_trusted() {
    let workspace = Issuer::start_tls(&[Signer::rsa().clone()]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roots.pem");
    std::fs::write(&file, &workspace.certificate).unwrap();
    for (roots, status) in [(Some(&file), 200), (None, 502)] {
        let socket = folder.path().join(format!("{status}.sock"));
        let mut command = Command::new(BINARY);
        command.env_clear().args(["run", "--listen-address", &listen_address(&socket)]);
        command.args(["--forwarder-address", "127.0.0.1:0"]);
        command.envs(roots.map(|file| ("SSL_CERT_FILE", file)));
        let runner = Runner::from_program(Program::start(&mut command), &socket);
        let edge = Edge::new(&runner.socket, runner.forwarder);
        let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "{}"}}"#, workspace.url());
        let route = Route::new("secure").plugin("user-upstream", &conf);
        let request = by("alice", ClientRequest::get(DISCOVERY).header("Host", "coders.test"));
        let seen = edge.request(&route, &request).await;
        assert_eq!(seen.status, status, "{}", seen.body);
        assert_eq!(seen.body.contains("jwks_uri"), status == 200, "{}", seen.body);
    }
}
