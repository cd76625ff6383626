//! The keys of issuers: a task of their own fetches, keeps and refreshes them.
//!
//! A call never asks an issuer. It uses the keys that are there. If the right key is
//! missing, the call waits a moment for the task that asks.

mod fetch;
mod set;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;

use reqwest::dns::Resolve;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

pub use self::set::{KeySet, KeyStatus};
use super::claims::Claims;
use super::locks::{lock, read_lock, write_lock};
use super::token::{Token, TokenError};
use fetch::FetchError;
pub use fetch::{CaFileError, Fetched, Source, read_ca_file};
use set::Key;

/// How long keys are kept before the issuer is asked again. A withdrawn key is believed for at
/// most 5 minutes: this time, 10 s for a fetch, [`WITHDRAWAL_TIME`] and the pause before the
/// fetch after it if the whole set is gone, and 10 s in a gateway that caches decisions.
const REFRESH: Duration = Duration::from_secs(3 * 60);

/// How long an issuer must go on saying that it has no keys until it is believed. A mistake, as
/// in a deployment of the issuer, is not to lock all users out.
const WITHDRAWAL_TIME: Duration = Duration::from_secs(60);

/// How often unknown keys may make us ask the issuer.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);

/// After how long an issuer that failed is asked again: first, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// How long a call waits for keys. A call has 5 s (`--call-deadline`), of which its
/// name may take 2 s and the id that its refusal shows half a second.
const KEYS_WAIT: Duration = Duration::from_secs(2);

/// How many calls may wait for one issuer's keys. Any client can send a token
/// with an unknown key. While the issuer hangs, each such token would hold one of the
/// runner's connections, of which there are 4096 by default.
const MAX_WAITING: usize = 1024;

/// The issuers whose keys are in use. Confs of the same source share one.
///
/// ```
/// use std::sync::Arc;
///
/// use kube_coders_identity::keys::{Issuer, Issuers, Source};
/// use reqwest::dns::Resolve;
///
/// /// Two confs with the same source share the keys and the requests for them.
/// fn issuers_of(confs: &[Source], names: &Arc<dyn Resolve>) -> Vec<Arc<Issuer>> {
///     let issuers = Issuers::new(std::time::Duration::from_secs(3600));
///     confs.iter().map(|source| issuers.get(source, names)).collect()
/// }
/// ```
pub struct Issuers {
    known: Mutex<HashMap<Source, Weak<Issuer>>>,
    max_age: Duration,
}

impl Issuers {
    /// No issuers yet. Keys serve for `max_age` while their issuer does not answer.
    pub fn new(max_age: Duration) -> Self {
        Self { known: Mutex::default(), max_age }
    }

    /// The issuer of this source. Its keys are fetched and renewed as long as a returned
    /// value exists.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn get(&self, source: &Source, names: &Arc<dyn Resolve>) -> Arc<Issuer> {
        let mut issuers = lock(&self.known);
        issuers.retain(|_, issuer| issuer.strong_count() > 0);
        if let Some(issuer) = issuers.get(source).and_then(Weak::upgrade) {
            return issuer;
        }
        let (asked, names) = (source.clone(), Arc::clone(names));
        let is_first = AtomicBool::new(true);
        let fetch = move || {
            let (source, names) = (asked.clone(), Arc::clone(&names));
            let is_first = is_first.swap(false, Ordering::Relaxed);
            async move {
                let Fetched { keys, other_issuer } = source.fetch(&names).await?;
                // Once, because a provider that is asked at an address inside may well call
                // itself by that one.
                if let Some(named) = other_issuer.filter(|_| is_first) {
                    let (issuer, discovery) = (&source.issuer, &source.discovery);
                    warn!(%issuer, %discovery, named, "the discovery document names another issuer");
                }
                Ok(keys)
            }
        };
        let issuer = Arc::new(Issuer::start(source.issuer.clone(), self.max_age, fetch));
        issuers.insert(source.clone(), Arc::downgrade(&issuer));
        issuer
    }
}

