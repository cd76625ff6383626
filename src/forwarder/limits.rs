//! The forwarder's limits.

use std::time::Duration;

use super::strangers::MAX_STRANGERS;
use apisix_plugin_runner::upstream::Timeouts;

/// How many connections of the gateway may be open for each that is in use. Idle
/// connections cost little, and each worker of the gateway keeps some.
pub(super) const SOCKETS_PER_PERMIT: usize = 2;

/// While places are scarce, a subject may have one of so many free places. An editor has about
/// ten connections, so it is refused only if fewer than a hundred places are free.
const SHARE: usize = 8;

/// What the forwarder does not exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwarderLimits {
    /// Requests under way and open tunnels. Each has a connection of the gateway and one
    /// to a workspace.
    pub(crate) max_connections: usize,
    /// Requests under way and open tunnels of one subject.
    pub(crate) max_of_subject: usize,
    /// How long connecting to a workspace may take, over all its addresses.
    pub(crate) connect: Duration,
    /// How long a workspace, or the gateway, may take nothing of what is sent to it.
    pub(crate) send: Duration,
    /// How long nothing may move while the forwarder waits for a workspace's response.
    pub(crate) read: Duration,
    /// How long the gateway may take for a request's head, from its first byte on.
    pub(crate) head: Duration,
    /// How long a connection may be silent before its first request. The gateway sends a request
    /// as soon as it is connected.
    pub(crate) first_byte: Duration,
    /// How long a connection to a workspace is kept for its next request.
    pub(crate) idle: Duration,
    /// How long a tunnel lives at most: after that its client has to ask again, and the plugins
    /// decide again. `None` for no limit.
    pub(crate) tunnel: Option<Duration>,
    /// After how long without a byte to the client a WebSocket gets a ping. `None` for none.
    pub(crate) ping: Option<Duration>,
    /// Idle connections to all workspaces. At the limit, the oldest one is closed.
    pub(crate) max_idle: usize,
    /// Requests on one connection to a workspace.
    pub(crate) max_requests: u32,
}

impl Default for ForwarderLimits {
    /// The values of the gateway's own upstream, except for the number of connections.
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_of_subject: 256,
            connect: Duration::from_secs(6),
            send: Duration::from_secs(300),
            read: Duration::from_secs(300),
            head: Duration::from_secs(10),
            first_byte: Duration::from_secs(3),
            idle: Duration::from_secs(60),
            tunnel: Some(Duration::from_secs(3600)),
            ping: Some(Duration::from_secs(30)),
            max_idle: 320,
            max_requests: 1000,
        }
    }
}

impl ForwarderLimits {
    /// How many connections there may be in total, of the gateway and to workspaces.
    pub(crate) fn most_connections(&self) -> usize {
        (SOCKETS_PER_PERMIT + 1) * self.max_connections + self.max_idle + MAX_STRANGERS
    }

    /// Whether a subject with this many open requests and tunnels may have no further one while
    /// only so many places are free.
    ///
    /// Once three quarters of the places are taken, a subject may have an eighth of those that are
    /// free. So each subject that takes what it can get leaves eight times as much to the next
    /// ones, and the last places are for subjects without any (the dynamic thresholds of
    /// Choudhury and Hahne, 1998, for buffers that queues share).
    pub(super) fn is_unfair(&self, open: usize, free: usize) -> bool {
        free <= self.max_connections.div_ceil(4) && open.saturating_mul(SHARE) >= free && open > 0
    }

    /// The timeouts of one exchange: those that a plugin chose, or these limits.
    pub(super) fn with(&self, chosen: Timeouts) -> ExchangeTimeouts {
        ExchangeTimeouts {
            connect: chosen.connect.unwrap_or(self.connect),
            send: chosen.send.unwrap_or(self.send),
            read: chosen.read.unwrap_or(self.read),
        }
    }
}

/// How long the forwarder waits in one exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExchangeTimeouts {
    pub(super) connect: Duration,
    pub(super) send: Duration,
    pub(super) read: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many places each of these subjects gets, one after the other, if each takes all that
    /// it can get, and how many are left.
    fn greedy(limits: &ForwarderLimits, subjects: usize) -> (Vec<usize>, usize) {
        let (mut open, mut free) = (vec![0; subjects], limits.max_connections);
        loop {
            let before = free;
            for open in &mut open {
                while free > 0 && *open < limits.max_of_subject && !limits.is_unfair(*open, free) {
                    *open += 1;
                    free -= 1;
                }
            }
            if free == before {
                return (open, free);
            }
        }
    }

    #[test]
    fn subjects_that_take_what_they_get_leave_a_place_for_the_next() {
        let limits = ForwarderLimits::default();
        let (of_four, _) = greedy(&limits, 4);
        assert_eq!(of_four, [limits.max_of_subject; 4], "no limit while there is room");
        for subjects in [16, 17, 32] {
            let (open, free) = greedy(&limits, subjects);
            assert!(free > 0 && open.iter().all(|open| *open > 0), "{subjects}: {free}");
        }
        assert!(greedy(&limits, 16).1 > 500, "room for fifty editors");
        for max_connections in [2, 3, 4, 5, 10] {
            let limits = ForwarderLimits { max_connections, max_of_subject: 100, ..limits.clone() };
            assert!(greedy(&limits, 1).1 > 0);
        }
        assert_eq!(greedy(&ForwarderLimits { max_connections: 1, ..limits }, 1), (vec![1], 0));
    }
}
