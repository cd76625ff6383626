//! The stand-in for a gateway, held against what the real one sent.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;

use apisix_plugin_runner::gateway::{ClientRequest, Outcome, Route};

use crate::golden::captures;
use crate::peer::{PATIENCE, Peer};
use crate::wire::{Call, Entry, PREPARE, prepared, unchanged};

const HOST: &str = "127.0.0.1:9080";

fn request(method: &str, target: impl AsRef<[u8]>) -> ClientRequest {
    let method = apisix_plugin_runner::Method::from_bytes(method.as_bytes()).unwrap();
    ClientRequest::new(method, target).header("Host", HOST).header("Connection", "close")
}

fn get(target: impl AsRef<[u8]>) -> ClientRequest {
    request("GET", target)
}

fn numbered(
    request: ClientRequest,
    count: usize,
    header: impl Fn(usize) -> (String, String),
) -> ClientRequest {
    (0..count).map(header).fold(request, |request, (name, value)| request.header(&name, value))
}

/// The captures' requests as the client sent them.
fn requests() -> Vec<(&'static str, ClientRequest)> {
    let upgrade = [
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "EikMmd43NNOiQy7tK+GvxA=="),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Origin", "http://o.test"),
        ("Cookie", "s=1"),
    ];
    let upgrade = upgrade.into_iter().fold(
        ClientRequest::get("/cap/ws?x=1").header("Host", HOST).header("Connection", "Upgrade"),
        |request, (name, value)| request.header(name, value),
    );
    let userinfo = "eyJzdWIiOiAidXNlci1hIiwgImVtYWlsIjogIlx1MDBlNEB4In0";
    vec![
        ("get-plain", get("/cap/hello").header("User-Agent", "rig").header("Accept", "*/*")),
        ("get-root-ish", get("/cap/")),
        ("get-args", get("/cap/a?k=v&empty=&flag")),
        ("get-args-repeat", get("/cap/a?k=1&k=2&k&z=%20x&k=3")),
        ("get-args-raw-utf8", get("/cap/ü/€?ü=ö")),
        ("get-path-pct", get("/cap/a%20b/%C3%BC/%25/x;y=1")),
        ("get-path-latin1", get("/cap/%FF%FE")),
        ("get-absolute-form", get(format!("http://{HOST}/cap/abs?x=1"))),
        (
            "get-hdr-repeat",
            ["one", "two", "three"]
                .into_iter()
                .fold(get("/cap/a").header("Accept", "a").header("ACCEPT", "b"), |request, value| {
                    request.header("X-Rep", value)
                }),
        ),
        ("get-hdr-many", numbered(get("/cap/a"), 80, |n| (format!("X-H{n:02}"), format!("v{n}")))),
        (
            "get-hdr-130",
            numbered(ClientRequest::get("/cap/a").header("Host", HOST), 130, |n| {
                (format!("X-M{n:03}"), "v".to_owned())
            })
            .header("Connection", "close"),
        ),
        ("get-hdr-empty", get("/cap/a").header("X-Empty", "").header("X_Under", "1").header("X.Dot", "1")),
        (
            "get-auth",
            get("/cap/a").header("Authorization", "Bearer abc.def.ghi").header("X-Userinfo", userinfo),
        ),
        ("head", request("HEAD", "/cap/a")),
        (
            "options",
            request("OPTIONS", "/cap/a")
                .header("Origin", "http://o.test")
                .header("Access-Control-Request-Method", "PUT"),
        ),
        (
            "post-json",
            request("POST", "/cap/a")
                .header("Content-Type", "application/json")
                .header("Content-Length", "8")
                .body("{\"a\": 1}"),
        ),
        ("post-empty", request("POST", "/cap/a").header("Content-Length", "0")),
        (
            "post-chunked",
            request("POST", "/cap/ch").header("Host", "h").header("Transfer-Encoding", "chunked").body("x"),
        ),
        ("delete", request("DELETE", "/cap/a")),
        ("mkcol", request("MKCOL", "/cap/a")),
        ("move", request("MOVE", "/cap/a").header("Destination", "/b")),
        ("lock", request("LOCK", "/cap/a")),
        ("unlock", request("UNLOCK", "/cap/a")),
        ("ipv6-source", get("/cap/v6").header("Host", "[::1]:9080").from_source("::1".parse().unwrap())),
        ("ws-upgrade", upgrade),
        (
            "real-ip",
            get("/capreal/a")
                .header("X-Forwarded-For", "203.0.113.7")
                .from_source("203.0.113.7".parse().unwrap()),
        ),
    ]
}

/// A runner that changes nothing and hands on what it was asked.
fn serve(stream: UnixStream, calls: &mpsc::Sender<Call>) {
    let mut peer = Peer::from(stream);
    while let Some(frame) = peer.receive() {
        if frame.kind == PREPARE {
            peer.send(&prepared(7));
            continue;
        }
        let call = Call::read(&frame.payload).unwrap();
        peer.send(&unchanged(call.id));
        if calls.send(call).is_err() {
            return;
        }
    }
}

/// One name's values in their order; the order of names means nothing.
fn by_name(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    entries
}

/// What must be the same, in a form that a person can compare.
fn shown(call: Call) -> Vec<String> {
    let line = |what: &str, (name, value): (Vec<u8>, Option<Vec<u8>>)| {
        let value = value.map(|value| value.escape_ascii().to_string());
        format!("{what} {}: {value:?}", name.escape_ascii())
    };
    let first = format!("{} {} from {:?}", call.method, call.path.escape_ascii(), call.src_ip);
    let args = by_name(call.args).into_iter().map(|entry| line("argument", entry));
    let headers = by_name(call.headers).into_iter().map(|entry| line("header", entry));
    [first].into_iter().chain(args).chain(headers).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_stand_in_sends_what_the_gateway_sent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (calls, called) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let calls = calls.clone();
            std::thread::spawn(move || serve(stream.unwrap(), &calls));
        }
    });
    let gateway = kube_coders::gateway(&socket);
    let route = Route::new("cap").plugin("behave", "{}");
    let captures = captures();
    let mut differences = Vec::new();
    for (name, request) in requests() {
        let expected = captures.iter().find(|capture| capture.name == name).unwrap().call().unwrap();
        let outcome = gateway.call(&route, &request).await;
        let Outcome::Forward(_) = outcome else { panic!("{name}: {outcome:?}") };
        let sent = called.recv_timeout(PATIENCE).unwrap();
        assert_eq!(sent.conf_token, 7, "{name}");
        let (sent, expected) = (shown(sent), shown(expected));
        let missing: Vec<_> = expected.iter().filter(|line| !sent.contains(line)).collect();
        let added: Vec<_> = sent.iter().filter(|line| !expected.contains(line)).collect();
        if sent != expected {
            differences.push(format!("{name}: the gateway sent {missing:#?}, the stand-in {added:#?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