/// An issuer and its keys.
///
/// ```
/// use jsonwebtoken::Algorithm;
/// use kube_coders_identity::claims::Wanted;
/// use kube_coders_identity::keys::{Issuer, VerifyError};
/// use kube_coders_identity::token::Token;
/// use kube_coders_test_support::{Signer, key_set};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let signer = Signer::new("key-1", Algorithm::ES256);
/// let issuer = Issuer::of_keys(key_set(std::slice::from_ref(&signer)));
/// let text = signer.token(&serde_json::json!({"sub": "alice"}));
/// let token = Token::decode(text.as_bytes(), &Wanted::new([])).map_err(VerifyError::Token)?;
/// assert_eq!(issuer.verify(token).await?.claims.subject(), "alice");
/// # Ok::<(), VerifyError>(())
/// # }).unwrap();
/// ```
pub struct Issuer {
    shared: Arc<IssuerState>,
    /// Places of calls that wait for keys.
    waiting: Semaphore,
    /// Ends with the issuer.
    _task: AbortOnDropHandle<()>,
}

struct IssuerState {
    keys: RwLock<Option<KnownKeys>>,
    /// How long keys serve while the issuer does not answer.
    max_age: Duration,
    progress: watch::Sender<FetchCounts>,
    demand: Mutex<DemandedFetch>,
    demanded: Notify,
}

/// Keys, and when they were fetched.
#[derive(Clone)]
struct KnownKeys {
    keys: Arc<KeySet>,
    since: Instant,
}

/// How many fetches were started and finished.
#[derive(Clone, Copy, Default)]
struct FetchCounts {
    started: u64,
    finished: u64,
    /// Whether the last answer was one.
    good: bool,
}

/// The last fetch because of a key that was not known.
#[derive(Default)]
struct DemandedFetch {
    last: Option<Instant>,
    /// The fetch that a demand waits for.
    fetch: u64,
}

/// The claims of a token whose signature is right.
///
/// ```
/// use kube_coders_identity::keys::SignedClaims;
///
/// /// Whether a remembered token is still good by its key.
/// fn is_good(signed: &SignedClaims) -> bool {
///     !signed.key.is_withdrawn()
/// }
/// ```
#[derive(Debug)]
pub struct SignedClaims {
    /// The claims.
    pub claims: Claims,
    /// Whether the issuer still publishes the key that signed them.
    pub key: KeyStatus,
}

/// Why a token's signature can't be checked or is wrong.
///
/// ```
/// use kube_coders_identity::identity_error::IdentityError;
/// use kube_coders_identity::keys::VerifyError;
///
/// // The client can't help it, so the answer is 503 and not 401.
/// let error: IdentityError = VerifyError::KeysUnavailable.into();
/// assert_eq!(error, IdentityError::KeysUnavailable);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// The issuer's keys could not be fetched.
    KeysUnavailable,
    /// The token is rejected.
    Token(TokenError),
}

impl Issuer {
    /// Keeps the keys that are fetched this way.
    fn start<F, K>(name: Box<str>, max_age: Duration, fetch: F) -> Self
    where
        F: Fn() -> K + Send + 'static,
        K: Future<Output = Result<KeySet, FetchError>> + Send + 'static,
    {
        let shared = Arc::new(IssuerState {
            keys: RwLock::new(None),
            max_age,
            progress: watch::Sender::new(FetchCounts::default()),
            demand: Mutex::default(),
            demanded: Notify::new(),
        });
        let task = tokio::spawn(keep(name, fetch, Arc::clone(&shared)));
        Self { shared, waiting: Semaphore::new(MAX_WAITING), _task: AbortOnDropHandle::new(task) }
    }

    /// An issuer `https://a` with a fixed set of keys, which are not fetched: for tests
    /// without a network.
    pub fn of_keys(json: String) -> Self {
        Self::start("https://a".into(), Duration::MAX, move || {
            let keys = KeySet::decode(json.as_bytes());
            async move { keys.map_err(|_| FetchError::Silent) }
        })
    }

