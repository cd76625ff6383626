//! `kube-coders explain`: a decision of `user-upstream`, step by step.

use std::io::{Read as _, Write};
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::cli::ExplainArgs;
use crate::headers::HeaderName;
use crate::plugin::{ConfError, parse_conf};
use crate::resolver::{Lifetimes, NameServers, NameServersError, Resolver};
use crate::settings::{Mistakes, checked_ways, name_servers};
use crate::user_upstream::explain::{Outcome, Question, Step, Steps};
use crate::user_upstream::{KeySet, UserUpstreamConfig, unix_now};

/// How much is read of standard input or a file, in bytes: more than the headers
/// that a gateway accepts.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// The exit code where a token's signature was not checked: anybody can write such a
/// token.
const UNDECIDED: u8 = 3;

/// Names and values, as a client sends them.
type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// Why nothing can be explained.
#[derive(Debug, Error)]
pub(crate) enum ExplainError {
    #[error("{flag}: {why}")]
    Argument { flag: &'static str, why: String },
    #[error(transparent)]
    Settings(#[from] Mistakes),
    #[error(transparent)]
    NameServers(#[from] NameServersError),
    #[error("writing the steps: {0}")]
    Write(#[from] std::io::Error),
}

/// Prints the steps. The exit code is 1 where the answer is a refusal.
pub(crate) async fn explain(args: &ExplainArgs, output: &mut impl Write) -> Result<ExitCode, ExplainError> {
    let conf = text_or_file("--conf", &args.conf)?;
    let config: UserUpstreamConfig = parse_conf(conf.as_bytes()).map_err(|error| hinted(&conf, &error))?;
    config.check_files().map_err(|error| argument("--conf", error.to_string()))?;
    let way = config.way(checked_ways(&args.ways)?);
    let way = way.map_err(|error| argument("--conf", format!("upstream: {error}")))?;
    let headers = headers(args)?;
    let keys = match &args.keys {
        Some(keys) => {
            let text = text_or_file("--keys", keys)?;
            Some(
                KeySet::decode(text.as_bytes())
                    .map_err(|error| argument("--keys", with_hint(&text, error)))?,
            )
        }
        None => None,
    };
    let question = Question {
        config: &config,
        headers: &headers,
        keys,
        resolver: resolver(args)?,
        now: unix_now(),
        way,
    };
    let mut steps = Steps::default();
    let answer = question.answer(&mut steps).await;
    for step in &steps.0 {
        print(step, output)?;
    }
    let open = |what| steps.0.iter().any(|step| step.outcome == Outcome::Open && step.what == what);
    match answer {
        Ok(upstream) if open("signature") => {
            writeln!(output, "\nIt would go to {upstream}, but nobody has checked the token's signature.")?;
            Ok(ExitCode::from(UNDECIDED))
        }
        Ok(upstream) => {
            let if_so = if open("addresses") { ", if that name exists" } else { "" };
            writeln!(output, "\nIt goes to {upstream}{if_so}.")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(refused) => {
            let refusal = refused.refusal();
            writeln!(output, "\nIt is refused: {} {}.", refusal.status(), refusal.code())?;
            Ok(ExitCode::from(1))
        }
    }
}

fn print(step: &Step, output: &mut impl Write) -> std::io::Result<()> {
    let mark = match step.outcome {
        Outcome::Good => "ok",
        Outcome::Bad => "no",
        Outcome::Open => "?",
    };
    writeln!(output, "{mark:<3} {:<10} {}", step.what, step.said)
}

fn resolver(args: &ExplainArgs) -> Result<Option<Arc<Resolver>>, ExplainError> {
    if !args.online {
        return match args.dns_server.is_empty() {
            true => Ok(None),
            false => Err(argument("--dns-server", "nobody is asked without --online".to_owned())),
        };
    }
    let servers: NameServers = name_servers(&args.dns_server)?;
    Ok(Some(Arc::new(Resolver::with_lifetimes(&servers, Lifetimes::default())?)))
}

/// The request's headers: those of `--headers`, and what the gateway would add.
fn headers(args: &ExplainArgs) -> Result<Headers, ExplainError> {
    let mut headers = Vec::new();
    if let Some(file) = &args.headers {
        let file = file.strip_prefix('@').unwrap_or(file);
        let text = if file == "-" { read("--headers", std::io::stdin())? } else { open("--headers", file)? };
        parse_headers(&text, &mut headers)?;
    }
    if let Some(claims) = &args.userinfo {
        let claims = text_or_file("--userinfo", claims)?;
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&claims) {
            return Err(argument("--userinfo", with_hint(&claims, format!("no JSON: {error}"))));
        }
        headers.push((b"x-userinfo".to_vec(), STANDARD.encode(claims.trim_end()).into_bytes()));
    }
    if let Some(token) = &args.token {
        let token = text_or_file("--token", token)?;
        let token = token.trim();
        let token = token.strip_prefix("Bearer ").unwrap_or(token).trim_start();
        if token.is_empty() {
            return Err(argument("--token", "it is empty".to_owned()));
        }
        let name = HeaderName::try_from(args.token_header.as_str());
        let name = name.map_err(|error| argument("--token-header", error.to_string()))?;
        headers.push((name.as_str().as_bytes().to_vec(), bearer(args, token)));
    }
    Ok(headers)
}

/// The token as it stands in its header.
fn bearer(args: &ExplainArgs, token: &str) -> Vec<u8> {
    let scheme = if args.token_header.eq_ignore_ascii_case("authorization") { "Bearer " } else { "" };
    format!("{scheme}{token}").into_bytes()
}

/// Reads `name: value` lines; a request line before them is read over.
fn parse_headers(text: &[u8], headers: &mut Headers) -> Result<(), ExplainError> {
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':');
        match colon {
            _ if line.is_empty() => {}
            _ if at == 0 && line.windows(6).any(|part| part == b" HTTP/") => {}
            Some(colon) if is_name(&line[..colon]) => {
                let (name, value) = line.split_at(colon);
                headers.push((name.to_ascii_lowercase(), value[1..].trim_ascii().to_vec()));
            }
            _ => return Err(argument("--headers", format!("line {} is no \"name: value\"", at + 1))),
        }
    }
    Ok(())
}

fn is_name(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(|name| HeaderName::try_from(name).is_ok())
}

/// An error of JSON, and what may have been meant.
fn with_hint(text: &str, error: impl std::fmt::Display) -> String {
    let file = text.trim();
    match file.starts_with(['{', '[']) || file.is_empty() || file.contains('\n') {
        true => error.to_string(),
        false => format!("{error}; a file is given as @FILE"),
    }
}

fn hinted(conf: &str, error: &ConfError) -> ExplainError {
    argument("--conf", with_hint(conf, error))
}

fn text_or_file(flag: &'static str, text: &str) -> Result<String, ExplainError> {
    match text.strip_prefix('@') {
        Some(file) => {
            String::from_utf8(open(flag, file)?).map_err(|_| argument(flag, format!("{file:?} is not UTF-8")))
        }
        None => Ok(text.to_owned()),
    }
}

fn open(flag: &'static str, file: &str) -> Result<Vec<u8>, ExplainError> {
    let opened = std::fs::File::open(file).map_err(|error| argument(flag, format!("{file:?}: {error}")))?;
    read(flag, opened)
}

fn read(flag: &'static str, from: impl std::io::Read) -> Result<Vec<u8>, ExplainError> {
    let mut bytes = Vec::new();
    match from.take(MAX_INPUT + 1).read_to_end(&mut bytes) {
        Ok(length) if length as u64 <= MAX_INPUT => Ok(bytes),
        Ok(_) => Err(argument(flag, format!("longer than {MAX_INPUT} bytes"))),
        Err(error) => Err(argument(flag, error.to_string())),
    }
}

fn argument(flag: &'static str, why: String) -> ExplainError {
    ExplainError::Argument { flag, why }
}
