//! Where keys come from: TLS, redirects, rotation, and issuers that are away.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use kube_coders::Program;
use kube_coders_test_support::NameServer;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::time::timeout;

use crate::issuer::{DISCOVERY, Issuer, Mode, Page};
use crate::peer::PATIENCE;
use crate::served::Served;
use kube_coders_test_support::{Signer, claims};

struct House {
    _names: NameServer,
    _runner: Served,
    gateway: Gateway,
}

impl House {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(args: &[&str]) -> Self {
        let names = NameServer::start().await.unwrap();
        names.set("code-alice.test", ["127.0.0.2".parse::<IpAddr>().unwrap()]);
        let address = names.address().to_string();
        let runner = Served::start(Program::new(), &[&["--dns-server", &address], args].concat());
        let gateway = kube_coders::gateway(&runner.socket);
        Self { _names: names, _runner: runner, gateway }
    }

    /// The code of the refusal, or whom it goes to.
    async fn ask(&self, identity: &Value, token: &str) -> String {
        let request = request(token);
        let answer = self.outcome(identity, &request);
        said(&timeout(PATIENCE, answer).await.expect("an answer"))
    }

    /// Asks until the keys have found their way to the runner.
    async fn until_let_in(&self, identity: &Value, token: &str) {
        let let_in = async { while self.ask(identity, token).await != "alice" {} };
        timeout(PATIENCE, let_in).await.expect("to be let in");
    }

    async fn outcome(&self, identity: &Value, request: &ClientRequest) -> Outcome {
        let conf = json!({"identity": identity, "upstream": "http://code-{sub}.test:8443"}).to_string();
        self.gateway.call(&Route::new("workspaces").plugin("user-upstream", &conf), request).await
    }
}

fn request(token: &str) -> ClientRequest {
    ClientRequest::get("/").header("Host", "coders.test").added_header("X-Raw-ID-Token", token)
}

fn said(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answer(answer) => {
            let problem: Value = serde_json::from_slice(&answer.body).unwrap();
            let retries = answer.header("retry-after").is_some();
            assert_eq!(retries, answer.status == 503, "{problem}");
            problem["code"].as_str().unwrap().to_owned()
        }
        Outcome::Forward(forwarded) => forwarded.upstream.as_ref().unwrap().subject().unwrap().to_owned(),
    }
}

fn identity(issuer: &Issuer) -> Value {
    serde_json::from_str(&issuer.identity()).unwrap()
}

fn merged(mut identity: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        identity[name] = value.clone();
    }
    identity
}

fn rsa() -> [Signer; 1] {
    [Signer::rsa().clone()]
}

#[tokio::test]
async fn every_algorithm_of_ours_is_checked() {
    let algorithms = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ];
    let signers = algorithms.map(|algorithm| Signer::new(&format!("{algorithm:?}"), algorithm));
    let (house, issuer) = (House::new().await, Issuer::start(&signers).await);
    for signer in &signers {
        let token = signer.token(&claims(&issuer.url(), "alice"));
        assert_eq!(house.ask(&identity(&issuer), &token).await, "alice", "{:?}", signer.algorithm);
        let forged = Signer::new(&signer.id, signer.algorithm).token(&claims(&issuer.url(), "alice"));
        assert_eq!(house.ask(&identity(&issuer), &forged).await, "token-invalid", "{:?}", signer.algorithm);
    }
}

#[tokio::test]
async fn tls_is_trusted_by_the_ca_file_only() {
    let (house, issuer) = (House::new().await, Issuer::start_tls(&rsa()).await);
    let identity = json!({"trust": "verified", "issuer": issuer.url(), "audience": ["apisix"]});
    assert_eq!(house.ask(&identity, &issuer.token("alice")).await, "keys-unavailable", "the system's roots");
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, &issuer.certificate).unwrap();
    let trusting = merged(identity.clone(), json!({"ca_file": file.path()}));
    assert_eq!(house.ask(&trusting, &issuer.token("alice")).await, "alice");
    let other = Issuer::start_tls(&rsa()).await;
    std::fs::write(&file, &other.certificate).unwrap();
    let elsewhere = merged(trusting, json!({"discovery": format!("{}{DISCOVERY}", issuer.url())}));
    let elsewhere = merged(elsewhere, json!({"issuer": "https://elsewhere.test"}));
    assert_eq!(house.ask(&elsewhere, &issuer.token("alice")).await, "token-invalid", "another issuer");
    let good = Signer::rsa().token(&claims("https://elsewhere.test", "alice"));
    assert_eq!(house.ask(&elsewhere, &good).await, "keys-unavailable", "another certificate");
}

