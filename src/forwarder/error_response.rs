//! Responses to requests that get none from a workspace, and what happens to the rest of
//! such a request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use std::future::poll_fn;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::buffered_stream::BufferedStream;
use super::exchange_failure::ExchangeFailure;
use super::http::head::{HeaderField, RawRequestHead};
use super::http::headers::{Persistence, write_response_of_ours};
use super::refusal_log::Cause;
use super::relay::Relay;
use super::stamped_request::{RequestError, StampedRequest};
use super::state::Forwarder;
use super::workspace::connection::ConnectError;
use crate::logged_user::LoggedUser;
use crate::refusal::{More, Reader, Refusal};
use apisix_plugin_runner::request_id::shown_request_id;

/// The header that names a request in the gateway's logs and in ours.
const REQUEST_ID: &str = "x-request-id";

/// The code under which a response is counted that began and was not completed.
const BROKEN_OFF: &str = "response-broken-off";

/// How much of a request is read and discarded, and for how long.
///
/// A connection that is closed with something unread is reset, and after a reset the
/// gateway may not get to read the response.
const MAX_DISCARDED: usize = 1 << 20;
const MAX_DISCARDING: Duration = Duration::from_secs(2);

/// How long the gateway may take to read such a response.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What became of the rest of a request that got a response before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestOfRequest {
    /// All of it was read, so the next request can follow.
    Read,
    /// Something was not read, so the connection ends.
    Unread,
}

/// Responds to the request whose head was read, and logs why. No other place logs it. If
/// `body` is given, the connection may carry another request. `asked` is `None` for a request
/// without a valid stamp, of which neither route nor user is known.
pub(super) async fn respond(
    forwarder: &Forwarder,
    gateway: &mut BufferedStream<TcpStream>,
    asked: Option<&StampedRequest>,
    failure: &ExchangeFailure,
    body: Option<Relay>,
    more: More<'_>,
) -> RestOfRequest {
    let head = RawRequestHead::parse(gateway.used()).ok();
    let request_id = shown_request_id(head.as_ref().and_then(|head| value(&head.fields, REQUEST_ID)));
    let Some(refusal) = failure.refusal() else {
        if matches!(failure, ExchangeFailure::BrokenOff(_)) {
            forwarder.counters.count(BROKEN_OFF);
            if let Some(left_out) = forwarder.refusal_log.note(Cause::Stamped(BROKEN_OFF)) {
                let left_out = (left_out > 0).then_some(left_out);
                let (route, user) = who(forwarder, asked);
                tracing::info!(
                    request_id,
                    route,
                    code = BROKEN_OFF,
                    reason = %failure,
                    subject_digest = user.digest,
                    subject = user.subject,
                    workspace = user.workspace,
                    left_out,
                    "response broke off"
                );
            }
        } else {
            tracing::debug!(request_id, reason = %failure, "exchange broke off");
        }
        return RestOfRequest::Unread;
    };
    // A client that waits for a 100 may now send the body or leave it out.
    let may_be_left_out = head.as_ref().is_some_and(|head| value(&head.fields, "expect").is_some());
    let body = body.filter(|_| !may_be_left_out).and_then(|body| readable(body, gateway));
    let head = RawRequestHead::parse(gateway.used()).ok();
    let code = refusal.code();
    forwarder.counters.count(code);
    log(forwarder, asked, &request_id, code, failure);
    let persistence = if body.is_some() { Persistence::KeepAlive } else { Persistence::Close };
    let bytes = match failure {
        ExchangeFailure::Request(RequestError::Connect) => {
            write_response_of_ours(405, "Method Not Allowed", &[], b"", persistence)
        }
        _ => render(refusal, head.as_ref(), &request_id, more, persistence),
    };
    if !matches!(timeout(ANSWER_TIME, gateway.stream.write_all(&bytes)).await, Ok(Ok(()))) {
        return RestOfRequest::Unread;
    }
    match body {
        Some(mut body) => discard(gateway, &mut body).await,
        None => {
            linger(gateway).await;
            RestOfRequest::Unread
        }
    }
}

/// The body, if its rest is short enough to be read. Otherwise the response tells the
/// gateway that the connection ends, so that its next request is not lost with it.
fn readable(mut body: Relay, gateway: &mut BufferedStream<TcpStream>) -> Option<Relay> {
    body.discard();
    body.take_early(gateway).ok()?;
    let is_short = body.left().is_some_and(|left| left <= MAX_DISCARDED as u64);
    is_short.then_some(body)
}

