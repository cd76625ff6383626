//! `kube-coders call`: one request to a running runner, and its decision in words.

use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::cli::CallArgs;
use crate::direct::{DECISION_HEADER, decided, repeatable};
use crate::request::Method;
use crate::stamp::STAMP_HEADER;
use crate::testing::{CallError, ClientRequest, Gateway, Route};
use crate::wire::gateway_side::{RequestAnswer, Rewrite};

/// Why there is no decision.
#[derive(Debug, Error)]
pub(crate) enum CallCommandError {
    #[error("{flag} {text:?}: {why}")]
    Argument { flag: &'static str, text: String, why: String },
    #[error("{path}: {error}{}", cure(.error))]
    Call { path: String, error: CallError },
    #[error("the runner refused the conf: its log says why, in a line with \"conf refused\"")]
    ConfRefused,
    #[error("writing the decision: {0}")]
    Write(#[from] std::io::Error),
}

/// What to do where a runner can't be asked, behind what is wrong.
pub(crate) fn cure(error: &CallError) -> &'static str {
    match error {
        CallError::Connect(error) => match error.kind() {
            NotFound | ConnectionRefused => {
                ": no runner listens there; start one with `kube-coders run`, or name its socket with --listen-address"
            }
            PermissionDenied => {
                ": ask as root or as the runner's own user, or let this one in with its --socket-mode"
            }
            _ => "",
        },
        CallError::Closed => "; its log says why, and how to admit this user (--allow-uid) if that is it",
        _ => "",
    }
}

/// Calls the runner once and prints its decision.
pub(crate) async fn call(
    path: &Path,
    args: &CallArgs,
    output: &mut impl Write,
) -> Result<ExitCode, CallCommandError> {
    let conf = text_or_file("--conf", &args.conf)?;
    let route = Route::new("kube-coders-call").plugin(&args.plugin, &conf);
    let request = request(args)?;
    let answer = Gateway::connect(path).decide(&route, &request).await.map_err(|error| match error {
        CallError::Refused(0) => CallCommandError::ConfRefused,
        error => CallCommandError::Call { path: path.display().to_string(), error },
    })?;
    print(&answer, &request, output)?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &CallArgs) -> Result<ClientRequest, CallCommandError> {
    let wrong = |flag, text: &str, why: &str| CallCommandError::Argument {
        flag,
        text: text.to_owned(),
        why: why.to_owned(),
    };
    let method = Method::from_name(&args.method)
        .ok_or_else(|| wrong("--method", &args.method, "not a method that a gateway hands on"))?;
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
    if let Some(claims) = &args.userinfo {
        let claims = text_or_file("--userinfo", claims)?;
        request = request.added_header("x-userinfo", STANDARD.encode(claims));
    }
    if let Some(body) = &args.body {
        request = request.body(text_or_file("--body", body)?);
    }
    Ok(request)
}

fn text_or_file(flag: &'static str, text: &str) -> Result<String, CallCommandError> {
    match text.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).map_err(|error| CallCommandError::Argument {
            flag,
            text: text.to_owned(),
            why: error.to_string(),
        }),
        None => Ok(text.to_owned()),
    }
}

fn print(answer: &RequestAnswer, request: &ClientRequest, output: &mut impl Write) -> std::io::Result<()> {
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
        RequestAnswer::Rewrite(rewrite) => print_rewrite(rewrite, request, output),
    }
}

fn print_rewrite(rewrite: &Rewrite, request: &ClientRequest, output: &mut impl Write) -> std::io::Result<()> {
    let forwarded = request.rewritten(rewrite);
    match &forwarded.upstream {
        Some(upstream) => {
            write!(output, "go on to {upstream}")?;
            if let Some((_, addresses)) = forwarded.header(DECISION_HEADER).and_then(decided) {
                let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                write!(output, " directly, at {}", addresses.join(", "))?;
            }
            match upstream.subject() {
                Some(subject) => writeln!(output, " for {subject:?}")?,
                None => writeln!(output)?,
            }
        }
        None => writeln!(output, "go on")?,
    }
    if let Some((time, by)) = forwarded.header(DECISION_HEADER).and_then(repeatable) {
        writeln!(output, "  may be repeated for {time} s by {}", by.join(", "))?;
    }
    if rewrite.path.is_some() || !rewrite.args.is_empty() {
        writeln!(output, "  target: {}", forwarded.target.escape_ascii())?;
    }
    let chosen = [STAMP_HEADER, DECISION_HEADER].map(str::as_bytes);
    for (name, value) in rewrite.headers.iter().filter(|(name, _)| !chosen.contains(&&name[..])) {
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
