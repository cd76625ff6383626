//! Conf tokens: the numbers of the chains of prepared plugins.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::warn;

use crate::locks::{read_lock, write_lock};
use crate::registry::Prepared;

/// Prepared plugins, in the order in which the route lists them.
pub(crate) type Chain = Vec<Box<dyn Prepared>>;

/// Identifies a chain: a digest over its names and confs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ChainId([u8; 32]);

impl ChainId {
    pub(crate) fn of(confs: &[(&[u8], &[u8])]) -> Self {
        let mut digest = Sha256::new();
        for part in confs.iter().flat_map(|(name, conf)| [name, conf]) {
            // With its length before it, no part can reach into the next.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }
}

/// The one route that a chain belongs to; `None` once two routes have the same chain.
type RouteId = Option<Arc<str>>;

/// How many bytes the names and confs of all cached chains may have. A frame may hold 16 MiB, and
/// a prepared conf is about as large as its text.
const MAX_CONF_BYTES: usize = 64 << 20;

/// Tokens with their chains, for as long as the gateway may use them.
///
/// Tokens are random. With a counter, a token from before a restart of the runner could
/// name another route's chain (docs/gateway.md, PrepareConf). A chain keeps its token
/// however often it is prepared, because every reload of a gateway's file prepares every
/// route again.
///
/// If the cache is full, it drops the chain whose token expires next. A cache that judges
/// by use would drop a token that the gateway still holds for hours.
pub(crate) struct ConfCache {
    kept: Duration,
    capacity: usize,
    entries: RwLock<CachedChains>,
}

#[derive(Default)]
struct CachedChains {
    by_token: HashMap<u32, CachedChain>,
    by_id: HashMap<ChainId, u32>,
    /// Of all chains.
    bytes: usize,
}

struct CachedChain {
    id: ChainId,
    /// How long its names and confs are.
    bytes: usize,
    chain: Arc<Chain>,
    route: RouteId,
    expires: Instant,
}

impl ConfCache {
    /// A cache of at most `capacity` chains, with 64 MiB of confs in total, each kept for 1.2 times the time
    /// for which the gateway keeps its token.
    pub(crate) fn new(expire_time: Duration, capacity: usize) -> Self {
        Self {
            kept: expire_time.saturating_mul(6) / 5,
            capacity: capacity.max(1),
            entries: RwLock::default(),
        }
    }

    /// The chain of a valid token, and the id of its route if only one route has it.
    pub(crate) fn chain(&self, token: u32) -> Option<(Arc<Chain>, RouteId)> {
        let entries = read_lock(&self.entries);
        let entry = entries.by_token.get(&token)?;
        (entry.expires > Instant::now()).then(|| (Arc::clone(&entry.chain), entry.route.clone()))
    }

    /// The token of a known chain, valid for its whole time from now.
    pub(crate) fn renew(&self, id: ChainId, route: Option<&str>) -> Option<u32> {
        let mut entries = write_lock(&self.entries);
        let now = Instant::now();
        let token = *entries.by_id.get(&id)?;
        let entry = entries.by_token.get_mut(&token).filter(|entry| entry.expires > now)?;
        entry.expires = now + self.kept;
        if entry.route.as_deref() != route {
            entry.route = None;
        }
        Some(token)
    }

    /// A token for a new chain, or the token that the chain has got meanwhile.
    pub(crate) fn insert(
        &self,
        id: ChainId,
        bytes: usize,
        chain: Chain,
        route: Option<&str>,
    ) -> Result<u32, getrandom::Error> {
        // Declared before the lock, so that it is dropped after the lock is released: the
        // `Drop` of a plugin's value may be slow, panic, or call the runner.
        let forgotten;
        let mut entries = write_lock(&self.entries);
        let now = Instant::now();
        if let Some(token) = entries.by_id.get(&id).copied()
            && let Some(entry) = entries.by_token.get_mut(&token).filter(|entry| entry.expires > now)
        {
            // Another connection has prepared the same chain meanwhile, perhaps for another route.
            if entry.route.as_deref() != route {
                entry.route = None;
            }
            return Ok(token);
        }
        forgotten = entries.make_room(self.capacity, bytes, now);
        let token = loop {
            let token = getrandom::u32()?;
            if token != 0 && !entries.by_token.contains_key(&token) {
                break token;
            }
        };
        entries.by_id.insert(id, token);
        entries.by_token.insert(
            token,
            CachedChain {
                id,
                bytes,
                chain: Arc::new(chain),
                route: route.map(Arc::from),
                expires: now + self.kept,
            },
        );
        entries.bytes += bytes;
        drop(entries);
        for _ in forgotten.iter().filter(|entry| entry.expires > now) {
            warn!(
                capacity = self.capacity,
                max_bytes = MAX_CONF_BYTES,
                cure = "--max-confs, or shorter confs",
                "conf forgotten before its time: the gateway prepares it again"
            );
        }
        Ok(token)
    }
}

impl CachedChains {
    /// Removes expired chains, and if that is not enough, the chain that would expire
    /// next.
    fn make_room(&mut self, capacity: usize, bytes: usize, now: Instant) -> Vec<CachedChain> {
        let expired = self.by_token.extract_if(|_, entry| entry.expires <= now);
        let mut forgotten: Vec<_> = expired.map(|(_, entry)| entry).collect();
        self.bytes -= forgotten.iter().map(|entry| entry.bytes).sum::<usize>();
        while self.by_token.len() >= capacity || self.bytes.saturating_add(bytes) > MAX_CONF_BYTES {
            let next = self.by_token.iter().min_by_key(|(_, entry)| entry.expires).map(|(token, _)| *token);
            let Some(entry) = next.and_then(|next| self.by_token.remove(&next)) else { break };
            self.bytes -= entry.bytes;
            forgotten.push(entry);
        }
        for entry in &forgotten {
            self.by_id.remove(&entry.id);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cache::CacheKey;
    use crate::plugin::{Action, PluginError};
    use crate::request::Request;
    use crate::response::Response;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(name: &str) -> ChainId {
        ChainId::of(&[(name.as_bytes(), b"{}")])
    }

    fn insert(cache: &ConfCache, name: &str) -> u32 {
        cache.insert(id(name), 2, Chain::new(), Some(name)).expect("random numbers")
    }

    #[tokio::test(start_paused = true)]
    async fn confs_are_bounded_by_their_bytes() {
        let cache = ConfCache::new(HOUR, 1000);
        let large = MAX_CONF_BYTES / 4;
        let tokens: Vec<u32> = (0..10)
            .map(|number| cache.insert(id(&number.to_string()), large, Chain::new(), None).expect("a token"))
            .collect();
        let kept = tokens.iter().filter(|token| cache.chain(**token).is_some()).count();
        assert_eq!(kept, 4);
        assert_eq!(read_lock(&cache.entries).bytes, MAX_CONF_BYTES);
        tokio::time::advance(2 * HOUR).await;
        insert(&cache, "small");
        assert_eq!(read_lock(&cache.entries).bytes, 2, "expired ones are not counted");
    }

    #[test]
    fn parts_of_a_chain_do_not_reach_into_each_other() {
        let ids = [
            ChainId::of(&[]),
            ChainId::of(&[(b"", b"")]),
            ChainId::of(&[(b"ab", b"")]),
            ChainId::of(&[(b"a", b"b")]),
            ChainId::of(&[(b"", b"ab")]),
            ChainId::of(&[(b"a", b""), (b"b", b"")]),
        ];
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_for_its_time_from_the_last_preparation() {
        let cache = ConfCache::new(HOUR, 10);
        let token = insert(&cache, "a");
        assert_ne!(token, 0);
        tokio::time::advance(HOUR).await;
        assert_eq!(cache.renew(id("a"), Some("a")), Some(token));
        tokio::time::advance(HOUR * 6 / 5 - Duration::from_millis(1)).await;
        assert!(cache.chain(token).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(cache.chain(token).is_none());
        assert_eq!(cache.renew(id("a"), Some("a")), None);
        assert_ne!(insert(&cache, "a"), token);
    }

    #[tokio::test]
    async fn a_route_is_named_only_while_one_route_has_the_chain() {
        let cache = ConfCache::new(HOUR, 10);
        let token = insert(&cache, "a");
        let route = || cache.chain(token).and_then(|(_, route)| route).as_deref().map(str::to_owned);
        assert_eq!(route().as_deref(), Some("a"));
        assert_eq!(cache.renew(id("a"), Some("a")), Some(token));
        assert_eq!(route().as_deref(), Some("a"));
        assert_eq!(cache.renew(id("a"), Some("b")), Some(token));
        assert_eq!(route(), None);
        assert_eq!(cache.renew(id("a"), Some("a")), Some(token));
        assert_eq!(route(), None);
        let token = insert(&cache, "b");
        assert_eq!(cache.insert(id("b"), 2, Chain::new(), Some("other")).unwrap(), token);
        assert_eq!(cache.chain(token).and_then(|(_, route)| route), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_drops_the_chain_that_would_expire_next() {
        let cache = ConfCache::new(HOUR, 2);
        let first = insert(&cache, "a");
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = insert(&cache, "b");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(cache.renew(id("a"), Some("a")), Some(first));
        let third = insert(&cache, "c");
        assert!(cache.chain(first).is_some() && cache.chain(third).is_some());
        assert!(cache.chain(second).is_none());
        assert_eq!(cache.renew(id("b"), Some("b")), None);
    }

    /// Counts how often it is dropped, and whether the cache can be used meanwhile.
    struct Value {
        cache: Arc<ConfCache>,
        dropped: Arc<AtomicUsize>,
    }

    impl Drop for Value {
        fn drop(&mut self) {
            assert!(self.cache.entries.try_write().is_ok(), "the cache is locked");
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    type Hook<'a, T> = Pin<Box<dyn Future<Output = Result<T, PluginError>> + Send + 'a>>;

    impl Prepared for Value {
        fn name(&self) -> &'static str {
            "value"
        }

        fn deadline(&self) -> Option<Duration> {
            None
        }

        fn cache_key(&self) -> Option<&CacheKey> {
            None
        }

        fn note_not_cached(&self) -> bool {
            false
        }

        fn on_request<'a>(&'a self, _: &'a mut Request<'_>) -> Hook<'a, Action> {
            Box::pin(async { Ok(Action::Continue) })
        }

        fn on_response<'a>(&'a self, _: &'a mut Response<'_>) -> Hook<'a, ()> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_prepared_value_is_dropped_without_the_lock() {
        let (cache, dropped) = (Arc::new(ConfCache::new(HOUR, 2)), Arc::default());
        let insert = |name| {
            let value = Value { cache: Arc::clone(&cache), dropped: Arc::clone(&dropped) };
            cache.insert(id(name), 2, vec![Box::new(value)], Some(name)).expect("random numbers");
            dropped.load(Ordering::Relaxed)
        };
        assert_eq!([insert("a"), insert("b")], [0, 0]);
        assert_eq!(insert("b"), 1, "the chain is known");
        assert_eq!(insert("c"), 2, "there are too many chains");
        tokio::time::advance(2 * HOUR).await;
        assert_eq!(insert("d"), 4, "the other two have expired");
    }

    #[tokio::test]
    async fn the_same_chain_shares_a_token_and_two_lives_share_none() {
        let (one, other) = (ConfCache::new(HOUR, 10_000), ConfCache::new(HOUR, 10_000));
        assert_eq!(insert(&one, "a"), insert(&one, "a"));
        let tokens: HashSet<u32> =
            (0..200).flat_map(|n| [insert(&one, &n.to_string()), insert(&other, &n.to_string())]).collect();
        // 400 random numbers of 32 bits meet about once in 54,000 runs, and a
        // counter from a fixed start would meet 200 times.
        assert!(tokens.len() >= 399, "{}", tokens.len());
    }
}
