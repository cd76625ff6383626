//! The fuzz targets `frames` and `takeover`: whatever a peer of the runner's sockets sends,
//! the runner answers in its protocol or closes the connection, and does not hang.

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use apisix_ext_plugin::frame::{FrameHeader, FrameKind, HEADER};
use apisix_ext_plugin::gateway_side::{
    decode_error, decode_prepared, decode_question, decode_request_answer, decode_response_answer,
};
use apisix_ext_plugin::payload::Encoder;
use http::{HeaderName, StatusCode};
use serde::Deserialize;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::carrier::{Carried, Carrier, CarrierFuture, Choice};
use crate::connection::Connection;
use crate::cookies::{CookieNames, EditedCookies};
use crate::dispatcher::Dispatcher;
use crate::listener::server::serve_calls;
use crate::listener::takeover::Succession;
use crate::listener::takeover::fuzzing::{predecessor, successor};
use crate::plugin::{Action, Plugin, PluginError};
use crate::request::Request;
use crate::response::Response;
use crate::runner::Runner;
use crate::settings::Settings;
use crate::stop::Stop;

/// How long a step may take. No step waits for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// The corpus's calls have this instead of a conf token, which is a random number.
const TOKEN: [u8; 4] = *b"tokn";

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

static SERVED: LazyLock<(Dispatcher, [u8; 4])> = LazyLock::new(|| {
    let runner = Runner::named("fuzz", "0").plugin(ReadMuch).plugin(Change).carrier(NamesUpstream);
    let dispatcher = runner.dispatcher(&Settings::new("/none").max_confs(64)).expect("two plugins");
    let mut encoder = Encoder::new();
    encoder.prepare_conf_call("route#1", &[(b"readmuch", b"{}"), (b"change", b"null")]);
    let header = FrameHeader { kind: FrameKind::PrepareConf, length: encoder.payload().len() };
    let call = [&header.encode().expect("a short call"), encoder.payload()].concat();
    let answer = served(&dispatcher, &call);
    let token = decode_prepared(&answer[HEADER..]).expect("a conf token");
    (dispatcher, token.to_le_bytes())
});

/// The bytes of a gateway's connection.
///
/// # Panics
///
/// If the runner sends something that no gateway could read, or does not come to an end.
pub fn frames(data: &[u8]) {
    let (dispatcher, token) = &*SERVED;
    let mut bytes = data.to_vec();
    for at in 0..bytes.len().saturating_sub(TOKEN.len() - 1) {
        if bytes[at..].starts_with(&TOKEN) {
            bytes[at..at + TOKEN.len()].copy_from_slice(token);
        }
    }
    let output = served(dispatcher, &bytes);
    let mut rest = &output[..];
    while let Some(header) = rest.first_chunk() {
        let FrameHeader { kind, length } = FrameHeader::decode(*header).expect("a header");
        let payload = &rest[HEADER..HEADER + length];
        let read = match kind {
            FrameKind::Error => decode_error(payload).map(drop),
            FrameKind::PrepareConf => decode_prepared(payload).map(drop),
            FrameKind::RequestCall => decode_request_answer(payload).map(drop),
            FrameKind::ResponseCall => decode_response_answer(payload).map(drop),
            FrameKind::ExtraInfo => decode_question(payload).map(|question| assert!(question.is_some())),
        };
        assert_eq!(read, Ok(()), "{}", data.escape_ascii());
        rest = &rest[HEADER + length..];
    }
    assert!(rest.is_empty(), "{}", rest.escape_ascii());
}

/// The bytes of a runner's connection to its successor, and of one to its predecessor. Each
/// second byte says what descriptor travels with the byte before it.
///
/// # Panics
///
/// If a conversation does not come to an end.
pub fn takeover(data: &[u8]) {
    ended(async {
        successor(data).await;
        predecessor(data).await;
    });
}

fn ended<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(async { timeout(PATIENCE, future).await.expect("an end") })
}

/// What the runner sends in answer to these bytes.
fn served(dispatcher: &Dispatcher, bytes: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    let (succession, stop) = (Succession::new(None), CancellationToken::new());
    ended(async {
        let mut connection = Connection::new(tokio::io::join(bytes, &mut output));
        // An error is an end too.
        let _ = serve_calls(&mut connection, dispatcher, &succession, &stop).await;
    });
    output
}

