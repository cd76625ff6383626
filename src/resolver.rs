//! Names to addresses, for the plugin that must know whether a workspace exists
//! and for the forwarder that connects to it.
//!
//! The hosts file comes first, then what is remembered, then the name servers.
//! An address that is over its time is used only while nobody can say better: it
//! may be another's by now.

mod hosts;
mod table;
mod lookups;
mod names;
mod dns;
mod search;
mod answer;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::system_conf;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::dns::{Dns, name_server};
use self::hosts::Hosts;
use self::lookups::{Lookup, Lookups};
use self::names::Names;
use self::table::{Entry, Known, Seen, Source};
use crate::upstream::HostName;

/// Where a system has its hosts file (hosts(5)).
const HOSTS_FILE: &str = "/etc/hosts";

/// How long whoever wants a name waits for the first lookup after its time was
/// over, before the last answer is used. In a cluster an answer takes
/// milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long after the name servers failed to say it is taken for granted that they
/// still do. Whoever wants a name in that time does not wait, and beside them it is
/// asked for again.
const FAILING_TIME: Duration = Duration::from_secs(2 * 60);

/// How many names may be asked for ahead of their time at once. Nobody waits for
/// them, and who does must not wait behind them.
const MAX_REFRESHES: usize = 64;

/// Where names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum NameServers {
    /// The system's resolv.conf and hosts file.
    System,
    /// These servers, over UDP and over TCP where an answer is too long, and
    /// neither search domains nor a hosts file.
    Listed(Vec<SocketAddr>),
}

/// For how long answers of name servers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetimes {
    /// How long addresses are good at least and at most, whatever their TTL.
    pub(crate) min_ttl: Duration,
    pub(crate) max_ttl: Duration,
    /// How long after that they are used while no name server can say.
    pub(crate) stale: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(5 * 60),
            stale: Duration::from_secs(60 * 60),
        }
    }
}

/// Why names can't be looked up at all.
#[derive(Debug, Error)]
pub(crate) enum NameServersError {
    #[error("the system's name servers can't be read from /etc/resolv.conf: {0}")]
    System(NetError),
    #[error("no name server is listed")]
    None,
    #[error("names can't be looked up: {0}")]
    Start(NetError),
}

/// Why a name has no address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ResolveError {
    #[error("the name does not exist")]
    NotFound,
    #[error("no name server could say")]
    Unavailable,
}

/// Looks names up and remembers the answers for as long as they are good, and the
/// last good one for longer.
///
/// A name that is in use is asked for again before its time is over, in a task
/// that ends with the resolver. One that nobody wants is not.
pub(crate) struct Resolver {
    names: Arc<Names>,
    lookups: Lookups,
    refreshes: Arc<Semaphore>,
}

impl Resolver {
    /// A resolver with the default lifetimes.
    #[cfg(test)]
    pub(crate) fn new(servers: &NameServers) -> Result<Self, NameServersError> {
        Self::with_lifetimes(servers, Lifetimes::default())
    }

    pub(crate) fn with_lifetimes(
        servers: &NameServers,
        lifetimes: Lifetimes,
    ) -> Result<Self, NameServersError> {
        match servers {
            NameServers::System => {
                let (config, options) = system_conf::read_system_conf().map_err(NameServersError::System)?;
                Self::with(config, options, Hosts::read(Path::new(HOSTS_FILE)), lifetimes)
            }
            NameServers::Listed(addresses) if addresses.is_empty() => Err(NameServersError::None),
            NameServers::Listed(addresses) => {
                let servers = addresses.iter().copied().map(name_server).collect();
                let config = ResolverConfig::from_name_servers(servers);
                Self::with(config, ResolverOpts::default(), Hosts::none(), lifetimes)
            }
        }
    }

    fn with(
        config: ResolverConfig,
        options: ResolverOpts,
        hosts: Hosts,
        lifetimes: Lifetimes,
    ) -> Result<Self, NameServersError> {
        let dns = Dns::new(config, options).map_err(NameServersError::Start)?;
        Ok(Self {
            names: Arc::new(Names::new(hosts, dns, lifetimes)),
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
            Some(Seen::Good(known)) => known,
            // What may wait for a lookup is large, and rarely needed.
            Some(Seen::Due(entry)) => Box::pin(self.resolve_again(host, entry, hosts, now)).await,
            None => Box::pin(self.resolve_anew(host, hosts, now)).await,
        }
    }

    async fn resolve_anew(&self, host: &HostName, hosts: u32, now: Instant) -> Known {
        if let Some(known) = self.names.look_up_in_hosts(host, hosts, now) {
            return known;
        }
        match self.join_or_start(host, hosts, now) {
            Some(lookup) => lookup.wait().await,
            None => Err(ResolveError::Unavailable),
        }
    }

    async fn resolve_again(&self, host: &HostName, entry: Entry, hosts: u32, now: Instant) -> Known {
        if entry.source == Source::Hosts {
            return self.resolve_anew(host, hosts, now).await;
        }
        if entry.hosts != hosts {
            if let Some(known) = self.names.look_up_in_hosts(host, hosts, now) {
                return known;
            }
            self.names.keep_beside(host, hosts, now);
            if now < entry.due_at {
                return entry.known;
            }
        }
        let is_failing = entry.source == Source::FailingDns && now < entry.due_at + FAILING_TIME;
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

    /// Asks again in the background, unless that is done already for too many.
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