#[tokio::test]
async fn an_issuer_may_send_us_on_but_not_round_nor_away_from_tls() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let other = Issuer::start(&rsa()).await;
    let token = issuer.token("alice");
    let document = json!({"issuer": issuer.url(), "jwks_uri": format!("{}/keys", issuer.url())});
    issuer.set_page("/real", Page::Text(document.to_string()));
    issuer.set_page("/once", Page::Redirect("/real".to_owned()));
    issuer.set_page("/round", Page::Redirect("/round".to_owned()));
    // Another name is another host, which the conf does not allow.
    let away = other.url().replace("127.0.0.1", "localhost");
    issuer.set_page("/away", Page::Redirect(format!("{away}{DISCOVERY}")));
    let keys_away = json!({"issuer": issuer.url(), "jwks_uri": format!("{away}/keys")});
    issuer.set_page("/keys-away", Page::Text(keys_away.to_string()));
    issuer.set_page("/file", Page::Text(json!({"jwks_uri": "file:///dev/null"}).to_string()));
    for (path, expected) in [
        ("/once", "alice"),
        ("/round", "keys-unavailable"),
        ("/away", "keys-unavailable"),
        ("/keys-away", "keys-unavailable"),
        ("/file", "keys-unavailable"),
        ("/nowhere", "keys-unavailable"),
    ] {
        let identity = merged(identity(&issuer), json!({"discovery": format!("{}{path}", issuer.url())}));
        assert_eq!(house.ask(&identity, &token).await, expected, "{path}");
    }
    assert!(issuer.asked("/round") <= 8, "{}", issuer.asked("/round"));
    assert_eq!(other.asked(DISCOVERY) + other.asked("/keys"), 0);
}

#[tokio::test]
async fn documents_that_are_none_give_no_keys() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let token = issuer.token("alice");
    let short = json!({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "rsa-1"}]}).to_string();
    let secret = json!({"keys": [{"kty": "oct", "k": "AQAB", "kid": "rsa-1", "alg": "HS256"}]}).to_string();
    // Good keys, in a document that is too long.
    let long = json!({"keys": [Signer::rsa().jwk()], "x": "x".repeat(512 * 1024)}).to_string();
    for (number, text) in ["", "[]", "{}", r#"{"keys": []}"#, &short, &secret, &long].into_iter().enumerate()
    {
        let (discovery, keys) = (format!("/discovery-{number}"), format!("/keys-{number}"));
        let document = json!({"issuer": issuer.url(), "jwks_uri": format!("{}{keys}", issuer.url())});
        issuer.set_page(&discovery, Page::Text(document.to_string()));
        issuer.set_page(&keys, Page::Text(text.to_owned()));
        let identity =
            merged(identity(&issuer), json!({"discovery": format!("{}{discovery}", issuer.url())}));
        assert_eq!(house.ask(&identity, &token).await, "keys-unavailable", "{number}");
        assert!(issuer.asked(&keys) > 0, "{number}");
    }
}

#[tokio::test]
async fn a_document_of_the_longest_length_gives_its_keys() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let around = json!({"keys": [Signer::rsa().jwk()], "x": ""}).to_string().len();
    let longest = json!({"keys": [Signer::rsa().jwk()], "x": "x".repeat(512 * 1024 - around)}).to_string();
    issuer.set_page("/keys", Page::Text(longest));
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "alice");
}

#[tokio::test]
async fn more_keys_than_are_kept_hide_none_for_something_else() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let other = json!({"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB", "kid": "rsa-1"});
    let keys: Vec<_> = std::iter::repeat_n(other, 300).chain([Signer::rsa().jwk()]).collect();
    issuer.set_page("/keys", Page::Text(json!({"keys": keys}).to_string()));
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "alice");
}

