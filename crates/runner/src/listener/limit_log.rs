//! What the log says about a limit on connections.

use tracing::warn;

use super::log_throttle::LogThrottle;

/// A limit, and how often it made a connection end without an answer. The log has one line a
/// minute, not one for each connection.
///
/// ```
/// use apisix_plugin_runner::listener::LimitLog;
///
/// let log = LimitLog::new(4096, "--max-connections");
/// log.turn_away(); // Writes a line with the limit, the flag and the count.
/// log.turn_away(); // Counted, and reported with the next line, a minute later.
/// ```
#[derive(Debug)]
pub struct LimitLog {
    limit: usize,
    /// The flag that raises it.
    cure: &'static str,
    throttle: LogThrottle<()>,
}

impl LimitLog {
    /// A limit, and the flag that raises it.
    #[must_use]
    pub fn new(limit: usize, cure: &'static str) -> Self {
        Self { limit, cure, throttle: LogThrottle::default() }
    }

    /// Notes that a connection is closed.
    pub fn turn_away(&self) {
        let (limit, cure) = (self.limit, self.cure);
        if let Some(turned_away) = self.throttle.note(()) {
            warn!(limit, turned_away, cure, "connection closed: the limit is reached");
        }
    }
}
