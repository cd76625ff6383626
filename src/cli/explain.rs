//! `kube-coders explain`: a decision of `user-upstream`, step by step.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::cli::arguments::ExplainArgs;
use crate::cli::settings::{address_policy, checked_ways, name_servers, search_domains};
use crate::refusal::Refusal;
use crate::resolver::{AddressPolicy, Lifetimes, NameServers, NameServersError, Resolver, SearchDomains};
use crate::user_upstream::explanation::ExplainedRequest;
use crate::user_upstream::{ClientScheme, Step, StepOutcome, Steps, Stopped, check_config};
use apisix_plugin_runner::command::Mistakes;
use apisix_plugin_runner::command::{read_input, text_or_file};
use apisix_plugin_runner::config::parse_conf;
use apisix_plugin_runner::{ConfError, HeaderName};
use kube_coders_identity::{KeySet, UserUpstreamConfig};

/// The exit code if the answer is open: a token's signature was not checked, and anyone
/// can write such a token, or the client's scheme is not known and matters.
const UNDECIDED: u8 = 3;

/// Names and values, as a client sends them.
type HeaderLines = Vec<(Vec<u8>, Vec<u8>)>;

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

/// Prints the steps. The exit code is 1 if the answer is a refusal.
pub(crate) async fn explain(args: &ExplainArgs, output: &mut impl Write) -> Result<ExitCode, ExplainError> {
    let conf = argument_text("--conf", &args.conf)?;
    let config: UserUpstreamConfig = parse_conf(conf.as_bytes()).map_err(|error| hinted(&conf, &error))?;
    let ways = checked_ways(&args.ways)?;
    let way = check_config(&config, ways).map_err(|error| argument("--conf", error.to_string()))?;
    let headers = headers(args)?;
    let keys = match &args.keys {
        Some(keys) => {
            let text = argument_text("--keys", keys)?;
            let keys = KeySet::decode(text.as_bytes());
            Some(keys.map_err(|error| argument("--keys", with_hint(&text, error)))?)
        }
        None => None,
    };
    let scheme = scheme(args.scheme.as_deref())?;
    let request = ExplainedRequest {
        config: &config,
        headers: &headers,
        scheme,
        keys,
        resolvers: resolvers(args)?,
        way,
    };
    let mut steps = Steps::default();
    let answer = request.walk(&mut steps).await;
    for step in &steps.0 {
        print(step, output)?;
    }
    let is_open = |what| steps.0.iter().any(|step| step.outcome == StepOutcome::Open && step.what == what);
    let upstream = match answer {
        Ok(upstream) => upstream,
        Err(stopped) => {
            let refusal = match stopped {
                Stopped::Rejected(rejected) => rejected.rejection.refusal(),
                Stopped::Failed(_) => Refusal::RunnerFailed,
            };
            writeln!(output, "\nIt is refused: {} {}.", refusal.status(), refusal.code())?;
            return Ok(ExitCode::from(1));
        }
    };
    let if_so = if is_open("addresses") { ", if that name exists" } else { "" };
    match (is_open("signature"), is_open("scheme")) {
        (true, _) => {
            writeln!(output, "\nIt would go to {upstream}, but the token's signature was not checked.")?;
        }
        (false, true) => {
            let refusal = Refusal::ForeignOrigin;
            writeln!(
                output,
                "\nIt would go to {upstream}{if_so}, unless the client speaks https to the gateway: then it is \
                 refused, {} {}.",
                refusal.status(),
                refusal.code()
            )?;
        }
        (false, false) => {
            writeln!(output, "\nIt goes to {upstream}{if_so}.")?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::from(UNDECIDED))
}

fn scheme(text: Option<&str>) -> Result<ClientScheme, ExplainError> {
    match text {
        None => Ok(ClientScheme::Unknown),
        Some("http") => Ok(ClientScheme::Http),
        Some("https") => Ok(ClientScheme::Https),
        Some(text) => Err(argument("--scheme", format!("{text:?} is neither http nor https"))),
    }
}

fn print(step: &Step, output: &mut impl Write) -> std::io::Result<()> {
    let mark = match step.outcome {
        StepOutcome::Good => "ok",
        StepOutcome::Bad => "no",
        StepOutcome::Open => "?",
    };
    writeln!(output, "{mark:<3} {:<10} {}", step.what, step.said)
}

/// The resolvers of workspaces' and issuers' names, if they may be asked.
fn resolvers(args: &ExplainArgs) -> Result<Option<[Arc<Resolver>; 2]>, ExplainError> {
    if !args.online {
        let needs_online = |flag, typed: &[String]| match typed {
            [] => Ok(()),
            _ => Err(argument(flag, "needs --online".to_owned())),
        };
        needs_online("--dns-server", &args.dns_server)?;
        needs_online("--search-domain", &args.search_domain)?;
        needs_online("--allow-address", &args.allow_address)?;
        return Ok(None);
    }
    let servers: NameServers = name_servers(&args.dns_server)?;
    let resolver = |search: &SearchDomains, policy| -> Result<_, ExplainError> {
        Ok(Arc::new(Resolver::with_lifetimes(&servers, search, policy, Lifetimes::default())?))
    };
    let policy = address_policy(&args.allow_address)?;
    let workspaces = resolver(&search_domains(&args.search_domain)?, policy)?;
    Ok(Some([workspaces, resolver(&SearchDomains::System, AddressPolicy::any())?]))
}

/// The request's headers: those of `--headers`, and what the gateway would add.
fn headers(args: &ExplainArgs) -> Result<HeaderLines, ExplainError> {
    let mut headers = Vec::new();
    if let Some(file) = &args.headers {
        let file = file.strip_prefix('@').unwrap_or(file);
        let wrong = |error| match file {
            "-" => argument("--headers", format!("{error}")),
            _ => argument("--headers", format!("{file:?}: {error}")),
        };
        let text = read_input(file).map_err(wrong)?;
        parse_headers(&text, &mut headers)?;
    }
    if let Some(claims) = &args.userinfo {
        let claims = argument_text("--userinfo", claims)?;
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&claims) {
            return Err(argument("--userinfo", with_hint(&claims, format!("not JSON: {error}"))));
        }
        headers.push((b"x-userinfo".to_vec(), STANDARD.encode(claims.trim_end()).into_bytes()));
    }
    if let Some(token) = &args.token {
        let token = argument_text("--token", token)?;
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

/// The token as its header holds it.
fn bearer(args: &ExplainArgs, token: &str) -> Vec<u8> {
    let scheme = if args.token_header.eq_ignore_ascii_case("authorization") { "Bearer " } else { "" };
    format!("{scheme}{token}").into_bytes()
}

/// Reads `name: value` lines; a request line before them is read over.
fn parse_headers(text: &[u8], headers: &mut HeaderLines) -> Result<(), ExplainError> {
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
            _ => return Err(argument("--headers", format!("line {} is not \"name: value\"", at + 1))),
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

fn argument_text(flag: &'static str, text: &str) -> Result<String, ExplainError> {
    text_or_file(text).map_err(|why| argument(flag, why))
}

fn argument(flag: &'static str, why: String) -> ExplainError {
    ExplainError::Argument { flag, why }
}
