//! Tokens of a real OpenID provider, its keys rotated, itself away and back.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kube_coders::Program;
use kube_coders_test_support::NameServer;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::peer::PATIENCE;
use crate::provider::Provider;
use crate::served::Served;

struct House {
    provider: Provider,
    _names: NameServer,
    _runner: Served,
    gateway: Arc<Gateway>,
}

impl House {
    async fn start() -> Option<Self> {
        let provider = Provider::start().await?;
        let names = NameServer::start().await.unwrap();
        names.set("code-alice.test", ["127.0.0.2".parse::<IpAddr>().unwrap()]);
        let runner = Served::start(Program::new(), &["--dns-server", &names.address().to_string()]);
        let gateway = Arc::new(kube_coders::gateway(&runner.socket));
        Some(Self { provider, _names: names, _runner: runner, gateway })
    }

    fn route(&self, audience: &[&str]) -> Route {
        let conf = json!({
            "identity": {
                "trust": "verified", "issuer": self.provider.issuer(), "allow_http": true, "audience": audience,
            },
            "upstream": "http://code-{sub}.test:8443",
            "allow": {"groups": ["/developers"]},
        });
        Route::new("workspaces").plugin("user-upstream", &conf.to_string())
    }

    async fn ask(&self, token: &str) -> String {
        ask(&self.gateway, &self.route(&CLIENTS), token).await
    }

    /// Asks until the keys have found their way to the runner.
    async fn until_let_in(&self, token: &str) {
        let let_in = async { while self.ask(token).await != "alice" {} };
        timeout(PATIENCE, let_in).await.expect("to be let in");
    }
}

const CLIENTS: [&str; 3] = ["apisix-rs256", "apisix-es256", "apisix-eddsa"];

/// Whose workspace it goes to, or the code of the refusal.
async fn ask(gateway: &Gateway, route: &Route, token: &str) -> String {
    let request = ClientRequest::get("/").header("Host", "coders.test").added_header("X-Raw-ID-Token", token);
    match timeout(PATIENCE, gateway.call(route, &request)).await.expect("an answer") {
        Outcome::Forward(forwarded) => forwarded.upstream.unwrap().subject().unwrap().to_owned(),
        Outcome::Answer(answer) => {
            let problem: Value = serde_json::from_slice(&answer.body).unwrap();
            problem["code"].as_str().unwrap().to_owned()
        }
    }
}

fn key_id(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn its_tokens_lead_to_their_users_workspace() {
    let Some(house) = House::start().await else { return };
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let token = house.provider.id_token("alice", algorithm).await;
        assert_eq!(key_id(&token), format!("{algorithm}-1"));
        assert_eq!(house.ask(&token).await, "alice", "{algorithm}");
        let others = house.route(&["grafana"]);
        assert_eq!(ask(&house.gateway, &others, &token).await, "token-invalid", "for another client");
    }
}

#[tokio::test]
async fn keys_rotate_while_requests_run_and_none_fails() {
    let Some(house) = House::start().await else { return };
    let old = house.provider.id_token("alice", "RS256").await;
    assert_eq!(house.ask(&old).await, "alice");
    // Unseen tokens of the old key, to be used once each.
    let mut unseen = Vec::new();
    for _ in 0..10 {
        unseen.push(house.provider.id_token("alice", "ES256").await);
    }
    let answered = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(tokio::sync::Notify::new());
    let running: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, route, old) = (Arc::clone(&house.gateway), house.route(&CLIENTS), old.clone());
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut stopped = Box::pin(stop.notified());
                stopped.as_mut().enable();
                while futures_util::FutureExt::now_or_never(&mut stopped).is_none() {
                    assert_eq!(ask(&gateway, &route, &old).await, "alice");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // Some before the issuer rotates, some before the runner knows, some at each new key.
    assert!(unseen.len() >= 10, "{}", unseen.len());
    let mut unseen = unseen.into_iter();
    let of_old_key = async |unseen: &mut dyn Iterator<Item = String>| {
        for token in unseen {
            assert_eq!(key_id(&token), "ES256-1");
            assert_eq!(house.ask(&token).await, "alice", "of a key that is on its way out");
        }
    };
    of_old_key(&mut unseen.by_ref().take(2)).await;
    house.provider.rotate().await;
    of_old_key(&mut unseen.by_ref().take(2)).await;
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        let new = house.provider.id_token("alice", algorithm).await;
        assert_eq!(key_id(&new), format!("{algorithm}-2"));
        let mut one = unseen.by_ref().take(1);
        let (told, ()) = tokio::join!(house.ask(&new), of_old_key(&mut one));
        assert_eq!(told, "alice", "the key that signs now is fetched immediately");
    }
    of_old_key(&mut unseen).await;
    // Both keys go on, side by side.
    let before = answered.load(Ordering::SeqCst);
    while answered.load(Ordering::SeqCst) < before + 100 {
        assert_eq!(house.ask(&house.provider.id_token("alice", "ES256").await).await, "alice");
    }
    stop.notify_waiters();
    for task in running {
        task.await.unwrap();
    }
    assert_eq!(house.provider.keys_asked().await, 2, "once at first, and once for the new keys");
}

#[tokio::test]
async fn while_it_is_down_known_keys_serve_and_new_ones_once_it_is_back() {
    let Some(house) = House::start().await else { return };
    let (first, second) =
        (house.provider.id_token("alice", "ES256").await, house.provider.id_token("alice", "ES256").await);
    assert_eq!(house.ask(&first).await, "alice");
    house.provider.rotate_and_drop().await;
    let rotated = house.provider.id_token("alice", "ES256").await;
    house.provider.down().await;
    assert_eq!(house.ask(&second).await, "alice", "an unseen token of a known key");
    assert_eq!(house.ask(&rotated).await, "keys-unavailable");
    house.provider.up().await;
    house.until_let_in(&rotated).await;
}

#[tokio::test]
async fn a_runner_that_starts_while_it_is_down_recovers() {
    let Some(house) = House::start().await else { return };
    let token = house.provider.id_token("alice", "EdDSA").await;
    house.provider.down().await;
    assert_eq!(house.ask(&token).await, "keys-unavailable");
    house.provider.up().await;
    house.until_let_in(&token).await;
}

#[tokio::test]
async fn while_it_hangs_calls_are_answered_within_their_deadline() {
    let Some(house) = House::start().await else { return };
    let token = house.provider.id_token("alice", "RS256").await;
    house.provider.hang().await;
    // At the deadline the runner itself would answer, with `runner-failed`.
    assert_eq!(house.ask(&token).await, "keys-unavailable");
}
