//! The gateway of the quickstart, to which a browser connects.
//!
//! It replaces Apache APISIX with openid-connect and ext-plugin-pre-req on one route.
//! Instead of a login there is a page to pick a user, under `/quickstart/`. All other
//! paths belong to the route.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apisix_plugin_runner::gateway;
use apisix_plugin_runner::gateway::{ClientRequest, Outcome, Route, hands_on};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{ACCEPT, COOKIE, HOST, HeaderMap, HeaderValue, LOCATION, SET_COOKIE, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::pages::{self, CSS, HTML, TEXT, escape, fill};
use crate::proxy::{self, Body};
use crate::tasks::Tasks;
use crate::terminal::say;
use crate::users::{self, Place, UPSTREAM_HOST, USERS, User};

const PICKER: &str = include_str!("pages/picker.html");

/// The gateway's own paths.
const OWN: &str = "/quickstart/";

/// The cookie that names the picked user. There is no password: this gateway believes every
/// client.
pub(crate) const USER_COOKIE: &str = "quickstart_user";

/// The cookie with the page that was refused, and for how long it is kept.
const BACK_COOKIE: &str = "quickstart_back";
const BACK_SECONDS: u32 = 600;

/// The headers that only the gateway may set. Like openid-connect, it removes a client's
/// own.
const IDENTITY_HEADERS: [&str; 5] =
    ["x-userinfo", "x-access-token", "x-id-token", "x-raw-id-token", "x-refresh-token"];

/// The host names of the route. Under any other name, a page of the internet could have
/// pointed its own name here to reach a workspace.
const HOSTS: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// The gateway and its one route.
pub(crate) struct Gateway {
    runner: gateway::Gateway,
    route: Route,
    forwarder: SocketAddr,
    /// Starts the workspace of the user who has a late one.
    asked_for: Arc<Notify>,
    /// Whether the terminal shows requests.
    shows: Arc<AtomicBool>,
    tasks: Tasks,
}

impl Gateway {
    /// A gateway that asks the runner at the end of this connection, and sends requests for a
    /// workspace to the forwarder. All workspaces have one port.
    pub(crate) fn new(
        runner: gateway::Gateway,
        port: u16,
        asked_for: Arc<Notify>,
        forwarder: SocketAddr,
        tasks: Tasks,
    ) -> Self {
        let conf = serde_json::json!({
            "identity": { "trust": "gateway" },
            "deny": { "subjects": users::denied().collect::<Vec<_>>() },
            // It lets its holder in as the user, so no workspace may have it.
            "remove_cookies": [USER_COOKIE],
            "login": OWN,
            "upstream": format!("http://{UPSTREAM_HOST}:{port}"),
        });
        let route = Route::new("quickstart").plugin("user-upstream", &conf.to_string());
        let shows = Arc::default();
        Self { runner, route, forwarder, asked_for, shows, tasks }
    }

    /// Serves the listener until the gateway's tasks end. Returns the switch by which the
    /// terminal shows each request from then on.
    pub(crate) fn serve(self, listener: TcpListener) -> Arc<AtomicBool> {
        let gateway = Arc::new(self);
        let (tasks, shows) = (gateway.tasks.clone(), Arc::clone(&gateway.shows));
        tasks.serve(listener, move |stream, _| Arc::clone(&gateway).connection(stream));
        shows
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let client = stream.peer_addr().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
        let service = service_fn(|request| {
            let gateway = Arc::clone(&self);
            async move { Ok::<_, Infallible>(gateway.answer(request, client).await) }
        });
        // A broken connection is the client's fault, so it is not reported.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }

    async fn answer(&self, request: Request<Incoming>, client: IpAddr) -> Response<Body> {
        if !is_for_us(request.headers()) {
            return text(StatusCode::MISDIRECTED_REQUEST, "Ask for 127.0.0.1 or localhost.\n");
        }
        let user = chosen_user(request.headers());
        let path = request.uri().path();
        if let Some(own) = path.strip_prefix(OWN) {
            return own_answer(own, request.uri().query(), request.headers());
        }
        if path == "/" && user.is_none() && request.method() == http::Method::GET {
            return picker();
        }
        self.route(request, client, user).await
    }

    /// What the route does: openid-connect, then the runner, then the upstream.
    async fn route(&self, request: Request<Incoming>, client: IpAddr, user: Option<&User>) -> Response<Body> {
        let Some(call) = client_request(&request, client, user) else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "This method has no number in the protocol.\n");
        };
        if user.is_some_and(|user| user.workspace == Place::Late) {
            self.asked_for.notify_one();
        }
        let outcome = self.runner.call(&self.route, &call).await;
        if self.shows.load(Ordering::Relaxed) {
            say(&shown(&request, user, &outcome));
        }
        match outcome {
            Outcome::Answer(answer) => {
                let way_back = is_navigation(&request).then(|| way_back(&request));
                let mut response = stopped(answer);
                if let Some(cookie) = way_back {
                    response.headers_mut().append(SET_COOKIE, cookie);
                }
                response
            }
            Outcome::Forward(forwarded) => {
                proxy::forward(self.forwarder, request, &forwarded, &self.tasks).await
            }
        }
    }
}

