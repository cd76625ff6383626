//! How long answers of name servers are used.

use std::time::Duration;

/// For how long answers of name servers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetimes {
    /// The least and the most time for which addresses are used, whatever their TTL.
    pub(crate) min_ttl: Duration,
    pub(crate) max_ttl: Duration,
    /// How long expired addresses are used while no name server answers.
    pub(crate) stale: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(5 * 60),
            stale: Duration::from_secs(5 * 60),
        }
    }
}
