//! `call`: one request to a running runner, and its decision in words.

use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, NotFound, PermissionDenied};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use http::Method;
use thiserror::Error;

use crate::command::args::{CallArgs, RequestArgs};
use crate::command::input::text_or_file;
use crate::gateway::{CallError, ClientRequest, ForwardedRequest, Gateway, RequestAnswer, Rewrite, Route};
use crate::registry::Registry;
use crate::request::method_number;

/// Why there is no decision.
///
/// ```
/// use apisix_plugin_runner::command::{CallCommandError, flag_text};
///
/// let error = flag_text("--conf", "@/nonexistent").unwrap_err();
/// assert!(matches!(error, CallCommandError::Argument { flag: "--conf", .. }));
/// ```
#[derive(Debug, Error)]
pub enum CallCommandError {
    /// An argument is wrong.
    #[error("{flag} {text:?}: {why}")]
    Argument {
        /// The flag.
        flag: &'static str,
        /// What was typed.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The runner could not be asked.
    #[error("{path}: {error}{}", cure(.error))]
    Call {
        /// The socket.
        path: String,
        /// What failed.
        error: CallError,
    },
    /// The runner refused the conf.
    #[error("the runner refused the conf: {}", .reason.as_deref().unwrap_or(LOGGED_REASON))]
    ConfRefused {
        /// Why, if it is known here: the gateway's protocol does not say it.
        reason: Option<String>,
    },
    /// The decision can't be written.
    #[error("writing the decision: {0}")]
    Write(#[from] std::io::Error),
}

/// Where the reason is if it is not known here.
const LOGGED_REASON: &str = "its log says why, in a line with \"conf refused\"";

/// What to do if a runner can't be asked, to be shown after the error.
#[must_use]
pub(super) fn cure(error: &CallError) -> &'static str {
    match error {
        CallError::Connect(error) => match error.kind() {
            NotFound | ConnectionRefused => {
                ": no runner listens there; start one with the command `run`, or name its socket with --listen-address"
            }
            PermissionDenied => {
                ": ask as root or as the runner's own user, or permit this user with the runner's --socket-mode"
            }
            _ => "",
        },
        CallError::Closed => {
            "; the runner's log says why, and how to permit this user (--allow-uid) if that is the reason"
        }
        _ => "",
    }
}

/// Calls the runner once and prints its decision.
///
/// # Errors
///
/// As [`CallCommandError`] lists them.
pub(super) async fn call(
    gateway: &Gateway,
    path: &Path,
    args: &CallArgs,
    registry: &Registry,
    output: &mut impl Write,
) -> Result<ExitCode, CallCommandError> {
    let request = client_request(&args.request)?;
    let asked = (&*args.plugin, &*args.request.conf);
    let called =
        ask(gateway, path, asked, &request, output, |forwarded| Some(decision_note(forwarded))).await;
    called.map_err(|error| error.with_reason(asked, |plugin, conf| registry.conf_error(plugin, conf)))
}

impl CallCommandError {
    /// Adds the reason to a refused conf, if this program knows it: it reads the conf as the
    /// running one does. The reason comes from the plugin's name and the conf.
    ///
    /// ```
    /// use apisix_plugin_runner::command::CallCommandError;
    ///
    /// let refused = CallCommandError::ConfRefused { reason: None };
    /// let refused = refused.with_reason(("hello", "7"), |_, conf| Some(format!("no object: {conf}")));
    /// assert_eq!(refused.to_string(), "the runner refused the conf: no object: 7");
    /// ```
    #[must_use]
    pub fn with_reason(
        self,
        (plugin, conf): (&str, &str),
        reason: impl FnOnce(&str, &str) -> Option<String>,
    ) -> Self {
        match self {
            Self::ConfRefused { reason: None } => {
                let conf = flag_text("--conf", conf).unwrap_or_default();
                Self::ConfRefused { reason: reason(plugin, &conf) }
            }
            other => other,
        }
    }

    /// Whether the decision's reader has gone, for example `head`.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == BrokenPipe)
    }
}

