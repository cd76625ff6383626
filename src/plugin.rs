//! What an author writes: a plugin, its verdict, its errors; and the registry.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::changes::{ChangeError, check_status, check_value};
use crate::headers::HeaderName;
use crate::request::Request;
use crate::response::Response;

/// A plugin that the gateway may call for each request.
///
/// A route names it in `ext-plugin-pre-req` (or `-post-req`, `-post-resp`) with
/// a conf, a JSON text, which becomes the [`Config`](Plugin::Config) once, when
/// it is prepared.
///
/// A plugin that fails, panics or takes longer than a call's deadline (5 s, unless
/// `--call-deadline` says otherwise) answers its call with 503 `runner-failed` and
/// hurts no other call. At the deadline its future is dropped, which is possible
/// only while it waits: code that blocks its thread holds up other calls too, and
/// under `panic = "abort"` a panic ends the process.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a plugin",
    label = "not a plugin",
    note = "implement `kube_coders::Plugin` for it: a NAME, a Config and on_request"
)]
pub trait Plugin: Send + Sync + 'static {
    /// The name by which a route's conf names it.
    const NAME: &'static str;

    /// The conf, deserialised from JSON. `#[serde(deny_unknown_fields)]` on it
    /// tells the operator about a misspelt field. A conf that is empty text is
    /// read as `null`.
    ///
    /// What it can't hold is refused when it is prepared, with plugin, field and
    /// position in the log. The conf may hold a secret, so the log never has
    /// its content; an own `Deserialize` must keep it out of its error text too.
    type Config: DeserializeOwned + Send + Sync + 'static;

    /// Looks at a config once, when the gateway prepares it. The gateway holds a
    /// lock of all its routes meanwhile, so this must not wait for anything.
    ///
    /// # Errors
    ///
    /// An error refuses the conf, and its text goes to the log.
    fn prepare(&self, config: &Self::Config) -> Result<(), PluginError> {
        let _ = config;
        Ok(())
    }

    /// Decides about a request.
    ///
    /// # Errors
    ///
    /// An error answers the request with 503 and goes to the log.
    fn on_request(
        &self,
        config: &Self::Config,
        request: &mut Request<'_>,
    ) -> impl Future<Output = Result<Action, PluginError>> + Send;

    /// Looks at a response, on routes with `ext-plugin-post-resp`. Without it
    /// the response goes on as it is.
    ///
    /// # Errors
    ///
    /// An error answers the request with 503 and goes to the log.
    fn on_response(
        &self,
        config: &Self::Config,
        response: &mut Response<'_>,
    ) -> impl Future<Output = Result<(), PluginError>> + Send {
        let _ = (config, response);
        async { Ok(()) }
    }
}

/// A plugin's verdict about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request goes on, with the changes that were recorded.
    Continue,
    /// The client gets this answer; no further plugin and no upstream is asked.
    Stop(Stop),
}

impl From<Stop> for Action {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// An answer to the client in place of the upstream's.
///
/// ```
/// use kube_coders::Stop;
///
/// let stop = Stop::new(403)?.header("content-type", "text/plain")?.body("not you");
/// assert!(Stop::new(499).is_err(), "the gateway would close the connection");
/// # Ok::<(), kube_coders::ChangeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(HeaderName, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Stop {
    /// An answer with this status. Without a body the gateway gives 302 and 403
    /// a page of its own.
    ///
    /// # Errors
    ///
    /// A status outside 200 to 599, and 444 and 499, at which the gateway closes
    /// the connection without an answer.
    pub fn new(status: u16) -> Result<Self, ChangeError> {
        check_status(status)?;
        Ok(Self { status, headers: Vec::new(), body: Vec::new() })
    }

