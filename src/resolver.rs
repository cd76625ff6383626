//! Names to addresses, for the plugin that must know whether a workspace exists
//! and for the forwarder that connects to it.

mod table;

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{self, Either};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use thiserror::Error;
use tokio::time::timeout;

use self::table::{Known, Table};
use crate::upstream::HostName;

/// How long a lookup may take in all. A call has 5 s, and is told before that.
const LOOKUP_TIME: Duration = Duration::from_secs(2);

/// How long one question waits for its answer, tries after the first included.
const QUESTION_TIME: Duration = Duration::from_millis(1500);

/// How long a name's AAAA is waited for once its A is there, and the other way
/// round: some servers never answer one of them.
const OTHER_KIND_TIME: Duration = Duration::from_millis(200);

/// How often a question is asked again within its time.
const QUESTION_RETRIES: usize = 1;

/// How long addresses are good at least and at most, whatever their TTL.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(5 * 60);

/// How long "does not exist" is good at most: a workspace may start any moment.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// How many names are remembered.
const MAX_NAMES: usize = 100_000;

/// How many answers hickory remembers beneath our table. It serves only what the
/// table does not hold: the names that the search list tries in vain.
const MAX_ANSWERS: u64 = 1024;

/// How many questions may be open on one connection to a name server.
const MAX_QUESTIONS: usize = 1024;

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

/// Looks names up and remembers the answers for as long as they are good.
///
/// hickory asks the servers, and one question at a time for a name. The table
/// above it is ours because a name that hickory remembers still costs
/// microseconds: both answers are copied record by record.
pub(crate) struct Resolver {
    table: Table,
    hosts: Hosts,
    search: Search,
    /// One for each server: a hickory resolver of several would take the first
    /// answer of any, even if that says no more than that the server is broken.
    servers: Box<[TokioResolver]>,
}

impl Resolver {
    pub(crate) fn new(servers: &NameServers) -> Result<Self, NameServersError> {
        match servers {
            NameServers::System => {
                let (config, options) = system_conf::read_system_conf().map_err(NameServersError::System)?;
                // A system without a hosts file has no names in it.
                Self::with(config, options, Hosts::from_system().unwrap_or_default())
            }
            NameServers::Listed(addresses) if addresses.is_empty() => Err(NameServersError::None),
            NameServers::Listed(addresses) => {
                let servers = addresses.iter().copied().map(name_server).collect();
                Self::with(
                    ResolverConfig::from_name_servers(servers),
                    ResolverOpts::default(),
                    Hosts::default(),
                )
            }
        }
    }

    fn with(
        config: ResolverConfig,
        mut options: ResolverOpts,
        hosts: Hosts,
    ) -> Result<Self, NameServersError> {
        let (domain, mut domains, servers) = config.into_parts();
        if domains.is_empty() {
            domains.extend(domain);
        }
        let search = Search { domains, dots: options.ndots };
        options.timeout = QUESTION_TIME / (1 + u32::try_from(QUESTION_RETRIES).expect("it is small"));
        options.attempts = QUESTION_RETRIES;
        options.cache_size = MAX_ANSWERS;
        options.positive_min_ttl = Some(MIN_TTL);
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_min_ttl = Some(MIN_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.max_active_requests = MAX_QUESTIONS;
        // Both are done here: hickory would read a short name in the hosts file
        // only after asking for it in every search domain.
        options.use_hosts_file = ResolveHosts::Never;
        let servers = servers.into_iter().map(|server| {
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options.clone())
                .build()
        });
        let servers = servers.collect::<Result<_, _>>().map_err(NameServersError::Start)?;
        Ok(Self { table: Table::new(MAX_NAMES), hosts, search, servers })
    }

    /// The addresses of a name, at least one; an IP literal is its own.
    pub(crate) async fn resolve(&self, host: &HostName) -> Result<Arc<[IpAddr]>, ResolveError> {
        if let Some(address) = host.as_ip() {
            return Ok(Arc::new([address]));
        }
        let known = match self.table.get(host, Instant::now()) {
            Some(known) => known,
            // The future of a real lookup is large, and rarely needed.
            None => Box::pin(self.look_up(host)).await?,
        };
        known.ok_or(ResolveError::NotFound)
    }

