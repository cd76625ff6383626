//! The resolver: the hosts file, then the cache of names, then the name servers.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::system_conf;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::address_policy::AddressPolicy;
use super::dns::{Dns, name_server};
use super::hosts::Hosts;
use super::lifetimes::Lifetimes;
use super::lookups::{Lookup, Lookups};
use super::name_cache::NameCache;
use super::name_servers::{NameServers, NameServersError};
use super::name_table::{KnownAddresses, NameEntry, NameSource, TableHit};
use super::resolve_error::ResolveError;
use super::search::SearchDomains;
use apisix_plugin_runner::HostName;

/// The system's hosts file (hosts(5)).
const HOSTS_FILE: &str = "/etc/hosts";

/// How long a caller waits for the first lookup of an expired name before it gets the
/// last answer. In a cluster an answer takes milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long the resolver assumes that name servers which failed still fail. In that time
/// callers get the last answer without waiting, while a task asks again.
const FAILING_TIME: Duration = Duration::from_secs(2 * 60);

/// How often a name whose addresses accept no connection is asked for at most.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

/// How many names may be refreshed ahead of their expiry at once. No caller waits for
/// these lookups, and they must not delay those that callers wait for.
const MAX_REFRESHES: usize = 64;

/// Looks names up and caches the answers until they expire, and the last good one for
/// longer.
///
/// A name that is in use is refreshed before it expires, in a task that ends with the
/// resolver. A name that is not in use is not refreshed.
pub(crate) struct Resolver {
    names: Arc<NameCache>,
    pub(super) lookups: Lookups,
    refreshes: Arc<Semaphore>,
}

impl Resolver {
    /// A resolver with the default lifetimes and without search domains.
    #[cfg(test)]
    pub(crate) fn new(servers: &NameServers) -> Result<Self, NameServersError> {
        Self::with_lifetimes(
            servers,
            &SearchDomains::Listed(Vec::new()),
            AddressPolicy::any(),
            Lifetimes::default(),
        )
    }

    pub(crate) fn with_lifetimes(
        servers: &NameServers,
        search: &SearchDomains,
        policy: AddressPolicy,
        lifetimes: Lifetimes,
    ) -> Result<Self, NameServersError> {
        match servers {
            NameServers::System => {
                let (config, options) = system_conf::read_system_conf().map_err(NameServersError::System)?;
                Self::with(config, options, search, policy, Hosts::read(Path::new(HOSTS_FILE)), lifetimes)
            }
            NameServers::Listed(addresses) if addresses.is_empty() => Err(NameServersError::None),
            NameServers::Listed(addresses) => {
                let servers = addresses.iter().copied().map(name_server).collect();
                let config = ResolverConfig::from_name_servers(servers);
                Self::with(config, ResolverOpts::default(), search, policy, Hosts::none(), lifetimes)
            }
        }
    }

    pub(super) fn with(
        config: ResolverConfig,
        options: ResolverOpts,
        search: &SearchDomains,
        policy: AddressPolicy,
        hosts: Hosts,
        lifetimes: Lifetimes,
    ) -> Result<Self, NameServersError> {
        let dns = Dns::new(config, options, search).map_err(NameServersError::Start)?;
        Ok(Self {
            names: Arc::new(NameCache::new(hosts, dns, policy, lifetimes)),
            lookups: Lookups::default(),
            refreshes: Arc::new(Semaphore::new(MAX_REFRESHES)),
        })
    }

    /// The addresses of a name, at least one; an IP literal is its own.
    pub(crate) async fn resolve(&self, host: &HostName) -> Result<Arc<[IpAddr]>, ResolveError> {
        if let Some(address) = host.as_ip() {
            return Ok(Arc::new([address]));
        }
        let now = Instant::now();
        let hosts = self.names.hosts.check(now);
        match self.names.table.get(host, hosts, now) {
            Some(TableHit::Good(known)) => known,
            // The futures that may wait for a lookup are large, and rarely needed.
            Some(TableHit::Due(entry)) => Box::pin(self.resolve_again(host, entry, hosts, now)).await,
            None => Box::pin(self.resolve_new(host, hosts, now)).await,
        }
    }

    /// The addresses of a name whose known addresses accept no connection: a workspace may have
    /// moved before its TTL is over. Asks again, at most once in [`ASKED_AGAIN`], and otherwise
    /// returns what is known. Expired addresses are no longer used.
    pub(crate) async fn resolve_unreachable(&self, host: &HostName) -> Result<Arc<[IpAddr]>, ResolveError> {
        if let Some(address) = host.as_ip() {
            return Ok(Arc::new([address]));
        }
        let now = Instant::now();
        let hosts = self.names.hosts.check(now);
        let entry = self.names.table.drop_stale(host, now);
        // The file comes first also if it has changed, or if what was remembered of it has expired.
        if let Some(known) = self.names.look_up_in_hosts(host, hosts, now) {
            return known;
        }
        match entry {
            Some(entry) if entry.source != NameSource::Hosts && now < entry.asked_at + ASKED_AGAIN => {
                entry.known
            }
            _ => {
                let (names, name) = (Arc::clone(&self.names), host.clone());
                let again = async move { names.look_up_again(&name, hosts).await };
                match self.lookups.join_or_start(host, now, again) {
                    Some(lookup) => lookup.wait().await,
                    None => Err(ResolveError::Unavailable),
                }
            }
        }
    }

    async fn resolve_new(&self, host: &HostName, hosts: u32, now: Instant) -> KnownAddresses {
        if let Some(known) = self.names.look_up_in_hosts(host, hosts, now) {
            return known;
        }
        match self.join_or_start(host, hosts, now) {
            Some(lookup) => lookup.wait().await,
            None => Err(ResolveError::Unavailable),
        }
    }

    async fn resolve_again(
        &self,
        host: &HostName,
        entry: NameEntry,
        hosts: u32,
        now: Instant,
    ) -> KnownAddresses {
        if entry.source == NameSource::Hosts {
            return self.resolve_new(host, hosts, now).await;
        }
        if entry.hosts != hosts {
            if let Some(known) = self.names.look_up_in_hosts(host, hosts, now) {
                return known;
            }
            self.names.keep_with_hosts(host, hosts, now);
            if now < entry.due_at {
                return entry.known;
            }
        }
        let is_failing = entry.source == NameSource::FailingDns && now < entry.due_at + FAILING_TIME;
        if now < entry.good_until || is_failing {
            self.refresh(host, hosts, now);
            return entry.known;
        }
        let known = match self.join_or_start(host, hosts, now) {
            Some(lookup) => lookup.wait_for(PATIENCE).await,
            None => None,
        };
        known.filter(|known| *known != Err(ResolveError::Unavailable)).unwrap_or(entry.known)
    }

    /// Asks again in the background, unless too many refreshes are under way.
    fn refresh(&self, host: &HostName, hosts: u32, now: Instant) {
        if let Ok(permit) = Arc::clone(&self.refreshes).try_acquire_owned() {
            let (names, name) = (Arc::clone(&self.names), host.clone());
            let look_up = async move {
                let _permit = permit;
                names.look_up(&name, hosts).await
            };
            let _ = self.lookups.join_or_start(host, now, look_up);
        }
    }

    fn join_or_start(&self, host: &HostName, hosts: u32, now: Instant) -> Option<Lookup> {
        let (names, name) = (Arc::clone(&self.names), host.clone());
        self.lookups.join_or_start(host, now, async move { names.look_up(&name, hosts).await })
    }
}
