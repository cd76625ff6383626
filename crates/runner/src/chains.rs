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

/// The route that a token is for; `None` if the gateway did not say it, or if several routes
/// share the token.
type RouteId = Option<Arc<str>>;

/// How many bytes the names and confs of all cached chains may have. A frame may hold 16 MiB, and
/// a prepared conf is about as large as its text.
const MAX_CONF_BYTES: usize = 64 << 20;

/// Tokens with their chains, for as long as the gateway may use them.
///
/// Tokens are random. With a counter, a token from before a restart of the runner could
/// name another route's chain (docs/gateway.md, PrepareConf). A chain keeps its token for a
/// route however often it is prepared, because every reload of a gateway's file prepares
/// every route again. Routes with the same chain share it, and each has its own token, by
/// which the log tells them apart. If the cache is full, they share the token, too.
///
/// If the cache is full of other chains, it drops the token that expires next. A cache that
/// judges by use would drop a token that the gateway still holds for hours.
pub(crate) struct ConfCache {
    kept: Duration,
    capacity: usize,
    entries: RwLock<CachedChains>,
}

#[derive(Default)]
struct CachedChains {
    by_token: HashMap<u32, CachedChain>,
    by_id: HashMap<ChainId, Vec<u32>>,
    /// Of all tokens' chains.
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

    /// The chain of a valid token, and the id of its route if it is known.
    pub(crate) fn chain(&self, token: u32) -> Option<(Arc<Chain>, RouteId)> {
        let entries = read_lock(&self.entries);
        let entry = entries.by_token.get(&token)?;
        (entry.expires > Instant::now()).then(|| (Arc::clone(&entry.chain), entry.route.clone()))
    }

