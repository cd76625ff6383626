//! A real OpenID provider, npm's oidc-provider, in a process of its own, and the
//! login that a browser would do there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::peer::PATIENCE;
use crate::skip::skip;

/// Names the folder with the provider's `node_modules`.
const FOLDER: &str = "KUBE_CODERS_OIDC_PROVIDER";

const VERIFIER: &str = "a-verifier-is-at-least-forty-three-characters-long";

/// Ends when it is dropped.
pub(crate) struct Provider {
    ready: Ready,
    client: Client,
    _process: Child,
    // The provider ends with its standard input, whatever becomes of us.
    _input: ChildStdin,
}

/// What the provider says when it listens.
#[derive(Deserialize)]
struct Ready {
    issuer: String,
    control: String,
    redirect: String,
}

impl Provider {
    /// `None`, after saying why, where there is no Node or no package.
    pub(crate) async fn start() -> Option<Self> {
        let Some(folder) = std::env::var_os(FOLDER) else {
            skip(&format!("{FOLDER} names no folder with npm's oidc-provider: see tests/provider/README.md"));
            return None;
        };
        // Node looks for packages next to the script, so the script is copied there.
        let script = Path::new(&folder).join("provider.mjs");
        let ours = include_str!("../provider/provider.mjs");
        let is_ours = std::fs::read_to_string(&script).is_ok_and(|text| text == ours);
        assert!(is_ours, "{}: copy tests/provider/provider.mjs there", script.display());
        let mut command = Command::new("node");
        command
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(error) => {
                skip(&format!("node: {error}"));
                return None;
            }
        };
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let line = line.expect("a provider that listens: see what `node provider.mjs` says in that folder");
        let client = Client::builder().redirect(Policy::none()).no_proxy().build().unwrap();
        let input = process.stdin.take().unwrap();
        Some(Self { ready: serde_json::from_str(&line).unwrap(), client, _process: process, _input: input })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.ready.issuer
    }

    /// New keys sign from now on, and the old ones are still published.
    pub(crate) async fn rotate(&self) {
        self.control("/rotate").await;
    }

    /// New keys sign from now on, and no others are published.
    pub(crate) async fn rotate_and_drop(&self) {
        self.control("/rotate?drop").await;
    }

    /// Takes questions about keys, and never answers.
    pub(crate) async fn hang(&self) {
        self.control("/hang").await;
    }

    /// Nothing listens any more.
    pub(crate) async fn down(&self) {
        self.control("/down").await;
    }

    pub(crate) async fn up(&self) {
        self.control("/up").await;
    }

    /// How often the keys were asked for.
    pub(crate) async fn keys_asked(&self) -> u64 {
        self.control("/counts").await["/jwks"].as_u64().unwrap()
    }

    async fn control(&self, path: &str) -> Value {
        let answer = self.client.post(format!("{}{path}", self.ready.control)).send().await.unwrap();
        let (status, body) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// An ID token signed with this algorithm, by an authorization code flow with
    /// PKCE (RFC 7636), as the gateway's openid-connect does it.
    pub(crate) async fn id_token(&self, user: &str, algorithm: &str) -> String {
        let client_id = format!("apisix-{}", algorithm.to_lowercase());
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let mut start = Url::parse(&format!("{}/auth", self.ready.issuer)).unwrap();
        start
            .query_pairs_mut()
            .append_pair("client_id", &client_id)
            .append_pair("response_type", "code")
            .append_pair("scope", "openid profile")
            .append_pair("redirect_uri", &self.ready.redirect)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .append_pair("login_hint", user);
        let code = self.log_in(start).await;
        let mut form = Url::parse("http://form").unwrap();
        form.query_pairs_mut()
            .append_pair("grant_type", "authorization_code")
            .append_pair("code", &code)
            .append_pair("redirect_uri", &self.ready.redirect)
            .append_pair("code_verifier", VERIFIER);
        let answer = self
            .client
            .post(format!("{}/token", self.ready.issuer))
            .basic_auth(&client_id, Some("public"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.query().unwrap().to_owned())
            .send()
            .await
            .unwrap();
        let body = answer.text().await.unwrap();
        let tokens: Value = serde_json::from_str(&body).unwrap();
        tokens["id_token"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned()
    }

    /// Goes where a browser would be sent, with its cookies, and returns the code.
    async fn log_in(&self, start: Url) -> String {
        let (mut url, mut cookies) = (start, BTreeMap::new());
        for _ in 0..10 {
            let header: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let answer = self.client.get(url.clone()).header(COOKIE, header.join("; ")).send().await.unwrap();
            keep_cookies(&answer, &mut cookies);
            let Some(location) = answer.headers().get(LOCATION) else {
                panic!("{url}: {}", answer.text().await.unwrap());
            };
            url = url.join(location.to_str().unwrap()).unwrap();
            if url.as_str().starts_with(&self.ready.redirect) {
                let code = url.query_pairs().find(|(name, _)| name == "code");
                return code.unwrap_or_else(|| panic!("{url}")).1.into_owned();
            }
        }
        panic!("sent round in circles, to {url} at last")
    }
}

fn keep_cookies(answer: &Response, cookies: &mut BTreeMap<String, String>) {
    for cookie in answer.headers().get_all(SET_COOKIE) {
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        cookies.insert(name.to_owned(), value.to_owned());
    }
}
