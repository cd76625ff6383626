//! When the quickstart can be used: every workspace answers through the gateway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::code_server;
use crate::gateway::USER_COOKIE;
use crate::users::{User, owners};

/// How often a part that does not answer yet is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long all may take. A code-server's first start is slow.
const PATIENCE: Duration = Duration::from_secs(120);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How many errors of a workspace that has started are too many.
const MAX_FAILURES: u32 = 20;

/// Returns once each workspace has answered its user through the gateway. The logs are those of
/// code-servers.
pub(crate) async fn all_answer(gateway: SocketAddr, logs: &[(&'static User, PathBuf)]) -> Result<(), String> {
    for user in owners() {
        let answered = timeout(PATIENCE, answers(gateway, user)).await;
        let Err(why) = answered.unwrap_or_else(|_| Err(format!("did not answer within {PATIENCE:?}"))) else {
            continue;
        };
        let log = logs.iter().find(|(owner, _)| owner.subject == user.subject);
        let said = log.map(|(_, log)| format!("; its log ends with:\n{}", code_server::end_of(log)));
        return Err(format!("the workspace of {} {why}{}", user.name, said.unwrap_or_default()));
    }
    Ok(())
}

async fn answers(gateway: SocketAddr, user: &User) -> Result<(), String> {
    let mut again = interval(PAUSE);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0;
    loop {
        again.tick().await;
        let Ok((status, body)) = ask(gateway, user).await else { continue };
        let body = String::from_utf8_lossy(&body);
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        // A refusal of the runner or the forwarder while the workspace starts.
        failures = match status.is_server_error() && !body.contains("workspace-starting") {
            true => failures + 1,
            false => 0,
        };
        if failures == MAX_FAILURES {
            let line = body.lines().next().unwrap_or_default();
            return Err(format!("answered {failures} times with {status}: {line}"));
        }
    }
}

async fn ask(gateway: SocketAddr, user: &User) -> Result<(StatusCode, Bytes), Error> {
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/")
        .header(HOST, gateway.to_string())
        .header(COOKIE, format!("{USER_COOKIE}={}", user.subject))
        .body(Empty::<Bytes>::new())?;
    let asked = async move {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>((parts.status, body.collect().await?.to_bytes()))
    };
    let (answer, _) = tokio::join!(asked, connection);
    Ok(answer?)
}
