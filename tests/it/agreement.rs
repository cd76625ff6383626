//! `explain` and the runner say the same of any request: of each trick, and of random
//! requests under random confs that start from the tricks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command as Process, Stdio};
use std::sync::{Arc, Mutex};

use apisix_plugin_runner::gateway::{ClientRequest, Outcome, Route};
use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
use kube_coders::Program;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::tricks::{Answer, Lab, tricks, userinfo};

/// How many random requests are tried at a time.
const CASES: u32 = 60;

/// How often so many are tried until each kind of answer has been seen.
const MOST_ROUNDS: u32 = 15;

/// What can become of a request at `user-upstream`: the codes of its refusals, and `goes`.
const KINDS: [&str; 13] = [
    "foreign-origin",
    "goes",
    "identity-malformed",
    "identity-mismatch",
    "identity-missing",
    "identity-too-large",
    "keys-unavailable",
    "no-workspace-name",
    "not-allowed",
    "resolver-unavailable",
    "token-invalid",
    "too-many-headers",
    "workspace-not-found",
];

/// Names below it have no answer of the name server.
const FAILING: &str = "failing.test";

/// Names and values of headers.
type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// Keeps the headers that the gateway shows to the plugins.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Headers>>);

impl Plugin for Recorder {
    const NAME: &'static str = "recorder";
    type Config = ();

    async fn on_request(&self, _: &(), request: &mut Request<'_>) -> Result<Action, PluginError> {
        let headers = request.headers().map(|(name, value)| (name.to_vec(), value.to_vec()));
        *self.0.lock().unwrap() = headers.collect();
        Ok(Action::Continue)
    }
}

struct Pair {
    lab: Lab,
    recorder: Recorder,
    name_server: String,
}

impl Pair {
    async fn start() -> Self {
        let recorder = Recorder::default();
        let lab = Lab::start_with(Program::new().plugin(recorder.clone())).await;
        lab.names.fail_below(FAILING);
        let name_server = lab.names.address().to_string();
        Self { lab, recorder, name_server }
    }

