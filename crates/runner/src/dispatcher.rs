//! One call in, one answer out. What fails closed is decided here.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use apisix_ext_plugin::frame::FrameKind;
use apisix_ext_plugin::payload::{
    Encoder, ErrorCode, PrepareConf, Question, RequestCall, ResponseCall, decode_extra_info,
};
use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use crate::answers::{self, AnswerError};
use crate::call_context::{CallContext, within};
use crate::carrier::{Carried, Carrier, CarrierError, Choice};
use crate::chains::{Chain, ChainId, ConfCache};
use crate::connection::{Connection, Frame};
use crate::containment::{contain_drop, panic_text, poll_caught};
use crate::extra_info::{AnswerFuture, Ask, AskError, AskLimits, ExtraInfo};
use crate::failure::{FailedCall, FailureAnswers, ProblemAnswers, RUNNER_FAILED};
use crate::plugin::{Action, PluginError};
use crate::registry::{PREPARE_DEADLINE, Prepared, Registry};
use crate::request::{NotCached, Request};
use crate::request_id::{REQUEST_ID_WAIT, shown_request_id};
use crate::response::Response;
use crate::single_poll::now_or_never;
use crate::stop::Stop;

/// How many plugins one chain may have.
const MAX_CHAIN: usize = 100;

/// How much of a name or key goes to the log, in bytes. APISIX allows a plugin's
/// name 128 characters.
const MAX_SHOWN: usize = 256;

/// What one call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallLimits {
    pub(crate) deadline: Duration,
    /// How many questions a call may ask the gateway.
    pub(crate) questions: usize,
    /// How many bytes are copied for a call: answers to its questions, and as
    /// many again for its changes.
    pub(crate) bytes: usize,
    /// Whether each call asks for the request's id, so that every line of the log has it.
    pub(crate) asks_request_id: bool,
}

/// Answers calls: the plugins of this process with the confs of its gateway.
pub(crate) struct Dispatcher {
    registry: Registry,
    confs: ConfCache,
    limits: CallLimits,
    carrier: Option<Arc<dyn Carrier>>,
    failures: Arc<dyn FailureAnswers>,
}

/// What becomes of a connection once its call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterCall {
    /// The next call may come.
    Keep,
    /// The gateway still owes an answer to an abandoned question. If the connection closed
    /// before that, the gateway would take its end for our answer.
    TakeLateAnswer,
    /// The peer does not speak the protocol.
    Close,
}

/// A call that no plugin answered.
#[derive(Debug, Error)]
enum CallFailure {
    #[error("{0}")]
    Plugin(PluginError),
    #[error("panicked: {0}")]
    Panic(String),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Deadline(Duration),
    #[error("{0}")]
    Answer(#[from] AnswerError),
    #[error("{0}")]
    Carrier(CarrierError),
}

impl CallFailure {
    fn code(&self) -> &'static str {
        match self {
            Self::Carrier(error) => error.code(),
            _ => RUNNER_FAILED,
        }
    }
}

impl Dispatcher {
    pub(crate) fn new(registry: Registry, confs: ConfCache, limits: CallLimits) -> Self {
        Self { registry, confs, limits, carrier: None, failures: Arc::new(ProblemAnswers) }
    }

    /// Lets plugins choose the upstream.
    pub(crate) fn with_carrier(mut self, carrier: Option<Arc<dyn Carrier>>) -> Self {
        self.carrier = carrier;
        self
    }

