//! A real browser, driven by the Chrome DevTools Protocol.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::program::{Program, run};
use crate::skip::skip;
use std::time::Duration;

/// A browser may take its time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a page is asked whether it is done. A page that navigates can't send an event.
const POLL: Duration = Duration::from_millis(50);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A headless browser with a profile of its own.
pub(crate) struct Chromium {
    _program: Program,
    sender: Arc<AsyncMutex<SplitSink<Socket, Message>>>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>,
    last: AtomicU64,
}

/// A tab.
pub(crate) struct Tab<'b> {
    browser: &'b Chromium,
    target: String,
    session: String,
}

impl Chromium {
    /// Starts it, or says why the test is skipped.
    pub(crate) async fn start(profile: &Path) -> Option<Self> {
        if run(Command::new("sh").args(["-c", "command -v chromium"])).code != Some(0) {
            skip("chromium is missing");
            return None;
        }
        let mut command = Command::new("chromium");
        command.args(["--headless=new", "--no-first-run", "--disable-gpu", "--disable-quic"]).args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-port=0",
        ]);
        if nix::unistd::geteuid().is_root() {
            command.arg("--no-sandbox");
        }
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        let program = Program::start(&mut command);
        let line = program.line(&["DevTools listening on "]);
        let address = line.split_once("listening on ").unwrap().1.trim().to_owned();
        let (socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
        let (sender, mut receiver) = socket.split();
        let waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>> = Arc::default();
        let answers = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(Ok(message)) = receiver.next().await {
                let Ok(text) = message.to_text() else { continue };
                let Ok(answer) = serde_json::from_str::<Value>(text) else { continue };
                let waiting = answer["id"].as_u64().and_then(|id| answers.lock().unwrap().remove(&id));
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer);
                }
            }
        });
        let sender = Arc::new(AsyncMutex::new(sender));
        Some(Self { _program: program, sender, waiting, last: AtomicU64::new(0) })
    }

    async fn call(&self, session: Option<&str>, method: &str, params: Value) -> Result<Value, String> {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, sender);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        self.sender.lock().await.send(message.to_string().into()).await.unwrap();
        let answer = timeout(PATIENCE, answer).await.expect("an answer of the browser in time").unwrap();
        match answer.get("error") {
            Some(error) => Err(format!("{method}: {error}")),
            None => Ok(answer["result"].clone()),
        }
    }

    /// Opens an address in a new tab.
    pub(crate) async fn open(&self, address: &str) -> Tab<'_> {
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"})).await.unwrap();
        let target = target["targetId"].as_str().unwrap().to_owned();
        let attached = json!({"targetId": target, "flatten": true});
        let attached = self.call(None, "Target.attachToTarget", attached).await.unwrap();
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let tab = Tab { browser: self, target, session };
        tab.navigate(address).await;
        tab
    }
}

impl Tab<'_> {
    pub(crate) async fn navigate(&self, address: &str) {
        let navigated =
            self.browser.call(Some(&self.session), "Page.navigate", json!({"url": address})).await.unwrap();
        assert_eq!(navigated.get("errorText"), None, "{address}");
    }

    /// The value of a script once it is not null.
    pub(crate) async fn value(&self, script: &str) -> Value {
        let asked = async {
            loop {
                let params = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
                // A page that is just being replaced can't answer.
                if let Ok(found) = self.browser.call(Some(&self.session), "Runtime.evaluate", params).await {
                    let value = &found["result"]["value"];
                    if !value.is_null() {
                        return value.clone();
                    }
                }
                sleep(POLL).await;
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("no value of {script} in time"))
    }

    pub(crate) async fn close(self) {
        self.browser.call(None, "Target.closeTarget", json!({"targetId": self.target})).await.unwrap();
    }
}
