//! What the fuzz target `payload` tries: any bytes are read or rejected, and a payload that
//! the FlatBuffers library's verifier accepts reads the same here.

use std::fmt::Debug;

use crate::gateway_side::{
    decode_error, decode_prepared, decode_question, decode_request_answer, decode_response_answer, with_value,
};
use crate::gateway_side::{entries, root};
use crate::generated::a6;
use crate::payload::{MalformedPayload, PrepareConf, RequestCall, ResponseCall, decode_extra_info};

/// Reads the bytes as each kind of payload.
///
/// # Panics
///
/// If the two readings differ.
pub fn payload(data: &[u8]) {
    prepare_conf(data);
    request_call(data);
    response_call(data);
    let answer = root::<a6::extra_info::Resp<'_>>(data);
    let answer = answer.map(|answer| answer.result().map(|result| result.bytes()));
    check(data, answer, decode_extra_info(data));
    gateway_side(data);
}

/// The gateway's side reads with the verifier alone, so that it only has to return.
fn gateway_side(data: &[u8]) {
    let _ = (decode_error(data), decode_prepared(data), decode_question(data));
    let _ = (decode_request_answer(data), decode_response_answer(data));
}

fn prepare_conf(data: &[u8]) {
    let verified = root::<a6::prepare_conf::Req<'_>>(data).map(|call| {
        let confs: Vec<_> = entries(call.conf()).map(with_value).collect();
        (call.key().map_or_else(Vec::new, |key| key.as_bytes().to_vec()), confs)
    });
    let read = PrepareConf::decode(data).map(|call| {
        let confs = call.confs.iter().map(|(name, conf)| (name.to_vec(), conf.to_vec())).collect();
        (call.key.to_vec(), confs)
    });
    check(data, verified, read);
}

fn request_call(data: &[u8]) {
    let verified = root::<a6::httpreq_call::Req<'_>>(data).map(|call| {
        let path = call.path().map_or(&[][..], |path| path.bytes());
        let source = call.src_ip().map_or(&[][..], |source| source.bytes());
        let headers: Vec<_> = entries(call.headers()).map(with_value).collect();
        let arguments: Vec<_> = entries(call.args()).collect();
        ((call.id(), call.conf_token(), call.method().0), source, path, arguments, headers)
    });
    let read = RequestCall::decode(data).map(|call| {
        let headers = call.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        ((call.id, call.conf_token, call.method), call.src_ip, call.path, call.args, headers)
    });
    check(data, verified, read);
}

fn response_call(data: &[u8]) {
    let verified = root::<a6::httpresp_call::Req<'_>>(data).map(|call| {
        let headers: Vec<_> = entries(call.headers()).map(with_value).collect();
        (call.id(), call.conf_token(), call.status(), headers)
    });
    let read = ResponseCall::decode(data).map(|call| {
        let headers = call.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        (call.id, call.conf_token, call.status, headers)
    });
    check(data, verified, read);
}

#[track_caller]
fn check<T: Debug + PartialEq>(
    data: &[u8],
    verified: Result<T, MalformedPayload>,
    read: Result<T, MalformedPayload>,
) {
    if let Ok(verified) = verified {
        assert_eq!(read, Ok(verified), "{}", data.escape_ascii());
    }
}
