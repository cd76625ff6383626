//! What a real gateway sent and got, from `tests/golden`.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use apisix_plugin_runner::{Action, Plugin, PluginError, Request, Response, Stop};
use kube_coders::Program;
use serde::Deserialize;
use serde_json::Value;

use crate::served::Served;
use crate::wire::{
    Answer, Call, EXTRA_INFO, Entry, Frame, PREPARE, Prepare, REQUEST, RESPONSE, ResponseCall, a6, read,
};

/// Stands for the byte of a lone surrogate, which JSON readers refuse; in
/// Unicode's private use area and nowhere in the captures.
const RAW_BYTES: u32 = 0xf700;

pub(crate) struct Capture {
    pub(crate) name: String,
    pub(crate) frames: Vec<CapturedFrame>,
}

pub(crate) struct CapturedFrame {
    file: String,
    to_runner: bool,
    kind: u8,
    decoded: Value,
    frame: Frame,
}

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

/// Lone low surrogates (Python's surrogateescape) become private characters;
/// those behind a high one are half of a pair and stay.
fn without_lone_surrogates(json: &str) -> String {
    let mut result = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find("\\u") {
        let (before, escape) = rest.split_at(at);
        let unit = u32::from_str_radix(&escape[2..6], 16).unwrap();
        result.push_str(before);
        let length = if (0xd800..0xdc00).contains(&unit) { 12 } else { 6 };
        match unit {
            0xdc80..=0xdcff => result.push(char::from_u32(RAW_BYTES + (unit & 0xff)).unwrap()),
            _ => result.push_str(&escape[..length]),
        }
        rest = &escape[length..];
    }
    result + rest
}

