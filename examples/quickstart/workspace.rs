//! A small workspace: a page that names its user, and a WebSocket that answers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::pages::{self, CSS, HTML, JAVASCRIPT, JSON, TEXT, escape, fill};
use crate::tasks::Tasks;
use crate::terminal::say;
use crate::users::{User, owners};

const PAGE: &str = include_str!("pages/workspace.html");
const SCRIPT: &str = include_str!("pages/workspace.js");

/// The headers that tell a workspace about its user.
const TOLD: [&str; 2] = ["X-Forwarded-User", "X-Forwarded-Preferred-Username"];

/// The headers that must not reach a workspace.
const KEPT: [&str; 6] = [
    "X-Userinfo",
    "X-Access-Token",
    "X-ID-Token",
    "X-Raw-ID-Token",
    "X-Refresh-Token",
    "X-Kube-Coders-Stamp",
];

/// The address of the workspace that starts late, and how many connections to it may wait.
const LATE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const BACKLOG: u32 = 64;

/// How often to look for a port that is free on all addresses.
const PORT_TRIES: usize = 16;

/// How long the workspace that starts late takes to start.
const START_TIME: Duration = Duration::from_secs(8);

/// A listener for each user who has a workspace: on addresses of their own, and
/// on one port, because the route's template has only one.
pub(crate) struct Listeners {
    pub(crate) listening: Vec<(&'static User, TcpListener)>,
    /// The address of the workspace that starts late. Nothing listens there yet.
    pub(crate) late: TcpSocket,
}

pub(crate) async fn listeners() -> io::Result<Listeners> {
    let mut tries = 0;
    loop {
        match listeners_on_one_port().await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < PORT_TRIES => tries += 1,
            listening => return listening,
        }
    }
}

async fn listeners_on_one_port() -> io::Result<Listeners> {
    let late = TcpSocket::new_v4()?;
    late.bind((LATE, 0).into())?;
    let port = late.local_addr()?.port();
    let mut listening = Vec::new();
    for (user, host) in owners().zip(2..) {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), port)).await?;
        listening.push((user, listener));
    }
    Ok(Listeners { listening, late })
}

/// Serves a workspace some time after somebody has asked for it, until the tasks end. Before,
/// connections to it are refused.
pub(crate) fn serve_late(
    user: &'static User,
    socket: TcpSocket,
    address: SocketAddr,
    asked_for: Arc<Notify>,
    tasks: &Tasks,
) {
    let here = tasks.clone();
    tasks.spawn(async move {
        asked_for.notified().await;
        sleep(START_TIME).await;
        match socket.listen(BACKLOG) {
            Ok(listener) => serve(user, listener, address, &here),
            Err(error) => say(&format!("the workspace of {} can't listen: {error}", user.name)),
        }
    });
}

/// Serves a user's workspace until the tasks end.
pub(crate) fn serve(user: &'static User, listener: TcpListener, address: SocketAddr, tasks: &Tasks) {
    let workspace = Arc::new(Workspace { user, address });
    tasks.serve(listener, move |stream, tasks| {
        let workspace = Arc::clone(&workspace);
        async move {
            let service = service_fn(|request| async {
                let answer = workspace.answer(request, &tasks).await;
                Ok::<_, Infallible>(answer)
            });
            // A broken connection is the peer's fault, so it is not reported.
            let _ =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        }
    });
}

struct Workspace {
    user: &'static User,
    address: SocketAddr,
}

impl Workspace {
    async fn answer(&self, request: Request<Incoming>, tasks: &Tasks) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (_, "/echo") => self.echo(request, tasks),
            (&Method::POST | &Method::PUT, _) => self.count(request.into_body()).await,
            (&Method::GET | &Method::HEAD, path) => match path {
                "/style.css" => pages::answer(StatusCode::OK, CSS, pages::STYLE),
                "/workspace.js" => pages::answer(StatusCode::OK, JAVASCRIPT, SCRIPT),
                "/headers.json" => pages::answer(StatusCode::OK, JSON, self.headers(&request)),
                "/favicon.ico" => pages::answer(StatusCode::NOT_FOUND, TEXT, "no icon\n"),
                _ => pages::answer(StatusCode::OK, HTML, self.page(&request)),
            },
            _ => pages::answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and POST are understood here\n"),
        }
    }

    /// Reads an upload piece by piece, and says how many bytes it had.
    async fn count(&self, mut body: Incoming) -> Response<Full<Bytes>> {
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => received += frame.data_ref().map_or(0, Bytes::len),
                Err(_) => return pages::answer(StatusCode::BAD_REQUEST, TEXT, "the upload broke off\n"),
            }
        }
        let received = format!("{}'s workspace received {received} bytes\n", self.user.name);
        pages::answer(StatusCode::OK, TEXT, received)
    }

    fn page(&self, request: &Request<Incoming>) -> String {
        let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = text(request.headers(), "host").unwrap_or_default();
        let name = escape(self.user.name);
        fill(
            PAGE,
            &[
                ("name", &name),
                ("language", self.user.language),
                ("target", &escape(target)),
                ("host", &escape(&host)),
                ("upstream", &escape(&self.user.host())),
                ("address", &self.address.to_string()),
                ("told", &TOLD.map(|header| told_row(request.headers(), header)).concat()),
                ("kept", &KEPT.map(|header| kept_row(request.headers(), header)).concat()),
            ],
        )
    }

    /// All headers that came, for a client on a command line. The values of a repeated header
    /// are in a list of their own.
    fn headers(&self, request: &Request<Incoming>) -> String {
        let mut headers: BTreeMap<&str, Vec<Cow<'_, str>>> = BTreeMap::new();
        for (name, value) in request.headers() {
            headers.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()));
        }
        let headers: BTreeMap<_, _> = (headers.into_iter())
            .map(|(name, values)| match &values[..] {
                [value] => (name, serde_json::json!(value)),
                values => (name, serde_json::json!(values)),
            })
            .collect();
        let seen = serde_json::json!({ "workspace": self.user.subject, "headers": headers });
        format!("{seen:#}\n")
    }

    /// Agrees to a WebSocket, and answers on it as long as it lasts.
    fn echo(&self, mut request: Request<Incoming>, tasks: &Tasks) -> Response<Full<Bytes>> {
        let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        let is_websocket = (request.headers().get(UPGRADE))
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let (Some(key), true) = (key, is_websocket) else {
            return pages::answer(StatusCode::UPGRADE_REQUIRED, TEXT, "a WebSocket is to be opened here\n");
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let name = self.user.name;
        tasks.spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            answer_messages(stream, name).await;
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let key = HeaderValue::try_from(key).expect("base64 is ASCII");
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, key);
        response
    }
}

async fn answer_messages(mut stream: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, name: &str) {
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(said) = message else { continue };
        if stream.send(Message::text(format!("{name}'s workspace: {said}"))).await.is_err() {
            return;
        }
    }
}

fn told_row(headers: &HeaderMap, name: &str) -> String {
    let value = match text(headers, name) {
        Some(value) => format!("<strong>{}</strong>", escape(&value)),
        None => "<span class=\"bad\">missing</span>".to_owned(),
    };
    format!("<tr><th scope=\"row\"><code>{name}</code></th><td>{value}</td></tr>\n")
}

fn kept_row(headers: &HeaderMap, name: &str) -> String {
    let verdict = match headers.contains_key(name) {
        false => "<span class=\"good\">not here</span>",
        true => "<span class=\"bad\">here, and must not be</span>",
    };
    format!("<tr><th scope=\"row\"><code>{name}</code></th><td>{verdict}</td></tr>\n")
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
