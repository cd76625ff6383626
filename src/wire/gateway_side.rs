//! The other end: calls encoded and answers decoded, as a gateway does it.
//!
//! For the stand-in and for the commands that speak to a running runner.

use super::{Encoder, Entry, Malformed, Question, a6, entries, root};

/// A client's request as a gateway tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestParts {
    pub(crate) id: u32,
    pub(crate) conf_token: u32,
    pub(crate) src_ip: Vec<u8>,
    pub(crate) method: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) args: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) headers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a runner answered to a request call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestAnswer {
    Unchanged,
    Stop { status: u16, headers: Vec<(Vec<u8>, Vec<u8>)>, body: Vec<u8> },
    Rewrite(Rewrite),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewrite {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) args: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) response_headers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

/// What a runner answered to a response call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResponseAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

fn owned(entry: Entry<'_>) -> (Vec<u8>, Option<Vec<u8>>) {
    (entry.0.to_vec(), entry.1.map(<[u8]>::to_vec))
}

fn with_value(entry: Entry<'_>) -> (Vec<u8>, Vec<u8>) {
    (entry.0.to_vec(), entry.1.unwrap_or_default().to_vec())
}

pub(crate) fn decode_error(payload: &[u8]) -> Result<super::ErrorCode, Malformed> {
    Ok(root::<a6::err::Resp<'_>>(payload)?.code())
}

pub(crate) fn decode_prepared(payload: &[u8]) -> Result<u32, Malformed> {
    Ok(root::<a6::prepare_conf::Resp<'_>>(payload)?.conf_token())
}

pub(crate) fn decode_request_answer(payload: &[u8]) -> Result<(u32, RequestAnswer), Malformed> {
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

pub(crate) fn decode_response_answer(payload: &[u8]) -> Result<(u32, ResponseAnswer), Malformed> {
    let answer = root::<a6::httpresp_call::Resp<'_>>(payload)?;
    let decoded = ResponseAnswer {
        status: answer.status(),
        headers: entries(answer.headers()).map(with_value).collect(),
        body: answer.body().map_or_else(Vec::new, |body| body.bytes().to_vec()),
    };
    Ok((answer.id(), decoded))
}

/// The runner's question; `None` for a kind of question that there is not.
pub(crate) fn decode_question(payload: &[u8]) -> Result<Option<Question<'_>>, Malformed> {
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
    pub(crate) fn prepare_conf_call(&mut self, key: &str, confs: &[(&[u8], &[u8])]) {
        self.start();
        let confs: Vec<Entry<'_>> = confs.iter().map(|(name, conf)| (*name, Some(*conf))).collect();
        let conf = self.entries(&confs);
        let key = Some(self.builder.create_string(key));
        let args = a6::prepare_conf::ReqArgs { conf, key };
        let call = a6::prepare_conf::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(call);
    }

    pub(crate) fn request_call(&mut self, request: &RequestParts) {
        self.start();
        let arguments: Vec<Entry<'_>> =
            request.args.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
        let headers: Vec<Entry<'_>> =
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

    pub(crate) fn response_call(&mut self, id: u32, conf_token: u32, status: u16, headers: &[Entry<'_>]) {
        self.start();
        let headers = self.entries(headers);
        let args = a6::httpresp_call::ReqArgs { id, status, headers, conf_token };
        let call = a6::httpresp_call::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(call);
    }

    pub(crate) fn extra_info(&mut self, result: Option<&[u8]>) {
        self.start();
        let result = result.map(|result| self.builder.create_vector(result));
        let answer = a6::extra_info::Resp::create(&mut self.builder, &a6::extra_info::RespArgs { result });
        self.builder.finish_minimal(answer);
    }
}
