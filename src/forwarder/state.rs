//! What all connections of a forwarder share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::limits::{ForwarderLimits, SOCKETS_PER_PERMIT};
use super::subjects::Subjects;
use super::tasks::ForwarderTasks;
use super::workspace::pool::Pool;
use super::workspace::start_times::StartTimes;
use super::workspace::tls::{CertificateTrust, Tls};
use crate::resolver::Resolver;
use crate::route::stamp::StampKey;
use apisix_plugin_runner::listener::{LimitLog, Succession};

/// How many connections beyond the limit get a response that says so at a time. Others are
/// closed at once.
pub(super) const MAX_TURNED_AWAY: usize = 64;

/// Permission for one of `max_connections` requests and tunnels.
pub(super) type ConnectionPermit = OwnedSemaphorePermit;

/// Sends each request to the upstream that its stamp names.
pub(crate) struct Forwarder {
    pub(super) key: StampKey,
    pub(super) resolver: Arc<Resolver>,
    pub(super) limits: ForwarderLimits,
    pub(super) pool: Arc<Pool>,
    /// For requests under way and tunnels.
    pub(super) permits: Arc<Semaphore>,
    /// For connections of the gateway, in use or idle.
    pub(super) sockets: Arc<Semaphore>,
    pub(super) turned_away: Arc<Semaphore>,
    pub(super) limit_log: LimitLog,
    pub(super) succession: Arc<Succession>,
    pub(super) start_times: StartTimes,
    pub(super) tls: Tls,
    pub(crate) subjects: Arc<Subjects>,
    pub(crate) counters: Counters,
    pub(super) tasks: ForwarderTasks,
}

impl Forwarder {
    /// A forwarder that accepts the stamps of this key.
    pub(crate) fn new(
        key: StampKey,
        resolver: Arc<Resolver>,
        limits: ForwarderLimits,
        trust: CertificateTrust,
        succession: Arc<Succession>,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            resolver,
            pool: Arc::new(Pool::new(limits.max_idle, limits.idle)),
            permits: Arc::new(Semaphore::new(limits.max_connections)),
            sockets: Arc::new(Semaphore::new(SOCKETS_PER_PERMIT * limits.max_connections)),
            turned_away: Arc::new(Semaphore::new(MAX_TURNED_AWAY)),
            limit_log: LimitLog::new(limits.max_connections, "--max-forwarder-connections"),
            limits,
            succession,
            start_times: StartTimes::default(),
            tls: Tls::new(trust),
            subjects: Subjects::new(),
            counters: Counters::default(),
            tasks: ForwarderTasks::new(),
        })
    }

    /// Whether a connection of the gateway closes after its current response: during a
    /// drain, unless a successor can take the connection over.
    pub(super) fn closes_connections(&self, stop: &CancellationToken) -> bool {
        stop.is_cancelled() && !self.succession.is_ready()
    }

    /// How many tunnels are open.
    pub(super) fn tunnels(&self) -> usize {
        self.subjects.activities().iter().map(|activity| activity.tunnels.len()).sum()
    }
}