    /// The claims of a token that this issuer signed.
    pub async fn verify(&self, token: Token<'_>) -> Result<SignedClaims, VerifyError> {
        match self.try_verify(token) {
            Ok(signed) => Ok(signed),
            Err(NotVerified::Wrong(token)) if token.key_id.is_some() => {
                Err(VerifyError::Token(TokenError::Signature))
            }
            // Without a name, a key that does not fit may be one that is no longer used.
            Err(NotVerified::Wrong(token) | NotVerified::NoKey(token)) => {
                let until = Instant::now() + KEYS_WAIT;
                self.wait_and_verify(token, until).await
            }
        }
    }

    fn try_verify<'t>(&self, token: Token<'t>) -> Result<SignedClaims, NotVerified<'t>> {
        match self.shared.good_keys() {
            Some(keys) => verify_with(&keys.candidates(&token), token),
            None => Err(NotVerified::NoKey(token)),
        }
    }

    /// Waits for a fetch that started after the key was found missing, if one is due.
    async fn wait_and_verify(
        &self,
        mut token: Token<'_>,
        until: Instant,
    ) -> Result<SignedClaims, VerifyError> {
        let _place = self.waiting.try_acquire().map_err(|_| VerifyError::KeysUnavailable)?;
        let mut progress = self.shared.progress.subscribe();
        let fetch = self.shared.demand();
        loop {
            let seen = *progress.borrow_and_update();
            let error;
            (token, error) = match self.try_verify(token) {
                Ok(signed) => return Ok(signed),
                Err(NotVerified::Wrong(token)) => (token, TokenError::Signature),
                Err(NotVerified::NoKey(token)) => (token, TokenError::UnknownKey),
            };
            if error == TokenError::Signature && token.key_id.is_some() {
                return Err(VerifyError::Token(error));
            }
            let is_over = seen.finished >= fetch;
            if is_over && seen.good && self.shared.good_keys().is_some() {
                return Err(VerifyError::Token(error));
            }
            let left = until.saturating_duration_since(Instant::now());
            if is_over || !matches!(timeout(left, progress.changed()).await, Ok(Ok(()))) {
                return Err(VerifyError::KeysUnavailable);
            }
        }
    }
}

/// The claims of a token that is signed with one of these keys.
///
/// ```
/// use jsonwebtoken::Algorithm;
/// use kube_coders_identity::claims::Wanted;
/// use kube_coders_identity::keys::{KeySet, verify_with_set};
/// use kube_coders_identity::token::{Token, TokenError};
/// use kube_coders_test_support::{Signer, key_set};
///
/// let signers = ["key-1", "key-2"].map(|id| Signer::new(id, Algorithm::ES256));
/// let keys = KeySet::decode(key_set(&signers[..1]).as_bytes()).expect("a set of keys");
/// let text = signers[1].token(&serde_json::json!({"sub": "alice"}));
/// let token = Token::decode(text.as_bytes(), &Wanted::new([]))?;
/// assert_eq!(verify_with_set(&keys, token).err(), Some(TokenError::UnknownKey));
/// # Ok::<(), TokenError>(())
/// ```
pub fn verify_with_set(keys: &KeySet, token: Token<'_>) -> Result<SignedClaims, TokenError> {
    verify_with(&keys.candidates(&token), token).map_err(|tried| match tried {
        NotVerified::Wrong(_) => TokenError::Signature,
        NotVerified::NoKey(_) => TokenError::UnknownKey,
    })
}

/// Why no key verified a token, which can be tried again with other keys.
enum NotVerified<'t> {
    Wrong(Token<'t>),
    NoKey(Token<'t>),
}

fn verify_with<'t>(keys: &[&Key], mut token: Token<'t>) -> Result<SignedClaims, NotVerified<'t>> {
    if keys.is_empty() {
        return Err(NotVerified::NoKey(token));
    }
    for key in keys {
        token = match token.verify(&key.decoding) {
            Ok(claims) => return Ok(SignedClaims { claims, key: key.status.clone() }),
            Err(token) => token,
        };
    }
    Err(NotVerified::Wrong(token))
}