#[tokio::test]
async fn keys_of_unknown_kinds_are_left_out() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let keys = json!({"keys": [
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AQAB", "kid": "rsa-1"},
        {"kty": "EC", "crv": "secp256k1", "x": "AQAB", "y": "AQAB", "kid": "rsa-1"},
        7,
        {"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB", "kid": "rsa-1"},
        Signer::rsa().jwk(),
    ]});
    issuer.set_page("/keys", Page::Text(keys.to_string()));
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "alice");
}

#[tokio::test]
async fn a_new_key_is_fetched_once_for_all_calls_that_need_it() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "alice");
    let old = merged(claims(&issuer.url(), "alice"), json!({"jti": "not seen before"}));
    let next = Signer::new("ec-2", Algorithm::ES256);
    issuer.set_signers(&[next.clone(), Signer::rsa().clone()]);
    let tokens: Vec<_> = (0..20).map(|_| issuer.token("alice")).collect();
    let identity = identity(&issuer);
    let answers = join_all(tokens.iter().map(|token| house.ask(&identity, token))).await;
    assert!(answers.iter().all(|answer| answer == "alice"), "{answers:?}");
    assert_eq!(house.ask(&identity, &Signer::rsa().token(&old)).await, "alice");
    assert_eq!(issuer.asked("/keys"), 2);
    // Unknown keys ask again at most once in 10 s.
    let unknown = Signer::new("ec-3", Algorithm::ES256);
    for _ in 0..20 {
        let forged = unknown.token(&claims(&issuer.url(), "alice"));
        assert_eq!(house.ask(&identity, &forged).await, "token-invalid");
    }
    assert_eq!(issuer.asked("/keys"), 2);
}

/// A token that was believed a moment ago is not believed once its key has left the set.
#[tokio::test]
async fn a_withdrawn_key_ends_the_memory_of_its_tokens() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let identity = identity(&issuer);
    let old = issuer.token("alice");
    assert_eq!(house.ask(&identity, &old).await, "alice");
    let next = Signer::new("ec-2", Algorithm::ES256);
    issuer.set_signers(std::slice::from_ref(&next));
    // A key that the runner does not know makes it ask.
    assert_eq!(house.ask(&identity, &next.token(&claims(&issuer.url(), "alice"))).await, "alice");
    assert_eq!(house.ask(&identity, &old).await, "token-invalid");
}

#[tokio::test]
async fn an_authorization_of_the_issuer_reaches_no_workspace_and_another_one_does() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let token = issuer.token("alice");
    let other = Signer::rsa().token(&claims("https://elsewhere.test", "alice"));
    let access = issuer.token("another-user");
    for (authorization, access_token, passes) in [
        (format!("Bearer {token}"), "", false),
        (format!("Bearer {access}"), "", false),
        (format!("bearer  {access}"), "", false),
        ("Bearer opaque".to_owned(), "opaque", false),
        ("Bearer opaque".to_owned(), "other", true),
        (format!("Bearer {other}"), "", true),
        ("Basic YTpi".to_owned(), "", true),
    ] {
        let mut asked = request(&token).header("Authorization", &authorization);
        if !access_token.is_empty() {
            asked = asked.added_header("X-Access-Token", access_token);
        }
        let outcome = house.outcome(&identity(&issuer), &asked).await;
        assert_eq!(said(&outcome), "alice");
        let Outcome::Forward(forwarded) = outcome else { unreachable!() };
        let expected = passes.then_some(authorization.as_bytes());
        assert_eq!(forwarded.header("authorization"), expected, "{authorization} {access_token}");
        assert_eq!(forwarded.header("x-access-token"), None);
    }
}

#[tokio::test]
async fn tokens_of_others_never_make_us_ask() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "alice");
    let unknown = Signer::new("ec-3", Algorithm::ES256);
    for claims in [
        claims("https://elsewhere.test", "alice"),
        merged(claims(&issuer.url(), "alice"), json!({"aud": "grafana"})),
        merged(claims(&issuer.url(), "alice"), json!({"exp": 1})),
    ] {
        assert_eq!(house.ask(&identity(&issuer), &unknown.token(&claims)).await, "token-invalid");
    }
    assert_eq!(issuer.asked("/keys"), 1);
}