    async fn look_up(&self, host: &HostName) -> Result<Known, ResolveError> {
        let name = Name::from_ascii(host.as_str()).map_err(|_| ResolveError::NotFound)?;
        let found = match self.look_up_in_hosts(&name) {
            Some(addresses) => Found::Addresses { addresses, good_until: Instant::now() + MAX_TTL },
            None => timeout(LOOKUP_TIME, self.look_up_in_dns(&name))
                .await
                .unwrap_or(Err(ResolveError::Unavailable))?,
        };
        let now = Instant::now();
        let (known, good_until) = match found {
            Found::Addresses { addresses, good_until } => {
                (Some(addresses.into()), good_until.clamp(now + MIN_TTL, now + MAX_TTL))
            }
            Found::Nothing { good_for } => (None, now + good_for.clamp(MIN_TTL, MAX_NEGATIVE_TTL)),
        };
        self.table.insert(host.clone(), known.clone(), good_until, now);
        Ok(known)
    }

    fn look_up_in_hosts(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            if let Some(lookup) = self.hosts.lookup_static_host(&Query::query(name.clone(), kind)) {
                addresses.extend(lookup.answers().iter().filter_map(|record| record.data.ip_addr()));
            }
        }
        (!addresses.is_empty()).then_some(addresses)
    }

    async fn look_up_in_dns(&self, name: &Name) -> Result<Found, ResolveError> {
        let mut shortest = MAX_NEGATIVE_TTL;
        for candidate in self.search.candidates(name) {
            // All servers are asked at once, and the first that can say is believed.
            let answers = self.servers.iter().map(|server| Box::pin(ask(server, &candidate)));
            match future::select_ok(answers).await?.0 {
                Found::Nothing { good_for } => shortest = shortest.min(good_for),
                // A name in a domain that is asked later is another name: it must
                // not take the place of one of which nobody could say.
                found => return Ok(found),
            }
        }
        Ok(Found::Nothing { good_for: shortest })
    }
}

/// Asks a server for both kinds of addresses; fails if it could not say.
async fn ask(server: &TokioResolver, name: &Name) -> Result<Found, ResolveError> {
    let a = pin!(server.lookup(name.clone(), RecordType::A));
    let aaaa = pin!(server.lookup(name.clone(), RecordType::AAAA));
    let (a, aaaa) = match future::select(a, aaaa).await {
        Either::Left((a, aaaa)) => {
            let a = Answer::from(a);
            let aaaa = a.wait_for(aaaa).await;
            (a, aaaa)
        }
        Either::Right((aaaa, a)) => {
            let aaaa = Answer::from(aaaa);
            (aaaa.wait_for(a).await, aaaa)
        }
    };
    a.join(aaaa)
}

/// A name server over UDP, and over TCP where an answer is too long.
fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The search list of resolv.conf.
struct Search {
    domains: Vec<Name>,
    /// How many dots a name has at least that is first asked for as it is.
    dots: usize,
}

impl Search {
    /// The full names that a name may stand for, in the order to ask.
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut whole = name.clone();
        whole.set_fqdn(true);
        // What gets too long with a domain is no name there.
        let searched = self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        if dots >= self.dots || name.is_localhost() {
            std::iter::once(whole).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(whole)).collect()
        }
    }
}

/// What asking for a name came to.
enum Found {
    Addresses { addresses: Vec<IpAddr>, good_until: Instant },
    Nothing { good_for: Duration },
}

/// What one question came to.
enum Answer {
    Addresses {
        addresses: Vec<IpAddr>,
        good_until: Instant,
    },
    /// The name has no record of this kind, or does not exist at all.
    Nothing {
        good_for: Duration,
        response_code: ResponseCode,
    },
    Unavailable,
}

