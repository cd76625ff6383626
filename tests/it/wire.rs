//! Frames and payloads as a gateway reads and writes them, independent of the
//! crate's own code for it.

use flatbuffers::{FlatBufferBuilder, Follow, ForwardsUOffset, Vector, Verifiable, WIPOffset};

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
#[path = "../../flatbuffers/src/generated.rs"]
mod generated;

pub(crate) use generated::a6;

pub(crate) const ERROR: u8 = 0;
pub(crate) const PREPARE: u8 = 1;
pub(crate) const REQUEST: u8 = 2;
pub(crate) const EXTRA_INFO: u8 = 3;
pub(crate) const RESPONSE: u8 = 4;

pub(crate) type Entry = (Vec<u8>, Option<Vec<u8>>);

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, payload: Vec<u8>) -> Self {
        Self { kind, payload }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let [.., high, middle, low] = self.payload.len().to_be_bytes();
        [&[self.kind, high, middle, low], &self.payload[..]].concat()
    }

    /// A file's content: one whole frame and nothing after it.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (header, payload) = bytes.split_first_chunk::<4>().unwrap();
        let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
        assert_eq!(payload.len(), usize::try_from(length).unwrap());
        Self::new(header[0], payload.to_vec())
    }
}

/// The table in a payload, if it is one.
pub(crate) fn read<'f, T: Follow<'f, Inner = T> + Verifiable + 'f>(payload: &'f [u8]) -> Option<T> {
    flatbuffers::root::<T>(payload).ok()
}

pub(crate) fn entries<'f>(entries: Option<Vector<'f, ForwardsUOffset<a6::TextEntry<'f>>>>) -> Vec<Entry> {
    let entries = entries.into_iter().flatten();
    entries
        .map(|entry| {
            let name = entry.name().map(|name| name.bytes().to_vec());
            (name.unwrap_or_default(), entry.value().map(|value| value.bytes().to_vec()))
        })
        .collect()
}

/// PrepareConf as a gateway sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prepare {
    pub(crate) key: String,
    pub(crate) confs: Vec<Entry>,
}

/// HTTPReqCall as a gateway sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: u32,
    pub(crate) src_ip: Vec<u8>,
    pub(crate) method: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) args: Vec<Entry>,
    pub(crate) headers: Vec<Entry>,
    pub(crate) conf_token: u32,
}

/// HTTPRespCall as a gateway sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseCall {
    pub(crate) id: u32,
    pub(crate) status: u16,
    pub(crate) headers: Vec<Entry>,
    pub(crate) conf_token: u32,
}

/// What a runner says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Unchanged,
    Stop { status: u16, headers: Vec<Entry>, body: Vec<u8> },
    Rewrite { path: Option<Vec<u8>>, headers: Vec<Entry>, args: Vec<Entry>, body: Vec<u8> },
}

type Builder = FlatBufferBuilder<'static>;
type Text = WIPOffset<Vector<'static, u8>>;

fn text(builder: &mut Builder, bytes: &[u8]) -> Text {
    WIPOffset::new(builder.create_byte_string(bytes).value())
}

fn write_entries(
    builder: &mut Builder,
    entries: &[Entry],
) -> Option<WIPOffset<Vector<'static, ForwardsUOffset<a6::TextEntry<'static>>>>> {
    let offsets: Vec<_> = entries
        .iter()
        .map(|(name, value)| {
            let name = Some(text(builder, name));
            let value = value.as_ref().map(|value| text(builder, value));
            a6::TextEntry::create(builder, &a6::TextEntryArgs { name, value })
        })
        .collect();
    (!offsets.is_empty()).then(|| builder.create_vector(&offsets))
}

fn finished<T>(mut builder: Builder, root: WIPOffset<T>) -> Vec<u8> {
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

impl Prepare {
    pub(crate) fn new(key: &str, confs: &[(&str, &str)]) -> Self {
        let confs =
            confs.iter().map(|(name, conf)| (name.as_bytes().to_vec(), Some(conf.as_bytes().to_vec())));
        Self { key: key.to_owned(), confs: confs.collect() }
    }

    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let call = read::<a6::prepare_conf::Req<'_>>(payload)?;
        Some(Self { key: call.key().unwrap_or_default().to_owned(), confs: entries(call.conf()) })
    }

    pub(crate) fn frame(&self) -> Frame {
        let mut builder = Builder::new();
        let conf = write_entries(&mut builder, &self.confs);
        let key = Some(builder.create_string(&self.key));
        let call = a6::prepare_conf::Req::create(&mut builder, &a6::prepare_conf::ReqArgs { conf, key });
        Frame::new(PREPARE, finished(builder, call))
    }
}

impl Call {
    pub(crate) fn new(id: u32, conf_token: u32) -> Self {
        let headers = vec![(b"host".to_vec(), Some(b"gateway.test".to_vec()))];
        Self { id, conf_token, src_ip: vec![127, 0, 0, 1], path: b"/".to_vec(), headers, ..Self::default() }
    }

    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let call = read::<a6::httpreq_call::Req<'_>>(payload)?;
        Some(Self {
            id: call.id(),
            src_ip: call.src_ip().map(|bytes| bytes.bytes().to_vec()).unwrap_or_default(),
            method: call.method().0,
            path: call.path().map(|bytes| bytes.bytes().to_vec()).unwrap_or_default(),
            args: entries(call.args()),
            headers: entries(call.headers()),
            conf_token: call.conf_token(),
        })
    }

    pub(crate) fn frame(&self) -> Frame {
        let mut builder = Builder::new();
        let args = a6::httpreq_call::ReqArgs {
            id: self.id,
            src_ip: Some(builder.create_vector(&self.src_ip)),
            method: a6::Method(self.method),
            path: Some(text(&mut builder, &self.path)),
            args: write_entries(&mut builder, &self.args),
            headers: write_entries(&mut builder, &self.headers),
            conf_token: self.conf_token,
        };
        let call = a6::httpreq_call::Req::create(&mut builder, &args);
        Frame::new(REQUEST, finished(builder, call))
    }
}