#[tokio::test]
async fn an_issuer_that_hangs_holds_neither_a_preparation_nor_a_call() {
    let issuer = Issuer::start(&rsa()).await;
    issuer.set_mode(Mode::Hang);
    let house = House::new().await;
    let token = issuer.token("alice");
    // Prepares the route, and asks; the call waits for its keys, but not to its deadline of 5 s.
    let since = Instant::now();
    assert_eq!(house.ask(&identity(&issuer), &token).await, "keys-unavailable");
    // A preparation that waited would have waited for the 10 s of a fetch.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert!(issuer.asked(DISCOVERY) > 0);
    let other = Issuer::start(&rsa()).await;
    assert_eq!(house.ask(&identity(&other), &other.token("alice")).await, "alice");
}

#[tokio::test]
async fn known_keys_serve_while_the_issuer_is_away() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "alice");
    issuer.set_mode(Mode::Fail);
    let fresh = merged(claims(&issuer.url(), "alice"), json!({"jti": "another"}));
    assert_eq!(house.ask(&identity(&issuer), &Signer::rsa().token(&fresh)).await, "alice");
    // Whether an unknown key is the issuer's is not known now.
    let next = Signer::new("ec-2", Algorithm::ES256);
    let token = next.token(&claims(&issuer.url(), "alice"));
    assert_eq!(house.ask(&identity(&issuer), &token).await, "keys-unavailable");
    issuer.set_signers(&[next]);
    issuer.set_mode(Mode::Answer);
    let asked = issuer.asked("/keys");
    issuer.until_asked("/keys", asked + 1).await;
    house.until_let_in(&identity(&issuer), &token).await;
}

#[tokio::test]
async fn a_runner_that_starts_without_its_issuer_recovers() {
    let issuer = Issuer::start(&rsa()).await;
    issuer.set_mode(Mode::Fail);
    let house = House::new().await;
    assert_eq!(house.ask(&identity(&issuer), &issuer.token("alice")).await, "keys-unavailable");
    issuer.set_mode(Mode::Answer);
    issuer.until_asked("/keys", 1).await;
    house.until_let_in(&identity(&issuer), &issuer.token("alice")).await;
}

#[tokio::test]
async fn the_authorized_party_counts_where_it_is_configured() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let claims = merged(claims(&issuer.url(), "alice"), json!({"aud": "account", "azp": "apisix"}));
    let token = Signer::rsa().token(&claims);
    assert_eq!(house.ask(&identity(&issuer), &token).await, "token-invalid");
    let with_azp = merged(identity(&issuer), json!({"azp": ["apisix"]}));
    assert_eq!(house.ask(&with_azp, &token).await, "alice");
}

#[tokio::test]
async fn a_ca_file_without_certificates_refuses_the_conf() {
    let house = House::new().await;
    let file = NamedTempFile::new().unwrap();
    let identity =
        json!({"trust": "verified", "issuer": "https://a.test", "audience": ["a"], "ca_file": file.path()});
    let conf = json!({"identity": identity, "upstream": "http://a:1"}).to_string();
    let route = Route::new("workspaces").plugin("user-upstream", &conf);
    let error = house.gateway.try_call(&route, &request("x")).await.unwrap_err();
    assert_eq!(error.to_string(), "the runner answered with error 0");
}

#[tokio::test]
async fn userinfo_adds_only_what_the_conf_names_and_the_token_wins() {
    let (house, issuer) = (House::new().await, Issuer::start(&rsa()).await);
    let userinfo = STANDARD.encode(json!({"sub": "alice", "groups": ["/admins"]}).to_string());
    let mut without = claims(&issuer.url(), "alice");
    without.as_object_mut().unwrap().remove("groups");
    let with = merged(without.clone(), json!({"groups": ["/guests"]}));
    for (names, claims, expected) in [
        (json!([]), &without, "not-allowed"),
        (json!(["preferred_username"]), &without, "not-allowed"),
        (json!(["groups"]), &without, "alice"),
        (json!(["groups"]), &with, "not-allowed"),
    ] {
        let conf = json!({
            "identity": merged(identity(&issuer), json!({"userinfo_claims": names})),
            "upstream": "http://code-{sub}.test:8443",
            "allow": {"groups": ["/admins"]},
        });
        let route = Route::new("workspaces").plugin("user-upstream", &conf.to_string());
        let request = request(&Signer::rsa().token(claims)).added_header("X-Userinfo", &userinfo);
        assert_eq!(said(&house.gateway.call(&route, &request).await), expected, "{names} {claims}");
    }
}