impl From<Result<Lookup, NetError>> for Answer {
    fn from(result: Result<Lookup, NetError>) -> Self {
        match result {
            Ok(lookup) => {
                let addresses: Vec<_> =
                    lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
                match addresses.is_empty() {
                    false => Self::Addresses { addresses, good_until: lookup.valid_until() },
                    true => Self::Nothing { good_for: MIN_TTL, response_code: ResponseCode::NoError },
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Self::Nothing {
                good_for: none.negative_ttl.map_or(MIN_TTL, |seconds| Duration::from_secs(seconds.into())),
                response_code: none.response_code,
            },
            Err(_) => Self::Unavailable,
        }
    }
}

impl Answer {
    /// The answer to the other question, which is only worth a short wait where
    /// this one gave addresses.
    async fn wait_for(&self, other: impl Future<Output = Result<Lookup, NetError>>) -> Self {
        match self {
            Self::Addresses { .. } => {
                timeout(OTHER_KIND_TIME, other).await.map_or(Self::Unavailable, Self::from)
            }
            _ => other.await.into(),
        }
    }

    /// Puts the answers for A and AAAA together.
    fn join(self, other: Self) -> Result<Found, ResolveError> {
        Ok(match (self, other) {
            (
                Self::Addresses { mut addresses, good_until },
                Self::Addresses { addresses: more, good_until: until },
            ) => {
                addresses.extend(more);
                Found::Addresses { addresses, good_until: good_until.min(until) }
            }
            (Self::Addresses { addresses, good_until }, _)
            | (_, Self::Addresses { addresses, good_until }) => Found::Addresses { addresses, good_until },
            (Self::Nothing { good_for, .. }, Self::Nothing { good_for: other, .. }) => {
                Found::Nothing { good_for: good_for.min(other) }
            }
            // A name that does not exist has no record of any kind.
            (Self::Nothing { good_for, response_code: ResponseCode::NXDomain }, _)
            | (_, Self::Nothing { good_for, response_code: ResponseCode::NXDomain }) => {
                Found::Nothing { good_for }
            }
            _ => return Err(ResolveError::Unavailable),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Mode, NameServer};

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    async fn start() -> (NameServer, Resolver) {
        let server = NameServer::start().await.unwrap();
        let resolver = Resolver::new(&NameServers::Listed(vec![server.address()])).unwrap();
        (server, resolver)
    }

    fn with_search(server: &NameServer, conf: &str) -> Resolver {
        let (parsed, options) =
            system_conf::parse_resolv_conf(format!("nameserver 127.0.0.1\n{conf}")).unwrap();
        let (domain, search, _) = parsed.into_parts();
        let config = ResolverConfig::from_parts(domain, search, vec![name_server(server.address())]);
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"127.0.0.9 from-hosts\n::9 from-hosts\n"[..]).unwrap();
        Resolver::with(config, options, hosts).unwrap()
    }

    #[track_caller]
    fn check(found: Result<Arc<[IpAddr]>, ResolveError>, expected: Result<&[&str], ResolveError>) {
        let expected = expected.map(|addresses| addresses.iter().map(|text| ip(text)).collect::<Arc<[_]>>());
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn an_ip_literal_needs_no_dns() {
        let (server, resolver) = start().await;
        check(resolver.resolve(&host("127.0.0.7")).await, Ok(&["127.0.0.7"]));
        check(resolver.resolve(&host("[::1]")).await, Ok(&["::1"]));
        assert_eq!(server.questions(), 0);
    }

    #[tokio::test]
    async fn a_name_has_all_its_addresses() {
        let (server, resolver) = start().await;
        server.set("both.test", [ip("127.0.0.1"), ip("::1"), ip("127.0.0.2")]);
        server.set("six.test", [ip("::1")]);
        let found = resolver.resolve(&host("both.test")).await.unwrap();
        // Servers and resolvers may turn the addresses of one kind round.
        assert_eq!(found.len(), 3);
        assert!(["127.0.0.1", "127.0.0.2", "::1"].iter().all(|address| found.contains(&ip(address))));
        assert_eq!(found[2], ip("::1"));
        check(resolver.resolve(&host("six.test")).await, Ok(&["::1"]));
    }

    #[tokio::test]
    async fn an_answer_is_remembered_for_its_ttl() {
        let (server, resolver) = start().await;
        server.set("a.test", [ip("127.0.0.1")]);
        server.set_ttl(Duration::from_secs(30));
        let start = Instant::now();
        check(resolver.resolve(&host("a.test")).await, Ok(&["127.0.0.1"]));
        let questions = server.questions();
        server.remove("a.test");
        check(resolver.resolve(&host("a.test")).await, Ok(&["127.0.0.1"]));
        assert_eq!(server.questions(), questions);
        assert!(resolver.table.get(&host("a.test"), start + Duration::from_secs(29)).is_some());
        assert!(resolver.table.get(&host("a.test"), Instant::now() + Duration::from_secs(31)).is_none());
    }

    #[tokio::test]
    async fn a_ttl_is_kept_between_its_bounds() {
        let (server, resolver) = start().await;
        server.set("short.test", [ip("127.0.0.1")]);
        server.set("long.test", [ip("127.0.0.1")]);
        server.set_ttl(Duration::ZERO);
        check(resolver.resolve(&host("short.test")).await, Ok(&["127.0.0.1"]));
        server.set_ttl(Duration::from_secs(86_400));
        check(resolver.resolve(&host("long.test")).await, Ok(&["127.0.0.1"]));
        let now = Instant::now();
        assert!(resolver.table.get(&host("short.test"), now + Duration::from_secs(2)).is_none());
        assert!(resolver.table.get(&host("long.test"), now + Duration::from_secs(290)).is_some());
        assert!(resolver.table.get(&host("long.test"), now + Duration::from_secs(301)).is_none());
    }

    #[tokio::test]
    async fn what_does_not_exist_is_remembered_for_seconds() {
        let (server, resolver) = start().await;
        for (name, ttl) in [("a.test", Some(Duration::from_secs(3600))), ("b.test", None)] {
            server.set_negative_ttl(ttl);
            check(resolver.resolve(&host(name)).await, Err(ResolveError::NotFound));
            let questions = server.questions();
            check(resolver.resolve(&host(name)).await, Err(ResolveError::NotFound));
            assert_eq!(server.questions(), questions);
            assert!(resolver.table.get(&host(name), Instant::now() + Duration::from_secs(6)).is_none());
        }
        assert!(resolver.table.get(&host("a.test"), Instant::now() + Duration::from_secs(3)).is_some());
    }

    #[tokio::test]
    async fn a_name_without_address_is_not_found() {
        let (server, resolver) = start().await;
        server.set("empty.test", []);
        check(resolver.resolve(&host("empty.test")).await, Err(ResolveError::NotFound));
    }

    #[tokio::test]
    async fn a_failing_server_is_unavailable_and_not_remembered() {
        let (server, resolver) = start().await;
        server.set("a.test", [ip("127.0.0.1")]);
        server.set_mode(Mode::Fail);
        check(resolver.resolve(&host("a.test")).await, Err(ResolveError::Unavailable));
        server.set_mode(Mode::Answer);
        check(resolver.resolve(&host("a.test")).await, Ok(&["127.0.0.1"]));
    }

    #[tokio::test]
    async fn a_silent_server_is_unavailable_in_time() {
        let (server, resolver) = start().await;
        server.set_mode(Mode::Silent);
        let start = Instant::now();
        check(resolver.resolve(&host("a.test")).await, Err(ResolveError::Unavailable));
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert!(server.questions() > 0);
    }

    #[tokio::test]
    async fn a_dead_server_is_unavailable() {
        let (server, resolver) = start().await;
        drop(server);
        check(resolver.resolve(&host("a.test")).await, Err(ResolveError::Unavailable));
    }

    #[tokio::test]
    async fn a_second_server_answers_for_a_dead_one() {
        let (server, dead) = (NameServer::start().await.unwrap(), NameServer::start().await.unwrap());
        server.set("a.test", [ip("127.0.0.1")]);
        let listed = NameServers::Listed(vec![dead.address(), server.address()]);
        drop(dead);
        let resolver = Resolver::new(&listed).unwrap();
        check(resolver.resolve(&host("a.test")).await, Ok(&["127.0.0.1"]));
    }

    #[tokio::test]
    async fn a_long_answer_comes_over_tcp() {
        let (server, resolver) = start().await;
        server.set("many.test", (0..250).map(|number| IpAddr::from([127, 0, 0, number])));
        assert_eq!(resolver.resolve(&host("many.test")).await.map(|found| found.len()), Ok(250));
    }

    #[tokio::test]
    async fn search_domains_are_asked_in_order() {
        let server = NameServer::start().await.unwrap();
        let resolver = with_search(&server, "search one.test two.test\noptions ndots:2\n");
        server.set("a.two.test", [ip("127.0.0.2")]);
        server.set("a", [ip("127.0.0.3")]);
        server.set("b.one.test", [ip("127.0.0.1")]);
        server.set("b.two.test", [ip("127.0.0.2")]);
        server.set("c", [ip("127.0.0.3")]);
        server.set("d.e.f", [ip("127.0.0.4")]);
        server.set("d.e.f.one.test", [ip("127.0.0.1")]);
        server.set("d.e", [ip("127.0.0.4")]);
        server.set("d.e.one.test", [ip("127.0.0.1")]);
        check(resolver.resolve(&host("a")).await, Ok(&["127.0.0.2"]));
        check(resolver.resolve(&host("b")).await, Ok(&["127.0.0.1"]));
        check(resolver.resolve(&host("c")).await, Ok(&["127.0.0.3"]));
        check(resolver.resolve(&host("d.e.f")).await, Ok(&["127.0.0.4"]));
        check(resolver.resolve(&host("d.e")).await, Ok(&["127.0.0.1"]));
        check(resolver.resolve(&host("nobody")).await, Err(ResolveError::NotFound));
    }

    #[tokio::test]
    async fn a_name_may_have_an_underscore() {
        let (server, resolver) = start().await;
        server.set("_code_a.test", [ip("127.0.0.1")]);
        check(resolver.resolve(&host("_code_a.test")).await, Ok(&["127.0.0.1"]));
    }

    #[tokio::test]
    async fn a_failing_search_domain_gives_no_name_of_another() {
        let server = NameServer::start().await.unwrap();
        let resolver = with_search(&server, "search one.test two.test\n");
        server.set("a.two.test", [ip("127.0.0.2")]);
        server.set_mode(Mode::Fail);
        check(resolver.resolve(&host("a")).await, Err(ResolveError::Unavailable));
        assert!(server.questions() <= 2 * (1 + QUESTION_RETRIES), "{}", server.questions());
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first() {
        let server = NameServer::start().await.unwrap();
        let resolver = with_search(&server, "search one.test\n");
        server.set("from-hosts.one.test", [ip("127.0.0.1")]);
        check(resolver.resolve(&host("from-hosts")).await, Ok(&["127.0.0.9", "::9"]));
        assert_eq!(server.questions(), 0);
    }

    #[test]
    fn one_kind_unanswered_is_no_missing_name() {
        let nothing = |response_code| Answer::Nothing { good_for: MIN_TTL, response_code };
        let found = |a: Answer, aaaa: Answer| match a.join(aaaa) {
            Ok(Found::Addresses { .. }) => "addresses",
            Ok(Found::Nothing { .. }) => "nothing",
            Err(_) => "unavailable",
        };
        let address = || Answer::Addresses { addresses: vec![ip("::1")], good_until: Instant::now() };
        assert_eq!(found(nothing(ResponseCode::NoError), Answer::Unavailable), "unavailable");
        assert_eq!(found(Answer::Unavailable, nothing(ResponseCode::NoError)), "unavailable");
        assert_eq!(found(nothing(ResponseCode::NXDomain), Answer::Unavailable), "nothing");
        assert_eq!(found(address(), Answer::Unavailable), "addresses");
        assert_eq!(found(Answer::Unavailable, address()), "addresses");
    }

    #[tokio::test]
    async fn one_kind_unanswered_is_not_waited_for() {
        let (server, resolver) = start().await;
        server.set("a.test", [ip("127.0.0.1"), ip("::1")]);
        server.set_mode(Mode::OnlyA);
        let start = Instant::now();
        check(resolver.resolve(&host("a.test")).await, Ok(&["127.0.0.1"]));
        assert!(start.elapsed() < QUESTION_TIME, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_however_many_want_it() {
        let (server, resolver) = start().await;
        server.set("a.test", [ip("127.0.0.1")]);
        let name = host("a.test");
        let found = future::join_all((0..100).map(|_| resolver.resolve(&name))).await;
        assert!(found.into_iter().all(|found| found.is_ok()));
        assert_eq!(server.questions(), 2);
    }

    #[tokio::test]
    async fn a_second_server_answers_for_a_failing_one() {
        for number in 0..20 {
            let (server, failing) = (NameServer::start().await.unwrap(), NameServer::start().await.unwrap());
            server.set("a.test", [ip("127.0.0.1")]);
            failing.set_mode(Mode::Fail);
            let mut listed = vec![failing.address(), server.address()];
            if number % 2 == 0 {
                listed.reverse();
            }
            let resolver = Resolver::new(&NameServers::Listed(listed)).unwrap();
            check(resolver.resolve(&host("a.test")).await, Ok(&["127.0.0.1"]));
        }
    }

    #[tokio::test]
    async fn the_systems_name_servers_are_read_or_refused() {
        match Resolver::new(&NameServers::System) {
            Ok(resolver) => assert!(resolver.resolve(&host("localhost")).await.unwrap()[0].is_loopback()),
            Err(error) => assert!(matches!(error, NameServersError::System(_)), "{error}"),
        }
    }

    #[test]
    fn an_empty_resolv_conf_is_refused() {
        let error = system_conf::parse_resolv_conf("").map_err(NameServersError::System).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the system's name servers can't be read from /etc/resolv.conf: io error: no nameservers found in config"
        );
    }

    #[test]
    fn errors_say_why_a_name_has_no_address() {
        assert_eq!(ResolveError::NotFound.to_string(), "the name does not exist");
        assert_eq!(ResolveError::Unavailable.to_string(), "no name server could say");
    }

    #[test]
    fn without_name_servers_there_is_no_resolver() {
        let error = Resolver::new(&NameServers::Listed(Vec::new())).err().unwrap();
        assert_eq!(error.to_string(), "no name server is listed");
    }

    #[test]
    fn a_resolver_is_made_outside_of_a_runtime() {
        assert!(Resolver::new(&NameServers::Listed(vec!["127.0.0.1:53".parse().unwrap()])).is_ok());
    }
}