    /// The same with one header more; repeated names are kept in their order.
    /// Without a `content-type` the gateway says `text/plain`.
    ///
    /// # Errors
    ///
    /// A name or value that no header can have, an empty value, and
    /// `content-length`, `connection` and `transfer-encoding`, which the gateway
    /// sets itself.
    pub fn header<N>(mut self, name: N, value: impl AsRef<[u8]>) -> Result<Self, ChangeError>
    where
        N: TryInto<HeaderName>,
        ChangeError: From<N::Error>,
    {
        let name = name.try_into()?;
        if ["content-length", "connection", "transfer-encoding"].contains(&name.as_str()) {
            return Err(ChangeError::FixedResponse(name.as_str().into()));
        }
        check_value(&name, value.as_ref())?;
        self.headers.push((name, value.as_ref().to_vec()));
        Ok(self)
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// Why a plugin could not decide: any error, or a text.
///
/// It goes to the log, and the client gets 503. What a client did wrong is no
/// such error but a [`Stop`].
pub struct PluginError(Box<dyn std::error::Error + Send + Sync>);

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for PluginError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(formatter, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for PluginError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

pub(crate) type Verdict<'a> = Pin<Box<dyn Future<Output = Result<Action, PluginError>> + Send + 'a>>;
pub(crate) type Looked<'a> = Pin<Box<dyn Future<Output = Result<(), PluginError>> + Send + 'a>>;

/// A plugin whose config type is forgotten.
trait ErasedPlugin: Send + Sync {
    fn prepare(self: Arc<Self>, conf: &[u8]) -> Result<Box<dyn Prepared>, ConfError>;
}

/// A plugin together with one config.
pub(crate) trait Prepared: Send + Sync {
    fn name(&self) -> &'static str;
    fn on_request<'a>(&'a self, request: &'a mut Request<'_>) -> Verdict<'a>;
    fn on_response<'a>(&'a self, response: &'a mut Response<'_>) -> Looked<'a>;
}

struct WithConfig<P: Plugin> {
    plugin: Arc<P>,
    config: P::Config,
}

impl<P: Plugin> ErasedPlugin for P {
    fn prepare(self: Arc<Self>, conf: &[u8]) -> Result<Box<dyn Prepared>, ConfError> {
        let config = parse_conf::<P::Config>(conf)?;
        Plugin::prepare(&*self, &config).map_err(|error| ConfError::refused(&error))?;
        Ok(Box::new(WithConfig { plugin: self, config }))
    }
}

impl<P: Plugin> Prepared for WithConfig<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn on_request<'a>(&'a self, request: &'a mut Request<'_>) -> Verdict<'a> {
        Box::pin(self.plugin.on_request(&self.config, request))
    }

    fn on_response<'a>(&'a self, response: &'a mut Response<'_>) -> Looked<'a> {
        Box::pin(self.plugin.on_response(&self.config, response))
    }
}

/// How much of a field's path is told, in characters.
const MAX_FIELD: usize = 200;

/// Why a conf is refused: where, and what was expected, never what stands there.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}{message}{}", Field(.field), Position(*.position))]
pub(crate) struct ConfError {
    /// The path of the field in the conf, empty for the conf itself.
    pub(crate) field: String,
    pub(crate) message: String,
    /// Line and column, from 1.
    pub(crate) position: Option<(usize, usize)>,
}

struct Field<'a>(&'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            field => write!(formatter, "{field}: "),
        }
    }
}

struct Position(Option<(usize, usize)>);

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(formatter, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}

impl ConfError {
    fn refused(error: &PluginError) -> Self {
        Self { field: String::new(), message: error.to_string(), position: None }
    }

    fn from_json(field: String, error: &serde_json::Error) -> Self {
        // The name of an unknown field is the operator's typing, so it is shown, but not as it may please.
        let field = if field == "." || field == "?" {
            String::new()
        } else {
            field.escape_debug().take(MAX_FIELD).collect()
        };
        let text = error.to_string();
        let position = (error.line() > 0).then(|| (error.line(), error.column()));
        let suffix = format!(" at line {} column {}", error.line(), error.column());
        let text = text.strip_suffix(&suffix).unwrap_or(&text);
        Self { field, message: without_content(text), position }
    }
}

