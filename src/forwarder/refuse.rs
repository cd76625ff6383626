//! Responses of ours, and what becomes of the rest of a request that got one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use std::future::poll_fn;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Forwarder;
use super::asked::AskedError;
use super::buffered::Buffered;
use super::exchange::Next;
use super::failure::Failure;
use super::head::{Field, RequestHead};
use super::headers::write_response_of_ours;
use super::relay::Relay;
use super::workspace::ConnectError;
use crate::refusal::{More, Reader, Refusal};
use crate::request_id::shown_request_id;

/// The header that names a request in the gateway's logs and in ours.
const REQUEST_ID: &str = "x-request-id";

/// What a response counts as that has begun and was not finished.
const BROKEN_OFF: &str = "response-broken-off";

/// How much of a request is read that nobody wants, and for how long.
///
/// A connection that is closed while something is unread is reset, and a reset
/// may take the response from the gateway before it has read it.
const MAX_DISCARDED: usize = 1 << 20;
const MAX_DISCARDING: Duration = Duration::from_secs(2);

/// How long the gateway may take to read a response of ours.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Responds to the request whose head is used up, and logs why, here and nowhere else.
/// With its body, the connection can go on behind it.
pub(super) async fn respond(
    forwarder: &Forwarder,
    gateway: &mut Buffered<TcpStream>,
    failure: &Failure,
    body: Option<Relay>,
    more: More<'_>,
) -> Next {
    let head = RequestHead::parse(gateway.used()).ok();
    let request_id = shown_request_id(head.as_ref().and_then(|head| value(&head.fields, REQUEST_ID)));
    let Some(refusal) = failure.refusal() else {
        if matches!(failure, Failure::BrokenOff(_)) {
            forwarder.counters.count(BROKEN_OFF);
            tracing::info!(request_id, code = BROKEN_OFF, reason = %failure, "response broke off");
        } else {
            tracing::debug!(request_id, reason = %failure, "exchange broke off");
        }
        return Next::End;
    };
    // Who waits for a 100 may now send the body, or leave it out.
    let may_be_left_out = head.as_ref().is_some_and(|head| value(&head.fields, "expect").is_some());
    drop(head);
    let body = body.filter(|_| !may_be_left_out).and_then(|mut body| {
        body.discard();
        body.take_early(gateway).ok()?;
        // The gateway may send its next request at once, which must not be lost with the
        // connection: it is told that there is none where the rest may be too much.
        let is_short = body.left().is_some_and(|left| left <= MAX_DISCARDED as u64);
        is_short.then_some(body)
    });
    let head = RequestHead::parse(gateway.used()).ok();
    let code = refusal.code();
    forwarder.counters.count(code);
    // A bad stamp or a malformed request is an attack or a mistake in the set-up, and a
    // machine without ports or files left is an operator's to mend; everything else is a
    // workspace's ordinary life.
    let is_ours = matches!(failure, Failure::Connect(ConnectError::NoMeans(_)));
    if is_ours || matches!(failure, Failure::Asked(_) | Failure::Body(_)) {
        tracing::warn!(request_id, code, reason = %failure, "request refused");
    } else {
        tracing::info!(request_id, code, reason = %failure, "request refused");
    }
    let is_last = body.is_none();
    let bytes = match failure {
        Failure::Asked(AskedError::Connect) => {
            write_response_of_ours(405, "Method Not Allowed", &[], b"", is_last)
        }
        _ => render(refusal, head.as_ref(), &request_id, more, is_last),
    };
    if !matches!(timeout(ANSWER_TIME, gateway.stream.write_all(&bytes)).await, Ok(Ok(()))) {
        return Next::End;
    }
    match body {
        Some(mut body) => discard(gateway, &mut body).await,
        None => {
            linger(gateway).await;
            Next::End
        }
    }
}

/// The refusal as it goes to the gateway.
fn render(
    refusal: Refusal,
    head: Option<&RequestHead<'_>>,
    request_id: &str,
    more: More<'_>,
    is_last: bool,
) -> Vec<u8> {
    let method = head.map(|head| head.method).unwrap_or_default();
    let reader = head.map_or_else(|| Reader::new("", |_| None), reader);
    let rendered = refusal.render(&reader, request_id, more);
    // What answers a HEAD has no body (RFC 9110, section 9.3.2).
    let body = if method == b"HEAD" { &[][..] } else { &rendered.body };
    write_response_of_ours(rendered.status, refusal.reason_phrase(), &rendered.headers, body, is_last)
}

/// Who asked, and what they can read.
pub(super) fn reader(head: &RequestHead<'_>) -> Reader {
    let method = str::from_utf8(head.method).unwrap_or_default();
    Reader::new(method, |name| value(&head.fields, name))
}

fn value<'b>(fields: &[Field<'b>], name: &str) -> Option<&'b [u8]> {
    fields.iter().find(|field| field.is(name)).map(|field| field.value)
}

/// Reads the rest of a body that nobody wants, within limits; behind it the next
/// request may come.
pub(super) async fn discard(gateway: &mut Buffered<TcpStream>, body: &mut Relay) -> Next {
    body.discard();
    let mut nowhere = Nowhere { left: MAX_DISCARDED };
    let discarding = poll_fn(|context| body.poll_pass(gateway, &mut nowhere, context));
    match timeout(MAX_DISCARDING, discarding).await {
        Ok(Ok(())) => Next::Request,
        _ => Next::End,
    }
}

/// Lets the gateway read what was written before the connection is closed.
async fn linger(gateway: &mut Buffered<TcpStream>) {
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
    // Late or not, it ends here.
    let _ = timeout(MAX_DISCARDING, reading).await;
}

/// Takes some bytes, and no more.
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
