//! What servers say, how long it is good, and how often they are asked.

use futures_util::future;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::system_conf;

use super::super::dns::{QUESTION_RETRIES, name_server};
use super::super::hosts::Hosts;
use super::super::{NameServersError, SearchDomains};
use super::server::{Says, Server};
use super::*;
use kube_coders_test_support::{Mode, NameServer};

async fn start() -> (Server, Resolver) {
    let server = Server::start().await;
    let resolver = resolver_of(&server);
    (server, resolver)
}

fn with_search(server: &Server, conf: &str) -> Resolver {
    let (parsed, options) = system_conf::parse_resolv_conf(format!("nameserver 127.0.0.1\n{conf}")).unwrap();
    let (domain, search, _) = parsed.into_parts();
    let config = ResolverConfig::from_parts(domain, search, vec![name_server(server.address())]);
    Resolver::with(
        config,
        options,
        &SearchDomains::System,
        crate::resolver::AddressPolicy::any(),
        Hosts::none(),
        Lifetimes::default(),
    )
    .unwrap()
}

#[tokio::test]
async fn an_ip_literal_needs_no_dns() {
    let (server, resolver) = start().await;
    assert_eq!(at_once(&resolver, "127.0.0.7"), ips(&["127.0.0.7"]));
    assert_eq!(at_once(&resolver, "[::1]"), ips(&["::1"]));
    assert_eq!(server.questions(), 0);
}

#[tokio::test]
async fn a_name_has_all_its_addresses_of_both_kinds() {
    let (server, resolver) = start().await;
    server.set("both.test", &["127.0.0.1", "::1"]);
    server.set("six.test", &["::1"]);
    assert_eq!(ask(&resolver, "both.test").await, ips(&["127.0.0.1", "::1"]));
    assert_eq!(ask(&resolver, "six.test").await, ips(&["::1"]));
    assert_eq!(server.questions(), 4);
}

#[tokio::test]
async fn an_answer_is_kept_for_its_ttl() {
    let (server, resolver) = start().await;
    server.set("a.test", &["127.0.0.1"]);
    server.set_ttl(100);
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    server.set("a.test", &["127.0.0.2"]);
    pass(70 * SECOND).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]));
    assert_eq!(server.questions(), 2);
    pass(31 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.2"]));
}

#[tokio::test]
async fn a_ttl_is_kept_between_its_bounds() {
    for (ttl, least, most) in [(0, 700, 1_001), (86_400, 220_000, 300_001)] {
        let (server, resolver) = start().await;
        server.set("a.test", &["127.0.0.1"]);
        server.set_ttl(ttl);
        assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
        server.set("a.test", &["127.0.0.2"]);
        pass(Duration::from_millis(least)).await;
        assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]));
        assert_eq!(server.questions(), 2, "{ttl}");
        pass(Duration::from_millis(most - least)).await;
        assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.2"]), "{ttl}");
    }
}

#[tokio::test]
async fn the_bounds_can_be_set() {
    let server = Server::start().await;
    let lifetimes = Lifetimes { min_ttl: 10 * SECOND, max_ttl: 10 * SECOND, stale: Duration::ZERO };
    let servers = NameServers::Listed(vec![server.address()]);
    let resolver = Resolver::with_lifetimes(
        &servers,
        &crate::resolver::SearchDomains::Listed(Vec::new()),
        crate::resolver::AddressPolicy::any(),
        lifetimes,
    )
    .unwrap();
    server.set("a.test", &["127.0.0.1"]);
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    server.say(Says::Code(ResponseCode::ServFail));
    pass(7 * SECOND).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]));
    assert_eq!(server.questions(), 2);
    pass(4 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, Err(ResolveError::Unavailable), "nothing is kept longer");
}

