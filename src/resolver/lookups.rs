//! Lookups that are under way: one for each name, however many callers wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::name_table::KnownAddresses;
use super::resolve_error::ResolveError;
use crate::locks::lock;
use apisix_plugin_runner::HostName;

/// How many lookups may be under way. Every call and every request may wait for
/// one, so it is as many as there may be of both by default.
const MAX_LOOKUPS: usize = 8192;

/// How many sockets the lookups of so many calls and requests may have at a time: each lookup
/// asks for IPv4 and IPv6 addresses, each on a socket of its own.
pub(crate) fn most_sockets(callers: usize) -> usize {
    2 * callers.min(MAX_LOOKUPS)
}

type UnderWay = Arc<Mutex<HashMap<HostName, Lookup>>>;

/// Lookups, each in a task of its own: if the caller that started one stops waiting, the
/// others still get their answer. The tasks end when this is dropped.
#[derive(Default)]
pub(super) struct Lookups {
    under_way: UnderWay,
    tasks: Mutex<JoinSet<()>>,
}

/// A lookup that is under way.
#[derive(Clone)]
pub(super) struct Lookup {
    answer: Shared<oneshot::Receiver<KnownAddresses>>,
    started: Instant,
}

impl Lookup {
    pub(super) async fn wait(self) -> KnownAddresses {
        // A task that ended without an answer was ended, or has a bug.
        self.answer.await.unwrap_or(Err(ResolveError::Unavailable))
    }

    /// The answer, or `None` if it is not there at this time after the start.
    pub(super) async fn wait_for(self, patience: Duration) -> Option<KnownAddresses> {
        let deadline = self.started + patience;
        timeout_at(deadline, self.wait()).await.ok()
    }
}

impl Lookups {
    /// Joins the lookup of this name if one is under way, and else starts this lookup. `None`
    /// if there are too many.
    pub(super) fn join_or_start(
        &self,
        name: &HostName,
        now: Instant,
        look_up: impl Future<Output = KnownAddresses> + Send + 'static,
    ) -> Option<Lookup> {
        let mut under_way = lock(&self.under_way);
        if let Some(lookup) = under_way.get(name) {
            return Some(lookup.clone());
        }
        if under_way.len() >= MAX_LOOKUPS {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        let lookup = Lookup { answer: answer.shared(), started: now };
        under_way.insert(name.clone(), lookup.clone());
        // Unlocked first: a runtime that is shutting down drops the task at once, and that
        // frees its slot.
        drop(under_way);
        let slot = LookupSlot { under_way: Arc::clone(&self.under_way), name: name.clone() };
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let known = look_up.await;
            // Later callers find the answer in the table.
            drop(slot);
            // All callers may have stopped waiting.
            let _ = sender.send(known);
        });
        Some(lookup)
    }

    /// Waits until no lookup is under way.
    #[cfg(test)]
    pub(super) async fn ended(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
    }
}

/// A lookup's entry among those under way, which goes when this is dropped.
struct LookupSlot {
    under_way: UnderWay,
    name: HostName,
}

impl Drop for LookupSlot {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::IpAddr;
    use std::sync::Weak;

    use super::*;

    fn name(number: usize) -> HostName {
        format!("code-{number}.test").parse().unwrap()
    }

    fn known(number: u8) -> KnownAddresses {
        Ok([IpAddr::from([127, 0, 0, number])].into())
    }

    #[tokio::test]
    async fn a_later_lookup_joins() {
        let (lookups, now) = (Lookups::default(), Instant::now());
        let (sender, receiver) = oneshot::channel();
        let first = lookups.join_or_start(&name(1), now, async { receiver.await.unwrap() }).unwrap();
        let second = lookups.join_or_start(&name(1), now, async { known(2) }).unwrap();
        let other = lookups.join_or_start(&name(2), now, async { known(3) }).unwrap();
        assert_eq!(other.wait().await, known(3));
        sender.send(known(1)).unwrap();
        assert_eq!((first.wait().await, second.wait().await), (known(1), known(1)));
        let second = lookups.join_or_start(&name(1), now, async { known(2) }).unwrap();
        assert_eq!(second.wait().await, known(2));
    }

    #[test]
    fn lookups_count_among_the_open_files() {
        assert_eq!((most_sockets(100), most_sockets(1 << 20)), (200, 2 * MAX_LOOKUPS));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_is_counted_from_the_start() {
        let (lookups, now) = (Lookups::default(), Instant::now());
        let patience = Duration::from_millis(100);
        let lookup = lookups.join_or_start(&name(1), now, pending()).unwrap();
        assert_eq!(lookup.clone().wait_for(patience).await, None);
        assert_eq!(now.elapsed(), patience);
        assert_eq!(lookup.wait_for(patience).await, None);
        assert_eq!(now.elapsed(), patience);
    }

    #[tokio::test]
    async fn a_lookup_that_panics_gives_its_place_free() {
        let (lookups, now) = (Lookups::default(), Instant::now());
        let lookup = lookups.join_or_start(&name(1), now, async { panic!("a bug of a test") }).unwrap();
        assert_eq!(lookup.wait().await, Err(ResolveError::Unavailable));
        lookups.ended().await;
        let second = lookups.join_or_start(&name(1), now, async { known(1) }).unwrap();
        assert_eq!(second.wait().await, known(1));
    }

    #[tokio::test]
    async fn lookups_are_bounded_in_number() {
        let (lookups, now) = (Lookups::default(), Instant::now());
        for number in 0..MAX_LOOKUPS {
            assert!(lookups.join_or_start(&name(number), now, pending()).is_some());
        }
        assert!(lookups.join_or_start(&name(MAX_LOOKUPS), now, pending()).is_none());
        assert!(lookups.join_or_start(&name(0), now, pending()).is_some());
    }

    #[tokio::test]
    async fn no_task_outlives_its_lookups() {
        let (lookups, held) = (Lookups::default(), Arc::new(()));
        let (seen, task_holds): (Weak<()>, _) = (Arc::downgrade(&held), held);
        let lookup = lookups.join_or_start(&name(1), Instant::now(), async move {
            let _held = task_holds;
            pending().await
        });
        tokio::task::yield_now().await;
        assert!(seen.upgrade().is_some());
        drop(lookups);
        assert_eq!(lookup.unwrap().wait().await, Err(ResolveError::Unavailable));
        assert!(seen.upgrade().is_none());
    }
}