impl ResponseCall {
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let call = read::<a6::httpresp_call::Req<'_>>(payload)?;
        let (id, status, conf_token) = (call.id(), call.status(), call.conf_token());
        Some(Self { id, status, headers: entries(call.headers()), conf_token })
    }

    pub(crate) fn frame(&self) -> Frame {
        let mut builder = Builder::new();
        let headers = write_entries(&mut builder, &self.headers);
        let args = a6::httpresp_call::ReqArgs {
            id: self.id,
            status: self.status,
            headers,
            conf_token: self.conf_token,
        };
        let call = a6::httpresp_call::Req::create(&mut builder, &args);
        Frame::new(RESPONSE, finished(builder, call))
    }
}

/// A gateway's answer to a question.
pub(crate) fn extra_info(result: Option<&[u8]>) -> Frame {
    let mut builder = Builder::new();
    let result = result.map(|result| builder.create_vector(result));
    let answer = a6::extra_info::Resp::create(&mut builder, &a6::extra_info::RespArgs { result });
    Frame::new(EXTRA_INFO, finished(builder, answer))
}

/// An error as a runner sends it.
pub(crate) fn error(code: u8) -> Frame {
    let mut builder = Builder::new();
    let args = a6::err::RespArgs { code: a6::err::Code(code) };
    let answer = a6::err::Resp::create(&mut builder, &args);
    Frame::new(ERROR, finished(builder, answer))
}

/// A runner's answer to PrepareConf.
pub(crate) fn prepared(conf_token: u32) -> Frame {
    let mut builder = Builder::new();
    let args = a6::prepare_conf::RespArgs { conf_token };
    let answer = a6::prepare_conf::Resp::create(&mut builder, &args);
    Frame::new(PREPARE, finished(builder, answer))
}

/// A runner's answer that changes nothing.
pub(crate) fn unchanged(id: u32) -> Frame {
    let mut builder = Builder::new();
    let args = a6::httpreq_call::RespArgs { id, ..Default::default() };
    let answer = a6::httpreq_call::Resp::create(&mut builder, &args);
    Frame::new(REQUEST, finished(builder, answer))
}

impl Frame {
    /// The code of an error frame.
    pub(crate) fn error_code(&self) -> Option<u8> {
        (self.kind == ERROR).then(|| read::<a6::err::Resp<'_>>(&self.payload).unwrap().code().0)
    }

    /// The token of an answer to PrepareConf.
    #[track_caller]
    pub(crate) fn token(&self) -> u32 {
        assert_eq!(self.kind, PREPARE, "{:?}", self.error_code());
        read::<a6::prepare_conf::Resp<'_>>(&self.payload).unwrap().conf_token()
    }

    /// The name of the variable asked for; `None` where a body is.
    #[track_caller]
    pub(crate) fn question(&self) -> Option<String> {
        assert_eq!(self.kind, EXTRA_INFO);
        let question = read::<a6::extra_info::Req<'_>>(&self.payload).unwrap();
        question.info_as_var().map(|var| var.name().unwrap().to_owned())
    }

    /// The id and the verdict of an answer to HTTPReqCall.
    #[track_caller]
    pub(crate) fn answer(&self) -> (u32, Answer) {
        assert_eq!(self.kind, REQUEST, "{:?}", self.error_code());
        let answer = read::<a6::httpreq_call::Resp<'_>>(&self.payload).unwrap();
        let bytes = |body: Option<Vector<'_, u8>>| body.map(|body| body.bytes().to_vec());
        let decoded = if let Some(stop) = answer.action_as_stop() {
            let body = bytes(stop.body()).unwrap_or_default();
            Answer::Stop { status: stop.status(), headers: entries(stop.headers()), body }
        } else if let Some(rewrite) = answer.action_as_rewrite() {
            Answer::Rewrite {
                path: bytes(rewrite.path()),
                headers: entries(rewrite.headers()),
                args: entries(rewrite.args()),
                body: bytes(rewrite.body()).unwrap_or_default(),
            }
        } else {
            Answer::Unchanged
        };
        (answer.id(), decoded)
    }

    /// Whether this is something that a gateway can read as a runner's frame.
    pub(crate) fn is_valid_for_gateway(&self) -> bool {
        match self.kind {
            ERROR => read::<a6::err::Resp<'_>>(&self.payload).is_some(),
            PREPARE => read::<a6::prepare_conf::Resp<'_>>(&self.payload).is_some(),
            REQUEST => read::<a6::httpreq_call::Resp<'_>>(&self.payload).is_some(),
            EXTRA_INFO => read::<a6::extra_info::Req<'_>>(&self.payload).is_some(),
            RESPONSE => read::<a6::httpresp_call::Resp<'_>>(&self.payload).is_some(),
            _ => false,
        }
    }

    /// The status and code of an answer that a runner gives for itself.
    #[track_caller]
    pub(crate) fn refusal(&self) -> (u16, String) {
        let (_, answer) = self.answer();
        let Answer::Stop { status, body, .. } = answer else { panic!("{answer:?}") };
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, problem["code"].as_str().unwrap().to_owned())
    }
}
