//! The runner's side: decodes calls and encodes answers.
//!
//! Each field is checked before it is used. Text that a client may have sent is bytes. The
//! schema is `ext-plugin.fbs`.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};

use crate::generated::a6;
use crate::table::PayloadTable;

/// The code of an error answer.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, ErrorCode};
///
/// // The gateway prepares the route again, and then repeats the call.
/// let mut encoder = Encoder::new();
/// encoder.error(ErrorCode::CONF_TOKEN_NOT_FOUND);
/// ```
pub use crate::generated::a6::err::Code as ErrorCode;
pub use crate::malformed::{MalformedPayload, NameValue};

/// How large an encoder's buffer may be and still be kept for the next answer.
const KEPT: usize = 64 * 1024;

/// A route's plugins with their confs, in their order.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, PrepareConf};
///
/// let mut encoder = Encoder::new();
/// encoder.prepare_conf_call("route#1#ext-plugin-pre-req#1", &[(b"hello", b"{}")]);
/// let call = PrepareConf::decode(encoder.payload())?;
/// assert_eq!(call.confs, [(&b"hello"[..], &b"{}"[..])]);
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Debug)]
pub struct PrepareConf<'f> {
    /// The route's key: `route#<id>#<plugin>#<version>`.
    pub key: &'f [u8],
    /// Each plugin's name and conf.
    pub confs: Vec<(&'f [u8], &'f [u8])>,
}

impl<'f> PrepareConf<'f> {
    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// A payload that is not such a call.
    pub fn decode(payload: &'f [u8]) -> Result<Self, MalformedPayload> {
        let table = PayloadTable::root(payload)?;
        Ok(Self {
            confs: table.entries(0, |(name, conf)| (name, conf.unwrap_or_default()))?,
            key: table.bytes(1)?.unwrap_or_default(),
        })
    }
}

/// A client's request.
///
/// ```
/// use apisix_ext_plugin::gateway_side::RequestParts;
/// use apisix_ext_plugin::payload::{Encoder, RequestCall};
///
/// let mut encoder = Encoder::new();
/// let headers = vec![(b"x-name".to_vec(), b"alice".to_vec())];
/// encoder.request_call(&RequestParts { id: 7, headers, ..RequestParts::default() });
///
/// let call = RequestCall::decode(encoder.payload())?;
/// assert_eq!((call.id, call.headers[0].1), (7, &b"alice"[..]));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Debug)]
pub struct RequestCall<'f> {
    /// The call's number, which the answer repeats.
    pub id: u32,
    /// The client's address: 4 or 16 bytes from a gateway.
    pub src_ip: &'f [u8],
    /// The method's number in the schema.
    pub method: u8,
    /// The path, decoded.
    pub path: &'f [u8],
    /// The arguments of the query, decoded.
    pub args: Vec<NameValue<'f>>,
    /// The headers, names in lower case.
    pub headers: Vec<(&'f [u8], &'f [u8])>,
    /// The token that PrepareConf got.
    pub conf_token: u32,
}

impl<'f> RequestCall<'f> {
    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// A payload that is not such a call.
    pub fn decode(payload: &'f [u8]) -> Result<Self, MalformedPayload> {
        let table = PayloadTable::root(payload)?;
        Ok(Self {
            id: table.u32(0)?,
            src_ip: table.bytes(1)?.unwrap_or_default(),
            method: table.u8(2)?,
            path: table.bytes(3)?.unwrap_or_default(),
            args: table.entries(4, |entry| entry)?,
            headers: table.entries(5, |(name, value)| (name, value.unwrap_or_default()))?,
            conf_token: table.u32(6)?,
        })
    }
}

/// An upstream's response.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, ResponseCall};
///
/// let mut encoder = Encoder::new();
/// encoder.response_call(7, 1, 404, &[(b"server", Some(b"nginx"))]);
///
/// let call = ResponseCall::decode(encoder.payload())?;
/// assert_eq!((call.id, call.conf_token, call.status), (7, 1, 404));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Debug)]
pub struct ResponseCall<'f> {
    /// The call's number, which the answer repeats.
    pub id: u32,
    /// The status that the upstream sent.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(&'f [u8], &'f [u8])>,
    /// The token that PrepareConf got.
    pub conf_token: u32,
}

impl<'f> ResponseCall<'f> {
    /// Reads a payload.
    ///
    /// # Errors
    ///
    /// A payload that is not such a call.
    pub fn decode(payload: &'f [u8]) -> Result<Self, MalformedPayload> {
        let table = PayloadTable::root(payload)?;
        Ok(Self {
            id: table.u32(0)?,
            status: table.u16(1)?,
            headers: table.entries(2, |(name, value)| (name, value.unwrap_or_default()))?,
            conf_token: table.u32(3)?,
        })
    }
}

