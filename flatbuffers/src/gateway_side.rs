//! The gateway's side: encodes calls and decodes answers.
//!
//! Use it for a stand-in for the gateway in tests, and for commands that call a running
//! runner. The calls are methods of [`Encoder`].

use flatbuffers::{ForwardsUOffset, Vector};

use crate::generated::a6;
use crate::payload::{Encoder, ErrorCode, MalformedPayload, NameValue, Question};

/// A client's request as a gateway tells it.
///
/// ```
/// use apisix_ext_plugin::gateway_side::RequestParts;
/// use apisix_ext_plugin::payload::Encoder;
///
/// let request = RequestParts {
///     id: 7,
///     conf_token: 1,
///     src_ip: vec![192, 0, 2, 1],
///     path: b"/hello".to_vec(),
///     headers: vec![(b"host".to_vec(), b"gateway.test".to_vec())],
///     ..RequestParts::default()
/// };
/// let mut encoder = Encoder::new();
/// encoder.request_call(&request);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestParts {
    /// The call's number.
    pub id: u32,
    /// The token that PrepareConf got.
    pub conf_token: u32,
    /// The client's address, 4 or 16 bytes.
    pub src_ip: Vec<u8>,
    /// The method's number in the schema.
    pub method: u8,
    /// The path, decoded.
    pub path: Vec<u8>,
    /// The arguments of the query, decoded.
    pub args: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The headers, names in lower case.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a runner answered to a request call.
///
/// ```
/// use apisix_ext_plugin::gateway_side::{RequestAnswer, decode_request_answer};
/// use apisix_ext_plugin::payload::{Encoder, StopParts};
///
/// let mut encoder = Encoder::new();
/// encoder.stop(7, StopParts { status: 403, headers: &[], body: b"" });
///
/// let (id, answer) = decode_request_answer(encoder.payload())?;
/// assert_eq!((id, answer), (7, RequestAnswer::Stop { status: 403, headers: vec![], body: vec![] }));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestAnswer {
    /// The request goes on unchanged.
    Unchanged,
    /// The client gets this response.
    Stop {
        /// The status.
        status: u16,
        /// The headers.
        headers: Vec<(Vec<u8>, Vec<u8>)>,
        /// The body, or nothing.
        body: Vec<u8>,
    },
    /// The request goes on with these changes.
    Rewrite(Rewrite),
}

/// The changes of a request. Absent and empty fields stay as they were.
///
/// ```
/// use apisix_ext_plugin::gateway_side::{RequestAnswer, Rewrite, decode_request_answer};
/// use apisix_ext_plugin::payload::{Encoder, RewriteParts};
///
/// let mut encoder = Encoder::new();
/// encoder.rewrite(7, RewriteParts { path: Some(b"/new"), ..RewriteParts::default() });
///
/// let (_, answer) = decode_request_answer(encoder.payload())?;
/// let expected = Rewrite { path: Some(b"/new".to_vec()), ..Rewrite::default() };
/// assert_eq!(answer, RequestAnswer::Rewrite(expected));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The new path, decoded.
    pub path: Option<Vec<u8>>,
    /// Request headers; without a value the header is removed.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Arguments of the query; without a value the argument is removed.
    pub args: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Headers that are added to the response.
    pub response_headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The new body, or nothing.
    pub body: Vec<u8>,
}

/// What a runner answered to a response call.
///
/// ```
/// use apisix_ext_plugin::gateway_side::{ResponseAnswer, decode_response_answer};
/// use apisix_ext_plugin::payload::{Encoder, ResponseParts};
///
/// let mut encoder = Encoder::new();
/// encoder.response(7, ResponseParts { status: 410, headers: &[], body: b"" });
///
/// let (_, answer) = decode_response_answer(encoder.payload())?;
/// assert_eq!(answer, ResponseAnswer { status: 410, headers: vec![], body: vec![] });
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseAnswer {
    /// The new status; 0 leaves it as it was.
    pub status: u16,
    /// All headers of the response.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The new body, or nothing.
    pub body: Vec<u8>,
}