/// Logs a refusal, unless there were many of the same cause.
fn log(
    forwarder: &Forwarder,
    asked: Option<&StampedRequest>,
    request_id: &str,
    code: &'static str,
    failure: &ExchangeFailure,
) {
    let cause = match failure {
        // Any process of this machine can cause these without a stamp.
        ExchangeFailure::Request(error) => Cause::Stranger(error.to_string()),
        ExchangeFailure::Late => Cause::Stranger(code.to_owned()),
        _ => Cause::Stamped(code),
    };
    let Some(left_out) = forwarder.refusal_log.note(cause) else { return };
    let left_out = (left_out > 0).then_some(left_out);
    let (route, user) = who(forwarder, asked);
    macro_rules! refused {
        ($level:ident) => {
            tracing::$level!(
                request_id,
                route,
                code,
                reason = %failure,
                subject_digest = user.digest,
                subject = user.subject,
                workspace = user.workspace,
                left_out,
                "request refused"
            )
        };
    }
    if needs_attention(failure) { refused!(warn) } else { refused!(info) }
}

/// The route and the user of a request, as the log names them.
fn who<'a>(forwarder: &Forwarder, asked: Option<&'a StampedRequest>) -> (Option<&'a str>, LoggedUser<'a>) {
    let user = asked.map(|asked| forwarder.logged_users.by_upstream(&asked.upstream));
    (asked.and_then(|asked| asked.route.as_deref()), user.unwrap_or_default())
}

/// Whether an administrator should look at a failure. A bad stamp or a malformed request is
/// an attack or a mistake in the setup, and a machine may have run out of ports or files.
/// Everything else happens to workspaces every day.
fn needs_attention(failure: &ExchangeFailure) -> bool {
    matches!(
        failure,
        ExchangeFailure::Request(_)
            | ExchangeFailure::Body(_)
            | ExchangeFailure::Connect(ConnectError::NoMeans(_))
    )
}

/// The refusal as it goes to the gateway.
fn render(
    refusal: Refusal,
    head: Option<&RawRequestHead<'_>>,
    request_id: &str,
    more: More<'_>,
    persistence: Persistence,
) -> Vec<u8> {
    let method = head.map(|head| head.method).unwrap_or_default();
    let reader = head.map_or_else(|| Reader::new("", |_| None), reader);
    let rendered = refusal.render(&reader, request_id, more);
    // A response to HEAD has no body (RFC 9110, section 9.3.2).
    let body = if method == b"HEAD" { &[][..] } else { &rendered.body };
    write_response_of_ours(rendered.status, refusal.reason_phrase(), &rendered.headers, body, persistence)
}

/// What the sender of this request can read.
pub(super) fn reader(head: &RawRequestHead<'_>) -> Reader {
    let method = str::from_utf8(head.method).unwrap_or_default();
    Reader::new(method, |name| value(&head.fields, name))
}

fn value<'b>(fields: &[HeaderField<'b>], name: &str) -> Option<&'b [u8]> {
    fields.iter().find(|field| field.is(name)).map(|field| field.value)
}

/// Reads and discards the rest of a body, within limits. The next request may follow it.
pub(super) async fn discard(gateway: &mut BufferedStream<TcpStream>, body: &mut Relay) -> RestOfRequest {
    body.discard();
    let mut nowhere = Nowhere { left: MAX_DISCARDED };
    let discarding = poll_fn(|context| body.poll_pass(gateway, &mut nowhere, context));
    match timeout(MAX_DISCARDING, discarding).await {
        Ok(Ok(())) => RestOfRequest::Read,
        _ => RestOfRequest::Unread,
    }
}

/// Lets the gateway read what was written before the connection is closed.
async fn linger(gateway: &mut BufferedStream<TcpStream>) {
    let _ = gateway.stream.shutdown().await;
    let reading = async {
        let (mut piece, mut read) = ([0; 1024], 0);
        while let Ok(length @ 1..) = gateway.stream.read(&mut piece).await {
            read += length;
            if read > MAX_DISCARDED {
                break;
            }
        }
    };
    // The connection ends here, whether or not the time was enough.
    let _ = timeout(MAX_DISCARDING, reading).await;
}

/// A sink that takes a limited number of bytes.
struct Nowhere {
    left: usize,
}

impl AsyncWrite for Nowhere {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.left.checked_sub(bytes.len()) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Ok(bytes.len()))
            }
            None => Poll::Ready(Err(io::ErrorKind::StorageFull.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
