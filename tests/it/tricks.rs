//! What a client can try, and gets nothing by: one line a trick, with its answer.

use std::net::IpAddr;
use std::slice::from_ref;

use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jsonwebtoken::Algorithm;
use kube_coders::Program;
use kube_coders_test_support::NameServer;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::issuer::Issuer;
use crate::served::Served;
use kube_coders_test_support::{Signer, claims, message, now};

/// What comes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It goes to the workspace of this subject.
    To(&'static str),
    Refused(u16, String),
}

use Answer::To;

fn no(status: u16, code: &str) -> Answer {
    Answer::Refused(status, code.to_owned())
}

fn invalid() -> Answer {
    no(401, "token-invalid")
}

fn malformed() -> Answer {
    no(400, "identity-malformed")
}

pub(crate) struct Lab {
    /// The issuer of the route.
    pub(crate) issuer: Issuer,
    /// Another realm, with keys of the same names.
    other: Issuer,
    signer: Signer,
    others: Signer,
    pub(crate) names: NameServer,
    _runner: Served,
    pub(crate) gateway: Gateway,
}

impl Lab {
    async fn start() -> Self {
        Self::start_with(Program::new()).await
    }

    /// With plugins of a test in addition to the shipped ones.
    pub(crate) async fn start_with(command: Program) -> Self {
        let (signer, others) = (Signer::rsa().clone(), Signer::new("rsa-1", Algorithm::RS256));
        let issuer = Issuer::start(from_ref(&signer)).await;
        let other = Issuer::start(from_ref(&others)).await;
        let names = NameServer::start().await.unwrap();
        names.set("code-alice.test", ["127.0.0.2".parse::<IpAddr>().unwrap()]);
        let runner = Served::start(command, &["--dns-server", &names.address().to_string()]);
        let gateway = kube_coders::gateway(&runner.socket);
        Self { issuer, other, signer, others, names, _runner: runner, gateway }
    }

    async fn ask(&self, issuer: &Issuer, request: &ClientRequest) -> Outcome {
        let conf =
            format!(r#"{{"identity": {}, "upstream": "http://code-{{sub}}.test:8443"}}"#, issuer.identity());
        self.gateway.call(&Route::new("workspaces").plugin("user-upstream", &conf), request).await
    }

    /// A good token's claims with some of them changed; `null` takes one out.
    fn claims(&self, changes: Value) -> Value {
        let mut claims = claims(&self.issuer.url(), "alice");
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(name),
                value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        claims
    }

    pub(crate) fn good(&self) -> String {
        self.signer.token(&self.claims(json!({})))
    }

    /// A token with changed claims, signed by the issuer.
    fn saying(&self, changes: Value) -> ClientRequest {
        with(&self.signer.token(&self.claims(changes)))
    }

    /// A token with another header, but signed by the issuer's key.
    fn headed(&self, header: Value) -> ClientRequest {
        with(&self.signer.token_with(&header, &self.claims(json!({})).to_string()))
    }

    /// A token whose payload is this text, signed by the issuer.
    fn payload(&self, payload: &str) -> ClientRequest {
        with(&self.signer.token_with(&self.header(), payload))
    }

    fn header(&self) -> Value {
        json!({"alg": "RS256", "kid": self.signer.id, "typ": "JWT"})
    }

    /// A payload of the good claims with more members behind them, as text.
    fn payload_with(&self, members: &str) -> String {
        let claims = self.claims(json!({})).to_string();
        format!("{}{members}}}", claims.strip_suffix('}').unwrap())
    }
}

fn get() -> ClientRequest {
    ClientRequest::get("/").header("Host", "coders.test")
}

fn with(token: &str) -> ClientRequest {
    get().added_header("X-Raw-ID-Token", token)
}

pub(crate) fn userinfo(json: &str) -> String {
    STANDARD.encode(json)
}

/// Signed with the issuer's public key, as if it were a secret.
fn signed_with_the_public_key(lab: &Lab) -> ClientRequest {
    let header = json!({"alg": "HS256", "kid": lab.signer.id}).to_string();
    let message = message(&header, &lab.claims(json!({})).to_string());
    let modulus = URL_SAFE_NO_PAD.decode(lab.signer.jwk()["n"].as_str().unwrap()).unwrap();
    let mac = Hmac::<Sha256>::new_from_slice(&modulus).unwrap().chain_update(&message).finalize();
    with(&format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.into_bytes())))
}

fn unsigned(lab: &Lab, algorithm: &str) -> ClientRequest {
    let header = json!({"alg": algorithm, "kid": lab.signer.id}).to_string();
    with(&format!("{}.", message(&header, &lab.claims(json!({})).to_string())))
}