/// The payload's root, after the crate's verifier has looked at all of it: no
/// call waits for this, and it is another reading than the runner's own.
pub(crate) fn root<'f, T: flatbuffers::Follow<'f, Inner = T> + flatbuffers::Verifiable + 'f>(
    payload: &'f [u8],
) -> Result<T, MalformedPayload> {
    // The verifier's text spans lines; the first says what is wrong.
    flatbuffers::root::<T>(payload).map_err(|invalid| {
        MalformedPayload::Unverified(invalid.to_string().lines().next().unwrap_or_default().into())
    })
}

pub(crate) fn entries<'f>(
    vector: Option<Vector<'f, ForwardsUOffset<a6::TextEntry<'f>>>>,
) -> impl Iterator<Item = NameValue<'f>> {
    vector.into_iter().flatten().map(|entry| {
        let name = entry.name().map_or(&[][..], |name| name.bytes());
        (name, entry.value().map(|value| value.bytes()))
    })
}

fn owned(entry: NameValue<'_>) -> (Vec<u8>, Option<Vec<u8>>) {
    (entry.0.to_vec(), entry.1.map(<[u8]>::to_vec))
}

pub(crate) fn with_value(entry: NameValue<'_>) -> (Vec<u8>, Vec<u8>) {
    (entry.0.to_vec(), entry.1.unwrap_or_default().to_vec())
}

