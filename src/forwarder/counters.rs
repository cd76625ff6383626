//! The number of refusals, by their code.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::locks::lock;

/// Refusals by their code.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<&'static str, u64>>);

impl Counters {
    pub(super) fn count(&self, code: &'static str) {
        *lock(&self.0).entry(code).or_default() += 1;
    }

    /// The number of refusals of each code that has any.
    pub(crate) fn refused(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0).clone()
    }
}
