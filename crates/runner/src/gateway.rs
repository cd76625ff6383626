//! The gateway's side: speaks to a runner as Apache APISIX 3.18 does, over a connection
//! in memory or over a real socket. For tests of plugins, and for commands that call a
//! running runner.
//!
//! ```
//! use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
//! use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
//!
//! struct Hello;
//!
//! impl Plugin for Hello {
//!     const NAME: &'static str = "hello";
//!     type Config = ();
//!
//!     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
//!         request.set_header("x-hello", "world")?;
//!         Ok(Action::Continue)
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let gateway = Gateway::new().plugin(Hello);
//! let route = Route::new("greetings").plugin("hello", "null");
//! let forwarded = gateway.call(&route, &ClientRequest::get("/")).await.forwarded();
//! assert_eq!(forwarded.header("x-hello"), Some(&b"world"[..]));
//! # });
//! ```

#[cfg(feature = "direct")]
mod decision_cache;
mod exchange;
mod named_upstream;
mod outcome;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use apisix_ext_plugin::frame::FrameKind;
use apisix_ext_plugin::gateway_side::{
    decode_error, decode_prepared, decode_question, decode_request_answer, decode_response_answer,
};
use apisix_ext_plugin::payload::{Encoder, ErrorCode, Question};
use bytes::Bytes;
use http::HeaderName;
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::carrier::{Carried, Carrier, CarrierFuture, Choice};
use crate::connection::{Connection, Frame};
use crate::dispatcher::Dispatcher;
use crate::listener::server::serve_calls;
use crate::listener::takeover::Succession;
use crate::locks::lock;
use crate::plugin::PreparedPlugin;
use crate::runner::Runner;
use crate::settings::Settings;
use crate::upstream::Upstream;

pub use apisix_ext_plugin::gateway_side::{RequestAnswer, Rewrite};
pub use exchange::{ClientRequest, ForwardedRequest};
pub use outcome::{CallError, ClientResponse, Outcome, Route};
use outcome::{MAX_BODY, READ};

/// How many idle connections a gateway's worker keeps (docs/gateway.md, Connections).
const POOL: usize = 32;

/// How often a call is tried when the runner does not know its conf token
/// (docs/gateway.md, PrepareConf).
const TRIES: usize = 3;

/// How long a gateway waits for a connection (docs/gateway.md, Connections).
const CONNECT: Duration = Duration::from_secs(1);

/// How many bytes a connection in memory holds.
const PIPE: usize = 64 * 1024;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

type Peer = Connection<Box<dyn Stream>>;

enum Connector {
    /// A runner in this process, which is made at the first connection.
    Memory {
        runner: Box<Runner>,
        settings: Settings,
        dispatcher: std::sync::OnceLock<Arc<Dispatcher>>,
        stop: CancellationToken,
    },
    Socket(PathBuf),
}

/// Reads the upstream from the header that a carrier has set.
type CarriedReader = fn(&[u8]) -> Option<Upstream>;

/// The carrier of a runner in memory: it names the upstream in a header.
struct NamesUpstream;

const NAMED_UPSTREAM: HeaderName = HeaderName::from_static("x-named-upstream");

impl Carrier for NamesUpstream {
    fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
        let value = named_upstream::write(choice.upstream());
        Box::pin(async { Ok(Carried::new(NAMED_UPSTREAM, value)) })
    }
}

/// A stand-in for one worker of a gateway.
///
/// It keeps 32 idle connections, prepares a route once under a lock of all
/// routes, repeats a call whose token is unknown, and applies a rewrite as the
/// real one does. It waits for an answer as long as the real one, 60 s.
///
/// ```
/// use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
/// use apisix_plugin_runner::{Action, Plugin, PluginError, Request, StatusCode, Stop};
///
/// struct Closed;
///
/// impl Plugin for Closed {
///     const NAME: &'static str = "closed";
///     type Config = ();
///
///     async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
///         Ok(Stop::new(StatusCode::FORBIDDEN).into())
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let gateway = Gateway::new().plugin(Closed);
/// let route = Route::new("all").plugin("closed", "null");
/// assert_eq!(gateway.call(&route, &ClientRequest::get("/")).await.status(), Some(403));
/// # });
/// ```
pub struct Gateway {
    connector: Connector,
    carried: Vec<(HeaderName, CarriedReader)>,
    pool: std::sync::Mutex<Vec<Peer>>,
    tokens: Mutex<HashMap<String, u32>>,
    calls: AtomicU32,
    #[cfg(feature = "direct")]
    cache: Option<decision_cache::DecisionCache>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self::new()
    }
}

