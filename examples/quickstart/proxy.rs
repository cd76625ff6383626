//! A request's way from the gateway to the forwarder, and its response's way back.

use std::net::SocketAddr;

use apisix_plugin_runner::gateway::ForwardedRequest;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::pages::{self, TEXT};
use crate::tasks::Tasks;

/// A body that passes piece by piece, or a body of our own.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The headers that belong to one connection and not to the next.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Sends the client's request to the forwarder in the form that the runner gave it, and
/// returns the response.
pub(crate) async fn forward(
    forwarder: SocketAddr,
    request: Request<Incoming>,
    forwarded: &ForwardedRequest,
    tasks: &Tasks,
) -> Response<Body> {
    exchange(forwarder, request, forwarded, tasks).await.unwrap_or_else(|_| {
        pages::answer(StatusCode::BAD_GATEWAY, TEXT, "The forwarder broke off.\n").map(Either::Right)
    })
}

async fn exchange(
    forwarder: SocketAddr,
    mut request: Request<Incoming>,
    forwarded: &ForwardedRequest,
    tasks: &Tasks,
) -> Result<Response<Body>, Error> {
    let client = hyper::upgrade::on(&mut request);
    // A new connection for each request. A real gateway keeps them, which would make no
    // visible difference here.
    let stream = TcpStream::connect(forwarder).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tasks.spawn(async move {
        // If this fails, the response fails too.
        let _ = connection.with_upgrades().await;
    });
    let mut response = sender.send_request(for_forwarder(request, forwarded)?).await?;

    let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if is_upgraded {
        let workspace = hyper::upgrade::on(&mut response);
        tasks.spawn(tunnel(client, workspace));
    }
    let protocol = response.headers().get(header::UPGRADE).filter(|_| is_upgraded).cloned();
    remove_hop_by_hop(response.headers_mut());
    set_upgrade(response.headers_mut(), protocol);
    append_headers(response.headers_mut(), &forwarded.response_headers);
    Ok(response.map(Either::Left))
}

/// The request to the forwarder: the runner's headers and target, the client's body.
fn for_forwarder(request: Request<Incoming>, forwarded: &ForwardedRequest) -> Result<Request<Body>, Error> {
    let protocol = request.headers().get(header::UPGRADE).cloned();
    let method = request.method().clone();
    let body = match &forwarded.body {
        Some(body) => Either::Right(Full::new(body.clone())),
        None => Either::Left(request.into_body()),
    };
    let has_length = body.size_hint().exact().is_some();
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = forwarded.target.as_slice().try_into()?;
    append_headers(request.headers_mut(), &forwarded.headers);
    remove_hop_by_hop(request.headers_mut());
    set_upgrade(request.headers_mut(), protocol);
    // hyper would send a GET without its body if nothing says how it ends.
    if !has_length {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(request)
}

/// Copies both ways until both sides have ended.
async fn tunnel(client: OnUpgrade, workspace: OnUpgrade) {
    if let Ok((client, workspace)) = tokio::try_join!(client, workspace) {
        // A broken tunnel is the fault of one of its ends, so it is not reported.
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(workspace)).await;
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn set_upgrade(headers: &mut HeaderMap, protocol: Option<HeaderValue>) {
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Adds headers, without those that are not valid.
pub(crate) fn append_headers(headers: &mut HeaderMap, added: &[(String, Vec<u8>)]) {
    for (name, value) in added {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
}
