//! What plugins decided, as answers to the gateway.

use thiserror::Error;

use crate::changes::Changes;
use crate::frame::MAX_PAYLOAD;
use crate::plugin::{Action, Stop};
use crate::refusal::{More, Reader, Refusal, Rendered};
use crate::request::Request;
use crate::response::Response;
use crate::wire::{Encoder, Entry, ResponseParts, RewriteParts, StopParts};

/// An answer that no frame can carry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the answer is longer than a frame can be, {MAX_PAYLOAD} bytes")]
pub(crate) struct TooLong;

/// The header that carries a plugin's choice of the upstream.
pub(crate) type ChosenHeader = (&'static str, String);

/// The answer to a request call that its plugins decided.
pub(crate) fn action(
    encoder: &mut Encoder,
    request: &Request<'_>,
    action: &Action,
    chosen: Option<ChosenHeader>,
) -> Result<(), TooLong> {
    match action {
        Action::Continue if request.changes.is_empty() => encoder.unchanged(request.id),
        Action::Continue => rewrite(encoder, request.id, &request.changes, chosen),
        // A body that can't fit is not even copied.
        Action::Stop(stop) if stop.body.len() > MAX_PAYLOAD => return Err(TooLong),
        Action::Stop(stop) => encode_stop(encoder, request.id, stop),
    }
    check_length(encoder)
}

/// The answer to a response call that its plugins looked at.
pub(crate) fn response(encoder: &mut Encoder, response: &Response<'_>) -> Result<(), TooLong> {
    let status = response.changes.status.unwrap_or(0);
    let body = response.changes.body.as_deref().unwrap_or_default();
    encoder.response(response.id, ResponseParts { status, headers: &response.resulting_headers(), body });
    check_length(encoder)
}

/// The answer to a request call that nobody decided: a stop, since at an error
/// a gateway may skip the plugin.
pub(crate) fn request_failed(encoder: &mut Encoder, id: u32, reader: &Reader, request_id: &str) {
    request_refused(encoder, id, Refusal::RunnerFailed, reader, request_id);
}

/// The answer to a request call that can't go where its plugins sent it.
pub(crate) fn request_refused(
    encoder: &mut Encoder,
    id: u32,
    refusal: Refusal,
    reader: &Reader,
    request_id: &str,
) {
    let rendered = refusal.render(reader, request_id, More::Nothing);
    encoder
        .stop(id, StopParts { status: rendered.status, headers: &entries(&rendered), body: &rendered.body });
}

/// The same for a response call. An error would let the upstream's body through
/// (GATEWAY.md, HTTPRespCall), so the failure is a response of ours.
pub(crate) fn response_failed(encoder: &mut Encoder, id: u32, reader: &Reader, request_id: &str) {
    let rendered = Refusal::RunnerFailed.render(reader, request_id, More::Nothing);
    let parts = ResponseParts { status: rendered.status, headers: &entries(&rendered), body: &rendered.body };
    encoder.response(id, parts);
}

fn entries(rendered: &Rendered) -> Vec<Entry<'_>> {
    rendered.headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect()
}

fn encode_stop(encoder: &mut Encoder, id: u32, stop: &Stop) {
    let headers: Vec<_> =
        stop.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), Some(&value[..]))).collect();
    encoder.stop(id, StopParts { status: stop.status, headers: &headers, body: &stop.body });
}

fn rewrite(encoder: &mut Encoder, id: u32, changes: &Changes, chosen: Option<ChosenHeader>) {
    let mut headers: Vec<_> =
        changes.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_deref())).collect();
    if let Some((name, value)) = &chosen {
        // The last of a name wins, so no plugin can put another choice there.
        headers.push((name.as_bytes(), Some(value.as_bytes())));
    }
    let args: Vec<_> = changes.args.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
    let added = changes.response_headers.iter();
    let response_headers: Vec<_> =
        added.map(|(name, value)| (name.as_str().as_bytes(), Some(&value[..]))).collect();
    let parts = RewriteParts {
        path: changes.path.as_deref(),
        headers: &headers,
        args: &args,
        response_headers: &response_headers,
        body: changes.body.as_deref().unwrap_or_default(),
    };
    encoder.rewrite(id, parts);
}

fn check_length(encoder: &Encoder) -> Result<(), TooLong> {
    match encoder.payload().len() > MAX_PAYLOAD {
        true => Err(TooLong),
        false => Ok(()),
    }
}
