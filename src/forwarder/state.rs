//! What all connections of a forwarder share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::limits::{ForwarderLimits, SOCKETS_PER_PERMIT};
use super::refusal_log::RefusalLog;
use super::strangers::{MAX_STRANGERS, Strangers};
use super::subjects::Subjects;
use super::tasks::ForwarderTasks;
use super::workspace::pool::Pool;
use super::workspace::start_times::StartTimes;
use super::workspace::tls::{CertificateTrust, Tls};
use crate::logged_user::LoggedUsers;
use crate::resolver::Resolver;
use crate::route::stamp::StampKey;
use apisix_plugin_runner::listener::{LimitLog, Succession};

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
    /// For connections of the gateway, in use or idle: those that have sent a valid stamp.
    pub(super) sockets: Arc<Semaphore>,
    pub(super) strangers: Arc<Strangers>,
    pub(super) limit_log: LimitLog,
    pub(super) refusal_log: RefusalLog,
    pub(super) logged_users: LoggedUsers,
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
        logged_users: LoggedUsers,
        succession: Arc<Succession>,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            resolver,
            pool: Arc::new(Pool::new(limits.max_idle, limits.idle)),
            permits: Arc::new(Semaphore::new(limits.max_connections)),
            sockets: Arc::new(Semaphore::new(SOCKETS_PER_PERMIT * limits.max_connections)),
            strangers: Arc::default(),
            limit_log: LimitLog::new(MAX_STRANGERS, "end the process that connects and sends no request"),
            refusal_log: RefusalLog::default(),
            logged_users,
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
