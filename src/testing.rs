//! A gateway to test plugins against: it speaks to a runner as Apache APISIX
//! 3.18 does, over a connection in memory or over a real socket.
//!
//! ```
//! use kube_coders::testing::{ClientRequest, Gateway, Outcome, Route};
//! use kube_coders::{Action, Plugin, PluginError, Request};
//!
//! struct Hello;
//!
//! impl Plugin for Hello {
//!     const NAME: &'static str = "hello";
//!     type Config = ();
//!
//!     async fn on_request(&self, _: &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
//!         request.set_header("x-hello", "world")?;
//!         Ok(Action::Continue)
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let gateway = Gateway::with_plugin(Hello);
//! let route = Route::new("greetings").plugin("hello", "null");
//! let outcome = gateway.call(&route, &ClientRequest::get("/")).await;
//! let Outcome::Forward(forwarded) = outcome else { panic!("{outcome:?}") };
//! assert_eq!(forwarded.header("x-hello"), Some(&b"world"[..]));
//! # });
//! ```

mod exchange;
mod name_server;
mod outcome;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::conf::ConfCache;
use crate::connection::{Connection, Frame};
use crate::frame::Kind;
use crate::plugin::{Plugin, Registry};
use crate::runner::{CallLimits, Runner};
use crate::server::serve_calls;
use crate::stamp::{StampKey, Stamper};
use crate::takeover::Succession;
use crate::wire::gateway_side::{
    RequestAnswer, Rewrite, decode_error, decode_prepared, decode_question, decode_request_answer,
    decode_response_answer,
};
use crate::wire::{Encoder, ErrorCode, Question};

pub use exchange::{ClientRequest, ForwardedRequest};
pub use name_server::{Mode, NameServer};
pub use outcome::{Answer, CallError, Outcome, Route};

/// How many idle connections a gateway's worker keeps (GATEWAY.md, Connections).
const POOL: usize = 32;

/// How often a call is tried when the runner does not know its conf token
/// (GATEWAY.md, PrepareConf).
const TRIES: usize = 3;

/// How long a gateway waits for a connection, and for an answer (GATEWAY.md,
/// Connections).
const CONNECT: Duration = Duration::from_secs(1);
const READ: Duration = Duration::from_secs(60);

/// How many bytes a connection in memory holds.
const PIPE: usize = 64 * 1024;

/// How large a request's body may be for a plugin that asks for it.
const MAX_BODY: usize = 16 * 1024 * 1024;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

type Peer = Connection<Box<dyn Stream>>;

enum Connector {
    Memory(Arc<Runner>, CancellationToken),
    Socket(PathBuf),
}

/// A stand-in for one worker of a gateway.
///
/// It keeps 32 idle connections, prepares a route once under a lock of all
/// routes, repeats a call whose token is unknown, and applies a rewrite as the
/// real one does. It waits for an answer as long as the real one, 60 s.
pub struct Gateway {
    connector: Connector,
    pool: std::sync::Mutex<Vec<Peer>>,
    tokens: Mutex<HashMap<String, u32>>,
    calls: AtomicU32,
}

impl Gateway {
    /// A gateway with a runner of its own that has one plugin.
    ///
    /// # Panics
    ///
    /// Where the system has no random numbers.
    #[must_use]
    pub fn with_plugin<P: Plugin>(plugin: P) -> Self {
        Self::with_plugins(|plugins| plugins.add(plugin))
    }

    /// A gateway with a runner of its own that has the plugins that the closure
    /// adds.
    ///
    /// # Panics
    ///
    /// If two plugins have the same name, or the system has no random numbers.
    #[must_use]
    pub fn with_plugins(add: impl FnOnce(&mut Plugins)) -> Self {
        let mut plugins = Plugins(Registry::default());
        add(&mut plugins);
        let limits = CallLimits { deadline: Duration::from_secs(5), questions: 64, bytes: 32 << 20 };
        Self::with_registry(plugins.0, limits)
    }