/// Sends a request to the runner and prints the decision. `note` adds words to the line
/// that names the upstream.
///
/// ```
/// use std::path::Path;
/// use std::process::ExitCode;
///
/// use apisix_plugin_runner::command::{CallCommandError, ask};
/// use apisix_plugin_runner::gateway::{ClientRequest, Gateway};
///
/// /// Prints what the runner at this socket decides about `GET /`.
/// async fn print(socket: &Path) -> Result<ExitCode, CallCommandError> {
///     let (gateway, request) = (Gateway::connect(socket), ClientRequest::get("/"));
///     ask(&gateway, socket, ("hello", "null"), &request, &mut std::io::stdout(), |_| None).await
/// }
/// ```
///
/// # Errors
///
/// As [`CallCommandError`] lists them.
pub async fn ask(
    gateway: &Gateway,
    path: &Path,
    (plugin, conf): (&str, &str),
    request: &ClientRequest,
    output: &mut impl Write,
    note: impl Fn(&ForwardedRequest) -> Option<Note>,
) -> Result<ExitCode, CallCommandError> {
    let conf = flag_text("--conf", conf)?;
    let route = Route::new("call").plugin(plugin, &conf);
    let answer = gateway.decide(&route, request).await.map_err(|error| match error {
        CallError::Refused(0) => CallCommandError::ConfRefused { reason: None },
        error => CallCommandError::Call { path: path.display().to_string(), error },
    })?;
    print(&answer, gateway, request, output, note)?;
    Ok(ExitCode::SUCCESS)
}

/// What a program adds to a printed decision.
///
/// ```
/// use apisix_plugin_runner::command::Note;
/// use apisix_plugin_runner::gateway::ForwardedRequest;
///
/// /// Prints the host after the upstream, and hides the header that carries the choice.
/// fn note(forwarded: &ForwardedRequest) -> Option<Note> {
///     let upstream = forwarded.upstream.as_ref()?;
///     Some(Note {
///         upstream: format!(" at {}", upstream.host()),
///         hidden: vec!["x-upstream"],
///         ..Note::default()
///     })
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Words after the upstream, such as its addresses.
    pub upstream: String,
    /// Lines of their own.
    pub lines: Vec<String>,
    /// Headers that are not shown.
    pub hidden: Vec<&'static str>,
}

/// What a decision of the direct carrier contains in addition to the upstream. The header
/// itself is not shown.
///
/// ```
/// use apisix_plugin_runner::command::decision_note;
/// use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Route};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let outcome = Gateway::new().call(&Route::new("r"), &ClientRequest::get("/")).await;
/// let note = decision_note(&outcome.forwarded());
/// assert_eq!(note.upstream, "", "no plugin chose an upstream");
/// # });
/// ```
#[cfg(feature = "direct")]
#[must_use]
pub fn decision_note(forwarded: &ForwardedRequest) -> Note {
    use crate::direct::{DECISION_HEADER, decode_cache, decode_destination};

    let decision = forwarded.header(DECISION_HEADER);
    let mut note = Note { hidden: vec![DECISION_HEADER], ..Note::default() };
    if let Some((_, addresses)) = decision.and_then(decode_destination) {
        let addresses: Vec<_> = addresses.iter().map(std::net::IpAddr::to_string).collect();
        note.upstream = format!(" directly, at {}", addresses.join(", "));
    }
    if let Some((time, key)) = decision.and_then(decode_cache) {
        note.lines.push(format!("may be cached for {} s by {key}", time.as_secs_f64()));
    }
    note
}

/// Without the direct carrier there is nothing more to say.
#[cfg(not(feature = "direct"))]
fn decision_note(_: &ForwardedRequest) -> Note {
    Note::default()
}

