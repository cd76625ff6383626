//! What is known of names, where it comes from, and how long it is used.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::answer::Found;
use super::dns::Dns;
use super::hosts::Hosts;
use super::table::{Entry, Known, Seen, Source, Table};
use super::{Lifetimes, ResolveError};
use crate::upstream::HostName;

/// How many names are remembered.
const MAX_NAMES: usize = 100_000;

/// How long "does not exist" is good at most: a workspace may start any moment.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// How long it is remembered that nobody could say: long enough that a crowd does
/// not wait in turn, and hardly longer than a page takes to reload.
const UNAVAILABLE_TIME: Duration = Duration::from_secs(1);

/// How long after name servers could not say they are asked again for the same
/// name, while its last answer is used.
const RETRY_TIME: Duration = Duration::from_secs(3);

/// Which part of its time a name has left when it is asked for again ahead of it,
/// as a divisor.
const REFRESH_PART: u32 = 4;

/// The table of names, and what fills it.
pub(super) struct Names {
    pub(super) table: Table,
    pub(super) hosts: Hosts,
    dns: Dns,
    lifetimes: Lifetimes,
}

impl Names {
    pub(super) fn new(hosts: Hosts, dns: Dns, lifetimes: Lifetimes) -> Self {
        Self { table: Table::new(MAX_NAMES), hosts, dns, lifetimes }
    }

    /// Looks in the hosts file, and remembers what it says.
    pub(super) fn look_up_in_hosts(&self, name: &HostName, hosts: u32, now: Instant) -> Option<Known> {
        let known = Ok(self.hosts.get(name)?);
        // It is good until the file changes, and so may be thrown away any time.
        self.remember(name, known.clone(), Source::Hosts, hosts, self.lifetimes.max_ttl, now);
        Some(known)
    }

    /// What came from the name servers stays in use beside this state of the hosts
    /// file, which does not have the name.
    pub(super) fn keep_beside(&self, name: &HostName, hosts: u32, now: Instant) {
        self.table.change(name, now, |entry| {
            if entry.source != Source::Hosts {
                entry.hosts = hosts;
            }
        });
    }

    /// Asks the name servers, and remembers what they say. With an answer that is
    /// kept, nobody hears that they could say nothing.
    pub(super) async fn look_up(&self, name: &HostName, hosts: u32) -> Known {
        // Another lookup may have ended since this one was found to be needed.
        if let Some(Seen::Good(known)) = self.table.get(name, hosts, Instant::now()) {
            return known;
        }
        let found = self.dns.look_up(name).await;
        let now = Instant::now();
        let Lifetimes { min_ttl, max_ttl, .. } = self.lifetimes;
        let (known, ttl) = match found {
            Ok(Found::Addresses { addresses, good_for }) => {
                (Ok(Arc::<[IpAddr]>::from(addresses)), good_for.clamp(min_ttl, max_ttl))
            }
            Ok(Found::Nothing { good_for }) => {
                let min_ttl = min_ttl.min(MAX_NEGATIVE_TTL);
                (Err(ResolveError::NotFound), good_for.clamp(min_ttl, MAX_NEGATIVE_TTL))
            }
            Err(ResolveError::NotFound) => (Err(ResolveError::NotFound), MAX_NEGATIVE_TTL),
            Err(ResolveError::Unavailable) => {
                debug!(host = %name, "no name server could say");
                if let Some(kept) = self.keep_while_failing(name, now) {
                    return kept;
                }
                (Err(ResolveError::Unavailable), UNAVAILABLE_TIME)
            }
        };
        self.remember(name, known.clone(), Source::Dns, hosts, ttl, now);
        known
    }

    fn remember(
        &self,
        name: &HostName,
        known: Known,
        source: Source,
        hosts: u32,
        ttl: Duration,
        now: Instant,
    ) {
        let good_until = now + ttl;
        let (due_at, kept_until) = match (source, &known) {
            (Source::Dns, Ok(_)) => (good_until - ttl / REFRESH_PART, good_until + self.lifetimes.stale),
            _ => (good_until, good_until),
        };
        let entry = Entry { known, source, hosts, due_at, good_until, kept_until };
        self.table.insert(name.clone(), entry, now);
    }

    /// Keeps a name's last answer in use until it is time to ask again.
    fn keep_while_failing(&self, name: &HostName, now: Instant) -> Option<Known> {
        self.table.change(name, now, |entry| {
            if entry.source != Source::Hosts && entry.known.is_ok() {
                entry.source = Source::FailingDns;
                entry.due_at = (now + RETRY_TIME).min(entry.kept_until);
            }
        })
    }
}