    /// Replaces the answers to calls that could not be decided.
    pub(crate) fn with_failures(mut self, failures: Option<Arc<dyn FailureAnswers>>) -> Self {
        self.failures = failures.unwrap_or(self.failures);
        self
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Answers one call on its connection.
    ///
    /// # Errors
    ///
    /// If the answer can't be written.
    pub(crate) async fn answer<S>(
        &self,
        frame: &Frame,
        connection: &mut Connection<S>,
        encoder: &mut Encoder,
    ) -> std::io::Result<AfterCall>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
    {
        let (kind, after) = match frame.kind {
            FrameKind::PrepareConf => (self.prepare(&frame.payload, encoder).await, AfterCall::Keep),
            FrameKind::RequestCall => self.request(&frame.payload, connection, encoder).await,
            FrameKind::ResponseCall => self.response(&frame.payload, connection, encoder).await,
            FrameKind::Error | FrameKind::ExtraInfo => {
                warn!(kind = ?frame.kind, "frame that is no call");
                encoder.error(ErrorCode::BAD_REQUEST);
                (FrameKind::Error, AfterCall::Close)
            }
        };
        connection.write_frame(kind, encoder.payload()).await?;
        Ok(after)
    }

    async fn prepare(&self, payload: &[u8], encoder: &mut Encoder) -> FrameKind {
        match self.prepare_token(payload).await {
            Some(token) => {
                encoder.prepared(token);
                FrameKind::PrepareConf
            }
            None => {
                encoder.error(ErrorCode::BAD_REQUEST);
                FrameKind::Error
            }
        }
    }

    /// Returns `None` if the conf is refused; the log says why.
    async fn prepare_token(&self, payload: &[u8]) -> Option<u32> {
        let call = PrepareConf::decode(payload)
            .inspect_err(|malformed| error!(error = %malformed, "PrepareConf refused"))
            .ok()?;
        let bytes: usize = call.confs.iter().map(|(name, conf)| name.len() + conf.len()).sum();
        // A payload may refer to one text many times; hashing it all would take for ever.
        if call.confs.len() > MAX_CHAIN || bytes > payload.len() {
            error!(plugins = call.confs.len(), limit = MAX_CHAIN, bytes, "conf refused: too many plugins");
            return None;
        }
        let id = ChainId::of(&call.confs);
        let route = route_of(call.key);
        let no_number = |error: &getrandom::Error| error!(%error, "no random number for a conf token");
        if let Some(token) = self.confs.renew(id, route).inspect_err(no_number).ok()? {
            return Some(token);
        }
        let chain = self.prepare_chain(&call, Instant::now() + PREPARE_DEADLINE).await?;
        let plugins: Vec<_> = chain.iter().map(|plugin| plugin.name()).collect();
        let token = self.confs.insert(id, bytes, chain, route).inspect_err(no_number).ok()?;
        match plugins.is_empty() {
            true => {
                warn!(key = shown(call.key), "route prepared without a plugin: its requests go on unchanged");
            }
            false => info!(key = shown(call.key), plugins = plugins.join(","), "route prepared"),
        }
        Some(token)
    }

    /// Prepares the plugins in turn, which have the deadline in common.
    async fn prepare_chain(&self, call: &PrepareConf<'_>, deadline: Instant) -> Option<Chain> {
        let key = shown(call.key);
        let mut chain = Chain::with_capacity(call.confs.len());
        for (name, conf) in &call.confs {
            let plugin = shown(name);
            match self.registry.prepare(name, conf, deadline).await {
                Some(Ok(prepared)) => chain.push(prepared),
                Some(Err(error)) => {
                    error!(key, plugin, %error, "conf refused");
                    return None;
                }
                None => {
                    error!(
                        key,
                        plugin,
                        known = self.registry.names().join(","),
                        "conf refused: no such plugin"
                    );
                    return None;
                }
            }
        }
        Some(chain)
    }

    async fn request<S>(
        &self,
        payload: &Bytes,
        connection: &mut Connection<S>,
        encoder: &mut Encoder,
    ) -> (FrameKind, AfterCall)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
    {
        let call = match RequestCall::decode(payload) {
            Ok(call) => call,
            Err(malformed) => {
                error!(error = %malformed, "request call refused");
                answers::request_failed(encoder, 0, &self.unread_call_answer());
                return (FrameKind::RequestCall, AfterCall::Keep);
            }
        };
        let Some((chain, route)) = self.confs.chain(call.conf_token) else {
            debug!(token = call.conf_token, "unknown conf token");
            encoder.error(ErrorCode::CONF_TOKEN_NOT_FOUND);
            return (FrameKind::Error, AfterCall::Keep);
        };
        let context = CallContext::next(route.as_ref());
        let mut asker = ConnectionAsker { connection };
        let extra_info = ExtraInfo::new(&mut asker, self.ask_limits()).with_context(context.as_ref());
        let (id, method) = (call.id, call.method);
        let Some(mut request) = Request::new(call, extra_info, self.limits.bytes, self.carrier.is_some())
        else {
            error!(call = id, method, "request call refused: no such method");
            answers::request_failed(encoder, id, &self.unread_call_answer());
            return (FrameKind::RequestCall, AfterCall::Keep);
        };
        request.route = route;
        if self.limits.asks_request_id {
            request_id(&mut request.extra_info).await;
        }
        let verdict = self.run(self.decide(&chain, &mut request, context.as_ref())).await;
        let answered = match verdict {
            Ok((action, Ok(carried))) => {
                answers::action(encoder, &request, &action, carried).map_err(CallFailure::from)
            }
            Ok((_, Err(why))) => Err(CallFailure::Carrier(why)),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = answered {
            let request_id = request_id(&mut request.extra_info).await;
            match &failure {
                CallFailure::Carrier(error) if error.is_expected() => {
                    info!(call = request.id, request_id, reason = %failure, "request refused");
                }
                _ => error!(call = request.id, request_id, error = %failure, "request call failed"),
            }
            let failed = FailedCall::new(failure.code(), &request_id, Some(&request));
            answers::request_failed(encoder, request.id, &self.failures.answer(failed));
        }
        (FrameKind::RequestCall, after(&request.extra_info))
    }

    /// What the plugins say, and the header that carries their choice of upstream.
    async fn decide(
        &self,
        chain: &Chain,
        request: &mut Request<'_>,
        context: Option<&Arc<CallContext>>,
    ) -> Result<(Action, Result<Option<Carried>, CarrierError>), PluginError> {
        let action = request_verdict(chain, request, context).await?;
        let carried = match (&action, &request.changes.upstream, &self.carrier) {
            (Action::Continue, Some(upstream), Some(carrier)) => {
                carrier.carry(Choice::new(upstream, request)).await.map(Some)
            }
            _ => Ok(None),
        };
        Ok((action, carried))
    }

    /// The answer to a call that could not be read. It is a stop, because the gateway may skip
    /// the plugin after an error.
    fn unread_call_answer(&self) -> Stop {
        self.failures.answer(FailedCall::new(RUNNER_FAILED, &shown_request_id(None), None))
    }

    async fn response<S>(
        &self,
        payload: &Bytes,
        connection: &mut Connection<S>,
        encoder: &mut Encoder,
    ) -> (FrameKind, AfterCall)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
    {
        let call = match ResponseCall::decode(payload) {
            Ok(call) => call,
            Err(malformed) => {
                error!(error = %malformed, "response call refused");
                answers::response_failed(encoder, 0, &self.unread_call_answer());
                return (FrameKind::ResponseCall, AfterCall::Keep);
            }
        };
        let Some((chain, route)) = self.confs.chain(call.conf_token) else {
            debug!(token = call.conf_token, "unknown conf token");
            encoder.error(ErrorCode::CONF_TOKEN_NOT_FOUND);
            return (FrameKind::Error, AfterCall::Keep);
        };
        let context = CallContext::next(route.as_ref());
        let mut asker = ConnectionAsker { connection };
        let extra_info = ExtraInfo::new(&mut asker, self.ask_limits()).with_context(context.as_ref());
        let mut response = Response::new(call, extra_info, self.limits.bytes);
        let looked = self.run(look_at_response(&chain, &mut response, context.as_ref())).await;
        if let Err(failure) = looked.and_then(|()| Ok(answers::response(encoder, &response)?)) {
            let request_id = request_id(&mut response.extra_info).await;
            error!(call = response.id, request_id, error = %failure, "response call failed");
            let failed = FailedCall::new(RUNNER_FAILED, &request_id, None);
            answers::response_failed(encoder, response.id, &self.failures.answer(failed));
        }
        (FrameKind::ResponseCall, after(&response.extra_info))
    }

    /// Runs a call's plugins: a panic and a missed deadline end this call alone.
    async fn run<T>(&self, verdict: impl Future<Output = Result<T, PluginError>>) -> Result<T, CallFailure> {
        let mut verdict = pin!(Some(verdict));
        let decided = {
            let mut caught = pin!(std::future::poll_fn(|task| {
                poll_caught(verdict.as_mut().as_pin_mut().expect("it is dropped only below"), task)
            }));
            // Most plugins decide immediately, so no timer is set.
            match now_or_never(caught.as_mut()) {
                Some(caught) => Ok(caught),
                None => timeout(self.limits.deadline, caught).await,
            }
        };
        match decided {
            Ok(Ok(verdict)) => verdict.map_err(CallFailure::Plugin),
            Ok(Err(panic)) => Err(CallFailure::Panic(panic_text(&*panic).to_owned())),
            Err(_) => {
                contain_drop("a plugin's future", || verdict.set(None));
                Err(CallFailure::Deadline(self.limits.deadline))
            }
        }
    }

    fn ask_limits(&self) -> AskLimits {
        AskLimits { questions: self.limits.questions, bytes: self.limits.bytes }
    }
}

async fn request_verdict(
    chain: &Chain,
    request: &mut Request<'_>,
    context: Option<&Arc<CallContext>>,
) -> Result<Action, PluginError> {
    for plugin in chain {
        request.begin_plugin(plugin.cache_key());
        // Each future around another is moved and polled once more in every call.
        let verdict = match (context, plugin.deadline()) {
            (None, None) => plugin.on_request(request).await,
            _ => within(context, plugin.name(), limited(&**plugin, plugin.on_request(request))).await,
        };
        match verdict.map_err(|error| PluginError::from(format!("{}: {error}", plugin.name())))? {
            Action::Continue => {
                if let Err(reason) = request.end_plugin() {
                    report_not_cached(&**plugin, &reason);
                }
            }
            stop @ Action::Stop(_) => return Ok(stop),
        }
    }
    request.finish();
    Ok(Action::Continue)
}

/// Says why a decision is not cached although its plugin allows it. An author has to see
/// this once, and not for each request.
#[cold]
fn report_not_cached(plugin: &dyn Prepared, reason: &NotCached) {
    let plugin_name = plugin.name();
    match plugin.note_not_cached() {
        true => warn!(plugin = plugin_name, %reason, "decision not cached"),
        false => debug!(plugin = plugin_name, %reason, "decision not cached"),
    }
}

async fn look_at_response(
    chain: &Chain,
    response: &mut Response<'_>,
    context: Option<&Arc<CallContext>>,
) -> Result<(), PluginError> {
    for plugin in chain {
        let looked = within(context, plugin.name(), limited(&**plugin, plugin.on_response(response))).await;
        looked.map_err(|error| PluginError::from(format!("{}: {error}", plugin.name())))?;
    }
    Ok(())
}

/// Holds a plugin to its own deadline, if it has one.
async fn limited<T>(
    plugin: &dyn Prepared,
    deciding: impl Future<Output = Result<T, PluginError>>,
) -> Result<T, PluginError> {
    let Some(deadline) = plugin.deadline() else { return deciding.await };
    match timeout(deadline, deciding).await {
        Ok(decided) => decided,
        Err(_) => Err(format!("no answer within {}", humantime::format_duration(deadline)).into()),
    }
}

/// The id of the route that a PrepareConf's key names: `route#<id>#<plugin>#<version>`, or
/// with a service `route&service#<id>&<service>#<plugin>#<version>` (docs/gateway.md,
/// PrepareConf). `None` for a key of another form.
fn route_of(key: &[u8]) -> Option<&str> {
    let key = std::str::from_utf8(key).ok()?;
    let mut parts = key.split('#');
    match (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()) {
        (kind, ids, plugin, _, None) if plugin.starts_with("ext-plugin-") => {
            // An id has no `&`, so there are as many ids as kinds, and the first is the route's.
            let is_route = kind.split('&').next() == Some("route");
            let as_many = kind.split('&').count() == ids.split('&').count();
            ids.split('&').next().filter(|id| is_route && as_many && !id.is_empty())
        }
        _ => None,
    }
}

fn after(extra_info: &ExtraInfo<'_>) -> AfterCall {
    match extra_info.is_abandoned() {
        true => AfterCall::TakeLateAnswer,
        false => AfterCall::Keep,
    }
}

/// The request's id as the gateway knows it, or one of our own if the gateway's does not
/// come in time.
async fn request_id(extra_info: &mut ExtraInfo<'_>) -> String {
    let asked = timeout(REQUEST_ID_WAIT, extra_info.variable("request_id")).await;
    shown_request_id(asked.ok().and_then(Result::ok).flatten().as_deref())
}

/// A text of the gateway's for the log, not as long as it may please.
fn shown(text: &[u8]) -> String {
    text.iter().take(MAX_SHOWN).copied().flat_map(std::ascii::escape_default).map(char::from).collect()
}

/// Asks on the connection of the call itself, as the protocol wants it.
struct ConnectionAsker<'c, S> {
    connection: &'c mut Connection<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Ask for ConnectionAsker<'_, S> {
    fn ask<'a>(&'a mut self, question: Question<'a>) -> AnswerFuture<'a> {
        Box::pin(async move {
            let mut encoder = Encoder::new();
            encoder.question(question);
            self.connection.write_frame(FrameKind::ExtraInfo, encoder.payload()).await?;
            let Some(frame) = self.connection.read_frame().await? else { return Err(AskError::Closed) };
            if frame.kind != FrameKind::ExtraInfo {
                return Err(AskError::Unexpected);
            }
            Ok(decode_extra_info(&frame.payload)?.map(|result| frame.payload.slice_ref(result)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Plugin;

    struct Nothing;

    impl Plugin for Nothing {
        const NAME: &'static str = "nothing";
        type Config = ();

        async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
            Ok(Action::Continue)
        }
    }

    fn dispatcher() -> Dispatcher {
        let mut registry = Registry::default();
        registry.add(Nothing);
        let limits =
            CallLimits { deadline: Duration::from_secs(5), questions: 1, bytes: 1, asks_request_id: false };
        Dispatcher::new(registry, ConfCache::new(Duration::from_secs(3600), 10), limits)
    }

    async fn token(name: &str, conf: &str, times: usize) -> Option<u32> {
        let mut encoder = Encoder::new();
        encoder.repeated_conf(name.as_bytes(), conf.as_bytes(), times);
        dispatcher().prepare_token(encoder.payload()).await
    }

    #[tokio::test]
    async fn a_conf_that_is_repeated_by_reference_is_refused_before_it_is_read() {
        assert!(token("nothing", "null", 1).await.is_some());
        assert!(token("nothing", "", 5).await.is_some(), "a plugin may be there more than once");
        assert_eq!(token("nothing", &" ".repeat(1000), 64).await, None);
        assert_eq!(token("", "", MAX_CHAIN + 1).await, None);
    }

    #[test]
    fn log_text_is_short_and_plain() {
        assert_eq!(shown(b"a\nb\xff"), "a\\nb\\xff");
        assert_eq!(shown(&[b'a'; 1000]).len(), MAX_SHOWN);
    }

    #[test]
    fn a_route_is_named_only_by_a_key_of_the_known_form() {
        for (key, route) in [
            ("route#r1#ext-plugin-pre-req#1795346860", Some("r1")),
            ("route&service#r1&s1#ext-plugin-pre-req#1&2", Some("r1")),
            ("route&service&consumer#r1&s1&tom#ext-plugin-pre-req#1", Some("r1")),
            ("route&service#r1#ext-plugin-pre-req#1", None),
            ("route#r1&s1#ext-plugin-pre-req#1", None),
            ("route&service#&s1#ext-plugin-pre-req#1", None),
            ("service#s1#ext-plugin-pre-req#1", None),
            ("route#r#1#ext-plugin-pre-req#1", None),
            ("route##ext-plugin-pre-req#1", None),
            ("route#r1", None),
            ("", None),
        ] {
            assert_eq!(route_of(key.as_bytes()), route, "{key}");
        }
        assert_eq!(route_of(b"route#\xff#ext-plugin-pre-req#1"), None);
    }

    #[test]
    fn failures_say_what_happened() {
        let failures = [
            (CallFailure::Plugin("why".into()), "why"),
            (CallFailure::Panic("why".to_owned()), "panicked: why"),
            (CallFailure::Deadline(Duration::from_secs(5)), "no answer within 5s"),
            (
                CallFailure::Answer(AnswerError::TooLong),
                "the answer is longer than a frame can be, 16777215 bytes",
            ),
        ];
        for (failure, text) in failures {
            assert_eq!(failure.to_string(), text);
        }
    }
}