/// The request that was typed.
///
/// ```
/// use apisix_plugin_runner::command::{RequestArgs, client_request};
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct MyCall {
///     #[command(flatten)]
///     request: RequestArgs,
/// }
///
/// let typed = MyCall::parse_from(["call", "--conf", "null", "--method", "CONNECT"]);
/// let error = client_request(&typed.request).unwrap_err();
/// assert_eq!(error.to_string(), "--method \"CONNECT\": not a method that a gateway hands on");
/// ```
///
/// # Errors
///
/// An argument that is wrong.
pub fn client_request(args: &RequestArgs) -> Result<ClientRequest, CallCommandError> {
    let wrong = |flag, text: &str, why: &str| CallCommandError::Argument {
        flag,
        text: text.to_owned(),
        why: why.to_owned(),
    };
    let method =
        Method::from_bytes(args.method.as_bytes()).ok().filter(|method| method_number(method).is_some());
    let method =
        method.ok_or_else(|| wrong("--method", &args.method, "not a method that a gateway hands on"))?;
    let mut request = ClientRequest::new(method, &args.target);
    for header in &args.header {
        let (name, value) =
            header.split_once(':').ok_or_else(|| wrong("--header", header, "not \"name: value\""))?;
        request = request.header(name.trim(), value.trim());
    }
    for variable in &args.var {
        let (name, value) =
            variable.split_once('=').ok_or_else(|| wrong("--var", variable, "not name=value"))?;
        request = request.variable(name, value.to_owned());
    }
    if let Some(body) = &args.body {
        request = request.body(flag_text("--body", body)?);
    }
    Ok(request)
}

/// The text of a flag, or of the file that it names as `@FILE`.
///
/// ```
/// use apisix_plugin_runner::command::flag_text;
///
/// assert_eq!(flag_text("--conf", "{}")?, "{}");
/// # Ok::<(), apisix_plugin_runner::command::CallCommandError>(())
/// ```
///
/// # Errors
///
/// A file that can't be read.
pub fn flag_text(flag: &'static str, text: &str) -> Result<String, CallCommandError> {
    let wrong = |why| CallCommandError::Argument { flag, text: text.to_owned(), why };
    text_or_file(text).map_err(wrong)
}

fn print(
    answer: &RequestAnswer,
    gateway: &Gateway,
    request: &ClientRequest,
    output: &mut impl Write,
    note: impl Fn(&ForwardedRequest) -> Option<Note>,
) -> std::io::Result<()> {
    match answer {
        RequestAnswer::Unchanged => writeln!(output, "go on unchanged"),
        RequestAnswer::Stop { status, headers, body } => {
            writeln!(output, "stop {status}")?;
            for (name, value) in headers {
                writeln!(output, "  {}: {}", name.escape_ascii(), value.escape_ascii())?;
            }
            match body.is_empty() {
                true => Ok(()),
                false => writeln!(output, "\n{}", String::from_utf8_lossy(body)),
            }
        }
        RequestAnswer::Rewrite(rewrite) => {
            let forwarded = gateway.rewritten(request, rewrite);
            let note = note(&forwarded).unwrap_or_default();
            print_rewrite(rewrite, &forwarded, &note, output)
        }
    }
}

fn print_rewrite(
    rewrite: &Rewrite,
    forwarded: &ForwardedRequest,
    note: &Note,
    output: &mut impl Write,
) -> std::io::Result<()> {
    match &forwarded.upstream {
        Some(upstream) => {
            write!(output, "go on to {upstream}{}", note.upstream)?;
            match upstream.subject() {
                Some(subject) => writeln!(output, " for {subject:?}")?,
                None => writeln!(output)?,
            }
        }
        None => writeln!(output, "go on")?,
    }
    for line in &note.lines {
        writeln!(output, "  {line}")?;
    }
    if rewrite.path.is_some() || !rewrite.args.is_empty() {
        writeln!(output, "  target: {}", forwarded.target.escape_ascii())?;
    }
    let is_shown = |name: &[u8]| note.hidden.iter().all(|hidden| hidden.as_bytes() != name);
    for (name, value) in rewrite.headers.iter().filter(|(name, _)| is_shown(name)) {
        match value {
            Some(value) => writeln!(output, "  set {}: {}", name.escape_ascii(), value.escape_ascii())?,
            None => writeln!(output, "  remove {}", name.escape_ascii())?,
        }
    }
    for (name, value) in &rewrite.response_headers {
        writeln!(output, "  add to the response {}: {}", name.escape_ascii(), value.escape_ascii())?;
    }
    match rewrite.body.is_empty() {
        true => Ok(()),
        false => writeln!(output, "  body: {} bytes", rewrite.body.len()),
    }
}
