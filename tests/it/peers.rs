//! The forwarder between strict peers of other projects: PyPI's h11, wsproto and
//! websockets.

use std::path::PathBuf;
use std::process::Stdio;

use apisix_plugin_runner::gateway::{ClientRequest, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::peer::PATIENCE;
use crate::program::Runner;
use crate::skip::skip;
use crate::workspace::Edge;

/// Names the Python that has the packages.
const PYTHON: &str = "KUBE_CODERS_PEERS";

fn python(script: &str, args: &[&str]) -> Option<Command> {
    let Some(python) = std::env::var_os(PYTHON) else {
        skip(&format!("{PYTHON} names no Python with the peers: see tests/peers/README.md"));
        return None;
    };
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let mut command = Command::new(python);
    command.arg(folder.join(script)).args(args).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// Starts a server, which ends with its standard input, and waits for its port.
async fn serve(mut command: Command) -> (Child, u16) {
    let mut server = command.stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a port").unwrap().unwrap();
    (server, line.parse().unwrap())
}

/// What a client prints that asks through the forwarder, with the headers that the
/// runner gives it.
async fn asked(script: &str, server: &[&str], client: &[&str]) -> Option<String> {
    let (_server, port) = serve(python(script, server)?).await;
    let runner = Runner::start(&[]);
    let edge = Edge::new(&runner.socket, runner.forwarder);
    let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://127.0.0.1:{port}"}}"#);
    let route = Route::new("r").plugin("user-upstream", &conf);
    let userinfo = STANDARD.encode(r#"{"sub": "alice"}"#);
    let request = ClientRequest::get("/").header("Host", "coders.test").added_header("X-Userinfo", userinfo);
    let forwarded = edge.decide(&route, &request).await.unwrap();
    let headers = forwarded.headers.iter().filter(|(name, _)| name != "connection");
    let headers: Map<String, Value> =
        headers.map(|(name, value)| (name.clone(), std::str::from_utf8(value).unwrap().into())).collect();
    let forwarder = runner.forwarder.port().to_string();
    let mut client = python(script, &[client, &[&forwarder]].concat())?.spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(&serde_json::to_vec(&headers).unwrap()).await.unwrap();
    drop(input);
    let output = timeout(PATIENCE, client.wait_with_output()).await.expect("an end").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn h11_is_content_on_both_sides() {
    let Some(made) = asked("http_peer.py", &["serve"], &["ask"]).await else { return };
    assert_eq!(made, "70\n");
}

#[tokio::test]
async fn a_thousand_messages_pass_between_websockets_and_wsproto() {
    for (server, client) in [("wsproto", "websockets"), ("websockets", "wsproto")] {
        let came_back = asked("websocket_peer.py", &[server, "serve"], &[client, "ask"]).await;
        let Some(came_back) = came_back else { return };
        assert_eq!(came_back, "1000\n", "{client} by {server}");
    }
}