    /// What the runner says, and what `explain` says of the same headers.
    async fn answers(&self, conf: &str, scheme: &str, request: &ClientRequest) -> (String, String) {
        let route = Route::new(conf).plugin("recorder", "").plugin("user-upstream", conf);
        let request = request.clone().variable("scheme", scheme.to_owned());
        let outcome = self.lab.gateway.call(&route, &request).await;
        let headers = self.recorder.0.lock().unwrap().clone();
        let (steps, explained) = self.explain(conf, scheme, &headers);
        let runner = match outcome {
            Outcome::Forward(forwarded) => {
                let removed = steps.lines().find_map(|line| line.strip_prefix("ok  removed    "));
                for name in removed.unwrap_or_default().split(", ").filter(|name| !name.contains(' ')) {
                    // The runner writes a stamp of its own.
                    let sent = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()));
                    assert_ne!(forwarded.header(name), sent.map(|(_, value)| &value[..]), "{name}\n{steps}");
                }
                let user = String::from_utf8_lossy(forwarded.header("x-forwarded-user").unwrap());
                assert!(steps.contains(&format!("ok  added      x-forwarded-user: {user:?}")), "{steps}");
                format!("It goes to {}.", forwarded.upstream.unwrap())
            }
            Outcome::Answer(answer) => {
                let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let code = problem["code"].as_str().unwrap_or("a page");
                format!("It is refused: {} {code}.", answer.status)
            }
        };
        (runner, explained)
    }

    fn explain(&self, conf: &str, scheme: &str, headers: &Headers) -> (String, String) {
        let mut process = Process::new(env!("CARGO_BIN_EXE_kube-coders"))
            .args([
                "explain",
                "--online",
                "--allow-address",
                "127.0.0.0/8",
                "--dns-server",
                &self.name_server,
                "--scheme",
                scheme,
            ])
            .args(["--headers", "-", "--conf", conf])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = headers.iter().flat_map(|(name, value)| [name, &b": "[..], value, b"\n"].concat());
        process.stdin.take().unwrap().write_all(&lines.collect::<Vec<_>>()).unwrap();
        let steps = String::from_utf8(process.wait_with_output().unwrap().stdout).unwrap();
        let last = steps.lines().last().unwrap_or_default().to_owned();
        (steps, last)
    }

    fn conf(&self, changes: Value) -> String {
        let mut conf = json!({
            "identity": serde_json::from_str::<Value>(&self.lab.issuer.identity()).unwrap(),
            "upstream": "http://code-{sub}.test:8443",
        });
        conf.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        conf.to_string()
    }

    fn confs(&self) -> Vec<String> {
        let mut named = serde_json::from_str::<Value>(&self.lab.issuer.identity()).unwrap();
        named["token"] = json!(["x-access-token", "authorization"]);
        named["userinfo_claims"] = json!(["groups"]);
        let mut without_keys = serde_json::from_str::<Value>(&self.lab.issuer.identity()).unwrap();
        without_keys["discovery"] = json!(format!("{}/no-such-page", self.lab.issuer.url()));
        vec![
            self.conf(json!({})),
            self.conf(json!({"identity": {"trust": "gateway"}})),
            self.conf(json!({"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"})),
            self.conf(json!({"identity": {"trust": "gateway"}, "deny": {"groups": ["/guests"]}})),
            self.conf(json!({"identity": named, "allow": {"groups": ["/developers", "/guests"]}})),
            self.conf(json!({"upstream": "http://code-{preferred_username}.test:8443"})),
            self.conf(json!({"remove_cookies": ["a"], "allow": {"subjects": ["alice"]}})),
            self.conf(json!({"identity": without_keys})),
            self.conf(json!({"upstream": format!("http://code-{{sub}}.{FAILING}:8443")})),
        ]
    }

    /// Headers that a request may get.
    fn pool(&self) -> Vec<(&'static str, String)> {
        let good = self.lab.good();
        let told = |json: &str| ("X-Userinfo", userinfo(json));
        vec![
            ("Upgrade", "websocket".to_owned()),
            ("Origin", "http://coders.test".to_owned()),
            ("Origin", "https://coders.test".to_owned()),
            ("Origin", "null".to_owned()),
            ("Host", "coders.test:443".to_owned()),
            ("Cookie", "session=x; a=1; a2=2".to_owned()),
            ("X-Forwarded-User", "mallory".to_owned()),
            ("X-Forwarded-Preferred-Username", "mallory".to_owned()),
            ("X_Userinfo", "e30=".to_owned()),
            ("X-Refresh-Token", "x".to_owned()),
            ("X-Raw-ID-Token", good.clone()),
            ("X-Access-Token", good.clone()),
            ("Authorization", format!("Bearer {good}")),
            ("Authorization", "Basic YTpi".to_owned()),
            told(r#"{"sub":"alice"}"#),
            told(r#"{"sub":"alice","groups":["/guests"],"preferred_username":"alice"}"#),
            told(r#"{"sub":"alice","groups":{"/guests":true}}"#),
            told(r#"{"sub":"bob"}"#),
            told(r#"{"sub":" alice"}"#),
        ]
    }
}

/// Whether a request can be written as lines.
fn fits_on_lines(name: &str) -> bool {
    name != "a cookie that is two lines"
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_trick() {
    let pair = Pair::start().await;
    let conf = pair.conf(json!({}));
    let mut wrong = Vec::new();
    for (name, request, _) in tricks(&pair.lab).into_iter().filter(|(name, ..)| fits_on_lines(name)) {
        for scheme in ["http", "https"] {
            let (runner, explained) = pair.answers(&conf, scheme, &request).await;
            if runner != explained {
                wrong.push(format!("{name} ({scheme}): the runner: {runner} explain: {explained}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The requests that become random ones, by what the tricks' own conf makes of them, so that
/// an answer of few tricks is not rarer than one of many.
fn seeds(lab: &Lab) -> Vec<Vec<ClientRequest>> {
    let mut by_answer = BTreeMap::<String, Vec<ClientRequest>>::new();
    for (name, request, answer) in tricks(lab) {
        let code = match answer {
            Answer::To(_) => "goes".to_owned(),
            Answer::Refused(_, code) => code,
        };
        if fits_on_lines(name) {
            by_answer.entry(code).or_default().push(request);
        }
    }
    by_answer.into_values().collect()
}

/// The code of a refusal in the last line of `explain`, or `goes`.
fn kind(last: &str) -> String {
    let code = last.strip_prefix("It is refused: ").and_then(|rest| rest.split(' ').nth(1));
    code.map_or("goes", |code| code.trim_end_matches('.')).to_owned()
}

/// `KUBE_CODERS_SEED` repeats a run that failed.
#[tokio::test(flavor = "multi_thread")]
async fn of_random_requests_under_random_confs() {
    let pair = Pair::start().await;
    let (confs, pool, seeds) = (pair.confs(), pair.pool(), seeds(&pair.lab));
    let seed: u64 = match std::env::var("KUBE_CODERS_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::process::id().into(),
    };
    let config =
        Config { cases: CASES, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let added = prop_oneof![Just(Vec::new()), prop::collection::vec(0..pool.len(), 1..5)];
    let request = (0..seeds.len(), any::<prop::sample::Index>(), added);
    let cases = (request, 0..confs.len(), any::<bool>());
    let seen = Mutex::new(BTreeMap::<String, u32>::new());
    for round in 0..MOST_ROUNDS {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..12].copy_from_slice(&round.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let ran = TestRunner::new_with_rng(config.clone(), rng).run(
            &cases,
            |((answer, one, added), conf, is_https)| {
                let request = added.iter().fold(one.get(&seeds[answer]).clone(), |request, at| {
                    let (name, value) = &pool[*at];
                    request.header(name, value)
                });
                let scheme = if is_https { "https" } else { "http" };
                let answers = pair.answers(&confs[conf], scheme, &request);
                let (runner, explained) = block_in_place(|| Handle::current().block_on(answers));
                *seen.lock().unwrap().entry(kind(&runner)).or_default() += 1;
                prop_assert_eq!(runner, explained, "{} {} {:?}", scheme, &confs[conf], request);
                Ok(())
            },
        );
        if let Err(error) = ran {
            panic!("KUBE_CODERS_SEED={seed}: {error}");
        }
        if seen.lock().unwrap().len() >= KINDS.len() {
            break;
        }
    }
    let seen = seen.into_inner().unwrap();
    let kinds: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(kinds, KINDS.into(), "KUBE_CODERS_SEED={seed}: {seen:?}");
}