    pub(crate) fn with_registry(registry: Registry, limits: CallLimits) -> Self {
        let key = StampKey::random().expect("the system has random numbers");
        let stamper = Stamper { key, lifetime: Duration::from_secs(60) };
        let confs = ConfCache::new(Duration::from_secs(3600), 1000);
        Self::with_runner(Runner::new(registry, confs, limits, stamper))
    }

    pub(crate) fn with_runner(runner: Runner) -> Self {
        Self::new(Connector::Memory(Arc::new(runner), CancellationToken::new()))
    }

    /// A gateway that connects to a runner's unix socket.
    #[must_use]
    pub fn connect(path: impl AsRef<Path>) -> Self {
        Self::new(Connector::Socket(path.as_ref().to_owned()))
    }

    fn new(connector: Connector) -> Self {
        Self {
            connector,
            pool: std::sync::Mutex::default(),
            tokens: Mutex::default(),
            calls: AtomicU32::new(1),
        }
    }

    /// Calls the runner for a request and does what it says.
    ///
    /// A call that fails becomes the answer that a client would get: 503, or 500
    /// where the runner's answer is malformed.
    pub async fn call(&self, route: &Route, request: &ClientRequest) -> Outcome {
        match self.try_call(route, request).await {
            Ok(outcome) => outcome,
            Err(CallError::Malformed(_)) => Outcome::Answer(Answer::new(500)),
            Err(_) if route.allow_degradation => Outcome::Forward(request.rewritten(&Rewrite::default())),
            Err(_) => Outcome::Answer(Answer::new(503)),
        }
    }

    /// Calls the runner for a request, and says why where that fails.
    ///
    /// # Errors
    ///
    /// As [`CallError`] lists them.
    pub async fn try_call(&self, route: &Route, request: &ClientRequest) -> Result<Outcome, CallError> {
        Ok(match self.decide(route, request).await? {
            RequestAnswer::Unchanged => Outcome::Forward(request.rewritten(&Rewrite::default())),
            RequestAnswer::Rewrite(rewrite) => Outcome::Forward(request.rewritten(&rewrite)),
            RequestAnswer::Stop { status, headers, body } => Outcome::Answer(stopped(status, headers, body)),
        })
    }

