//! The calls: 1,000 users' requests as frames, and the answers to questions.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use apisix_plugin_runner::gateway::ClientRequest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use kube_coders_test_support::NameServer;

use generated::a6;

#[allow(unsafe_code, unreachable_pub, missing_docs, deprecated, unused_imports, dead_code, clippy::all)]
#[allow(clippy::unwrap_used, clippy::semicolon_if_nothing_returned, clippy::uninlined_format_args)]
#[rustfmt::skip]
#[path = "../../flatbuffers/src/generated.rs"]
mod generated;

/// How many users call in rotation.
pub(crate) const USERS: usize = 1000;

/// How long the cookie and the userinfo are, in bytes of their header values.
const COOKIE: usize = 1200;
const USERINFO: usize = 800;

/// What the route's plugins are called with.
pub(crate) const USER_UPSTREAM: (&str, &str) =
    ("user-upstream", r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}.test:8443"}"#);
pub(crate) const GREET: (&str, &str) = ("greet", r#"{"header": "x-request-id"}"#);

type Header = (&'static str, String);

pub(crate) struct Calls {
    subjects: Vec<String>,
    /// What `x-raw-id-token` holds, of each subject, if anything.
    tokens: Vec<String>,
}

impl Calls {
    pub(crate) fn new(users: usize) -> Self {
        // Keycloak's subjects are UUIDs.
        let subject = |n: usize| format!("{:08x}-ee1d-4f49-b799-{:012x}", n * 2_654_435, n * 7_919_101);
        Self { subjects: (0..users).map(subject).collect(), tokens: Vec::new() }
    }

    /// The same calls with a token each.
    pub(crate) fn with_tokens(&self, token: impl FnMut(&String) -> String) -> Self {
        Self { subjects: self.subjects.clone(), tokens: self.subjects.iter().map(token).collect() }
    }

    /// A name server that knows every user's workspace.
    pub(crate) async fn name_server(&self) -> io::Result<NameServer> {
        let server = NameServer::start().await?;
        server.set_ttl(Duration::from_secs(3600));
        for subject in &self.subjects {
            server.set(&format!("code-{subject}.test"), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        }
        Ok(server)
    }

    /// One request a user, for a stand-in of the gateway.
    pub(crate) fn requests(&self) -> Vec<ClientRequest> {
        let request = |subject: &String| {
            // The gateway adds these itself.
            let client = headers(subject).into_iter().filter(|(name, _)| !name.starts_with("x-forwarded-"));
            client.fold(
                ClientRequest::get("/static/out/vs/workbench/workbench.web.main.js"),
                |request, header| match header {
                    ("x-userinfo", value) => request.added_header("x-userinfo", value),
                    (name, value) => request.header(name, value),
                },
            )
        };
        self.subjects.iter().map(request).collect()
    }

    /// One call a user, as frames.
    pub(crate) fn frames(&self, conf_token: u32) -> Vec<Vec<u8>> {
        let calls = self.subjects.iter().zip(0_u32..).map(|(subject, id)| {
            let mut headers = headers(subject);
            let token = self.tokens.get(id as usize);
            headers.extend(token.map(|token| ("x-raw-id-token", token.clone())));
            frame(2, &request_call(id, conf_token, &headers))
        });
        calls.collect()
    }
}

fn headers(subject: &str) -> Vec<Header> {
    let username = &subject[..8];
    let mut claims = format!(
        r#"{{"sub":"{subject}","email_verified":true,"preferred_username":"{username}","given_name":"Some","family_name":"Body","email":"{username}@example.org","realm_access":{{"roles":["coder","offline_access"]}},"groups":["/developers","#
    );
    let wanted = USERINFO / 4 * 3;
    claims.push('"');
    while claims.len() < wanted - 3 {
        claims.push('g');
    }
    claims.push_str("\"]}");
    let mut cookie = "session=".to_owned();
    while cookie.len() < COOKIE {
        cookie.push(char::from(b'a' + u8::try_from(cookie.len() % 26).expect("less than 26")));
    }
    vec![
        ("host", "coders.example.com".to_owned()),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36".to_owned(),
        ),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8".to_owned()),
        ("accept-language", "ko-KR,ko;q=0.9,en;q=0.8".to_owned()),
        ("accept-encoding", "gzip, deflate, br".to_owned()),
        ("referer", "https://coders.example.com/".to_owned()),
        ("cookie", cookie),
        ("connection", "keep-alive".to_owned()),
        ("x-request-id", "0123456789abcdef0123456789abcdef".to_owned()),
        ("x-forwarded-proto", "https".to_owned()),
        ("x-forwarded-host", "coders.example.com".to_owned()),
        ("x-forwarded-port", "443".to_owned()),
        ("x-userinfo", STANDARD.encode(claims)),
    ]
}

fn text<'b>(builder: &mut FlatBufferBuilder<'b>, text: &str) -> WIPOffset<flatbuffers::Vector<'b, u8>> {
    WIPOffset::new(builder.create_byte_string(text.as_bytes()).value())
}

