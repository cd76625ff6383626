//! One call in, one answer out. What fails closed is decided here.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::answers::{self, ChosenHeader, TooLong};
use crate::changes::Changes;
use crate::conf::{Chain, ChainId, ConfCache};
use crate::connection::{Connection, Frame};
use crate::direct::{DECISION_HEADER, Direct, DirectError};
use crate::extra_info::{Ask, AskError, AskLimits, Asked, ExtraInfo};
use crate::frame::Kind;
use crate::plugin::{Action, PluginError, Registry};
use crate::refusal::{Reader, Refusal};
use crate::request::Request;
use crate::request_id::{REQUEST_ID_WAIT, shown_request_id};
use crate::response::Response;
use crate::stamp::{STAMP_HEADER, Stamper};
use crate::upstream::{Upstream, UpstreamMode};
use crate::wire::{Encoder, ErrorCode, PrepareConf, Question, RequestCall, ResponseCall, decode_extra_info};

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
}

/// Answers calls: the plugins of this process with the confs of its gateway.
pub(crate) struct Runner {
    registry: Registry,
    confs: ConfCache,
    limits: CallLimits,
    stamper: Stamper,
    /// Present where a request can go directly.
    direct: Option<Direct>,
}

/// What becomes of a connection once its call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// The next call may come.
    Keep,
    /// The gateway owes an answer to a question that nobody waits for. It must
    /// be let send it, or it would take the connection's end for our answer.
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
    TooLong(#[from] TooLong),
    #[error("{0}")]
    Direct(DirectError),
}

impl Runner {
    pub(crate) fn new(registry: Registry, confs: ConfCache, limits: CallLimits, stamper: Stamper) -> Self {
        Self { registry, confs, limits, stamper, direct: None }
    }

    /// The same, whose requests can go directly.
    pub(crate) fn with_direct(mut self, direct: Direct) -> Self {
        self.direct = Some(direct);
        self
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
    ) -> std::io::Result<After>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
    {
        let (kind, after) = match frame.kind {
            Kind::PrepareConf => (self.prepare(&frame.payload, encoder), After::Keep),
            Kind::RequestCall => self.request(&frame.payload, connection, encoder).await,
            Kind::ResponseCall => self.response(&frame.payload, connection, encoder).await,
            Kind::Error | Kind::ExtraInfo | Kind::TakeOver => {
                warn!(kind = ?frame.kind, "frame that is no call");
                encoder.error(ErrorCode::BAD_REQUEST);
                (Kind::Error, After::Close)
            }
        };
        connection.write_frame(kind, encoder.payload()).await?;
        Ok(after)
    }

    fn prepare(&self, payload: &[u8], encoder: &mut Encoder) -> Kind {
        match self.prepare_token(payload) {
            Some(token) => {
                encoder.prepared(token);
                Kind::PrepareConf
            }
            None => {
                encoder.error(ErrorCode::BAD_REQUEST);
                Kind::Error
            }
        }
    }

    /// `None` where the conf is refused; the log says why.
    fn prepare_token(&self, payload: &[u8]) -> Option<u32> {
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
        if let Some(token) = self.confs.renew(id) {
            return Some(token);
        }
        let chain = self.prepare_chain(&call)?;
        let plugins: Vec<_> = chain.iter().map(|plugin| plugin.name()).collect();
        let token = self
            .confs
            .insert(id, chain)
            .inspect_err(|error| error!(%error, "no random number for a conf token"))
            .ok()?;
        match plugins.is_empty() {
            true => {
                warn!(key = shown(call.key), "route prepared without a plugin: its requests go on unchanged");
            }
            false => info!(key = shown(call.key), ?plugins, "route prepared"),
        }
        Some(token)
    }