impl IssuerState {
    /// The last keys, unless they are too old to be believed.
    fn good_keys(&self) -> Option<Arc<KeySet>> {
        let known = read_lock(&self.keys);
        known
            .as_ref()
            .filter(|known| known.since.elapsed() < self.max_age)
            .map(|known| Arc::clone(&known.keys))
    }

    /// Asks for a fetch, unless one was demanded just now, and says which fetch
    /// is to be waited for.
    fn demand(&self) -> u64 {
        let mut demand = lock(&self.demand);
        let FetchCounts { started, finished, .. } = *self.progress.borrow();
        if started == 0 || started > finished && self.good_keys().is_none() {
            // What comes of the one that is about to start, or under way, is news.
            return started.max(1);
        }
        let is_due = demand.last.is_none_or(|last| last.elapsed() >= UNKNOWN_KEY_PAUSE);
        if is_due {
            *demand = DemandedFetch { last: Some(Instant::now()), fetch: started + 1 };
            self.demanded.notify_one();
        }
        demand.fetch
    }
}

impl IssuerState {
    fn replace_keys(&self, mut keys: KeySet) {
        let mut known = write_lock(&self.keys);
        if let Some(older) = &*known {
            keys.replace(&older.keys);
        }
        let _older = known.replace(KnownKeys { keys: Arc::new(keys), since: Instant::now() });
    }

    /// The issuer answered, and has no keys. It is believed once it has said so for a while.
    fn say_without_keys(&self, issuer: &str, error: &FetchError, since: &mut Option<Instant>) {
        let is_first = since.is_none();
        let since = since.get_or_insert_with(Instant::now);
        if self.good_keys().is_none() {
            return;
        }
        if since.elapsed() >= WITHDRAWAL_TIME {
            if let Some(known) = write_lock(&self.keys).take() {
                known.keys.withdraw();
            }
            error!(%issuer, %error, "the issuer still has no keys: its old keys are withdrawn");
        } else if is_first {
            let seconds = WITHDRAWAL_TIME.as_secs();
            error!(
                %issuer, %error,
                "the issuer has no keys any more: its old keys are withdrawn if it says so for {seconds} s"
            );
        }
    }
}

