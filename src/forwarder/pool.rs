//! Connections to workspaces that wait for their next request.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::workspace::Connection;
use crate::upstream::{HostName, Scheme, Upstream};

/// What two requests must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Destination {
    scheme: Scheme,
    host: HostName,
    port: u16,
}

impl Destination {
    pub(super) fn of(upstream: &Upstream) -> Self {
        Self { scheme: upstream.scheme(), host: upstream.host().clone(), port: upstream.port() }
    }
}

/// Idle connections, by destination, the one that has waited longest first.
pub(super) struct Pool {
    max_idle: usize,
    idle: Duration,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    waiting: HashMap<Destination, VecDeque<Waiting>>,
    count: usize,
    closed: bool,
}

struct Waiting {
    connection: Connection,
    since: Instant,
    until: Instant,
}

impl Waiting {
    fn is_good(&mut self) -> bool {
        Instant::now() < self.until && self.connection.is_quiet()
    }
}

impl Pool {
    pub(super) fn new(max_idle: usize, idle: Duration) -> Self {
        Self { max_idle, idle, content: Mutex::default() }
    }

    /// A connection to this destination that is alive, as far as we know, and
    /// that leads to one of the addresses which the name has now.
    pub(super) fn take(&self, destination: &Destination, addresses: &[IpAddr]) -> Option<Connection> {
        loop {
            let mut youngest = self.content().pop_youngest(destination)?;
            // The kernel is asked while nobody waits for the lock.
            if addresses.contains(&youngest.connection.address()) && youngest.is_good() {
                return Some(youngest.connection);
            }
        }
    }

    /// Keeps a connection for the next request to its destination, for as long
    /// as the pool keeps any or for this long, whichever is less.
    pub(super) fn put(&self, destination: Destination, connection: Connection, idle: Duration) {
        let mut content = self.content();
        if content.closed || self.max_idle == 0 {
            return;
        }
        if content.count >= self.max_idle {
            content.remove_oldest();
        }
        content.count += 1;
        let since = Instant::now();
        let waiting = Waiting { connection, since, until: since + idle.min(self.idle) };
        content.waiting.entry(destination).or_default().push_back(waiting);
    }

    /// Closes what is too old or has died while it waited, again and again
    /// until `stop`.
    pub(super) async fn close_expired(self: Arc<Self>, stop: CancellationToken) {
        let pause = (self.idle / 4).max(Duration::from_millis(100));
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            self.content().retain(Waiting::is_good);
        }
    }

    /// Closes all idle connections, and from now on those that become idle.
    pub(super) fn close(&self) {
        let mut content = self.content();
        content.closed = true;
        content.retain(|_| false);
    }

    /// Nothing in here panics half-way, so poison would say nothing.
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// The youngest, so that the others may grow old and go.
    fn pop_youngest(&mut self, destination: &Destination) -> Option<Waiting> {
        let waiting = self.waiting.get_mut(destination)?;
        let youngest = waiting.pop_back();
        if waiting.is_empty() {
            self.waiting.remove(destination);
        }
        self.count -= usize::from(youngest.is_some());
        youngest
    }

    fn retain(&mut self, is_kept: impl Fn(&mut Waiting) -> bool) {
        self.waiting.retain(|_, waiting| {
            waiting.retain_mut(&is_kept);
            !waiting.is_empty()
        });
        self.count = self.waiting.values().map(VecDeque::len).sum();
    }

    fn remove_oldest(&mut self) {
        let since = |waiting: &VecDeque<Waiting>| waiting.front().map(|first| first.since);
        let oldest = self.waiting.iter().min_by_key(|(_, waiting)| since(waiting));
        let Some(destination) = oldest.map(|(destination, _)| destination.clone()) else { return };
        if let Some(waiting) = self.waiting.get_mut(&destination) {
            waiting.pop_front();
            self.count -= 1;
            if waiting.is_empty() {
                self.waiting.remove(&destination);
            }
        }
    }
}