/// A request and the decision about it, in one line.
fn shown(request: &Request<Incoming>, user: Option<&User>, outcome: &Outcome) -> String {
    let who = user.map_or("nobody", |user| user.subject);
    let (method, path) = (request.method(), request.uri().path());
    let upgrade = if request.headers().contains_key(UPGRADE) { " (upgrade)" } else { "" };
    let decision = match outcome {
        Outcome::Answer(answer) => format!("{} {}", answer.status, code_in(&answer.body)),
        Outcome::Forward(forwarded) => match &forwarded.upstream {
            Some(upstream) => upstream.to_string(),
            None => "no workspace".to_owned(),
        },
    };
    format!("{who:<8} {method} {path}{upgrade} -> {decision}")
}

/// The code of a refusal, from its page or its problem document.
fn code_in(body: &[u8]) -> String {
    if let Ok(problem) = serde_json::from_slice::<serde_json::Value>(body) {
        return problem["code"].as_str().unwrap_or_default().to_owned();
    }
    let page = String::from_utf8_lossy(body);
    let code = page.split("<code>").nth(1).and_then(|rest| rest.split("</code>").next());
    code.and_then(|code| code.split(' ').nth(1)).unwrap_or_default().to_owned()
}

/// Whether a person waits for the response.
fn is_navigation(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    request.method() == http::Method::GET && accept.is_some_and(|accept| accept.contains("text/html"))
}

/// The cookie by which the picker leads back to the page that was refused. It is for the
/// gateway's own pages, so no workspace gets it.
fn way_back(request: &Request<Incoming>) -> HeaderValue {
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let target = URL_SAFE_NO_PAD.encode(target);
    let cookie =
        format!("{BACK_COOKIE}={target}; Max-Age={BACK_SECONDS}; Path={OWN}; HttpOnly; SameSite=Lax");
    HeaderValue::try_from(cookie).expect("base64 is ASCII")
}

/// The page of this origin to which a client goes back.
fn back_to(headers: &HeaderMap) -> Option<HeaderValue> {
    let bytes = URL_SAFE_NO_PAD.decode(cookie(headers, BACK_COOKIE)?).ok()?;
    let target = HeaderValue::from_bytes(&bytes).ok()?;
    // Browsers take `//host` and `/\host` for another origin.
    let is_path = bytes.starts_with(b"/") && !bytes[1..].starts_with(b"/") && !bytes.contains(&b'\\');
    is_path.then_some(target)
}

/// The request as the runner receives it; `None` for a method that the protocol does not
/// have.
fn client_request(request: &Request<Incoming>, client: IpAddr, user: Option<&User>) -> Option<ClientRequest> {
    let method = Some(request.method().clone()).filter(hands_on)?;
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut call = ClientRequest::new(method, target).from_source(client);
    for (name, value) in request.headers() {
        if !IDENTITY_HEADERS.contains(&name.as_str()) {
            call = call.header(name.as_str(), value);
        }
    }
    if let Some(user) = user {
        call = call.added_header("x-userinfo", user.userinfo());
    }
    Some(match (getrandom::u64(), getrandom::u64()) {
        (Ok(high), Ok(low)) => call.variable("request_id", format!("{high:016x}{low:016x}")),
        _ => call,
    })
}

fn stopped(answer: gateway::ClientResponse) -> Response<Body> {
    let mut response = Response::new(Either::Right(answer.body.into()));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    proxy::append_headers(response.headers_mut(), &answer.headers);
    response
}

fn is_for_us(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    HOSTS.contains(&name)
}

fn chosen_user(headers: &HeaderMap) -> Option<&'static User> {
    cookie(headers, USER_COOKIE).and_then(User::find)
}

fn cookie<'h>(headers: &'h HeaderMap, wanted: &str) -> Option<&'h str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim())
}

/// The pages under `/quickstart/`.
fn own_answer(path: &str, query: Option<&str>, headers: &HeaderMap) -> Response<Body> {
    match path {
        "" => picker(),
        "style.css" => pages::answer(StatusCode::OK, CSS, pages::STYLE).map(Either::Right),
        "pick" => match query.and_then(|query| query.strip_prefix("user=")).and_then(User::find) {
            Some(user) => {
                let back = back_to(headers).unwrap_or(HeaderValue::from_static("/"));
                let mut response = go_to(back, &format!("{USER_COOKIE}={}", user.subject));
                let used = format!("{BACK_COOKIE}=; Max-Age=0; Path={OWN}; HttpOnly; SameSite=Lax");
                let used = HeaderValue::try_from(used).expect("the name and the path are ASCII");
                response.headers_mut().append(SET_COOKIE, used);
                response
            }
            None => text(StatusCode::NOT_FOUND, "There is no such user.\n"),
        },
        "leave" => go_to(HeaderValue::from_static("/"), &format!("{USER_COOKIE}=; Max-Age=0")),
        _ => text(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}

fn picker() -> Response<Body> {
    let user = |user: &User| {
        format!(
            "<li><a href=\"{OWN}pick?user={}\"><strong lang=\"{}\">{}</strong> {}</a></li>\n",
            user.subject,
            user.language,
            escape(user.name),
            escape(user.about)
        )
    };
    let users = USERS.iter().map(user).collect::<String>();
    pages::answer(StatusCode::OK, HTML, fill(PICKER, &[("users", &users)])).map(Either::Right)
}

fn go_to(location: HeaderValue, cookie: &str) -> Response<Body> {
    let mut response = text(StatusCode::SEE_OTHER, "");
    let cookie = HeaderValue::try_from(format!("{cookie}; Path=/; HttpOnly; SameSite=Lax"))
        .expect("subjects are plain labels");
    response.headers_mut().insert(SET_COOKIE, cookie);
    response.headers_mut().insert(LOCATION, location);
    response
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    pages::answer(status, TEXT, text).map(Either::Right)
}