fn forged(lab: &Lab, header: &Value) -> ClientRequest {
    with(&lab.others.token_with(header, &lab.claims(json!({})).to_string()))
}

fn many_headers(request: ClientRequest, count: usize) -> ClientRequest {
    (0..count).fold(request, |request, at| request.header(&format!("X-{at}"), "1"))
}

fn upgrade(lab: &Lab) -> ClientRequest {
    with(&lab.good()).header("Connection", "Upgrade").header("Upgrade", "websocket")
}

/// Where the signature begins is where the last dot is.
fn cut(token: &str) -> (&str, &str) {
    token.rsplit_once('.').unwrap()
}

fn signatures(lab: &Lab) -> Vec<(&'static str, ClientRequest, Answer)> {
    let good = lab.good();
    let bob = lab.signer.token(&lab.claims(json!({"sub": "bob"})));
    let ((said, signature), (_, of_bob)) = (cut(&good), cut(&bob));
    let own_key = lab.others.jwk();
    let keys_of_mine = format!("{}/keys", lab.other.url());
    vec![
        ("a good token", with(&good), To("alice")),
        ("no token", get(), no(401, "identity-missing")),
        (
            "userinfo alone",
            get().added_header("X-Userinfo", userinfo(r#"{"sub":"alice"}"#)),
            no(401, "identity-missing"),
        ),
        ("alg none", unsigned(lab, "none"), invalid()),
        ("alg None", unsigned(lab, "None"), invalid()),
        ("alg empty", unsigned(lab, ""), invalid()),
        ("alg RS256, no signature", unsigned(lab, "RS256"), invalid()),
        ("HS256 with the public key", signed_with_the_public_key(lab), invalid()),
        ("another algorithm of the same key", lab.headed(json!({"alg": "PS256", "kid": "rsa-1"})), invalid()),
        (
            "an algorithm of another kind of key",
            lab.headed(json!({"alg": "ES256", "kid": "rsa-1"})),
            invalid(),
        ),
        (
            "an algorithm of an RSA key's, unknown",
            lab.headed(json!({"alg": "RS1", "kid": "rsa-1"})),
            invalid(),
        ),
        ("alg twice", with(&raw_header(lab, r#"{"alg":"none","alg":"RS256","kid":"rsa-1"}"#)), invalid()),
        ("a header that is an array", with(&raw_header(lab, r#"["RS256","rsa-1",null,null]"#)), invalid()),
        ("alg no text", lab.headed(json!({"alg": ["RS256"], "kid": "rsa-1"})), invalid()),
        ("the signature of another token", with(&format!("{said}.{of_bob}")), invalid()),
        ("a signature cut short", with(&format!("{said}.{}", &signature[..signature.len() - 4])), invalid()),
        ("a signature with padding", with(&format!("{good}==")), invalid()),
        ("a part more", with(&format!("{good}.{signature}")), invalid()),
        ("signed by another realm, with our key's name", forged(lab, &lab.header()), invalid()),
        ("another realm's own token", with(&lab.other.token("alice")), invalid()),
        ("kid unknown", forged(lab, &json!({"alg": "RS256", "kid": "rsa-2"})), invalid()),
        ("kid a path", forged(lab, &json!({"alg": "RS256", "kid": "../../../dev/null"})), invalid()),
        ("kid a URL", forged(lab, &json!({"alg": "RS256", "kid": keys_of_mine})), invalid()),
        ("kid no text", lab.headed(json!({"alg": "RS256", "kid": 1})), invalid()),
        ("no kid, and one key", lab.headed(json!({"alg": "RS256"})), To("alice")),
        (
            "jku to the forger's keys",
            forged(lab, &json!({"alg": "RS256", "kid": "rsa-1", "jku": keys_of_mine})),
            invalid(),
        ),
        ("x5u", forged(lab, &json!({"alg": "RS256", "kid": "rsa-1", "x5u": keys_of_mine})), invalid()),
        (
            "jwk of the forger",
            forged(lab, &json!({"alg": "RS256", "kid": "rsa-1", "jwk": own_key})),
            invalid(),
        ),
        (
            "jku in a good token is ignored",
            lab.headed(json!({"alg": "RS256", "kid": "rsa-1", "jku": keys_of_mine})),
            To("alice"),
        ),
        (
            "jwk in a good token is ignored",
            lab.headed(json!({"alg": "RS256", "kid": "rsa-1", "jwk": own_key})),
            To("alice"),
        ),
        (
            "crit",
            lab.headed(json!({"alg": "RS256", "kid": "rsa-1", "crit": ["b64"], "b64": false})),
            invalid(),
        ),
        (
            "typ of a logout token",
            lab.headed(json!({"alg": "RS256", "kid": "rsa-1", "typ": "logout+jwt"})),
            invalid(),
        ),
        (
            "typ of an access token",
            lab.headed(json!({"alg": "RS256", "kid": "rsa-1", "typ": "at+jwt"})),
            To("alice"),
        ),
        ("an opaque token", with("2YotnFZFEjr1zCsicMWpAA"), invalid()),
        ("an encrypted token", with("e30.e30.e30.e30.e30"), invalid()),
        ("dots only", with(".."), invalid()),
        ("an empty token", get().added_header("X-Raw-ID-Token", ""), invalid()),
        ("no UTF-8", get().added_header("X-Raw-ID-Token", b"e30.\xff.e30"), invalid()),
    ]
}

/// A token whose header is this text, signed by the issuer.
fn raw_header(lab: &Lab, header: &str) -> String {
    // The signer writes a header as JSON, in which nothing stands twice.
    let token = lab.signer.token_with(&json!({}), &lab.claims(json!({})).to_string());
    let payload = token.split('.').nth(1).unwrap();
    let message = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(header));
    format!("{message}.{}", lab.signer.sign(&message))
}

fn said(lab: &Lab) -> Vec<(&'static str, ClientRequest, Answer)> {
    let at = |offset: i64| json!(i64::try_from(now()).unwrap() + offset);
    vec![
        ("expired", lab.saying(json!({"exp": at(-31)})), invalid()),
        ("expired within the leeway", lab.saying(json!({"exp": at(-10)})), To("alice")),
        ("no expiry", lab.saying(json!({"exp": null})), invalid()),
        ("expiry as text", lab.saying(json!({"exp": "9999999999"})), invalid()),
        ("expiry in 1e308 seconds", lab.saying(json!({"exp": 1e308})), To("alice")),
        ("not yet valid", lab.saying(json!({"nbf": at(90)})), invalid()),
        ("valid within the leeway", lab.saying(json!({"nbf": at(20)})), To("alice")),
        ("nbf as text", lab.saying(json!({"nbf": "0"})), invalid()),
        (
            "a logout token",
            lab.saying(json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}})),
            invalid(),
        ),
        ("an empty list of events", lab.saying(json!({"events": []})), invalid()),
        ("a refresh token", lab.saying(json!({"typ": "Refresh"})), invalid()),
        ("an action token", lab.saying(json!({"typ": "reset-credentials"})), invalid()),
        ("an ID token", lab.saying(json!({"typ": "ID"})), To("alice")),
        ("issued in the future", lab.saying(json!({"iat": at(90)})), invalid()),
        ("for another client", lab.saying(json!({"aud": "grafana"})), invalid()),
        ("for no audience", lab.saying(json!({"aud": null})), invalid()),
        ("for another client, by ours", lab.saying(json!({"aud": "account", "azp": "apisix"})), invalid()),
        ("for us among others", lab.saying(json!({"aud": ["account", "apisix"]})), To("alice")),
        ("aud an object", lab.saying(json!({"aud": {"apisix": true}})), invalid()),
        ("another issuer", lab.saying(json!({"iss": lab.other.url()})), invalid()),
        ("the issuer with a slash", lab.saying(json!({"iss": format!("{}/", lab.issuer.url())})), invalid()),
        ("no issuer", lab.saying(json!({"iss": null})), invalid()),
        ("no subject", lab.saying(json!({"sub": null})), no(403, "no-workspace-name")),
        ("a subject that is no text", lab.saying(json!({"sub": ["alice"]})), no(403, "no-workspace-name")),
        (
            "a subject of 256 characters",
            lab.saying(json!({"sub": "a".repeat(256)})),
            no(403, "no-workspace-name"),
        ),
        ("the subject twice", lab.payload(&lab.payload_with(r#","sub":"mallory""#)), invalid()),
        (
            "the subject twice, once escaped",
            lab.payload(&lab.payload_with(r#","s\u0075b":"mallory""#)),
            invalid(),
        ),
        ("the issuer twice", lab.payload(&lab.payload_with(r#","iss":"x""#)), invalid()),
        ("a nested member twice", lab.payload(&lab.payload_with(r#","aud":{"a":1,"a":2}"#)), invalid()),
        (
            "deep JSON",
            lab.payload(&lab.payload_with(&format!(r#","azp":{}{}"#, "[".repeat(2000), "]".repeat(2000)))),
            invalid(),
        ),
        ("a lone surrogate", lab.payload(&lab.payload_with(r#","azp":"\ud800""#)), invalid()),
        ("no UTF-8 in it", with(&not_utf8(lab)), invalid()),
        ("more behind the object", lab.payload(&format!("{} {{}}", lab.claims(json!({})))), invalid()),
        ("1 MB of claims", lab.saying(json!({"x": "x".repeat(1_000_000)})), no(431, "identity-too-large")),
        (
            "200 groups",
            lab.saying(json!({"groups": (0..200).map(|at| format!("/{at}/{}", "g".repeat(200))).collect::<Vec<_>>()})),
            To("alice"),
        ),
        ("CR and LF in the subject", lab.saying(json!({"sub": "alice\r\nx-admin: 1"})), malformed()),
        ("NUL in the subject", lab.saying(json!({"sub": "alice\0"})), malformed()),
        ("a space before the subject", lab.saying(json!({"sub": " alice"})), malformed()),
        (
            "CR and LF in the user name",
            lab.saying(json!({"preferred_username": "a\r\nx-admin: 1"})),
            To("alice"),
        ),
        (
            "dots in the subject",
            lab.saying(json!({"sub": "alice.test:1@evil/"})),
            no(404, "workspace-not-found"),
        ),
        ("the subject in capitals", lab.saying(json!({"sub": "ALICE"})), no(404, "workspace-not-found")),
    ]
}

fn not_utf8(lab: &Lab) -> String {
    let token = raw_header(lab, &lab.header().to_string());
    let header = token.split('.').next().unwrap();
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(b"{\"sub\":\"\xff\"}"));
    format!("{message}.{}", lab.signer.sign(&message))
}

fn headers(lab: &Lab) -> Vec<(&'static str, ClientRequest, Answer)> {
    let good = lab.good();
    let of = |json: &str| with(&good).added_header("X-Userinfo", userinfo(json));
    vec![
        ("the token twice", with(&good).header("X-Raw-ID-Token", &good), malformed()),
        (
            "another token twice",
            with(&good).header("X-Access-Token", "a").header("X-Access-Token", "b"),
            malformed(),
        ),
        ("userinfo twice", of(r#"{"sub":"alice"}"#).header("X-Userinfo", userinfo("{}")), malformed()),
        ("a twin of the userinfo", with(&good).header("X_Userinfo", userinfo("{}")), malformed()),
        ("a twin of a token", with(&good).header("x-access_token", &good), malformed()),
        ("a twin of the stamp", with(&good).header("X_Kube-Coders_Stamp", "AQAA"), malformed()),
        ("a twin of what is added", with(&good).header("x_forwarded_user", "mallory"), malformed()),
        ("userinfo of another", of(r#"{"sub":"bob"}"#), no(403, "identity-mismatch")),
        ("userinfo without a subject", of("{}"), no(403, "identity-mismatch")),
        ("userinfo of the same", of(r#"{"sub":"alice","preferred_username":"root"}"#), To("alice")),
        ("userinfo with the subject twice", of(r#"{"sub":"alice","sub":"bob"}"#), malformed()),
        ("userinfo that is no base64", with(&good).added_header("X-Userinfo", "{}"), malformed()),
        (
            "userinfo of 1 MB",
            of(&json!({"sub": "alice", "x": "x".repeat(1_000_000)}).to_string()),
            no(431, "identity-too-large"),
        ),
        ("userinfo with a lone surrogate", of(r#"{"sub":"\ud800"}"#), malformed()),
        ("a bearer", get().header("Authorization", format!("Bearer {good}")), To("alice")),
        (
            "the token in two places",
            with(&good).header("Authorization", format!("Bearer\t{good},x")),
            To("alice"),
        ),
        (
            "a cookie that is two lines",
            with(&good).header("Cookie", "session=x; a=b\r\nX-Admin: 1"),
            To("alice"),
        ),
        (
            "a bearer and a better token",
            with("x").header("Authorization", format!("Bearer {good}")),
            invalid(),
        ),
        ("no bearer", get().header("Authorization", format!("Basic {good}")), no(401, "identity-missing")),
        (
            "two authorizations",
            with(&good).header("Authorization", "Basic a").header("Authorization", "b"),
            malformed(),
        ),
        ("who I am, by my own word", with(&good).header("X-Forwarded-User", "mallory"), To("alice")),
        ("a stamp of my own", with(&good).header("X-Kube-Coders-Stamp", "AQAA"), To("alice")),
        ("97 headers and the gateway's", many_headers(with(&good), 94), To("alice")),
        ("100 headers", many_headers(with(&good), 96), no(431, "too-many-headers")),
        ("so many that ours is cut off", many_headers(with(&good), 200), no(431, "too-many-headers")),
        ("so many without a token", many_headers(get(), 200), no(431, "too-many-headers")),
        ("an upgrade without a token", get().header("Upgrade", "websocket"), no(401, "identity-missing")),
        ("an upgrade of no browser", upgrade(lab), To("alice")),
        ("an upgrade of our own page", upgrade(lab).header("Origin", "http://coders.test"), To("alice")),
        (
            "an upgrade of a foreign page",
            upgrade(lab).header("Origin", "http://evil.test"),
            no(403, "foreign-origin"),
        ),
        (
            "an upgrade of our own page, without TLS",
            upgrade(lab).variable("scheme", "https").header("Origin", "http://coders.test"),
            no(403, "foreign-origin"),
        ),
        (
            "an upgrade of our own page, with TLS",
            upgrade(lab).variable("scheme", "https").header("Origin", "https://coders.test"),
            To("alice"),
        ),
        ("an upgrade of null", upgrade(lab).header("Origin", "null"), no(403, "foreign-origin")),
        (
            "an upgrade of another port",
            upgrade(lab).header("Origin", "http://coders.test:81"),
            no(403, "foreign-origin"),
        ),
        (
            "an upgrade of two pages",
            upgrade(lab).header("Origin", "http://coders.test").header("Origin", "null"),
            no(403, "foreign-origin"),
        ),
        (
            "an upgrade of a name that ends as ours",
            upgrade(lab).header("Origin", "http://evil-coders.test"),
            no(403, "foreign-origin"),
        ),
    ]
}

/// All of them.
pub(crate) fn tricks(lab: &Lab) -> Vec<(&'static str, ClientRequest, Answer)> {
    let tricks: Vec<_> = [signatures(lab), said(lab), headers(lab)].into_iter().flatten().collect();
    assert!(tricks.len() > 90, "{}", tricks.len());
    tricks
}

#[tokio::test]
async fn no_trick_gets_anything() {
    let lab = Lab::start().await;
    let mut wrong = Vec::new();
    for (name, request, expected) in tricks(&lab) {
        // The second time, the answer may come from a cache, and must be the same.
        for time in ["first", "second"] {
            let answer = answer(&lab.ask(&lab.issuer, &request).await);
            if answer != expected {
                wrong.push(format!("{name} ({time}): {answer:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // No request went where a token's header pointed.
    assert_eq!(lab.other.asked("/keys"), 0);
}

#[tokio::test]
async fn one_gateway_has_several_realms() {
    let lab = Lab::start().await;
    for (issuer, token, expected) in [
        (&lab.issuer, lab.issuer.token("alice"), To("alice")),
        (&lab.other, lab.other.token("alice"), To("alice")),
        (&lab.issuer, lab.other.token("alice"), invalid()),
        (&lab.other, lab.issuer.token("alice"), invalid()),
        // Each says it is of the one, and is signed by the other, whose keys are known too.
        (&lab.issuer, lab.others.token(&claims(&lab.issuer.url(), "alice")), invalid()),
        (&lab.other, lab.signer.token(&claims(&lab.other.url(), "alice")), invalid()),
    ] {
        assert_eq!(answer(&lab.ask(issuer, &with(&token)).await), expected);
    }
}

fn answer(outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Answer(answer) => {
            let problem: Value = serde_json::from_slice(&answer.body).unwrap();
            Answer::Refused(answer.status, problem["code"].as_str().unwrap().to_owned())
        }
        Outcome::Forward(forwarded) => {
            let upstream = forwarded.upstream.as_ref().unwrap();
            assert_eq!(upstream.to_string(), "http://code-alice.test:8443");
            assert_eq!(upstream.subject(), Some("alice"));
            assert_eq!(forwarded.header("x-forwarded-user"), Some(&b"alice"[..]));
            for name in ["x-userinfo", "x-raw-id-token", "x-access-token", "x-id-token"] {
                assert_eq!(forwarded.header(name), None, "{name}");
            }
            let authorization = forwarded.header("authorization");
            assert!(authorization.is_none_or(|value| !value.starts_with(b"Bearer")), "{authorization:?}");
            assert_eq!(forwarded.header("cookie"), None);
            let name = forwarded.header("x-forwarded-preferred-username");
            assert!(name.is_none_or(|name| name == b"alice"), "{name:?}");
            To("alice")
        }
    }
}
