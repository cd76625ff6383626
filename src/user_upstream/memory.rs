//! The memory of decisions: a browser's requests come with the same identity headers, and
//! what these came to is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::decision::WorkspaceDecision;
use super::digest_cache::{Digest, DigestCache, DigestKey};
use super::rejection::UserRejection;
use kube_coders_identity::keys::KeyStatus;

/// How long a token that was checked is not checked again.
const TOKEN_REMEMBERED: Duration = Duration::from_secs(60);

/// How long a token that was refused is refused unseen.
const REJECTION_REMEMBERED: Duration = Duration::from_secs(10);

/// How many identities are remembered, in use at one time at one gateway. Each takes
/// about 400 bytes.
const MAX_DECISIONS: usize = 100_000;

/// How many tokens that were refused are remembered.
const MAX_REJECTIONS: usize = 1024;

/// What identity headers came to, under all confs.
pub(super) struct Memory {
    key: DigestKey,
    decisions: DigestCache<Arc<WorkspaceDecision>>,
    /// Of tokens only.
    rejections: DigestCache<UserRejection>,
    next_conf: AtomicU64,
}

/// Tells a conf from all others with the same memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConfNumber(u64);

impl Memory {
    /// # Errors
    ///
    /// The system has no random numbers.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        Ok(Self {
            key: DigestKey::new()?,
            decisions: DigestCache::new(MAX_DECISIONS),
            rejections: DigestCache::new(MAX_REJECTIONS),
            next_conf: AtomicU64::new(0),
        })
    }

    /// A number that no other conf has.
    pub(super) fn next_conf(&self) -> ConfNumber {
        ConfNumber(self.next_conf.fetch_add(1, Ordering::Relaxed))
    }

    /// The place of these identity headers under a conf.
    pub(super) fn digest(&self, conf: ConfNumber, headers: [Option<&[u8]>; 2]) -> Digest {
        self.key.digest(conf.0, headers)
    }

    /// What these headers came to, while that is good: the time of their token is not over, and
    /// the issuer has not withdrawn its key.
    pub(super) fn decision(&self, digest: Digest, now: Instant) -> Option<Arc<WorkspaceDecision>> {
        let decision = self.decisions.get(digest, now)?;
        let is_withdrawn = decision.key.as_ref().is_some_and(KeyStatus::is_withdrawn);
        (!is_withdrawn).then_some(decision)
    }

    pub(super) fn rejection(&self, digest: Digest, now: Instant) -> Option<UserRejection> {
        self.rejections.get(digest, now)
    }

    /// Remembers a decision for as long as its token is good, and for at most a minute. One
    /// by the gateway's word is remembered for as long as there is room.
    pub(super) fn keep_decision(&self, digest: Digest, decision: &Arc<WorkspaceDecision>) {
        let now = Instant::now();
        let until = match decision.good_until {
            Some(until) if until <= now => return,
            Some(until) => Some(until.min(now + TOKEN_REMEMBERED)),
            None => None,
        };
        self.decisions.insert(digest, Arc::clone(decision), until);
    }

    /// Remembers why a token was refused, if that holds for a while.
    pub(super) fn keep_rejection(&self, digest: Digest, rejected: &UserRejection) {
        if rejected.rejection.is_lasting() {
            let until = Instant::now() + REJECTION_REMEMBERED;
            self.rejections.insert(digest, rejected.clone(), Some(until));
        }
    }
}
