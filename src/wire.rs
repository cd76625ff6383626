//! Payloads: FlatBuffers bytes ↔ typed values, as the runner sees them.
//!
//! Nothing of a payload is believed before it is checked. The schema is
//! `flatbuffers/ext-plugin.fbs`; text that a client may have sent is bytes.

pub(crate) mod gateway_side;
mod table;

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use thiserror::Error;

use generated::a6;
use table::Table;

#[allow(
    unsafe_code,
    unreachable_pub,
    missing_docs,
    deprecated,
    unused_imports,
    dead_code,
    clippy::all,
    clippy::unwrap_used,
    clippy::semicolon_if_nothing_returned,
    clippy::uninlined_format_args,
    clippy::fn_params_excessive_bools
)]
#[rustfmt::skip]
#[path = "../flatbuffers/ext_plugin_generated.rs"]
mod generated;

pub(crate) use a6::err::Code as ErrorCode;

/// How large an encoder's buffer may be and still be kept for the next answer.
const KEPT: usize = 64 * 1024;

/// A payload that is not what its kind says.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    #[error("malformed payload: what stands at byte {at} reaches beyond the end")]
    OutOfBounds { at: usize },
    #[error("malformed payload: a list of {entries} entries")]
    TooMany { entries: usize },
    #[error("malformed payload: {0}")]
    Unverified(Box<str>),
}

/// A name with its value.
pub(crate) type Entry<'f> = (&'f [u8], Option<&'f [u8]>);

/// A route's plugins with their confs, in their order.
#[derive(Debug)]
pub(crate) struct PrepareConf<'f> {
    pub(crate) key: &'f [u8],
    pub(crate) confs: Vec<(&'f [u8], &'f [u8])>,
}

impl<'f> PrepareConf<'f> {
    pub(crate) fn decode(payload: &'f [u8]) -> Result<Self, Malformed> {
        let table = Table::root(payload)?;
        Ok(Self {
            confs: table.entries(0, |(name, conf)| (name, conf.unwrap_or_default()))?,
            key: table.bytes(1)?.unwrap_or_default(),
        })
    }
}

/// A client's request.
#[derive(Debug)]
pub(crate) struct RequestCall<'f> {
    pub(crate) id: u32,
    /// 4 or 16 bytes from a gateway.
    pub(crate) src_ip: &'f [u8],
    /// The method's number in the schema.
    pub(crate) method: u8,
    pub(crate) path: &'f [u8],
    pub(crate) args: Vec<Entry<'f>>,
    pub(crate) headers: Vec<(&'f [u8], &'f [u8])>,
    pub(crate) conf_token: u32,
}

impl<'f> RequestCall<'f> {
    pub(crate) fn decode(payload: &'f [u8]) -> Result<Self, Malformed> {
        let table = Table::root(payload)?;
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
#[derive(Debug)]
pub(crate) struct ResponseCall<'f> {
    pub(crate) id: u32,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'f [u8], &'f [u8])>,
    pub(crate) conf_token: u32,
}

impl<'f> ResponseCall<'f> {
    pub(crate) fn decode(payload: &'f [u8]) -> Result<Self, Malformed> {
        let table = Table::root(payload)?;
        Ok(Self {
            id: table.u32(0)?,
            status: table.u16(1)?,
            headers: table.entries(2, |(name, value)| (name, value.unwrap_or_default()))?,
            conf_token: table.u32(3)?,
        })
    }
}

/// What the runner may ask while it holds a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question<'a> {
    Variable(&'a str),
    RequestBody,
    ResponseBody,
}

/// What the gateway said to a question; `None` where there is no such thing.
pub(crate) fn decode_extra_info(payload: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    Table::root(payload)?.bytes(0)
}

/// The parts of a `Stop`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopParts<'a> {
    pub(crate) status: u16,
    pub(crate) headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    pub(crate) body: &'a [u8],
}

/// The parts of a `Rewrite`. What is empty or absent stays as it was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RewriteParts<'a> {
    pub(crate) path: Option<&'a [u8]>,
    pub(crate) headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    pub(crate) args: &'a [(&'a [u8], Option<&'a [u8]>)],
    pub(crate) response_headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    pub(crate) body: &'a [u8],
}

/// The parts of an answer about a response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseParts<'a> {
    /// 0 leaves the status as it was.
    pub(crate) status: u16,
    pub(crate) headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    pub(crate) body: &'a [u8],
}

/// Makes payloads, one after another, in the same memory.
pub(crate) struct Encoder {
    builder: FlatBufferBuilder<'static>,
}

type Text = WIPOffset<Vector<'static, u8>>;
type TextEntries = WIPOffset<Vector<'static, ForwardsUOffset<a6::TextEntry<'static>>>>;

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { builder: FlatBufferBuilder::with_capacity(1024) }
    }

    /// The payload that was encoded last.
    pub(crate) fn payload(&self) -> &[u8] {
        self.builder.finished_data()
    }

    fn start(&mut self) {
        if self.builder.mut_finished_buffer().0.len() > KEPT {
            self.builder = FlatBufferBuilder::with_capacity(1024);
        } else {
            self.builder.reset();
        }
    }

    fn text(&mut self, bytes: &[u8]) -> Text {
        // A text is a vector of bytes with a NUL behind it, which the gateway's reader wants.
        WIPOffset::new(self.builder.create_byte_string(bytes).value())
    }

    fn entry(&mut self, name: &[u8], value: Option<&[u8]>) -> WIPOffset<a6::TextEntry<'static>> {
        let name = Some(self.text(name));
        let value = value.map(|value| self.text(value));
        a6::TextEntry::create(&mut self.builder, &a6::TextEntryArgs { name, value })
    }

    fn entries(&mut self, entries: &[Entry<'_>]) -> Option<TextEntries> {
        if entries.is_empty() {
            return None;
        }
        let offsets: Vec<_> = entries.iter().map(|(name, value)| self.entry(name, *value)).collect();
        Some(self.builder.create_vector(&offsets))
    }

    fn body(&mut self, body: &[u8]) -> Option<Text> {
        (!body.is_empty()).then(|| self.builder.create_vector(body))
    }

    pub(crate) fn error(&mut self, code: ErrorCode) {
        self.start();
        let answer = a6::err::Resp::create(&mut self.builder, &a6::err::RespArgs { code });
        self.builder.finish_minimal(answer);
    }

    pub(crate) fn prepared(&mut self, conf_token: u32) {
        self.start();
        let args = a6::prepare_conf::RespArgs { conf_token };
        let answer = a6::prepare_conf::Resp::create(&mut self.builder, &args);
        self.builder.finish_minimal(answer);
    }

    /// Go on, nothing changes.
    pub(crate) fn unchanged(&mut self, id: u32) {
        self.start();
        self.finish_request(a6::httpreq_call::RespArgs { id, ..Default::default() });
    }

    pub(crate) fn stop(&mut self, id: u32, stop: StopParts<'_>) {
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

    pub(crate) fn rewrite(&mut self, id: u32, rewrite: RewriteParts<'_>) {
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

    pub(crate) fn response(&mut self, id: u32, response: ResponseParts<'_>) {
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

    pub(crate) fn question(&mut self, question: Question<'_>) {
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
