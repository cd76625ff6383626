//! Questions to name servers: hickory asks, and remembers nothing.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{self, Either};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::time::timeout;

use super::answer::{DnsAnswer, FoundAddresses};
use super::resolve_error::ResolveError;
use super::search::{Search, SearchDomains};
use apisix_plugin_runner::HostName;

/// How long a lookup may take in all. A call has 5 s, and is told before that.
pub(super) const LOOKUP_TIME: Duration = Duration::from_secs(2);

/// How long one question waits for its answer, tries after the first included.
const QUESTION_TIME: Duration = Duration::from_millis(1500);

/// How often a question is asked again within its time.
pub(super) const QUESTION_RETRIES: usize = 1;

/// How long a name's AAAA is waited for once its A is there, and the other way
/// round: some servers never answer one of them.
const OTHER_KIND_TIME: Duration = Duration::from_millis(200);

/// How many questions may be open on one connection to a name server.
const MAX_QUESTIONS: usize = 1024;

/// The name servers and the search list.
pub(super) struct Dns {
    search: Search,
    /// One for each server: a hickory resolver of several would take the first
    /// answer of any, even if that says no more than that the server is broken.
    servers: Box<[TokioResolver]>,
}

impl Dns {
    pub(super) fn new(
        config: ResolverConfig,
        mut options: ResolverOpts,
        search: &SearchDomains,
    ) -> Result<Self, NetError> {
        let (domain, mut domains, servers) = config.into_parts();
        if domains.is_empty() {
            domains.extend(domain);
        }
        let search = match search {
            SearchDomains::System => Search::System { domains, dots: options.ndots },
            SearchDomains::Listed(domains) => {
                let names = domains.iter().map(|domain| Name::from_ascii(domain.as_str()));
                Search::Listed(names.collect::<Result<_, _>>()?)
            }
        };
        options.timeout = QUESTION_TIME / (1 + u32::try_from(QUESTION_RETRIES).expect("it is small"));
        options.attempts = QUESTION_RETRIES;
        options.max_active_requests = MAX_QUESTIONS;
        // A refresh must reach the servers, and their TTLs us.
        options.cache_size = 0;
        options.positive_min_ttl = None;
        options.positive_max_ttl = None;
        options.negative_min_ttl = None;
        options.negative_max_ttl = None;
        // The aliases say whose records the answer has.
        options.preserve_intermediates = true;
        // Done above: hickory would read a short name in the hosts file only after
        // asking for it in every search domain.
        options.use_hosts_file = ResolveHosts::Never;
        let servers = servers.into_iter().map(|server| {
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options.clone())
                .build()
        });
        Ok(Self { search, servers: servers.collect::<Result<_, _>>()? })
    }

    /// Asks for a name, and gives up in time.
    pub(super) async fn look_up(&self, host: &HostName) -> Result<FoundAddresses, ResolveError> {
        let name = Name::from_ascii(host.as_str()).map_err(|_| ResolveError::NotFound)?;
        timeout(LOOKUP_TIME, self.look_up_candidates(&name)).await.unwrap_or(Err(ResolveError::Unavailable))
    }

    async fn look_up_candidates(&self, name: &Name) -> Result<FoundAddresses, ResolveError> {
        let (mut shortest, mut failure) = (Duration::MAX, None);
        for candidate in self.search.candidates(name) {
            // All servers are asked at once, and the first that can say is believed.
            let answers = self.servers.iter().map(|server| Box::pin(ask(server, &candidate)));
            match future::select_ok(answers).await {
                Ok((FoundAddresses::Nothing { good_for }, _)) => shortest = shortest.min(good_for),
                Ok((found, _)) => return Ok(found),
                Err(error) if self.search.goes_on() => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(FoundAddresses::Nothing { good_for: shortest }),
        }
    }
}

/// Asks a server for both kinds of addresses; fails if it could not say.
async fn ask(server: &TokioResolver, name: &Name) -> Result<FoundAddresses, ResolveError> {
    let question = async |kind| DnsAnswer::read(server.lookup(name.clone(), kind).await, name, kind);
    let a = pin!(question(RecordType::A));
    let aaaa = pin!(question(RecordType::AAAA));
    let (a, aaaa) = match future::select(a, aaaa).await {
        Either::Left((a, aaaa)) => {
            let aaaa = wait_for_other(&a, aaaa).await;
            (a, aaaa)
        }
        Either::Right((aaaa, a)) => (wait_for_other(&aaaa, a).await, aaaa),
    };
    a.join(aaaa)
}

/// The answer to the other question. It is only worth a short wait if this answer has
/// addresses.
async fn wait_for_other(answer: &DnsAnswer, other: impl Future<Output = DnsAnswer>) -> DnsAnswer {
    match answer {
        DnsAnswer::Addresses { .. } => {
            timeout(OTHER_KIND_TIME, other).await.unwrap_or(DnsAnswer::Unavailable)
        }
        _ => other.await,
    }
}

/// A name server over UDP, and over TCP if an answer is too long.
pub(super) fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}