fn bytes(text: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    for letter in text.as_str().unwrap().chars() {
        match u32::from(letter).checked_sub(RAW_BYTES) {
            Some(byte @ 0x80..=0xff) => bytes.push(u8::try_from(byte).unwrap()),
            _ => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn number<N: TryFrom<u64>>(value: &Value) -> N {
    N::try_from(value.as_u64().unwrap()).ok().unwrap()
}

fn pairs(value: &Value) -> Vec<Entry> {
    let pairs = value.as_array().unwrap().iter();
    pairs.map(|pair| (bytes(&pair[0]), (!pair[1].is_null()).then(|| bytes(&pair[1])))).collect()
}

fn hex(text: &Value) -> Vec<u8> {
    let digits = text.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn captures() -> Vec<Capture> {
    let text = std::fs::read_to_string(folder().join("index.json")).unwrap();
    let index: Value = serde_json::from_str(&without_lone_surrogates(&text)).unwrap();
    let requests = index["requests"].as_array().unwrap().iter();
    let captures: Vec<Capture> = requests
        .map(|request| Capture {
            name: request["name"].as_str().unwrap().to_owned(),
            frames: request["frames"].as_array().unwrap().iter().map(CapturedFrame::read).collect(),
        })
        .collect();
    assert!(captures.len() > 30, "{}", captures.len());
    captures
}

impl CapturedFrame {
    fn read(entry: &Value) -> Self {
        let file = entry["file"].as_str().unwrap().to_owned();
        let frame = Frame::from_bytes(&std::fs::read(folder().join(&file)).unwrap());
        assert_eq!(frame.payload.len(), number::<usize>(&entry["payload_len"]), "{file}");
        let to_runner = entry["to"] == "runner";
        Self { file, to_runner, kind: number(&entry["kind"]), decoded: entry["decoded"].clone(), frame }
    }
}

impl Capture {
    /// What the gateway told of the client's request.
    pub(crate) fn call(&self) -> Option<Call> {
        let call = self.frames.iter().find(|frame| frame.to_runner && frame.kind == REQUEST)?;
        Some(expected_call(&call.decoded))
    }
}

fn expected_call(decoded: &Value) -> Call {
    let method = decoded["method"].as_str().unwrap();
    Call {
        id: number(&decoded["id"]),
        src_ip: hex(&decoded["src_ip"]),
        method: a6::Method::ENUM_VALUES.iter().find(|known| known.variant_name() == Some(method)).unwrap().0,
        path: bytes(&decoded["path"]),
        args: pairs(&decoded["args"]),
        headers: pairs(&decoded["headers"]),
        conf_token: number(&decoded["conf_token"]),
    }
}

#[test]
fn every_file_is_in_the_index_and_every_entry_has_its_file() {
    let mut listed = BTreeSet::new();
    for frame in captures().into_iter().flat_map(|capture| capture.frames) {
        assert!(listed.insert(frame.file.clone()), "{} stands twice", frame.file);
    }
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name());
    let files: BTreeSet<String> =
        files.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".bin")).collect();
    assert!(files.len() > 100, "{}", files.len());
    assert_eq!(listed, files);
}

#[test]
fn every_frame_decodes_to_its_fields() {
    let mut calls = 0;
    for frame in captures().iter().flat_map(|capture| &capture.frames) {
        let (file, payload, decoded) = (&frame.file, &frame.frame.payload, &frame.decoded);
        assert_eq!(frame.frame.kind, frame.kind, "{file}");
        match (frame.to_runner, frame.kind) {
            (true, PREPARE) => {
                let expected = Prepare {
                    key: decoded["key"].as_str().unwrap().to_owned(),
                    confs: pairs(&decoded["conf"]),
                };
                assert_eq!(Prepare::read(payload).as_ref(), Some(&expected), "{file}");
            }
            (true, REQUEST) => assert_eq!(Call::read(payload), Some(expected_call(decoded)), "{file}"),
            (true, EXTRA_INFO) => assert!(read::<a6::extra_info::Resp<'_>>(payload).is_some(), "{file}"),
            (true, RESPONSE) => {
                let expected = ResponseCall {
                    id: number(&decoded["id"]),
                    status: number(&decoded["status"]),
                    headers: pairs(&decoded["headers"]),
                    conf_token: number(&decoded["conf_token"]),
                };
                assert_eq!(ResponseCall::read(payload), Some(expected), "{file}");
            }
            (true, kind) => panic!("{file}: kind {kind}"),
            (false, _) => assert!(frame.frame.is_valid_for_gateway(), "{file}"),
        }
        calls += usize::from(frame.to_runner);
    }
    assert!(calls > 50, "{calls}");
}

/// A plugin that takes any conf and does nothing.
macro_rules! quiet {
    ($($plugin:ident is $name:literal),*) => {$(
        struct $plugin;

        impl Plugin for $plugin {
            const NAME: &'static str = $name;
            type Config = Value;

            async fn on_request(&self, _: &Value, _: &mut Request<'_>) -> Result<Action, PluginError> {
                Ok(Action::Continue)
            }
        }
    )*};
}

quiet!(Sessiond is "sessiond", One is "one", Two is "two", Umlaut is "ünï");

/// Does what its conf says, as the runner did of which the captures are.
struct Behave;

#[derive(Deserialize)]
struct BehaveConfig {
    #[serde(default)]
    action: String,
    #[serde(default)]
    extra: Vec<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    path: Option<String>,
    #[serde(default)]
    args: Vec<(String, Option<String>)>,
    #[serde(default)]
    body: String,
    #[serde(default)]
    resp_headers: Vec<(String, String)>,
    #[serde(default)]
    status: u16,
}

impl Plugin for Behave {
    const NAME: &'static str = "behave";
    type Config = BehaveConfig;

    async fn on_request(
        &self,
        config: &BehaveConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        for question in &config.extra {
            match question.strip_prefix("var:") {
                Some(name) => drop(request.var(name).await?),
                None => drop(request.body().await?),
            }
        }
        if config.action == "stop" {
            let mut stop = Stop::new(apisix_plugin_runner::StatusCode::from_u16(config.status)?)
                .body(config.body.as_str());
            for (name, value) in &config.headers {
                stop = stop.header(name.as_str(), value)?;
            }
            return Ok(stop.into());
        }
        if config.action == "rewrite" {
            for (name, value) in &config.headers {
                request.set_header(name.as_str(), value)?;
            }
            for (name, value) in &config.args {
                match value {
                    Some(value) => request.set_arg(name, value)?,
                    None => request.remove_arg(name)?,
                }
            }
            for (name, value) in &config.resp_headers {
                request.add_response_header(name.as_str(), value)?;
            }
            if let Some(path) = &config.path {
                request.set_path(path)?;
            }
            request.set_body(config.body.as_str())?;
        }
        Ok(Action::Continue)
    }

    async fn on_response(
        &self,
        config: &BehaveConfig,
        response: &mut Response<'_>,
    ) -> Result<(), PluginError> {
        for _ in config.extra.iter().filter(|question| *question == "respbody") {
            response.body().await?;
        }
        Ok(())
    }
}

#[test]
fn every_call_gets_a_valid_answer() {
    let command = Program::new().plugin(Behave).plugin(Sessiond).plugin(One).plugin(Two).plugin(Umlaut);
    let served = Served::start(command, &[]);
    // The tokens that the captured runner gave, and those that ours gives for the same confs.
    let mut tokens: HashMap<u32, Option<u32>> = HashMap::new();
    let (mut answered, mut answers) = (Vec::new(), HashMap::new());
    for capture in captures() {
        let mut peer = served.connect();
        let mut given = None;
        let mut questions = capture.frames.iter().filter(|frame| frame.to_runner && frame.kind == EXTRA_INFO);
        for captured in &capture.frames {
            let (name, file) = (&capture.name, &captured.file);
            if !captured.to_runner {
                if let (PREPARE, Some(given)) = (captured.kind, given.take()) {
                    tokens.insert(captured.frame.token(), given);
                }
                continue;
            }
            let call = match captured.kind {
                EXTRA_INFO => continue,
                PREPARE => {
                    let answer = peer.ask(&captured.frame);
                    assert_eq!(answer.error_code(), (name == "multiconf").then_some(0), "{file}");
                    given = Some(answer.error_code().is_none().then(|| answer.token()));
                    continue;
                }
                REQUEST => {
                    let call = Call::read(&captured.frame.payload).unwrap();
                    tokens[&call.conf_token].map(|conf_token| Call { conf_token, ..call }.frame())
                }
                _ => {
                    let call = ResponseCall::read(&captured.frame.payload).unwrap();
                    tokens[&call.conf_token].map(|conf_token| ResponseCall { conf_token, ..call }.frame())
                }
            };
            assert_eq!(peer.ask(&captured.frame).error_code(), Some(2), "{file}: a token of another life");
            let Some(call) = call else { continue };
            let mut answer = peer.ask(&call);
            while answer.kind == EXTRA_INFO {
                answer = peer.ask(&questions.next().expect("an answer that was captured").frame);
            }
            assert_eq!(answer.kind, captured.kind, "{file}");
            assert!(answer.is_valid_for_gateway(), "{file}");
            answered.push(file.clone());
            answers.insert(name.clone(), answer);
        }
        assert!(questions.next().is_none(), "{}: every question was asked", capture.name);
    }
    assert!(answered.len() > 33, "{answered:?}");
    assert_eq!(answers["get-plain"].answer(), (4_194_488, Answer::Unchanged));
    assert_eq!(answers["noconf"].answer(), (208, Answer::Unchanged));
    let (_, stop) = answers["stop"].answer();
    let header = |value: &str| (b"x-s".to_vec(), Some(value.as_bytes().to_vec()));
    assert_eq!(
        stop,
        Answer::Stop { status: 403, headers: vec![header("1"), header("2")], body: b"no".to_vec() }
    );
    let (_, Answer::Rewrite { path, headers, args, body }) = answers["extra"].answer() else {
        panic!("{:?}", answers["extra"])
    };
    assert_eq!(path.as_deref(), Some(&b"/re"[..]));
    assert_eq!(headers, [(b"x-r".to_vec(), Some(b"1".to_vec()))]);
    assert_eq!((args, body), (vec![(b"a".to_vec(), None)], b"nb".to_vec()));
}