#[tokio::test]
async fn a_missing_name_is_remembered_for_five_seconds() {
    let (server, resolver) = start().await;
    server.set_negative_ttl(3600);
    assert_eq!(ask(&resolver, "a.test").await, Err(ResolveError::NotFound));
    let questions = server.questions();
    pass(4 * SECOND).await;
    assert_eq!(at_once(&resolver, "a.test"), Err(ResolveError::NotFound));
    assert_eq!(server.questions(), questions);
    server.set("a.test", &["127.0.0.1"]);
    pass(2 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn a_name_without_address_is_not_found() {
    let (server, resolver) = start().await;
    server.set("empty.test", &[]);
    assert_eq!(ask(&resolver, "empty.test").await, Err(ResolveError::NotFound));
}

#[tokio::test]
async fn an_unknown_name_is_given_up_after_two_seconds_of_silence_and_for_all() {
    let (server, resolver) = start().await;
    server.say(Says::Nothing);
    let resolver = Arc::new(resolver);
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let resolver = Arc::clone(&resolver);
            tokio::spawn(async move { ask(&resolver, "a.test").await })
        })
        .collect();
    server.until_asked(2).await;
    pass(2 * SECOND).await;
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), Err(ResolveError::Unavailable));
    }
    assert!(server.questions() <= 2 * (1 + QUESTION_RETRIES), "{}", server.questions());
    // A crowd does not wait in turn.
    let questions = server.questions();
    assert_eq!(at_once(&resolver, "a.test"), Err(ResolveError::Unavailable));
    assert_eq!(server.questions(), questions);
    server.say(Says::Truth);
    server.set("a.test", &["127.0.0.1"]);
    pass(SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn a_name_is_asked_for_once_however_many_want_it() {
    let (server, resolver) = start().await;
    server.set("a.test", &["127.0.0.1"]);
    let found = future::join_all((0..100).map(|_| ask(&resolver, "a.test"))).await;
    assert!(found.into_iter().all(|found| found == ips(&["127.0.0.1"])));
    assert_eq!(server.questions(), 2);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_takes_nothing_from_the_others() {
    let (server, resolver) = start().await;
    server.set("a.test", &["127.0.0.1"]);
    let name = host("a.test");
    let mut first = Box::pin(resolver.resolve(&name));
    assert!(first.as_mut().now_or_never().is_none());
    let second = resolver.resolve(&name);
    drop(first);
    assert_eq!(second.await, ips(&["127.0.0.1"]));
    assert_eq!(server.questions(), 2);
}

#[tokio::test]
async fn a_truncated_answer_comes_over_tcp() {
    let (server, resolver) = start().await;
    server.set("a.test", &["127.0.0.1"]);
    server.say(Says::Truncated);
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    assert_eq!(server.questions(), 4, "each over UDP and over TCP");
    let many: Vec<_> = (0..250).map(|number| format!("127.0.0.{number}")).collect();
    server.set("many.test", &many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ask(&resolver, "many.test").await.map(|found| found.len()), Ok(250));
}

/// A resolver of workspaces' names, whose system has a search list as well.
fn with_domains(server: &Server, domains: &[&str]) -> Resolver {
    let conf = "nameserver 127.0.0.1\nsearch stranger.test\noptions ndots:5\n";
    let (parsed, options) = system_conf::parse_resolv_conf(conf).unwrap();
    let (domain, search, _) = parsed.into_parts();
    let config = ResolverConfig::from_parts(domain, search, vec![name_server(server.address())]);
    let listed = SearchDomains::Listed(domains.iter().map(|domain| domain.parse().unwrap()).collect());
    Resolver::with(
        config,
        options,
        &listed,
        crate::resolver::AddressPolicy::any(),
        Hosts::none(),
        Lifetimes::default(),
    )
    .unwrap()
}

/// A wildcard record in a search domain of the node would send a user to a stranger.
#[tokio::test]
async fn a_workspaces_name_is_never_completed_from_the_systems_search_list() {
    let server = Server::start().await;
    for name in ["code-a", "code-a.ns", "code-a.ns.svc", "code-a.ns.svc.cluster.local"] {
        server.set(&format!("{name}.stranger.test"), &["127.0.0.66"]);
    }
    server.set("code-b.ns.svc.cluster.local", &["127.0.0.1"]);
    server.set("code-c", &["127.0.0.2"]);
    server.set("code-d.one.test", &["127.0.0.3"]);
    for domains in [&[][..], &["one.test"]] {
        let resolver = with_domains(&server, domains);
        for name in ["code-a", "code-a.ns", "code-a.ns.svc", "code-a.ns.svc.cluster.local"] {
            assert_eq!(ask(&resolver, name).await, Err(ResolveError::NotFound), "{name}");
        }
        assert_eq!(ask(&resolver, "code-b.ns.svc.cluster.local").await, ips(&["127.0.0.1"]));
    }
    // A name of one label is looked for in the listed domains alone, or else as it is.
    assert_eq!(ask(&with_domains(&server, &[]), "code-c").await, ips(&["127.0.0.2"]));
    let resolver = with_domains(&server, &["one.test", "two.test"]);
    assert_eq!(ask(&resolver, "code-c").await, Err(ResolveError::NotFound));
    assert_eq!(ask(&resolver, "code-d").await, ips(&["127.0.0.3"]));
}

#[tokio::test]
async fn an_ill_listed_domain_refuses_only_what_no_other_has() {
    let server = Server::start().await;
    server.set("a.two.test", &["127.0.0.2"]);
    server.fail("a.one.test");
    server.fail("b.one.test");
    let resolver = with_domains(&server, &["one.test", "two.test"]);
    assert_eq!(ask(&resolver, "a").await, ips(&["127.0.0.2"]));
    assert_eq!(ask(&resolver, "b").await, Err(ResolveError::Unavailable), "it may be in the ill one");
}

#[tokio::test]
async fn search_domains_are_asked_in_order() {
    let server = Server::start().await;
    let resolver = with_search(&server, "search one.test two.test\noptions ndots:2\n");
    for (name, address) in [
        ("a.two.test", "127.0.0.2"),
        ("a", "127.0.0.3"),
        ("b.one.test", "127.0.0.1"),
        ("b.two.test", "127.0.0.2"),
        ("c", "127.0.0.3"),
        ("d.e.f", "127.0.0.4"),
        ("d.e.f.one.test", "127.0.0.1"),
        ("d.e", "127.0.0.4"),
        ("d.e.one.test", "127.0.0.1"),
    ] {
        server.set(name, &[address]);
    }
    for (name, address) in [
        ("a", "127.0.0.2"),
        ("b", "127.0.0.1"),
        ("c", "127.0.0.3"),
        ("d.e.f", "127.0.0.4"),
        ("d.e", "127.0.0.1"),
    ] {
        assert_eq!(ask(&resolver, name).await, ips(&[address]), "{name}");
    }
    assert_eq!(ask(&resolver, "nothing").await, Err(ResolveError::NotFound));
}

#[tokio::test]
async fn a_failing_search_domain_gives_no_name_of_another() {
    let server = Server::start().await;
    let resolver = with_search(&server, "search one.test two.test\n");
    server.set("a.two.test", &["127.0.0.2"]);
    server.say(Says::Code(ResponseCode::ServFail));
    assert_eq!(ask(&resolver, "a").await, Err(ResolveError::Unavailable));
    assert!(server.questions() <= 2 * (1 + QUESTION_RETRIES), "{}", server.questions());
}

#[tokio::test]
async fn a_second_server_answers_for_a_dead_or_failing_one() {
    for number in 0..10 {
        let (server, failing, dead) = (Server::start().await, Server::start().await, Server::start().await);
        server.set("a.test", &["127.0.0.1"]);
        failing.say(Says::Code(ResponseCode::ServFail));
        let mut listed = vec![failing.address(), dead.address(), server.address()];
        drop(dead);
        if number % 2 == 0 {
            listed.reverse();
        }
        let resolver = Resolver::new(&NameServers::Listed(listed)).unwrap();
        assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    }
}

#[tokio::test]
async fn one_kind_unanswered_is_not_waited_for() {
    let server = NameServer::start().await.unwrap();
    server.set("a.test", [ip("127.0.0.1"), ip("::1")]);
    server.set_mode(Mode::OnlyA);
    let resolver = Resolver::new(&NameServers::Listed(vec![server.address()])).unwrap();
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn a_name_may_have_an_underscore() {
    let (server, resolver) = start().await;
    server.set("_code_a.test", &["127.0.0.1"]);
    assert_eq!(ask(&resolver, "_code_a.test").await, ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn the_systems_name_servers_are_read_or_refused() {
    match Resolver::new(&NameServers::System) {
        Ok(resolver) => assert!(ask(&resolver, "localhost").await.unwrap()[0].is_loopback()),
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
