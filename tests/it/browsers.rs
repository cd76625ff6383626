use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use apisix_plugin_runner::gateway::{ClientRequest, ForwardedRequest, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::program::Runner;

const MARKER: &str = "__Host-kube-coders-user";
const CONF: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;

/// A browser: it keeps cookies of the whole host, and what its pages have stored.
#[derive(Clone, Debug, Default)]
struct Browser {
    cookies: BTreeMap<String, String>,
    /// How often it had to clear what it stored.
    cleared: usize,
}

impl Browser {
    /// Opens an address as this user, and returns the request that goes to the workspace.
    async fn open(&mut self, runner: &Runner, user: &str, target: &str) -> ForwardedRequest {
        self.send(runner, user, ClientRequest::get(target).header("Accept", "text/html")).await
    }

    async fn send(&mut self, runner: &Runner, user: &str, request: ClientRequest) -> ForwardedRequest {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = match cookies.is_empty() {
            true => request,
            false => request.header("Cookie", cookies.join("; ")),
        };
        let request = request.variable("scheme", "https");
        let forwarded = call(runner, user, request).await;
        for (name, value) in &forwarded.response_headers {
            let value = str::from_utf8(value).unwrap();
            match name.as_str() {
                "clear-site-data" => {
                    assert_eq!(value, r#""cache", "storage""#);
                    self.cleared += 1;
                }
                "set-cookie" => self.set_cookie(value),
                other => panic!("{other}: {value}"),
            }
        }
        forwarded
    }

    fn set_cookie(&mut self, line: &str) {
        let (pair, attributes) = line.split_once(';').unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        let attributes: Vec<_> = attributes.split(';').map(str::trim).collect();
        assert!(attributes.contains(&"Secure"), "{line}");
        if !attributes.contains(&"Path=/") || attributes.contains(&"Partitioned") {
            return;
        }
        match attributes.contains(&"Max-Age=0") {
            true => drop(self.cookies.remove(name)),
            false => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.cookies.insert(name.to_owned(), value.to_owned());
        self
    }
}

async fn call(runner: &Runner, user: &str, request: ClientRequest) -> ForwardedRequest {
    let userinfo = STANDARD.encode(format!(r#"{{"sub": "{user}"}}"#));
    let request = request.added_header("X-Userinfo", userinfo);
    let route = Route::new("workspaces").plugin("user-upstream", CONF);
    match kube_coders::gateway(&runner.socket).call(&route, &request).await {
        Outcome::Forward(forwarded) => forwarded,
        Outcome::Answer(answer) => panic!("{answer:?}"),
    }
}

fn names(forwarded: &ForwardedRequest) -> Vec<&str> {
    forwarded.response_headers.iter().map(|(name, _)| name.as_str()).collect()
}

fn cookies_of(forwarded: &ForwardedRequest) -> Option<&str> {
    forwarded.header("cookie").map(|cookies| str::from_utf8(cookies).unwrap())
}

fn key_file(folder: &Path, name: &str, byte: u8) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, [byte; 32]).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

fn runner_with(keys: &[&Path]) -> Runner {
    let keys = keys.iter().map(|key| key.to_str().unwrap());
    let args: Vec<&str> = keys.flat_map(|key| ["--subject-key-file", key]).collect();
    Runner::start(&args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_user_of_a_browser_finds_nothing_of_the_last_one() {
    let runner = Runner::start(&[]);
    let mut browser = Browser::default();
    browser.open(&runner, "alice", "/").await;
    assert_eq!(browser.cleared, 1, "nobody knows who was here before");
    let cookie = browser.cookies[MARKER].clone();
    browser.open(&runner, "alice", "/?folder=/home").await;
    assert_eq!((browser.cleared, &browser.cookies[MARKER]), (1, &cookie), "it is still alice");

    // What alice's pages leave, and the session, which is the gateway's.
    browser =
        browser.with("vscode-tkn", "1").with("theme", "dark").with("session", "bobs").with("session_2", "x");
    let request = ClientRequest::get("/proxy/3000/")
        .header("Accept", "text/html")
        .header("If-None-Match", "\"1\"")
        .header("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT");
    let forwarded = browser.send(&runner, "bob", request).await;
    assert_eq!(browser.cleared, 2);
    assert_eq!(cookies_of(&forwarded), None, "bob's workspace gets no cookie of alice's");
    assert_eq!(forwarded.header("if-none-match"), None, "the page is not taken from alice's cache");
    assert_eq!(forwarded.header("if-modified-since"), None);
    let left: Vec<_> = browser.cookies.keys().map(String::as_str).collect();
    assert_eq!(left, [MARKER, "session", "session_2"]);
    assert_ne!(browser.cookies[MARKER], cookie);

    let forwarded = browser.clone().with("theme", "light").open(&runner, "bob", "/").await;
    assert_eq!(forwarded.response_headers, [], "from now on it is bob's");
    assert_eq!(cookies_of(&forwarded), Some("theme=light"));
    browser.open(&runner, "alice", "/").await;
    assert_eq!(browser.cleared, 3, "and alice finds nothing of bob's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_the_folders_above_an_address_are_removed() {
    let runner = Runner::start(&[]);
    let request = ClientRequest::get("/proxy/3000/a?b=/c/")
        .header("Sec-Fetch-Mode", "navigate")
        .header("Cookie", "app=1; =noname; alone");
    let forwarded = call(&runner, "bob", request).await;
    let lines = forwarded.response_headers.iter().filter(|(name, _)| name == "set-cookie");
    let lines: Vec<_> = lines.map(|(_, value)| str::from_utf8(value).unwrap()).collect();
    let of_app: Vec<_> =
        lines.iter().filter_map(|line| line.strip_prefix("app=; Max-Age=0; Path=")).collect();
    assert_eq!(
        of_app,
        [
            "/; Secure",
            "/; Secure; Partitioned",
            "/proxy; Secure",
            "/proxy/; Secure",
            "/proxy/3000; Secure",
            "/proxy/3000/; Secure",
            "/proxy/3000/a; Secure"
        ],
    );
    assert!(lines.contains(&"=removed; Max-Age=0; Path=/; Secure"), "{lines:?}");
    let last = lines.last().unwrap();
    assert!(last.starts_with(&format!("{MARKER}=")), "a full jar has room again: {last}");
    assert!(last.ends_with("; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=34560000"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_says_nothing_clears() {
    let runner = Runner::start(&[]);
    let mut browser = Browser::default();
    browser.open(&runner, "alice", "/").await;
    let marker = browser.cookies[MARKER].clone();
    let twice = format!("{MARKER}={marker}; {MARKER}={marker}");
    let hidden = format!("a=1;{MARKER}={}", &marker[1..]);
    for cookies in
        [twice.as_str(), hidden.as_str(), "a=1", &format!("{MARKER}="), &format!("x{MARKER}={marker}")]
    {
        let request = ClientRequest::get("/").header("Sec-Fetch-Mode", "navigate").header("Cookie", cookies);
        let forwarded = call(&runner, "alice", request).await;
        assert_eq!(names(&forwarded)[0], "clear-site-data", "{cookies}");
    }
    // In two lines, too, as HTTP/2 may have them.
    let request = ClientRequest::get("/")
        .header("Sec-Fetch-Mode", "navigate")
        .header("Cookie", "a=1")
        .header("Cookie", format!("{MARKER}={marker}"));
    let forwarded = call(&runner, "alice", request).await;
    assert_eq!(forwarded.response_headers, []);
    assert_eq!(cookies_of(&forwarded), Some("a=1"), "the marker reaches no workspace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_navigations_over_tls_mark_and_clear() {
    let runner = Runner::start(&[]);
    let page = || ClientRequest::get("/").header("Accept", "text/html");
    let marked = [
        page().variable("scheme", "https"),
        ClientRequest::get("/").header("Sec-Fetch-Mode", "navigate"),
        ClientRequest::new("POST".parse().unwrap(), "/").header("Sec-Fetch-Mode", "Navigate"),
    ];
    for request in marked {
        let forwarded = call(&runner, "alice", request.clone()).await;
        assert_eq!(names(&forwarded), ["clear-site-data", "set-cookie"], "{request:?}");
    }
    let others = [
        // The browser would refuse the marker, and each page would clear.
        page().variable("scheme", "http"),
        ClientRequest::get("/").header("Accept", "*/*").variable("scheme", "https"),
        page().header("Sec-Fetch-Mode", "cors").variable("scheme", "https"),
        ClientRequest::get("/a.js").header("Sec-Fetch-Mode", "no-cors"),
        ClientRequest::get("/").header("Sec-Fetch-Mode", "websocket"),
    ];
    for request in others {
        let request = request.header("Cookie", "a=1");
        let forwarded = call(&runner, "alice", request.clone()).await;
        assert_eq!(forwarded.response_headers, [], "{request:?}");
        assert_eq!(cookies_of(&forwarded), Some("a=1"), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_signs_out_themselves_clears_the_browser() {
    let runner = Runner::start(&[]);
    let route = Route::new("workspaces").plugin(
        "user-upstream",
        r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443", "login": "/.apisix/logout"}"#,
    );
    let gateway = kube_coders::gateway(&runner.socket);
    // Whoever it is: a user without a workspace signs out, too.
    let sign_out = async |site: Option<&str>| {
        let request = ClientRequest::get("/.kube-coders/sign-out?x")
            .header("Sec-Fetch-Mode", "navigate")
            .header("Cookie", format!("a=1; session=x; {MARKER}=y"));
        let request = site.into_iter().fold(request, |request, site| request.header("Sec-Fetch-Site", site));
        gateway.call(&route, &request).await
    };
    for (site, clears) in [
        (None, true),
        (Some("none"), true),
        (Some("same-origin"), true),
        (Some("same-site"), false),
        (Some("cross-site"), false),
    ] {
        let answer = sign_out(site).await.answered();
        assert_eq!(
            (answer.status, answer.header("location")),
            (302, Some(&b"/.apisix/logout"[..])),
            "{site:?}"
        );
        assert_eq!(answer.header("cache-control"), Some(&b"no-store"[..]));
        assert_eq!(
            answer.header("clear-site-data"),
            clears.then_some(&br#""cache", "storage""#[..]),
            "{site:?}"
        );
        let cookies: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "set-cookie").collect();
        assert_eq!(
            cookies.iter().any(|(_, value)| value.starts_with(b"a=; Max-Age=0; Path=/; Secure")),
            clears
        );
        // The gateway ends the session itself, and the marker still says who was here.
        assert!(cookies.iter().all(|(_, value)| value.starts_with(b"a=")), "{cookies:?}");
    }
    let script = ClientRequest::get("/.kube-coders/sign-out").header("Sec-Fetch-Mode", "cors");
    assert_eq!(call(&runner, "alice", script).await.target, b"/.kube-coders/sign-out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_one_key_know_each_other_s_markers() {
    let folder = TempDir::new().unwrap();
    let key = key_file(folder.path(), "key", 1);
    let replicas = [runner_with(&[&key]), runner_with(&[&key])];
    let mut browser = Browser::default();
    for replica in replicas.iter().cycle().take(6) {
        browser.open(replica, "alice", "/").await;
    }
    assert_eq!(browser.cleared, 1);
    // The same user signs in again: only the session is another.
    browser = browser.with("session", "new");
    browser.open(&replicas[0], "alice", "/").await;
    assert_eq!(browser.cleared, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_replaced_without_clearing() {
    let folder = TempDir::new().unwrap();
    let (old, new) = (key_file(folder.path(), "old", 1), key_file(folder.path(), "new", 2));
    let mut browser = Browser::default();
    browser.open(&runner_with(&[&old]), "alice", "/").await;
    let by_old = browser.cookies[MARKER].clone();
    let both = runner_with(&[&new, &old]);
    let forwarded = browser.open(&both, "alice", "/").await;
    assert_eq!(names(&forwarded), ["set-cookie"]);
    assert_ne!(browser.cookies[MARKER], by_old);
    let only_new = runner_with(&[&new]);
    browser.open(&only_new, "alice", "/").await;
    assert_eq!(browser.cleared, 1);
    // Without the former key, the log says what is missing.
    let mut late = Browser::default().with(MARKER, &by_old);
    late.open(&only_new, "alice", "/").await;
    assert_eq!(late.cleared, 1);
    let line = only_new.program.line(&["marked with a key"]);
    assert!(line.contains("give all replicas the same --subject-key-file"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_next_to_the_socket_outlives_its_runner() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("runner.sock");
    let mut browser = Browser::default();
    for _ in 0..2 {
        let mut runner = Runner::start_at(&socket, &[]);
        browser.open(&runner, "alice", "/").await;
        runner.program.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(runner.program.ended().success());
    }
    assert_eq!(browser.cleared, 1);
    let mode = fs::metadata(folder.path().join("runner.sock.subject-key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