/// Reads an error answer.
///
/// ```
/// use apisix_ext_plugin::gateway_side::decode_error;
/// use apisix_ext_plugin::payload::{Encoder, ErrorCode};
///
/// let mut encoder = Encoder::new();
/// encoder.error(ErrorCode::CONF_TOKEN_NOT_FOUND);
/// assert_eq!(decode_error(encoder.payload())?, ErrorCode::CONF_TOKEN_NOT_FOUND);
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
///
/// # Errors
///
/// A payload that is not one.
pub fn decode_error(payload: &[u8]) -> Result<ErrorCode, MalformedPayload> {
    Ok(root::<a6::err::Resp<'_>>(payload)?.code())
}

/// Reads the conf token of an answer to PrepareConf.
///
/// ```
/// use apisix_ext_plugin::gateway_side::decode_prepared;
/// use apisix_ext_plugin::payload::Encoder;
///
/// let mut encoder = Encoder::new();
/// encoder.prepared(1234);
/// assert_eq!(decode_prepared(encoder.payload())?, 1234);
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
///
/// # Errors
///
/// A payload that is not one.
pub fn decode_prepared(payload: &[u8]) -> Result<u32, MalformedPayload> {
    Ok(root::<a6::prepare_conf::Resp<'_>>(payload)?.conf_token())
}

/// Reads the call's number and the answer to a request call.
///
/// ```
/// use apisix_ext_plugin::gateway_side::{RequestAnswer, decode_request_answer};
/// use apisix_ext_plugin::payload::Encoder;
///
/// let mut encoder = Encoder::new();
/// encoder.unchanged(7);
/// assert_eq!(decode_request_answer(encoder.payload())?, (7, RequestAnswer::Unchanged));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
///
/// # Errors
///
/// A payload that is not one.
pub fn decode_request_answer(payload: &[u8]) -> Result<(u32, RequestAnswer), MalformedPayload> {
    let answer = root::<a6::httpreq_call::Resp<'_>>(payload)?;
    let decoded = if let Some(stop) = answer.action_as_stop() {
        RequestAnswer::Stop {
            status: stop.status(),
            headers: entries(stop.headers()).map(with_value).collect(),
            body: stop.body().map_or_else(Vec::new, |body| body.bytes().to_vec()),
        }
    } else if let Some(rewrite) = answer.action_as_rewrite() {
        RequestAnswer::Rewrite(Rewrite {
            path: rewrite.path().map(|path| path.bytes().to_vec()),
            headers: entries(rewrite.headers()).map(owned).collect(),
            args: entries(rewrite.args()).map(owned).collect(),
            response_headers: entries(rewrite.resp_headers()).map(with_value).collect(),
            body: rewrite.body().map_or_else(Vec::new, |body| body.bytes().to_vec()),
        })
    } else {
        RequestAnswer::Unchanged
    };
    Ok((answer.id(), decoded))
}

/// Reads the call's number and the answer to a response call.
///
/// ```
/// use apisix_ext_plugin::gateway_side::decode_response_answer;
/// use apisix_ext_plugin::payload::{Encoder, ResponseParts};
///
/// let mut encoder = Encoder::new();
/// encoder.response(7, ResponseParts { status: 0, headers: &[], body: b"a new page" });
///
/// let (id, answer) = decode_response_answer(encoder.payload())?;
/// assert_eq!((id, &answer.body[..]), (7, &b"a new page"[..]));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
///
/// # Errors
///
/// A payload that is not one.
pub fn decode_response_answer(payload: &[u8]) -> Result<(u32, ResponseAnswer), MalformedPayload> {
    let answer = root::<a6::httpresp_call::Resp<'_>>(payload)?;
    let decoded = ResponseAnswer {
        status: answer.status(),
        headers: entries(answer.headers()).map(with_value).collect(),
        body: answer.body().map_or_else(Vec::new, |body| body.bytes().to_vec()),
    };
    Ok((answer.id(), decoded))
}

/// Reads the runner's question; `None` for an unknown kind of question.
///
/// ```
/// use apisix_ext_plugin::gateway_side::decode_question;
/// use apisix_ext_plugin::payload::{Encoder, Question};
///
/// let mut encoder = Encoder::new();
/// encoder.question(Question::RequestBody);
/// assert_eq!(decode_question(encoder.payload())?, Some(Question::RequestBody));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
///
/// # Errors
///
/// A payload that is not a question.
pub fn decode_question(payload: &[u8]) -> Result<Option<Question<'_>>, MalformedPayload> {
    let question = root::<a6::extra_info::Req<'_>>(payload)?;
    Ok(match question.info_type() {
        a6::extra_info::Info::Var => {
            let name = question.info_as_var().and_then(|variable| variable.name());
            Some(Question::Variable(name.unwrap_or_default()))
        }
        a6::extra_info::Info::ReqBody => Some(Question::RequestBody),
        a6::extra_info::Info::RespBody => Some(Question::ResponseBody),
        _ => None,
    })
}

impl Encoder {
    /// A PrepareConf call.
    pub fn prepare_conf_call(&mut self, key: &str, confs: &[(&[u8], &[u8])]) {
        self.start();
        let confs: Vec<NameValue<'_>> = confs.iter().map(|(name, conf)| (*name, Some(*conf))).collect();
        let conf = self.entries(&confs);
        let key = Some(self.builder.create_string(key));
        let args = a6::prepare_conf::ReqArgs { conf, key };
        let call = a6::prepare_conf::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(call);
    }

    /// A PrepareConf call whose list refers to one conf many times, as no gateway sends
    /// it: a runner has to reject it before it reads them all.
    pub fn repeated_conf(&mut self, name: &[u8], conf: &[u8], times: usize) {
        self.start();
        let entry = self.entry(name, Some(conf));
        let conf = Some(self.builder.create_vector(&vec![entry; times]));
        let args = a6::prepare_conf::ReqArgs { conf, key: None };
        let call = a6::prepare_conf::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(call);
    }

    /// A request call.
    pub fn request_call(&mut self, request: &RequestParts) {
        self.start();
        let arguments: Vec<NameValue<'_>> =
            request.args.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
        let headers: Vec<NameValue<'_>> =
            request.headers.iter().map(|(name, value)| (&name[..], Some(&value[..]))).collect();
        let args = a6::httpreq_call::ReqArgs {
            id: request.id,
            src_ip: Some(self.builder.create_vector(&request.src_ip)),
            method: a6::Method(request.method),
            path: Some(self.text(&request.path)),
            args: self.entries(&arguments),
            headers: self.entries(&headers),
            conf_token: request.conf_token,
        };
        let call = a6::httpreq_call::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(call);
    }

    /// A response call.
    pub fn response_call(&mut self, id: u32, conf_token: u32, status: u16, headers: &[NameValue<'_>]) {
        self.start();
        let headers = self.entries(headers);
        let args = a6::httpresp_call::ReqArgs { id, status, headers, conf_token };
        let call = a6::httpresp_call::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(call);
    }

    /// The answer to a question; `None` if there is no such thing.
    pub fn extra_info(&mut self, result: Option<&[u8]>) {
        self.start();
        let result = result.map(|result| self.builder.create_vector(result));
        let answer = a6::extra_info::Resp::create(&mut self.builder, &a6::extra_info::RespArgs { result });
        self.builder.finish_minimal(answer);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::payload::{PrepareConf, RequestCall, ResponseCall, decode_extra_info};

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..12)
    }

    prop_compose! {
        fn request()(
            (id, conf_token, method) in any::<(u32, u32, u8)>(),
            (src_ip, path) in (bytes(), bytes()),
            args in prop::collection::vec((bytes(), prop::option::of(bytes())), 0..5),
            headers in prop::collection::vec((bytes(), bytes()), 0..5),
        ) -> RequestParts {
            RequestParts { id, conf_token, src_ip, method, path, args, headers }
        }
    }

    fn read(payload: &[u8]) -> Result<RequestParts, MalformedPayload> {
        let call = RequestCall::decode(payload)?;
        Ok(RequestParts {
            id: call.id,
            conf_token: call.conf_token,
            src_ip: call.src_ip.to_vec(),
            method: call.method,
            path: call.path.to_vec(),
            args: call.args.into_iter().map(owned).collect(),
            headers: call.headers.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        })
    }

    fn read_by_the_crate(payload: &[u8]) -> Result<RequestParts, MalformedPayload> {
        let call = root::<a6::httpreq_call::Req<'_>>(payload)?;
        Ok(RequestParts {
            id: call.id(),
            conf_token: call.conf_token(),
            src_ip: call.src_ip().map_or_else(Vec::new, |bytes| bytes.bytes().to_vec()),
            method: call.method().0,
            path: call.path().map_or_else(Vec::new, |bytes| bytes.bytes().to_vec()),
            args: entries(call.args()).map(owned).collect(),
            headers: entries(call.headers()).map(with_value).collect(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_call_is_read_as_it_was_encoded(request in request()) {
            let mut encoder = Encoder::new();
            encoder.request_call(&request);
            prop_assert_eq!(read(encoder.payload()), Ok(request));
        }

        #[test]
        fn a_damaged_call_that_is_accepted_reads_the_same(
            request in request(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut encoder = Encoder::new();
            encoder.request_call(&request);
            let mut payload = encoder.payload().to_vec();
            for (at, byte) in damage {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            for payload in [&payload[..], &payload[..cut.index(payload.len())]] {
                if let Ok(parts) = read_by_the_crate(payload) {
                    prop_assert_eq!(read(payload), Ok(parts));
                }
            }
        }

        #[test]
        fn no_payload_is_too_strange(payload in prop::collection::vec(prop_oneof![Just(0u8), 0u8..40, any::<u8>()], 0..200)) {
            let _ = (RequestCall::decode(&payload), ResponseCall::decode(&payload));
            let _ = (PrepareConf::decode(&payload), decode_extra_info(&payload));
        }
    }

    #[test]
    fn a_real_gateways_calls_are_read_as_the_crate_reads_them() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let calls: Vec<_> =
            files.filter(|file| file.to_str().unwrap().ends_with("to-runner-HTTPReqCall.bin")).collect();
        assert!(calls.len() > 30, "{}", calls.len());
        for file in calls {
            let frame = std::fs::read(&file).unwrap();
            let payload = &frame[crate::frame::HEADER..];
            assert_eq!(read(payload), read_by_the_crate(payload), "{}", file.display());
            assert!(!read(payload).unwrap().headers.is_empty());
        }
    }

    #[test]
    fn a_list_that_claims_millions_is_refused() {
        let mut encoder = Encoder::new();
        let headers = vec![(Vec::new(), Vec::new()); (1 << 16) + 1];
        encoder.request_call(&RequestParts { headers, ..RequestParts::default() });
        let error = RequestCall::decode(encoder.payload()).expect_err("too many");
        assert_eq!(error.to_string(), "malformed payload: a list of 65537 entries");
        let error = RequestCall::decode(&[9, 0, 0, 0]).expect_err("outside");
        assert_eq!(error.to_string(), "malformed payload: what stands at byte 9 reaches beyond the end");
    }
}