    fn prepare_chain(&self, call: &PrepareConf<'_>) -> Option<Chain> {
        let key = shown(call.key);
        let mut chain = Chain::with_capacity(call.confs.len());
        for (name, conf) in &call.confs {
            let plugin = shown(name);
            // A plugin's own deserialisation is a stranger's code, so it may panic.
            let prepared = std::panic::catch_unwind(AssertUnwindSafe(|| self.registry.prepare(name, conf)));
            match prepared {
                Ok(Some(Ok(prepared))) => chain.push(prepared),
                Ok(Some(Err(error))) => {
                    error!(key, plugin, %error, "conf refused");
                    return None;
                }
                Ok(None) => {
                    error!(key, plugin, known = ?self.registry.names(), "conf refused: no such plugin");
                    return None;
                }
                Err(panic) => {
                    error!(key, plugin, panic = panic_text(&*panic), "conf refused: the plugin panicked");
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
    ) -> (Kind, After)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
    {
        let call = match RequestCall::decode(payload) {
            Ok(call) => call,
            Err(malformed) => {
                // A stop, not an error: at an error a gateway may skip the plugin.
                error!(error = %malformed, "request call refused");
                answers::request_failed(encoder, 0, &unknown_reader(), &shown_request_id(None));
                return (Kind::RequestCall, After::Keep);
            }
        };
        let Some(chain) = self.confs.chain(call.conf_token) else {
            debug!(token = call.conf_token, "unknown conf token");
            encoder.error(ErrorCode::CONF_TOKEN_NOT_FOUND);
            return (Kind::Error, After::Keep);
        };
        let mut asker = ConnectionAsker { connection };
        let extra_info = ExtraInfo::new(&mut asker, self.ask_limits());
        let (id, method) = (call.id, call.method);
        let Some(mut request) = Request::new(call, extra_info, self.limits.bytes) else {
            error!(call = id, method, "request call refused: no such method");
            answers::request_failed(encoder, id, &unknown_reader(), &shown_request_id(None));
            return (Kind::RequestCall, After::Keep);
        };
        let verdict = self.run(self.decide(&chain, &mut request)).await;
        let answered = match verdict {
            Ok((action, Ok(chosen))) => answers::action(encoder, &request, &action, chosen)
                .map_err(|failure| (CallFailure::from(failure), Refusal::RunnerFailed)),
            Ok((_, Err(why))) => Err((CallFailure::Direct(why), why.refusal())),
            Err(failure) => Err((failure, Refusal::RunnerFailed)),
        };
        if let Err((failure, refusal)) = answered {
            match &failure {
                CallFailure::Direct(DirectError::Resolve(_)) => {
                    info!(call = request.id, reason = %failure, "request refused");
                }
                _ => error!(call = request.id, error = %failure, "request call failed"),
            }
            let request_id = request_id(&mut request.extra_info).await;
            let reader = Reader::new(request.method().as_str(), |name| request.header(name));
            answers::request_refused(encoder, request.id, refusal, &reader, &request_id);
        }
        (Kind::RequestCall, after(&request.extra_info))
    }

    /// What the plugins say, and the header that carries their choice of the upstream.
    async fn decide(
        &self,
        chain: &Chain,
        request: &mut Request<'_>,
    ) -> Result<(Action, Result<Option<ChosenHeader>, DirectError>), PluginError> {
        let action = request_verdict(chain, request).await?;
        let chosen = match (&action, &request.changes.upstream) {
            (Action::Continue, Some(upstream)) => self.chosen(upstream, &request.changes).await.map(Some),
            _ => Ok(None),
        };
        Ok((action, chosen))
    }

    async fn chosen(&self, upstream: &Upstream, changes: &Changes) -> Result<ChosenHeader, DirectError> {
        if let Some(direct) = &self.direct
            && direct.ways.way(upstream.scheme(), upstream.mode())? == UpstreamMode::Direct
        {
            let decision = Box::pin(direct.decision(upstream, changes)).await?;
            return Ok((DECISION_HEADER, decision));
        }
        Ok((STAMP_HEADER, self.stamper.stamp(upstream)))
    }

    async fn response<S>(
        &self,
        payload: &Bytes,
        connection: &mut Connection<S>,
        encoder: &mut Encoder,
    ) -> (Kind, After)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync,
    {
        let call = match ResponseCall::decode(payload) {
            Ok(call) => call,
            Err(malformed) => {
                error!(error = %malformed, "response call refused");
                answers::response_failed(encoder, 0, &unknown_reader(), &shown_request_id(None));
                return (Kind::ResponseCall, After::Keep);
            }
        };
        let Some(chain) = self.confs.chain(call.conf_token) else {
            debug!(token = call.conf_token, "unknown conf token");
            encoder.error(ErrorCode::CONF_TOKEN_NOT_FOUND);
            return (Kind::Error, After::Keep);
        };
        let mut asker = ConnectionAsker { connection };
        let extra_info = ExtraInfo::new(&mut asker, self.ask_limits());
        let mut response = Response::new(call, extra_info, self.limits.bytes);
        let looked = self.run(look_at_response(&chain, &mut response)).await;
        if let Err(failure) = looked.and_then(|()| Ok(answers::response(encoder, &response)?)) {
            error!(call = response.id, error = %failure, "response call failed");
            let request_id = request_id(&mut response.extra_info).await;
            answers::response_failed(encoder, response.id, &unknown_reader(), &request_id);
        }
        (Kind::ResponseCall, after(&response.extra_info))
    }

    /// Runs a call's plugins: a panic and a missed deadline end this call alone.
    async fn run<T>(&self, verdict: impl Future<Output = Result<T, PluginError>>) -> Result<T, CallFailure> {
        let mut caught = pin!(AssertUnwindSafe(verdict).catch_unwind());
        // Most plugins decide at once, without a timer to be set.
        let caught = match caught.as_mut().now_or_never() {
            Some(caught) => caught,
            None => match timeout(self.limits.deadline, caught).await {
                Ok(caught) => caught,
                Err(_) => return Err(CallFailure::Deadline(self.limits.deadline)),
            },
        };
        match caught {
            Ok(verdict) => verdict.map_err(CallFailure::Plugin),
            Err(panic) => Err(CallFailure::Panic(panic_text(&*panic).to_owned())),
        }
    }

    fn ask_limits(&self) -> AskLimits {
        AskLimits { questions: self.limits.questions, bytes: self.limits.bytes }
    }
}

async fn request_verdict(chain: &Chain, request: &mut Request<'_>) -> Result<Action, PluginError> {
    for plugin in chain {
        let verdict = plugin.on_request(request).await;
        match verdict.map_err(|error| PluginError::from(format!("{}: {error}", plugin.name())))? {
            Action::Continue => request.end_plugin(),
            stop @ Action::Stop(_) => return Ok(stop),
        }
    }
    Ok(Action::Continue)
}

async fn look_at_response(chain: &Chain, response: &mut Response<'_>) -> Result<(), PluginError> {
    for plugin in chain {
        let looked = plugin.on_response(response).await;
        looked.map_err(|error| PluginError::from(format!("{}: {error}", plugin.name())))?;
    }
    Ok(())
}

fn after(extra_info: &ExtraInfo<'_>) -> After {
    match extra_info.is_abandoned() {
        true => After::TakeLateAnswer,
        false => After::Keep,
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// The request's id as the gateway knows it, or one of our own where it can't be
/// had in time.
async fn request_id(extra_info: &mut ExtraInfo<'_>) -> String {
    let asked = timeout(REQUEST_ID_WAIT, extra_info.variable("request_id")).await;
    shown_request_id(asked.ok().and_then(Result::ok).flatten().as_deref())
}

/// A text of the gateway's for the log, not as long as it may please.
fn shown(text: &[u8]) -> String {
    text.iter().take(MAX_SHOWN).copied().flat_map(std::ascii::escape_default).map(char::from).collect()
}

/// Of a call that could not be read, nobody knows what its client can read.
fn unknown_reader() -> Reader {
    Reader::new("", |_| None)
}

/// Asks on the connection of the call itself, as the protocol wants it.
struct ConnectionAsker<'c, S> {
    connection: &'c mut Connection<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Ask for ConnectionAsker<'_, S> {
    fn ask<'a>(&'a mut self, question: Question<'a>) -> Asked<'a> {
        Box::pin(async move {
            let mut encoder = Encoder::new();
            encoder.question(question);
            self.connection.write_frame(Kind::ExtraInfo, encoder.payload()).await?;
            let Some(frame) = self.connection.read_frame().await? else { return Err(AskError::Closed) };
            if frame.kind != Kind::ExtraInfo {
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
    use crate::stamp::StampKey;

    struct Nothing;

    impl Plugin for Nothing {
        const NAME: &'static str = "nothing";
        type Config = ();

        async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
            Ok(Action::Continue)
        }
    }

    fn runner() -> Runner {
        let mut registry = Registry::default();
        assert!(registry.add(Nothing));
        let limits = CallLimits { deadline: Duration::from_secs(5), questions: 1, bytes: 1 };
        let stamper = Stamper { key: StampKey::random().unwrap(), lifetime: Duration::from_secs(60) };
        Runner::new(registry, ConfCache::new(Duration::from_secs(3600), 10), limits, stamper)
    }

    fn token(name: &str, conf: &str, times: usize) -> Option<u32> {
        let mut encoder = Encoder::new();
        encoder.repeated_conf(name.as_bytes(), conf.as_bytes(), times);
        runner().prepare_token(encoder.payload())
    }

    #[tokio::test]
    async fn a_conf_that_is_repeated_by_reference_is_refused_before_it_is_read() {
        assert!(token("nothing", "null", 1).is_some());
        assert!(token("nothing", "", 5).is_some(), "a plugin may be there more than once");
        assert_eq!(token("nothing", &" ".repeat(1000), 64), None);
        assert_eq!(token("", "", MAX_CHAIN + 1), None);
    }

    #[test]
    fn what_goes_to_the_log_is_short_and_plain() {
        assert_eq!(shown(b"a\nb\xff"), "a\\nb\\xff");
        assert_eq!(shown(&[b'a'; 1000]).len(), MAX_SHOWN);
    }

    #[test]
    fn failures_say_what_happened() {
        let failures = [
            (CallFailure::Plugin("why".into()), "why"),
            (CallFailure::Panic("why".to_owned()), "panicked: why"),
            (CallFailure::Deadline(Duration::from_secs(5)), "no answer within 5s"),
            (CallFailure::TooLong(TooLong), "the answer is longer than a frame can be, 16777215 bytes"),
        ];
        for (failure, text) in failures {
            assert_eq!(failure.to_string(), text);
        }
    }
}