/// A plugin that reads everything a call has.
struct ReadMuch;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReadMuchConfig {
    status: u16,
    names: Vec<String>,
}

impl Plugin for ReadMuch {
    const NAME: &'static str = "readmuch";
    type Config = ReadMuchConfig;

    async fn on_request(
        &self,
        config: &ReadMuchConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let _ = (request.method().as_str(), request.path_str(), request.source());
        for (name, value) in request.headers() {
            let name = str::from_utf8(name).unwrap_or_default();
            assert!(name.is_empty() || request.headers_named(name).any(|found| found == value));
        }
        assert!(request.args().all(|(name, _)| request.args().any(|(other, _)| name == other)));
        for name in &config.names {
            let _ = (request.header(name), request.arg(name));
        }
        let route = request.var("route_id").await?.unwrap_or_default();
        let again = request.var("route_id").await?.unwrap_or_default();
        assert_eq!(route, again, "a variable is asked for once");
        request.body().await?;
        match StatusCode::from_u16(config.status) {
            Ok(status) => Ok(Stop::problem(status, "fuzzed", "Fuzzed").into()),
            Err(_) => Ok(Action::Continue),
        }
    }

    async fn on_response(&self, _: &ReadMuchConfig, response: &mut Response<'_>) -> Result<(), PluginError> {
        let _ = (response.status(), response.headers().count(), response.header("server"));
        response.var("upstream_status").await?;
        response.body().await?;
        Ok(())
    }
}

/// A plugin that makes each change that the call names.
struct Change;

impl Plugin for Change {
    const NAME: &'static str = "change";
    type Config = ();

    async fn on_request(&self, (): &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
        let (path, body) = (request.path().to_vec(), request.body().await?);
        let _ = request.set_path(&path);
        let _ = body.map(|body| request.set_body(body));
        for (name, value) in request.headers().collect::<Vec<_>>() {
            let _ = (request.set_header(name, value), request.add_response_header(name, value));
            if value.is_empty() {
                let _ = request.remove_header(name);
            }
        }
        for (name, value) in request.args().collect::<Vec<_>>() {
            let _ = match value {
                Some(value) => request.set_arg(name, value),
                None => request.remove_arg(name),
            };
            let to = value.and_then(|value| str::from_utf8(value).ok()?.parse().ok());
            let _ = to.map(|upstream| request.set_upstream(upstream));
        }
        let _ = request.remove_cookies(&CookieNames::default());
        request.cache_for(Duration::from_secs(1));
        let Some(status) = request.header_str("x-stop") else { return Ok(Action::Continue) };
        let mut stop = Stop::new(status.parse()?).body(path);
        for (name, value) in request.headers().collect::<Vec<_>>() {
            stop = stop.header(name, value)?;
        }
        Ok(stop.into())
    }

    async fn on_response(&self, (): &(), response: &mut Response<'_>) -> Result<(), PluginError> {
        let _ =
            StatusCode::from_u16(response.status().wrapping_add(1)).map(|status| response.set_status(status));
        for (name, value) in response.headers().collect::<Vec<_>>() {
            let _ = match value {
                [] => response.remove_header(name),
                value => response.set_header(name, value),
            };
        }
        let _ = response.body().await?.map(|body| response.set_body(body));
        Ok(())
    }
}

struct NamesUpstream;

impl Carrier for NamesUpstream {
    fn carry<'a>(&'a self, choice: Choice<'a>) -> CarrierFuture<'a> {
        let value = choice.upstream().to_string();
        Box::pin(async move { Ok(Carried::new(HeaderName::from_static("x-upstream"), value)) })
    }
}

/// The cookies that are left, if some were removed.
pub fn edited_cookies(headers: &[&[u8]]) -> Option<Vec<u8>> {
    match CookieNames::default().remove_from(headers.iter().copied()) {
        EditedCookies::Unchanged => None,
        EditedCookies::Removed => Some(Vec::new()),
        EditedCookies::Left(left) => Some(left),
    }
}
