//! Idle connections to workspaces, which wait for their next request.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::WorkspaceConnection;
use crate::locks::lock;
use apisix_plugin_runner::{HostName, Scheme, Upstream};

/// What two requests must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    scheme: Scheme,
    host: HostName,
    port: u16,
}

impl Destination {
    pub(crate) fn of(upstream: &Upstream) -> Self {
        Self { scheme: upstream.scheme(), host: upstream.host().clone(), port: upstream.port() }
    }
}

/// Idle connections, by destination, the one that has waited longest first.
///
/// It is not a `BoundedMap`: the limit counts connections and not destinations, the one that
/// has waited longest makes room, and a connection is closed without the lock.
pub(crate) struct Pool {
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
    connection: WorkspaceConnection,
    since: Instant,
    until: Instant,
}

impl Waiting {
    fn is_good(&mut self) -> bool {
        Instant::now() < self.until && self.connection.is_quiet()
    }
}

impl Pool {
    pub(crate) fn new(max_idle: usize, idle: Duration) -> Self {
        Self { max_idle, idle, content: Mutex::default() }
    }

    /// A live connection to this destination, at one of the addresses that the name has now.
    pub(crate) fn take(
        &self,
        destination: &Destination,
        addresses: &[IpAddr],
    ) -> Option<WorkspaceConnection> {
        loop {
            let mut youngest = self.content().pop_youngest(destination)?;
            // This asks the kernel, so the lock is not held here.
            if addresses.contains(&youngest.connection.address()) && youngest.is_good() {
                return Some(youngest.connection);
            }
        }
    }

    /// Keeps a connection for the next request to its destination, for at most this long and
    /// at most as long as the pool keeps any.
    pub(crate) fn put(&self, destination: Destination, connection: WorkspaceConnection, idle: Duration) {
        let since = Instant::now();
        let waiting = Waiting { connection, since, until: since + idle.min(self.idle) };
        // Declared before the lock, so that it is closed after the lock is released.
        let _oldest;
        let mut content = self.content();
        if content.closed || self.max_idle == 0 {
            drop(content);
            return;
        }
        _oldest = if content.count >= self.max_idle { content.pop_oldest() } else { None };
        content.put(destination, waiting);
    }

    /// Closes expired and dead connections from time to time, until `stop`.
    pub(crate) async fn close_expired(self: Arc<Self>, stop: CancellationToken) {
        let pause = (self.idle / 4).max(Duration::from_millis(100));
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            for destination in self.destinations() {
                self.close_expired_of(&destination);
            }
        }
    }

    fn destinations(&self) -> Vec<Destination> {
        self.content().waiting.keys().cloned().collect()
    }

    /// Takes the connections of a destination out, asks the kernel about them without the
    /// lock, and puts the good ones back. A request that comes meanwhile may have to make a
    /// new connection.
    fn close_expired_of(&self, destination: &Destination) {
        let mut waiting = self.content().take_all(destination);
        waiting.retain_mut(Waiting::is_good);
        self.put_back(destination, waiting);
    }

    /// Puts connections back that were taken out. Others may have taken their places
    /// meanwhile: then the connections that have waited longest are closed.
    fn put_back(&self, destination: &Destination, mut waiting: VecDeque<Waiting>) {
        // Both are declared before the lock, so that they are closed after it is released.
        let mut surplus = Vec::new();
        let mut content = self.content();
        if !content.closed {
            content.put_back(destination, &mut waiting);
            while content.count > self.max_idle {
                let Some(oldest) = content.pop_oldest() else { break };
                surplus.push(oldest);
            }
        }
        drop(content);
    }

    /// Closes all idle connections, and from now on those that become idle.
    pub(crate) fn close(&self) {
        let mut content = self.content();
        content.closed = true;
        content.count = 0;
        let waiting = mem::take(&mut content.waiting);
        drop(content);
        drop(waiting);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        lock(&self.content)
    }
}

impl Content {
    /// Takes out the youngest connection, so that the others can expire.
    fn pop_youngest(&mut self, destination: &Destination) -> Option<Waiting> {
        let waiting = self.waiting.get_mut(destination)?;
        let youngest = waiting.pop_back();
        if waiting.is_empty() {
            self.waiting.remove(destination);
        }
        self.count -= usize::from(youngest.is_some());
        youngest
    }

    fn put(&mut self, destination: Destination, waiting: Waiting) {
        self.waiting.entry(destination).or_default().push_back(waiting);
        self.count += 1;
    }

    fn take_all(&mut self, destination: &Destination) -> VecDeque<Waiting> {
        let waiting = self.waiting.remove(destination).unwrap_or_default();
        self.count -= waiting.len();
        waiting
    }

    /// Puts connections back before those that came since they were taken out.
    fn put_back(&mut self, destination: &Destination, waiting: &mut VecDeque<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        self.count += waiting.len();
        let place = self.waiting.entry(destination.clone()).or_default();
        waiting.append(place);
        mem::swap(place, waiting);
    }

    /// Takes out the connection that has waited longest.
    fn pop_oldest(&mut self) -> Option<Waiting> {
        let since = |waiting: &VecDeque<Waiting>| waiting.front().map(|first| first.since);
        let oldest = self.waiting.iter().min_by_key(|(_, waiting)| since(waiting));
        let destination = oldest.map(|(destination, _)| destination.clone())?;
        let waiting = self.waiting.get_mut(&destination)?;
        let oldest = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&destination);
        }
        self.count -= usize::from(oldest.is_some());
        oldest
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const MOST: usize = 3;

    /// A connection whose other end is kept open.
    async fn connection(listener: &TcpListener) -> (WorkspaceConnection, TcpStream) {
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (WorkspaceConnection::of_tcp(ours.unwrap(), address.ip()), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn connections_that_are_looked_at_keep_no_place_that_others_took_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let destination = |port: u16| Destination::of(&format!("http://127.0.0.1:{port}").parse().unwrap());
        let pool = Pool::new(MOST, Duration::from_secs(60));
        let mut others = Vec::new();
        for port in [1, 1, 2] {
            let (connection, other) = connection(&listener).await;
            pool.put(destination(port), connection, Duration::from_secs(60));
            others.push(other);
        }
        let taken = pool.content().take_all(&destination(1));
        assert_eq!((taken.len(), pool.content().count), (2, 1));
        for _ in 0..MOST {
            let (connection, other) = connection(&listener).await;
            pool.put(destination(2), connection, Duration::from_secs(60));
            others.push(other);
        }
        pool.put_back(&destination(1), taken);
        let content = pool.content();
        let waiting: usize = content.waiting.values().map(VecDeque::len).sum();
        assert_eq!((content.count, waiting), (MOST, MOST));
    }
}
