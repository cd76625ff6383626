use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use apisix_plugin_runner::gateway::{ClientRequest, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::chromium::Chromium;
use crate::program::Runner;
use crate::workspace::{Edge, header, read_head};

/// A page that leaves whatever it can in the browser, and then says what it could not.
const PLANT: &str = r#"<!doctype html><title>plant</title><script>
(async () => {
  const refused = [];
  localStorage.setItem("planted", "alice");
  sessionStorage.setItem("planted", "alice");
  document.cookie = "planted=alice; path=/; max-age=9999";
  document.cookie = "planted-here=alice; path=/proxy/3000/; max-age=9999";
  await new Promise((done, failed) => {
    const opening = indexedDB.open("planted");
    opening.onupgradeneeded = () => opening.result.createObjectStore("s").put("alice", "k");
    opening.onsuccess = () => { opening.result.close(); done(); };
    opening.onerror = failed;
  });
  await (await caches.open("planted")).put("/proxy/3000/", new Response("alice"));
  for (const script of ["/sw.js", "/proxy/3000/sw.js", "/app/sw.js"]) {
    try {
      const registration = await navigator.serviceWorker.register(script);
      const worker = registration.installing ?? registration.waiting ?? registration.active;
      while (worker.state !== "activated") await new Promise((on) => worker.addEventListener("statechange", on, { once: true }));
    } catch { refused.push(script); }
  }
  for (const page of ["/", "/proxy/3000/", "/part.js"]) await (await fetch(page)).text();
  window.refused = refused;
})();
</script>"#;

/// A page that says what it finds.
const LOOK: &str = r#"<!doctype html><title>look</title><script>
(async () => {
  window.found = {
    local: localStorage.length,
    session: sessionStorage.length,
    databases: (await indexedDB.databases()).length,
    caches: (await caches.keys()).length,
    workers: (await navigator.serviceWorker.getRegistrations()).length,
    cookies: document.cookie,
    part: await (await fetch("/part.js")).text(),
  };
})();
</script>"#;

const WORKER: &str = "addEventListener('fetch', (event) => event.respondWith(new Response('alice', \
                      { headers: { 'Content-Type': 'text/html' } })));";

/// The response of a user's workspace: its type, for how long it may be kept, and its body.
fn answer(user: &str, target: &str) -> (&'static str, String) {
    match target.split('?').next().unwrap() {
        "/part.js" => ("text/javascript", format!("'{user}'")),
        script if script.ends_with("sw.js") => ("text/javascript", WORKER.to_owned()),
        "/plant" => ("text/html", PLANT.to_owned()),
        _ => ("text/html", format!("{LOOK}<p id=owner>{user}</p>")),
    }
}

async fn start_workspace(user: &'static str, address: SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (head, _) = read_head(&mut stream).await?;
                let (kind, body) = answer(user, head.split(' ').nth(1)?);
                let cookie = "Set-Cookie: served=yes; Path=/; HttpOnly; Max-Age=9999";
                let caching = "Cache-Control: public, max-age=31536000, immutable";
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\n{caching}\r\n{cookie}\r\n\
                     Content-Length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.ok()
            });
        }
    });
}

/// A gateway with a login of one click, which sends requests on as the runner says.
struct Gateway {
    edge: Edge,
    route: Route,
}

impl Gateway {
    async fn serve(&self, stream: &mut TcpStream) -> Option<()> {
        let (head, _) = read_head(stream).await?;
        let target = head.split(' ').nth(1)?;
        if let Some(asked) = target.strip_prefix("/login?") {
            let (user, to) = asked.split_once('&')?;
            let answer = format!(
                "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {to}\r\n\
                 Set-Cookie: session={user}; Path=/; HttpOnly\r\nContent-Length: 0\r\n\r\n"
            );
            return stream.write_all(answer.as_bytes()).await.ok();
        }
        if target == "/logout" {
            let page = "<p id=signed-out>out</p>";
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html\r\n\
                 Set-Cookie: session=; Path=/; Max-Age=0\r\nContent-Length: {}\r\n\r\n{page}",
                page.len()
            );
            return stream.write_all(answer.as_bytes()).await.ok();
        }
        let cookies = header(&head, "cookie").unwrap_or_default();
        let user = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("session="))?;
        let mut request = ClientRequest::get(target);
        for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            if !["connection", "host"].contains(&name.to_ascii_lowercase().as_str()) {
                request = request.header(name, value.trim());
            }
        }
        let userinfo = STANDARD.encode(json!({"sub": user}).to_string());
        let forwarded = self.edge.decide(&self.route, &request.added_header("X-Userinfo", userinfo)).await;
        let (seen, added) = match forwarded {
            Ok(forwarded) => (self.edge.forward(&forwarded, &[]).await, forwarded.response_headers.clone()),
            Err(answer) => (answer, Vec::new()),
        };
        let mut answer = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", seen.status);
        for (name, value) in added {
            answer.push_str(&format!("{name}: {}\r\n", str::from_utf8(&value).unwrap()));
        }
        for line in seen.head.lines().skip(1).filter(|line| !line.is_empty()) {
            let name = line.split(':').next()?.to_ascii_lowercase();
            if !["connection", "content-length"].contains(&name.as_str()) {
                answer.push_str(&format!("{line}\r\n"));
            }
        }
        answer.push_str(&format!("Content-Length: {}\r\n\r\n{}", seen.body.len(), seen.body));
        stream.write_all(answer.as_bytes()).await.ok()
    }
}