    /// A route's token of a known chain, valid for its whole time from now.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub(crate) fn renew(&self, id: ChainId, route: Option<&str>) -> Result<Option<u32>, getrandom::Error> {
        write_lock(&self.entries).renew(id, route, self.capacity, Instant::now() + self.kept)
    }

    /// A token for a new chain, or the token that the route has got meanwhile.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
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
        // Another connection may have prepared the same chain meanwhile.
        if let Some(token) = entries.renew(id, route, self.capacity, now + self.kept)? {
            return Ok(token);
        }
        forgotten = entries.make_room(self.capacity, bytes, now);
        let chain = Arc::new(chain);
        let token = entries.add(CachedChain {
            id,
            bytes,
            chain,
            route: route.map(Arc::from),
            expires: now + self.kept,
        })?;
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
    /// A route's token of a known chain: its own, a new one if there is room, or another route's.
    fn renew(
        &mut self,
        id: ChainId,
        route: Option<&str>,
        capacity: usize,
        expires: Instant,
    ) -> Result<Option<u32>, getrandom::Error> {
        let now = Instant::now();
        let tokens = self.by_id.get(&id).map(Vec::as_slice).unwrap_or_default();
        let live = |token: &&u32| self.by_token.get(*token).is_some_and(|entry| entry.expires > now);
        let own = tokens.iter().filter(live).find(|token| self.by_token[*token].route.as_deref() == route);
        let Some(token) = own.or_else(|| tokens.iter().find(live)).copied() else { return Ok(None) };
        let is_own = own.is_some();
        let has_room = self.by_token.len() < capacity;
        let Some(entry) = self.by_token.get_mut(&token) else { return Ok(None) };
        let bytes = entry.bytes;
        if !is_own && has_room && self.bytes.saturating_add(bytes) <= MAX_CONF_BYTES {
            let (chain, route) = (Arc::clone(&entry.chain), route.map(Arc::from));
            return self.add(CachedChain { id, bytes, chain, route, expires }).map(Some);
        }
        entry.expires = expires;
        if !is_own {
            entry.route = None;
        }
        Ok(Some(token))
    }

    fn add(&mut self, entry: CachedChain) -> Result<u32, getrandom::Error> {
        let token = loop {
            let token = getrandom::u32()?;
            if token != 0 && !self.by_token.contains_key(&token) {
                break token;
            }
        };
        self.by_id.entry(entry.id).or_default().push(token);
        self.bytes += entry.bytes;
        self.by_token.insert(token, entry);
        Ok(token)
    }

    /// Removes expired tokens, and if that is not enough, those that would expire next.
    fn make_room(&mut self, capacity: usize, bytes: usize, now: Instant) -> Vec<CachedChain> {
        let mut forgotten: Vec<_> = self.by_token.extract_if(|_, entry| entry.expires <= now).collect();
        self.bytes -= forgotten.iter().map(|(_, entry)| entry.bytes).sum::<usize>();
        while self.by_token.len() >= capacity || self.bytes.saturating_add(bytes) > MAX_CONF_BYTES {
            let next = self.by_token.iter().min_by_key(|(_, entry)| entry.expires).map(|(token, _)| *token);
            let Some(removed) = next.and_then(|next| self.by_token.remove_entry(&next)) else { break };
            self.bytes -= removed.1.bytes;
            forgotten.push(removed);
        }
        for (token, entry) in &forgotten {
            if let Some(tokens) = self.by_id.get_mut(&entry.id) {
                tokens.retain(|other| other != token);
                if tokens.is_empty() {
                    self.by_id.remove(&entry.id);
                }
            }
        }
        forgotten.into_iter().map(|(_, entry)| entry).collect()
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
        assert_eq!(cache.renew(id("a"), Some("a")).unwrap(), Some(token));
        tokio::time::advance(HOUR * 6 / 5 - Duration::from_millis(1)).await;
        assert!(cache.chain(token).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(cache.chain(token).is_none());
        assert_eq!(cache.renew(id("a"), Some("a")).unwrap(), None);
        assert_ne!(insert(&cache, "a"), token);
    }

    #[tokio::test]
    async fn routes_with_the_same_chain_have_tokens_of_their_own_while_there_is_room() {
        let cache = ConfCache::new(HOUR, 3);
        let route = |token| cache.chain(token).and_then(|(_, route)| route).as_deref().map(str::to_owned);
        let first = insert(&cache, "a");
        let renew = |route| cache.renew(id("a"), route).unwrap().unwrap();
        assert_eq!(renew(Some("a")), first);
        let second = renew(Some("b"));
        let unnamed = renew(None);
        assert_eq!([first, second, unnamed].iter().collect::<HashSet<_>>().len(), 3);
        for _ in 0..2 {
            assert_eq!([renew(Some("a")), renew(Some("b")), renew(None)], [first, second, unnamed]);
        }
        assert_eq!(
            [route(first).as_deref(), route(second).as_deref(), route(unnamed).as_deref()],
            [Some("a"), Some("b"), None]
        );
        let chain = |token| cache.chain(token).unwrap().0;
        assert!(Arc::ptr_eq(&chain(first), &chain(second)), "prepared once");
        // No room: a token is for several routes from now on, and names none.
        let shared = renew(Some("c"));
        assert!([first, second, unnamed].contains(&shared));
        assert_eq!(route(shared), None);
        assert_eq!(cache.insert(id("a"), 2, Chain::new(), Some("b")).unwrap(), renew(Some("b")));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_of_one_chain_expire_each_at_its_time() {
        let cache = ConfCache::new(HOUR, 10);
        let first = insert(&cache, "a");
        tokio::time::advance(HOUR).await;
        let second = cache.renew(id("a"), Some("b")).unwrap().unwrap();
        tokio::time::advance(HOUR).await;
        assert!(cache.chain(first).is_none() && cache.chain(second).is_some());
        let again = cache.renew(id("a"), Some("a")).unwrap().unwrap();
        assert!(![first, second].contains(&again), "the chain is still known by the other token");
        insert(&cache, "b");
        assert_eq!(read_lock(&cache.entries).bytes, 3 * 2, "the expired one is not counted");
        tokio::time::advance(2 * HOUR).await;
        insert(&cache, "c");
        assert_eq!(read_lock(&cache.entries).by_id.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_drops_the_chain_that_would_expire_next() {
        let cache = ConfCache::new(HOUR, 2);
        let first = insert(&cache, "a");
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = insert(&cache, "b");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(cache.renew(id("a"), Some("a")).unwrap(), Some(first));
        let third = insert(&cache, "c");
        assert!(cache.chain(first).is_some() && cache.chain(third).is_some());
        assert!(cache.chain(second).is_none());
        assert_eq!(cache.renew(id("b"), Some("b")).unwrap(), None);
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
