//! The connections that have sent no request with a valid stamp yet.
//!
//! Any process of the machine can connect to the forwarder. Places for such connections are
//! apart from those of the gateway's, and a new connection takes the place of the oldest one.
//! The gateway sends a request as soon as it is connected, so it is a stranger only briefly,
//! and silent connections of another process can't keep it out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::locks::lock;

/// How many strangers may be connected at a time. A gateway whose workers all connect at once
/// has fewer connections on which it has not sent its request.
pub(super) const MAX_STRANGERS: usize = 1024;

/// What a connection of the gateway counts as.
pub(super) enum ConnectionPlace {
    /// It has sent no valid stamp yet.
    Stranger(StrangerPlace),
    Known {
        _permit: OwnedSemaphorePermit,
    },
}

impl ConnectionPlace {
    /// Counts a connection that has sent a valid stamp as the gateway's. `false` if there are too
    /// many of those.
    pub(super) fn know(&mut self, permits: &Arc<Semaphore>) -> bool {
        if matches!(self, Self::Stranger(_)) {
            let Ok(_permit) = Arc::clone(permits).try_acquire_owned() else { return false };
            *self = Self::Known { _permit };
        }
        true
    }

    pub(super) fn is_stranger(&self) -> bool {
        matches!(self, Self::Stranger(_))
    }

    /// Resolves to `None` if the connection loses its place before the end of this work.
    pub(super) async fn while_kept<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self {
            Self::Known { .. } => Some(work.await),
            Self::Stranger(place) => tokio::select! {
                // A request that has arrived is read first.
                biased;
                done = work => Some(done),
                () = place.lost.cancelled() => None,
            },
        }
    }
}

/// All strangers.
#[derive(Default)]
pub(super) struct Strangers(Mutex<StrangerTable>);

#[derive(Default)]
struct StrangerTable {
    next: u64,
    /// In the order in which they came.
    connected: BTreeMap<u64, CancellationToken>,
}

/// The place of a stranger, until it is dropped.
pub(super) struct StrangerPlace {
    strangers: Arc<Strangers>,
    number: u64,
    /// Cancelled once another stranger has taken the place.
    pub(super) lost: CancellationToken,
}

impl Strangers {
    /// A place, which may be that of the oldest stranger, and whether it is.
    pub(super) fn enter(self: &Arc<Self>) -> (StrangerPlace, bool) {
        let mut table = lock(&self.0);
        let oldest = if table.connected.len() >= MAX_STRANGERS { table.connected.pop_first() } else { None };
        if let Some((_, oldest)) = &oldest {
            oldest.cancel();
        }
        (self.place(&mut table), oldest.is_some())
    }

    /// A place, if one is free.
    pub(super) fn enter_free(self: &Arc<Self>) -> Option<StrangerPlace> {
        let mut table = lock(&self.0);
        (table.connected.len() < MAX_STRANGERS).then(|| self.place(&mut table))
    }

    fn place(self: &Arc<Self>, table: &mut StrangerTable) -> StrangerPlace {
        let (number, lost) = (table.next, CancellationToken::new());
        table.next += 1;
        table.connected.insert(number, lost.clone());
        StrangerPlace { strangers: Arc::clone(self), number, lost }
    }
}

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        lock(&self.strangers.0).connected.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_stranger_takes_the_place_of_the_oldest() {
        let strangers = Arc::new(Strangers::default());
        let mut places: Vec<_> = (0..MAX_STRANGERS).map(|_| strangers.enter()).collect();
        assert!(places.iter().all(|(place, has_replaced)| !has_replaced && !place.lost.is_cancelled()));
        assert!(strangers.enter_free().is_none());
        let (newest, has_replaced) = strangers.enter();
        assert!(has_replaced && places[0].0.lost.is_cancelled() && !places[1].0.lost.is_cancelled());
        // The end of one that has lost its place makes no room.
        places.remove(0);
        assert!(strangers.enter_free().is_none());
        drop(newest);
        assert!(strangers.enter_free().is_some());
    }
}
