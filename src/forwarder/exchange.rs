//! One request and its answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use thiserror::Error;

use super::body::{Progress, RequestBody, ResponseBody};
use super::pool::Destination;
use super::workspace::{ConnectError, Connection, SendError};
use super::{Forwarder, Place, headers, tunnel};
use crate::refusal::{Reader, Refusal};
use crate::request_id::shown_request_id;
use crate::resolver::ResolveError;
use crate::stamp::{STAMP_HEADER, StampError};
use crate::upstream::Upstream;

/// The header that names a request in the gateway's logs and in ours.
const REQUEST_ID: &str = "x-request-id";

/// The workspace's body as it comes, or one of ours.
type AnswerBody = Either<ResponseBody, Full<Bytes>>;

/// Why a request gets no answer from a workspace.
#[derive(Debug, Error)]
enum Failure {
    #[error("stamp: {0}")]
    Stamp(#[from] StampError),
    #[error("resolver: {0}")]
    Resolve(#[from] ResolveError),
    #[error("workspace: {0}")]
    Connect(#[from] ConnectError),
    #[error("workspace: no response head within {0:?}")]
    Silent(Duration),
    #[error("workspace: {0}")]
    Broken(#[source] hyper::Error),
    #[error("workspace: an upgrade that nobody asked for")]
    UnaskedUpgrade,
    #[error("workspace: a transfer encoding other than chunked")]
    TransferEncoding,
}

impl Failure {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Stamp(_) => Refusal::StampRefused,
            Self::Resolve(ResolveError::NotFound) => Refusal::WorkspaceNotFound,
            Self::Resolve(ResolveError::Unavailable) => Refusal::ResolverUnavailable,
            Self::Connect(ConnectError::Http(_)) => Refusal::WorkspaceFailed,
            Self::Connect(_) | Self::Silent(_) => Refusal::WorkspaceStarting,
            Self::Broken(_) | Self::UnaskedUpgrade | Self::TransferEncoding => Refusal::WorkspaceFailed,
        }
    }
}

/// Answers a request of the gateway's: with the workspace's answer, or with a
/// refusal, which is logged here and nowhere else.
pub(super) async fn answer(
    forwarder: Arc<Forwarder>,
    place: Place,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    // It asks for a tunnel to a host of the client's choice. The gateway lets
    // none through, and hyper would make one of any answer with 2xx.
    if request.method() == Method::CONNECT {
        let mut response = Response::new(Either::Right(Full::default()));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return response;
    }
    let request_id = request_id(request.headers());
    let reader =
        Reader::new(request.method().as_str(), |name| request.headers().get(name).map(HeaderValue::as_bytes));
    let (parts, body) = request.into_parts();
    let (body, progress) = RequestBody::new(body);
    let request = Request::from_parts(parts, body);
    match relay(&forwarder, place, request, &progress, &request_id).await {
        Ok(response) => {
            let wait = forwarder.limits.response_head;
            response.map(|body| Either::Left(ResponseBody::new(body, progress, wait)))
        }
        Err(failure) => {
            let refusal = failure.refusal();
            let code = refusal.code();
            // A bad stamp is an attack or a mistake in the set-up; everything
            // else is a workspace's ordinary life.
            if refusal == Refusal::StampRefused {
                tracing::warn!(request_id, code, reason = %failure, "request refused");
            } else {
                tracing::info!(request_id, code, reason = %failure, "request refused");
            }
            progress.discard_leftover().await;
            refuse(refusal, &reader, &request_id).map(|body| Either::Right(Full::from(body)))
        }
    }
}

async fn relay(
    forwarder: &Arc<Forwarder>,
    place: Place,
    mut request: Request<RequestBody>,
    progress: &Progress,
    request_id: &str,
) -> Result<Response<Incoming>, Failure> {
    let upstream = take_stamp(forwarder, request.headers_mut())?;
    let addresses = forwarder.resolver.resolve(upstream.host()).await?;

    let gateway = hyper::upgrade::on(&mut request);
    // HTTP/1.0 has no upgrades (RFC 9110, section 7.8).
    let has_upgrades = request.version() == Version::HTTP_11;
    let protocols = headers::take_request_hop(request.headers_mut()).filter(|_| has_upgrades);
    let gateway = protocols.is_some().then_some(gateway);
    let request = for_workspace(request, protocols);

    let destination = Destination::of(&upstream);
    let exchange = send(forwarder, &destination, &addresses, upstream.port(), request);
    let wait = forwarder.limits.response_head;
    let (connection, mut response) = tokio::select! {
        sent = exchange => sent?,
        () = progress.stalled_for(wait) => return Err(Failure::Silent(wait)),
    };

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let gateway = gateway.ok_or(Failure::UnaskedUpgrade)?;
        let workspace = hyper::upgrade::on(&mut response);
        start_tunnel(forwarder, place, gateway, workspace, request_id);
        return Ok(for_gateway_upgraded(response));
    }
    let idle = headers::keep_alive(response.headers()).unwrap_or(forwarder.limits.idle);
    keep(forwarder, destination, connection, idle);
    for_gateway(response)
}

/// The upstream of the request's one good stamp, which is removed.
fn take_stamp(forwarder: &Forwarder, headers: &mut HeaderMap) -> Result<Upstream, StampError> {
    let mut stamps = headers.get_all(STAMP_HEADER).iter();
    let stamp = stamps.next().ok_or(StampError::Missing)?;
    if stamps.next().is_some() {
        return Err(StampError::Repeated);
    }
    let upstream = forwarder.key.check(stamp.as_bytes(), SystemTime::now())?;
    headers.remove(STAMP_HEADER);
    Ok(upstream)
}

/// The request as it goes to the workspace: the same method, target, headers
/// and body, on another connection.
fn for_workspace(request: Request<RequestBody>, protocols: Option<HeaderValue>) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    parts.version = Version::HTTP_11;
    // An absolute target is for proxies (RFC 9112, section 3.2.2), and where
    // this one goes the stamp has said.
    if parts.uri.scheme().is_some() {
        parts.uri = parts.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    }
    // hyper would send a GET without its body if nothing says how it ends.
    if body.size_hint().exact().is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(protocols) = protocols {
        headers::set_upgrade(&mut parts.headers, protocols);
    }
    Request::from_parts(parts, body)
}