/// What the runner may ask while it holds a call.
///
/// ```
/// use apisix_ext_plugin::gateway_side::decode_question;
/// use apisix_ext_plugin::payload::{Encoder, Question};
///
/// let mut encoder = Encoder::new();
/// encoder.question(Question::Variable("route_id"));
/// assert_eq!(decode_question(encoder.payload())?, Some(Question::Variable("route_id")));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// An nginx or APISIX variable.
    Variable(&'a str),
    /// The whole body of the request.
    RequestBody,
    /// The whole body of the response.
    ResponseBody,
}

/// Reads the gateway's answer to a question; `None` if the gateway has no such thing.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, decode_extra_info};
///
/// let mut encoder = Encoder::new();
/// encoder.extra_info(Some(b"42"));
/// assert_eq!(decode_extra_info(encoder.payload())?, Some(&b"42"[..]));
/// # Ok::<(), apisix_ext_plugin::payload::MalformedPayload>(())
/// ```
///
/// # Errors
///
/// A payload that is not such an answer.
pub fn decode_extra_info(payload: &[u8]) -> Result<Option<&[u8]>, MalformedPayload> {
    PayloadTable::root(payload)?.bytes(0)
}

/// The parts of a `Stop`.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, StopParts};
///
/// let headers: [(&[u8], Option<&[u8]>); 1] = [(b"content-type", Some(b"text/plain"))];
/// let mut encoder = Encoder::new();
/// encoder.stop(7, StopParts { status: 403, headers: &headers, body: b"not you" });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StopParts<'a> {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// The body, or nothing.
    pub body: &'a [u8],
}

/// The parts of a `Rewrite`. What is empty or absent stays as it was.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, RewriteParts};
///
/// let headers: [(&[u8], Option<&[u8]>); 2] = [(b"x-user", Some(b"alice")), (b"x-userinfo", None)];
/// let mut encoder = Encoder::new();
/// encoder.rewrite(7, RewriteParts { headers: &headers, ..RewriteParts::default() });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RewriteParts<'a> {
    /// The new path, decoded.
    pub path: Option<&'a [u8]>,
    /// Request headers; without a value the header is removed.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// Arguments of the query; without a value the argument is removed.
    pub args: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// Headers that are added to the response.
    pub response_headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// The new body of the request.
    pub body: &'a [u8],
}

/// The parts of an answer about a response.
///
/// ```
/// use apisix_ext_plugin::payload::{Encoder, ResponseParts};
///
/// let headers: [(&[u8], Option<&[u8]>); 1] = [(b"content-type", Some(b"text/html"))];
/// let mut encoder = Encoder::new();
/// encoder.response(7, ResponseParts { status: 0, headers: &headers, body: b"a new page" });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ResponseParts<'a> {
    /// 0 leaves the status as it was.
    pub status: u16,
    /// All headers of the response.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// The new body, or nothing.
    pub body: &'a [u8],
}

/// Makes payloads, one after another, in the same memory.
///
/// ```
/// use apisix_ext_plugin::frame::{FrameHeader, FrameKind};
/// use apisix_ext_plugin::payload::Encoder;
///
/// let mut encoder = Encoder::new();
/// encoder.unchanged(7);
/// let payload = encoder.payload();
/// let header = FrameHeader { kind: FrameKind::RequestCall, length: payload.len() };
/// let header = header.encode().expect("a payload that a frame can hold");
/// let frame = [&header[..], payload].concat();
/// ```
pub struct Encoder {
    pub(crate) builder: FlatBufferBuilder<'static>,
}

