//! What plugins decided, as answers to the gateway.

use apisix_ext_plugin::frame::MAX_PAYLOAD;
use apisix_ext_plugin::payload::{Encoder, NameValue, ResponseParts, RewriteParts, StopParts};
use thiserror::Error;

use crate::carrier::Carried;
use crate::changes::{ChangeError, Changes, check_request_header, check_status, check_value};
use crate::plugin::Action;
use crate::request::Request;
use crate::response::Response;
use crate::stop::Stop;

/// An answer that the protocol can't carry.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum AnswerError {
    #[error("the answer is longer than a frame can be, {MAX_PAYLOAD} bytes")]
    TooLong,
    #[error("{0}")]
    Status(ChangeError),
    #[error("the carrier's header: {0}")]
    Carried(ChangeError),
}

/// The answer to a request call that its plugins decided.
pub(crate) fn action(
    encoder: &mut Encoder,
    request: &Request<'_>,
    action: &Action,
    carried: Option<Carried>,
) -> Result<(), AnswerError> {
    match action {
        Action::Continue if request.changes.is_empty() => encoder.unchanged(request.id),
        Action::Continue => {
            if let Some(Carried { name, value }) = &carried {
                // At an empty value the gateway deletes the header, and the request would go to
                // the route's own upstream.
                check_request_header(name).map_err(AnswerError::Carried)?;
                check_value(name, value.as_bytes()).map_err(AnswerError::Carried)?;
            }
            rewrite(encoder, request.id, &request.changes, carried);
        }
        // A body that can't fit is not even copied.
        Action::Stop(stop) if stop.body.len() > MAX_PAYLOAD => return Err(AnswerError::TooLong),
        Action::Stop(stop) => {
            check_status(stop.status.as_u16()).map_err(AnswerError::Status)?;
            encode_stop(encoder, request.id, stop);
        }
    }
    check_length(encoder)
}

/// The answer to a response call that its plugins looked at.
pub(crate) fn response(encoder: &mut Encoder, response: &Response<'_>) -> Result<(), AnswerError> {
    let status = response.changes.status.unwrap_or(0);
    let body = response.changes.body.as_deref().unwrap_or_default();
    encoder.response(response.id, ResponseParts { status, headers: &response.resulting_headers(), body });
    check_length(encoder)
}

/// The answer to a request call that could not be decided. It is a stop, because at an
/// error the gateway may skip the plugin.
pub(crate) fn request_failed(encoder: &mut Encoder, id: u32, stop: &Stop) {
    encode_stop(encoder, id, stop);
}

/// The answer to a response call that could not be decided. At an error the gateway would
/// let the upstream's body through (docs/gateway.md, HTTPRespCall), so it is a response of
/// the runner's own.
pub(crate) fn response_failed(encoder: &mut Encoder, id: u32, stop: &Stop) {
    let parts = ResponseParts { status: stop.status.as_u16(), headers: &entries(stop), body: &stop.body };
    encoder.response(id, parts);
}

fn entries(stop: &Stop) -> Vec<NameValue<'_>> {
    stop.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), Some(&value[..]))).collect()
}

fn encode_stop(encoder: &mut Encoder, id: u32, stop: &Stop) {
    let parts = StopParts { status: stop.status.as_u16(), headers: &entries(stop), body: &stop.body };
    encoder.stop(id, parts);
}

fn rewrite(encoder: &mut Encoder, id: u32, changes: &Changes, carried: Option<Carried>) {
    let mut headers: Vec<_> =
        changes.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_deref())).collect();
    if let Some(Carried { name, value }) = &carried {
        // The last of a name wins, so no plugin can put another choice there.
        headers.push((name.as_str().as_bytes(), Some(value.as_bytes())));
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

fn check_length(encoder: &Encoder) -> Result<(), AnswerError> {
    match encoder.payload().len() > MAX_PAYLOAD {
        true => Err(AnswerError::TooLong),
        false => Ok(()),
    }
}