impl Gateway {
    /// A gateway with a runner of its own in memory, without plugins. The runner has a
    /// carrier, so its plugins may choose the upstream.
    #[must_use]
    pub fn new() -> Self {
        Self::with_runner(
            Runner::named("test", "0.0.0").carrier(NamesUpstream),
            Settings::new("/nonexistent"),
        )
        .reads_upstream(NAMED_UPSTREAM, named_upstream::read)
    }

    /// A gateway with this runner in memory. Of the settings, those for calls count.
    #[must_use]
    pub fn with_runner(runner: Runner, settings: Settings) -> Self {
        Self::of(Connector::Memory {
            runner: Box::new(runner),
            settings,
            dispatcher: std::sync::OnceLock::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Adds a plugin to the runner in memory.
    ///
    /// # Panics
    ///
    /// If the gateway connects to a socket, or has already been used.
    #[must_use]
    pub fn plugin<P: PreparedPlugin>(mut self, plugin: P) -> Self {
        match &mut self.connector {
            Connector::Memory { runner, dispatcher, .. } if dispatcher.get().is_none() => {
                let named = Runner::named(runner.name, runner.version);
                let before = std::mem::replace(&mut **runner, named);
                **runner = before.plugin(plugin);
            }
            _ => panic!("a plugin is added to a runner in memory before its first call"),
        }
        self
    }

    /// A gateway that connects to a runner's unix socket.
    #[must_use]
    pub fn connect(path: impl AsRef<Path>) -> Self {
        Self::of(Connector::Socket(path.as_ref().to_owned()))
    }

    /// Reads a plugin's choice of upstream from this header, which the runner's carrier
    /// sets. [`ForwardedRequest::upstream`] shows it.
    #[must_use]
    pub fn reads_upstream(mut self, header: HeaderName, read: fn(&[u8]) -> Option<Upstream>) -> Self {
        self.carried.push((header, read));
        self
    }

    /// Caches decisions for at most this long, as the gateway's plugin does in direct mode
    /// (`remember`). With it, a test shows that the plugin's
    /// [cache key](crate::Plugin::cache_key) is complete, and that decisions are cached at
    /// all: [`call_count`](Self::call_count) counts only the requests that the runner decided.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use apisix_plugin_runner::direct::{Direct, SystemResolver};
    /// use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
    /// use apisix_plugin_runner::{Action, CacheKey, HeaderName, Plugin, PluginError, Request, Runner, Settings};
    ///
    /// struct ByTeam;
    ///
    /// impl Plugin for ByTeam {
    ///     const NAME: &'static str = "by-team";
    ///     type Config = ();
    ///
    ///     fn cache_key(&self, (): &()) -> Option<CacheKey> {
    ///         Some(CacheKey::new([HeaderName::from_static("x-team")]))
    ///     }
    ///
    ///     async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
    ///         let port = if request.header_str("x-team") == Some("a") { 8001 } else { 8002 };
    ///         request.set_upstream(format!("http://127.0.0.1:{port}").parse()?)?;
    ///         request.cache_for(Duration::from_secs(5));
    ///         Ok(Action::Continue)
    ///     }
    /// }
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let runner = Runner::named("test", "0").plugin(ByTeam).carrier(Direct::new(Arc::new(SystemResolver)));
    /// let gateway = Gateway::with_runner(runner, Settings::new("/nonexistent"))
    ///     .caches_decisions(Duration::from_secs(10));
    /// let route = Route::new("teams").plugin("by-team", "null");
    /// for (team, calls) in [("a", 1), ("a", 1), ("b", 2), ("a", 2)] {
    ///     let outcome = gateway.call(&route, &ClientRequest::get("/").header("x-team", team)).await;
    ///     assert_eq!((outcome.status(), gateway.call_count()), (None, calls));
    /// }
    /// # });
    /// ```
    #[cfg(feature = "direct")]
    #[must_use]
    pub fn caches_decisions(mut self, most: Duration) -> Self {
        self.cache = Some(decision_cache::DecisionCache::new(most));
        self
    }

    /// How often the runner was called for a request or a response.
    #[must_use]
    pub fn call_count(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    fn of(connector: Connector) -> Self {
        Self {
            connector,
            carried: Vec::new(),
            pool: std::sync::Mutex::default(),
            tokens: Mutex::default(),
            calls: AtomicU32::new(0),
            #[cfg(feature = "direct")]
            cache: None,
        }
    }

    /// What goes to the upstream once the runner has said this.
    #[must_use]
    pub fn rewritten(&self, request: &ClientRequest, rewrite: &Rewrite) -> ForwardedRequest {
        let mut forwarded = request.rewritten(rewrite);
        for (header, read) in &self.carried {
            if let Some(upstream) = forwarded.header(header.as_str()).and_then(*read) {
                forwarded.upstream = Some(upstream);
            }
        }
        forwarded
    }

    /// Calls the runner for a request and does what it says.
    ///
    /// A call that fails becomes the answer that a client would get: 503, or 500
    /// if the runner's answer is malformed.
    pub async fn call(&self, route: &Route, request: &ClientRequest) -> Outcome {
        match self.try_call(route, request).await {
            Ok(outcome) => outcome,
            Err(CallError::Malformed(_)) => Outcome::Answer(ClientResponse::new(500)),
            Err(_) if route.allow_degradation => {
                Outcome::Forward(self.rewritten(request, &Rewrite::default()))
            }
            Err(_) => Outcome::Answer(ClientResponse::new(503)),
        }
    }

    /// Calls the runner for a request, and reports why a call failed.
    ///
    /// # Errors
    ///
    /// As [`CallError`] lists them.
    pub async fn try_call(&self, route: &Route, request: &ClientRequest) -> Result<Outcome, CallError> {
        #[cfg(feature = "direct")]
        if let Some(cache) = &self.cache
            && let Some(scope) = decision_cache::DecisionCache::scope(route, request)
        {
            if let Some(rewrite) = cache.find(&scope, request) {
                return Ok(Outcome::Forward(self.rewritten(request, &rewrite)));
            }
            // The time counts from before the call, as in the gateway's plugin.
            let since = tokio::time::Instant::now();
            let answer = self.decide(route, request).await?;
            if let RequestAnswer::Rewrite(rewrite) = &answer {
                cache.keep(scope, request, rewrite, since);
            }
            return Ok(self.outcome(request, answer));
        }
        Ok(self.outcome(request, self.decide(route, request).await?))
    }

    fn outcome(&self, request: &ClientRequest, answer: RequestAnswer) -> Outcome {
        match answer {
            RequestAnswer::Unchanged => Outcome::Forward(self.rewritten(request, &Rewrite::default())),
            RequestAnswer::Rewrite(rewrite) => Outcome::Forward(self.rewritten(request, &rewrite)),
            RequestAnswer::Stop { status, headers, body } => Outcome::Answer(stopped(status, headers, body)),
        }
    }

    /// The runner's answer to a request call, before a gateway acts on it.
    ///
    /// # Errors
    ///
    /// As [`CallError`] lists them.
    pub async fn decide(&self, route: &Route, request: &ClientRequest) -> Result<RequestAnswer, CallError> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut parts = request.to_parts(id);
        let encode = |token, encoder: &mut Encoder| {
            parts.conf_token = token;
            encoder.request_call(&parts);
        };
        let answer = self.with_token(route, FrameKind::RequestCall, encode, request, None).await?;
        Ok(decode_request_answer(&answer.payload)?.1)
    }

    /// Calls the runner for an upstream's response, as `ext-plugin-post-resp`
    /// does, and gives what the client gets.
    ///
    /// # Errors
    ///
    /// As [`CallError`] lists them.
    pub async fn call_for_response(
        &self,
        route: &Route,
        request: &ClientRequest,
        response: &ClientResponse,
    ) -> Result<ClientResponse, CallError> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let headers: Vec<_> =
            response.headers.iter().map(|(name, value)| (name.as_bytes(), Some(&value[..]))).collect();
        let encode = |token, encoder: &mut Encoder| {
            encoder.response_call(id, token, response.status, &headers);
        };
        let body = Some(&response.body[..]);
        let answer = self.with_token(route, FrameKind::ResponseCall, encode, request, body).await?;
        let (_, answer) = decode_response_answer(&answer.payload)?;
        let headers = match answer.headers.is_empty() {
            false => answer.headers.into_iter().map(named).collect(),
            true => {
                response.headers.iter().filter(|(name, _)| !dropped_without_list(name)).cloned().collect()
            }
        };
        Ok(ClientResponse {
            status: if answer.status == 0 { response.status } else { answer.status },
            headers,
            body: if answer.body.is_empty() { response.body.clone() } else { answer.body },
        })
    }

    /// Whether the runner answers at all. It is asked with a token that no runner gives, so
    /// that the runner keeps nothing.
    ///
    /// # Errors
    ///
    /// As [`CallError`] lists them.
    pub async fn probe(&self) -> Result<(), CallError> {
        let mut peer = self.connection().await?;
        let request = ClientRequest::get("/");
        let mut encoder = Encoder::new();
        encoder.request_call(&request.to_parts(0));
        match converse(&mut peer, FrameKind::RequestCall, &mut encoder, &request, None).await {
            Err(CallError::UnknownToken) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(CallError::Malformed("an answer to a token that was not given".into())),
        }
    }

    /// Sends a call with the route's token on a connection from the pool, and again with a
    /// new token if the runner does not know the first.
    ///
    /// The closure encodes and does not send: with an async one, the future would not be
    /// `Send`, and a spawned task could not call a gateway.
    async fn with_token(
        &self,
        route: &Route,
        kind: FrameKind,
        mut encode: impl FnMut(u32, &mut Encoder) + Send,
        request: &ClientRequest,
        response_body: Option<&[u8]>,
    ) -> Result<Frame, CallError> {
        let mut encoder = Encoder::new();
        let mut tries = 0;
        loop {
            tries += 1;
            // The call's own connection is opened first and stays silent meanwhile.
            let mut peer = self.connection().await?;
            let token = self.token(route).await?;
            encode(token, &mut encoder);
            match converse(&mut peer, kind, &mut encoder, request, response_body).await {
                Ok(answer) => {
                    self.put_back(peer);
                    return Ok(answer);
                }
                Err(CallError::UnknownToken) if tries < TRIES => self.tokens.lock().await.clear(),
                Err(error) => return Err(error),
            }
        }
    }

    /// The route's conf token, prepared under the one lock of all routes.
    async fn token(&self, route: &Route) -> Result<u32, CallError> {
        let mut tokens = self.tokens.lock().await;
        // The version in a real key changes with the conf; here the conf itself is the version.
        let known = format!("{}{:?}", route.id, route.confs);
        if let Some(token) = tokens.get(&known) {
            return Ok(*token);
        }
        let mut peer = self.connection().await?;
        let confs: Vec<_> =
            route.confs.iter().map(|(name, conf)| (name.as_bytes(), conf.as_bytes())).collect();
        let mut encoder = Encoder::new();
        encoder.prepare_conf_call(&route.key(), &confs);
        let request = ClientRequest::get("/");
        let answer = converse(&mut peer, FrameKind::PrepareConf, &mut encoder, &request, None).await?;
        let token = decode_prepared(&answer.payload)?;
        self.put_back(peer);
        tokens.insert(known, token);
        Ok(token)
    }

    async fn connection(&self) -> Result<Peer, CallError> {
        let pooled = lock(&self.pool).pop();
        if let Some(mut peer) = pooled {
            // A pooled connection that died meanwhile costs nothing.
            if peer.is_quiet() {
                return Ok(peer);
            }
        }
        let stream: Box<dyn Stream> = match &self.connector {
            Connector::Memory { runner, settings, dispatcher, stop } => {
                let made = || Arc::new(runner.dispatcher(settings).expect("plugins with different names"));
                let dispatcher = Arc::clone(dispatcher.get_or_init(made));
                let ((ours, theirs), stop) = (duplex(PIPE), stop.clone());
                tokio::spawn(async move {
                    // Nothing takes over from it.
                    let succession = Succession::new(None);
                    serve_calls(&mut Connection::new(theirs), &dispatcher, &succession, &stop).await
                });
                Box::new(ours)
            }
            Connector::Socket(path) => {
                let connected = timeout(CONNECT, UnixStream::connect(path)).await;
                let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                Box::new(connected.map_err(CallError::Connect)?)
            }
        };
        Ok(Connection::new(stream))
    }

    fn put_back(&self, peer: Peer) {
        let mut pool = lock(&self.pool);
        if pool.len() < POOL {
            pool.push(peer);
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Connector::Memory { stop, .. } = &self.connector {
            stop.cancel();
        }
    }
}

/// Whether a gateway hands on requests with this method.
///
/// ```
/// use apisix_plugin_runner::Method;
/// use apisix_plugin_runner::gateway::hands_on;
///
/// assert!(hands_on(&Method::GET));
/// assert!(!hands_on(&Method::CONNECT));
/// ```
#[must_use]
pub fn hands_on(method: &http::Method) -> bool {
    crate::request::method_number(method).is_some()
}

/// Sends a call and answers the runner's questions until its answer comes.
async fn converse(
    peer: &mut Peer,
    kind: FrameKind,
    encoder: &mut Encoder,
    request: &ClientRequest,
    response_body: Option<&[u8]>,
) -> Result<Frame, CallError> {
    peer.write_frame(kind, encoder.payload()).await.map_err(|_| CallError::Closed)?;
    loop {
        let frame = timeout(READ, peer.read_frame()).await.map_err(|_| CallError::Timeout)??;
        let frame = frame.ok_or(CallError::Closed)?;
        if frame.kind == FrameKind::ExtraInfo {
            let question = decode_question(&frame.payload)?;
            let question =
                question.ok_or_else(|| CallError::Malformed("an unknown kind of question".into()))?;
            encoder.extra_info(answer_question(question, request, response_body)?.as_deref());
            peer.write_frame(FrameKind::ExtraInfo, encoder.payload()).await.map_err(|_| CallError::Closed)?;
        } else if frame.kind == kind {
            return Ok(frame);
        } else if frame.kind == FrameKind::Error {
            return Err(match decode_error(&frame.payload)? {
                ErrorCode::CONF_TOKEN_NOT_FOUND => CallError::UnknownToken,
                code => CallError::Refused(code.0),
            });
        } else {
            return Err(CallError::Malformed(
                format!("an answer of kind {:?} to a {kind:?}", frame.kind).into(),
            ));
        }
    }
}

fn answer_question(
    question: Question<'_>,
    request: &ClientRequest,
    response_body: Option<&[u8]>,
) -> Result<Option<Bytes>, CallError> {
    match question {
        Question::RequestBody => match &request.body {
            Some(body) if body.len() > MAX_BODY => Err(CallError::BodyTooLarge),
            body => Ok(body.clone()),
        },
        Question::ResponseBody => Ok(response_body.map(Bytes::copy_from_slice)),
        Question::Variable(name) => Ok(request.variables.get(name).cloned().unwrap_or_else(|| match name {
            "route_id" => Some("test".into()),
            "remote_addr" => Some(request.source.to_string().into()),
            "scheme" => Some(request.scheme.into()),
            "request_id" => Some("0123456789abcdef0123456789abcdef".into()),
            "real_request_uri" => Some(request.target.clone().into()),
            _ => None,
        })),
    }
}

fn stopped(status: u16, headers: Vec<(Vec<u8>, Vec<u8>)>, body: Vec<u8>) -> ClientResponse {
    let mut headers: Vec<_> = headers.into_iter().map(named).collect();
    if !headers.iter().any(|(name, _)| name == "content-type") {
        headers.push(("content-type".to_owned(), b"text/plain".to_vec()));
    }
    ClientResponse { status: if status == 0 { 200 } else { status }, headers, body }
}

fn named((name, value): (Vec<u8>, Vec<u8>)) -> (String, Vec<u8>) {
    (String::from_utf8_lossy(&name).to_ascii_lowercase(), value)
}

/// Whether the gateway drops an upstream's header when the runner gives no list.
fn dropped_without_list(name: &str) -> bool {
    crate::changes::IGNORED_RESPONSE_HEADERS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only has to compile: an author may call a gateway from a spawned task.
    #[allow(dead_code)]
    fn calls_can_be_spawned(gateway: Gateway, route: Route, request: ClientRequest) {
        fn spawned(_: impl Future + Send + 'static) {}
        spawned(async move {
            let response = ClientResponse::new(200);
            let _ = gateway.call_for_response(&route, &request, &response).await;
            gateway.call(&route, &request).await
        });
    }
}