/// Sends the request on an idle connection or on a new one, and returns the
/// connection with the head of the response.
async fn send(
    forwarder: &Forwarder,
    destination: &Destination,
    addresses: &[IpAddr],
    port: u16,
    mut request: Request<RequestBody>,
) -> Result<(Connection, Response<Incoming>), Failure> {
    if let Some(mut connection) = forwarder.pool.take(destination, addresses) {
        match connection.send(request).await {
            Ok(response) => return Ok((connection, response)),
            Err(SendError::Broken(error)) => return Err(Failure::Broken(error)),
            // It died while it waited. That no byte was written makes this the
            // one case where sending again is safe for any request.
            Err(SendError::Unsent(unsent, _)) => request = *unsent,
        }
    }
    let limit = forwarder.limits.connect;
    let mut connection = Connection::open(addresses, port, limit, &forwarder.tasks).await?;
    match connection.send(request).await {
        Ok(response) => Ok((connection, response)),
        Err(SendError::Broken(error) | SendError::Unsent(_, error)) => Err(Failure::Broken(error)),
    }
}

/// Returns the connection to the pool once the response has passed, for as long
/// as both sides keep it.
fn keep(forwarder: &Forwarder, destination: Destination, mut connection: Connection, idle: Duration) {
    if connection.requests() >= forwarder.limits.max_requests || idle.is_zero() {
        return;
    }
    let pool = Arc::clone(&forwarder.pool);
    forwarder.tasks.spawn(async move {
        if connection.becomes_idle().await {
            pool.put(destination, connection, idle);
        }
    });
}

fn start_tunnel(
    forwarder: &Forwarder,
    place: Place,
    gateway: OnUpgrade,
    workspace: OnUpgrade,
    request_id: &str,
) {
    let request_id = request_id.to_owned();
    forwarder.tasks.spawn(async move {
        tunnel::run(gateway, workspace, &request_id).await;
        drop(place);
    });
}

/// The response as it goes to the gateway: the same status with its words, the
/// same headers and body, on another connection.
fn for_gateway(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    if headers::is_encoded_otherwise(response.headers()) {
        return Err(Failure::TransferEncoding);
    }
    let (mut parts, body) = response.into_parts();
    headers::remove_response_hop(&mut parts.headers);
    let mut answer = Response::new(body);
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = parts.headers;
    if let Some(words) = parts.extensions.remove::<ReasonPhrase>() {
        answer.extensions_mut().insert(words);
    }
    Ok(answer)
}

fn for_gateway_upgraded(response: Response<Incoming>) -> Response<Incoming> {
    let (mut parts, body) = response.into_parts();
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    headers::remove_response_hop(&mut parts.headers);
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut parts.headers, protocol);
    }
    let mut answer = Response::new(body);
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = parts.headers;
    answer
}

fn refuse(refusal: Refusal, reader: &Reader, request_id: &str) -> Response<Vec<u8>> {
    let rendered = refusal.render(reader, request_id, None);
    let mut response = Response::new(rendered.body);
    *response.status_mut() =
        StatusCode::from_u16(rendered.status).expect("every refusal has a registered status");
    for (name, value) in rendered.headers {
        let value = HeaderValue::try_from(value).expect("the headers of a refusal are texts of ours");
        response.headers_mut().append(name, value);
    }
    response
}

/// The gateway's id of the request if it sent one that we may show, else one of
/// our own.
fn request_id(headers: &HeaderMap) -> String {
    shown_request_id(headers.get(REQUEST_ID).map(HeaderValue::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(failure: impl Into<Failure>, code: &str, text: &str) {
        let failure = failure.into();
        assert_eq!((failure.refusal().code(), failure.to_string().as_str()), (code, text));
    }

    #[test]
    fn failures_are_refused_and_worded_by_whose_they_are() {
        let wait = Duration::from_secs(6);
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        check(StampError::Missing, "stamp-refused", "stamp: no stamp");
        check(StampError::Expired, "stamp-refused", "stamp: expired");
        check(ResolveError::NotFound, "workspace-not-found", "resolver: the name does not exist");
        check(ResolveError::Unavailable, "resolver-unavailable", "resolver: no name server could say");
        check(ConnectError::Timeout(wait), "workspace-starting", "workspace: no connection within 6s");
        check(
            ConnectError::Refused(reset),
            "workspace-starting",
            "workspace: no connection: connection refused",
        );
        check(Failure::Silent(wait), "workspace-starting", "workspace: no response head within 6s");
        check(Failure::UnaskedUpgrade, "workspace-failed", "workspace: an upgrade that nobody asked for");
        check(
            Failure::TransferEncoding,
            "workspace-failed",
            "workspace: a transfer encoding other than chunked",
        );
    }
}