/// Reads a conf as its plugin's config.
pub(crate) fn parse_conf<C: DeserializeOwned>(conf: &[u8]) -> Result<C, ConfError> {
    let conf = if conf.is_empty() { b"null" } else { conf };
    let mut json = serde_json::Deserializer::from_slice(conf);
    let config = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| ConfError::from_json(error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| ConfError::from_json(String::new(), &error))?;
    Ok(config)
}

/// An error text of serde's without the piece of the conf that it quotes.
///
/// serde says "invalid type: string "the value", expected …" and "unknown
/// variant `the value`, expected …"; what is expected is the plugin's own text
/// and stands last.
fn without_content(text: &str) -> String {
    let expected = text.rfind(", expected ").map(|at| &text[at..]).unwrap_or_default();
    for prefix in ["invalid type: ", "invalid value: "] {
        if let Some(found) = text.strip_prefix(prefix) {
            let kinds =
                ["string", "integer", "floating point", "boolean", "null", "map", "sequence", "byte array"];
            let kind = kinds.into_iter().find(|kind| found.starts_with(kind)).unwrap_or("something");
            return format!("{prefix}{kind}{expected}");
        }
    }
    for prefix in ["unknown variant", "unknown field"] {
        if text.starts_with(prefix) {
            return format!("{prefix}{expected}");
        }
    }
    text.to_owned()
}

/// The plugins of this process, by name.
#[derive(Clone, Default)]
pub(crate) struct Registry(BTreeMap<&'static str, Arc<dyn ErasedPlugin>>);

impl Registry {
    /// `false` where a plugin of this name is there already.
    #[must_use]
    pub(crate) fn add<P: Plugin>(&mut self, plugin: P) -> bool {
        self.0.insert(P::NAME, Arc::new(plugin)).is_none()
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// `None` where no plugin has this name.
    pub(crate) fn prepare(&self, name: &[u8], conf: &[u8]) -> Option<Result<Box<dyn Prepared>, ConfError>> {
        let name = std::str::from_utf8(name).ok()?;
        let plugin = Arc::clone(self.0.get(name)?);
        Some(plugin.prepare(conf))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Config {
        #[serde(default)]
        header: Option<HeaderName>,
        #[serde(default)]
        mode: Option<Mode>,
        #[serde(default)]
        ports: Vec<u16>,
        #[serde(default)]
        inner: Option<Box<Config>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        One,
        Two,
    }

    #[track_caller]
    fn check(conf: &str, expected: &str) {
        let error = parse_conf::<Config>(conf.as_bytes()).expect_err("refused");
        assert_eq!(error.to_string(), expected);
        assert!(!error.to_string().contains("s3cret"));
    }

    #[test]
    fn a_refused_conf_is_told_by_field_and_position_and_never_by_content() {
        check(
            r#"{"ports": [1, "s3cret"]}"#,
            "ports[1]: invalid type: string, expected u16 (line 1, column 22)",
        );
        check(
            "{\"ports\":\n[1, 70000]}",
            "ports[1]: invalid value: integer, expected u16 (line 2, column 9)",
        );
        check(r#"{"mode": "s3cret"}"#, "mode: unknown variant, expected `one` or `two` (line 1, column 17)");
        check(
            r#"{"mode": "a, expected s3cret"}"#,
            "mode: unknown variant, expected `one` or `two` (line 1, column 29)",
        );
        check(
            "{\"inner\": {\"head\\ner\": 1}}",
            "inner.head\\ner: unknown field, expected one of `header`, `mode`, `ports`, `inner` (line 1, column 21)",
        );
        check(
            r#"{"header": "s3cret s3cret"}"#,
            "header: not a header name: letters, digits and !#$%&'*+-.^_`|~ only, at least one (line 1, column 27)",
        );
        check(r#"{"ports": []} s3cret"#, "trailing characters (line 1, column 15)");
        check("s3cret", "expected value (line 1, column 1)");
        check("", "invalid type: null, expected struct Config (line 1, column 4)");
        check("{\"ports\"", "EOF while parsing an object (line 1, column 8)");
    }
}