pub(crate) type ByteString = WIPOffset<Vector<'static, u8>>;
pub(crate) type TextEntries = WIPOffset<Vector<'static, ForwardsUOffset<a6::TextEntry<'static>>>>;

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder without a payload.
    #[must_use]
    pub fn new() -> Self {
        Self { builder: FlatBufferBuilder::with_capacity(1024) }
    }

    /// The payload that was encoded last.
    ///
    /// # Panics
    ///
    /// Before the first payload was encoded.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.builder.finished_data()
    }

    pub(crate) fn start(&mut self) {
        if self.builder.mut_finished_buffer().0.len() > KEPT {
            self.builder = FlatBufferBuilder::with_capacity(1024);
        } else {
            self.builder.reset();
        }
    }

    pub(crate) fn text(&mut self, bytes: &[u8]) -> ByteString {
        // A text is a vector of bytes that a NUL follows, which the gateway's reader wants.
        WIPOffset::new(self.builder.create_byte_string(bytes).value())
    }

    pub(crate) fn entry(&mut self, name: &[u8], value: Option<&[u8]>) -> WIPOffset<a6::TextEntry<'static>> {
        let name = Some(self.text(name));
        let value = value.map(|value| self.text(value));
        a6::TextEntry::create(&mut self.builder, &a6::TextEntryArgs { name, value })
    }

    pub(crate) fn entries(&mut self, entries: &[NameValue<'_>]) -> Option<TextEntries> {
        if entries.is_empty() {
            return None;
        }
        let offsets: Vec<_> = entries.iter().map(|(name, value)| self.entry(name, *value)).collect();
        Some(self.builder.create_vector(&offsets))
    }

    fn body(&mut self, body: &[u8]) -> Option<ByteString> {
        (!body.is_empty()).then(|| self.builder.create_vector(body))
    }

    /// An error answer.
    pub fn error(&mut self, code: ErrorCode) {
        self.start();
        let answer = a6::err::Resp::create(&mut self.builder, &a6::err::RespArgs { code });
        self.builder.finish_minimal(answer);
    }

    /// The answer to PrepareConf.
    pub fn prepared(&mut self, conf_token: u32) {
        self.start();
        let args = a6::prepare_conf::RespArgs { conf_token };
        let answer = a6::prepare_conf::Resp::create(&mut self.builder, &args);
        self.builder.finish_minimal(answer);
    }

    /// The answer that lets a request go on unchanged.
    pub fn unchanged(&mut self, id: u32) {
        self.start();
        self.finish_request(a6::httpreq_call::RespArgs { id, ..Default::default() });
    }

    /// The answer that the client gets this response.
    pub fn stop(&mut self, id: u32, stop: StopParts<'_>) {
        self.start();
        let headers = self.entries(stop.headers);
        let body = self.body(stop.body);
        let args = a6::httpreq_call::StopArgs { status: stop.status, headers, body };
        let action = a6::httpreq_call::Stop::create(&mut self.builder, &args).as_union_value();
        self.finish_request(a6::httpreq_call::RespArgs {
            id,
            action_type: a6::httpreq_call::Action::Stop,
            action: Some(action),
        });
    }

    /// The answer that the request goes on with these changes.
    pub fn rewrite(&mut self, id: u32, rewrite: RewriteParts<'_>) {
        self.start();
        let args = a6::httpreq_call::RewriteArgs {
            path: rewrite.path.map(|path| self.text(path)),
            headers: self.entries(rewrite.headers),
            args: self.entries(rewrite.args),
            resp_headers: self.entries(rewrite.response_headers),
            body: self.body(rewrite.body),
        };
        let action = a6::httpreq_call::Rewrite::create(&mut self.builder, &args).as_union_value();
        self.finish_request(a6::httpreq_call::RespArgs {
            id,
            action_type: a6::httpreq_call::Action::Rewrite,
            action: Some(action),
        });
    }

    fn finish_request(&mut self, args: a6::httpreq_call::RespArgs) {
        let answer = a6::httpreq_call::Resp::create(&mut self.builder, &args);
        self.builder.finish_minimal(answer);
    }

    /// The answer to a response call.
    pub fn response(&mut self, id: u32, response: ResponseParts<'_>) {
        self.start();
        let args = a6::httpresp_call::RespArgs {
            id,
            status: response.status,
            headers: self.entries(response.headers),
            body: self.body(response.body),
        };
        let answer = a6::httpresp_call::Resp::create(&mut self.builder, &args);
        self.builder.finish_minimal(answer);
    }

    /// A question to the gateway.
    pub fn question(&mut self, question: Question<'_>) {
        use a6::extra_info::{Info, ReqBody, ReqBodyArgs, RespBody, RespBodyArgs, Var, VarArgs};
        self.start();
        let (info_type, info) = match question {
            Question::Variable(name) => {
                let name = Some(self.builder.create_string(name));
                (Info::Var, Var::create(&mut self.builder, &VarArgs { name }).as_union_value())
            }
            Question::RequestBody => {
                (Info::ReqBody, ReqBody::create(&mut self.builder, &ReqBodyArgs {}).as_union_value())
            }
            Question::ResponseBody => {
                (Info::RespBody, RespBody::create(&mut self.builder, &RespBodyArgs {}).as_union_value())
            }
        };
        let args = a6::extra_info::ReqArgs { info_type, info: Some(info) };
        let question = a6::extra_info::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(question);
    }
}