struct House {
    _runner: Runner,
    origin: String,
}

async fn house() -> House {
    let free = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    start_workspace("alice", (Ipv4Addr::new(127, 0, 0, 2), port).into()).await;
    start_workspace("bob", (Ipv4Addr::new(127, 0, 0, 3), port).into()).await;
    let names = kube_coders_test_support::NameServer::start().await.unwrap();
    for (user, address) in [("alice", "127.0.0.2"), ("bob", "127.0.0.3")] {
        names.set(&format!("code-{user}.coders.test"), [address.parse().unwrap()]);
    }
    let server = names.address().to_string();
    let runner = Runner::start(&["--allow-address", "127.0.0.0/8", "--dns-server", &server]);
    let conf = json!({
        "identity": {"trust": "gateway"},
        "upstream": format!("http://code-{{sub}}.coders.test:{port}"),
    });
    let route = Route::new("workspaces").plugin_with("user-upstream", &conf);
    let gateway = Arc::new(Gateway { edge: Edge::new(&runner.socket, runner.forwarder), route });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let origin = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let _names = names;
        while let Ok((mut stream, _)) = listener.accept().await {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.serve(&mut stream).await });
        }
    });
    House { _runner: runner, origin }
}

/// Signs a user in, opens an address, and returns whose page it is and what the page found.
async fn look(browser: &Chromium, house: &House, user: &str, target: &str) -> Value {
    let tab = browser.open(&format!("{}/login?{user}&{target}", house.origin)).await;
    let owner = tab.value("document.querySelector('#owner')?.textContent").await;
    let found = tab.value("window.found").await;
    tab.close().await;
    json!({"owner": owner, "found": found})
}

fn nothing(user: &str) -> Value {
    json!({"owner": user, "found": {
        "local": 0, "session": 0, "databases": 0, "caches": 0, "workers": 0, "cookies": "", "part": format!("'{user}'"),
    }})
}

async fn plant(browser: &Chromium, house: &House) {
    let tab = browser.open(&format!("{}/login?alice&/plant", house.origin)).await;
    let refused = tab.value("window.refused").await;
    assert_eq!(refused, json!(["/sw.js", "/proxy/3000/sw.js"]), "a worker that would answer bob");
    tab.close().await;
}

/// The gateway's own logout, which the way to sign in again uses as well, leaves everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_signs_out_leaves_nothing() {
    let profile = TempDir::new().unwrap();
    let Some(browser) = Chromium::start(profile.path()).await else { return };
    let house = house().await;
    plant(&browser, &house).await;
    let tab = browser.open(&format!("{}/logout", house.origin)).await;
    tab.value("document.querySelector('#signed-out')?.textContent").await;
    tab.close().await;
    assert_eq!(look(&browser, &house, "alice", "/").await["found"]["local"], json!(1));
    let tab = browser.open(&format!("{}/.kube-coders/sign-out", house.origin)).await;
    tab.value("document.querySelector('#signed-out')?.textContent").await;
    tab.close().await;
    assert_eq!(look(&browser, &house, "alice", "/").await, nothing("alice"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_alice_left_in_the_browser_is_there_for_bob() {
    let profile = TempDir::new().unwrap();
    let Some(browser) = Chromium::start(profile.path()).await else { return };
    let house = house().await;
    for target in ["/proxy/3000/", "/", "/?folder=/home"] {
        plant(&browser, &house).await;
        // She signs in again after her session is over, and keeps everything.
        let again = look(&browser, &house, "alice", "/other").await;
        let (own, found) = (&again["owner"], &again["found"]);
        assert_eq!(
            (own, &found["local"], &found["databases"]),
            (&json!("alice"), &json!(1), &json!(1)),
            "{again}"
        );
        assert_eq!((&found["workers"], &found["caches"]), (&json!(1), &json!(1)), "{again}");
        assert_eq!(found["cookies"], "planted=alice", "{again}");
        assert_eq!(look(&browser, &house, "bob", target).await, nothing("bob"), "{target}");
        // What was not in the request of the first page is not sent to the next ones either.
        if target == "/proxy/3000/" {
            assert_eq!(look(&browser, &house, "bob", "/proxy/3000/a/").await, nothing("bob"));
        }
    }
}