    /// The runner's answer to a request call, before a gateway acts on it.
    pub(crate) async fn decide(
        &self,
        route: &Route,
        request: &ClientRequest,
    ) -> Result<RequestAnswer, CallError> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut parts = request.to_parts(id);
        let encode = |token, encoder: &mut Encoder| {
            parts.conf_token = token;
            encoder.request_call(&parts);
        };
        let answer = self.with_token(route, Kind::RequestCall, encode, request, None).await?;
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
        response: &Answer,
    ) -> Result<Answer, CallError> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let headers: Vec<_> =
            response.headers.iter().map(|(name, value)| (name.as_bytes(), Some(&value[..]))).collect();
        let encode = |token, encoder: &mut Encoder| {
            encoder.response_call(id, token, response.status, &headers);
        };
        let body = Some(&response.body[..]);
        let answer = self.with_token(route, Kind::ResponseCall, encode, request, body).await?;
        let (_, answer) = decode_response_answer(&answer.payload)?;
        let headers = match answer.headers.is_empty() {
            false => answer.headers.into_iter().map(named).collect(),
            true => {
                response.headers.iter().filter(|(name, _)| !dropped_without_list(name)).cloned().collect()
            }
        };
        Ok(Answer {
            status: if answer.status == 0 { response.status } else { answer.status },
            headers,
            body: if answer.body.is_empty() { response.body.clone() } else { answer.body },
        })
    }

    /// Whether the runner answers at all: it is asked with a token that no
    /// runner gives, so that nothing is kept there.
    pub(crate) async fn probe(&self) -> Result<(), CallError> {
        let mut peer = self.connection().await?;
        let request = ClientRequest::get("/");
        let mut encoder = Encoder::new();
        encoder.request_call(&request.to_parts(0));
        match converse(&mut peer, Kind::RequestCall, &mut encoder, &request, None).await {
            Err(CallError::UnknownToken) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(CallError::Malformed("an answer to a token that was not given".into())),
        }
    }

    /// Sends a call with the route's token, on a connection from the pool, again
    /// with a new token where the runner does not know it.
    ///
    /// The closure encodes and does not send: with an async one the future would
    /// not be `Send`, and a gateway could not be called from a spawned task.
    async fn with_token(
        &self,
        route: &Route,
        kind: Kind,
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
        let answer = converse(&mut peer, Kind::PrepareConf, &mut encoder, &request, None).await?;
        let token = decode_prepared(&answer.payload)?;
        self.put_back(peer);
        tokens.insert(known, token);
        Ok(token)
    }

    async fn connection(&self) -> Result<Peer, CallError> {
        let pooled = self.pool.lock().expect("nothing panics while it holds the pool").pop();
        if let Some(mut peer) = pooled {
            // A pooled connection that died meanwhile costs nothing.
            if peer.is_quiet() {
                return Ok(peer);
            }
        }
        let stream: Box<dyn Stream> = match &self.connector {
            Connector::Memory(runner, stop) => {
                let (ours, theirs) = duplex(PIPE);
                let (runner, stop) = (Arc::clone(runner), stop.clone());
                tokio::spawn(async move {
                    // Nobody takes over from it.
                    let succession = Succession::new(None);
                    serve_calls(&mut Connection::new(theirs), &runner, &succession, &stop).await
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
        let mut pool = self.pool.lock().expect("nothing panics while it holds the pool");
        if pool.len() < POOL {
            pool.push(peer);
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Connector::Memory(_, stop) = &self.connector {
            stop.cancel();
        }
    }
}

/// Plugins for a stand-in's own runner.
pub struct Plugins(Registry);

impl Plugins {
    /// Adds a plugin.
    ///
    /// # Panics
    ///
    /// If one of this name is there already.
    pub fn add<P: Plugin>(&mut self, plugin: P) {
        assert!(self.0.add(plugin), "two plugins are named {:?}", P::NAME);
    }
}

/// Sends a call and answers the runner's questions until its answer comes.
async fn converse(
    peer: &mut Peer,
    kind: Kind,
    encoder: &mut Encoder,
    request: &ClientRequest,
    response_body: Option<&[u8]>,
) -> Result<Frame, CallError> {
    peer.write_frame(kind, encoder.payload()).await.map_err(|_| CallError::Closed)?;
    loop {
        let frame = timeout(READ, peer.read_frame()).await.map_err(|_| CallError::Timeout)??;
        let frame = frame.ok_or(CallError::Closed)?;
        if frame.kind == Kind::ExtraInfo {
            let question = decode_question(&frame.payload)?;
            let question =
                question.ok_or_else(|| CallError::Malformed("an unknown kind of question".into()))?;
            encoder.extra_info(answer_question(question, request, response_body)?.as_deref());
            peer.write_frame(Kind::ExtraInfo, encoder.payload()).await.map_err(|_| CallError::Closed)?;
        } else if frame.kind == kind {
            return Ok(frame);
        } else if frame.kind == Kind::Error {
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

fn stopped(status: u16, headers: Vec<(Vec<u8>, Vec<u8>)>, body: Vec<u8>) -> Answer {
    let mut headers: Vec<_> = headers.into_iter().map(named).collect();
    if !headers.iter().any(|(name, _)| name == "content-type") {
        headers.push(("content-type".to_owned(), b"text/plain".to_vec()));
    }
    Answer { status: if status == 0 { 200 } else { status }, headers, body }
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

    /// Only has to compile: an author may call from a task of their own.
    #[allow(dead_code)]
    fn calls_can_be_spawned(gateway: Gateway, route: Route, request: ClientRequest) {
        fn spawned(_: impl Future + Send + 'static) {}
        spawned(async move {
            let response = Answer::new(200);
            let _ = gateway.call_for_response(&route, &request, &response).await;
            gateway.call(&route, &request).await
        });
    }
}