/// Asks the issuer for its keys, again and again.
async fn keep<F, K>(issuer: Box<str>, fetch: F, shared: Arc<IssuerState>)
where
    F: Fn() -> K,
    K: Future<Output = Result<KeySet, FetchError>>,
{
    let mut retry = FIRST_RETRY;
    // Since when the issuer says that it has no keys.
    let mut empty_since = None;
    loop {
        shared.progress.send_modify(|progress| progress.started += 1);
        let fetched = fetch().await;
        let good = fetched.is_ok();
        let pause = match fetched {
            Ok(keys) => {
                info!(%issuer, keys = keys.len(), "keys fetched");
                shared.replace_keys(keys);
                (retry, empty_since) = (FIRST_RETRY, None);
                REFRESH
            }
            Err(error) => {
                if error.is_without_keys() {
                    shared.say_without_keys(&issuer, &error, &mut empty_since);
                }
                warn!(%issuer, %error, again = ?retry, "keys not fetched");
                let next = (retry * 2).min(LAST_RETRY);
                std::mem::replace(&mut retry, next)
            }
        };
        shared.progress.send_modify(|progress| {
            progress.finished += 1;
            progress.good = good;
        });
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.demanded.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use jsonwebtoken::Algorithm;

    use super::super::claims::Wanted;
    use super::*;
    use kube_coders_test_support::{Signer, claims, key_set};

    /// An issuer whose next responses a test chooses.
    #[derive(Clone)]
    struct ScriptedIssuer {
        response: Arc<Mutex<IssuerResponse>>,
        asked: Arc<AtomicUsize>,
    }

    #[derive(Clone)]
    enum IssuerResponse {
        Keys(Vec<Signer>),
        /// A set without keys.
        NoKeys,
        Failure,
        /// No response before the fetch is given up.
        Silence,
    }

    impl ScriptedIssuer {
        fn new(response: IssuerResponse) -> Self {
            Self { response: Arc::new(Mutex::new(response)), asked: Arc::default() }
        }

        fn respond_with(&self, response: IssuerResponse) {
            *self.response.lock().unwrap() = response;
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        fn start(&self) -> Issuer {
            let scripted = self.clone();
            Issuer::start("https://a".into(), MAX_AGE, move || {
                scripted.asked.fetch_add(1, Ordering::SeqCst);
                let response = scripted.response.lock().unwrap().clone();
                async move {
                    match response {
                        IssuerResponse::Keys(keys) => Ok(KeySet::decode(key_set(&keys).as_bytes()).unwrap()),
                        IssuerResponse::NoKeys => Err(FetchError::Keys {
                            url: "https://a/keys".parse().unwrap(),
                            error: KeySet::decode(br#"{"keys": []}"#).err().unwrap(),
                        }),
                        IssuerResponse::Failure => Err(FetchError::Silent),
                        IssuerResponse::Silence => {
                            // As long as a fetch may take.
                            sleep(Duration::from_secs(10)).await;
                            Err(FetchError::Silent)
                        }
                    }
                }
            })
        }
    }

    async fn verify(issuer: &Issuer, signer: &Signer) -> Result<String, VerifyError> {
        let text = signer.token(&claims("https://a", "alice"));
        let token = Token::decode(text.as_bytes(), &Wanted::new([])).unwrap();
        issuer.verify(token).await.map(|signed| signed.claims.subject().to_owned())
    }

    async fn verify_without_name(issuer: &Issuer, signer: &Signer) -> Result<String, VerifyError> {
        let claims = claims("https://a", "alice").to_string();
        let text = signer.token_with(&serde_json::json!({"alg": "ES256"}), &claims);
        let token = Token::decode(text.as_bytes(), &Wanted::new([])).unwrap();
        issuer.verify(token).await.map(|signed| signed.claims.subject().to_owned())
    }

    fn two() -> (Signer, Signer) {
        (Signer::new("1", Algorithm::ES256), Signer::new("2", Algorithm::ES256))
    }

    const MAX_AGE: Duration = Duration::from_secs(3600);
    const UNKNOWN: Result<String, VerifyError> = Err(VerifyError::Token(TokenError::UnknownKey));
    const UNAVAILABLE: Result<String, VerifyError> = Err(VerifyError::KeysUnavailable);

    fn alice() -> Result<String, VerifyError> {
        Ok("alice".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_fetched_again_every_three_minutes() {
        let (one, two) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone()]));
        let issuer = scripted.start();
        assert_eq!(verify(&issuer, &one).await, alice());
        scripted.respond_with(IssuerResponse::Keys(vec![two.clone()]));
        sleep(Duration::from_secs(179)).await;
        assert_eq!((scripted.asked(), verify(&issuer, &one).await), (1, alice()));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(scripted.asked(), 2);
        assert_eq!(verify(&issuer, &two).await, alice());
        assert_eq!(verify(&issuer, &one).await, UNKNOWN, "a key that the issuer withdrew");
    }

    /// Whether a token that this key signed is still good by it.
    async fn status(issuer: &Issuer, signer: &Signer) -> KeyStatus {
        let text = signer.token(&claims("https://a", "alice"));
        let token = Token::decode(text.as_bytes(), &Wanted::new([])).unwrap();
        issuer.verify(token).await.unwrap().key
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_leaves_the_set_is_withdrawn_and_the_others_are_not() {
        let (one, two) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone(), two.clone()]));
        let issuer = scripted.start();
        let (first, second) = (status(&issuer, &one).await, status(&issuer, &two).await);
        scripted.respond_with(IssuerResponse::Keys(vec![two.clone()]));
        sleep(REFRESH + Duration::from_secs(1)).await;
        assert_eq!((first.is_withdrawn(), second.is_withdrawn()), (true, false));
        // Another key of the same name is another key.
        scripted.respond_with(IssuerResponse::Keys(vec![Signer::new("2", Algorithm::ES256)]));
        sleep(REFRESH).await;
        assert!(second.is_withdrawn());
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_is_gone_withdraws_its_keys_once_the_issuer_has_said_so_for_a_minute() {
        let (one, _) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone()]));
        let issuer = scripted.start();
        let key = status(&issuer, &one).await;
        let start = Instant::now();
        scripted.respond_with(IssuerResponse::NoKeys);
        sleep(REFRESH + WITHDRAWAL_TIME - Duration::from_secs(1)).await;
        assert_eq!((verify(&issuer, &one).await, key.is_withdrawn()), (alice(), false));
        sleep(LAST_RETRY + Duration::from_secs(1)).await;
        assert_eq!((verify(&issuer, &one).await, key.is_withdrawn()), (UNAVAILABLE, true));
        assert!(start.elapsed() < Duration::from_secs(270), "{:?}", start.elapsed());
        scripted.respond_with(IssuerResponse::Keys(vec![one.clone()]));
        sleep(LAST_RETRY).await;
        assert_eq!(verify(&issuer, &one).await, alice());
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_was_gone_for_a_moment_withdraws_nothing() {
        let (one, _) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone()]));
        let issuer = scripted.start();
        let key = status(&issuer, &one).await;
        for _ in 0..3 {
            let asked = scripted.asked();
            scripted.respond_with(IssuerResponse::NoKeys);
            while scripted.asked() == asked {
                sleep(Duration::from_secs(1)).await;
            }
            sleep(WITHDRAWAL_TIME - LAST_RETRY).await;
            scripted.respond_with(IssuerResponse::Keys(vec![one.clone()]));
            sleep(LAST_RETRY).await;
            assert_eq!((verify(&issuer, &one).await, key.is_withdrawn()), (alice(), false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_key_asks_again_at_most_once_in_ten_seconds() {
        let (one, two) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone()]));
        let issuer = scripted.start();
        assert_eq!(verify(&issuer, &one).await, alice());
        for round in 1..5 {
            for _ in 0..100 {
                assert_eq!(verify(&issuer, &two).await, UNKNOWN);
            }
            assert_eq!(scripted.asked(), 1 + round);
            sleep(Duration::from_secs(10)).await;
        }
        scripted.respond_with(IssuerResponse::Keys(vec![one, two.clone()]));
        assert_eq!(verify(&issuer, &two).await, alice());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_keys_serve_for_a_time_while_the_issuer_is_silent() {
        let (one, two) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone()]));
        let issuer = scripted.start();
        assert_eq!(verify(&issuer, &one).await, alice());
        scripted.respond_with(IssuerResponse::Failure);
        sleep(MAX_AGE - Duration::from_secs(60)).await;
        assert_eq!(verify(&issuer, &one).await, alice());
        assert_eq!(verify(&issuer, &two).await, UNAVAILABLE, "only the issuer knows whether it is new");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(verify(&issuer, &one).await, UNAVAILABLE);
        scripted.respond_with(IssuerResponse::Keys(vec![one.clone()]));
        sleep(LAST_RETRY).await;
        assert_eq!(verify(&issuer, &one).await, alice());
    }

    #[tokio::test(start_paused = true)]
    async fn an_issuer_that_hangs_holds_no_call_for_long() {
        let (one, two) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Silence);
        let issuer = scripted.start();
        for _ in 0..3 {
            let start = Instant::now();
            assert_eq!(verify(&issuer, &one).await, UNAVAILABLE);
            assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
        }
        scripted.respond_with(IssuerResponse::Keys(vec![one.clone()]));
        sleep(Duration::from_secs(20)).await;
        assert_eq!(verify(&issuer, &one).await, alice());
        scripted.respond_with(IssuerResponse::Silence);
        let start = Instant::now();
        assert_eq!(verify(&issuer, &two).await, UNAVAILABLE);
        assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(verify(&issuer, &one).await, alice(), "known keys need no answer");
        assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_calls_wait() {
        let (one, two) = two();
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![one.clone()]));
        let issuer = scripted.start();
        assert_eq!(verify(&issuer, &one).await, alice());
        scripted.respond_with(IssuerResponse::Silence);
        let start = Instant::now();
        let waiting = (0..MAX_WAITING).map(|_| verify(&issuer, &two));
        let mut waiting = Box::pin(join_all(waiting));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(verify(&issuer, &two).await, UNAVAILABLE);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(waiting.await.iter().all(|answer| *answer == UNAVAILABLE));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_without_a_name_that_was_replaced_is_fetched() {
        let [old, new] = ["", ""].map(|id| Signer::new(id, Algorithm::ES256));
        let scripted = ScriptedIssuer::new(IssuerResponse::Keys(vec![old.clone()]));
        let issuer = scripted.start();
        assert_eq!(verify_without_name(&issuer, &old).await, alice());
        scripted.respond_with(IssuerResponse::Keys(vec![new.clone()]));
        assert_eq!(verify_without_name(&issuer, &new).await, alice());
        let wrong = Err(VerifyError::Token(TokenError::Signature));
        assert_eq!(verify_without_name(&issuer, &old).await, wrong);
        assert_eq!(scripted.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_issuer_that_fails_is_asked_more_and_more_seldom() {
        let scripted = ScriptedIssuer::new(IssuerResponse::Failure);
        let _issuer = scripted.start();
        sleep(Duration::from_secs(600)).await;
        // After 1, 2, 4, 8, and then every 10 s.
        assert!((60..=65).contains(&scripted.asked()), "{}", scripted.asked());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_of_a_dropped_issuer_are_not_fetched() {
        let scripted = ScriptedIssuer::new(IssuerResponse::Failure);
        let issuer = scripted.start();
        sleep(Duration::from_secs(60)).await;
        drop(issuer);
        let asked = scripted.asked();
        sleep(Duration::from_secs(600)).await;
        assert_eq!(scripted.asked(), asked);
    }

    struct NoNames;

    impl Resolve for NoNames {
        fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
            Box::pin(async { Err("no name".into()) })
        }
    }

    #[tokio::test]
    async fn confs_of_one_source_share_its_keys() {
        let names: Arc<dyn Resolve> = Arc::new(NoNames);
        let source = |allow_http| Source {
            issuer: "http://127.0.0.1:1".into(),
            discovery: "http://127.0.0.1:1/d".parse().unwrap(),
            allow_http,
            ca_file: None,
        };
        let issuers = Issuers::new(MAX_AGE);
        let one = issuers.get(&source(true), &names);
        assert!(Arc::ptr_eq(&one, &issuers.get(&source(true), &names)));
        assert!(!Arc::ptr_eq(&one, &issuers.get(&source(false), &names)));
    }

    #[test]
    fn a_token_without_kid_takes_the_only_key_that_fits() {
        let (one, two) = two();
        let rsa = Signer::rsa().clone();
        let header = serde_json::json!({"alg": "ES256"});
        let text = one.token_with(&header, r#"{"sub":"a"}"#);
        let token = || Token::decode(text.as_bytes(), &Wanted::new([])).unwrap();
        let candidates =
            |keys: &[Signer]| KeySet::decode(key_set(keys).as_bytes()).unwrap().candidates(&token()).len();
        assert_eq!(candidates(&[rsa.clone(), one.clone()]), 1);
        assert_eq!(candidates(&[one, two]), 0);
        assert_eq!(candidates(&[rsa]), 0);
    }
}
