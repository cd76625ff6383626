//! The cache of names: what fills it, and how long an answer is used.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::address_policy::AddressPolicy;
use super::answer::FoundAddresses;
use super::dns::Dns;
use super::hosts::Hosts;
use super::lifetimes::Lifetimes;
use super::name_table::{KnownAddresses, NameEntry, NameSource, NameTable, TableHit};
use super::resolve_error::ResolveError;
use apisix_plugin_runner::HostName;

/// How many names are remembered.
const MAX_NAMES: usize = 100_000;

/// How long "does not exist" is good at most: a workspace may start any moment.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// How long the failure of all name servers is remembered: long enough that many callers
/// don't wait one after the other, and hardly longer than a page takes to reload.
const UNAVAILABLE_TIME: Duration = Duration::from_secs(1);

/// How long after a failure the name servers are asked again for the same name, while its
/// last answer is used.
const RETRY_TIME: Duration = Duration::from_secs(3);

/// Which part of its lifetime a name has left when it is refreshed, as a divisor.
const REFRESH_PART: u32 = 4;

/// The table of names, and what fills it.
pub(super) struct NameCache {
    pub(super) table: NameTable,
    pub(super) hosts: Hosts,
    dns: Dns,
    policy: AddressPolicy,
    lifetimes: Lifetimes,
}

impl NameCache {
    pub(super) fn new(hosts: Hosts, dns: Dns, policy: AddressPolicy, lifetimes: Lifetimes) -> Self {
        Self { table: NameTable::new(MAX_NAMES), hosts, dns, policy, lifetimes }
    }

    /// Looks in the hosts file, and remembers what it says.
    pub(super) fn look_up_in_hosts(
        &self,
        name: &HostName,
        hosts: u32,
        now: Instant,
    ) -> Option<KnownAddresses> {
        let known = self.permitted(name, &self.hosts.get(name)?);
        // It is good until the file changes, and so may be thrown away any time.
        self.remember(name, known.clone(), NameSource::Hosts, hosts, self.lifetimes.max_ttl, now);
        Some(known)
    }

    /// Keeps an answer of the name servers in use under this state of the hosts file,
    /// which does not have the name.
    pub(super) fn keep_with_hosts(&self, name: &HostName, hosts: u32, now: Instant) {
        self.table.change(name, now, |entry| {
            if entry.source != NameSource::Hosts {
                entry.hosts = hosts;
            }
        });
    }

    /// Asks the name servers and remembers their answer. If they fail and an earlier
    /// answer is still kept, the caller gets that one.
    pub(super) async fn look_up(&self, name: &HostName, hosts: u32) -> KnownAddresses {
        // Another lookup may have ended since this one was found to be needed.
        if let Some(TableHit::Good(known)) = self.table.get(name, hosts, Instant::now()) {
            return known;
        }
        self.look_up_again(name, hosts).await
    }

    /// As `look_up`, also if the last answer has not expired.
    pub(super) async fn look_up_again(&self, name: &HostName, hosts: u32) -> KnownAddresses {
        let found = self.dns.look_up(name).await;
        let now = Instant::now();
        let Lifetimes { min_ttl, max_ttl, .. } = self.lifetimes;
        let (known, ttl) = match found {
            Ok(FoundAddresses::Addresses { addresses, good_for }) => {
                let known = self.permitted(name, &addresses);
                let max_ttl = if known.is_ok() { max_ttl } else { MAX_NEGATIVE_TTL };
                (known, good_for.clamp(min_ttl.min(max_ttl), max_ttl))
            }
            Ok(FoundAddresses::Nothing { good_for }) => {
                let min_ttl = min_ttl.min(MAX_NEGATIVE_TTL);
                (Err(ResolveError::NotFound), good_for.clamp(min_ttl, MAX_NEGATIVE_TTL))
            }
            Err(error @ (ResolveError::NotFound | ResolveError::NotAllowed)) => {
                (Err(error), MAX_NEGATIVE_TTL)
            }
            Err(ResolveError::Unavailable) => {
                debug!(host = %name, "no name server could say");
                if let Some(kept) = self.keep_while_failing(name, now) {
                    return kept;
                }
                (Err(ResolveError::Unavailable), UNAVAILABLE_TIME)
            }
        };
        self.remember(name, known.clone(), NameSource::Dns, hosts, ttl, now);
        known
    }

    /// Those of a name's addresses that a workspace may have.
    fn permitted(&self, name: &HostName, addresses: &[IpAddr]) -> KnownAddresses {
        let (permitted, refused) = self.policy.split(addresses);
        if !refused.is_empty() {
            // The name has the subject in it; the line of the refusal is logged at `info`.
            debug!(host = %name, ?refused, "addresses that no workspace has; --allow-address permits them");
        }
        if permitted.is_empty() { Err(ResolveError::NotAllowed) } else { Ok(permitted.into()) }
    }

    fn remember(
        &self,
        name: &HostName,
        known: KnownAddresses,
        source: NameSource,
        hosts: u32,
        ttl: Duration,
        now: Instant,
    ) {
        let good_until = now + ttl;
        let (due_at, kept_until) = match (source, &known) {
            (NameSource::Dns, Ok(_)) => (good_until - ttl / REFRESH_PART, good_until + self.lifetimes.stale),
            _ => (good_until, good_until),
        };
        let entry = NameEntry { known, source, hosts, due_at, good_until, asked_at: now, kept_until };
        self.table.insert(name.clone(), entry);
    }

    /// Keeps a name's last answer in use until it is time to ask again.
    fn keep_while_failing(&self, name: &HostName, now: Instant) -> Option<KnownAddresses> {
        self.table.change(name, now, |entry| {
            if entry.source != NameSource::Hosts && entry.known.is_ok() {
                entry.source = NameSource::FailingDns;
                entry.asked_at = now;
                entry.due_at = (now + RETRY_TIME).min(entry.kept_until);
            }
        })
    }
}