fn entries<'b>(
    builder: &mut FlatBufferBuilder<'b>,
    list: &[(&str, &str)],
) -> WIPOffset<flatbuffers::Vector<'b, flatbuffers::ForwardsUOffset<a6::TextEntry<'b>>>> {
    let mut offsets = Vec::new();
    for (name, value) in list {
        let name = Some(text(builder, name));
        let value = Some(text(builder, value));
        offsets.push(a6::TextEntry::create(builder, &a6::TextEntryArgs { name, value }));
    }
    builder.create_vector(&offsets)
}

fn request_call(id: u32, conf_token: u32, headers: &[Header]) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let headers = Some(entries(&mut builder, &headers));
    let path = Some(text(&mut builder, "/static/out/vs/workbench/workbench.web.main.js"));
    let src_ip = Some(builder.create_vector(&[127u8, 0, 0, 1]));
    let args = a6::httpreq_call::ReqArgs { id, conf_token, path, src_ip, headers, ..Default::default() };
    let call = a6::httpreq_call::Req::create(&mut builder, &args);
    builder.finish_minimal(call);
    builder.finished_data().to_vec()
}

/// The frame that prepares a route with one plugin.
pub(crate) fn prepare_conf(plugin: (&str, &str)) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let conf = Some(entries(&mut builder, &[plugin]));
    let key = Some(builder.create_string("route#bench#ext-plugin-pre-req#1"));
    let call = a6::prepare_conf::Req::create(&mut builder, &a6::prepare_conf::ReqArgs { conf, key });
    builder.finish_minimal(call);
    frame(1, builder.finished_data())
}

/// The token in the answer to it.
pub(crate) fn token(payload: &[u8]) -> Option<u32> {
    flatbuffers::root::<a6::prepare_conf::Resp<'_>>(payload).ok().map(|answer| answer.conf_token())
}

/// Whether an answer lets the request go on with changes, as both plugins do.
pub(crate) fn is_rewrite(payload: &[u8]) -> bool {
    let answer = flatbuffers::root::<a6::httpreq_call::Resp<'_>>(payload);
    answer.is_ok_and(|answer| answer.action_type() == a6::httpreq_call::Action::Rewrite)
}

/// The frame that answers a question.
pub(crate) fn extra_info() -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let result = Some(builder.create_vector(b"workspaces"));
    let answer = a6::extra_info::Resp::create(&mut builder, &a6::extra_info::RespArgs { result });
    builder.finish_minimal(answer);
    frame(3, builder.finished_data())
}

/// What the reference answers, whatever it is asked: go on unchanged.
pub(crate) fn fixed_answer() -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let answer = a6::httpreq_call::Resp::create(&mut builder, &a6::httpreq_call::RespArgs::default());
    builder.finish_minimal(answer);
    frame(2, builder.finished_data())
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let [.., high, middle, low] = payload.len().to_be_bytes();
    [&[kind, high, middle, low], payload].concat()
}
