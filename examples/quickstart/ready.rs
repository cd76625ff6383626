//! When the quickstart can be used: every workspace answers through the gateway.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, HOST};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::gateway::USER_COOKIE;
use crate::users::{User, owners};

/// How often a part that does not answer yet is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long all may take. A code-server's first start is slow.
const PATIENCE: Duration = Duration::from_secs(120);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Returns once each workspace has answered its user through the gateway.
pub(crate) async fn all_answer(gateway: SocketAddr) -> Result<(), String> {
    for user in owners() {
        if timeout(PATIENCE, answers(gateway, user)).await.is_err() {
            return Err(format!("the workspace of {} did not answer in time", user.name));
        }
    }
    Ok(())
}

async fn answers(gateway: SocketAddr, user: &User) {
    let mut again = interval(PAUSE);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        again.tick().await;
        if let Ok(status) = ask(gateway, user).await
            && (status.is_success() || status.is_redirection())
        {
            return;
        }
    }
}

async fn ask(gateway: SocketAddr, user: &User) -> Result<StatusCode, Error> {
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/")
        .header(HOST, gateway.to_string())
        .header(COOKIE, format!("{USER_COOKIE}={}", user.subject))
        .body(Empty::<Bytes>::new())?;
    let asked = async move { sender.send_request(request).await.map(|response| response.status()) };
    let (status, _) = tokio::join!(asked, connection);
    Ok(status?)
}
